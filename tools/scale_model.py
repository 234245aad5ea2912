"""What a first sync of a large table costs on N machines, from what each step costs on this one.

Every step is measured alone, in seconds of processor time, so that other work on the machine changes little. Prints the
measurements as JSON, then the table of docs/scale.md.

    python tools/scale_model.py --rows 1_000_000_000 --tokens 40 --cores 64 --price 1.5
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
from deltalake import DeltaTable

import adventures as adv
from adventures.census import Census, Digester
from adventures.delta import RowSource
from adventures.store import Store

sys.path.insert(0, str(Path(__file__).parent))

from typing import TYPE_CHECKING

import bench_sync

if TYPE_CHECKING:
    from lancedb.table import Table

_DIM = 384
_SEED = 1


def processor_seconds(work: object) -> float:
    """Returns the processor time of all threads that a call took."""
    started = time.process_time()
    assert callable(work)
    work()
    return time.process_time() - started


def embedding(model: str, texts: list[str], precision: str) -> float:
    """Returns tokens for each second of a core."""
    embedder = adv.Embedder(model, threads=1, precision=precision)  # type: ignore[arg-type]
    embedder.embed(texts[:100])
    tokens = sum(embedder.count_tokens(texts))
    return tokens / processor_seconds(lambda: embedder.embed(texts))


def census(folder: Path, rows: int) -> float:
    """Returns rows for each second of a core: read, made texts of, and digested."""
    bench_sync.write(folder, rows)
    source = RowSource.of(DeltaTable(folder), id="id", text="{text}")
    return rows / processor_seconds(lambda: Census.of(source, Digester(256, 32)))


def merging(rows: int) -> float:
    """Returns digests for each second of a core that the driver sorts and compares."""
    generator = np.random.default_rng(_SEED)
    digests = np.frombuffer(generator.bytes(36 * rows), "S12").reshape(-1, 3)
    digests = digests[np.argsort(digests[:, 0])]
    parts = [Census(part, len(part), []) for part in np.array_split(digests, 2)]
    return rows / processor_seconds(lambda: Census.merged(parts, None))  # type: ignore[arg-type]


def made(folder: Path, rows: int) -> Table:
    """Writes a table of passages with vectors that lie in clusters."""
    generator = np.random.default_rng(_SEED)
    centres = generator.standard_normal((256, _DIM), np.float32)
    vectors = centres[generator.integers(0, 256, rows)] + 0.5 * generator.standard_normal((rows, _DIM), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), _DIM)
    names = [str(number) for number in range(rows)]
    table = pa.table({"row_id": names, "text": bench_sync.texts(0, rows, 0), "vector": column})
    return lancedb.connect(str(folder)).create_table("passages", table)


def size(folder: Path) -> int:
    """Returns the bytes of all files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def measure(model: str, rows: int) -> dict[str, float]:
    """Returns what each step costs here."""
    texts = bench_sync.texts(0, 2000, 0)
    store = Store("", "passages")
    with tempfile.TemporaryDirectory(prefix="scale-") as name:
        folder = Path(name)
        found = {
            "tokens_per_core_second_f32": embedding(model, texts, "f32"),
            "tokens_per_core_second_auto": embedding(model, texts, "auto"),
            "census_rows_per_core_second": census(folder / "delta", rows),
            "merge_rows_per_core_second": merging(rows),
        }
        tables: list[Table] = []
        found["write_rows_per_core_second"] = rows / processor_seconds(
            lambda: tables.append(made(folder / "lance", rows))
        )
        found["bytes_per_row"] = size(folder / "lance") / rows
        store.index(tables[0])  # the full text, and the names of rows
        found["bytes_per_row_of_words"] = size(folder / "lance") / rows - found["bytes_per_row"]
        import adventures.store

        adventures.store.INDEX_FROM = 0
        found["index_rows_per_core_second"] = rows / processor_seconds(lambda: store.index(tables[0]))
        found["bytes_per_row_of_vector_index"] = (
            size(folder / "lance") / rows - found["bytes_per_row"] - found["bytes_per_row_of_words"]
        )
    return found


def hours(found: dict[str, float], rows: float, tokens: float, cores: int, machines: int) -> dict[str, float]:
    """Returns the hours of each step: those of the workers side by side, those of the driver on one machine."""
    everywhere = 3600 * cores * machines
    return {
        "census": rows / found["census_rows_per_core_second"] / everywhere,
        "compare": rows / found["merge_rows_per_core_second"] / 3600,
        "embed": rows * tokens / found["tokens_per_core_second_auto"] / everywhere,
        "write": rows / found["write_rows_per_core_second"] / everywhere,
        "index": rows / found["index_rows_per_core_second"] / (3600 * cores),
    }


def main() -> None:
    """Measures, and prints the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="all-minilm-l6-v2")
    parser.add_argument("--sample", type=int, default=50_000, help="rows that are measured")
    parser.add_argument("--rows", type=float, default=1e9)
    parser.add_argument("--tokens", type=float, default=40, help="tokens of a row")
    parser.add_argument("--cores", type=int, default=64, help="cores of a machine")
    parser.add_argument("--price", type=float, default=1.5, help="dollars for an hour of a machine")
    given = parser.parse_args()
    found = measure(given.model, given.sample)
    print(json.dumps({**{name: round(value, 1) for name, value in found.items()}, "cores_here": os.cpu_count()}))
    print("\n| machines | census | compare | embed | write | index | in all, hours | machine-hours | dollars |")
    print("|---|---|---|---|---|---|---|---|---|")
    for machines in (1, 4, 16, 64):
        steps = hours(found, given.rows, given.tokens, given.cores, machines)
        # Workers go back before the driver makes the indexes.
        side_by_side = steps["census"] + steps["embed"] + steps["write"] + steps["compare"]
        paid = side_by_side * machines + steps["index"]
        cells = [f"{hour:.2f}" for hour in (*steps.values(), side_by_side + steps["index"])]
        print(f"| {machines} | {' | '.join(cells)} | {paid:.0f} | {paid * given.price:.0f} |")


if __name__ == "__main__":
    main()
