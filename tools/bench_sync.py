"""Times a first sync of generated tables and a second one after 1 % of the rows changed, and takes the peak of memory.

Each sync runs in a process of its own, with a tiny seeded encoder: what is measured is all that is not the model. Rows
are eight words of a vocabulary like that of a language, 40 tokens. Prints a line of JSON for each sync, then ratios.

    python tools/bench_sync.py --rows 10000 1000000
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from deltalake import DeltaTable, write_deltalake

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import tiny

if TYPE_CHECKING:
    from collections.abc import Iterator

_STEP = 10_000
_WORDS = 20_000
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
# What a sync of a library does, in a process of its own, for whose peak it asks the system.
_SYNC = """
import json, sys, threading
import adventures as adv

embedder = adv.Embedder(sys.argv[1])
library = adv.Library.open(sys.argv[2], embedder=embedder)
embedded = 0
embed_arrow = embedder.embed_arrow

class Counting:
    def __getattr__(self, name):
        return getattr(embedder, name)

    def embed_arrow(self, texts, kind="passage"):
        global embedded
        embedded += len(texts)
        return embed_arrow(texts, kind=kind)

library._embedder = Counting()
report = library.sync(sys.argv[3], id="id", text="{text}")
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
print(json.dumps({
    "rows": report.written, "method": report.method, "changed": report.added + report.updated + report.deleted,
    "embedded": embedded, "seconds": report.seconds, "peak_mib": round(peak), "passages": report.passages,
}))
"""


def texts(start: int, count: int, salt: int) -> list[str]:
    """Returns `count` texts of eight words, of which few are frequent."""
    words = np.array(["".join(row) for row in np.random.default_rng(1).choice(list(_LETTERS), (_WORDS, 5))])
    ranks = np.random.default_rng([start, salt]).zipf(1.3, (count, 8))
    return [" ".join(row) for row in words[np.minimum(ranks, _WORDS) - 1]]


def batches(rows: int, *, every: int, salt: int) -> Iterator[pa.RecordBatch]:
    """Yields the rows of a table whose number is a multiple of `every`."""
    for start in range(0, rows, _STEP):
        numbers = range(start, min(start + _STEP, rows), every)
        yield pa.record_batch(
            {
                "id": pa.array(numbers, pa.int64()),
                "text": texts(start, len(numbers), salt),
                "aisle": [f"aisle {number % 30}" for number in numbers],
            }
        )


def write(path: Path, rows: int) -> None:
    """Writes the table."""
    made = batches(rows, every=1, salt=0)
    first = next(made)
    reader = pa.RecordBatchReader.from_batches(first.schema, itertools.chain([first], made))
    write_deltalake(path, reader, configuration={"delta.enableChangeDataFeed": "true"})


def change(path: Path, rows: int) -> None:
    """Gives every hundredth row another text."""
    source = pa.Table.from_batches(list(batches(rows, every=100, salt=1)))
    DeltaTable(path).merge(source, "s.id = t.id", "s", "t").when_matched_update({"text": "s.text"}).execute()


def sync(model: Path, library: Path, table: Path) -> dict[str, Any]:
    """Syncs in a process of its own and returns what it reports."""
    arguments = [sys.executable, "-c", _SYNC, str(model), str(library), str(table)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return dict(json.loads(done.stdout))


def measure(folder: Path, rows: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns what a first and a second sync of a table of `rows` rows report."""
    model, table, library = folder / "model", folder / f"table-{rows}", folder / f"library-{rows}"
    if not model.exists():
        tiny.bert(model, seed=1)
    write(table, rows)
    first = sync(model, library, table)
    change(table, rows)
    second = sync(model, library, table)
    return first, second


def main() -> None:
    """Measures tables of the given sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000])
    sizes = sorted(parser.parse_args().rows)
    peaks = {}
    with tempfile.TemporaryDirectory(prefix="bench-sync-") as folder:
        for rows in sizes:
            started = time.monotonic()
            first, second = measure(Path(folder), rows)
            peaks[rows] = max(first["peak_mib"], second["peak_mib"])
            for name, report in (("first", first), ("second", second)):
                print(json.dumps({"sync": name, **report}), flush=True)
            share = second["embedded"] / rows
            ratio = second["seconds"] / first["seconds"]
            print(
                f"{rows:,} rows: the second sync embeds {share:.2%} of the rows in {ratio:.2%} of the time of the first"
                f" ({time.monotonic() - started:.0f} s in all)",
                flush=True,
            )
    small, large = sizes[0], sizes[-1]
    print(f"peak memory of {large:,} rows: {peaks[large] / peaks[small]:.2f} times that of {small:,}")


if __name__ == "__main__":
    main()
