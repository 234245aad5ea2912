"""How near a sync comes to the rate of its embedder alone: from a Delta table to a published library, in tokens/s.

In turns, in one process: the embedder over all texts, then a sync of the same texts into a new library. Rows have 4 to
28 words of the model's own vocabulary. Prints what both take, of the clock and of the processors, and the ratio.

    python tools/bench_sync_rate.py --rows 50000 --rounds 3
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from deltalake import write_deltalake

import adventures as adv

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Taken:
    """Tokens, and what they took: seconds of the clock, and of the processors."""

    tokens: int
    wall: float
    cpu: float


def texts(embedder: adv.Embedder, rows: int) -> list[str]:
    """Returns `rows` texts of whole words that the model knows."""
    vocabulary = (Path(embedder.path) / "vocab.txt").read_text(encoding="utf-8").split("\n")
    words = np.array([word for word in vocabulary[2000:20_000] if word.isalpha() and word.isascii()])
    rng = np.random.default_rng(1)
    return [" ".join(rng.choice(words, rng.integers(4, 29))) for _ in range(rows)]


def taken(work: Callable[[], int]) -> Taken:
    """Returns what some work took that says how many tokens it embedded."""
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = work()
    return Taken(tokens, time.perf_counter() - wall, time.process_time() - cpu)


def alone(embedder: adv.Embedder, rows: list[str]) -> int:
    """Embeds all, and keeps nothing."""
    return sum(int(part.tokens.sum()) for part in embedder.encode_stream(rows))


def synced(embedder: adv.Embedder, table: Path, place: Path) -> int:
    """Syncs into a new library."""
    library = adv.Library.open(place, embedder=embedder)
    report = library.sync(table, id="id", text="{text}", progress=False)
    shutil.rmtree(place)
    return report.tokens


def measure(embedder: adv.Embedder, rows: int, rounds: int) -> list[tuple[Taken, Taken]]:
    """Returns, of each round, what the embedder took alone and what the sync took."""
    found = []
    every = texts(embedder, rows)
    with tempfile.TemporaryDirectory() as folder:
        table, few = Path(folder) / "table", Path(folder) / "few"
        for path, some in ((table, every), (few, every[:500])):
            numbers = range(len(some))
            write_deltalake(path, pa.table({"id": numbers, "text": some, "aisle": [n % 30 for n in numbers]}))
        # What is loaded once is loaded now.
        alone(embedder, every[:500])
        synced(embedder, few, Path(folder) / "library")
        for _ in range(rounds):
            one = taken(lambda: alone(embedder, every))
            two = taken(lambda: synced(embedder, table, Path(folder) / "library"))
            if one.tokens != two.tokens:
                sys.exit(f"the sync embedded {two.tokens} tokens, the embedder {one.tokens}")
            found.append((one, two))
    return found


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", default="all-minilm-l6-v2")
    parser.add_argument("--precision", default="f32")
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    embedder = adv.Embedder(options.model, precision=options.precision)
    pairs = measure(embedder, options.rows, options.rounds)
    for name, which in (("embedder", 0), ("sync", 1)):
        rates = [pair[which].tokens / pair[which].wall for pair in pairs]
        cpu = [pair[which].tokens / pair[which].cpu for pair in pairs]
        print(
            f"{name:9} {statistics.median(rates):9,.0f} tokens/s, {statistics.median(cpu):9,.0f} a second of processor"
        )
    wall = [one.wall / two.wall for one, two in pairs]
    cpu = [one.cpu / two.cpu for one, two in pairs]
    shown = ", ".join(f"{ratio:.2f}" for ratio in wall)
    print(f"ratio {statistics.median(wall):.2f} ({shown}) of the clock, {statistics.median(cpu):.2f} of the processors")


if __name__ == "__main__":
    main()
