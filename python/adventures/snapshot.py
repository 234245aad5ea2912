"""One published version of a library in LanceDB, read: its passages, and what is near to a vector or fits words."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from lancedb.background_loop import LOOP
from lancedb.query import MatchQuery

from adventures.columns import is_json
from adventures.filters import condition

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from lancedb.table import Table
    from numpy.typing import NDArray

_SOURCE = b"adventures.source"
# LanceDB's own batches are of a thousand rows; to look each of a million up in a set, the set is prepared that often.
_BATCH = 65_536
# What an index is asked for: the partitions it looks into, and how many candidates per hit are compared exactly.
_PROBES = 96
_REFINE = 2


@dataclass(frozen=True, slots=True)
class LanceSnapshot:
    """One published version of a library's table.

    Attributes:
        table: The LanceDB table, checked out at `version`; read only.
        version: LanceDB's version number.
        record: What the passages were made with: format, model, metric.
        source: The Delta table they mirror: table, version, columns, counts. Empty before the first sync.
        rows: How many passages it holds.
        schema: Its columns.
        indexed: The columns that have an index.
    """

    table: Table
    version: int
    record: dict[str, Any]
    source: dict[str, Any]
    rows: int
    schema: pa.Schema
    indexed: frozenset[str]

    @contextmanager
    def held(self) -> Iterator[LanceSnapshot]:
        """This version: LanceDB's stay as they are."""
        yield self

    def digests(self) -> Iterator[pa.RecordBatch]:
        """Yields `row_id`, `ordinal`, `text_hash`, `row_hash` and LanceDB's `address` of every passage."""
        query = self.table.search().select(["row_id", "ordinal", "text_hash", "row_hash"]).with_row_id(True)
        batches: Any = query.to_batches(_BATCH)
        for batch in batches:
            yield batch.rename_columns(["address" if name == "_rowid" else name for name in batch.schema.names])

    def passages(self, addresses: list[int]) -> pa.Table:
        """Returns `row_id`, `ordinal`, `overlap`, `text` and `vector` of the passages at these addresses."""
        query = self.table.take_row_ids(addresses)
        return self._overlapping(query.select(self._there("row_id", "ordinal", "overlap", "text", "vector")).to_arrow())

    def nearest(
        self, vector: NDArray[np.float32], where: Mapping[str, object] | None, limit: int
    ) -> list[dict[str, Any]]:
        """Returns the passages nearest to a vector `(dim,)` by cosine, in any order."""
        query = self._query().nearest_to(vector).column("vector").distance_type("cosine").limit(limit)
        if "vector" in self.indexed:
            query = query.nprobes(_PROBES).refine_factor(_REFINE)
        return self._found(query, where, "_distance")

    def matching(self, words: str, where: Mapping[str, object] | None, limit: int) -> list[dict[str, Any]]:
        """Returns the passages that words fit best, in any order, with their `_score` by BM25."""
        if "text" not in self.indexed:
            return []
        # A match query is only words: quotes and operators in it are not a syntax that could be wrong.
        match: Any = MatchQuery
        return self._found(self._query().nearest_to_text(match(words, "text")).limit(limit), where, "_score")

    def texts(self, stretches: Iterable[tuple[str, int, int]]) -> Iterable[tuple[str, int, int | None, str]]:
        """Returns row, ordinal, overlap and text of the passages of stretches: of a row, from an ordinal to another."""
        wanted = " OR ".join(
            f"(row_id = {_quoted(row_id)} AND ordinal BETWEEN {first} AND {last})" for row_id, first, last in stretches
        )
        if not wanted:
            return []
        columns = ("row_id", "ordinal", "overlap", "text")
        search: Any = self.table.search().where(wanted).select(self._there(*columns)).limit(None)
        found = self._overlapping(search.to_arrow())
        return list(zip(*(found.column(name).to_pylist() for name in columns), strict=True))

    def _there(self, *columns: str) -> list[str]:
        return [name for name in columns if name in self.schema.names]

    def _overlapping(self, found: pa.Table) -> pa.Table:
        """Passages, with `overlap` also where the library was made before there was that column."""
        if "overlap" in found.schema.names:
            return found
        return found.append_column("overlap", pa.nulls(len(found), pa.int32()))

    def ids(self, where: Mapping[str, object] | None) -> list[str] | None:
        """Returns the ids of the passages that may answer; None where all may."""
        filtered = condition(where, self.schema)
        if filtered is None:
            return None
        plain: Any = self.table.search()
        found: list[str] = plain.where(filtered).select(["id"]).to_arrow().column("id").to_pylist()
        return found

    def named(self, ids: Iterable[str]) -> list[dict[str, Any]]:
        """Returns the passages with these ids, in any order."""
        ids = list(ids)
        # The index is of rows: an id is a row's with its ordinal.
        rows = {id_.rpartition("#")[0] for id_ in ids}
        return self._found(self._query().where(f"row_id IN ({_listed(rows)}) AND id IN ({_listed(ids)})"), None)

    def _query(self) -> Any:
        """Returns a query of the table behind the table.

        The table's own asks for the schema three times, and for each batch of what is found by itself: turns of
        LanceDB's event loop, and a tenth of a search in a million passages.
        """
        table: Any = self.table
        return table._table.query()

    def _found(self, query: Any, where: Mapping[str, object] | None, *scores: str) -> list[dict[str, Any]]:
        filtered = condition(where, self.schema)
        if filtered is not None:
            query = query.where(filtered)
        # Each column that is read costs a search in a million passages a millisecond.
        wanted = [name for name in ("id", "text", "key", "metadata", "vector") if name in self.schema.names]
        loop: Any = LOOP
        table = loop.run(query.select([*wanted, *scores]).to_arrow())
        if not table.num_rows:
            return []
        vectors = np.asarray(table.column("vector").combine_chunks().flatten()).reshape(table.num_rows, -1)
        nested = self._nested()
        rows: list[dict[str, Any]] = table.drop_columns(["vector"]).to_pylist()
        for row, vector in zip(rows, vectors, strict=True):
            row_id, _, ordinal = row["id"].rpartition("#")
            row |= {"row_id": row_id, "ordinal": int(ordinal), "vector": vector}
            metadata = row.setdefault("metadata", {})
            for name in nested:
                if metadata[name] is not None:
                    metadata[name] = json.loads(metadata[name])
        return rows

    def _nested(self) -> list[str]:
        """The metadata columns that are kept as JSON."""
        if "metadata" not in self.schema.names:
            return []
        kind = self.schema.field("metadata").type
        columns = [kind.field(at) for at in range(kind.num_fields)]
        return [column.name for column in columns if is_json(column)]


def read_source(schema: pa.Schema) -> dict[str, Any]:
    """Returns what a library's schema says of its Delta table; empty before the first sync."""
    raw = (schema.field("id").metadata or {}).get(_SOURCE)
    return dict(json.loads(raw)) if raw else {}


def write_source(table: Table, source: dict[str, Any]) -> None:
    """Records the Delta table that the rows mirror; one commit, no rewriting."""
    table.update_field_metadata({"path": "id", "metadata": {_SOURCE.decode(): json.dumps(source)}})


def _listed(texts: Iterable[str]) -> str:
    return ", ".join(map(_quoted, texts))


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
