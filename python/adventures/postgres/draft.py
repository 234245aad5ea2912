"""The next version of a library in Postgres: staged as it is embedded, then one short transaction."""

from __future__ import annotations

import base64
import json
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from pgvector import Vector
from psycopg import sql
from psycopg.types.json import Jsonb

from adventures._adventures import AdventuresError
from adventures.postgres.values import written
from adventures.storage import read_record

if TYPE_CHECKING:
    import psycopg
    import pyarrow as pa
    from numpy.typing import NDArray

    from adventures.postgres.store import PostgresStore
    from adventures.storage import Snapshot

_COLUMNS = ("id", "row_id", "ordinal", "overlap", "text", "text_hash", "row_hash", "key", "metadata", "vector")
_TYPES = ("text", "text", "int4", "int4", "text", "bytea", "bytea", "jsonb", "jsonb", "vector")
_STAGE = sql.Identifier("pg_temp", "adventures_stage")
# Of so many dimensions pgvector makes an index of vectors; of twice as many, one of vectors of half the precision.
HALVED_FROM = 2_000
INDEXED_TO = 4_000
# A B-tree holds keys of 2,704 bytes, and a passage's has its place in the row besides.
_LONGEST_ID = 2_600
# A scan of fewer vectors takes milliseconds and finds all; an index only loses neighbours.
INDEX_FROM = 10_000
# The language whose words a full text search knows the forms of: LanceDB's by default.
WORDS = "to_tsvector('pg_catalog.english', text)"
# Kept beside the text: to take a text apart costs ten times as much as to look its words up.
_KEPT_WORDS = f"words tsvector GENERATED ALWAYS AS ({WORDS}) STORED"


class PostgresDraft:
    """The next version of a library.

    Passages are staged in a table of this connection's own while the model computes, which may take hours: a
    transaction as long would keep the whole database from being tidied. What then changes the library is one.
    """

    def __init__(
        self,
        store: PostgresStore,
        connection: psycopg.Connection[tuple[Any, ...]],
        published: Snapshot | None,
        schema: pa.Schema,
    ) -> None:
        self._store = store
        self._connection = connection
        self._published = published
        self._schema = schema
        self._dim = schema.field("vector").type.list_size

    def __str__(self) -> str:
        return str(self._store)

    def write(self, passages: pa.RecordBatchReader, *, anew: bool) -> None:
        """Adds passages; where one of that id is, in its place."""
        del anew  # of what is there already, a sync that writes all leaves nothing
        self._run("CREATE TEMP TABLE {} ({})", _STAGE, self._columns())
        for batch in passages:
            self._stage(batch)
        self._begin()
        names = sql.SQL(", ").join(map(sql.Identifier, _COLUMNS))
        # With a new address, so that deleting those that the version before had leaves what was written now.
        renewed = sql.SQL(", ").join(
            sql.SQL("{0} = EXCLUDED.{0}").format(sql.Identifier(name)) for name in _COLUMNS[1:]
        )
        self._run(
            "INSERT INTO {0} ({1}) SELECT {1} FROM {2} ON CONFLICT (id) DO UPDATE SET {3}, address = DEFAULT",
            self._store.identifier, names, _STAGE, renewed,
        )  # fmt: skip
        self._run("DROP TABLE {}", _STAGE)

    def _stage(self, batch: pa.RecordBatch) -> None:
        columns: dict[str, Any] = {name: batch.column(name) for name in batch.schema.names}
        plain = [columns[name].to_pylist() for name in _COLUMNS[:7]]
        keys = written(columns["key"])
        metadata = written(columns["metadata"]) if "metadata" in columns else ["{}"] * len(keys)
        vectors = np.asarray(columns["vector"].flatten()).reshape(len(keys), self._dim)
        copy_in = sql.SQL("COPY {} ({}) FROM STDIN WITH (FORMAT BINARY)").format(
            _STAGE, sql.SQL(", ").join(map(sql.Identifier, _COLUMNS))
        )
        as_it_is = partial(Jsonb, dumps=str)
        with self._connection.cursor() as cursor, cursor.copy(copy_in) as copy:
            copy.set_types(_TYPES)
            for row in zip(*plain, map(as_it_is, keys), map(as_it_is, metadata), map(Vector, vectors), strict=True):
                if "\0" in row[1] or "\0" in row[4] or "\\u0000" in row[7].obj + row[8].obj:
                    raise ValueError(
                        f"the row {row[1]!r} has a null character, which Postgres cannot hold; replace it, or leave the"
                        " row out"
                    )
                if len(row[1].encode()) > _LONGEST_ID:
                    raise ValueError(
                        f"the row {row[1][:60]!r}… has an id of {len(row[1].encode()):,} bytes, and Postgres finds rows"
                        f" by ids of {_LONGEST_ID:,} at most"
                    )
                copy.write_row(row)

    def delete(self, addresses: NDArray[np.uint64]) -> None:
        """Takes out passages by address."""
        self._begin()
        self._run("DELETE FROM {} WHERE address = ANY(%s)", self._store.identifier, given=[addresses.tolist()])

    def count(self) -> int:
        """Returns how many passages it holds."""
        self._begin()
        row = self._run("SELECT count(*) FROM {}", self._store.identifier).fetchone()
        return 0 if row is None else int(row[0])

    def index(self) -> None:
        """Makes the indexes of a new table; those of an old one follow it."""
        table = self._store.identifier
        if self._published is None:
            self._run("CREATE INDEX ON {} (row_id)", table)
            self._run("CREATE UNIQUE INDEX ON {} (address)", table)
            self._run("CREATE INDEX ON {} USING gin (words)", table)
        if self._dim <= INDEXED_TO and not self._has_hnsw() and self.count() >= INDEX_FROM:
            # Building it takes several times as long where the memory does not hold it.
            self._run("SET LOCAL maintenance_work_mem = '512MB'")
            self._run("CREATE INDEX ON {} USING hnsw ({})", table, compared(self._dim, ops=True))

    def _has_hnsw(self) -> bool:
        found = self._run(
            "SELECT 1 FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam"
            " WHERE i.indrelid = to_regclass(%s) AND a.amname = 'hnsw'",
            given=[self._store.identifier.as_string(self._connection)],
        )
        return found.fetchone() is not None

    def publish(self, source: dict[str, Any], *, anew: bool, keep: int, since: float) -> None:
        """Commits: from then on readers see it."""
        del anew, keep, since  # Postgres keeps what running transactions see, and tidies up by itself
        self._begin()
        found = self._run("SELECT count(*), avg(octet_length(text)) FROM {}", self._store.identifier).fetchone()
        passages, mean = int(found[0]), float(found[1] or 1)
        schema = base64.b64encode(self._schema.serialize().to_pybytes()).decode()
        record = {
            **read_record(self._schema),
            "commit": 1 if self._published is None else self._published.version + 1,
            "schema": schema,
            "source": {**source, "passages": passages, "mean_bytes": mean},
        }
        self._run("COMMENT ON TABLE {} IS {}", self._store.identifier, sql.Literal(json.dumps(record)))
        self._connection.execute("COMMIT")
        # Until statistics are there, filters are planned blindly; autovacuum would come to it in a minute.
        self._run("ANALYZE {}", self._store.identifier)

    def _begin(self) -> None:
        """Begins the transaction, with the table as it was when the sync began; makes it where there is none."""
        if self._connection.info.transaction_status:
            return
        self._connection.execute("BEGIN")
        if self._published is None:
            self._run("CREATE TABLE {} ({})", self._store.identifier, self._columns(addresses=True))
        # Readers go on. The lock that keeps other syncs out may have been lost to a proxy between.
        self._run("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE", self._store.identifier)
        found = self._store.found(self._connection) if self._published is not None else None
        if (found and found.version) != (self._published and self._published.version):
            raise AdventuresError(f"{self._store} was written by another sync meanwhile; nothing was published")
        if self._published is not None and "overlap" not in self._published.schema.names:
            # It was made before there were these columns: its passages know nothing of what they share.
            table = self._store.identifier
            self._run("ALTER TABLE {} ADD COLUMN overlap int4, ADD COLUMN {}", table, sql.SQL(_KEPT_WORDS))
            self._run("CREATE INDEX ON {} USING gin (words)", table)

    def _columns(self, *, addresses: bool = False) -> sql.Composable:
        kinds = (*_TYPES[:-1], f"vector({self._dim})")
        columns: list[sql.Composable] = [
            sql.SQL("{} {}" if name == "overlap" else "{} {} NOT NULL").format(sql.Identifier(name), sql.SQL(kind))
            for name, kind in zip(_COLUMNS, kinds, strict=True)
        ]
        if addresses:
            columns[0] += sql.SQL(' COLLATE "C" PRIMARY KEY')
            columns[1] += sql.SQL(' COLLATE "C"')
            columns += [sql.SQL("address bigint NOT NULL GENERATED ALWAYS AS IDENTITY"), sql.SQL(_KEPT_WORDS)]
        return sql.SQL(", ").join(columns)

    def _run(self, statement: Any, *names: sql.Composable, given: list[Any] | None = None) -> Any:
        return self._connection.execute(sql.SQL(statement).format(*names), given)


def compared(dim: int, *, ops: bool = False) -> sql.Composable:
    """Returns the vector as the index has it, `ops` with what orders it."""
    if dim <= HALVED_FROM or dim > INDEXED_TO:
        return sql.SQL("vector vector_cosine_ops" if ops else "vector")
    halved = sql.SQL("(vector::halfvec({}))").format(sql.Literal(dim))
    return halved + sql.SQL(" halfvec_cosine_ops") if ops else halved
