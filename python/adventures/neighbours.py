"""Passages with those before and after them in their row, joined to one text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adventures.search import Hit
    from adventures.storage import Snapshot

FURTHEST = 100
"""The most neighbours on each side: of 256 tokens each, a book's chapter, and more than generators read."""


def check(expand: object) -> None:
    """Raises ValueError where a number of neighbours is none."""
    if isinstance(expand, bool) or not isinstance(expand, int) or not 0 <= expand <= FURTHEST:
        raise ValueError(f"expand must be a whole number from 0 to {FURTHEST}, not {expand!r}")


@dataclass(slots=True)
class _Stretch:
    """Passages of a row, from one to another, and the best hit among them."""

    hit: Hit
    row_id: str
    first: int
    last: int

    def touches(self, other: _Stretch) -> bool:
        return self.row_id == other.row_id and self.first <= other.last + 1 and other.first <= self.last + 1


def expanded(snapshot: Snapshot, hits: Sequence[Hit], n: int) -> list[Hit]:
    """Returns hits with up to `n` passages of their row before them and after, in the order of the hits.

    Hits of a row whose stretches meet become one, with the id, the scores and the place of the best of them.
    """
    stretches: list[_Stretch] = []
    place = {hit.id: at for at, hit in enumerate(hits)}
    for hit in hits:
        row_id, _, ordinal = hit.id.rpartition("#")
        wide = _Stretch(hit, row_id, max(int(ordinal) - n, 0), int(ordinal) + n)
        # It may close the gap between stretches that did not meet before.
        for other in [one for one in stretches if one.touches(wide)]:
            wide.hit = min(wide.hit, other.hit, key=lambda one: place[one.id])
            wide.first, wide.last = min(wide.first, other.first), max(wide.last, other.last)
            stretches.remove(other)
        stretches.append(wide)
    stretches.sort(key=lambda one: place[one.hit.id])
    passages = _passages(snapshot, stretches)
    return [_joined(one, passages[one.row_id]) for one in stretches]


def _joined(stretch: _Stretch, passages: dict[int, tuple[int | None, str]]) -> Hit:
    covered = [ordinal for ordinal in range(stretch.first, stretch.last + 1) if ordinal in passages]
    text = passages[covered[0]][1]
    for ordinal in covered[1:]:
        overlap, after = passages[ordinal]
        # What was between two passages was white space: that is all a library knows of it.
        text += "\n" + after if overlap is None or overlap < 0 else after[overlap:]
    return replace(stretch.hit, text=text, passages=tuple(covered))


def _passages(snapshot: Snapshot, stretches: Sequence[_Stretch]) -> dict[str, dict[int, tuple[int | None, str]]]:
    """All passages of the stretches: row → ordinal → overlap with the one before, and text."""
    passages: dict[str, dict[int, tuple[int | None, str]]] = {}
    if stretches:
        wanted = [(one.row_id, one.first, one.last) for one in stretches]
        for row_id, ordinal, overlap, text in snapshot.texts(wanted):
            passages.setdefault(row_id, {})[ordinal] = overlap, text
    return passages
