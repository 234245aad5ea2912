"""A library in Postgres, read: its passages, and what is near to a vector or fits words."""

from __future__ import annotations

import itertools
import math
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pgvector import Vector
from psycopg import sql
from psycopg.types.json import set_json_loads

from adventures._adventures import AdventuresError
from adventures.filters import condition
from adventures.postgres.draft import HALVED_FROM, INDEXED_TO, WORDS, compared
from adventures.postgres.values import PostgresSpelling, loads, read

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import LiteralString

    import psycopg
    from numpy.typing import NDArray

    from adventures.postgres.store import PostgresStore

    Connection = psycopg.Connection[tuple[Any, ...]]

_BATCH = 10_000
# How many neighbours an index keeps in view; pgvector's own 40 finds fewer than are asked for.
_VIEW = 200
_VIEW_MOST = 1_000
# Robertson and others 1994: k1 = 1.2, b = 0.75. Smaller is better, as for a distance. Its bytes are a passage's length.
_BM25: LiteralString = (
    "-(SELECT sum(weight * 2.2 * times"
    " / (times + 1.2 * (0.25 + 0.75 * coalesce(octet_length(text) / %(mean)s::float8, 1))))"
    " FROM unnest({words}) AS found (lexeme, places, weights)"
    " JOIN unnest(%(lexemes)s::text[], %(weights)s::float8[]) AS asked (lexeme, weight) USING (lexeme),"
    " cardinality(places) AS times)"
)
# What a word that comes without end adds to a score, of its weight.
_MOST = 2.2
# How many passages for each that is wanted have one of the words that are looked for first.
_RARE = 20
_FOUND = ("id", "row_id", "ordinal", "text", "key", "metadata", "vector")


@dataclass(frozen=True, slots=True)
class PostgresSnapshot:
    """What a library in Postgres held at some moment; what is read of it is what it holds now, but while it is held.

    Attributes:
        store: Where it is.
        version: How often it was published.
        record: What the passages were made with: format, model, metric.
        source: The Delta table they mirror.
        rows: How many passages it holds.
        schema: The columns, as LanceDB would have them.
    """

    store: PostgresStore
    version: int
    record: dict[str, Any]
    source: dict[str, Any]
    rows: int
    schema: pa.Schema
    _connection: Connection | None = field(default=None, repr=False, compare=False)

    @contextmanager
    def held(self) -> Iterator[PostgresSnapshot]:
        """What is published now, and stays as it is for the length of a `with` block."""
        with self.store.reading() as connection:
            now = self.store.found(connection)
            if now is None or now.record != self.record:
                raise AdventuresError(f"{self.store} was replaced by another one, or dropped; open it again")
            yield replace(now, _connection=connection)

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        if self._connection is not None:
            yield self._connection
        else:
            with self.store.reading() as connection:
                yield connection

    def digests(self) -> Iterator[pa.RecordBatch]:
        """Yields `row_id`, `ordinal`, `text_hash`, `row_hash` and `address` of every passage."""
        query = sql.SQL("SELECT row_id, ordinal, text_hash, row_hash, address FROM {}").format(self.store.identifier)
        kinds = {
            "row_id": pa.string(), "ordinal": pa.int32(), "text_hash": pa.binary(16), "row_hash": pa.binary(16),
            "address": pa.uint64(),
        }  # fmt: skip
        with self._reading() as connection, connection.cursor("adventures", binary=True) as cursor:
            cursor.execute(query)
            while rows := cursor.fetchmany(_BATCH):
                columns = zip(*rows, strict=True)
                yield pa.record_batch(
                    [pa.array(column, kind) for column, kind in zip(columns, kinds.values(), strict=True)],
                    names=list(kinds),
                )

    def passages(self, addresses: list[int]) -> pa.Table:
        """Returns `row_id`, `ordinal`, `overlap`, `text` and `vector` of the passages at these addresses."""
        query = sql.SQL("SELECT row_id, ordinal, {}, text, vector FROM {} WHERE address = ANY(%s)").format(
            self._overlap, self.store.identifier
        )
        with self._reading() as connection, connection.cursor(binary=True) as cursor:
            rows = cursor.execute(query, [addresses]).fetchall()
        dim = self.schema.field("vector").type.list_size
        vectors = np.array([row[4].to_numpy() for row in rows], np.float32).reshape(-1)
        return pa.table(
            {
                "row_id": pa.array([row[0] for row in rows], pa.string()),
                "ordinal": pa.array([row[1] for row in rows], pa.int32()),
                "overlap": pa.array([row[2] for row in rows], pa.int32()),
                "text": pa.array([row[3] for row in rows], pa.string()),
                "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors, pa.float32()), dim),
            }
        )

    def nearest(
        self, vector: NDArray[np.float32], where: Mapping[str, object] | None, limit: int
    ) -> list[dict[str, Any]]:
        """Returns the passages nearest to a vector `(dim,)` by cosine, in any order."""
        dim = len(vector)
        kind: LiteralString = "halfvec" if HALVED_FROM < dim <= INDEXED_TO else "vector"
        order = compared(dim) + sql.SQL(" <=> %(vector)s::vector::" + kind)
        with self._reading() as connection:
            settings = {
                "hnsw.ef_search": str(max(_VIEW, min(2 * limit, _VIEW_MOST))),
                "hnsw.iterative_scan": "strict_order",
                # Of so many, reading all is sure to find them, and no slower.
                "enable_indexscan": "on" if limit <= _VIEW_MOST else "off",
            }
            for name, value in settings.items():
                connection.execute("SELECT set_config(%s, %s, true)", [name, value])
            return self._found(connection, order, where, limit, {"vector": Vector(vector)})

    def matching(self, words: str, where: Mapping[str, object] | None, limit: int) -> list[dict[str, Any]]:
        """Returns the passages that words fit best, in any order, with their `_score` by BM25.

        As LanceDB has it, so that both find the same: any of the words will do, and rare ones count more. Postgres's
        own `ts_rank` knows of one passage alone; with it, words find less.
        """
        if "\0" in words:
            words = words.replace("\0", " ")
        order = sql.SQL(_BM25).format(words=self._words)
        matches = sql.SQL("{} @@ %(words)s::tsquery").format(self._words)
        with self._reading() as connection:
            lexemes, quoted, counts = self._counted(connection, words)
            weights = [math.log1p((self.rows - count + 0.5) / (count + 0.5)) for count in counts]
            # A library that was written before this was counted takes all passages for equally long.
            given = {"lexemes": lexemes, "weights": weights, "mean": self.source.get("mean_bytes")}
            # Most passages have none but common words, which cannot make up for what they lack: looked at are those
            # with a rarer one, and all only where another may be among the best (MaxScore; Turtle and Flood 1995).
            rare = sum(total <= _RARE * limit for total in itertools.accumulate(counts))
            for some in sorted({max(rare, 1), len(lexemes)}) if lexemes else ():
                asked = {**given, "words": " | ".join(quoted[:some])}
                found = self._found(connection, order, where, limit, asked, matches)
                if len(found) == limit and found[-1]["_score"] >= _MOST * sum(weights[some:]):
                    break
            return found if lexemes else []

    def _counted(self, connection: Connection, words: str) -> tuple[list[str], list[str], list[int]]:
        """The words of a question that the library has, rarest first: as they are, quoted, and in how many passages."""
        query = sql.SQL(
            "SELECT lexeme, quote_literal(lexeme), (SELECT count(*) FROM {} WHERE {} @@ quote_literal(lexeme)::tsquery)"
            " FROM unnest(tsvector_to_array(to_tsvector('pg_catalog.english', %s))) AS lexeme ORDER BY 3, 1"
        ).format(self.store.identifier, self._words)
        rows = [row for row in connection.execute(query, [words]).fetchall() if row[2]]
        lexemes, quoted, counts = ([row[at] for row in rows] for at in range(3))
        return lexemes, quoted, counts

    def texts(self, stretches: Iterable[tuple[str, int, int]]) -> Iterable[tuple[str, int, int | None, str]]:
        """Returns row, ordinal, overlap and text of the passages of stretches: of a row, from an ordinal to another."""
        wanted = list(stretches)
        rows, firsts, lasts = ([stretch[at] for stretch in wanted] for at in range(3))
        query = sql.SQL(
            "SELECT row_id, ordinal, {}, text FROM {} AS passages JOIN unnest(%s::text[], %s::int[], %s::int[])"
            " AS stretches (of_row, first, last) ON row_id = of_row AND ordinal BETWEEN first AND last"
        ).format(self._overlap, self.store.identifier)
        with self._reading() as connection, connection.cursor(binary=True) as cursor:
            found: list[tuple[str, int, int | None, str]] = cursor.execute(query, [rows, firsts, lasts]).fetchall()
        return found

    @property
    def _overlap(self) -> sql.SQL:
        """The column, or what stands for it in a library that was made before there was one."""
        return sql.SQL("overlap" if "overlap" in self.schema.names else "NULL::int4")

    @property
    def _words(self) -> sql.SQL:
        """The words of the texts; where they are not kept, they are taken out of them each time."""
        return sql.SQL("words" if "overlap" in self.schema.names else WORDS)

    def _found(
        self,
        connection: Connection,
        order: sql.Composable,
        where: Mapping[str, object] | None,
        limit: int,
        given: dict[str, Any],
        *conditions: sql.Composable,
    ) -> list[dict[str, Any]]:
        spelling = PostgresSpelling()
        filtered = condition(where, self.schema, spelling)
        if filtered is not None:
            # Words of ours alone: names and values are parameters.
            conditions = (*conditions, sql.SQL(filtered))
        query = sql.SQL("SELECT {}, {} FROM {} WHERE {} ORDER BY {} LIMIT %(limit)s").format(
            sql.SQL(", ").join(map(sql.Identifier, _FOUND)),
            order,
            self.store.identifier,
            sql.SQL(" AND ").join(conditions) if conditions else sql.SQL("true"),
            order,
        )
        names = self.schema.names
        metadata = self.schema.field("metadata").type if "metadata" in names else None
        with connection.cursor(binary=True) as cursor:
            set_json_loads(loads, cursor)
            rows = cursor.execute(query, {**given, **spelling.parameters, "limit": limit}).fetchall()
        return [
            {
                **dict(zip(_FOUND, row, strict=False)),
                "key": read(row[4], self.schema.field("key").type),
                "metadata": read(row[5], metadata),
                "vector": row[6].to_numpy(),
                "_score": -row[7],
            }
            for row in rows
        ]
