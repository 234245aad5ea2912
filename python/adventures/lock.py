"""A lock file: one writer at a time, across threads and processes."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from adventures._adventures import BusyError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def exclusive(path: Path, what: str) -> Iterator[None]:
    """Holds the lock at `path` for the length of a `with` block.

    The system drops the lock when its holder dies, so none is ever left behind; the empty file stays.

    Raises:
        BusyError: Somebody else holds it.
        OSError: The file system has no locks, or the file cannot be made.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(f"{what} is being written by another sync; wait for it to end ({path})") from error
        yield
    finally:
        os.close(file)
