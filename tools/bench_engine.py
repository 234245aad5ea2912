"""Times what the engine saves (`make bench-engine`): answers side by side, quotes, prompts that begin alike.

Each figure is a ratio of two runs in turn, of the same generator:

    four answers at once     tokens per second of four answers side by side, against one alone
    an answer that quotes    tokens per second with prompt lookup, against the same answer without
    a prompt read before     seconds to the first token where the prompt is new, against where its beginning was read

    python tools/bench_engine.py [--rounds 5] [--threads 2] [--models NAME …]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import adventures as adv
from bench_generate import processor

MODELS = ["smollm2-135m-instruct", "gemma-3-270m"]
STORY = "The keeper of the shop by the river wrote down what every traveller asked for, and what became of it. "
PASSAGE = (
    "Balsa is the lightest wood in the shop: a raft of six logs carries two travellers and their packs. "
    "Keep it dry at night, for it drinks water like a sponge. Hemp rope outlasts cotton threefold in salt water, "
    "but it must be washed in the river after each voyage and hung in the shade. "
)


def end_tokens(generator: adv.Generator) -> dict[int, float]:
    """Returns a bias that keeps the model writing: no token without text may be chosen."""
    return {i: float("-inf") for i in range(generator.vocab_size) if not generator.detokenize([i])}


def seconds_of(generator: adv.Generator, prompts: list[str], bias: dict[int, float]) -> float:
    """Returns how long 64 tokens after each of the prompts take, all at once, in seconds for each token."""

    def go(prompt: str) -> float:
        answer = generator.complete(prompt, max_tokens=64, prompt_lookup=False, logit_bias=bias)
        answer.text()
        return answer.stats.generated_tokens

    start = time.perf_counter()
    with ThreadPoolExecutor(len(prompts)) as pool:
        tokens = sum(pool.map(go, prompts))
    return (time.perf_counter() - start) / tokens


def side_by_side(generator: adv.Generator, bias: dict[int, float]) -> float:
    prompts = [f"{n} travellers came. " for n in ("Four", "Seven", "Nine", "Twelve")]
    alone = statistics.mean(seconds_of(generator, [prompt], bias) for prompt in prompts)
    return alone / seconds_of(generator, prompts, bias)


def quoting(generator: adv.Generator, bias: dict[int, float]) -> float:
    """A passage that is repeated word for word, as an answer repeats a passage that it quotes."""
    took = []
    for lookup in (False, True):
        answer = generator.complete(PASSAGE * 3, max_tokens=128, prompt_lookup=lookup, logit_bias=bias)
        answer.text()
        took.append(answer.stats.seconds - answer.stats.prompt_seconds)
    return took[0] / took[1]


def read_before(generator: adv.Generator, number: int) -> float:
    took = []
    for question in ("Which floats?", "Which burns?"):
        answer = generator.complete(f"{number}: {STORY * 30}{question}", max_tokens=1)
        answer.text()
        took.append(answer.stats.prompt_seconds)
    return took[0] / took[1]


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--models", nargs="+", default=MODELS)
    options = parser.parse_args()
    print(f"{processor()}, {options.threads} threads, medians of {options.rounds} rounds")
    for model in options.models:
        generator = adv.Generator(model, threads=options.threads)
        bias = end_tokens(generator)
        seconds_of(generator, ["Once"], bias)
        rounds = range(options.rounds)
        for what, ratios in {
            "four answers at once": [side_by_side(generator, bias) for _ in rounds],
            "an answer that quotes": [quoting(generator, bias) for _ in rounds],
            "a prompt read before": [read_before(generator, number) for number in rounds],
        }.items():
            print(f"{model:24} {what:24} x {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
