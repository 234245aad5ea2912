"""Retrieval quality: the field's measures, and exact search over a test set with an embedder.

The measures are those of trec_eval, the program behind published figures: documents are ranked by score in single
precision, and equal scores by document id, the greater first; gain is the grade itself (not 2^grade - 1).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from adventures import Embedder
    from adventures.dataset import Dataset

RECALL_AT = (1, 5, 10, 100)


@dataclass(frozen=True, slots=True)
class Measures:
    """Retrieval measures, of one query or the mean over several, each between 0 and 1.

    Attributes:
        ndcg: nDCG of the first 10.
        map: Average precision over the whole ranking.
        mrr: Reciprocal rank of the first relevant document in the whole ranking.
        recall: k → share of the relevant documents that are among the first k.
    """

    ndcg: float
    map: float
    mrr: float
    recall: dict[int, float]


@dataclass(frozen=True, slots=True)
class Scores:
    """How well an embedder finds what people judged relevant.

    Attributes:
        dataset: Its name.
        model: The embedder's name.
        mean: The measures, averaged over `queries` queries.
        queries: Queries with at least one relevant document.
        unanswerable: Queries without one, which no ranking can serve: they are not part of the mean.
        documents: Documents searched.
        missing: Relevant judgements of documents that the data set lacks; they count as not found.
        truncated: Documents longer than the model's window, which were embedded by their beginning.
        depth: How far the rankings go.
        seconds: Time to embed and search.
    """

    dataset: str
    model: str
    mean: Measures
    queries: int
    unanswerable: int
    documents: int
    missing: int
    truncated: int
    depth: int
    seconds: float


def measure(ranking: Sequence[str], judgements: Mapping[str, int], *, recall_at: Sequence[int] = RECALL_AT) -> Measures:
    """Returns the measures of one query's ranking, best document first; all 0 where nothing is relevant."""
    relevant = {document for document, grade in judgements.items() if grade > 0}
    if not relevant:
        return Measures(0.0, 0.0, 0.0, dict.fromkeys(recall_at, 0.0))
    found = [position for position, document in enumerate(ranking, start=1) if document in relevant]
    gained = _discounted([max(judgements.get(document, 0), 0) for document in ranking[:10]])
    ideal = _discounted(sorted((judgements[document] for document in relevant), reverse=True)[:10])
    return Measures(
        ndcg=gained / ideal,
        map=sum(count / position for count, position in enumerate(found, start=1)) / len(relevant),
        mrr=1 / found[0] if found else 0.0,
        recall={k: sum(position <= k for position in found) / len(relevant) for k in recall_at},
    )


def mean(measures: Sequence[Measures]) -> Measures:
    """Returns the mean of several queries' measures.

    Raises:
        ValueError: There are none.
    """
    if not measures:
        raise ValueError("no query has a relevant document, so there is nothing to average")
    count = len(measures)
    return Measures(
        ndcg=math.fsum(each.ndcg for each in measures) / count,
        map=math.fsum(each.map for each in measures) / count,
        mrr=math.fsum(each.mrr for each in measures) / count,
        recall={k: math.fsum(each.recall[k] for each in measures) / count for k in measures[0].recall},
    )


def evaluate(
    dataset: Dataset,
    embedder: Embedder,
    *,
    depth: int = 1000,
    chunk: int = 4096,
    ignore_same_id: bool = True,
    progress: Callable[[int], object] | None = None,
) -> Scores:
    """Embeds a test set, searches it exactly for every query, and returns the measures.

    Args:
        dataset: The test set.
        embedder: An `adventures.Embedder`.
        depth: How many documents to rank for each query.
        chunk: Documents embedded at a time; memory is `depth + chunk` scores for each query and the documents' texts.
        ignore_same_id: Whether a document with the query's own id is left out, as BEIR does (in ArguAna, a query is one
            of the documents).
        progress: Called with the number of documents done, after each chunk.

    Raises:
        ValueError: The data set is empty, no query has a relevant document, or `depth` or `chunk` is not positive.
    """
    for name, value in (("depth", depth), ("chunk", chunk)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    answerable = [query for query, grades in dataset.judgements.items() if max(grades.values(), default=0) > 0]
    if not answerable or not dataset.documents:
        raise ValueError(
            f"{dataset.name} has {len(dataset.documents)} documents and {len(answerable)} queries to answer"
        )
    start = time.perf_counter()
    # Where a query may lose the document of its own id, one more is kept in its place.
    kept = depth + 1 if ignore_same_id else depth
    rankings, truncated = _search(dataset, answerable, embedder, depth=kept, chunk=chunk, progress=progress)
    seconds = time.perf_counter() - start
    results = []
    for query, ranking in zip(answerable, rankings, strict=True):
        own = query if ignore_same_id else None
        documents = [document for document in ranking if document != own][:depth]
        results.append(measure(documents, dataset.judgements[query]))
    return Scores(
        dataset=dataset.name,
        model=embedder.name,
        mean=mean(results),
        queries=len(answerable),
        unanswerable=len(dataset.judgements) - len(answerable),
        documents=len(dataset.documents),
        missing=sum(
            grade > 0 and document not in dataset.documents
            for query in answerable
            for document, grade in dataset.judgements[query].items()
        ),
        truncated=truncated,
        depth=depth,
        seconds=seconds,
    )


def _search(
    dataset: Dataset,
    queries: Sequence[str],
    embedder: Embedder,
    *,
    depth: int,
    chunk: int,
    progress: Callable[[int], object] | None,
) -> tuple[list[list[str]], int]:
    """Returns for each query the best documents, best first, and how many documents were cut."""
    questions = embedder.encode([dataset.queries[query] for query in queries], "query").vectors
    # With the ids in falling order, the rule for ties is to prefer what comes first, which a stable sort does.
    ids = sorted(dataset.documents, reverse=True)
    scores = np.empty((len(queries), 0), dtype=np.float32)
    positions = np.empty((len(queries), 0), dtype=np.int64)
    truncated = 0
    for begin in range(0, len(ids), chunk):
        block = ids[begin : begin + chunk]
        encoded = embedder.encode([dataset.documents[document] for document in block], "passage")
        truncated += len(encoded.truncated)
        scores = np.hstack([scores, questions @ encoded.vectors.T])
        here = np.broadcast_to(np.arange(begin, begin + len(block)), (len(queries), len(block)))
        positions = np.hstack([positions, here])
        order = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
        scores = np.take_along_axis(scores, order, axis=1)
        positions = np.take_along_axis(positions, order, axis=1)
        if progress:
            progress(len(block))
    return [[ids[position] for position in row] for row in positions], truncated


def _discounted(gains: Sequence[int]) -> float:
    return math.fsum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))
