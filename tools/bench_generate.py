"""Times generation against llama.cpp (`make bench-generate`): both engines in turn, each in a process of its own.

A prompt of 512 tokens is read and 64 tokens are generated greedily, on the same number of threads. llama.cpp runs with
and without flash attention, and its better figure counts. Peak memory is that of the process.

    python tools/bench_generate.py --theirs PYTHON [--rounds 5] [--threads 2] [--cache DIR]

PYTHON is an interpreter with llama-cpp-python, built on this machine for its instructions.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

MODELS = {
    "smollm2-135m-instruct": "SmolLM2-135M-Instruct.Q4_1.gguf",
    "gemma-3-270m": "gemma-3-270m-q4_k_m.gguf",
}
PROMPT, ANSWER = 512, 64
TEXT = "The keeper of the shop by the river wrote down what every traveller asked for, and what became of it. " * 40


def peak() -> float:
    """Returns the peak memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def ours(path: str, threads: int) -> dict[str, float]:
    """Returns tokens per second of the prompt and of the answer."""
    import adventures

    generator = adventures.Generator(path, threads=threads)
    low, high = 0, len(TEXT)
    while low < high:  # the longest beginning that fits
        middle = (low + high + 1) // 2
        if generator.count_tokens(TEXT[:middle]) <= PROMPT:
            low = middle
        else:
            high = middle - 1
    answer = generator.complete(TEXT[:low], max_tokens=ANSWER, temperature=0.0)
    answer.text()
    stats = answer.stats
    seconds = stats.seconds - stats.prompt_seconds
    return {
        "prompt": stats.prompt_tokens / stats.prompt_seconds,
        "answer": stats.generated_tokens / seconds,
        "peak": peak(),
    }


def theirs(path: str, threads: int, *, flash: bool) -> dict[str, float]:
    """Returns the same for llama.cpp."""
    import llama_cpp
    import numpy as np

    model = llama_cpp.Llama(
        path, n_ctx=1024, n_threads=threads, n_threads_batch=threads, flash_attn=flash, verbose=False
    )
    ids = model.tokenize(TEXT.encode())[:PROMPT]
    start = time.perf_counter()
    model.eval(ids)
    read = time.perf_counter()
    for _ in range(ANSWER):
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(model.ctx, -1), (model.n_vocab(),))
        model.eval([int(logits.argmax())])
    end = time.perf_counter()
    return {"prompt": len(ids) / (read - start), "answer": ANSWER / (end - read), "peak": peak()}


def measure(python: str, engine: str, path: Path, threads: int) -> dict[str, float]:
    """Runs one engine once, in a process of its own."""
    command = [python, __file__, "--engine", engine, "--model", str(path), "--threads", str(threads)]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    figures: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return figures


def processor() -> str:
    """Returns the name of the CPU."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    """Runs the benchmark, or one engine where a parent asks for it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--theirs", help="an interpreter with llama-cpp-python")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "adventures")
    parser.add_argument("--engine", choices=["ours", "plain", "flash"], help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine == "ours":
        print(json.dumps(ours(options.model, options.threads)))
        return
    if options.engine:
        print(json.dumps(theirs(options.model, options.threads, flash=options.engine == "flash")))
        return
    if not options.theirs:
        parser.error("--theirs is missing")
    print(f"{processor()}, {options.threads} threads, {PROMPT} tokens read and {ANSWER} generated")
    for name, file in MODELS.items():
        path = options.cache / "models" / name / file
        runs: dict[str, list[dict[str, float]]] = {"ours": [], "plain": [], "flash": []}
        for _ in range(options.rounds):
            for engine, found in runs.items():
                python = sys.executable if engine == "ours" else options.theirs
                found.append(measure(python, engine, path, options.threads))
        for what, unit in {"prompt": "tokens/s", "answer": "tokens/s", "peak": "MB"}.items():
            middle = {engine: statistics.median(run[what] for run in found) for engine, found in runs.items()}
            best = (min if what == "peak" else max)("plain", "flash", key=lambda engine: middle[engine])
            ratio = statistics.median(a[what] / b[what] for a, b in zip(runs["ours"], runs[best], strict=True))
            print(
                f"{name:24} {what:7} adventures {middle['ours']:7.1f} {unit:9}"
                f" llama.cpp {middle[best]:7.1f} ({best})  ratio {ratio:.2f}"
            )


if __name__ == "__main__":
    main()
