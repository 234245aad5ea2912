"""Rows of a Delta table as batches of passages with their vectors."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

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

_T = TypeVar("_T")

# What is in memory at once: texts of this many rows, and vectors of this many passages.
_ROWS = 512
_CHARACTERS = 4_000_000
_PASSAGES = 512


@dataclass(frozen=True, slots=True)
class Cut:
    """How long texts become passages: the longest passage and what neighbours share, in tokens."""

    window: int
    overlap: int

    @classmethod
    def of(cls, embedder: Embedder, max_tokens: int | None, overlap: int | None) -> Cut:
        """Returns what a sync is asked for, or the defaults for a model.

        Raises:
            ValueError: The model does not read so much, or neighbours would share more than half.
        """
        # In Chroma's chunking evaluation (472 questions, MiniLM) four passages of 256 tokens hold 0.75 of the
        # characters that answer, and four of 128 hold 0.67; of passages of 128 as many characters hold 0.80. Who asks
        # for four, as a chat does, is best served by long ones. Overlaps of 0, 32 and 64 of 256 differ by 0.02, in no
        # order.
        window = embedder.max_tokens if max_tokens is None else max_tokens
        if isinstance(window, bool) or not isinstance(window, int) or not 8 <= window <= embedder.max_tokens:
            raise ValueError(
                f"max_tokens must be from 8 to {embedder.max_tokens}, what {embedder.name} reads, not {window!r}"
            )
        if overlap is None:
            return cls(window, min(32, window // 4))
        if isinstance(overlap, bool) or not isinstance(overlap, int) or not 0 <= overlap <= window // 2:
            raise ValueError(f"overlap must be from 0 to half of max_tokens, {window // 2}, not {overlap!r}")
        return cls(window, overlap)


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
        for rows, some, pieces in _ahead(self._read(picker)):
            yield from self._restocked(rows, some) if pieces is None else self._embedded(rows, pieces)
            bar.update(len(some))
            if pieces is not None:
                elapsed = bar.format_dict["elapsed"] or 1.0
                bar.set_postfix_str(f"{self.work.tokens / elapsed:,.0f} tokens/s", refresh=False)

    def _read(self, picker: Picker) -> Iterator[tuple[_Rows, list[int], list[_Piece] | None]]:
        """Yields some chosen rows at a time: those whose passages are known, and those with passages to embed."""
        for batch in self._source.batches():
            rows = _Rows.of(batch, picker)
            is_known = self.known.difference.changes[rows.positions] <= Change.METADATA
            known, unknown = np.flatnonzero(is_known), np.flatnonzero(~is_known)
            for some in _slices(known, rows):
                yield rows, some, None
            for some in _slices(unknown, rows):
                yield rows, some, self._pieces(rows, some)

    def _embedded(self, rows: _Rows, pieces: list[_Piece]) -> Iterator[pa.RecordBatch]:
        for start in range(0, len(pieces), _PASSAGES):
            part = pieces[start : start + _PASSAGES]
            texts = pa.array([piece.text for piece in part])
            keys = [(rows.digests[piece.row].text, piece.ordinal) for piece in part]
            vectors = self._vectors(keys, texts, np.array([piece.tokens for piece in part], np.int64))
            yield self._batch(rows, [(piece.row, piece.ordinal, piece.overlap) for piece in part], texts, vectors)

    def _pieces(self, rows: _Rows, some: Sequence[int]) -> list[_Piece]:
        """The passages of some rows. A text that fits is one; it is tokenized once to see, and once to embed it."""
        texts = [rows.text(row) for row in some]
        counts = self.embedder.count_tokens(texts)
        long = [at for at, count in enumerate(counts) if count > self.cut.window]
        cut = self.embedder.split_spans(
            [texts[at] for at in long], max_tokens=self.cut.window, overlap=self.cut.overlap
        )
        spans = dict(zip(long, cut, strict=True))
        of_parts = iter(self.embedder.count_tokens([texts[at][start:end] for at in long for start, end in spans[at]]))
        found: list[_Piece] = []
        for at, (row, text, count) in enumerate(zip(some, texts, counts, strict=True)):
            last = 0
            for ordinal, (start, end) in enumerate(spans.get(at, [(0, len(text))])):
                tokens = next(of_parts) if at in spans else count
                overlap = min(last - start, end - start) if ordinal else None
                found.append(_Piece(row, ordinal, overlap, text[start:end], tokens))
                last = max(last, end)
        return found

    def _vectors(self, keys: list[tuple[bytes, int]], texts: pa.Array[Any], tokens: NDArray[np.int64]) -> pa.Array[Any]:
        """The vectors of passages, end to end; those that an interrupted sync had computed from its journal."""
        stored, missing = self._journal.find(keys, self.embedder.dim)
        self.work.resumed += len(keys) - len(missing)
        if not missing:
            return pa.array(stored.reshape(-1))
        every = len(missing) == len(keys)
        found = self.embedder.embed_arrow(texts if every else texts.take(pa.array(missing, pa.int64()))).flatten()
        vectors = found.to_numpy().reshape(-1, self.embedder.dim)
        if not np.isfinite(vectors).all():
            raise AdventuresError(f"the model {self.embedder.name} gave a vector that is not finite")
        read = tokens[missing]
        self.work.tokens += int(np.minimum(read, self.embedder.max_tokens).sum())
        self.work.truncated += int(np.count_nonzero(read > self.embedder.max_tokens))
        self._journal.add([keys[at] for at in missing], vectors)
        if every:
            return found
        stored[missing] = vectors
        return pa.array(stored.reshape(-1))

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
            places = (stored.column(name).to_pylist() for name in ("ordinal", "overlap"))
            part = list(zip(row_ids, *places, strict=True))
            texts, vectors = (pa.concat_arrays(stored.column(name).chunks) for name in ("text", "vector"))
            yield self._batch(rows, part, texts, vectors.flatten())

    def _batch(
        self, rows: _Rows, part: list[tuple[int, int, int | None]], texts: pa.Array[Any], vectors: pa.Array[Any]
    ) -> pa.RecordBatch:
        """A batch of passages: of each its row, its ordinal, and what it shares with the one before."""
        self.work.passages += len(part)
        at = pa.array([rows.indices[row] for row, _, _ in part], pa.int64())
        columns: dict[str, pa.Array[Any]] = {
            "id": pa.array([f"{rows.row_id(row)}#{ordinal}" for row, ordinal, _ in part]),
            "row_id": pa.array([rows.row_id(row) for row, _, _ in part]),
            "ordinal": pa.array([ordinal for _, ordinal, _ in part], pa.int32()),
            "overlap": pa.array([overlap for _, _, overlap in part], pa.int32()),
            "text": texts,
            "text_hash": pa.array([rows.digests[row].text for row, _, _ in part], pa.binary(16)),
            "row_hash": pa.array([rows.digests[row].row for row, _, _ in part], pa.binary(16)),
            "key": rows.batch.key.take(at),
            "vector": pa.FixedSizeListArray.from_arrays(vectors, self.embedder.dim),
        }
        if rows.batch.metadata is not None:
            columns["metadata"] = rows.batch.metadata.take(at)
        return pa.record_batch([columns[name] for name in self.schema.names], schema=self.schema)


@dataclass(frozen=True, slots=True)
class _Piece:
    """A passage to be embedded: its row, which of it, what it shares with the one before, its text, and its tokens."""

    row: int
    ordinal: int
    overlap: int | None
    text: str
    tokens: int


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


def _ahead(items: Iterator[_T]) -> Iterator[_T]:
    """The items; while one is worked on, a thread makes the next: reading and digests keep no model waiting."""
    end = object()
    with ThreadPoolExecutor(1, "adventures-read") as pool:
        coming: Future[Any] = pool.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, items, end)
            yield item


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
