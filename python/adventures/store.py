"""The LanceDB side of a library: how a version of it is written, and which version readers see.

A sync makes several commits (rows, deletions, indexes, metadata). Readers follow the tag `published`, which moves once,
at the end, so they see the table before a sync or after it. Plain LanceDB readers of the newest version see the
commits as they come. Versions that were published before keep a tag of their own, `published-N`, while they are kept.
"""

from __future__ import annotations

import os
import re
import tempfile
import weakref
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lancedb
from lancedb.index import FTS, BTree, IvfSq

from adventures.lease import leased
from adventures.lock import exclusive
from adventures.snapshot import LanceSnapshot, read_source, write_source
from adventures.storage import check_format, read_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import numpy as np
    import pyarrow as pa
    from lancedb.db import DBConnection
    from lancedb.table import Table
    from numpy.typing import NDArray

    from adventures.storage import Snapshot

TAG = "published"
_KEPT = re.compile(r"published-\d+")
# Readers leave an old version at their next search; an hour covers the longest of them.
_KEEP = timedelta(hours=1)
_FOREVER = timedelta(days=36_500)
# Rows outside an index are scanned, and every sync adds a file: both cost little until there are many.
_FRAGMENTS = 10
# How many rows one statement deletes.
_ADDRESSES = 10_000
_UNINDEXED = 10_000
# A scan of 100,000 vectors takes tens of milliseconds and finds all; below that an index only loses neighbours.
INDEX_FROM = 200_000
# A row is found faster by an index of their names, twice of 100,000; it takes a tenth of a second for 500,000.
NAMES_FROM = 50_000
_PARTITION = 500
_READINGS = 4
# How many vectors for each partition their centres are found from: of four times as many, none is found better.
_SAMPLE = 64
# English words that say nothing of what a text is about, those of questions among them. LanceDB's own are of all
# languages at once where it takes texts apart by dictionaries: "war" and "hat" would be lost to German's.
_STOP_WORDS = """
a about above after again against all am an and any are as at be because been before being below between both but by
can cannot could did do does doing down during each few for from further had has have having he her here hers herself
him himself his how i if in into is it its itself me more most my myself no nor not of off on once only or other ought
our ours ourselves out over own same she should so some such than that the their theirs them themselves then there these
they this those through to too under until up very was we were what when where which while who whom why will with would
you your yours yourself yourselves
"""
# Dictionaries find the words of Chinese, Japanese and Thai, which have no spaces between them.
WORDS = FTS(base_tokenizer="icu/split", custom_stop_words=_STOP_WORDS.split(), max_token_length=None)
# Of other characters LanceDB writes %xx in places: to tag a version in /home/josé it makes a folder in /home/jos%C3%A9.
_PLAIN = re.compile(r"[A-Za-z0-9_./ -]*")


class Store:
    """A table of passages in a LanceDB database."""

    rewrite: float | None = 0.2  # many deletions leave much behind
    keep = 2
    keep_most: int | None = None

    def __init__(self, path: str, name: str, storage_options: Mapping[str, str] | None = None) -> None:
        self.path = path
        self.name = name
        self.storage_options = dict(storage_options or {})
        self._db: DBConnection | None = None

    def __str__(self) -> str:
        return f"the library {self.path} (table {self.name!r})"

    @property
    def db(self) -> DBConnection:
        """The database; made on disk where it does not exist."""
        if self._db is None:
            try:
                self._db = _connect(self.path, self.storage_options)
            except (OSError, RuntimeError, ValueError) as error:
                raise ValueError(f"cannot open a library at {self.path}: {error}") from error
        return self._db

    @property
    def folder(self) -> Path | None:
        """Where the table's files are; None on an object store."""
        return None if "://" in self.path else Path(self.path) / f"{self.name}.lance"

    @property
    def journal(self) -> Path | None:
        """Where a running sync writes its vectors down; None on an object store."""
        return None if "://" in self.path else Path(self.path) / f"{self.name}.journal"

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
        check_format(self, read_record(table.schema))
        return table

    def published_version(self, table: Table) -> int | None:
        """Returns LanceDB's number of the version that readers see."""
        entry = _tags(table).get(TAG)
        return None if entry is None else int(entry["version"])

    def kept_versions(self, table: Table) -> list[int]:
        """Returns LanceDB's numbers of the versions that were published and are kept, oldest first."""
        tags: dict[str, Any] = table.tags.list()
        return sorted(int(entry["version"]) for name, entry in tags.items() if _KEPT.fullmatch(name))

    def snapshot(self, version: int | None = None) -> LanceSnapshot | None:
        """Returns a version, by default the published one, checked out; None where nothing was published."""
        table = self.open()
        if table is not None and version is None:
            version = self.published_version(table)
        if table is None or version is None:
            return None
        table.checkout(version)
        return _snapshot(table, version)

    def current(self, last: Snapshot | None) -> Snapshot | None:
        """Returns the published version, opened anew only where `last` is another."""
        if isinstance(last, LanceSnapshot) and self.published_version(last.table) == last.version:
            return last
        return self.snapshot()

    def kept(self) -> list[tuple[Snapshot, bool]]:
        """Returns the versions that can be read, oldest first, and whether each is the published one."""
        table = self.open()
        published = None if table is None else self.published_version(table)
        if table is None or published is None:
            return []
        snapshots = [self.snapshot(number) for number in sorted({*self.kept_versions(table), published})]
        return [(one, one.version == published) for one in snapshots if one is not None]

    def size(self) -> int | None:
        """Returns the bytes of the table's files, of its token vectors too; None on an object store."""
        if self.folder is None:
            return None
        files = (file for place in self.folder.parent.glob(f"{self.name}.*") for file in (place, *place.rglob("*")))
        return sum(file.stat().st_size for file in files if file.is_file())

    @contextmanager
    def writing(self) -> Iterator[Callable[[], None]]:
        """Keeps other writers out, by a lock on a disk and by a lease on an object store."""
        if "://" in self.path:
            with leased(self.db, self.name, str(self)) as lease:
                yield lease.check
        else:
            Path(self.path).mkdir(parents=True, exist_ok=True)
            with exclusive(Path(self.path) / f"{self.name}.lock", str(self)):
                yield _nothing

    def begin(self, published: Snapshot | None, schema: pa.Schema) -> LanceDraft:
        """Returns the table to write to, equal to what is published: what an interrupted sync left is undone."""
        table = self.open()
        if table is None:
            table = self.db.create_table(self.name, schema=schema)
        elif published is not None and table.version != published.version:
            table.restore(published.version)
        return LanceDraft(self, table)

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

    def index(self, table: Table) -> None:
        """Makes the indexes that the table should have and has not."""
        columns = {column for index in table.list_indices() for column in index.columns}
        rows = table.count_rows()
        if "text" not in columns and rows:
            table.create_index("text", config=WORDS)
        if "row_id" not in columns and rows >= NAMES_FROM:
            table.create_index("row_id", config=BTree())
        if "vector" not in columns and rows >= INDEX_FROM:
            # Small partitions, for a search reads some whole, but not too many, for it compares all centres. Asked for
            # is their size: where LanceDB knows only their number, `optimize` joins them to 20,000 rows each.
            size = max(_PARTITION, isqrt(rows) // 2)
            config = IvfSq(distance_type="cosine", target_partition_size=size, sample_rate=_SAMPLE)
            table.create_index("vector", config=config)

    def publish(self, table: Table, *, anew: bool, keep: int, since: float) -> None:
        """Shows readers the newest version; then, when it is due, removes versions that nobody can be reading any more.

        Args:
            table: The table as it was written.
            anew: Whether all of it was.
            keep: How many published versions stay readable, this one included.
            since: When its writing began, in seconds of the system's clock.
        """
        due = anew or _needs_upkeep(table)
        if due and not anew:
            # Compacts and indexes only: pruning would trip over the tag, which still marks an old version.
            table.optimize(cleanup_older_than=_FOREVER)
        self.mark(table, since=since, keep=keep)
        if not due:
            return
        # A tag on an older version would make this fail, and then nothing would be removed.
        with suppress(RuntimeError):
            table.optimize(cleanup_older_than=max(_KEEP, _age_of_oldest_tag(table)))
        self.mark(table, since=since, keep=keep)

    def mark(self, table: Table, *, since: float, keep: int | None = None) -> None:
        """Shows readers the newest version; of those published before, `keep` stay, or all."""
        version = table.version
        published = self.published_version(table)
        if published == version:
            return
        # LanceDB leaves what it wrote to the system: a power cut would take files that the tag leads to.
        self._flush(since)
        if published is None:
            table.tags.create(TAG, version)
        else:
            table.tags.update(TAG, version)
        if f"{TAG}-{version}" not in table.tags.list():
            table.tags.create(f"{TAG}-{version}", version)
        for old in [] if keep is None else self.kept_versions(table)[:-keep]:
            table.tags.delete(f"{TAG}-{old}")
        self._flush(since)

    def _flush(self, since: float) -> None:
        """Puts what was written after a moment on the disk."""
        if self.folder is None:
            return
        for place, _, names in os.walk(self.folder):
            files = [os.path.join(place, name) for name in names]  # noqa: PTH118 (many, and all are strings)
            new = [file for file in files if _changed_after(file, since)]
            for file in [*new, place] if new else []:
                _fsync(file)


@dataclass(frozen=True, slots=True)
class LanceDraft:
    """The newest version of a library's table, before readers are led to it."""

    store: Store
    table: Table

    def __str__(self) -> str:
        return str(self.store)

    def write(self, passages: pa.RecordBatchReader, *, anew: bool) -> None:
        """Adds passages, in place of all others where `anew` is set: one commit, or none where the stream fails."""
        self.table.add(passages, mode="overwrite" if anew else "append")

    def delete(self, addresses: NDArray[np.uint64]) -> None:
        """Takes out passages by LanceDB's row ids."""
        for start in range(0, len(addresses), _ADDRESSES):
            some = ", ".join(map(str, addresses[start : start + _ADDRESSES].tolist()))
            self.table.delete(f"_rowid IN ({some})")

    def count(self) -> int:
        """Returns how many passages it holds."""
        return self.table.count_rows()

    def index(self) -> None:
        """Makes the indexes that it should have and has not."""
        self.store.index(self.table)

    def snapshot(self) -> LanceSnapshot:
        """Returns it as readers will see it."""
        return _snapshot(self.table, self.table.version)

    def publish(self, source: dict[str, Any], *, anew: bool, keep: int, since: float) -> None:
        """Shows it to readers."""
        write_source(self.table, source)
        self.store.publish(self.table, anew=anew, keep=keep, since=since)


def _snapshot(table: Table, version: int) -> LanceSnapshot:
    schema = table.schema
    indexed = frozenset(column for index in table.list_indices() for column in index.columns)
    return LanceSnapshot(table, version, read_record(schema), read_source(schema), table.count_rows(), schema, indexed)


def _tags(table: Table) -> dict[str, Any]:
    """The tags of a table, also while its writer deletes some: LanceDB lists them first, then reads each."""
    for _ in range(_READINGS):
        with suppress(RuntimeError):
            return dict(table.tags.list())
    return dict(table.tags.list())


def _nothing() -> None:
    pass


def _changed_after(file: str, since: float) -> bool:
    # Clocks of file systems are coarse.
    return os.stat(file).st_mtime >= since - 2  # noqa: PTH116


def _fsync(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _age_of_oldest_tag(table: Table) -> timedelta:
    """How long ago the oldest version that has a tag was made, and a little more."""
    tags: dict[str, Any] = table.tags.list()
    tagged = {int(entry["version"]) for entry in tags.values()}
    made: list[datetime] = [entry["timestamp"] for entry in table.list_versions() if entry["version"] in tagged]
    oldest = min(made, default=None)
    return timedelta() if oldest is None else datetime.now(oldest.tzinfo) - oldest + timedelta(minutes=1)


def _connect(path: str, storage_options: dict[str, str]) -> DBConnection:
    """Returns the database at a path; one that LanceDB would misspell, by a link of another name."""
    whole = Path(path).absolute()
    if "://" in path or _PLAIN.fullmatch(str(whole)):
        return lancedb.connect(path, storage_options=storage_options or None)
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
