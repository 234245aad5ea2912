"""Search in a published library: dense, or dense and full text fused."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from adventures.ranking import Scorer
    from adventures.storage import Snapshot

# Reciprocal rank fusion (Cormack, Clarke, Büttcher 2009). The paper's constant is 60; with MiniLM 10 is better where
# the legs agree, and where one of them is bad: nDCG@10 of NFCorpus 0.349 (60: 0.348; dense alone 0.318), recall@5 of
# the demo's questions 0.95 (60: 0.88; dense alone 0.98).
_RRF = 10
# How deep each leg looks: a passage at rank 40 of both beats one at rank 1 of one only.
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
        score: What the hits are ordered by: the cosine similarity, the sum of reciprocal ranks in a hybrid search, or
            what a reranker says.
        metadata: The kept columns of the row.
        source: Where it comes from.
        similarity: The cosine similarity of question and passage, in any search.
    """

    id: str
    text: str
    score: float
    metadata: dict[str, Any]
    source: Source
    similarity: float


@dataclass(frozen=True, slots=True)
class Query:
    """A question to a library: its text, its vector `(dim,)`, and which passages may answer."""

    text: str
    vector: NDArray[np.float32]
    where: Mapping[str, object] | None = None
    mmr: float | None = None


def dense(snapshot: Snapshot, query: Query, k: int) -> list[Hit]:
    """Returns the `k` passages nearest to a query by cosine, best first; of equals, the lower id."""
    depth = k + _SPARE if query.mmr is None else max(_DEPTH, 5 * k)
    rows = _nearest(snapshot, query, depth)
    return [_hit(row, snapshot, row["similarity"]) for row in _chosen(rows, query, k, "similarity")]


def hybrid(snapshot: Snapshot, query: Query, k: int) -> list[Hit]:
    """Returns the `k` best passages by reciprocal rank fusion of the nearest vectors and the best word matches."""
    rows: dict[str, dict[str, Any]] = {}
    scores: dict[str, float] = {}
    for leg in (_nearest(snapshot, query, depth(k)), _matching(snapshot, query, depth(k))):
        for rank, row in enumerate(leg, start=1):
            rows.setdefault(row["id"], row)
            scores[row["id"]] = scores.get(row["id"], 0.0) + 1 / (_RRF + rank)
    best = [{**rows[id_], "fused": scores[id_]} for id_ in sorted(scores, key=lambda id_: (-scores[id_], id_))]
    return [_hit(row, snapshot, row["fused"]) for row in _chosen(best, query, k, "fused")]


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
    if not hits:
        return []
    scores = np.asarray(scorer.scores(query, [hit.text for hit in hits]), np.float64)
    if scores.shape != (len(hits),) or not np.isfinite(scores).all():
        raise ValueError(
            f"the reranker must give {len(hits)} finite scores, not an array of shape {scores.shape}: {scores}"
        )
    best = np.argsort(-scores, kind="stable")[:k]
    return [replace(hits[at], score=float(scores[at])) for at in best]


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
    return Hit(row["id"], row["text"], score, row["metadata"], source, row["similarity"])
