"""Passages with those before and after them in their row, joined to one text."""

from __future__ import annotations

import itertools
import unicodedata
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adventures.search import Hit
    from adventures.storage import Snapshot

FURTHEST = 100
"""The most neighbours on each side: of 256 tokens each, a book's chapter, and more than generators read."""
# So many equal letters in a row are no chance, wherever in a word they begin.
_LONG = 16


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
    texts = _texts(snapshot, stretches)
    overlap = bool(snapshot.source.get("overlap"))
    return [_joined(one, texts[one.row_id], overlap=overlap) for one in stretches]


def _joined(stretch: _Stretch, texts: dict[int, str], *, overlap: bool) -> Hit:
    covered = [ordinal for ordinal in range(stretch.first, stretch.last + 1) if ordinal in texts]
    text = texts[covered[0]]
    # What is shared with a passage cannot reach back beyond it, however often the text repeats itself.
    for before, after in itertools.pairwise(covered):
        text += _rest(texts[before], texts[after], overlap=overlap)
    return replace(stretch.hit, text=text, passages=tuple(covered))


def _texts(snapshot: Snapshot, stretches: Sequence[_Stretch]) -> dict[str, dict[int, str]]:
    """The texts of all passages of the stretches: row → ordinal → text."""
    texts: dict[str, dict[int, str]] = {}
    if not stretches:
        return texts
    for row_id, ordinal, text in snapshot.texts([(one.row_id, one.first, one.last) for one in stretches]):
        texts.setdefault(row_id, {})[ordinal] = text
    return texts


def _rest(before: str, after: str, *, overlap: bool) -> str:
    """What to write after a passage so that the next one follows: that without what both have, or on a new line.

    Passages are pieces of a text from which the white space around them is gone, and neighbours share whole words.
    """
    if overlap:
        at = max(len(before) - len(after), 0)
        while (at := before.find(after[0], at)) >= 0:
            shared = len(before) - at
            if after.startswith(before[at:]) and (shared >= _LONG or _is_whole(before, after, at, shared)):
                return after[shared:]
            at += 1
    between = "" if _is_wide(before[-1]) and _is_wide(after[0]) else "\n"
    return between + after


def _is_whole(before: str, after: str, at: int, shared: int) -> bool:
    """Whether what two passages share begins and ends between words."""
    begins = at == 0 or not _within(before[at - 1], before[at])
    return begins and (shared == len(after) or not _within(after[shared - 1], after[shared]))


def _within(left: str, right: str) -> bool:
    """Whether two letters beside each other are of one word."""
    return left.isalnum() and right.isalnum() and not (_is_wide(left) or _is_wide(right))


def _is_wide(letter: str) -> bool:
    # Chinese and Japanese write no spaces between words.
    return unicodedata.east_asian_width(letter) in ("W", "F")
