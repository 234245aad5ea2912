"""The vectors of a sync that is running, on disk, so that the next one need not compute them again where this one dies.

A header line of JSON says which model made them. Records of one size follow: what the passage is, its vector, a
checksum. A record that a crash tore fails its checksum or is cut off, and is computed again.
"""

from __future__ import annotations

import json
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

# The digest of a row's text and the way it is cut, and which passage of it this is.
_KEY = np.dtype([("text", "S16"), ("ordinal", "<u4")])


class Journal:
    """Vectors by the text that they are of. Where it cannot be written it is given up: it only saves time."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._records: NDArray[Any] | None = None
        self._keys: NDArray[np.bytes_] = np.empty(0, "S20")
        self._places: NDArray[np.int64] = np.empty(0, np.int64)

    @classmethod
    def open(cls, path: Path | None, model: dict[str, Any]) -> Self:
        """Returns the journal at a path, with what an interrupted sync left in it; an idle one where there is none.

        Args:
            path: The file; None keeps no journal.
            model: What must be equal for vectors to be of use.
        """
        journal = cls(path)
        if path is None:
            return journal
        header = json.dumps(model, sort_keys=True).encode() + b"\n"
        with suppress(OSError):
            whole = journal._read(path, header, _record(model["dim"])) if path.exists() else 0
            journal._file = path.open("r+b" if whole else "wb")
            if not whole:
                journal._file.write(header)
            journal._file.truncate(whole or len(header))
            journal._file.seek(0, 2)
        return journal

    def _read(self, path: Path, header: bytes, record: np.dtype[Any]) -> int:
        """Finds the whole records; returns how long the file is up to the last of them, 0 where it is of no use."""
        with path.open("rb") as file:
            if file.readline(len(header) + 1) != header:
                return 0
        count = (path.stat().st_size - len(header)) // record.itemsize
        if not count:
            return 0
        # A map of its own, not of what is written behind it.
        records: NDArray[Any] = np.memmap(path, record, "r", len(header), (count,))
        body = record.itemsize - 4
        good = np.array([zlib.crc32(one.tobytes()[:body]) == one["crc"] for one in records], bool)
        if not good.any():
            return 0
        places = np.flatnonzero(good)
        keys = np.ascontiguousarray(records["key"]).view("S20")[places]
        order = np.argsort(keys, kind="stable")
        self._records, self._keys, self._places = records, keys[order], places[order]
        return len(header) + int(count) * record.itemsize

    def find(self, keys: list[tuple[bytes, int]], dim: int) -> tuple[NDArray[np.float32], list[int]]:
        """Returns vectors `(n, dim)`, and which of them the journal has not: those are zeros."""
        vectors = np.zeros((len(keys), dim), np.float32)
        if self._records is None:
            return vectors, list(range(len(keys)))
        wanted = np.array(keys, _KEY).view("S20")
        at = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        found = self._keys[at] == wanted
        vectors[found] = self._records["vector"][self._places[at[found]]]
        return vectors, np.flatnonzero(~found).tolist()

    def add(self, keys: list[tuple[bytes, int]], vectors: NDArray[np.float32]) -> None:
        """Writes vectors `(n, dim)` down."""
        if self._file is None:
            return
        records = np.zeros(len(keys), _record(vectors.shape[1]))
        records["key"] = np.array(keys, _KEY)
        records["vector"] = vectors
        body = records.dtype.itemsize - 4
        records["crc"] = [zlib.crc32(one.tobytes()[:body]) for one in records]
        try:
            self._file.write(records.tobytes())
            self._file.flush()
        except OSError:
            # A full disk: what there is of room belongs to the library.
            self.remove()

    def remove(self) -> None:
        """Deletes the file: what it held is in the library now."""
        self.close()
        if self._path is not None:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Leaves the file for the next sync."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):
                file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _record(dim: int) -> np.dtype[Any]:
    return np.dtype([("key", _KEY), ("vector", "<f4", (dim,)), ("crc", "<u4")])
