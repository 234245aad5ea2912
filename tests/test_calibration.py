"""The similarity below which nothing was found: fitted, measured on other questions, refused where it cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy import stats

from adventures import demo
from adventures.calibration import best_similarities, calibrate
from adventures.chat import Chat
from adventures.library import Library
from adventures.spans import SpanSet
from words import WordEmbedder

if TYPE_CHECKING:
    import adventures as adv

CHUNKING = Path(__file__).parents[1] / ".." / "shared" / "data" / "chunking-eval"


def clouds(right: float, wrong: float, n: int = 400) -> tuple[Any, Any]:
    chance = np.random.default_rng(3)
    return chance.normal(right, 0.1, n), chance.normal(wrong, 0.1, n)


class TestCalibrate:
    def test_what_can_be_told_apart_is(self) -> None:
        result = calibrate([0.6, 0.7, 0.8, 0.9], [0.1, 0.2, 0.3, 0.4])
        assert result.min_similarity == pytest.approx(0.5)
        assert (result.fitted.precision, result.fitted.recall, result.fitted.refused) == (1, 1, 1)
        assert result.auc == 1

    def test_the_middle_of_two_clouds(self) -> None:
        right, wrong = clouds(0.6, 0.4)
        result = calibrate(right, wrong)
        assert result.min_similarity == pytest.approx(0.5, abs=0.04)
        assert result.auc == pytest.approx(stats.mannwhitneyu(right, wrong).statistic / 400**2)
        assert result.fitted.recall == pytest.approx((right >= result.min_similarity).mean())
        assert result.fitted.refused == pytest.approx((wrong < result.min_similarity).mean())
        # What a threshold does to questions that it has not seen is a little worse, and no more.
        assert (
            0.0
            <= result.fitted.recall + result.fitted.refused - result.held_out.recall - result.held_out.refused
            < 0.05
        )

    @pytest.mark.parametrize("recall", [0.5, 0.9, 0.99, 1.0])
    def test_a_recall_that_is_asked_for(self, recall: float) -> None:
        right, wrong = clouds(0.55, 0.4)
        result = calibrate(right, wrong, recall=recall)
        assert recall <= result.fitted.recall < recall + 0.01
        assert result.held_out.recall == pytest.approx(recall, abs=0.03)

    def test_questions_that_are_all_alike(self) -> None:
        result = calibrate(np.full(10, 0.5), np.full(10, 0.5))
        assert (result.auc, result.fitted.recall + result.fitted.refused) == (0.5, 1.0)

    @pytest.mark.parametrize(
        ("right", "wrong", "recall", "message"),
        [
            ([0.5] * 3, [0.1] * 9, None, "at least 4 answerable questions, not 3"),
            ([0.5] * 9, [], None, "at least 4 unanswerable questions, not 0"),
            ([0.5] * 9, [0.1] * 9, 0, "recall must be above 0 and at most 1, not 0"),
            ([0.5] * 9, [0.1] * 9, 1.5, "recall must be above 0 and at most 1, not 1.5"),
        ],
    )
    def test_too_little(self, right: list[float], wrong: list[float], recall: float | None, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            calibrate(right, wrong, recall=recall)

    def test_an_empty_library(self, tmp_path: Path) -> None:
        with pytest.raises(LookupError, match="is empty: there is nothing to calibrate"):
            best_similarities(Library.open(tmp_path / "l", embedder=WordEmbedder()), ["x"])


@pytest.mark.parametrize("hybrid", [False, True])
def test_a_chat_refuses_as_was_measured(stock: Library, smollm2: adv.Generator, hybrid: bool) -> None:
    right = best_similarities(stock, [question.question for question in demo.questions()], hybrid=hybrid)
    wrong = best_similarities(stock, demo.off_topic(), hybrid=hybrid)
    result = calibrate(right, wrong)
    assert result.held_out.recall >= 0.85
    assert result.held_out.refused >= 0.85
    assert result.auc >= 0.97
    chat = Chat(stock, smollm2, hybrid=hybrid, min_similarity=result.min_similarity)
    found = []
    for question in demo.off_topic():
        with chat.ask(question) as answer:
            found.append(answer.found)
        chat.reset()
    assert 1 - sum(found) / len(found) == pytest.approx(result.fitted.refused)


@pytest.mark.skipif(not CHUNKING.exists(), reason=f"{CHUNKING} is not here")
def test_questions_of_another_field(stock: Library) -> None:
    """The demo's questions against those on speeches, finance and medicine."""
    right = best_similarities(stock, [question.question for question in demo.questions()])
    wrong = best_similarities(stock, list(SpanSet.read(CHUNKING).queries.values())[::4])
    result = calibrate(right, wrong)
    assert result.held_out.recall >= 0.85
    assert result.held_out.refused >= 0.85
