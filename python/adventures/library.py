"""A library: the passages of a Delta table with their vectors, in LanceDB or in Postgres."""

from __future__ import annotations

import os
import re
import sys
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from adventures import late as _late
from adventures import neighbours as _neighbours
from adventures import repair as _repair
from adventures import search as _search
from adventures import sync as _sync
from adventures._adventures import AdventuresError, TruncationWarning
from adventures.census import Skip
from adventures.delta import RowSource, check_options, open_table
from adventures.filters import check_unicode
from adventures.passages import Cut
from adventures.repair import RepairReport
from adventures.search import Hit, Query, Source
from adventures.snapshot import LanceSnapshot
from adventures.storage import check_model
from adventures.store import Store
from adventures.sync import SyncReport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from os import PathLike

    import polars as pl
    from deltalake import DeltaTable
    from lancedb.table import Table

    from adventures._adventures import ColBERT, Embedder
    from adventures.index import ColbertIndex
    from adventures.ranking import Scorer
    from adventures.storage import Snapshot, Storage
    from adventures.sync import Runner

__all__ = ["Hit", "Library", "RepairReport", "Skip", "Source", "SyncReport", "Version"]

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# How many rows are looked up at once.
_ROWS = 500
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")


@dataclass(frozen=True, slots=True)
class Version:
    """A version of a library that can be read.

    Attributes:
        version: The version of the Delta table that it mirrors.
        passages: How many passages it holds.
        published: Whether it is the one that readers see by default.
    """

    version: int
    passages: int
    published: bool


class Library:
    """The passages of a Delta table, embedded, in a table of a LanceDB database.

    Open it with `Library.open`. Any number of processes may read a library while one writes: a reader sees it as it was
    before a sync until all of it is done, and as it is after from its next search on. One library object serves any
    number of threads.
    """

    def __init__(self, storage: Storage, embedder: Embedder | None, colbert: ColBERT | None = None) -> None:
        self._storage = storage
        self._embedder = embedder
        self._colbert = colbert
        self._index: tuple[Path | None, ColbertIndex] | None = None
        self._snapshot: Snapshot | None = None
        self._pinned = False

    @classmethod
    def open(
        cls,
        path: str | PathLike[str],
        *,
        embedder: Embedder | None = None,
        colbert: ColBERT | None = None,
        table: str = "passages",
        version: int | None = None,
        storage_options: Mapping[str, str] | None = None,
    ) -> Self:
        """Returns the library at a path; a new, empty one where there is none, which its first sync puts on disk.

        Args:
            path: A folder (`~` is the home folder), or a URI that LanceDB opens; or `postgresql://…`, a database with
                pgvector. It may hold several libraries, each a table.
            embedder: The model that the passages are, or will be, embedded with. Only `search` and `sync` need it.
            colbert: A model of which syncs keep a vector for each token beside the table, in a `ColbertIndex`, for
                `search(retrieval="colbert")`. The library has to be on a file system.
            table: The name of the table: letters, digits, `_` and `-`; in Postgres also `SCHEMA.TABLE`.
            version: The version of the Delta table that it shall mirror, one of `versions()`: the library stays at it
                and is read only. By default it follows what is published.
            storage_options: Credentials and settings for a library on an object store, as LanceDB takes them.

        Raises:
            FileNotFoundError: There is no library and no embedder to make one with.
            LookupError: That version is not kept.
            ValueError: Its vectors were made by another model; the table name is bad; what is there is no library.
        """
        if isinstance(embedder, str):
            raise TypeError(f"embedder must be an Embedder, not the name {embedder!r}: give Embedder({embedder!r})")
        if embedder is not None and not hasattr(embedder, "encode"):
            raise TypeError(f"embedder must be an Embedder, not {type(embedder).__name__}")
        if colbert is not None and not hasattr(colbert, "encode_documents"):
            raise TypeError(f"colbert must be a ColBERT, not {type(colbert).__name__}: give ColBERT(…)")
        storage = _storage(path, table, storage_options)
        if colbert is not None and "://" in storage.path:
            raise ValueError(f"token vectors are kept on a file system, not at {storage.path}: leave colbert out")
        library = cls(storage, embedder, colbert)
        if version is not None:
            library._pin(version)
        snapshot = library._current()
        if snapshot is None and embedder is None:
            raise FileNotFoundError(f"no library at {library.path} (table {table!r}); give an embedder to make one")
        return library

    @classmethod
    def repair(cls, path: str | PathLike[str], *, table: str = "passages") -> RepairReport:
        """Makes a library readable again after a power cut; needs no model.

        Torn files that belong to nothing published are moved out of the way, every passage of the published version is
        read, and indexes that cannot be searched are made anew. Where the published version cannot be read, the newest
        one that can is published, and the next sync brings the rest.

        Raises:
            AdventuresError: No version of it can be read.
            BusyError: A sync of this library is running.
            FileNotFoundError: There is no library.
        """
        store = _storage(path, table)
        if not isinstance(store, Store):
            raise ValueError(f"cannot repair {store}: Postgres recovers by itself")  # noqa: TRY004 (of a right type)
        if store.folder is not None and not store.folder.exists():
            raise FileNotFoundError(f"no library at {store.path} (table {table!r})")
        with store.writing():
            return _repair.repair(store)

    @property
    def path(self) -> str:
        """The folder or URI of the database, without a password."""
        return self._storage.path

    @property
    def embedder(self) -> Embedder | None:
        """The model that embeds passages and questions; None where the library was opened without."""
        return self._embedder

    @property
    def colbert(self) -> ColBERT | None:
        """The model of the token vectors; None where the library was opened without."""
        return self._colbert

    @property
    def table(self) -> Table:
        """The LanceDB table at the version that is published now, read only.

        Raises:
            LookupError: Nothing was synced yet.
        """
        snapshot = self._current()
        if snapshot is None:
            raise LookupError(f"{self._storage} is empty: nothing was synced yet")
        if not isinstance(snapshot, LanceSnapshot):
            raise TypeError(f"{self._storage} is no LanceDB table")
        return snapshot.table

    @property
    def metadata(self) -> dict[str, Any]:
        """What the library says of itself: `format`, `model`, `metric`, and `source`, the Delta table that it mirrors.

        Empty before the first sync.
        """
        snapshot = self._current()
        return {} if snapshot is None else {**snapshot.record, "source": dict(snapshot.source)}

    def size(self) -> int | None:
        """Returns the bytes of its files, or of its table in Postgres, indexes included; None on an object store."""
        return self._storage.size()

    def missing(self, rows: Iterable[str]) -> list[str]:
        """Returns those of some rows' ids, as a hit's `id` has them before its `#`, that have no passage here."""
        wanted = list(dict.fromkeys(rows))
        snapshot = self._current()
        if snapshot is None:
            return wanted
        there: set[str] = set()
        with snapshot.held() as now:
            for start in range(0, len(wanted), _ROWS):
                there.update(row for row, *_ in now.texts([(id_, 0, 0) for id_ in wanted[start : start + _ROWS]]))
        return [id_ for id_ in wanted if id_ not in there]

    def __len__(self) -> int:
        snapshot = self._current()
        return 0 if snapshot is None else snapshot.rows

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"Library({self.path!r}, table={self._storage.name!r}, passages={len(self)})"

    def versions(self) -> list[Version]:
        """Returns the versions that can be read, oldest first: the newest `keep` of a sync."""
        return [
            Version(one.source["version"], one.rows, published=published) for one, published in self._storage.kept()
        ]

    def _pin(self, version: int) -> None:
        found = [one for one, _ in self._storage.kept() if one.source["version"] == version]
        if not found:
            kept = ", ".join(str(one.version) for one in self.versions()) or "none"
            raise LookupError(f"{self._storage} has no version {version!r}; it keeps {kept}")
        self._snapshot, self._pinned = found[-1], True

    def sync(
        self,
        delta: str | PathLike[str] | DeltaTable,
        *,
        id: str | Sequence[str],  # noqa: A002 - the word of the whole API
        text: str | pl.Expr,
        metadata: Sequence[str] | None = None,
        version: int | None = None,
        storage_options: Mapping[str, str] | None = None,
        where: str | None = None,
        max_tokens: int | None = None,
        overlap: int | None = None,
        keep: int | None = None,
        follow_types: bool = False,
        dry_run: bool = False,
        nbits: Literal[1, 2, 4, 32] | None = None,
        drop_colbert: bool = False,
        progress: bool | None = None,
        runner: Runner | None = None,
    ) -> SyncReport:
        """Makes the library equal to one version of a Delta table.

        Rows are read as a stream; only those whose text is new or changed are embedded, and those that left the table
        leave the library. Where the table has a change data feed that reaches back to the last sync, only rows that it
        names are read; else all are compared, and the report says why. What a sync has embedded when it dies, the next
        one takes over. Rows with a null id, a null or empty text, or the id of another row (of these the one with
        the lowest digest stays) are skipped and counted. Where anything fails, the library stays as it was. A second
        sync of the same version with the same arguments does nothing.

        Args:
            delta: The table: a path, a URI, or an opened `DeltaTable`.
            id: The column, or columns, that together name a row.
            text: What is embedded: a template such as `"For {scenario} use {advice}"` (`{{` is a brace), or a Polars
                expression of strings.
            metadata: Columns kept beside the text, for `where` and `Hit.metadata`; None keeps all that are neither in
                `id` nor in `text`.
            version: The table's version; the newest by default, or that of an opened table.
            storage_options: Credentials and settings for a table on an object store, as deltalake takes them.
            where: A SQL predicate over the table's columns; other rows count as not there.
            max_tokens: The longest passage in tokens, special tokens and prefix included; what the model reads by
                default. Longer texts become several passages. Of shorter ones more answer, if `search` is asked for
                more: as many characters of text, not as many passages.
            overlap: How many tokens neighbouring passages of a text share at most; by default 32, or a quarter of
                `max_tokens` where that is less.
            keep: How many published versions stay readable, the newest included; see `versions`. By default 2; Postgres
                has the newest only.
            follow_types: Whether a column that changed its type since the last sync is taken as it is now; else it is
                an error that names it.
            dry_run: Whether to write nothing, and only report what a sync would change.
            nbits: How many bits a dimension of a token vector is kept in, for a library that was opened with
                `colbert=`; by default what it has, 4 in a new one. Other bits, or another model, make all anew.
            drop_colbert: Whether the token vectors that the library has are left behind by a sync without their model.
            progress: Whether to show a bar on stderr; by default where that is a terminal.
            runner: Who reads, embeds and writes, such as `adventures.distributed.DaftRunner`; by default this process.

        Raises:
            FileNotFoundError: There is no such table.
            ValueError: A column, version, predicate or number does not fit the table; a column changed its type.
            BusyError: Another sync of this library is running.
            AdventuresError: The library could not be written, or its rows did not add up.
        """
        embedder = self._needed("sync")
        if self._pinned:
            raise ValueError(f"cannot sync {self._storage}: it was opened at one version, to be read")
        storage = self._storage
        keep = storage.keep if keep is None else keep
        if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
            raise ValueError(f"keep must be a whole number from 1 on, not {keep!r}")
        if nbits is not None and (isinstance(nbits, bool) or nbits not in (1, 2, 4, 32)):
            raise ValueError(f"nbits must be 1, 2, 4 or 32, not {nbits!r}")
        if nbits is not None and self._colbert is None:
            raise ValueError(f"nbits={nbits} is of token vectors: open the library with colbert=")
        if drop_colbert and self._colbert is not None:
            raise ValueError("drop_colbert leaves out what colbert= makes: give one of them")
        if storage.keep_most is not None and keep > storage.keep_most:
            raise ValueError(f"keep is {keep}, and {storage} keeps {storage.keep_most} version at most")
        cut = Cut.of(embedder, max_tokens, overlap)
        place = os.fspath(delta) if isinstance(delta, (str, os.PathLike)) else None
        for what, given in (("delta", place), ("text", text), ("where", where)):
            if isinstance(given, str):
                check_unicode(given, what)
        source = RowSource.of(
            open_table(delta, version=version, storage_options=storage_options),
            id=id,
            text=text,
            metadata=metadata,
            where=where,
        )
        shown = sys.stderr.isatty() if progress is None else progress
        with nullcontext(_nothing) if dry_run else self._storage.writing() as still_ours:
            published = self._storage.current(None)
            if published is not None:
                check_model(self._storage, published.record, embedder)
            late = None if self._colbert is None else _late.Late(self._storage, self._colbert, nbits)
            options = _sync.Options(
                keep, follow_types, dry_run, shown, still_ours, late, drop=drop_colbert, runner=runner
            )
            return _sync.run(self._storage, published, embedder, source, cut=cut, options=options)

    def search(
        self,
        query: str,
        k: int = 4,
        *,
        hybrid: bool = False,
        retrieval: Literal["dense", "colbert"] = "dense",
        where: Mapping[str, object] | None = None,
        rerank: Scorer | None = None,
        mmr: float | None = None,
        expand: int = 0,
    ) -> list[Hit]:
        """Returns the passages nearest to a question, best first; none from an empty library.

        Args:
            query: The question.
            k: How many passages at most.
            hybrid: Whether to fuse with full-text search: better where exact words count, names above all.
            retrieval: What finds passages: `"dense"`, one vector of each, or `"colbert"`, a vector of each token, which
                the library has where it was synced with `colbert=`.
            where: A filter built from values: `{"aisle": "frost", "price": {"lt": 20}, "kind": ["boots", "cloak"]}`;
                see `adventures.filters.condition`.
            rerank: A `Reranker`, or anything with `scores(query, docs)`: it is shown more passages, 5 times `k` and 50
                at least, and `Hit.score` is what it says of the best of them.
            mmr: Maximal marginal relevance, from 0 to 1: how much relevance counts against being unlike the passages
                before. 1 is the plain order; the less, the fewer say the same again. Hits come in the order of choice.
            expand: How many passages before and after it in its row a hit's text takes in, from 0 to 100: what is found
                by a small passage is read with what is around it. Hits of a row that meet become one, in the place of
                the best of them, so that there may be fewer than `k`; `Hit.passages` says what a text is of. Id, score
                and similarity stay those of the passage that was found.

        Warns:
            TruncationWarning: The query is longer than the model reads, or a passage with it longer than the reranker.

        Raises:
            AdventuresError: The library's files are damaged or out of reach.
            ValueError: The query is empty, `k` is not positive, `mmr` is not from 0 to 1 or `expand` from 0 to 100, or
                `where` does not fit the library.
        """
        if not isinstance(query, str):
            raise TypeError(f"the query must be a string, not {type(query).__name__}")
        if not query.strip():
            raise ValueError("the query is empty")
        check_unicode(query, "the query")
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ValueError(f"k must be a whole number from 1 on, not {k!r}")
        if rerank is not None and not callable(getattr(rerank, "scores", None)):
            raise TypeError(
                f"rerank must have a method scores(query, docs), as Reranker has; {type(rerank).__name__} has none"
            )
        if retrieval not in ("dense", "colbert"):
            raise ValueError(f"retrieval must be 'dense' or 'colbert', not {retrieval!r}")
        if mmr is not None and (isinstance(mmr, bool) or not isinstance(mmr, (int, float)) or not 0 <= mmr <= 1):
            raise ValueError(f"mmr must be from 0 to 1, not {mmr!r}")
        if rerank is not None and mmr is not None:
            raise ValueError("rerank and mmr each choose an order: give one of them")
        _neighbours.check(expand)
        embedder = self._needed("search")
        snapshot = self._current()
        if snapshot is None or not snapshot.rows:
            return []
        encoded = embedder.encode([query], kind="query")
        if encoded.truncated:
            message = (
                f"the query is longer than the {embedder.max_tokens} tokens that {embedder.name} reads, and was cut"
            )
            warnings.warn(message, TruncationWarning, stacklevel=2)
        question = Query(query, encoded.vectors[0], where, mmr)
        if retrieval == "colbert":
            snapshot, question = self._late(snapshot, question)
        find = _search.hybrid if hybrid else _search.nearest
        wanted = k if rerank is None else _search.depth(k)
        with snapshot.held() as now:
            hits = self._reading(find, now, question, min(wanted, now.rows))
            if rerank is not None:
                hits = _search.reranked(rerank, query, hits, k)
            return self._reading(_neighbours.expanded, now, hits, expand) if expand else hits

    def _reading(self, read: Callable[..., list[Hit]], *of: Any) -> list[Hit]:
        try:
            return read(*of)
        except RuntimeError as error:
            raise AdventuresError(f"cannot read {self._storage}: {error}") from error

    def _late(self, snapshot: Snapshot, query: Query) -> tuple[Snapshot, Query]:
        """The query with its token vectors, and the index that is searched for them."""
        if _late.folder_of(self._storage, snapshot) is None:
            raise ValueError(
                f"{self._storage} has no token vectors; a sync makes them where it was opened with colbert="
            )
        if self._colbert is None:
            raise ValueError(
                f"cannot search {self._storage} by token vectors without their model; open it with colbert="
            )
        opened, folder = self._index, _late.folder_of(self._storage, snapshot)
        if opened is None or opened[0] != folder:
            try:
                opened = (folder, _late.open_index(self._storage, snapshot, self._colbert))
            except FileNotFoundError as error:
                # A sync has published another version meanwhile, and this one is kept no more.
                newest = self._current()
                if newest is None or newest.version == snapshot.version:
                    raise AdventuresError(f"{error}; the next sync of {self._storage} makes them anew") from error
                return self._late(newest, query)
            self._index = opened
        return snapshot, replace(query, tokens=(self._colbert.embed_query(query.text), opened[1]))

    def _needed(self, verb: str) -> Embedder:
        if self._embedder is None:
            raise ValueError(f"cannot {verb} {self._storage} without a model; open it with embedder=")
        return self._embedder

    def _current(self) -> Snapshot | None:
        """The published version, opened anew only when another was published."""
        try:
            return self._newest()
        except RuntimeError as error:
            raise AdventuresError(
                f"cannot read {self._storage}: {error}; what a power cut tore, `adventures library repair` puts"
                " together"
            ) from error

    def _newest(self) -> Snapshot | None:
        if self._pinned:
            return self._snapshot
        snapshot = self._storage.current(self._snapshot)
        if snapshot is not None and snapshot is not self._snapshot and self._embedder is not None:
            check_model(self._storage, snapshot.record, self._embedder)
        self._snapshot = snapshot
        return snapshot


def _nothing() -> None:
    pass


def _storage(path: str | PathLike[str], table: str, storage_options: Mapping[str, str] | None = None) -> Storage:
    if not isinstance(table, str):
        raise TypeError(f"the table name must be a string, not {type(table).__name__}")
    place = _place(path)
    if place.startswith(("postgresql://", "postgres://")):
        # Not above: Postgres is an extra.
        from adventures.postgres import PostgresStore

        if storage_options:
            raise ValueError(f"storage_options are for object stores; settings of {place.split(':')[0]} are in the URI")
        return PostgresStore(place, table)
    if not _NAME.fullmatch(table):
        raise ValueError(f"the table name {table!r} must be of letters, digits, '_' and '-', 63 at most")
    if "://" not in place and Path(place).exists() and not Path(place).is_dir():
        raise ValueError(f"cannot open a library at {place}: it is a file")
    check_options(storage_options)
    return Store(place, table, storage_options)


def _place(path: str | PathLike[str]) -> str:
    place = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(place, str):
        raise TypeError(f"the path of the library must be a string or a path, not {type(path).__name__}")
    if not place:
        raise ValueError("the path of the library is empty")
    check_unicode(place, "the path of the library")
    if _CONTROL.search(place):
        # LanceDB refuses these too, after the folder was made.
        raise ValueError(f"the path of the library has a control character: {place!r}")
    # LanceDB would expand a "~", and leave the lock in a folder of that name.
    return os.path.expanduser(place)  # noqa: PTH111 (a URI stays one)
