"""Makes a library equal to one version of a Delta table, embedding only texts that are new or changed."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from lancedb.index import FTS, IvfSq
from tqdm import tqdm

from adventures._adventures import AdventuresError
from adventures.census import Census, Change, Difference, Digester, Picker, Skip, Stock
from adventures.passages import Known, Writer
from adventures.store import passage_schema, write_source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lancedb.table import Table

    from adventures._adventures import Embedder
    from adventures.delta import RowSource
    from adventures.passages import Cut, Work
    from adventures.store import Snapshot, Store

# Past this share of the passages, writing the table anew costs less than what many deletions leave behind.
_REWRITE = 0.2
_ADDRESSES = 10_000
# A scan of 100,000 vectors takes tens of milliseconds and finds all; below that an index only loses neighbours.
INDEX_FROM = 200_000


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What a sync did. `read == written + skipped rows` always holds.

    Attributes:
        version: The version of the Delta table that the library now mirrors.
        read: Rows of the Delta table.
        written: Rows that the library has of them.
        skipped: Rows that it has not, by reason.
        added: Rows that were not in the library before.
        updated: Rows whose text or metadata changed.
        deleted: Rows that left the library.
        unchanged: Rows that were as they are.
        passages: Passages that the library now holds.
        truncated: Passages that the model could not read to the end.
        tokens: Tokens embedded.
        seconds: How long it took.
        changed: Whether the library is another than before; False where it had this version already.
    """

    version: int
    read: int
    written: int
    skipped: list[Skip]
    added: int
    updated: int
    deleted: int
    unchanged: int
    passages: int
    truncated: int
    tokens: int
    seconds: float
    changed: bool


def run(store: Store, embedder: Embedder, source: RowSource, cut: Cut, *, progress: bool) -> SyncReport:
    """Syncs a library. The caller holds the writer's lock.

    Raises:
        AdventuresError: LanceDB or the reconciliation failed.
        ValueError: The Delta table cannot be read, or the library follows another one.
    """
    started = time.monotonic()
    published = store.snapshot()
    described = _describe(source, cut)
    if published is not None and _same(published, described):
        return _nothing_to_do(published, started)

    if published is not None:
        _check_table(published, described)

    digester = Digester(cut.window, cut.overlap)
    census = Census.of(source, digester)
    schema = passage_schema(embedder, source.key_type, source.metadata_type)
    stock = Stock.of(published)
    difference = Difference.between(stock, census)
    outdated = stock.addresses_of(
        np.r_[difference.gone, difference.stocked[_is(difference, Change.METADATA, Change.TEXT)]].astype(np.int64)
    )
    fresh = len(census) - difference.count(Change.NONE)
    rewrite = (
        published is None
        or not _same_columns(published.table.schema, schema)
        or len(outdated) + fresh > _REWRITE * published.rows
    )
    changed = bool(fresh or len(difference.gone) or rewrite)
    writer = Writer(embedder, source, cut, known=Known(published, stock, difference), schema=schema)
    picker = Picker(census, digester, np.full(len(census), True) if rewrite else difference.changes != Change.NONE)
    try:
        table = store.begin(published, schema)
        if changed:
            bar = _bar(picker.left, shown=progress)
            with bar:
                _write(table, writer, picker, bar, rewrite=rewrite)
            if not rewrite:
                _delete(table, outdated)
        kept = 0 if rewrite or published is None else published.rows - len(outdated)
        _reconcile(table, census, picker, kept + writer.work.passages)
        if changed:
            _index(table)
        report = SyncReport(
            version=source.table.version(),
            read=census.read,
            written=len(census),
            skipped=census.skipped,
            added=difference.count(Change.NEW),
            updated=difference.count(Change.METADATA) + difference.count(Change.TEXT),
            deleted=len(difference.gone),
            unchanged=difference.count(Change.NONE),
            passages=table.count_rows(),
            truncated=writer.work.truncated,
            tokens=writer.work.tokens,
            seconds=0.0,
            changed=changed,
        )
        write_source(table, {**described, **_counts(report)})
        store.publish(table, anew=rewrite)
    except BaseException as error:
        try:
            store.undo()
        except (OSError, RuntimeError, ValueError) as second:
            # A full disk takes no undoing either. Readers see what is published; the next sync undoes the rest.
            error.add_note(f"and what was written could not be undone: {second}")
        raise
    return replace(report, seconds=time.monotonic() - started)


def _describe(source: RowSource, cut: Cut) -> dict[str, Any]:
    """What a library mirrors; a sync of an equal description has nothing to do."""
    return {
        "table": source.table.table_uri,
        "table_id": str(source.table.metadata().id),
        "version": source.table.version(),
        "id": list(source.id),
        "text": source.text_digest,
        "metadata": list(source.metadata),
        "where": source.where,
        "max_tokens": cut.window,
        "overlap": cut.overlap,
    }


def _check_table(published: Snapshot, described: dict[str, Any]) -> None:
    """Lets a library follow its table where it was moved, or made anew at its place, but not become another's."""
    source = published.source
    if published.rows and all(source.get(key) not in (None, described[key]) for key in ("table", "table_id")):
        raise ValueError(
            f"the library follows {source['table']}, and {described['table']} is another table, whose rows would"
            f" replace its {published.rows:,} passages; sync it to a library of its own"
        )


def _same(published: Snapshot, described: dict[str, Any]) -> bool:
    return described["text"] is not None and all(published.source.get(key) == described[key] for key in described)


def _counts(report: SyncReport) -> dict[str, Any]:
    skipped = [{"reason": skip.reason, "count": skip.count, "examples": skip.examples} for skip in report.skipped]
    return {"read": report.read, "written": report.written, "skipped": skipped}


def _nothing_to_do(published: Snapshot, started: float) -> SyncReport:
    source = published.source
    return SyncReport(
        version=source["version"],
        read=source["read"],
        written=source["written"],
        skipped=[Skip(**skip) for skip in source["skipped"]],
        added=0,
        updated=0,
        deleted=0,
        unchanged=source["written"],
        passages=published.rows,
        truncated=0,
        tokens=0,
        seconds=time.monotonic() - started,
        changed=False,
    )


def _is(difference: Difference, *changes: Change) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return np.isin(difference.changes, changes)


def _same_columns(left: pa.Schema, right: pa.Schema) -> bool:
    return bool(
        left.names == right.names and all(left.field(name).type == right.field(name).type for name in left.names)
    )


def _bar(total: int, *, shown: bool) -> tqdm[Any]:
    return tqdm(total=total, desc="sync", unit=" rows", disable=not shown, dynamic_ncols=True, smoothing=0.1)


def _write(table: Table, writer: Writer, picker: Picker, bar: tqdm[Any], *, rewrite: bool) -> None:
    """Streams passages into the table: one commit, or none where anything fails."""
    work = writer.work
    reader = pa.RecordBatchReader.from_batches(writer.schema, _guarded(writer.batches(picker, bar), work))
    mode: Literal["overwrite", "append"] = "overwrite" if rewrite else "append"
    # LanceDB pulls the stream from threads of its own, where no signal arrives: the main thread waits here, and stops
    # the stream before it lets go, so that no commit can follow an interrupt.
    with ThreadPoolExecutor(1, "adventures-sync") as pool:
        future = pool.submit(table.add, reader, mode=mode)
        try:
            # An untimed wait is not always woken by a signal: whichever thread the system gave it to, Python acts on it
            # in the main one.
            while wait([future], timeout=0.05).not_done:
                pass
            future.result()
        except BaseException as error:
            work.stop.set()
            wait([future])
            if work.error is not None and isinstance(error, Exception):
                raise work.error from None
            if isinstance(error, (RuntimeError, ValueError, OSError)):
                raise AdventuresError(f"cannot write the library: {error}") from error
            raise


def _guarded(batches: Iterator[pa.RecordBatch], work: Work) -> Iterator[pa.RecordBatch]:
    """The stream, ended by `stop`, with its error kept: Arrow's C interface turns exceptions into texts."""
    try:
        for batch in batches:
            work.stop_if_asked()
            yield batch
    except Exception as error:
        work.error = error
        raise


def _delete(table: Table, addresses: np.ndarray[Any, np.dtype[np.uint64]]) -> None:
    for start in range(0, len(addresses), _ADDRESSES):
        some = ", ".join(map(str, addresses[start : start + _ADDRESSES].tolist()))
        table.delete(f"_rowid IN ({some})")


def _reconcile(table: Table, census: Census, picker: Picker, expected: int) -> None:
    skipped = sum(skip.count for skip in census.skipped)
    if picker.left or census.read != len(census) + skipped:
        raise AdventuresError(
            f"{picker.left} of {len(census)} rows were not found again in the second reading of the Delta table: "
            "its files changed meanwhile, or the text expression gives another text each time"
        )
    found = table.count_rows()
    if found != expected:
        raise AdventuresError(f"the library has {found} passages after writing, not {expected}; nothing was published")


def _index(table: Table) -> None:
    columns = {column for index in table.list_indices() for column in index.columns}
    rows = table.count_rows()
    if "text" not in columns and rows:
        table.create_index("text", config=FTS())
    if "vector" not in columns and rows >= INDEX_FROM:
        table.create_index("vector", config=IvfSq(distance_type="cosine"))
