"""What changed between a Delta table and a library, by digests: at most 36 bytes a row, whatever the rows hold."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from adventures.delta import RowBatch, RowSource
    from adventures.storage import Snapshot

# How much of each digest is kept in memory: two of a billion keys have the same 12 bytes once in 10^11 times.
_KEPT = 12
# numpy compares strings of bytes as C does, which orders digests; trailing zeros are cut from every one alike.
_DIGEST = np.dtype(f"S{_KEPT}")
_EXAMPLES = 5

Digests = NDArray[np.bytes_]
Checksum = NDArray[np.uint64]


class Change(IntEnum):
    """What a sync has to do about a row."""

    NONE = 0
    METADATA = 1
    TEXT = 2
    NEW = 3


@dataclass(frozen=True, slots=True)
class Skip:
    """Rows of a source that are not in the library.

    Attributes:
        reason: `"null id"`, `"null text"`, `"empty text"` or `"duplicate id"`.
        count: How many.
        examples: The ids of a few; texts where there is no id.
    """

    reason: str
    count: int
    examples: list[str]


def digest(data: bytes) -> bytes:
    """Returns the 16-byte BLAKE2b of some bytes."""
    return hashlib.blake2b(data, digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class RowDigests:
    """The digests of one row: of its key, of its text and the way it is cut, and of all that a reader can see."""

    id: bytes
    text: bytes
    row: bytes


class Digester:
    """Computes the digests of rows, for one way of cutting texts into passages."""

    def __init__(self, window: int, overlap: int) -> None:
        self._cut = f"{window}/{overlap}\n".encode()

    def of(self, row_id: str, text: str, values: tuple[Any, ...]) -> RowDigests:
        """Returns the digests of one row."""
        of_text = digest(self._cut + text.encode())
        return RowDigests(digest(row_id.encode()), of_text, digest(of_text + repr(values).encode()))


@dataclass(slots=True)
class _Tally:
    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, example: str) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1
        shown = self.examples.setdefault(reason, [])
        if len(shown) < _EXAMPLES:
            shown.append(example[:80])

    def skips(self) -> list[Skip]:
        return [Skip(reason, count, self.examples[reason]) for reason, count in sorted(self.counts.items())]


@dataclass(frozen=True, slots=True)
class Census:
    """Every row of a source that belongs in the library, sorted by key digest; one for each key.

    Of rows with the same id, the one with the lowest digest stays: whichever order the table is read in, the same one.
    Where the source was read in parts, `parts` says which one each row is in. `digests` are of a row's key, of all of
    it and, where they were asked for, of its text, side by side: of a large table, they are most of what a sync keeps
    in memory.

    A library that has nothing yet takes every row whose id no other has, and needs no digests of them: they are only
    counted, as `alone`, and what is read a second time is compared by `checksum`, the sum of the digests of all rows.
    """

    digests: Digests
    read: int
    skipped: list[Skip]
    parts: NDArray[np.uint32] | None = None
    alone: int = 0
    checksum: Checksum | None = None

    @classmethod
    def of(cls, source: RowSource, digester: Digester, *, texts: bool = True) -> Census:
        """Returns the census of a source, with digests of its texts or without; reads all of it once."""
        tally = _Tally()
        found, read, twice = _digests_of(source, digester, tally, texts=texts)
        if len(twice):
            _count_duplicates(source, twice, tally)
        return cls(found, read, tally.skips())

    @classmethod
    def first(cls, source: RowSource, digester: Digester) -> Census:
        """Returns the census of a source for a library that has nothing yet.

        Reads all of it once, and twice more where rows have the same id. 12 bytes a row are in memory meanwhile,
        and none afterwards.
        """
        ids = bytearray()
        tally = _Tally()
        checksum = np.zeros(2, np.uint64)
        read = 0
        for count, rows in _digested(source, digester, tally):
            read += count
            ids += b"".join(row.id[:_KEPT] for row in rows)
            checksum += _sum(rows)
        each, twice = _first_of_each(ids, 1)
        if not len(twice):
            return cls(np.empty((0, 2), _DIGEST), read, tally.skips(), alone=len(each), checksum=checksum)
        shared, _, _ = _digests_of(source, digester, _Tally(), texts=False, only=np.unique(twice))
        _count_duplicates(source, twice, tally)
        return cls(shared, read, tally.skips(), alone=len(each) - len(shared), checksum=checksum)

    @classmethod
    def merged(cls, censuses: Sequence[Census], source: RowSource) -> Census:
        """Returns the census of a source from those of its parts, with the part of each row."""
        if not censuses:
            return cls(np.empty((0, 3), _DIGEST), 0, [], np.empty(0, np.uint32))
        every = np.concatenate([census.digests for census in censuses])
        ids = every[:, 0]
        parts = np.repeat(np.arange(len(censuses), dtype=np.uint32), [len(census) for census in censuses])
        order = np.lexsort((parts, every[:, 1], ids))
        first = np.ones(len(order), bool)
        first[1:] = ids[order[1:]] != ids[order[:-1]]
        tally = _Tally()
        twice = ids[order[~first]]
        if len(twice):
            _count_duplicates(source, twice, tally)
        for skip in (skip for census in censuses for skip in census.skipped):
            tally.counts[skip.reason] = tally.counts.get(skip.reason, 0) + skip.count
            shown = {*tally.examples.get(skip.reason, []), *skip.examples}
            tally.examples[skip.reason] = sorted(shown)[:_EXAMPLES]
        order = order[first]
        read = sum(census.read for census in censuses)
        return cls(every[order], read, tally.skips(), parts[order])

    @property
    def ids(self) -> Digests:
        """The digest of each row's key."""
        return self.digests[:, 0]

    @property
    def rows(self) -> Digests:
        """The digest of each whole row."""
        return self.digests[:, 1]

    @property
    def texts(self) -> Digests:
        """The digest of each row's text, where they were asked for."""
        return self.digests[:, 2]

    def find(self, ids: Digests) -> NDArray[np.int64]:
        """Returns which row has each of `ids`; -1 where none has."""
        # Ids are followed by zeros here, and in the census by what sorts no lower: they need not lie side by side.
        whole = self.digests.view(f"S{self.digests[:1].nbytes or _DIGEST.itemsize}").reshape(-1)
        at = np.searchsorted(whole, ids.astype(whole.dtype))
        return _where(self.ids, ids, at)

    def __len__(self) -> int:
        return len(self.digests) + self.alone


def take(source: RowSource, digester: Digester, *, first: bool = False) -> Census:
    """Returns the census of a source: `first` of one whose library has nothing yet."""
    # A text that Python computes may be another each time: digests of all rows show so before anything is embedded.
    if first and source.of_template:
        return Census.first(source, digester)
    # Which texts changed is asked of rows that were there before.
    return Census.of(source, digester, texts=not first)


def skip_reason(row_id: str | None, text: str | None) -> str | None:
    """Returns why a row cannot be in a library; None where it can."""
    if row_id is None:
        return "null id"
    if text is None:
        return "null text"
    return None if text.strip() else "empty text"


def _digested(source: RowSource, digester: Digester, tally: _Tally) -> Iterator[tuple[int, list[RowDigests]]]:
    """Yields how many rows a batch has, and the digests of those that can be in a library; tallies the others."""
    for batch in source.batches():
        found: list[RowDigests] = []
        for row_id, text, values in zip(batch.ids, batch.texts, batch.values, strict=True):
            reason = skip_reason(row_id, text)
            if reason is not None or row_id is None or text is None:
                tally.add(reason or "", (text or repr(values)) if row_id is None else row_id)
            else:
                found.append(digester.of(row_id, text, values))
        yield len(batch.ids), found


def _digests_of(
    source: RowSource, digester: Digester, tally: _Tally, *, texts: bool, only: Digests | None = None
) -> tuple[Digests, int, Digests]:
    """Reads all rows, or those with `only` these ids: the first of each id, how many were read, and the others' ids."""
    every = bytearray()
    read = 0
    for count, rows in _digested(source, digester, tally):
        read += count
        if only is not None:
            at = find(only, np.array([row.id for row in rows], _DIGEST))
            rows = [row for row, place in zip(rows, at.tolist(), strict=True) if place >= 0]
        for row in rows:
            every += row.id[:_KEPT]
            every += row.row[:_KEPT]
            if texts:
                every += row.text[:_KEPT]
    found, twice = _first_of_each(every, 3 if texts else 2)
    return found, read, twice


def _sum(rows: Sequence[RowDigests]) -> Checksum:
    """The sum of rows' digests, the same in whichever order they come."""
    digests = np.frombuffer(b"".join(row.row for row in rows), np.uint64).reshape(-1, 2)
    total: Checksum = digests.sum(axis=0, dtype=np.uint64)
    return total


def _array(data: bytearray) -> Digests:
    return np.frombuffer(bytes(data), _DIGEST)


def _first_of_each(every: bytearray, columns: int) -> tuple[Digests, Digests]:
    """Sorts rows of digests, that of the id first; returns the first row of each id, and the ids of the others."""
    # In place, where they lie.
    whole = np.frombuffer(every, f"S{columns * _DIGEST.itemsize}")
    whole.sort()
    digests = whole.view(_DIGEST).reshape(-1, columns)
    first = np.ones(len(digests), bool)
    first[1:] = digests[1:, 0] != digests[:-1, 0]
    return (digests, digests[:0, 0]) if first.all() else (digests[first], digests[~first, 0])


def _count_duplicates(source: RowSource, twice: Digests, tally: _Tally) -> None:
    """Finds a few ids by their digests, which is all that the census kept of them."""
    reason = "duplicate id"
    wanted = {bytes(value).ljust(_KEPT, b"\0") for value in twice[:_EXAMPLES]}
    found: set[str] = set()
    for batch in source.batches():
        of = ((row_id, digest(row_id.encode())[:_KEPT]) for row_id in batch.ids if row_id is not None)
        found.update(row_id for row_id, kept in of if kept in wanted)
        if len(found) == len(wanted):
            break
    tally.counts[reason] = len(twice)
    tally.examples[reason] = sorted(found)


@dataclass(frozen=True, slots=True)
class Stock:
    """Every passage of a library, sorted by key digest, then ordinal.

    Attributes:
        ids: The digest of the row's key, one for each row.
        texts: The digest of the row's text, likewise.
        rows: The digest of the whole row, likewise.
        starts: Where the row's passages begin in `addresses`; one more at the end.
        addresses: Where the storage has the passages.
    """

    ids: Digests
    texts: Digests
    rows: Digests
    starts: NDArray[np.int64]
    addresses: NDArray[np.uint64]

    @classmethod
    def of(cls, snapshot: Snapshot | None, *, only: Iterable[str] | None = None) -> Stock:
        """Returns the stock of a published version, or what it has of these keys; empty where there is none."""
        wanted = None if only is None else pa.array(only, pa.string())
        ids, texts, rows = bytearray(), bytearray(), bytearray()
        ordinals: list[NDArray[Any]] = [np.empty(0, np.int32)]
        addresses: list[NDArray[Any]] = [np.empty(0, np.uint64)]
        if snapshot is not None and snapshot.rows:
            batches: Any = snapshot.digests()
            for batch in batches:
                if wanted is not None:
                    batch = batch.filter(pc.is_in(batch.column("row_id"), value_set=wanted))
                ids += b"".join(digest(value.encode())[:_KEPT] for value in batch.column("row_id").to_pylist())
                texts += b"".join(value[:_KEPT] for value in batch.column("text_hash").to_pylist())
                rows += b"".join(value[:_KEPT] for value in batch.column("row_hash").to_pylist())
                ordinals.append(batch.column("ordinal").to_numpy())
                addresses.append(batch.column("address").to_numpy())
        every = _array(ids)
        order = np.lexsort((np.concatenate(ordinals), every))
        every = every[order]
        first = np.flatnonzero(np.r_[True, every[1:] != every[:-1]][: len(every)])
        starts = np.r_[first, len(every)].astype(np.int64)
        where = order[first]
        return cls(every[first], _array(texts)[where], _array(rows)[where], starts, np.concatenate(addresses)[order])

    def __len__(self) -> int:
        return len(self.ids)

    def some(self, rows: NDArray[np.int64]) -> Stock:
        """Returns the stock of some rows, in their order."""
        counts = self.starts[rows + 1] - self.starts[rows]
        starts = np.r_[0, np.cumsum(counts)].astype(np.int64)
        return Stock(self.ids[rows], self.texts[rows], self.rows[rows], starts, self.addresses_of(rows))

    def addresses_of(self, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint64]:
        """Returns the addresses of the passages of some rows."""
        spans = [self.addresses[self.starts[row] : self.starts[row + 1]] for row in rows]
        return np.concatenate(spans) if spans else self.addresses[:0]


def find(sorted_ids: Digests, ids: Digests) -> NDArray[np.int64]:
    """Returns where each of `ids` is in `sorted_ids`; -1 where it is not."""
    return _where(sorted_ids, ids, np.searchsorted(sorted_ids, ids))


def _where(sorted_ids: Digests, ids: Digests, at: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the places where each of `ids` would be, -1 where another id is there."""
    if not len(sorted_ids):
        return np.full(len(ids), -1, np.int64)
    at = np.minimum(at, len(sorted_ids) - 1)
    return np.where(sorted_ids[at] == ids, at, -1).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Difference:
    """What turns a stock into a census.

    Attributes:
        changes: A `Change` for each row of the census.
        stocked: Where each row of the census is in the stock; -1 where it is not.
        gone: The rows of the stock that the census does not have.
    """

    changes: NDArray[np.uint8]
    stocked: NDArray[np.int64]
    gone: NDArray[np.int64]

    @classmethod
    def between(cls, stock: Stock, census: Census) -> Difference:
        """Returns the difference."""
        if not len(stock):
            # As long as the census, but in memory once.
            new = np.broadcast_to(np.uint8(Change.NEW), len(census))
            return cls(new, np.broadcast_to(np.int64(-1), len(census)), np.empty(0, np.int64))
        changes = np.full(len(census), Change.NEW, np.uint8)
        stocked = find(stock.ids, census.ids)
        known = np.flatnonzero(stocked >= 0)
        at = stocked[known]
        same_text = stock.texts[at] == census.texts[known]
        same_row = stock.rows[at] == census.rows[known]
        changes[known] = np.where(same_row, Change.NONE, np.where(same_text, Change.METADATA, Change.TEXT))
        return cls(changes, stocked, np.flatnonzero(census.find(stock.ids) < 0))

    def count(self, change: Change) -> int:
        """Returns how many rows of the census have that change."""
        return int(np.count_nonzero(self.changes == change))


class Picker:
    """Recognises, in a second reading of a source, the rows that the first one chose; each once."""

    def __init__(self, census: Census, digester: Digester, wanted: NDArray[np.bool_]) -> None:
        self._census = census
        self._digester = digester
        self._left = wanted[: len(census.digests)].copy()
        self._alone = census.alone
        self._sum = np.zeros(2, np.uint64)

    @property
    def left(self) -> int:
        """How many chosen rows have not been met yet; at least, where rows were only counted."""
        left = int(np.count_nonzero(self._left)) + self._alone
        checksum = self._census.checksum
        return left if checksum is None or np.array_equal(checksum, self._sum) else max(left, 1)

    def pick(self, batch: RowBatch) -> tuple[list[int], list[int], list[RowDigests]]:
        """Returns the batch's chosen rows: their indices in the batch and in the census, and their digests."""
        candidates = [
            (index, self._digester.of(row_id, text, values))
            for index, (row_id, text, values) in enumerate(zip(batch.ids, batch.texts, batch.values, strict=True))
            if row_id is not None and text is not None and text.strip()
        ]
        self._sum += _sum([digests for _, digests in candidates])
        ids = np.array([digests.id for _, digests in candidates], _DIGEST)
        rows = np.array([digests.row for _, digests in candidates], _DIGEST)
        at = self._census.find(ids)
        indices: list[int] = []
        positions: list[int] = []
        picked: list[RowDigests] = []
        for (index, digests), position, row in zip(candidates, at.tolist(), rows, strict=True):
            if position < 0:
                if not self._alone:
                    continue
                self._alone -= 1
                position = len(self._left) + self._alone
            elif self._left[position] and self._census.rows[position] == row:
                self._left[position] = False
            else:
                continue
            indices.append(index)
            positions.append(position)
            picked.append(digests)
        return indices, positions, picked
