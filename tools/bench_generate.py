"""Times generation against llama.cpp (`make bench-generate`): both engines in turn, each in a process of its own.

For each model and context, a prompt of that many tokens is read and 64 tokens are generated greedily, on the same
number of threads. llama.cpp runs with and without flash attention, and its better figure counts. `start` is the time
to the first token of a short prompt, with the file in the page cache: a first start of each is not counted. Peak
memory is that of the process, beside what the file, a half-precision cache and 100 MB take.

    python tools/bench_generate.py --theirs PYTHON [--models NAME,..] [--contexts 128,512,4096] [--rounds 5]
        [--threads 2] [--cache DIR]

PYTHON is an interpreter with llama-cpp-python, built on this machine for its instructions. The largest model has random
weights and is made where it is missing (`tools/bench_model.py`, 671 MB).
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

import bench_model

MODELS = {
    "smollm2-135m-instruct": "models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf",
    "gemma-3-270m": "models/gemma-3-270m/gemma-3-270m-q4_k_m.gguf",
    "llama-1.1b-random": "bench/llama-1.1b-random-q4_k_m.gguf",
}
CONTEXTS, ANSWER, SPARE = (128, 512, 4096), 64, 100
UNITS = {"start": "ms", "prompt": "tokens/s", "answer": "tokens/s", "peak": "MB"}
TEXT = "The keeper of the shop by the river wrote down what every traveller asked for, and what became of it. " * 250


def peak() -> float:
    """Returns the peak memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def ours(path: str, threads: int, prompt: int) -> dict[str, float]:
    """Returns the milliseconds to the first token, and tokens per second of the prompt and of the answer."""
    import adventures

    start = time.perf_counter()
    generator = adventures.Generator(path, threads=threads)
    next(iter(generator.complete("Once", max_tokens=1, temperature=0.0)), "")
    started = time.perf_counter() - start
    low, high = 0, len(TEXT)
    while low < high:  # the longest beginning that fits
        middle = (low + high + 1) // 2
        if generator.count_tokens(TEXT[:middle]) <= prompt:
            low = middle
        else:
            high = middle - 1
    # llama.cpp has no prompt lookup by itself, and this text repeats itself.
    answer = generator.complete(TEXT[:low], max_tokens=ANSWER, temperature=0.0, prompt_lookup=False)
    answer.text()
    stats = answer.stats
    seconds = stats.seconds - stats.prompt_seconds
    return {
        "start": 1e3 * started,
        "prompt": stats.prompt_tokens / stats.prompt_seconds,
        "answer": stats.generated_tokens / seconds,
        "peak": peak(),
    }


def theirs(path: str, threads: int, prompt: int, *, flash: bool) -> dict[str, float]:
    """Returns the same for llama.cpp."""
    import llama_cpp
    import numpy as np

    def best() -> int:
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(model.ctx, -1), (model.n_vocab(),))
        return int(logits.argmax())

    start = time.perf_counter()
    model = llama_cpp.Llama(
        path, n_ctx=prompt + 2 * ANSWER, n_threads=threads, n_threads_batch=threads, flash_attn=flash, verbose=False
    )
    model.eval(model.tokenize(b"Once"))
    best()
    started = time.perf_counter() - start
    model.reset()
    ids = model.tokenize(TEXT.encode())[:prompt]
    start = time.perf_counter()
    model.eval(ids)
    read = time.perf_counter()
    for _ in range(ANSWER):
        model.eval([best()])
    end = time.perf_counter()
    return {
        "start": 1e3 * started,
        "prompt": len(ids) / (read - start),
        "answer": ANSWER / (end - read),
        "peak": peak(),
    }


def allowance(path: Path, prompt: int) -> float:
    """Returns the MB of the file, of a half-precision cache of the prompt and the answer, and 100 more."""
    entries = bench_model.read_metadata(path)
    name = entries["general.architecture"][1]

    def number(key: str) -> int:
        return int(entries[f"{name}.{key}"][1])

    heads = number("attention.head_count")
    per_head = f"{name}.attention.key_length"
    width = int(entries[per_head][1]) if per_head in entries else number("embedding_length") // heads
    cells = (prompt + ANSWER) * number("block_count") * number("attention.head_count_kv")
    return (path.stat().st_size + 2 * 2 * cells * width) / 1024**2 + SPARE


def measure(python: str, engine: str, path: Path, options: argparse.Namespace, prompt: int) -> dict[str, float]:
    """Runs one engine once, in a process of its own."""
    command = [python, __file__, "--engine", engine, "--model", str(path), "--threads", str(options.threads)]
    command += ["--contexts", str(prompt)]
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
    parser.add_argument("--models", default=",".join(MODELS), help="names, or beginnings of them, with commas between")
    parser.add_argument("--contexts", default=",".join(map(str, CONTEXTS)), help="tokens of the prompt, with commas")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "adventures")
    parser.add_argument("--engine", choices=["ours", "plain", "flash"], help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    options = parser.parse_args()
    contexts = [int(context) for context in options.contexts.split(",")]
    if options.engine == "ours":
        print(json.dumps(ours(options.model, options.threads, contexts[0])))
        return
    if options.engine:
        print(json.dumps(theirs(options.model, options.threads, contexts[0], flash=options.engine == "flash")))
        return
    if not options.theirs:
        parser.error("--theirs is missing")
    wanted = tuple(options.models.split(","))
    names = [name for name in MODELS if name.startswith(wanted)]
    if not names:
        parser.error(f"--models: {options.models} names none of {', '.join(MODELS)}")
    print(f"{processor()}, {options.threads} threads, {ANSWER} tokens generated")
    for name in names:
        path = options.cache / MODELS[name]
        if name == "llama-1.1b-random" and not path.exists():
            bench_model.write(options.cache / MODELS["smollm2-135m-instruct"], path)
        for prompt in contexts:
            compare(name, path, options, prompt)


def compare(name: str, path: Path, options: argparse.Namespace, prompt: int) -> None:
    """Runs the engines in turn and prints what they took."""
    runs: dict[str, list[dict[str, float]]] = {"ours": [], "plain": [], "flash": []}
    for i in range(options.rounds + 1):
        for engine, found in runs.items():
            figures = measure(sys.executable if engine == "ours" else options.theirs, engine, path, options, prompt)
            if i > 0:
                found.append(figures)
    for what, unit in UNITS.items():
        middle = {engine: statistics.median(run[what] for run in found) for engine, found in runs.items()}
        less = what in ("start", "peak")
        best = (min if less else max)("plain", "flash", key=lambda engine: middle[engine])
        ratio = statistics.median(a[what] / b[what] for a, b in zip(runs["ours"], runs[best], strict=True))
        line = (
            f"{name:22} {prompt:5} {what:7} adventures {middle['ours']:7.1f} {unit:9}"
            f" llama.cpp {middle[best]:7.1f} ({best})  ratio {ratio:.2f}"
        )
        if what == "peak":
            line += f"  file, cache and {SPARE} MB: {allowance(path, prompt):.0f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
