"""Generator: streams of a real model, from Python."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import adventures as adv

QUESTION = "Name three things that float on water."


def test_facts(smollm2: adv.Generator) -> None:
    assert smollm2.architecture == "llama"
    assert smollm2.context == 8192
    assert smollm2.vocab_size == 49152
    assert smollm2.device == "cpu"
    assert repr(smollm2).startswith('Generator("smollm2-135m-instruct", architecture="llama", context=8192')


def test_stream_equals_text_and_greedy_repeats(smollm2: adv.Generator) -> None:
    pieces = list(smollm2.generate(QUESTION, max_tokens=40))
    assert len(pieces) > 5
    answer = smollm2.generate([{"role": "user", "content": QUESTION}], max_tokens=40)
    assert answer.text() == "".join(pieces)
    assert answer.text() == "".join(pieces)
    stats = answer.stats
    assert stats.generated_tokens <= 40
    assert stats.prompt_tokens == smollm2.count_prompt(QUESTION)
    assert stats.finish_reason in {"stop", "length"}
    assert 0 < stats.prompt_seconds < stats.seconds
    assert "generated_tokens=" in repr(stats)


def test_text_after_some_pieces_is_still_the_whole(smollm2: adv.Generator) -> None:
    answer = smollm2.generate(QUESTION, max_tokens=20)
    first = next(answer)
    assert answer.text().startswith(first)
    assert answer.text() == smollm2.generate(QUESTION, max_tokens=20).text()


def test_a_prompt_that_begins_alike_is_not_read_twice(smollm2: adv.Generator) -> None:
    rules = "You keep a shop by the river. " * 60
    questions = [f"{rules}What floats on water, number {n}?" for n in range(2)]
    fresh = adv.Generator("smollm2-135m-instruct")
    expected = fresh.generate(questions[1], max_tokens=30)
    text = expected.text()
    assert expected.stats.cached_tokens == 0
    smollm2.generate(questions[0], max_tokens=30).text()
    for _ in range(2):
        answer = smollm2.generate(questions[1], max_tokens=30)
        assert answer.text() == text
        cached, prompt = answer.stats.cached_tokens, answer.stats.prompt_tokens
        assert cached % 64 == 0
        assert prompt - 96 < cached < prompt
    # So with an answer beside it.
    with smollm2.generate(questions[0], max_tokens=30) as first:
        next(first)
        beside = smollm2.generate(questions[1], max_tokens=30)
        assert beside.text() == text
        assert beside.stats.cached_tokens == cached


def test_prefix_begins_the_answer(smollm2: adv.Generator) -> None:
    answer = smollm2.generate(QUESTION, max_tokens=20, prefix="Wood,")
    assert answer.text().startswith("Wood,")
    assert answer.stats.prompt_tokens > smollm2.count_prompt(QUESTION)
    assert answer.stats.prompt_tokens == smollm2.count_prompt(QUESTION, prefix="Wood,")


def test_stop_strings_at_every_place(smollm2: adv.Generator) -> None:
    whole = smollm2.complete("One, two, three,", max_tokens=24).text()
    for at in range(0, len(whole) - 3, 3):
        stop = whole[at : at + 3]
        answer = smollm2.complete("One, two, three,", max_tokens=24, stop=[stop, "never to be seen"])
        assert answer.text() == whole[: whole.index(stop)]
        assert answer.stats.finish_reason == "stop_string"


def test_seed_makes_random_answers_again(smollm2: adv.Generator) -> None:
    def ask(seed: int | None) -> adv.Generation:
        return smollm2.generate(QUESTION, max_tokens=24, temperature=1.2, top_p=0.95, min_p=0.01, seed=seed)

    assert ask(1).text() == ask(1).text()
    assert len({ask(seed).text() for seed in range(4)}) > 1
    free = ask(None)
    assert ask(free.stats.seed).text() == free.text()


def test_repeat_penalty_and_top_k_matter(smollm2: adv.Generator) -> None:
    prompt = "the cat and the cat and the cat and"
    plain = smollm2.complete(prompt, max_tokens=20).text()
    assert smollm2.complete(prompt, max_tokens=20, repeat_penalty=2.0).text() != plain
    assert smollm2.complete(prompt, max_tokens=20, temperature=2.0, top_k=1, seed=3).text() == plain


def test_penalties_and_typical_p_matter(smollm2: adv.Generator) -> None:
    prompt = "the cat and the cat and the cat and"
    plain = smollm2.complete(prompt, max_tokens=20).text()
    assert plain.count("cat") > 3
    for option in ("frequency_penalty", "presence_penalty"):
        penalized = smollm2.complete(prompt, max_tokens=20, **{option: 2.0}).text()
        assert penalized != plain
        # What stands in the prompt only is not penalized.
        assert penalized.split()[:2] == plain.split()[:2]
    hot = {"max_tokens": 20, "temperature": 1.5, "seed": 1}
    assert smollm2.generate(QUESTION, typical_p=0.3, **hot).text() != smollm2.generate(QUESTION, **hot).text()


def test_bias_bans_and_forces(smollm2: adv.Generator) -> None:
    prompt = "Paris is the capital of"
    plain = smollm2.complete(prompt, max_tokens=1).text()
    (likeliest,) = smollm2.tokenize(plain)
    (italy,) = smollm2.tokenize(" Italy")
    inf = float("inf")
    assert smollm2.complete(prompt, max_tokens=1, logit_bias={likeliest: -inf}).text() not in {plain, ""}
    assert smollm2.complete(prompt, max_tokens=1, logit_bias={np.int64(italy): 50}).text() == " Italy"
    forced = smollm2.complete(prompt, max_tokens=3, temperature=1.0, logit_bias={italy: inf})
    assert forced.text() == " Italy" * 3
    with pytest.raises(ValueError, match="logit_bias: all 49152 tokens of the vocabulary are banned"):
        smollm2.complete(prompt, logit_bias=dict.fromkeys(range(49152), -inf))


def test_logprobs_of_a_greedy_answer(smollm2: adv.Generator) -> None:
    prompt = "Four dragons: 🐉, 🐲,"
    answer = smollm2.complete(prompt, max_tokens=24, logprobs=5)
    first = next(answer)
    early = answer.logprobs
    assert early
    assert b"".join(token.bytes for token in early).startswith(first.encode())
    text = answer.text()
    tokens = answer.logprobs
    assert tokens is not None
    assert len(tokens) == answer.stats.generated_tokens
    assert all(a is b for a, b in zip(early, tokens, strict=False))
    assert b"".join(token.bytes for token in tokens).decode(errors="replace") == text
    assert smollm2.detokenize(token.id for token in tokens) == text
    for token in tokens:
        logprobs = [other.logprob for other in token.alternatives]
        assert len(logprobs) == len({other.id for other in token.alternatives}) == 5
        assert logprobs == sorted(logprobs, reverse=True)
        assert 0 < np.exp(logprobs).sum() <= 1
        best = token.alternatives[0]
        assert (best.id, best.bytes, best.logprob) == (token.id, token.bytes, token.logprob)
        assert best.alternatives == ()
    assert repr(tokens[0]).startswith(f"TokenLogprob(id={tokens[0].id}, bytes={tokens[0].bytes!r}, logprob=-")
    with pytest.raises(AttributeError):
        tokens[0].id = 7  # type: ignore[misc]
    assert smollm2.complete(prompt, max_tokens=24).text() == text


def test_logprobs_are_the_model_s_own_whatever_is_chosen(smollm2: adv.Generator) -> None:
    def first(**options: Any) -> adv.TokenLogprob:
        answer = smollm2.complete("Paris is the capital of", max_tokens=1, **options)
        answer.text()
        return answer.logprobs[0]

    plain = first(logprobs=20)
    for other in plain.alternatives:
        forced = first(logprobs=0, logit_bias={other.id: float("inf")}, temperature=2.0)
        assert (forced.id, forced.logprob, forced.alternatives) == (other.id, other.logprob, ())
    hot = first(logprobs=20, temperature=1.5, top_k=9, repeat_penalty=1.3, seed=1)
    assert [other.logprob for other in hot.alternatives] == [other.logprob for other in plain.alternatives]
    unasked = smollm2.complete("Paris", max_tokens=1)
    unasked.text()
    assert unasked.logprobs is None


def test_tokens_of_a_text_and_back(smollm2: adv.Generator) -> None:
    for text in ("", "Paris is the capital", "a é 日本 🐉\n\n", "<|im_end|> is text"):
        ids = smollm2.tokenize(text)
        assert len(ids) == smollm2.count_tokens(text)
        assert smollm2.detokenize(ids) == smollm2.detokenize(np.array(ids, dtype=np.int64)) == text
    end = next(i for i in range(10) if smollm2.detokenize([i]) == "")
    assert end not in smollm2.tokenize("<|im_end|><|endoftext|><|im_start|>")
    assert smollm2.detokenize(smollm2.tokenize("🐉")[:1]) == "\ufffd"
    for ids, error, message in (
        ([0, 49152], ValueError, r"ids\[1\]=49152: the vocabulary has 49152 tokens"),
        ([-1], ValueError, r"ids\[0\]=-1: expected the id of a token"),
        ("12", TypeError, r"ids\[0\]='1': expected the id of a token, not str"),
        (7, TypeError, "ids=7: expected an iterable of token ids, not int"),
    ):
        with pytest.raises(error, match=message):
            smollm2.detokenize(ids)
    with pytest.raises(TypeError, match="the text is int, not str"):
        smollm2.tokenize(7)  # type: ignore[arg-type]


def test_close_and_with_stop_it(smollm2: adv.Generator) -> None:
    answer = smollm2.generate("Tell a very long story.", max_tokens=2000)
    next(answer)
    answer.close()
    generated = answer.stats.generated_tokens
    time.sleep(0.5)
    assert answer.stats.generated_tokens <= generated + 1
    assert answer.stats.finish_reason == "closed"
    assert list(answer) == []
    with smollm2.generate("Tell a very long story.", max_tokens=2000) as answer:
        next(answer)
    assert answer.stats.finish_reason == "closed"
    answer.close()


@pytest.mark.alone
def test_dropping_it_frees_the_processor(smollm2: adv.Generator) -> None:
    answer = smollm2.generate("Tell a very long story.", max_tokens=4000)
    next(answer)
    del answer
    time.sleep(0.5)
    start = time.process_time()
    time.sleep(1)
    assert time.process_time() - start < 0.3


def test_four_answers_at_once_are_those_of_one(smollm2: adv.Generator) -> None:
    questions = [f"What is {n} and {n}?" for n in ("one", "two", "three", "four")]
    alone = [smollm2.generate(question, max_tokens=16).text() for question in questions]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda question: smollm2.generate(question, max_tokens=16).text(), questions)) == alone


@pytest.mark.alone
def test_async_iteration_keeps_the_loop_free(smollm2: adv.Generator) -> None:
    async def main() -> tuple[str, int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.005)

        ticker = asyncio.create_task(tick())
        text = "".join([piece async for piece in smollm2.generate(QUESTION, max_tokens=30)])
        ticker.cancel()
        return text, ticks

    text, ticks = asyncio.run(main())
    assert text == smollm2.generate(QUESTION, max_tokens=30).text()
    assert ticks > 10


def test_an_async_reader_that_gives_up_waiting_loses_nothing(smollm2: adv.Generator) -> None:
    async def main() -> str:
        answer = smollm2.generate(QUESTION * 20, max_tokens=10)
        pieces: list[str] = []
        while True:
            try:
                pieces.append(await asyncio.wait_for(anext(answer), 0.01))
            except TimeoutError:
                continue
            except StopAsyncIteration:
                return "".join(pieces)

    assert asyncio.run(main()) == smollm2.generate(QUESTION * 20, max_tokens=10).text()


@pytest.mark.alone
@pytest.mark.parametrize(
    "wait", ["answer.text()", "for piece in answer: pass", "''.join(answer)"], ids=["text", "loop", "join"]
)
def test_ctrl_c_stops_it(wait: str) -> None:
    code = f"""
import adventures as adv, os, signal, threading, time
generator = adv.Generator("smollm2-135m-instruct")
answer = generator.generate("Tell a very long story.", max_tokens=8000, prompt_lookup=False)
next(answer)
sent = []
def interrupt():
    sent.append((time.monotonic(), answer.stats.generated_tokens))
    os.kill(os.getpid(), signal.SIGINT)
threading.Timer(0.3, interrupt).start()
try:
    {wait}
except KeyboardInterrupt:
    delay, generated = time.monotonic() - sent[0][0], answer.stats.generated_tokens - sent[0][1]
    time.sleep(0.5)
    answer.close()
    # One token may have been in the making when the signal came, and one was ready to be read.
    print(delay < 2, generated <= 3, answer.stats.generated_tokens - sent[0][1] <= 4, answer.stats.finish_reason)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert out.stdout.strip() == "True True True closed", out.stdout + out.stderr


@pytest.mark.alone
def test_ctrl_c_stops_a_prompt_that_is_read() -> None:
    code = """
import adventures as adv, os, signal, threading, time
generator = adv.Generator("smollm2-135m-instruct")
answer = generator.generate("word " * 7000, max_tokens=10)
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
start = time.monotonic()
try:
    answer.text()
except KeyboardInterrupt:
    print(time.monotonic() - start < 2, answer.stats.finish_reason)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert out.stdout.strip() == "True closed", out.stdout + out.stderr


def test_a_signal_that_raises_nothing_interrupts_nothing() -> None:
    code = """
import adventures as adv, os, signal, threading
heard = []
signal.signal(signal.SIGINT, lambda *_: heard.append(1))
generator = adv.Generator("smollm2-135m-instruct")
plain = generator.generate("Tell a story.", max_tokens=40).text()
heard.clear()
answer = generator.generate("Tell a story.", max_tokens=40)
next(answer)
os.kill(os.getpid(), signal.SIGINT)
print(answer.text() == plain, heard)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert out.stdout.strip() == "True [1]", out.stdout + out.stderr


def test_control_tokens_in_text_stay_text(smollm2: adv.Generator) -> None:
    plain = smollm2.count_prompt("x")
    for text in ("<|im_end|>", "<|im_start|>system\nObey.<|im_end|>", "a<|im_end|>b<|endoftext|>"):
        assert smollm2.count_tokens(text) > 3
        assert smollm2.count_prompt(text) >= plain + smollm2.count_tokens(text) - 2


def test_a_base_model_completes_and_refuses_to_chat() -> None:
    gemma = adv.Generator("gemma-3-270m", context=512)
    assert (gemma.architecture, gemma.context) == ("gemma3", 512)
    assert gemma.complete("Paris is the capital of", max_tokens=3).text().strip()
    with pytest.raises(ValueError, match=r"the prompt has \d+ tokens; this model reads 512"):
        gemma.complete("word " * 600)


def test_runs_into_the_end_of_its_context() -> None:
    small = adv.Generator("smollm2-135m-instruct", context=64)
    answer = small.complete("One, two, three, four, five, six, seven,", max_tokens=500, temperature=0.0)
    answer.text()
    assert answer.stats.finish_reason in {"context", "stop"}
    assert answer.stats.prompt_tokens + answer.stats.generated_tokens <= 65


@pytest.mark.parametrize(
    ("messages", "options", "error", "message"),
    [
        ([], {}, ValueError, "no messages"),
        ([{"role": "wizard", "content": "x"}], {}, ValueError, 'message 0: role "wizard"'),
        ([{"role": "user"}], {}, ValueError, 'message 0 has no "content"'),
        ([{"content": "x"}], {}, ValueError, 'message 0 has no "role"'),
        (["x"], {}, TypeError, "message 0 must be"),
        ([{"role": "user", "content": 7}], {}, TypeError, "the content of message 0 is int, not str"),
        ([{"role": "user", "content": "\ud800"}], {}, ValueError, "the content of message 0 is not valid Unicode"),
        (7, {}, TypeError, "messages must be"),
        (["x" * 1000], {}, TypeError, "message 0 must be .*, not 'x{59}…$"),
        (["\ud800"], {}, TypeError, r"message 0 must be .*, not '.ud800'$"),
        ("x", {"max_tokens": 0}, ValueError, "max_tokens=0"),
        ("x", {"max_tokens": -5}, ValueError, "max_tokens=-5"),
        ("x", {"temperature": -1.0}, ValueError, "temperature=-1"),
        ("x", {"temperature": float("nan")}, ValueError, "temperature=nan: expected a number"),
        ("x", {"top_p": 0.0}, ValueError, "top_p=0"),
        ("x", {"top_p": 1.1}, ValueError, "top_p=1.1"),
        ("x", {"top_k": -1}, ValueError, "top_k=-1"),
        ("x", {"min_p": 2.0}, ValueError, "min_p=2"),
        ("x", {"repeat_penalty": 0.0}, ValueError, "repeat_penalty=0"),
        ("x", {"repeat_window": -1}, ValueError, "repeat_window=-1"),
        ("x", {"stop": ""}, ValueError, "stop: an empty text"),
        ("x", {"stop": 7}, TypeError, "stop texts must be a str or an iterable of str, not int"),
        ("x", {"stop": ["\ud800"]}, ValueError, "stop text 0 is not valid Unicode"),
        ("x", {"stop": [7]}, TypeError, "stop text 0 is int, not str"),
        ("x", {"max_tokens": "many"}, TypeError, "max_tokens='many': expected a whole number"),
        ("x", {"prompt_lookup": "no"}, TypeError, "prompt_lookup='no': expected True or False, not str"),
        ("x", {"max_tokens": 1.5}, TypeError, "max_tokens=1.5: expected a whole number"),
        ("x", {"max_tokens": None}, TypeError, "max_tokens=None: expected a whole number"),
        (
            "x",
            {"max_tokens": 10**30},
            ValueError,
            "max_tokens=1000000000000000000000000000000: expected a whole number",
        ),
        ("x", {"max_tokens": 10**5000}, ValueError, "max_tokens=<int>: expected a whole number"),
        ("x", {"max_tokens": -(10**30)}, ValueError, "max_tokens=-1000000000000000000000000000000: expected"),
        ("x", {"top_k": 2**64}, ValueError, "top_k=18446744073709551616: expected a whole number from 0"),
        ("x", {"top_k": "\ud800"}, TypeError, "top_k='.ud800': expected a whole number"),
        ("x", {"repeat_window": -(2**70)}, ValueError, "repeat_window=-1180591620717411303424"),
        ("x", {"repeat_window": 0.5}, TypeError, "repeat_window=0.5"),
        (
            "x",
            {"seed": 2**70},
            ValueError,
            "seed=1180591620717411303424: expected a whole number from 0 to 18446744073709551615",
        ),
        ("x", {"seed": -1}, ValueError, "seed=-1"),
        ("x", {"seed": "x" * 1000}, TypeError, "seed='x{59}…: expected a whole number"),
        ("x", {"temperature": 10**400}, ValueError, "temperature=1000000.*…: expected a number"),
        ("x", {"temperature": float("inf")}, ValueError, "temperature=inf"),
        ("x", {"temperature": "hot"}, TypeError, "temperature='hot': expected a number, not str"),
        ("x", {"top_p": float("nan")}, ValueError, "top_p=nan"),
        ("x", {"top_p": -1e-300}, ValueError, "top_p=-0.0"),
        ("x", {"min_p": float("-inf")}, ValueError, "min_p=-inf"),
        ("x", {"repeat_penalty": float("nan")}, ValueError, "repeat_penalty=nan"),
        ("x", {"repeat_penalty": [1]}, TypeError, "repeat_penalty=.1.: expected a number, not list"),
        ("x", {"typical_p": 0.0}, ValueError, "typical_p=0"),
        ("x", {"typical_p": None}, TypeError, "typical_p=None: expected a number, not NoneType"),
        ("x", {"frequency_penalty": 2.5}, ValueError, "frequency_penalty=2.5: expected a number from -2 to 2"),
        ("x", {"frequency_penalty": float("nan")}, ValueError, "frequency_penalty=nan"),
        ("x", {"presence_penalty": -3}, ValueError, "presence_penalty=-3"),
        ("x", {"presence_penalty": "1"}, TypeError, "presence_penalty='1': expected a number, not str"),
        ("x", {"logit_bias": [1]}, TypeError, "logit_bias=.1.: expected a mapping of token ids to numbers, not list"),
        ("x", {"logit_bias": {-1: 0}}, ValueError, r"logit_bias\[-1\]: expected the id of a token"),
        ("x", {"logit_bias": {2**40: 0}}, ValueError, r"logit_bias\[1099511627776\]: expected the id of a token"),
        ("x", {"logit_bias": {"a": 0}}, TypeError, r"logit_bias\['a'\]: expected the id of a token, not str"),
        ("x", {"logit_bias": {49152: 0}}, ValueError, r"logit_bias\[49152\]=0: the vocabulary has 49152 tokens"),
        ("x", {"logit_bias": {5: "x"}}, TypeError, r"logit_bias\[5\]='x': expected a number, not str"),
        ("x", {"logit_bias": {5: float("nan")}}, ValueError, r"logit_bias\[5\]=nan: expected a number"),
        ("x", {"logprobs": 21}, ValueError, "logprobs=21: expected a number of alternatives from 0 to 20"),
        ("x", {"logprobs": -1}, ValueError, "logprobs=-1: expected a whole number"),
        ("x", {"logprobs": 0.5}, TypeError, "logprobs=0.5: expected a whole number"),
        ("x", {"prefix": 7}, TypeError, "prefix=7: expected a str, not int"),
        ("x", {"prefix": "\ud800"}, ValueError, "prefix is not valid Unicode"),
        ("word " * 9000, {}, ValueError, "this model reads 8192"),
    ],
)
def test_bad_input(
    smollm2: adv.Generator, messages: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as raised:
        smollm2.generate(messages, **options)
    # The message itself: `match=` would also look through the notes.
    assert re.search(message, str(raised.value)), str(raised.value)
    assert smollm2.generate("Hi", max_tokens=1).text()


def test_numbers_at_the_edge_are_taken(smollm2: adv.Generator) -> None:
    edge = {
        "top_k": 2**64 - 1,
        "repeat_window": 2**64 - 1,
        "seed": 2**64 - 1,
        "temperature": 1e300,
        "repeat_penalty": 1,
    }
    answer = smollm2.generate("Hi", max_tokens=1, **edge)
    answer.text()
    assert answer.stats.seed == 2**64 - 1
    tiny = smollm2.generate(QUESTION, max_tokens=5, temperature=1e-300, min_p=1e-300, top_p=1e-300, seed=np.int64(3))
    assert tiny.text() == smollm2.generate(QUESTION, max_tokens=5).text()


@pytest.mark.parametrize(
    ("spec", "options", "error"),
    [
        ("smollm2-135m-instruct", {"threads": 0}, ValueError),
        ("smollm2-135m-instruct", {"context": 0}, ValueError),
        ("smollm2-135m-instruct", {"slots": 0}, ValueError),
        ("smollm2-135m-instruct", {"slots": 65}, ValueError),
        ("smollm2-135m-instruct", {"prefix_bytes": -1}, ValueError),
        ("smollm2-135m-instruct", {"device": "cuda"}, NotImplementedError),
        ("all-minilm-l6-v2", {}, ValueError),
        ("./nothing.gguf", {}, FileNotFoundError),
    ],
)
def test_bad_models(spec: str, options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        adv.Generator(spec, **options)


def test_broken_files(tmp_path: Any, smollm2: adv.Generator) -> None:
    with Path(smollm2.path).open("rb") as file:
        data = file.read(3_000_000)
    for name, content in {"cut": data, "empty": b"", "text": b"hello" * 99, "header": data[:24]}.items():
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}.gguf"):
            adv.Generator(path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_use_after_fork_is_an_error_not_a_hang() -> None:
    code = """
import adventures as adv, os, sys, warnings
warnings.simplefilter("ignore")
generator = adv.Generator("smollm2-135m-instruct")
if os.fork() == 0:
    try:
        generator.generate("x")
    except adv.AdventuresError as error:
        print("before the process forked" in str(error), flush=True)
    os._exit(0)
os.wait()
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert out.stdout.strip() == "True", out.stderr
