"""Memory that a sync gives back, what making an index takes, and digests that are found where they lie."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from typing import TYPE_CHECKING
from unittest.mock import ANY

import numpy as np
import pyarrow as pa
import pytest

from adventures.census import Census, Digester, Picker, Stock, find
from adventures.delta import RowBatch

if TYPE_CHECKING:
    from pathlib import Path

# Blocks below the size that glibc gives back by itself, and between them some that stay.
_FREE = """
import ctypes, sys, time
from contextlib import nullcontext
from adventures.memory import little_kept

libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) / 1024

with little_kept() if sys.argv[1] == "kept" else nullcontext():
    before = resident()
    blocks = [libc.malloc(100_000) for _ in range(2000)]
    for block in blocks:
        ctypes.memset(block, 1, 100_000)
    held = resident() - before
    for number, block in enumerate(blocks):
        if number % 100 != 99:
            libc.free(block)
    end = time.monotonic() + float(sys.argv[2])
    while resident() - before > 0.2 * held and time.monotonic() < end:
        time.sleep(0.05)
    print(held, resident() - before)
"""


def _left(how: str, seconds: float) -> float:
    arguments = [sys.executable, "-c", _FREE, how, str(seconds)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    held, left = map(float, done.stdout.split())
    assert held > 150
    return left / held


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_freed_blocks_are_given_back() -> None:
    assert _left("kept", 20) < 0.2
    assert _left("as ever", 1) > 0.8, "what the block above does is not needed any more"


# Vectors of random numbers: 64 KiB a document.
_MAKE = """
import resource, sys
import adventures as adv
import numpy as np

rng = np.random.default_rng(0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
documents = (rng.standard_normal((16, 1024), np.float32) for _ in range(int(sys.argv[2])))
adv.ColbertIndex.create(sys.argv[1], vectors=documents, nbits=1)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is of KiB there")
def test_making_an_index_does_not_hold_its_vectors(tmp_path: Path) -> None:
    few, many = 3000, 7000
    peaks = {}
    for count in (few, many):
        arguments = [sys.executable, "-c", _MAKE, str(tmp_path / str(count)), str(count)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=True)
        peaks[count] = float(done.stdout)
    assert peaks[many] - peaks[few] < 0.4 * (many - few) / 16, peaks


class _Rows:
    """A source of these rows."""

    def __init__(self, rows: list[tuple[str | None, str]]) -> None:
        self.rows = rows

    def batches(self) -> list[RowBatch]:
        ids, texts = zip(*self.rows, strict=True)
        key = pa.StructArray.from_arrays([pa.array(ids, pa.string())], ["id"])
        return [RowBatch(list(ids), list(texts), key, None, [(text,) for text in texts])]


@pytest.mark.parametrize("texts", [True, False])
def test_a_census_finds_its_rows(texts: bool) -> None:
    rows: list[tuple[str | None, str]] = [(f"row {n}", f"text {n}") for n in range(1000)]
    rows += [("row 7", "another text"), ("row 8", "text 8"), (None, "no id"), ("row x", " ")]
    digester = Digester(100, 10)
    census = Census.of(_Rows(rows), digester, texts=texts)  # type: ignore[arg-type]
    assert len(census) == 1000
    assert census.read == 1004
    assert {skip.reason: skip.count for skip in census.skipped} == {"duplicate id": 2, "null id": 1, "empty text": 1}
    assert all(first < second for first, second in pairwise(census.ids.tolist()))

    asked = np.array([digester.of(f"row {n}", "", ()).id for n in (0, 999, 1000, 5)], "S12")
    at = census.find(asked)
    assert at[2] == -1
    assert census.ids[at[[0, 1, 3]]].tolist() == asked[[0, 1, 3]].tolist()
    of_five = digester.of("row 5", "text 5", ("text 5",))
    assert census.rows[at[3]] == np.array(of_five.row, "S12")
    if texts:
        assert census.texts[at[3]] == np.array(of_five.text, "S12")
    # Of two rows with one id, the one with the lower digest.
    seven = census.find(np.array([digester.of("row 7", "", ()).id], "S12"))[0]
    both = [digester.of("row 7", text, (text,)).row for text in ("text 7", "another text")]
    assert census.rows[seven] == np.array(min(both), "S12")


def test_a_first_census_keeps_digests_of_shared_ids_only() -> None:
    rows: list[tuple[str | None, str]] = [(f"row {n}", f"text {n}") for n in range(1000)]
    rows += [("row 7", "another text"), ("row 8", "text 8"), ("row 8", "text 8"), (None, "no id"), ("row x", " ")]
    digester = Digester(100, 10)
    census = Census.first(_Rows(rows), digester)  # type: ignore[arg-type]
    whole = Census.of(_Rows(rows), digester)  # type: ignore[arg-type]
    assert (len(census), census.read, census.skipped) == (len(whole), whole.read, whole.skipped) == (1000, 1005, ANY)
    assert census.digests.nbytes == 2 * 2 * 12

    def picked(again: list[tuple[str | None, str]]) -> tuple[list[tuple[str | None, str]], int]:
        picker = Picker(census, digester, np.full(len(census), True))
        assert picker.left == 1000
        found = []
        for start in range(0, len(again), 300):
            batch = _Rows(again[start : start + 300]).batches()[0]
            indices, positions, _ = picker.pick(batch)
            assert all(0 <= position < 1000 for position in positions)
            found += [(batch.ids[index], batch.texts[index]) for index in indices]
        return found, picker.left  # type: ignore[return-value]

    seven = min(("text 7", "another text"), key=lambda text: digester.of("row 7", text, (text,)).row)
    expected = {f"row {n}": f"text {n}" for n in range(1000)} | {"row 7": seven}
    for again in (rows, rows[::-1]):
        found, left = picked(again)
        assert dict(found) == expected
        assert (len(found), left) == (1000, 0)
    assert picked(rows[1:])[1] == 1
    assert picked([*rows, ("row 1000", "more")])[1] == 1
    assert picked([("row 0", "changed"), *rows[1:]])[1] == 1
    assert picked([])[1] == 1000
    nothing = Census.first(_Rows([(None, "no id")]), digester)  # type: ignore[arg-type]
    assert (len(nothing), nothing.read, Picker(nothing, digester, np.full(0, True)).left) == (0, 1, 0)


def test_ids_that_end_in_zeros_are_found() -> None:
    ids = np.array([b"a" * 12, b"a" * 11, b"b" * 3, b"b" * 3 + b"\0\1"], "S12")
    ids.sort()
    for columns in (2, 3):
        digests = np.full((len(ids), columns), b"\xff" * 12, "S12")
        digests[:, 0] = ids
        digests[::2, 1] = b""
        census = Census(digests, len(ids), [])
        wanted = np.array([*ids, b"a", b"b" * 4, b""], "S12")
        assert census.find(wanted).tolist() == find(ids, wanted).tolist() == [0, 1, 2, 3, -1, -1, -1]
    nothing = Census(np.empty((0, 3), "S12"), 0, [])
    assert nothing.find(ids).tolist() == [-1] * 4
    assert Stock.of(None).ids.tolist() == []
