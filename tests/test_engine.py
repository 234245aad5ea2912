"""Answers side by side, on real weights: each is the same as if it were alone."""

from __future__ import annotations

import asyncio
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import adventures as adv

PROMPTS = [
    "Name three things to pack for a voyage.",
    "What floats?",
    "Write one sentence about a lantern.",
    "Repeat after me: the keeper of the shop by the river wrote down what every traveller asked for.",
    "List the days of the week.",
    "Hello.",
    "Count from one to twenty.",
    "Which rope is the strongest, and why is it so?",
]


WORDS = (
    "rope",
    "lantern",
    "river",
    "keeper",
    "cloak",
    "boot",
    "map",
    "salt",
    "oar",
    "tent",
    "knife",
    "winter",
    "story",
    "road",
    "bridge",
    "lamp",
    "coin",
    "hill",
)


def sentence(rng: random.Random, words: int) -> str:
    """Returns a text of so many words."""
    return " ".join(rng.choice(WORDS) for _ in range(words))


def ways(n: int) -> list[tuple[str, dict[str, Any]]]:
    """Returns `n` questions with options of all kinds."""
    rng = random.Random(7)
    found = []
    for i in range(n):
        options: dict[str, Any] = {"max_tokens": rng.randint(1, 40), "seed": i}
        if i % 2:
            options |= {"temperature": rng.choice([0.5, 1.0, 1.5]), "top_p": rng.choice([0.9, 1.0])}
        if i % 5 == 0:
            options |= {"repeat_penalty": 1.2, "stop": ["\n\n"], "logprobs": 1}
        prompt = PROMPTS[i % len(PROMPTS)]
        if i % 4 == 3:
            prompt = f"{sentence(rng, 12 * i)} {prompt}"
        found.append((prompt, options))
    return found


def told(answer: adv.Generation) -> tuple[Any, ...]:
    """Returns all that an answer says."""
    text, stats = answer.text(), answer.stats
    logprobs = answer.logprobs
    return (
        text,
        stats.finish_reason,
        stats.generated_tokens,
        None if logprobs is None else [(token.id, token.logprob) for token in logprobs],
    )


def answered(generator: adv.Generator, prompt: str, options: dict[str, Any]) -> tuple[Any, ...]:
    return told(generator.generate(prompt, **options))


def test_answers_are_the_same_whatever_is_computed_beside_them(smollm2: adv.Generator) -> None:
    questions = ways(24)
    alone = [told(smollm2.generate(prompt, prompt_lookup=False, **options)) for prompt, options in questions]
    for slots in (1, 3, 8):
        generator = adv.Generator("smollm2-135m-instruct", slots=slots)
        with ThreadPoolExecutor(12) as pool:
            waiting = [pool.submit(answered, generator, *question) for question in questions]
            beside = [answer.result() for answer in waiting]
        assert beside == alone, slots
    # Without threads: all are begun before the first is read, the last first.
    running = [smollm2.generate(prompt, **options) for prompt, options in questions]
    assert [told(answer) for answer in reversed(running)] == alone[::-1]


def test_closing_some_disturbs_no_other(smollm2: adv.Generator) -> None:
    want = told(smollm2.generate(PROMPTS[4], max_tokens=40))
    for moment in range(6):
        kept = smollm2.generate(PROMPTS[4], max_tokens=40)
        others = [smollm2.generate(prompt, max_tokens=200) for prompt in PROMPTS[:3]]
        for other in others:
            for _ in range(moment):
                next(other)
            other.close()
        assert told(kept) == want


def test_a_long_prompt_does_not_stop_the_answers_beside_it(smollm2: adv.Generator) -> None:
    rng = random.Random(1)
    short = smollm2.generate(PROMPTS[6], max_tokens=300, prompt_lookup=False)
    next(short)
    long = smollm2.generate(f"{sentence(rng, 1500)} {PROMPTS[0]}", max_tokens=1)
    pieces, halfway = 0, None
    while long.stats.finish_reason is None:
        if next(short, None) is None:
            break
        pieces += 1
        if 0 < long.stats.read_tokens < long.stats.prompt_tokens:
            halfway = long.stats.read_tokens
    assert pieces > 5
    assert halfway is not None
    assert halfway % 128 == 0
    assert long.text()
    short.close()


def test_quotes_are_read_several_tokens_at_a_time(smollm2: adv.Generator) -> None:
    passage = sentence(random.Random(3), 60)
    prompt = f"{passage}\n{passage}\n{passage}\n"
    plain = smollm2.complete(prompt, max_tokens=100, prompt_lookup=False)
    fast = smollm2.complete(prompt, max_tokens=100)
    assert told(fast) == told(plain)
    assert plain.stats.drafted_tokens == plain.stats.accepted_tokens == 0
    assert fast.stats.drafted_tokens >= fast.stats.accepted_tokens > 40


def test_what_is_kept_of_prompts_stays_within_its_budget() -> None:
    rng = random.Random(5)
    page = 30 * 3 * 64 * 64 * 2 * 2  # layers, heads, their width, tokens, keys and values, bytes
    generator = adv.Generator("smollm2-135m-instruct", prefix_bytes=5 * page + 1)
    assert generator.kept_bytes == 0
    for _ in range(4):
        generator.complete(sentence(rng, 150), max_tokens=1).text()
        assert 0 < generator.kept_bytes <= 5 * page
    assert generator.kept_bytes == 5 * page
    nothing = adv.Generator("smollm2-135m-instruct", prefix_bytes=0)
    for _ in range(2):
        answer = nothing.complete(sentence(random.Random(6), 150), max_tokens=1)
        answer.text()
        assert answer.stats.cached_tokens == nothing.kept_bytes == 0


def test_async_answers_side_by_side(smollm2: adv.Generator) -> None:
    want = [told(smollm2.generate(prompt, max_tokens=20))[0] for prompt in PROMPTS]

    async def read(prompt: str) -> str:
        return "".join([piece async for piece in smollm2.generate(prompt, max_tokens=20)])

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*map(read, PROMPTS))

    assert asyncio.run(all_of_them()) == want


def test_threads_that_close_while_others_read(smollm2: adv.Generator) -> None:
    answer = smollm2.generate(PROMPTS[6], max_tokens=400)
    begun = threading.Event()
    closer = threading.Thread(target=lambda: begun.wait(60) and answer.close())
    closer.start()
    read = []
    for piece in answer:
        read.append(piece)
        if len(read) == 3:
            begun.set()
            closer.join()
    assert answer.stats.finish_reason == "closed"
    assert answer.text() == "".join(read)


@pytest.mark.parametrize("slots", ["4", None, 2.0])
def test_slots_is_a_whole_number(slots: Any) -> None:
    with pytest.raises(TypeError, match=r"slots=.*: expected a whole number"):
        adv.Generator("smollm2-135m-instruct", slots=slots)
