"""The similarity below which a library has nothing on a question, fitted to questions that it answers and others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import ArrayLike, NDArray

    from adventures.library import Library

# Each takes a random half to fit and the other to measure.
_SPLITS = 200


@dataclass(frozen=True, slots=True)
class Rates:
    """What a threshold does to questions, each between 0 and 1.

    Attributes:
        precision: Share of the answered questions that the library has an answer to.
        recall: Share of the questions that the library has an answer to that is answered.
        refused: Share of the other questions that is refused.
    """

    precision: float
    recall: float
    refused: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """A threshold and how good it is.

    Attributes:
        min_similarity: The threshold, for `Chat` and `--min-similarity`.
        fitted: What it does to the questions that it was fitted to.
        held_out: What a threshold does that was fitted to one half of them, to the other half; the mean over 200 random
            halves.
        auc: How often a question with an answer is nearer to its best passage than one without; 0.5 is chance.
        answerable: Questions that the library has an answer to.
        unanswerable: The others.
    """

    min_similarity: float
    fitted: Rates
    held_out: Rates
    auc: float
    answerable: int
    unanswerable: int


def best_similarities(
    library: Library,
    questions: Iterable[str],
    *,
    k: int = 4,
    hybrid: bool = False,
    progress: Callable[[int], object] | None = None,
) -> NDArray[np.float64]:
    """Returns for each question the similarity of its nearest hit, `(questions,)`: what a `Chat` compares.

    Raises:
        LookupError: The library is empty.
    """
    best = []
    for question in questions:
        hits = library.search(question, k, hybrid=hybrid)
        if not hits:
            raise LookupError(f"{library!r} is empty: there is nothing to calibrate")
        best.append(max(hit.similarity for hit in hits))
        if progress:
            progress(1)
    return np.array(best)


def calibrate(answerable: ArrayLike, unanswerable: ArrayLike, *, recall: float | None = None) -> Calibration:
    """Returns the threshold that tells questions apart by the similarity of their nearest passage.

    Args:
        answerable: Similarities of questions that the library answers, `(n,)`.
        unanswerable: Those of questions that it does not, `(m,)`.
        recall: The share of the answerable that must be answered, from 0 to 1; the threshold is the highest that does.
            By default it is where the share of the answered among the first, less that among the others, is largest
            (Youden 1950), however many there are of each.

    Raises:
        ValueError: There are fewer than four of either, or `recall` is not from 0 to 1.
    """
    right, wrong = np.asarray(answerable, np.float64), np.asarray(unanswerable, np.float64)
    for name, values in (("answerable", right), ("unanswerable", wrong)):
        if values.ndim != 1 or len(values) < 4:
            raise ValueError(f"a threshold needs at least 4 {name} questions, not {values.size}")
    if recall is not None and not 0 < recall <= 1:
        raise ValueError(f"recall must be above 0 and at most 1, not {recall!r}")
    threshold = _fit(right, wrong, recall)
    chance = np.random.default_rng(0)
    held_out = np.array([_halves(right, wrong, recall, chance) for _ in range(_SPLITS)]).mean(axis=0)
    higher = (right[:, None] > wrong).mean() + (right[:, None] == wrong).mean() / 2
    return Calibration(
        min_similarity=threshold,
        fitted=Rates(*_rates(right, wrong, threshold)),
        held_out=Rates(*held_out.tolist()),
        auc=float(higher),
        answerable=len(right),
        unanswerable=len(wrong),
    )


def _fit(right: NDArray[np.float64], wrong: NDArray[np.float64], recall: float | None) -> float:
    values = np.unique(np.concatenate([right, wrong]))
    # Between two values rather than on one, so that rounding elsewhere moves no question across.
    candidates = np.concatenate([[values[0] - 0.01], (values[1:] + values[:-1]) / 2, [values[-1] + 0.01]])
    answered = (right[:, None] >= candidates).mean(axis=0)
    if recall is not None:
        return float(candidates[answered >= recall].max())
    worth = answered - (wrong[:, None] >= candidates).mean(axis=0)
    best = np.flatnonzero(worth >= worth.max() - 1e-12)
    # Of equally good ones, that in the middle.
    return float(candidates[best[len(best) // 2]])


def _rates(right: NDArray[np.float64], wrong: NDArray[np.float64], threshold: float) -> tuple[float, float, float]:
    answered, let_through = int((right >= threshold).sum()), int((wrong >= threshold).sum())
    precision = answered / (answered + let_through) if answered + let_through else 1.0
    return precision, answered / len(right), 1 - let_through / len(wrong)


def _halves(
    right: NDArray[np.float64], wrong: NDArray[np.float64], recall: float | None, chance: np.random.Generator
) -> tuple[float, float, float]:
    (right_fit, right_test), (wrong_fit, wrong_test) = (
        np.array_split(chance.permutation(values), 2) for values in (right, wrong)
    )
    return _rates(right_test, wrong_test, _fit(right_fit, wrong_fit, recall))
