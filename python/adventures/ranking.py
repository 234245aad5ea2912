"""What a reranker answers: documents in the order of their scores."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, overload

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray


def best(scorer: Scorer, query: str, docs: Sequence[str], k: int | None = None) -> list[tuple[int, float]]:
    """Returns position and score of the `k` documents that a scorer finds best, or of all; of equals the earlier first.

    Raises:
        ValueError: It does not give each document a finite number.
    """
    if not docs:
        return []
    scores = np.asarray(scorer.scores(query, docs), np.float64)
    if scores.shape != (len(docs),) or not np.isfinite(scores).all():
        raise ValueError(
            f"the reranker must give {len(docs)} finite scores, not an array of shape {scores.shape}: {scores}"
        )
    return [(int(at), float(scores[at])) for at in np.argsort(-scores, kind="stable")[:k]]


class Scorer(Protocol):
    """What tells how well documents answer a query: a `Reranker`, or any object with this method."""

    def scores(self, query: str, docs: Sequence[str], /) -> NDArray[np.floating]:
        """Returns a number for each document, `(n,)`; higher is better."""
        ...


@dataclass(frozen=True, slots=True)
class Ranked:
    """A document that was compared with a query.

    Attributes:
        text: The document.
        score: How well it fits: what is higher is better. What scale it is on, the model says.
        rank: Its place, from 1 on.
        doc_id: What the caller calls it; its position among the documents where it was given no name.
        metadata: What the caller gave along with it.
    """

    text: str
    score: float
    rank: int
    doc_id: int | str
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ranking:
    """Documents in the order of their scores, best first; of equals, the one given first.

    It has what users of the package `rerankers` expect of `RankedResults`.
    """

    query: str
    results: tuple[Ranked, ...]

    @classmethod
    def of(
        cls,
        query: str,
        docs: Sequence[str],
        scores: Iterable[float],
        *,
        doc_ids: Sequence[int | str] | None = None,
        metadata: Sequence[dict[str, Any]] | None = None,
    ) -> Ranking:
        """Returns the ranking of documents `(n,)` by scores `(n,)`.

        Raises:
            ValueError: `doc_ids` or `metadata` are not as many as the documents; an id is there twice.
        """
        for name, given in (("doc_ids", doc_ids), ("metadata", metadata)):
            if given is not None and len(given) != len(docs):
                raise ValueError(f"{name} must be as many as the documents: {len(given)} for {len(docs)}")
        ids = range(len(docs)) if doc_ids is None else doc_ids
        seen: set[int | str] = set()
        for id_ in ids:
            if id_ in seen:
                raise ValueError(f"doc_ids holds {id_!r} twice")
            seen.add(id_)
        pairs = sorted(enumerate(scores), key=lambda pair: (-pair[1], pair[0]))
        return cls(
            query,
            tuple(
                Ranked(docs[at], score, rank, ids[at], dict(metadata[at]) if metadata is not None else {})
                for rank, (at, score) in enumerate(pairs, start=1)
            ),
        )

    @overload
    def __getitem__(self, at: int) -> Ranked: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[Ranked, ...]: ...
    def __getitem__(self, at: int | slice) -> Ranked | tuple[Ranked, ...]:
        return self.results[at]

    def __iter__(self) -> Iterator[Ranked]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    def top_k(self, k: int) -> tuple[Ranked, ...]:
        """Returns the `k` best.

        Raises:
            ValueError: `k` is negative.
        """
        if k < 0:
            raise ValueError(f"k must not be negative, not {k}")
        return self.results[:k]

    def results_count(self) -> int:
        """Returns how many there are."""
        return len(self.results)

    def get_result_by_docid(self, doc_id: int | str) -> Ranked:
        """Returns a document by its id.

        Raises:
            KeyError: There is none of that id.
        """
        for result in self.results:
            if result.doc_id == doc_id:
                return result
        raise KeyError(doc_id)

    def get_score_by_docid(self, doc_id: int | str) -> float:
        """Returns the score of a document.

        Raises:
            KeyError: There is none of that id.
        """
        return self.get_result_by_docid(doc_id).score
