"""What a sync gives back to the system while it runs."""

from __future__ import annotations

import ctypes
import sys
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

# glibc's numbers of its settings (`malloc.h`).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# From here on a block is its own, and given back with all of its memory.
_LARGE = 256 << 10
# What glibc itself goes up to, as large blocks are freed.
_LARGEST = 32 << 20
# In seconds, how often smaller blocks are given back, which takes some milliseconds.
_EVERY = 0.5

_lock = threading.Lock()
_over: list[threading.Event] = []


@contextmanager
def little_kept() -> Iterator[None]:
    """Has glibc give back what is freed, for the length of a `with` block.

    Left to itself it takes ever larger blocks from heaps that each thread has for itself, and keeps them: of the
    vectors that LanceDB reads to make an index, all stay in memory. Elsewhere than with glibc, nothing is done.
    """
    libc = _libc()
    if libc is None:
        yield
        return
    over = threading.Event()
    thread = threading.Thread(target=_give_back, args=(libc, over), name="adventures-memory", daemon=True)
    thread.start()
    with _lock:
        _over.append(over)
        _set(libc, large=_LARGE, kept=1 << 20)
    try:
        yield
    finally:
        over.set()
        thread.join()
        with _lock:
            _over.remove(over)
            if not _over:
                # There is no way back to a size that glibc chooses by itself: this is what it ends at.
                _set(libc, large=_LARGEST, kept=2 * _LARGEST)


def _give_back(libc: Any, over: threading.Event) -> None:
    while not over.wait(_EVERY):
        libc.malloc_trim(0)


def _set(libc: Any, *, large: int, kept: int) -> None:
    libc.mallopt(_MMAP_THRESHOLD, large)
    libc.mallopt(_TRIM_THRESHOLD, kept)


def _libc() -> Any:
    """Returns glibc; None where the process has another library."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            libc = ctypes.CDLL("libc.so.6")
            _ = libc.mallopt, libc.malloc_trim
            return libc
    return None
