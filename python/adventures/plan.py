"""What a sync will do: which rows are new, changed and gone, told by the change feed or by comparing all."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from adventures.census import Census, Change, Difference, Skip, Stock, take
from adventures.feed import NoFeedError, touched

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from adventures.census import Digester
    from adventures.delta import Keys, RowSource
    from adventures.storage import Snapshot

# A feed's keys are in memory, as texts; and of many, in number or as a share, looking up costs more than comparing all.
_TOUCHED = 200_000
_TOUCHED_SHARE = 0.2
_EXAMPLES = 5


class Count(Protocol):
    """What takes the census of a source: `first` of one whose library has nothing yet."""

    def __call__(self, source: RowSource, digester: Digester, *, first: bool = False) -> Census:
        """Returns the census."""
        ...


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done about which rows.

    Attributes:
        method: `"feed"` where only the rows were read that the change feed names, `"full"` where all were.
        reason: Why all were read; empty where not.
        source: The rows that were read.
        census: What they are.
        stock: What the library has of them.
        difference: How the two differ.
        outdated: Where the storage has the passages that have to go.
        read: Rows of the whole Delta table.
        written: Rows that the library will have of them.
        skipped: Rows that it will not have, by reason.
        rewrite: Whether all passages are written, in place of those that are there.
    """

    method: Literal["feed", "full"]
    reason: str
    source: RowSource
    census: Census
    stock: Stock
    difference: Difference
    outdated: NDArray[np.uint64]
    read: int
    written: int
    skipped: list[Skip]
    rewrite: bool

    @property
    def fresh(self) -> int:
        """How many rows have to be written."""
        return len(self.census) - self.difference.count(Change.NONE)

    @property
    def changes(self) -> bool:
        """Whether the library's passages will be others than before."""
        return bool(self.fresh or len(self.difference.gone) or self.rewrite)

    @property
    def wanted(self) -> NDArray[np.bool_]:
        """Which rows of the census have to be written."""
        return np.broadcast_to(True, len(self.census)) if self.rewrite else self.difference.changes != Change.NONE


def make(
    source: RowSource,
    digester: Digester,
    published: Snapshot | None,
    schema: pa.Schema,
    *,
    reason: str,
    rewrite: float | None,
    count: Count = take,
) -> Plan:
    """Returns the plan of a sync.

    Args:
        source: The Delta table.
        digester: What tells rows and texts apart.
        published: What the library has.
        schema: What its table will be.
        reason: Why all rows have to be compared; empty where the change feed is enough, if there is one.
        rewrite: Past which share of the passages its table is written anew; None for never.
        count: What takes the census of a source.

    Raises:
        ValueError: The Delta table cannot be read.
    """
    if published is not None and not reason:
        try:
            return _by_feed(source, digester, published, count)
        except NoFeedError as error:
            reason = str(error)
    census = count(source, digester, first=published is None)
    stock = Stock.of(published)
    difference = Difference.between(stock, census)
    outdated = _outdated(stock, difference)
    fresh = len(census) - difference.count(Change.NONE)
    anew = published is None or (
        rewrite is not None
        and (not same_columns(published.schema, schema) or len(outdated) + fresh > rewrite * published.rows)
    )
    return Plan(
        method="full",
        reason=reason,
        source=source,
        census=census,
        stock=stock,
        difference=difference,
        outdated=outdated,
        read=census.read,
        written=len(census),
        skipped=census.skipped,
        rewrite=anew,
    )


def same_columns(left: pa.Schema, right: pa.Schema) -> bool:
    """Whether two tables have the same columns."""
    return bool(
        left.names == right.names and all(left.field(name).type == right.field(name).type for name in left.names)
    )


def _by_feed(source: RowSource, digester: Digester, published: Snapshot, count: Count) -> Plan:
    before = published.source
    keys = touched(source, before["version"], min(_TOUCHED, int(_TOUCHED_SHARE * published.rows)))
    some = source.only(keys)
    census = count(some, digester)
    stock = Stock.of(published, only=keys.ids)
    difference = Difference.between(stock, census)
    read, nulls = _count(source)
    skipped = _skipped(some, keys, digester, census, before, nulls)
    written = before["written"] + difference.count(Change.NEW) - len(difference.gone)
    found = written + sum(skip.count for skip in skipped)
    if found != read:
        raise NoFeedError(f"the feed leads to {found:,} rows, and the table has {read:,}")
    return Plan(
        method="feed",
        reason="",
        source=some,
        census=census,
        stock=stock,
        difference=difference,
        outdated=_outdated(stock, difference),
        read=read,
        written=written,
        skipped=skipped,
        rewrite=False,
    )


def _outdated(stock: Stock, difference: Difference) -> NDArray[np.uint64]:
    changed = np.isin(difference.changes, (Change.METADATA, Change.TEXT))
    return stock.addresses_of(np.r_[difference.gone, difference.stocked[changed]].astype(np.int64))


def _count(source: RowSource) -> tuple[int, int]:
    """How many rows the table has, and how many of them have no key."""
    read = nulls = 0
    for batch in source.key_batches():
        read += batch.num_rows
        if any(column.null_count for column in batch.columns):
            keyless: Any = np.zeros(batch.num_rows, bool)
            for column in batch.columns:
                keyless |= column.is_null().to_numpy(zero_copy_only=False)
            nulls += int(np.count_nonzero(keyless))
    return read, nulls


def _skipped(
    some: RowSource, keys: Keys, digester: Digester, census: Census, before: dict[str, Any], nulls: int
) -> list[Skip]:
    """What is left out of the whole table, from what was left out before and what the touched rows say."""
    then = {skip["reason"]: Skip(**skip) for skip in before["skipped"]}
    examples = {reason: [id_ for id_ in skip.examples if id_ not in keys.ids] for reason, skip in then.items()}
    counts = Counter({reason: skip.count for reason, skip in then.items() if reason != "null id"})
    if counts:
        # Which of them were touched, only the old version says.
        try:
            old = Census.of(some.at(before["version"]), digester)
        except (ValueError, OSError) as error:
            raise NoFeedError(f"version {before['version']} cannot be read any more: {error}") from error
        counts.subtract({skip.reason: skip.count for skip in old.skipped})
    for skip in census.skipped:
        counts[skip.reason] += skip.count
        examples[skip.reason] = list(dict.fromkeys([*skip.examples, *examples.get(skip.reason, [])]))[:_EXAMPLES]
    counts["null id"] = nulls
    return [Skip(reason, count, examples.get(reason, [])) for reason, count in sorted(counts.items()) if count]
