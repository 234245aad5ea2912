"""Times search in a library of many vectors, with the indexes that a sync makes, and compares it with exact search.

The vectors are those of sentences of NFCorpus by MiniLM, each moved a little in many directions: they lie in clusters
as those of real texts do. Questions are those of NFCorpus, which lie apart from them. Texts are eight words of a
vocabulary like that of a language. Prints lines of JSON: what making the indexes took, then for dense and hybrid search
the median and 95th percentile, processor time, and recall@10, after as many other questions: an index is read from the
disk as it is asked for.

    python tools/bench_search.py --rows 1000000 --corpus nfcorpus.zip
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import adventures as adv
import bench_sync
from adventures.memory import little_kept
from adventures.storage import passage_schema
from adventures.store import Store
from words import Encoded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_DIM = 384
_STEP = 20_000
_SENTENCES = 6_000
_QUERIES = 200
# How far a vector is moved: its cosine to where it was is 0.86.
_JITTER = 0.6


class Given:
    """A model whose vectors are known: what is measured is the search alone."""

    name, revision, dim, max_tokens, pooling = "given", "1", _DIM, 256, "mean"
    prompts: dict[str, str] = {"query": "", "passage": ""}  # noqa: RUF012 (as the models have it)

    def __init__(self, vectors: dict[str, NDArray[np.float32]]) -> None:
        self.vectors = vectors

    def encode(self, texts: list[str], kind: str = "query") -> Encoded:
        """Returns the vectors of known texts."""
        del kind
        return Encoded(np.stack([self.vectors[text] for text in texts]), np.zeros(len(texts), np.uint32), [])


def read(corpus: Path, file: str) -> list[str]:
    """Returns the texts of a file of a corpus."""
    with zipfile.ZipFile(corpus) as archive:
        name = next(name for name in archive.namelist() if name.endswith(file))
        return [json.loads(line)["text"] for line in archive.read(name).splitlines()]


def vectors_of(corpus: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Returns vectors of real sentences `(n, dim)` and of real questions, twice as many as are timed."""
    embedder = adv.Embedder("all-minilm-l6-v2", precision="auto")
    found = [part for text in read(corpus, "corpus.jsonl") for part in text.split(". ")[:3] if 30 < len(part) < 400]
    questions = read(corpus, "queries.jsonl")
    step = len(questions) // (2 * _QUERIES)
    return embedder.embed(found[:_SENTENCES]), embedder.embed(questions[::step][: 2 * _QUERIES], kind="query")


def moved(base: NDArray[np.float32], count: int, generator: np.random.Generator) -> NDArray[np.float32]:
    """Returns `count` vectors near to some of `base`."""
    noise = generator.standard_normal((count, _DIM), np.float32) * np.float32(_JITTER / np.sqrt(_DIM))
    vectors = base[generator.integers(0, len(base), count)] + noise
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def passages(base: NDArray[np.float32], rows: int, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yields the passages of a library."""
    generator = np.random.default_rng(0)
    for start in range(0, rows, _STEP):
        numbers = np.arange(start, min(start + _STEP, rows))
        names = [str(number) for number in numbers]
        digest = pa.array([name.encode().ljust(16) for name in names], pa.binary(16))
        vectors = pa.array(moved(base, len(numbers), generator).reshape(-1))
        columns: dict[str, Any] = {
            "id": [f"{name}#0" for name in names],
            "row_id": names,
            "overlap": pa.nulls(len(numbers), pa.int32()),
            "ordinal": pa.array(np.zeros(len(numbers), np.int32)),
            "text": bench_sync.texts(start, len(numbers), 0),
            "text_hash": digest,
            "row_hash": digest,
            "key": pa.StructArray.from_arrays([pa.array(numbers)], names=["id"]),
            "vector": pa.FixedSizeListArray.from_arrays(vectors, _DIM),
        }
        yield pa.RecordBatch.from_arrays(
            [pa.array(columns[name], schema.field(name).type) for name in schema.names], schema=schema
        )


def peak() -> int:
    """Returns the most memory that this process has had since it was last asked to forget, in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def build(folder: str, base: NDArray[np.float32], rows: int, embedder: Given) -> None:
    """Writes a library as a sync does, and tells what its indexes took."""
    schema = passage_schema(embedder, pa.struct([pa.field("id", pa.int64())]), None)  # type: ignore[arg-type]
    store = Store(folder, "passages")
    draft = store.begin(None, schema)
    with little_kept():
        draft.write(pa.RecordBatchReader.from_batches(schema, passages(base, rows, schema)), anew=True)
        time.sleep(1)  # until what writing had is given back
        Path("/proc/self/clear_refs").write_text("5")
        before, started, processor = peak(), time.perf_counter(), time.process_time()
        draft.index()
    print(
        json.dumps(
            {
                "rows": rows,
                "index_seconds": round(time.perf_counter() - started, 1),
                "index_processor_seconds": round(time.process_time() - processor, 1),
                "index_mib": peak() - before,
            }
        ),
        flush=True,
    )
    source = {"table": "made", "version": 0, "read": rows, "written": rows, "skipped": []}
    draft.publish(source, anew=True, keep=1, since=time.time())


def exact(library: adv.Library, queries: NDArray[np.float32]) -> list[set[str]]:
    """Returns the ten nearest of each query `(n, dim)`, all vectors compared."""
    ids: list[NDArray[Any]] = []
    similarities: list[NDArray[np.float32]] = []
    search: Any = library.table.search().select(["id", "vector"])
    for batch in search.to_batches(65_536):
        vectors = np.asarray(batch.column("vector").flatten()).reshape(-1, _DIM)
        found = queries @ vectors.T
        best = np.argpartition(-found, 10, axis=1)[:, :10]
        similarities.append(np.take_along_axis(found, best, 1))
        ids.append(np.array(batch.column("id").to_pylist())[best])
    every, names = np.concatenate(similarities, 1), np.concatenate(ids, 1)
    best = np.argpartition(-every, 10, axis=1)[:, :10]
    return [set(row) for row in np.take_along_axis(names, best, 1).tolist()]


def main() -> None:
    """Builds a library and searches it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--corpus", type=Path, required=True, help="NFCorpus, as BEIR has it: a zip")
    given = parser.parse_args()
    base, vectors = vectors_of(given.corpus)
    texts = bench_sync.texts(0, 2 * _QUERIES, 7)
    embedder = Given(dict(zip(texts, vectors, strict=True)))
    before, texts = texts[1::2], texts[::2]
    vectors = np.stack([embedder.vectors[text] for text in texts])
    with tempfile.TemporaryDirectory(prefix="bench-search-") as folder:
        build(folder, base, given.rows, embedder)
        library = adv.Library.open(folder, embedder=embedder)  # type: ignore[arg-type]
        truth = exact(library, vectors)
        for hybrid in (False, True):
            for text in before:
                library.search(text, k=10, hybrid=hybrid)
            seconds: list[float] = []
            right = 0
            processor = time.process_time()
            for text, nearest in zip(texts, truth, strict=True):
                started = time.perf_counter()
                hits = library.search(text, k=10, hybrid=hybrid)
                seconds.append(time.perf_counter() - started)
                right += len(nearest & {hit.id for hit in hits})
            report: dict[str, Any] = {
                "search": "hybrid" if hybrid else "dense",
                "p50_ms": round(1e3 * float(np.median(seconds)), 1),
                "p95_ms": round(1e3 * float(np.percentile(seconds, 95)), 1),
                "least_ms": round(1e3 * min(seconds), 1),
                "processor_ms": round(1e3 * (time.process_time() - processor) / len(texts), 1),
            }
            if not hybrid:
                report["recall_at_10"] = right / (10 * len(texts))
            print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
