"""Search in a published library: dense, or dense and full text fused."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from adventures import ranking
from adventures.snapshot import LanceSnapshot

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from adventures.index import ColbertIndex
    from adventures.ranking import Scorer
    from adventures.storage import Snapshot

# How much of a hybrid search's score is the similarity's; the rest is the words'.
_MEANING = 0.5
# How deep each leg looks: a passage that is good in both may be far down in each.
_DEPTH = 50
# Equally good passages come in any order; with a few to spare, the order of their ids decides which are returned.
_SPARE = 16
# Where more than that are alike, how much deeper a search looks each time, and how deep at most.
_DEEPER = 8
_DEEPEST = 10_000
# Of a larger cosine, two passages say the same.
_SAME = 0.98


@dataclass(frozen=True, slots=True)
class Source:
    """Where a passage comes from.

    Attributes:
        table: The Delta table.
        version: Its version that the library mirrors.
        row: The values of the id columns.
    """

    table: str
    version: int
    row: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage that was found.

    Attributes:
        id: The row's id, `#`, and which passage of the row it is, from 0 on.
        text: The passage.
        score: What the hits are ordered by: the cosine similarity, the sum of the best products of tokens in a search
            by ColBERT, from 0 to 1 how well meaning and words fit in a hybrid search, or what a reranker says.
        metadata: The kept columns of the row.
        source: Where it comes from.
        similarity: The cosine similarity of question and passage, in any search.
        passages: Which passages of the row the text is of, first to last: one, but where a search expands hits.
    """

    id: str
    text: str
    score: float
    metadata: dict[str, Any]
    source: Source
    similarity: float
    passages: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Query:
    """A question to a library.

    Attributes:
        text: The question.
        vector: Its vector `(dim,)`.
        where: Which passages may answer.
        mmr: How much relevance counts against being unlike the passages before.
        tokens: Its token vectors `(tokens, dim)`, with the index that is searched for them in place of the vectors.
    """

    text: str
    vector: NDArray[np.float32]
    where: Mapping[str, object] | None = None
    mmr: float | None = None
    tokens: tuple[NDArray[np.float32], ColbertIndex] | None = None


def nearest(snapshot: Snapshot, query: Query, k: int) -> list[Hit]:
    """Returns the `k` passages nearest to a query by cosine, or token by token; best first, of equals the lower id."""
    score = "similarity" if query.tokens is None else "maxsim"
    limit = k + _SPARE if query.mmr is None else depth(k)
    while True:
        rows = _leg(snapshot, query, limit)
        whole = len(rows) < limit or limit >= _DEEPEST
        if query.mmr is not None:
            chosen = _diverse(rows, query.mmr, k, score)
            whole = whole or not _repeats(chosen, query.mmr)
        else:
            chosen = rows[:k]
            whole = whole or rows[k - 1][score] > rows[-1][score]
        if whole:
            return [_hit(row, snapshot, row[score]) for row in chosen]
        limit = min(limit * _DEEPER, _DEEPEST)


def hybrid(snapshot: Snapshot, query: Query, k: int) -> list[Hit]:
    """Returns the `k` best passages by fusion of the nearest ones and the best word matches."""
    limit = depth(k)
    while True:
        near, matching = _leg(snapshot, query, limit), _matching(snapshot, query, limit)
        # However deep a search looks, scores are as if it looked no deeper.
        rows = _fused_rows(near, matching, "similarity" if query.tokens is None else "maxsim", depth(k))
        chosen = rows[:k] if query.mmr is None else _diverse(rows, query.mmr, k, "fused")
        whole = max(len(near), len(matching)) < limit or limit >= _DEEPEST
        if whole or query.mmr is None or not _repeats(chosen, query.mmr):
            return [_hit(row, snapshot, row["fused"]) for row in chosen]
        limit = min(limit * _DEEPER, _DEEPEST)


def _fused_rows(
    near: list[dict[str, Any]], matching: list[dict[str, Any]], score: str, band: int
) -> list[dict[str, Any]]:
    """The passages of both legs with their `fused` score, best first."""
    rows = {row["id"]: row for row in (*matching, *near)}
    # What is not near by its tokens counts as the last of what is.
    scores = fused(
        [(row["id"], row[score]) for row in near],
        [(row["id"], row.get(score, -math.inf), row["_score"]) for row in matching],
        band=band,
    )
    return [{**rows[id_], "fused": scores[id_]} for id_ in sorted(scores, key=lambda id_: (-scores[id_], id_))]


def fused(
    near: Sequence[tuple[str, float]],
    matching: Sequence[tuple[str, float, float]],
    *,
    meaning: float = _MEANING,
    band: int | None = None,
) -> dict[str, float]:
    """Returns a score from 0 to 1 for each passage of two legs: a share for its similarity, the rest for its words.

    Similarities count from that of the last of the nearest (0) to that of the first (1), so that models are treated
    alike whose cosines fill a wide and a narrow band; the words' scores, by the best of them. Better than reciprocal
    rank fusion (Cormack, Clarke, Büttcher 2009), as `tools/fusion.py` measures it: nDCG@10 of NFCorpus 0.355 (with
    k=10 0.350, k=60 0.348, dense alone 0.318), and recall@5 of the demo's questions, of which the words find little,
    0.98 (0.95, 0.88, 0.98).

    Args:
        near: Id and similarity of the nearest passages, best first.
        matching: Id, similarity and score of those that match the words, best first.
        meaning: The share of the similarity.
        band: How many of the nearest tell how wide a band similarities fill; those after them count as the last. By
            default all.
    """
    most, least = (near[0][1], near[:band][-1][1]) if near else (0.0, 0.0)
    spread = most - least if most > least else 1.0
    best = max((score for _, _, score in matching), default=0.0) or 1.0
    scores = {
        id_: meaning * (1.0 if similarity == most else max(similarity - least, 0.0) / spread)
        for id_, similarity in near
    }
    for id_, similarity, score in matching:
        known = scores.get(id_, meaning * min(max((similarity - least) / spread, 0.0), 1.0))
        scores[id_] = known + (1 - meaning) * score / best
    return scores


def _diverse(rows: list[dict[str, Any]], mmr: float, k: int, score: str) -> list[dict[str, Any]]:
    """The `k` rows of maximal marginal relevance, in the order of choice, with what each `repeats` of those before.

    Carbonell and Goldstein 1998: each next one is as relevant, and as unlike all before it, as `mmr` weighs them. A
    text that was chosen already comes again only where nothing else is left.
    """
    if not rows:
        return []
    vectors = np.stack([row["vector"] for row in rows])
    # Fused scores are small numbers; of the best one's share, both kinds are comparable with a cosine.
    relevance = mmr * np.array([row[score] for row in rows]) / max(abs(rows[0][score]), 1e-9)
    texts = np.unique([row["text"] for row in rows], return_inverse=True)[1]
    alike = np.zeros(len(rows), np.float32)
    again = np.zeros(len(rows), bool)
    chosen: list[dict[str, Any]] = []
    left = np.full(len(rows), True)
    while len(chosen) < min(k, len(rows)):
        among = left & ~again if (left & ~again).any() else left
        at = int(np.where(among, relevance - (1 - mmr) * alike, -np.inf).argmax())
        chosen.append({**rows[at], "repeats": 1.0 if again[at] else float(alike[at])})
        left[at] = False
        likeness = np.einsum("nd,d->n", vectors, vectors[at])
        alike = likeness if len(chosen) == 1 else np.maximum(alike, likeness)
        if mmr < 1:
            again |= texts == texts[at]
    return chosen


def _repeats(chosen: list[dict[str, Any]], mmr: float) -> bool:
    """Whether of what was chosen to be diverse, some says the same again: what lies deeper may be unlike."""
    return mmr < 1 and any(row["repeats"] > _SAME for row in chosen)


def depth(k: int) -> int:
    """Returns how many hits a reranker is shown to choose `k` of."""
    return max(_DEPTH, 5 * k)


def reranked(scorer: Scorer, query: str, hits: list[Hit], k: int) -> list[Hit]:
    """Returns the `k` hits that a reranker finds best; of equals, the one found first.

    Raises:
        ValueError: It does not give each hit a finite number.
    """
    return [replace(hits[at], score=score) for at, score in ranking.best(scorer, query, [hit.text for hit in hits], k)]


def _leg(snapshot: Snapshot, query: Query, limit: int) -> list[dict[str, Any]]:
    return _nearest(snapshot, query, limit) if query.tokens is None else _by_tokens(snapshot, query, limit)


def _by_tokens(snapshot: Snapshot, query: Query, limit: int) -> list[dict[str, Any]]:
    """The passages whose tokens fit those of a query best; a filter is asked of the table first."""
    assert query.tokens is not None
    assert isinstance(snapshot, LanceSnapshot)
    tokens, index = query.tokens
    among = snapshot.ids(query.where)
    if among is not None and not among:
        return []
    scores = {hit.id: hit.score for hit in index.search(tokens, limit, among)}
    if not scores:
        return []
    rows = _compared(snapshot.named(scores), query)
    for row in rows:
        row["maxsim"] = scores[row["id"]]
    return sorted(rows, key=lambda row: (-row["maxsim"], row["id"]))


def _nearest(snapshot: Snapshot, query: Query, limit: int) -> list[dict[str, Any]]:
    rows = _compared(snapshot.nearest(query.vector, query.where, limit), query)
    return sorted(rows, key=lambda row: (-row["similarity"], row["id"]))


def _matching(snapshot: Snapshot, query: Query, limit: int) -> list[dict[str, Any]]:
    rows = _compared(snapshot.matching(query.text, query.where, limit), query)
    return sorted(rows, key=lambda row: (-row["_score"], row["id"]))


def _compared(rows: list[dict[str, Any]], query: Query) -> list[dict[str, Any]]:
    """Passages with their similarity to a query: the same arithmetic for both legs, whatever ordered them."""
    if rows:
        # Not `@`: it adds up some rows in another order than others, so that equal vectors were not equally near.
        similarities = np.einsum("nd,d->n", np.stack([row["vector"] for row in rows]), query.vector)
        for row, similarity in zip(rows, similarities.tolist(), strict=True):
            row["similarity"] = similarity
    return rows


def _hit(row: dict[str, Any], snapshot: Snapshot, score: float) -> Hit:
    source = Source(snapshot.source["table"], snapshot.source["version"], row["key"])
    return Hit(row["id"], row["text"], score, row["metadata"], source, row["similarity"], (row["ordinal"],))
