"""The decoder on a checkpoint of Gemma's first architecture, against transformers (`tools/goldens_decoder.py`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import adventures as adv

GOLDENS = Path(__file__).parent / "goldens"
GOLDEN: dict[str, Any] = json.loads((GOLDENS / "tiny-gemma.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def gemma() -> adv.Generator:
    return adv.Generator(GOLDENS / "tiny-gemma")


def test_facts(gemma: adv.Generator) -> None:
    assert (gemma.name, gemma.architecture, gemma.context) == ("tiny-gemma", "gemma", 128)
    assert gemma.vocab_size == len(GOLDEN["logits"][0])


@pytest.mark.parametrize("case", GOLDEN["continued"], ids=lambda case: case["text"])
def test_greedy_text_is_that_of_transformers(gemma: adv.Generator, case: dict[str, str]) -> None:
    answer = gemma.complete(case["text"], max_tokens=len(case["continuation"]))
    assert answer.text() == case["continuation"]
    assert answer.stats.prompt_tokens == len(case["text"]) + 1, "a token for each character, and the start token"


def test_the_next_token_is_that_of_transformers_after_any_beginning(gemma: adv.Generator) -> None:
    vocabulary = json.loads((GOLDENS / "tiny-gemma" / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    compared = 0
    for length, logits in enumerate(GOLDEN["logits"][1:], start=1):
        second, best = sorted(logits)[-2:]
        token = next(text for text, id_ in vocabulary.items() if id_ == logits.index(best))
        # Ties prove nothing, and a special token ends a text or is none.
        if best - second > 1e-3 and len(token) == 1:
            beginning = GOLDEN["text"][:length]
            assert gemma.complete(beginning, max_tokens=1).text() == token.replace("▁", " "), beginning
            compared += 1
    assert compared > 40
