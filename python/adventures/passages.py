"""Rows of a Delta table as batches of passages with their vectors."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from adventures._adventures import AdventuresError
from adventures.census import Change, Difference, Picker, RowDigests, Stock

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from tqdm import tqdm

    from adventures._adventures import Embedder
    from adventures.delta import RowBatch, RowSource
    from adventures.journal import Journal
    from adventures.storage import Snapshot

# What is in memory at once: texts of this many rows, and vectors of this many passages.
_ROWS = 512
_CHARACTERS = 4_000_000
_PASSAGES = 512


@dataclass(frozen=True, slots=True)
class Cut:
    """How long texts become passages: the longest passage and what neighbours share, in tokens."""

    window: int
    overlap: int


@dataclass(frozen=True, slots=True)
class Known:
    """What the library has already: its published version, what that holds, and how the source differs from it."""

    published: Snapshot | None
    stock: Stock
    difference: Difference


@dataclass(slots=True)
class Work:
    """What a writer has done so far, and the way to stop it from another thread."""

    tokens: int = 0
    truncated: int = 0
    passages: int = 0
    resumed: int = 0
    stop: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None

    def stop_if_asked(self) -> None:
        """Raises InterruptedError once `stop` is set."""
        if self.stop.is_set():
            raise InterruptedError("the sync was stopped")


class Writer:
    """Turns the chosen rows of a source into batches of passages."""

    def __init__(
        self,
        embedder: Embedder,
        source: RowSource,
        cut: Cut,
        *,
        known: Known,
        schema: pa.Schema,
        journal: Journal,
    ) -> None:
        self.schema = schema
        self.known = known
        self.work = Work()
        self.embedder = embedder
        self.cut = cut
        self._journal = journal
        self._source = source

    def guarded(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The stream, ended by `work.stop`, with its error kept: Arrow's C interface turns exceptions into texts."""
        try:
            for batch in batches:
                self.work.stop_if_asked()
                yield batch
        except Exception as error:
            self.work.error = error
            raise

    def batches(self, picker: Picker, bar: tqdm[Any]) -> Iterator[pa.RecordBatch]:
        """Yields passages of all rows that `picker` chooses."""
        for batch in self._source.batches():
            rows = _Rows.of(batch, picker)
            is_known = self.known.difference.changes[rows.positions] <= Change.METADATA
            known, unknown = np.flatnonzero(is_known), np.flatnonzero(~is_known)
            for some in _slices(known, rows):
                yield from self._restocked(rows, some)
                bar.update(len(some))
            for some in _slices(unknown, rows):
                yield from self._embedded(rows, some)
                bar.update(len(some))
                elapsed = bar.format_dict["elapsed"] or 1.0
                bar.set_postfix_str(f"{self.work.tokens / elapsed:,.0f} tokens/s", refresh=False)

    def _embedded(self, rows: _Rows, some: Sequence[int]) -> Iterator[pa.RecordBatch]:
        texts = [rows.text(row) for row in some]
        pieces = self.embedder.split(texts, max_tokens=self.cut.window, overlap=self.cut.overlap)
        flat = [
            (row, ordinal, piece)
            for row, parts in zip(some, pieces, strict=True)
            for ordinal, piece in enumerate(parts)
        ]
        for start in range(0, len(flat), _PASSAGES):
            part = flat[start : start + _PASSAGES]
            vectors = self._vectors([(rows.digests[row].text, ordinal) for row, ordinal, _ in part], part)
            yield self._batch(rows, part, pa.array(vectors.reshape(-1)))

    def _vectors(self, keys: list[tuple[bytes, int]], part: list[tuple[int, int, str]]) -> NDArray[np.float32]:
        """The vectors of passages `(n, dim)`, those that an interrupted sync had computed from its journal."""
        vectors, missing = self._journal.find(keys, self.embedder.dim)
        self.work.resumed += len(keys) - len(missing)
        if missing:
            encoded = self.embedder.encode([part[at][2] for at in missing], kind="passage")
            if not np.isfinite(encoded.vectors).all():
                raise AdventuresError(f"the model {self.embedder.name} gave a vector that is not finite")
            self.work.tokens += int(np.sum(encoded.tokens))
            self.work.truncated += len(encoded.truncated)
            vectors[missing] = encoded.vectors
            self._journal.add([keys[at] for at in missing], vectors[missing])
        return vectors

    def _restocked(self, rows: _Rows, some: Sequence[int]) -> Iterator[pa.RecordBatch]:
        """Passages whose text is in the library already, with the vectors they have there."""
        if self.known.published is None:
            return
        addresses = self.known.stock.addresses_of(
            self.known.difference.stocked[rows.positions[np.asarray(some, np.int64)]]
        )
        by_id = {rows.row_id(row): row for row in some}
        for start in range(0, len(addresses), _PASSAGES):
            stored: Any = self.known.published.passages(addresses[start : start + _PASSAGES].tolist()).combine_chunks()
            row_ids = [by_id[row_id] for row_id in stored.column("row_id").to_pylist()]
            part = list(
                zip(row_ids, stored.column("ordinal").to_pylist(), stored.column("text").to_pylist(), strict=True)
            )
            vectors = pa.concat_arrays(stored.column("vector").chunks).flatten()
            yield self._batch(rows, part, vectors)

    def _batch(self, rows: _Rows, part: list[tuple[int, int, str]], vectors: pa.Array[Any]) -> pa.RecordBatch:
        self.work.passages += len(part)
        at = pa.array([rows.indices[row] for row, _, _ in part], pa.int64())
        columns: dict[str, pa.Array[Any]] = {
            "id": pa.array([f"{rows.row_id(row)}#{ordinal}" for row, ordinal, _ in part]),
            "row_id": pa.array([rows.row_id(row) for row, _, _ in part]),
            "ordinal": pa.array([ordinal for _, ordinal, _ in part], pa.int32()),
            "text": pa.array([text for _, _, text in part]),
            "text_hash": pa.array([rows.digests[row].text for row, _, _ in part], pa.binary(16)),
            "row_hash": pa.array([rows.digests[row].row for row, _, _ in part], pa.binary(16)),
            "key": rows.batch.key.take(at),
            "vector": pa.FixedSizeListArray.from_arrays(vectors, self.embedder.dim),
        }
        if rows.batch.metadata is not None:
            columns["metadata"] = rows.batch.metadata.take(at)
        return pa.record_batch([columns[name] for name in self.schema.names], schema=self.schema)


@dataclass(frozen=True, slots=True)
class _Rows:
    """The chosen rows of a batch: their indices in it, their positions in the census, their digests."""

    batch: RowBatch
    indices: list[int]
    positions: np.ndarray[Any, np.dtype[np.int64]]
    digests: list[RowDigests]

    @classmethod
    def of(cls, batch: RowBatch, picker: Picker) -> _Rows:
        indices, positions, digests = picker.pick(batch)
        return cls(batch, indices, np.array(positions, np.int64), digests)

    def row_id(self, row: int) -> str:
        value = self.batch.ids[self.indices[row]]
        assert value is not None
        return value

    def text(self, row: int) -> str:
        value = self.batch.texts[self.indices[row]]
        assert value is not None
        return value


def _slices(some: np.ndarray[Any, Any], rows: _Rows) -> Iterator[list[int]]:
    """Runs of rows that are small enough to work on at once."""
    part: list[int] = []
    characters = 0
    for row in some.tolist():
        part.append(row)
        characters += len(rows.text(row))
        if len(part) == _ROWS or characters >= _CHARACTERS:
            yield part
            part, characters = [], 0
    if part:
        yield part
