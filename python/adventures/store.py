"""The LanceDB side of a library: its schema, its record of where the rows came from, and which version readers see.

A sync makes several commits (rows, deletions, indexes, metadata). Readers follow the tag `published`, which moves once,
at the end, so they see the table before a sync or after it. Plain LanceDB readers of the newest version see the
commits as they come.
"""

from __future__ import annotations

import json
import re
import tempfile
import weakref
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lancedb
import pyarrow as pa

if TYPE_CHECKING:
    from lancedb.db import DBConnection
    from lancedb.table import Table

    from adventures._adventures import Embedder

TAG = "published"
FORMAT = 1
_RECORD = b"adventures"
_SOURCE = b"adventures.source"
# Readers leave an old version at their next search; an hour covers the longest of them.
_KEEP = timedelta(hours=1)
_FOREVER = timedelta(days=36_500)
# Rows outside an index are scanned, and every sync adds a file: both cost little until there are many.
_FRAGMENTS = 10
_UNINDEXED = 10_000
# Of other characters LanceDB writes %xx in places: to tag a version in /home/josé it makes a folder in /home/jos%C3%A9.
_PLAIN = re.compile(r"[A-Za-z0-9_./ -]*")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One published version of a library's table.

    Attributes:
        table: The LanceDB table, checked out at `version`; read only.
        version: LanceDB's version number.
        record: What the passages were made with: format, model, metric.
        source: The Delta table they mirror: table, version, columns, counts. Empty before the first sync.
        rows: How many passages it holds.
    """

    table: Table
    version: int
    record: dict[str, Any]
    source: dict[str, Any]
    rows: int


class Store:
    """A table of passages in a LanceDB database."""

    def __init__(self, path: str, name: str) -> None:
        self.path = path
        self.name = name
        self._db: DBConnection | None = None

    def __str__(self) -> str:
        return f"the library {self.path} (table {self.name!r})"

    @property
    def db(self) -> DBConnection:
        """The database; made on disk where it does not exist."""
        if self._db is None:
            try:
                self._db = _connect(self.path)
            except (OSError, RuntimeError, ValueError) as error:
                raise ValueError(f"cannot open a library at {self.path}: {error}") from error
        return self._db

    def exists(self) -> bool:
        """Whether there is a database to read; never makes one."""
        return "://" in self.path or Path(self.path).exists()

    def open(self) -> Table | None:
        """Returns the table at its newest version; None where there is none yet.

        Raises:
            ValueError: The table is not a library, or one of a newer format.
        """
        if not self.exists():
            return None
        try:
            table = self.db.open_table(self.name)
        except ValueError as error:
            if "was not found" in str(error):
                return None
            raise
        record = read_record(table.schema)
        if not record:
            raise ValueError(f"{self} was not written by adventures; choose another table name")
        if record["format"] > FORMAT:
            raise ValueError(
                f"{self} has format {record['format']}, this version reads up to {FORMAT}: update adventures"
            )
        return table

    def published_version(self, table: Table) -> int | None:
        """Returns LanceDB's number of the version that readers see."""
        entry = table.tags.list().get(TAG)
        return None if entry is None else int(entry["version"])

    def snapshot(self) -> Snapshot | None:
        """Returns the published version, checked out; None where nothing was published."""
        table = self.open()
        version = None if table is None else self.published_version(table)
        if table is None or version is None:
            return None
        table.checkout(version)
        schema = table.schema
        return Snapshot(table, version, read_record(schema), read_source(schema), table.count_rows())

    def begin(self, published: Snapshot | None, schema: pa.Schema) -> Table:
        """Returns the table to write to, equal to what is published: what an interrupted sync left is undone."""
        table = self.open()
        if table is None:
            return self.db.create_table(self.name, schema=schema)
        if published is not None and table.version != published.version:
            table.restore(published.version)
        return table

    def undo(self) -> None:
        """Puts the newest version back to what is published; drops a table of which nothing ever was."""
        table = self.open()
        if table is None:
            return
        published = self.published_version(table)
        if published is None:
            self.db.drop_table(self.name)
        elif table.version != published:
            table.restore(published)

    def publish(self, table: Table, *, anew: bool) -> None:
        """Shows readers the newest version; then, when it is due, removes versions that nobody can be reading any more.

        Args:
            table: The table as it was written.
            anew: Whether all of it was.
        """
        due = anew or _needs_upkeep(table)
        if due and not anew:
            # Compacts and indexes only: pruning would trip over the tag, which still marks an old version.
            table.optimize(cleanup_older_than=_FOREVER)
        self._tag(table)
        if not due:
            return
        # A tag that the user set on an old version makes this fail: then their versions are kept, and all others.
        with suppress(RuntimeError):
            table.optimize(cleanup_older_than=_KEEP)
        self._tag(table)

    def _tag(self, table: Table) -> None:
        published = self.published_version(table)
        if published is None:
            table.tags.create(TAG, table.version)
        elif published != table.version:
            table.tags.update(TAG, table.version)


def _connect(path: str) -> DBConnection:
    """Returns the database at a path; one that LanceDB would misspell, by a link of another name."""
    whole = Path(path).absolute()
    if "://" in path or _PLAIN.fullmatch(str(whole)):
        return lancedb.connect(path)
    whole.mkdir(parents=True, exist_ok=True)
    folder = tempfile.TemporaryDirectory(prefix="adventures-")
    link = Path(folder.name) / "library"
    link.symlink_to(whole)
    db = lancedb.connect(str(link))
    # Every table holds its database, so the link goes with the last of them.
    weakref.finalize(db, folder.cleanup)
    return db


def _needs_upkeep(table: Table) -> bool:
    stats: Any = table.stats()
    indexes: list[Any] = [table.index_stats(index.name) for index in table.list_indices()]
    unindexed = max((index.num_unindexed_rows for index in indexes if index is not None), default=0)
    return bool(stats["fragment_stats"]["num_small_fragments"] > _FRAGMENTS or unindexed > _UNINDEXED)


def write_source(table: Table, source: dict[str, Any]) -> None:
    """Records the Delta table that the rows mirror; one commit, no rewriting."""
    table.update_field_metadata({"path": "id", "metadata": {_SOURCE.decode(): json.dumps(source)}})


def read_record(schema: pa.Schema) -> dict[str, Any]:
    """Returns what a library's schema says of its model; empty for a table that is no library."""
    raw = (schema.metadata or {}).get(_RECORD)
    return dict(json.loads(raw)) if raw else {}


def read_source(schema: pa.Schema) -> dict[str, Any]:
    """Returns what a library's schema says of its Delta table; empty before the first sync."""
    raw = (schema.field("id").metadata or {}).get(_SOURCE)
    return dict(json.loads(raw)) if raw else {}


def passage_schema(embedder: Embedder, key: pa.DataType, metadata: pa.DataType | None) -> pa.Schema:
    """Returns the schema of a table of passages."""
    fields: list[pa.Field[Any]] = [
        pa.field("id", pa.string(), nullable=False),
        pa.field("row_id", pa.string(), nullable=False),
        pa.field("ordinal", pa.int32(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("text_hash", pa.binary(16), nullable=False),
        pa.field("row_hash", pa.binary(16), nullable=False),
        # Structs keep the source's own column names, whatever they are, apart from ours.
        pa.field("key", key, nullable=False),
        *([] if metadata is None else [pa.field("metadata", metadata, nullable=False)]),
        pa.field("vector", pa.list_(pa.field("item", pa.float32()), embedder.dim), nullable=False),
    ]
    record = {"format": FORMAT, "model": model_of(embedder), "metric": "cosine"}
    return pa.schema(fields, metadata={_RECORD: json.dumps(record).encode()})


def model_of(embedder: Embedder) -> dict[str, Any]:
    """Returns what must be equal for two vectors to be comparable."""
    return {
        "name": embedder.name,
        "revision": embedder.revision,
        "dim": embedder.dim,
        "pooling": embedder.pooling,
        "prompts": dict(embedder.prompts),
        "max_tokens": embedder.max_tokens,
    }


def check_model(store: Store, record: dict[str, Any], embedder: Embedder) -> None:
    """Raises ValueError where a library's vectors were made by another model than `embedder`."""
    made, given = record["model"], model_of(embedder)
    same = all(made[key] == given[key] for key in ("name", "dim", "pooling", "prompts"))
    # An unknown revision is no evidence of a difference.
    if made["revision"] and given["revision"]:
        same = same and made["revision"] == given["revision"]
    if not same:
        raise ValueError(
            f"{store} was embedded with {_spell(made)}, not with {_spell(given)}; open it with the first, or sync "
            "into another table"
        )


def _spell(model: dict[str, Any]) -> str:
    revision = f" at revision {model['revision']}" if model["revision"] else ""
    prompts = ", ".join(f"{kind} {prompt!r}" for kind, prompt in model["prompts"].items())
    facts = f"{model['dim']} dimensions, {model['pooling']} pooling, prompts {prompts or 'none'}"
    return f"{model['name']}{revision} ({facts})"
