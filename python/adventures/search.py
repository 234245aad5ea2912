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
# Passages of equal text come in any order; with a few to spare, the order of their ids decides which are returned.
_SPARE = 16


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
    depth = k + _SPARE if query.mmr is None else max(_DEPTH, 5 * k)
    score = "similarity" if query.tokens is None else "maxsim"
    return [_hit(row, snapshot, row[score]) for row in _chosen(_leg(snapshot, query, depth), query, k, score)]


def hybrid(snapshot: Snapshot, query: Query, k: int) -> list[Hit]:
    """Returns the `k` best passages by fusion of the nearest ones and the best word matches."""
    near, matching = _leg(snapshot, query, depth(k)), _matching(snapshot, query, depth(k))
    rows = {row["id"]: row for row in (*matching, *near)}
    score = "similarity" if query.tokens is None else "maxsim"
    # What is not near by its tokens counts as the last of what is.
    scores = fused(
        [(row["id"], row[score]) for row in near],
        [(row["id"], row.get(score, -math.inf), row["_score"]) for row in matching],
    )
    best = [{**rows[id_], "fused": scores[id_]} for id_ in sorted(scores, key=lambda id_: (-scores[id_], id_))]
    return [_hit(row, snapshot, row["fused"]) for row in _chosen(best, query, k, "fused")]


def fused(
    near: Sequence[tuple[str, float]],
    matching: Sequence[tuple[str, float, float]],
    *,
    meaning: float = _MEANING,
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
    """
    most, least = (near[0][1], near[-1][1]) if near else (0.0, 0.0)
    spread = most - least if most > least else 1.0
    best = max((score for _, _, score in matching), default=0.0) or 1.0
    scores = {id_: meaning * (1.0 if most == least else (similarity - least) / spread) for id_, similarity in near}
    for id_, similarity, score in matching:
        known = scores.get(id_, meaning * min(max((similarity - least) / spread, 0.0), 1.0))
        scores[id_] = known + (1 - meaning) * score / best
    return scores


def _chosen(rows: list[dict[str, Any]], query: Query, k: int, score: str) -> list[dict[str, Any]]:
    """The `k` first of rows in the order of a score; or those of maximal marginal relevance, in the order of choice.

    Carbonell and Goldstein 1998: each next one is as relevant, and as unlike all before it, as `query.mmr` weighs them.
    """
    if query.mmr is None or not rows:
        return rows[:k]
    vectors = np.stack([row["vector"] for row in rows])
    # Fused scores are small numbers; of the best one's share, both kinds are comparable with a cosine.
    relevance = query.mmr * np.array([row[score] for row in rows]) / max(abs(rows[0][score]), 1e-9)
    alike = np.zeros(len(rows), np.float32)
    chosen: list[int] = []
    left = np.full(len(rows), True)
    while len(chosen) < min(k, len(rows)):
        worth = np.where(left, relevance - (1 - query.mmr) * alike, -np.inf)
        chosen.append(int(worth.argmax()))
        left[chosen[-1]] = False
        likeness = vectors @ vectors[chosen[-1]]
        alike = likeness if len(chosen) == 1 else np.maximum(alike, likeness)
    return [rows[at] for at in chosen]


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
        similarities = np.stack([row["vector"] for row in rows]) @ query.vector
        for row, similarity in zip(rows, similarities.tolist(), strict=True):
            row["similarity"] = similarity
    return rows


def _hit(row: dict[str, Any], snapshot: Snapshot, score: float) -> Hit:
    source = Source(snapshot.source["table"], snapshot.source["version"], row["key"])
    return Hit(row["id"], row["text"], score, row["metadata"], source, row["similarity"], (row["ordinal"],))
