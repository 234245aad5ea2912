"""The Postgres side of a library: connections, the lock, and the record of what the table mirrors.

The record is the table's comment, which commits with the rows, is dumped with them and goes with the table.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pyarrow as pa

from adventures._adventures import AdventuresError, BusyError
from adventures.postgres.draft import PostgresDraft
from adventures.postgres.snapshot import PostgresSnapshot
from adventures.storage import check_format

try:
    import psycopg
    from pgvector.psycopg import register_vector
    from psycopg import sql
    from psycopg_pool import ConnectionPool, PoolTimeout
except ImportError as error:
    raise ImportError(
        f"a library in Postgres needs more packages: pip install 'adventures[postgres]' ({error})"
    ) from error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from adventures.storage import Draft, Snapshot

    Connection = psycopg.Connection[tuple[Any, ...]]

# What Postgres takes as a name, of those that need no care elsewhere; longer ones it cuts.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,62}")
# Since then an index that is asked for rows of a filter goes on until it has them.
_PGVECTOR = (0, 8)
_CONNECTIONS = 8
_PATIENCE = 10.0


class PostgresStore:
    """A table of passages in a Postgres database."""

    rewrite: float | None = None  # rows are changed where they are
    keep = 1
    keep_most: int | None = 1

    def __init__(self, uri: str, name: str) -> None:
        parts = name.split(".")
        if len(parts) > 2 or not all(_NAME.fullmatch(part) for part in parts):
            raise ValueError(
                f"the table name {name!r} must be TABLE or SCHEMA.TABLE, each of letters, digits, '_' and '-', 63 at"
                " most, a digit not first"
            )
        self.name = name
        self._schema = parts[0] if len(parts) == 2 else None
        self._table = parts[-1]
        self._uri = uri
        self.path = _public(uri)
        self._pool: ConnectionPool[Connection] | None = None
        self._writer: Connection | None = None

    def __str__(self) -> str:
        return f"the library {self.path} (table {self.name!r})"

    @property
    def journal(self) -> Path | None:
        """Nowhere: the next sync may run on another machine."""
        return None

    @property
    def identifier(self) -> sql.Identifier:
        """The table's name, quoted."""
        return sql.Identifier(*([self._table] if self._schema is None else [self._schema, self._table]))

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Gives a connection whose statements all see the table as it is at the first of them."""
        with self._errors("read"), self._connected().connection() as connection, connection.transaction():
            yield connection

    def found(self, connection: Connection) -> PostgresSnapshot | None:
        """Returns what a connection sees of the library; None where there is none.

        Raises:
            ValueError: The table is not a library, or one of a newer format.
        """
        row = connection.execute(
            "SELECT obj_description(oid, 'pg_class') FROM pg_class WHERE oid = to_regclass(%s)",
            [self.identifier.as_string(connection)],
        ).fetchone()
        if row is None:
            return None
        record = _record(row[0])
        check_format(self, record)
        source = record.pop("source")
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(record.pop("schema"))))
        return PostgresSnapshot(self, record.pop("commit"), record, source, source["passages"], schema)

    def current(self, last: Snapshot | None) -> Snapshot | None:
        """Returns what is published, `last` itself where it still is that."""
        with self.reading() as connection:
            snapshot = self.found(connection)
        return last if last is not None and snapshot is not None and last.version == snapshot.version else snapshot

    def kept(self) -> list[tuple[Snapshot, bool]]:
        """Returns the one version that there is, if there is one."""
        snapshot = self.current(None)
        return [] if snapshot is None else [(snapshot, True)]

    def size(self) -> int | None:
        """Returns the bytes of the table with its indexes."""
        with self.reading() as connection:
            name = self.identifier.as_string(connection)
            found = connection.execute("SELECT pg_total_relation_size(to_regclass(%s))", [name]).fetchone()
        return None if found is None else found[0]

    @contextmanager
    def writing(self) -> Iterator[Callable[[], None]]:
        """Keeps other writers out by an advisory lock, which goes with the connection."""
        with self._errors("write"), _closing(self._connect()) as connection:
            place = connection.execute(
                "SELECT oid FROM pg_namespace WHERE nspname = coalesce(%s, current_schema())", [self._schema]
            ).fetchone()
            if place is None:
                raise ValueError(f"{self} has no schema to be in: make it, or name another, as in SCHEMA.TABLE")
            number = hashlib.blake2b(f"adventures {place[0]}.{self._table}".encode(), digest_size=8).digest()
            lock = connection.execute(
                "SELECT pg_try_advisory_lock(%s)", [int.from_bytes(number, signed=True)]
            ).fetchone()
            if lock != (True,):
                raise BusyError(f"{self} is being written by another sync; wait for it to end")
            self._writer = connection
            try:
                yield _nothing
            finally:
                self._writer = None

    def begin(self, published: Snapshot | None, schema: pa.Schema) -> Draft:
        """Returns a draft on the connection that holds the lock."""
        if self._writer is None:
            raise AdventuresError(f"{self} is not open for writing; this is a bug")
        return PostgresDraft(self, self._writer, published, schema)

    def undo(self) -> None:
        """Throws the draft away."""
        writer = self._writer
        if writer is not None and not writer.closed:
            with self._errors("write"):
                writer.rollback()

    def _connected(self) -> ConnectionPool[Connection]:
        if self._pool is None:
            # A first connection by itself: of what is wrong with it, a pool would only say that it waited long.
            self._connect().close()
            pool = ConnectionPool(
                self._uri,
                min_size=0,
                max_size=_CONNECTIONS,
                timeout=_PATIENCE,
                configure=_configured,
                check=ConnectionPool.check_connection,
                kwargs={"prepare_threshold": None},
                open=True,
            )
            weakref.finalize(self, pool.close)
            self._pool = pool
        return self._pool

    def _connect(self) -> Connection:
        """Returns a connection of its own, which commits each statement, to a database that has pgvector."""
        try:
            connection = psycopg.connect(self._uri, autocommit=True, prepare_threshold=None)
        except psycopg.Error as error:
            raise ConnectionError(f"cannot connect to {self}: {_said(error)}") from error
        try:
            self._extend(connection)
            register_vector(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _extend(self, connection: Connection) -> None:
        """Sees to it that the database has pgvector."""
        query = "SELECT extversion FROM pg_extension WHERE extname = 'vector'"
        version = connection.execute(query).fetchone()
        if version is None:
            try:
                connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            except psycopg.Error as error:
                raise AdventuresError(f"{self} needs the extension pgvector: {_said(error)}") from error
            version = connection.execute(query).fetchone()
        if version is None or tuple(map(int, version[0].split(".")[:2])) < _PGVECTOR:
            raise AdventuresError(f"{self} needs pgvector {'.'.join(map(str, _PGVECTOR))} or newer, and has {version}")

    @contextmanager
    def _errors(self, verb: str) -> Iterator[None]:
        try:
            yield
        except PoolTimeout as error:
            raise ConnectionError(f"cannot connect to {self}: {error}") from error
        except psycopg.Error as error:
            raise AdventuresError(f"cannot {verb} {self}: {_said(error)}") from error


def _public(uri: str) -> str:
    """A URI without its password."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        return uri.split("://")[0] + "://…"
    user, _, host = parts.netloc.rpartition("@")
    name = user.split(":")[0]
    query = re.sub(r"(?i)\b(password|sslpassword)=[^&]*", r"\1=…", parts.query)
    return parts._replace(netloc=f"{name}@{host}" if name else host, query=query).geturl()


def _record(comment: str | None) -> dict[str, Any]:
    try:
        record = json.loads(comment or "")
    except ValueError:
        return {}
    return dict(record) if isinstance(record, dict) and "format" in record else {}


def _configured(connection: Connection) -> None:
    register_vector(connection)
    connection.commit()
    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    connection.read_only = True


@contextmanager
def _closing(connection: Connection) -> Iterator[Connection]:
    try:
        yield connection
    finally:
        connection.close()


def _said(error: psycopg.Error) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _nothing() -> None:
    pass
