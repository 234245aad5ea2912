"""Times `ColbertIndex` as it grows (`make bench-colbert-scale`): passages of some 20 synthetic token vectors.

A token is one of 30,000 words, of which few are frequent, turned towards one of the topics of its passage, with noise:
a mixture, for uniform noise has no neighbours. A query is the tokens of a passage with more noise. Building and
searching are processes of their own, whose peak memory is told; searching opens the index, then takes one query after
the other on all threads. Recall is of exhaustive search by the same codes.

    python tools/bench_colbert_scale.py [--passages 10000 100000 1000000] [--nbits 4] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import adventures as adv

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

DIM, WORDS, TOPICS, TOKENS, QUERIES, K = 96, 30_000, 3_000, 20, 200, 10
BATCH = 1000


class Corpus:
    """Passages, the same for the same seed."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.words = rng.standard_normal((WORDS, DIM), np.float32)
        self.topics = rng.standard_normal((TOPICS, DIM), np.float32)
        # Zipf's law, as of words.
        shares = 1 / np.arange(10, WORDS + 10)
        self.shares = np.cumsum(shares / shares.sum())

    def batch(self, number: int) -> list[NDArray[np.float32]]:
        """Some passages."""
        rng = np.random.default_rng([1, number])
        lengths = rng.integers(TOKENS // 2, TOKENS * 3 // 2, BATCH)
        total = int(lengths.sum())
        words = np.searchsorted(self.shares, rng.random(total)).clip(max=WORDS - 1)
        topics = np.repeat(rng.integers(0, TOPICS, (BATCH, 3)), lengths, axis=0)[
            np.arange(total), rng.integers(0, 3, total)
        ]
        rows = self.words[words] + 0.7 * self.topics[topics] + 0.6 * rng.standard_normal((total, DIM), np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return np.split(rows, np.cumsum(lengths)[:-1])

    def passages(self, count: int) -> Iterator[NDArray[np.float32]]:
        """The first `count`, as they are asked for."""
        for number in range(0, count, BATCH):
            yield from self.batch(number // BATCH)[: count - number]

    def queries(self, count: int) -> list[NDArray[np.float32]]:
        """Passages of the first `count`, with noise."""
        rng, found = np.random.default_rng(2), []
        for number in rng.integers(0, max(1, count // BATCH), QUERIES):
            passage = self.batch(int(number))[int(rng.integers(0, BATCH))]
            rows = passage + 0.05 * rng.standard_normal(passage.shape, np.float32)
            found.append(rows / np.linalg.norm(rows, axis=1, keepdims=True))
        return found


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def build(where: Path, count: int, nbits: int) -> dict[str, float]:
    corpus = Corpus()
    start = time.perf_counter()
    for _ in corpus.passages(count):
        pass
    making = time.perf_counter() - start
    start = time.perf_counter()
    index = adv.ColbertIndex.create(where, vectors=corpus.passages(count), nbits=nbits)
    # What the vectors themselves take is not the index's.
    seconds = time.perf_counter() - start - making
    info = index.info()
    return {"build s": seconds, "tokens": info["tokens"], "bytes/token": info["bytes"] / info["tokens"], "MiB": peak()}


def search(where: Path, count: int) -> dict[str, float]:
    queries = Corpus().queries(count)
    start = time.perf_counter()
    index = adv.ColbertIndex.open(where)
    opened = time.perf_counter() - start
    seconds, same = [], []
    for i, query in enumerate(queries):
        start = time.perf_counter()
        hits = index.search(query, K)
        seconds.append(time.perf_counter() - start)
        if i < 20:
            best = {hit.id for hit in index.search(query, K, exhaustive=True)}
            same.append(len(best & {hit.id for hit in hits}) / K)
    cuts = statistics.quantiles(seconds, n=100)
    figures = {"open ms": opened * 1e3, "p50 ms": cuts[49] * 1e3, "p99 ms": cuts[98] * 1e3}
    return {**figures, f"recall@{K}": statistics.mean(same), "MiB": peak()}


def child(*args: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--part", *args]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(out.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passages", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--nbits", type=int, default=4)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        what, where, count, nbits = args.part
        made = build(Path(where), int(count), int(nbits)) if what == "build" else search(Path(where), int(count))
        return print(json.dumps(made))
    for count in args.passages:
        where = args.folder / f"adventures-scale-{count}"
        shutil.rmtree(where, ignore_errors=True)
        try:
            for what in ("build", "search"):
                figures = child(what, str(where), str(count), str(args.nbits))
                row = "  ".join(f"{name} {value:,.3f}" for name, value in figures.items())
                print(f"{count:,} passages, {args.nbits} bits, {what}: {row}", flush=True)
        finally:
            shutil.rmtree(where, ignore_errors=True)
    return None


if __name__ == "__main__":
    main()
