"""Times `ColbertIndex` as it grows (`make bench-colbert-scale`): passages of some 20 synthetic token vectors.

A token is a word (30,000, few of them frequent), the passage that it stands in, and noise of its own; words differ in
how much of a token they are. A passage is an area, a topic, a document and what it alone has, half of its words are
those of its topic, and each 22 passages bring one topic more, so that a larger corpus has more of what there is, not
the same more often. A query is a passage that the index does not have.

The weights make 13,000 passages like those of a real text: the token vectors of NFCorpus by all-MiniLM-L6-v2, as
`bench_colbert.py` makes them, in passages of 20. In the real one | here, of a token of a query, with other passages:

    product with its nearest token: 5 %, half, 95 %         0.58  0.78  0.92  |  0.58  0.77  0.92
    with the tenth, the hundredth, the thousandth, half     0.70  0.57  0.43  |  0.65  0.51  0.41
    two tokens of a passage: 5 %, half, 95 %                0.02  0.30  0.83  |  0.08  0.35  0.59
    a token of exact MaxSim: rank 1, 2, 10                  0.53  0.52  0.48  |  0.56  0.54  0.49
    of rank 50, of rank 200, of half of the passages        0.44  0.40  0.25  |  0.43  0.39  0.27
    dimensions that take part, of 96                        44                |  41

Building and searching are processes of their own, whose peak memory is told, of searching before it is judged;
searching opens the index, then takes one query after the other on all threads. `cpu` is processor time, which other
processes on the machine change less. Recall is of exhaustive search by the same codes.

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

DIM, WORDS, AREAS, OWN, QUERIES, JUDGED, K = 96, 30_000, 40, 60, 200, 100, 10
# Passages of a document, of a topic, and of a batch.
DOCUMENT, TOPIC, BATCH = 13, 22, 1040
# What the dimensions have, as token vectors have more in some than in others, and what all tokens share.
DECAY, SHARED = 0.45, 0.055
# What a passage is of its area, its topic, its document and its own.
CONTEXT = (0.35, 0.3, 0.2, 0.15)
# A token's share of its word, from and to; of the rest, that of the passage.
WORD, PASSAGE = (0.25, 0.85), 0.7


class Corpus:
    """`count` passages, the same for the same count."""

    def __init__(self, count: int) -> None:
        rng = np.random.default_rng(0)
        spread = (np.arange(DIM) + 4.0) ** -DECAY
        self.spread = (spread / np.linalg.norm(spread)).astype(np.float32)
        self.topics = max(1, count // TOPIC)
        shared = self.vectors(1, rng)
        self.shared = shared * np.float32(np.sqrt(SHARED) / np.linalg.norm(shared))
        self.words = self.vectors(WORDS, rng)
        areas = self.vectors(AREAS, rng)[rng.integers(0, AREAS, self.topics)]
        own = np.float32(np.sqrt(CONTEXT[:2]))
        self.contexts = own[0] * areas + own[1] * self.vectors(self.topics, rng)
        self.word = rng.uniform(*WORD, (WORDS, 1)).astype(np.float32)
        # Zipf's law, as of words; a topic's words are some of them.
        self.shares, self.own_shares = (
            np.cumsum(1 / np.arange(first, n + first)) for first, n in ((10, WORDS), (5, OWN))
        )
        self.own = self.drawn(self.shares, (self.topics, OWN), rng)

    def vectors(self, count: int, rng: np.random.Generator) -> NDArray[np.float32]:
        """Some of length 1, about."""
        return rng.standard_normal((count, DIM), np.float32) * self.spread

    @staticmethod
    def drawn(shares: NDArray[np.float64], shape: int | tuple[int, int], rng: np.random.Generator) -> NDArray[np.intp]:
        """Numbers that have these shares, summed up."""
        return np.searchsorted(shares, rng.random(shape) * shares[-1]).clip(max=len(shares) - 1)

    def batch(self, part: int, number: int) -> list[NDArray[np.float32]]:
        """Some passages, of the index or of the queries."""
        rng = np.random.default_rng([part, number])
        topics = np.repeat(rng.integers(0, self.topics, BATCH // DOCUMENT), DOCUMENT)
        own = np.float32(np.sqrt(CONTEXT[2:]))
        contexts = self.contexts[topics] + own[0] * np.repeat(self.vectors(BATCH // DOCUMENT, rng), DOCUMENT, axis=0)
        contexts += own[1] * self.vectors(BATCH, rng)
        lengths = rng.integers(10, 31, BATCH)
        of = np.repeat(np.arange(BATCH), lengths)
        theirs = self.own[topics[of], self.drawn(self.own_shares, len(of), rng)]
        words = np.where(rng.random(len(of)) < 0.5, theirs, self.drawn(self.shares, len(of), rng))
        word, rest = self.word[words], 1 - self.word[words]
        rows = self.shared + np.sqrt(word) * self.words[words]
        rows += np.sqrt(rest * np.float32(PASSAGE)) * contexts[of]
        rows += np.sqrt(rest * np.float32(1 - PASSAGE)) * self.vectors(len(of), rng)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return np.split(rows, np.cumsum(lengths)[:-1])

    def passages(self, count: int) -> Iterator[NDArray[np.float32]]:
        """The first `count`, as they are asked for."""
        for first in range(0, count, BATCH):
            yield from self.batch(0, first // BATCH)[: count - first]

    def queries(self) -> list[NDArray[np.float32]]:
        """Passages that the index does not have, each of another document."""
        return [batch for number in range(3) for batch in self.batch(1, number)[::DOCUMENT]][:QUERIES]


def spent() -> NDArray[np.float64]:
    """Seconds, and those of the processor."""
    return np.array([time.perf_counter(), time.process_time()])


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def build(where: Path, count: int, nbits: int) -> dict[str, float]:
    corpus = Corpus(count)
    start = spent()
    for _ in corpus.passages(count):
        pass
    making = spent() - start
    start = spent()
    index = adv.ColbertIndex.create(where, vectors=corpus.passages(count), nbits=nbits)
    # What the vectors themselves take is not the index's.
    seconds, cpu = spent() - start - making
    info = index.info()
    size = info["bytes"] / info["tokens"]
    return {"build s": seconds, "cpu s": cpu, "tokens": info["tokens"], "bytes/token": size, "MiB": peak()}


def search(where: Path, count: int) -> dict[str, float]:
    queries = Corpus(count).queries()
    start = time.perf_counter()
    index = adv.ColbertIndex.open(where)
    opened = time.perf_counter() - start
    seconds, found = [], []
    start = time.process_time()
    for query in queries:
        begun = time.perf_counter()
        found.append({hit.id for hit in index.search(query, K)})
        seconds.append(time.perf_counter() - begun)
    cpu = (time.process_time() - start) / len(queries)
    memory = peak()
    best = index.search_batch(queries[:JUDGED], K, exhaustive=True)
    same = [len({hit.id for hit in hits} & own) / K for hits, own in zip(best, found, strict=False)]
    cuts = statistics.quantiles(seconds, n=100)
    figures = {"open ms": opened * 1e3, "p50 ms": cuts[49] * 1e3, "p99 ms": cuts[98] * 1e3, "cpu ms": cpu * 1e3}
    return {**figures, f"recall@{K}": statistics.mean(same), "MiB": memory}


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
