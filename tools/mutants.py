"""Feeds broken model files to the library (`make mutants`): each gives a text or a clear error, within a second.

Children load, tokenize, detokenize and generate under a memory limit; a child that dies or stalls is replaced, and the
seed that it died of is reported with the command that repeats it. The same seed always makes the same mutant.

    python tools/mutants.py [--gguf 10000] [--tokenizer 2000] [--first 0] [--jobs 2] [--keep DIR]
    python tools/mutants.py --repeat gguf:1234 [--keep DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import mutant_models
import mutant_tokenizers

# What a mutant may take. It is looked at again, alone, before it is called slow: other work on the machine is not its
# fault.
SECONDS = 1.0
STALLED = 20.0
ADDRESS_SPACE = 1 << 30
ROOM = 64 << 20
LONGEST_MESSAGE = 2000
PROMPT = "The cat and the dog. 🐉 1234"
TEXTS = [PROMPT, "", "<|im_end|><bos></s>\n\n\n", "ab" * 300, "\u0000 ▁ éà日本 \U0010ffff"]
KINDS = ("gguf", "tokenizer")


def memory(name: str) -> int:
    """Returns a size that the kernel knows of this process, in bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    found = re.search(rf"{name}:\s+(\d+)", status)
    assert found, f"no {name} in /proc/self/status"
    return int(found[1]) * 1024


def use(path: Path, adv: Any) -> list[str]:
    """Loads a model and does with it what one does; returns what went wrong, cleanly or not, stage by stage."""
    errors: list[str] = []

    def stage(what: str, action: Any) -> Any:
        try:
            return action()
        except (ValueError, FileNotFoundError, NotImplementedError, OSError, adv.AdventuresError) as error:
            errors.append(f"{what}: {type(error).__name__}: {error}")
        return None

    config = path / "config.json"
    if config.is_file() and "bert" in config.read_text(encoding="utf-8"):
        embedder = stage("load", lambda: adv.Embedder(path, threads=1))
        if embedder is not None:
            stage("embed", lambda: embedder.embed(TEXTS))
            stage("count", lambda: embedder.count_tokens(TEXTS))
            stage("split", lambda: embedder.split(["the dragon climbs " * 40]))
        return errors
    generator = stage("load", lambda: adv.Generator(path, threads=1))
    if generator is None:
        return errors
    for text in TEXTS:
        ids = stage("tokenize", lambda text=text: generator.tokenize(text))
        if ids is not None:
            stage("detokenize", lambda ids=ids: generator.detokenize(ids))
    stage("detokenize", lambda: generator.detokenize(range(min(generator.vocab_size, 300))))
    stage("complete", lambda: generator.complete(PROMPT, max_tokens=4, logprobs=2).text())
    stage("generate", lambda: generator.generate(PROMPT, max_tokens=4, temperature=1.0, seed=1).text())
    return errors


def complaints(errors: list[str], path: Path) -> list[str]:
    """Returns what is wrong with the errors themselves."""
    found = []
    for error in errors:
        stage, kind, message = error.split(": ", 2)
        bare = message.replace(str(path), "")
        if re.search("internal error|panicked|this is a bug", message):
            found.append(f"not an error but a bug: {error[:400]}")
        elif kind == "MemoryError" or not bare or message[0].isupper():
            found.append(f"not a clear error: {error[:400]}")
        elif len(bare) > LONGEST_MESSAGE:
            found.append(f"{stage}: an error of {len(bare)} characters: {error[:300]} …")
    return found


def write(kind: str, seed: int, folder: Path) -> tuple[str, Path, int]:
    """Writes a mutant; returns what is wrong with it, where it is and how many bytes it has."""
    if kind == "tokenizer" and seed % 2:
        return mutant_tokenizers.write(seed, folder)
    what, data = mutant_models.gguf_mutant(seed, words_only=kind == "tokenizer")
    path = folder / "mutant.gguf"
    path.write_bytes(data)
    return what, path, len(data)


def child(seeds: list[tuple[str, int]], keep: Path | None) -> None:
    """Runs mutants one after the other; a line before and after each."""
    import adventures as adv

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit = memory("VmSize") + ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with tempfile.TemporaryDirectory() as temporary:
        folder = keep or Path(temporary)
        healthy = folder / "sound.gguf"
        healthy.write_bytes(mutant_models.sound("llama"))
        expected = adv.Generator(healthy, threads=1).complete(PROMPT, max_tokens=4).text()
        for number, (kind, seed) in enumerate(seeds):
            what, path, size = write(kind, seed, folder)
            print(json.dumps({"begun": f"{kind}:{seed}", "what": what}), flush=True)
            # Resets VmHWM.
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            before, start = memory("VmRSS"), time.monotonic()
            errors = use(path, adv)
            seconds, peak = time.monotonic() - start, memory("VmHWM") - before
            wrong = complaints(errors, path)
            if peak > 2 * size + ROOM:
                wrong.append(f"{peak >> 20} MiB of memory for a file of {size} bytes")
            if (
                number % 50 == 49
                and adv.Generator(healthy, threads=1).complete(PROMPT, max_tokens=4).text() != expected
            ):
                wrong.append("a sound model says something else after it")
            result = {"seconds": seconds, "peak": peak, "errors": [error[:300] for error in errors], "wrong": wrong}
            print(json.dumps(result), flush=True)


class Report:
    """What the children said."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.outcomes: Counter[str] = Counter()
        self.failures: dict[str, list[str]] = {}
        self.slow: list[str] = []
        self.slowest = 0.0
        self.peak = 0
        self.messages: Counter[str] = Counter()
        self.caught = 0

    def take(self, name: str, what: str, result: dict[str, Any]) -> None:
        """Adds one mutant."""
        with self.lock:
            self.outcomes["refused" if result["errors"] else "text"] += 1
            self.messages.update(re.sub(r"\S*/\S+|[\d.]+|\"[^\"]*\"", "_", error)[:90] for error in result["errors"])
            self.peak = max(self.peak, result["peak"])
            if result["wrong"]:
                self.failures[name] = [what, *result["wrong"]]
            if result["seconds"] > SECONDS:
                self.slow.append(name)
            else:
                self.slowest = max(self.slowest, result["seconds"])

    def fail(self, name: str, what: str, why: str) -> None:
        """Adds a mutant that its child did not survive."""
        with self.lock:
            self.outcomes["died"] += 1
            self.failures[name] = [what, why]


def lines(process: subprocess.Popen[bytes]) -> Any:
    """Yields what the child prints, None where it has been silent for too long."""
    assert process.stdout
    rest = b""
    while True:
        if not select.select([process.stdout], [], [], STALLED)[0]:
            yield None
            return
        data = os.read(process.stdout.fileno(), 1 << 16)
        if not data:
            return
        *whole, rest = (rest + data).split(b"\n")
        yield from map(json.loads, whole)


def work(names: list[str], report: Report, keep: Path | None = None) -> None:
    """Runs mutants in as many children as it takes."""
    environment = {**os.environ, "MALLOC_ARENA_MAX": "2", "RUST_BACKTRACE": "0"}
    while names:
        command = [sys.executable, __file__, "--child", "-"]
        command += ["--keep", str(keep)] if keep else []
        with tempfile.TemporaryFile() as stderr:
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr
            )
            assert process.stdin
            process.stdin.write("\n".join(names).encode())
            process.stdin.close()
            begun: dict[str, str] | None = None
            stalled = False
            for line in lines(process):
                if line is None:
                    stalled = True
                    process.kill()
                elif "begun" in line:
                    begun = line
                elif begun:
                    report.take(begun["begun"], begun["what"], line)
                    names = names[1:]
                    begun = None
            status = process.wait()
            assert process.stdout
            process.stdout.close()
            stderr.seek(0)
            said = stderr.read().decode(errors="replace")
            report.caught += said.count("panicked at")
        if begun is None and names:
            report.fail(names[0], "not made", f"its child ended with status {status}: {said[-3000:]}")
            names = names[1:]
        if begun:
            why = (
                f"no answer for {STALLED:.0f} s"
                if stalled
                else f"the process ended with status {status}: {said[-1500:]}"
            )
            report.fail(begun["begun"], begun["what"], why)
            names = names[1:]


def run(names: list[str], jobs: int) -> Report:
    """Runs the mutants of these names, such as `gguf:7`, and those that were slow once more."""
    report = Report()
    threads = [threading.Thread(target=work, args=(names[i::jobs], report)) for i in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in report.slow:
        again = Report()
        work([name], again)
        if again.slow:
            report.failures.setdefault(name, []).append(f"takes more than {SECONDS} s")
    return report


def main() -> None:
    """Runs the mutants, or one batch where a parent asks for it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gguf", type=int, default=10_000, help="how many files")
    parser.add_argument("--tokenizer", type=int, default=2_000, help="how many files")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=min(len(os.sched_getaffinity(0)), 8))
    parser.add_argument("--repeat", help="one mutant, by its name, such as gguf:7")
    parser.add_argument("--keep", type=Path, help="a folder in which the last mutant stays")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
    if options.child:
        split = [name.split(":") for name in sys.stdin.read().split()]
        child([(kind, int(seed)) for kind, seed in split], options.keep)
        return
    if options.repeat:
        report = Report()
        work([options.repeat], report, options.keep)
        if report.slow:
            report.failures.setdefault(options.repeat, []).append(f"takes more than {SECONDS} s")
        print("\n".join(report.messages))
    else:
        counts = {"gguf": options.gguf, "tokenizer": options.tokenizer}
        start = time.monotonic()
        names = [f"{kind}:{options.first + i}" for kind, count in counts.items() for i in range(count)]
        report = run(names, options.jobs)
        print(
            f"{len(names)} mutants in {time.monotonic() - start:.0f} s: {dict(report.outcomes)}, slowest"
            f" {report.slowest:.2f} s, at most {report.peak >> 20} MiB above the process,"
            f" {len(report.messages)} kinds of errors, {report.caught} panics of libraries caught"
        )
    for name, why in report.failures.items():
        print(f"\n{name} fails; python tools/mutants.py --repeat {name} --keep mutant\n  " + "\n  ".join(why))
    sys.exit(bool(report.failures))


if __name__ == "__main__":
    main()
