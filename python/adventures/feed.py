"""A Delta table's change data feed: the keys of the rows that its commits touched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from adventures.delta import Keys

if TYPE_CHECKING:
    from adventures.delta import RowSource

_PROPERTY = "delta.enableChangeDataFeed"
# Commits that other writers made of a table's log: one more or less while it is read.
_READINGS = 3


class NoFeedError(Exception):
    """A feed cannot say what changed; the message says why."""


def touched(source: RowSource, since: int, limit: int) -> Keys:
    """Returns the keys of all rows that commits touched after version `since`, up to the one that the source reads.

    Whether such a row is there, and as what, the table itself says: of the feed's records only the keys are taken. So
    where a commit has no records, and is told as whole files that went and came, the keys are more than needed, never
    fewer.

    Raises:
        NoFeedError: There is no feed, it does not reach back, or it touches more than `limit` rows.
    """
    table, version = source.table, source.table.version()
    if since >= version:
        raise NoFeedError(f"version {version} is not after version {since}, which the library has")
    if table.metadata().configuration.get(_PROPERTY) != "true":
        raise NoFeedError("the table has no change data feed")
    _check_commits(table, since)
    quoted = ['"' + name.replace('"', '""') + '"' for name in source.id]
    ids: set[str] = set()
    values: list[pa.Array[Any]] = [pa.array([], source.key_type.field(at).type) for at in range(len(source.id))]
    try:
        stream = table.load_cdf(since + 1, version, columns=quoted)
        for batch in pa.RecordBatchReader.from_stream(stream):
            keys, columns = source.keys_of(batch)
            ids.update(key for key in keys if key is not None)
            if len(ids) > limit:
                raise NoFeedError(f"the feed touches more than {limit:,} rows")
            values = [pc.unique(pa.concat_arrays(pair)) for pair in zip(values, columns, strict=True)]
    except (DeltaError, pa.ArrowException, OSError) as error:
        # A commit's files were removed by a vacuum, or the table has features that the feed's reader has not.
        raise NoFeedError(f"the feed cannot be read from version {since + 1} on: {_first_line(error)}") from error
    return Keys(frozenset(ids), tuple(values))


def _check_commits(table: DeltaTable, since: int) -> None:
    version = table.version()
    for number, operation, parameters in _history(table, since):
        if not since < number <= version:
            continue
        if "RESTORE" in operation or "REPLACE" in operation or "CLONE" in operation:
            raise NoFeedError(f"version {number} is a {operation.lower()}")
        if operation == "WRITE" and parameters.get("mode") == "Overwrite" and not parameters.get("predicate"):
            raise NoFeedError(f"version {number} overwrote the table")
        if "TBLPROPERTIES" in operation:
            raise NoFeedError(f"version {number} changed the table's properties")


def _history(table: DeltaTable, since: int) -> list[tuple[int, str, dict[str, Any]]]:
    """The commits after `since`: number, operation and parameters."""
    for _ in range(_READINGS):
        # delta-rs counts commits back from the version that is open, and yet reads those after it too.
        newest = DeltaTable(table.table_uri, storage_options=table._storage_options)
        count = newest.version() - since
        commits = newest.history(count)
        if DeltaTable(table.table_uri, storage_options=table._storage_options).version() == newest.version():
            if len(commits) < count:
                raise NoFeedError(f"the table's log no longer reaches back to version {since + 1}")
            return [
                (
                    int(commit["version"]),
                    str(commit.get("operation", "")),
                    dict(commit.get("operationParameters") or {}),
                )
                for commit in commits
            ]
    raise NoFeedError("the table's log grows faster than it can be read")


def _first_line(error: BaseException) -> str:
    line = str(error).splitlines()[0] if str(error) else type(error).__name__
    return line if len(line) <= 200 else line[:200] + " …"
