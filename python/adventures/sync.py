"""Makes a library equal to one version of a Delta table, embedding only texts that are new or changed."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import pyarrow as pa
from tqdm import tqdm

from adventures import late as _late
from adventures import memory
from adventures import plan as _plan
from adventures._adventures import AdventuresError
from adventures.census import Change, Digester, Picker, Skip, take
from adventures.journal import Journal
from adventures.passages import Known, Writer
from adventures.storage import model_of, passage_schema

# Where in its sources Lance met an error.
_LINE = re.compile(r",? /\S+\.rs:\d+:\d+")

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from adventures._adventures import Embedder
    from adventures.census import Census
    from adventures.delta import RowSource
    from adventures.late import Late
    from adventures.passages import Cut
    from adventures.plan import Plan
    from adventures.storage import Draft, Snapshot, Storage


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What a sync did, or what a dry run would have done. `read == written + skipped rows` always holds.

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
        method: How the changes were found: `"feed"`, from the table's change data feed; `"full"`, by comparing all
            rows; `"none"`, the library had this version.
        reason: Why all rows were compared.
        resumed: Passages whose vectors an interrupted sync had computed.
        new_columns: Columns that the table has got since the last sync.
        lost_columns: Columns that it has no more.
        dry_run: Whether nothing was written.
        colbert: Passages whose token vectors were made.
        colbert_truncated: Those of them that were longer than the ColBERT model reads.
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
    method: Literal["feed", "full", "none"] = "full"
    reason: str = ""
    resumed: int = 0
    new_columns: list[str] = field(default_factory=list)
    lost_columns: list[str] = field(default_factory=list)
    dry_run: bool = False
    colbert: int = 0
    colbert_truncated: int = 0


class Runner(Protocol):
    """Other processes that do the reading, embedding and writing of a sync."""

    def check(self, storage: Storage) -> None:
        """Raises ValueError where it cannot write."""
        ...

    def census(self, source: RowSource, digester: Digester, *, first: bool = False) -> Census:
        """Returns the census of a source: `first` of one whose library has nothing yet."""
        ...

    def write(self, draft: Draft, plan: Plan, digester: Digester, writer: Writer, bar: tqdm[Any]) -> int:
        """Makes a draft what a plan says, and returns how many of its rows were not found again."""
        ...


@dataclass(frozen=True, slots=True)
class Options:
    """How a sync is done.

    Attributes:
        keep: How many published versions stay readable, the newest included.
        follow_types: Whether a column that changed its type is taken as it is now.
        dry_run: Whether only to say what would be done.
        progress: Whether to show a bar.
        still_ours: Raises where somebody else took over as the writer.
        late: Keeps token vectors beside the table; None for a library without.
        drop: Whether those that it has are left behind.
        runner: Who reads, embeds and writes; None for this process.
    """

    keep: int
    follow_types: bool
    dry_run: bool
    progress: bool
    still_ours: Callable[[], None]
    late: Late | None = None
    drop: bool = False
    runner: Runner | None = None


def run(
    storage: Storage,
    published: Snapshot | None,
    embedder: Embedder,
    source: RowSource,
    *,
    cut: Cut,
    options: Options,
) -> SyncReport:
    """Syncs a library of which `published` is what readers see. The caller keeps other writers out, but for a dry run.

    Raises:
        AdventuresError: The storage or the reconciliation failed.
        ValueError: The Delta table cannot be read, the library follows another one, or a column changed its type.
    """
    with memory.little_kept():
        return _run(storage, published, embedder, source, cut, options)


def _run(
    storage: Storage, published: Snapshot | None, embedder: Embedder, source: RowSource, cut: Cut, options: Options
) -> SyncReport:
    started = time.monotonic()
    if options.runner is not None:
        options.runner.check(storage)
    late = options.late
    described = _describe(source, cut) | {_late.MADE: None if late is None else late.described(published)}
    _check_late(storage, published, options)
    if published is not None and _same(published, described) and (late is None or late.is_there(published)):
        return replace(_nothing_to_do(published, started), dry_run=options.dry_run)

    if published is not None:
        _check_table(published, described)
    new_columns, lost_columns = _drift(published, source, follow_types=options.follow_types)

    digester = Digester(cut.window, cut.overlap)
    schema = passage_schema(embedder, source.key_type, source.metadata_type)
    reason = _reason(published, described, schema)
    count = take if options.runner is None else options.runner.census
    plan = _plan.make(source, digester, published, schema, reason=reason, rewrite=storage.rewrite, count=count)
    report = SyncReport(
        version=source.table.version(),
        read=plan.read,
        written=plan.written,
        skipped=plan.skipped,
        added=plan.difference.count(Change.NEW),
        updated=plan.difference.count(Change.METADATA) + plan.difference.count(Change.TEXT),
        deleted=len(plan.difference.gone),
        unchanged=plan.written - plan.fresh,
        passages=0 if published is None else published.rows,
        truncated=0,
        tokens=0,
        seconds=0.0,
        changed=plan.changes or (published is not None and not _same_late(published, described, late)),
        method=plan.method,
        reason=plan.reason,
        new_columns=new_columns,
        lost_columns=lost_columns,
        dry_run=options.dry_run,
    )
    if options.dry_run:
        return replace(report, seconds=time.monotonic() - started)

    described |= {"columns": source.columns}
    changes, rewrite, since = plan.changes, plan.rewrite, time.time()
    with Journal.open(storage.journal, model_of(embedder)) as journal:
        known = Known(published, plan.stock, plan.difference)
        writer = Writer(embedder, plan.source, cut, known=known, schema=schema, journal=journal)
        picker = Picker(plan.census, digester, plan.wanted)
        try:
            draft = storage.begin(published, schema)
            _fill(draft, plan, writer, picker, digester, options)
            work = writer.work
            report = replace(report, truncated=work.truncated, tokens=work.tokens, resumed=work.resumed)
            # The digests of all rows are most of what a sync keeps in memory; making indexes needs room of its own.
            del known, picker, plan, writer
            if changes:
                draft.index()
            report = replace(report, passages=draft.count())
            if late is not None:
                made = _late_bar(shown=options.progress)
                described[_late.PLACE] = late.bring(published, draft, described[_late.MADE], made)
                report = replace(report, colbert=late.read, colbert_truncated=late.truncated)
            options.still_ours()
            draft.publish({**described, **_counts(report)}, anew=rewrite, keep=options.keep, since=since)
        except BaseException as error:
            _undo(storage, late, options, error)
            raise
        journal.remove()
        _late.clean(storage)
    return replace(report, seconds=time.monotonic() - started)


def _undo(storage: Storage, late: Late | None, options: Options, error: BaseException) -> None:
    """Undoes what a sync wrote that failed with an error."""
    try:
        options.still_ours()
    except AdventuresError:
        return  # what is there now may be another writer's; who writes next begins with what is published
    except (OSError, RuntimeError, ValueError) as second:
        error.add_note(f"and what was written was left, for who writes next: {second}")
        return
    try:
        if late is not None:
            late.undo()
        storage.undo()
    except (OSError, RuntimeError, ValueError) as second:
        # A full disk takes no undoing either. Readers see what is published; the next sync undoes the rest.
        error.add_note(f"and what was written could not be undone: {second}")


def _fill(draft: Draft, plan: Plan, writer: Writer, picker: Picker, digester: Digester, options: Options) -> None:
    """Makes the draft's passages what the plan says, and checks that they are."""
    published = writer.known.published
    left = picker.left
    if plan.changes:
        with _bar(left, shown=options.progress) as bar:
            if options.runner is not None:
                left = options.runner.write(draft, plan, digester, writer, bar)
            else:
                batches = _checked(writer.batches(picker, bar), options.still_ours)
                _write(draft, writer, batches, anew=plan.rewrite)
                left = picker.left
        options.still_ours()
        if not plan.rewrite:
            draft.delete(plan.outdated)
    kept = 0 if plan.rewrite or published is None else published.rows - len(plan.outdated)
    _reconcile(draft, plan, left, kept + writer.work.passages)


def _reason(published: Snapshot | None, described: dict[str, Any], schema: pa.Schema) -> str:
    """Why the change feed is of no use, before it was looked for; empty where it may be."""
    if published is None:
        return "the library is empty"
    source = published.source
    if described["text"] is None:
        return "the text is computed by Python, which may give another one each time"
    for key in ("table_id", "id", "text", "metadata", "where", "max_tokens", "overlap"):
        if source.get(key) != described[key]:
            return f"{key} is another than at the last sync"
    return "" if _plan.same_columns(published.schema, schema) else "columns changed their types"


def _drift(published: Snapshot | None, source: RowSource, *, follow_types: bool) -> tuple[list[str], list[str]]:
    """Returns the columns that the table has got since the last sync, and those that it lost.

    Raises:
        ValueError: A column that the library keeps or embeds changed its type.
    """
    before: dict[str, str] | None = None if published is None else published.source.get("columns")
    if published is None or before is None or not published.rows:
        return [], []
    now = source.columns
    if not follow_types:
        for name in source.used:
            if before.get(name, "null") not in ("null", now[name]):
                raise ValueError(
                    f"the column {name!r} was {before[name]} in version {published.source['version']}, and is"
                    f" {now[name]} in version {source.table.version()}; sync with follow_types=True to take it so"
                )
    return [name for name in now if name not in before], [name for name in before if name not in now]


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


def _check_late(storage: Storage, published: Snapshot | None, options: Options) -> None:
    """Lets no sync leave token vectors behind that nobody gave up."""
    made = None if published is None else published.source.get(_late.MADE)
    if made is not None and options.late is None and not options.drop:
        raise ValueError(
            f"{storage} keeps token vectors made by {made['name']}, which would fall behind: open it with"
            " colbert=ColBERT(…), or sync with drop_colbert=True to do without them"
        )


def _same_late(published: Snapshot, described: dict[str, Any], late: Late | None) -> bool:
    same = published.source.get(_late.MADE) == described[_late.MADE]
    return same and (late is None or late.is_there(published))


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
        method="none",
    )


def _bar(total: int, *, shown: bool) -> tqdm[Any]:
    return tqdm(total=total, desc="sync", unit=" rows", disable=not shown, dynamic_ncols=True, smoothing=0.1)


def _late_bar(*, shown: bool) -> Callable[[int], Any]:
    """What shows how many passages have their token vectors."""

    @contextmanager
    def bar(total: int) -> Iterator[Callable[[int], object]]:
        options: dict[str, Any] = {"disable": not shown, "dynamic_ncols": True, "smoothing": 0.1}
        with tqdm(total=total, desc="colbert", unit=" passages", **options) as shows:
            yield shows.update

    return bar


def _checked(batches: Iterator[pa.RecordBatch], still_ours: Callable[[], None]) -> Iterator[pa.RecordBatch]:
    """The stream, which must still be ours to write at its end: what follows is the commit."""
    yield from batches
    still_ours()


def _write(draft: Draft, writer: Writer, batches: Iterator[pa.RecordBatch], *, anew: bool) -> None:
    """Streams passages into the draft."""
    work = writer.work
    reader = pa.RecordBatchReader.from_batches(writer.schema, writer.guarded(batches))
    # LanceDB pulls the stream from threads of its own, where no signal arrives: the main thread waits here, and stops
    # the stream before it lets go, so that no commit can follow an interrupt.
    with ThreadPoolExecutor(1, "adventures-sync") as pool:
        future = pool.submit(draft.write, reader, anew=anew)
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
                raise AdventuresError(f"cannot write {draft}: {_LINE.sub('', str(error))}") from error
            raise


def _reconcile(draft: Draft, plan: Plan, left: int, expected: int) -> None:
    skipped = sum(skip.count for skip in plan.skipped)
    if left or plan.read != plan.written + skipped:
        raise AdventuresError(
            f"rows were not found again in the second reading of the Delta table, {left} of {len(plan.census)} at "
            "least: its files changed meanwhile, or the text expression gives another text each time"
        )
    found = draft.count()
    if found != expected:
        raise AdventuresError(f"the library has {found} passages after writing, not {expected}; nothing was published")
