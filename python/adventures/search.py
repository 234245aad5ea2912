"""Search in a published library: dense, or dense and full text fused."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from lancedb.query import MatchQuery

from adventures.columns import is_json
from adventures.filters import condition

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from adventures.index import ColbertIndex
    from adventures.ranking import Scorer
    from adventures.store import Snapshot

# How much of a hybrid search's score is the similarity's; the rest is the words'.
_MEANING = 0.5
# How deep each leg looks: a passage that is good in both may be far down in each.
_DEPTH = 50
# What an index is asked for: the partitions it looks into, and how many candidates per hit are compared exactly.
_PROBES = 64
_REFINE = 10
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
    if not hits:
        return []
    scores = np.asarray(scorer.scores(query, [hit.text for hit in hits]), np.float64)
    if scores.shape != (len(hits),) or not np.isfinite(scores).all():
        raise ValueError(
            f"the reranker must give {len(hits)} finite scores, not an array of shape {scores.shape}: {scores}"
        )
    best = np.argsort(-scores, kind="stable")[:k]
    return [replace(hits[at], score=float(scores[at])) for at in best]


def _leg(snapshot: Snapshot, query: Query, limit: int) -> list[dict[str, Any]]:
    return _nearest(snapshot, query, limit) if query.tokens is None else _by_tokens(snapshot, query, limit)


def _by_tokens(snapshot: Snapshot, query: Query, limit: int) -> list[dict[str, Any]]:
    """The passages whose tokens fit those of a query best; a filter is asked of the table first."""
    assert query.tokens is not None
    tokens, index = query.tokens
    filtered = condition(query.where, snapshot.table.schema)
    among: list[str] | None = None
    if filtered is not None:
        plain: Any = snapshot.table.search()
        among = plain.where(filtered).select(["id"]).to_arrow().column("id").to_pylist()
        if not among:
            return []
    scores = {hit.id: hit.score for hit in index.search(tokens, limit, among)}
    if not scores:
        return []
    wanted = ", ".join("'" + id_.replace("'", "''") + "'" for id_ in scores)
    search: Any = snapshot.table.search()
    rows = _with_similarity(search.where(f"id IN ({wanted})").to_arrow(), query)
    for row in rows:
        row["maxsim"] = scores[row["id"]]
    return sorted(rows, key=lambda row: (-row["maxsim"], row["id"]))


def _nearest(snapshot: Snapshot, query: Query, limit: int) -> list[dict[str, Any]]:
    search: Any = snapshot.table.search(query.vector, vector_column_name="vector", query_type="vector")
    search = search.distance_type("cosine").limit(limit)
    if any("vector" in index.columns for index in snapshot.table.list_indices()):
        search = search.nprobes(_PROBES).refine_factor(_REFINE)
    return sorted(_rows(search, snapshot, query), key=lambda row: (-row["similarity"], row["id"]))


def _matching(snapshot: Snapshot, query: Query, limit: int) -> list[dict[str, Any]]:
    if not any("text" in index.columns for index in snapshot.table.list_indices()):
        return []
    # A match query is only words: quotes and operators in it are not a syntax that could be wrong.
    words: Any = MatchQuery
    search = snapshot.table.search(words(query.text, "text"), query_type="fts").limit(limit)
    return sorted(_rows(search, snapshot, query), key=lambda row: (-row["_score"], row["id"]))


def _rows(search: Any, snapshot: Snapshot, query: Query) -> list[dict[str, Any]]:
    filtered = condition(query.where, snapshot.table.schema)
    if filtered is not None:
        search = search.where(filtered)
    return _with_similarity(search.to_arrow(), query)


def _with_similarity(table: Any, query: Query) -> list[dict[str, Any]]:
    if not table.num_rows:
        return []
    vectors = np.asarray(table.column("vector").combine_chunks().flatten()).reshape(table.num_rows, -1)
    # The same arithmetic for all legs; LanceDB's distance only orders.
    similarities = vectors @ query.vector
    rows: list[dict[str, Any]] = table.drop_columns(["vector"]).to_pylist()
    for row, similarity, vector in zip(rows, similarities, vectors, strict=True):
        row["similarity"] = float(similarity)
        row["vector"] = vector
    return rows


def _hit(row: dict[str, Any], snapshot: Snapshot, score: float) -> Hit:
    source = Source(snapshot.source["table"], snapshot.source["version"], row["key"])
    metadata = row.get("metadata") or {}
    if metadata:
        kind = snapshot.table.schema.field("metadata").type
        for name in metadata:
            if metadata[name] is not None and is_json(kind.field(name)):
                metadata[name] = json.loads(metadata[name])
    return Hit(row["id"], row["text"], score, metadata, source, row["similarity"], (row["ordinal"],))
