"""What a sync asks of its embedder: each passage once, as Arrow, many at a time; the tools that time it run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from deltalake import write_deltalake

import adventures as adv
import bench_sync_rate
import scale_model

if TYPE_CHECKING:
    from pathlib import Path


class Watched:
    """An embedder whose work is counted."""

    def __init__(self, embedder: adv.Embedder) -> None:
        self._embedder = embedder
        self.batches: list[pa.Array] = []
        self.counted = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._embedder, name)

    def encode(self, texts: list[str], kind: str = "passage") -> Any:
        pytest.fail("a sync embeds Arrow")

    def count_tokens(self, texts: list[str]) -> list[int]:
        self.counted += len(texts)
        return self._embedder.count_tokens(texts)

    def embed_arrow(self, texts: pa.Array) -> pa.FixedSizeListArray:
        assert isinstance(texts, pa.Array)
        self.batches.append(texts)
        return self._embedder.embed_arrow(texts)


def test_each_passage_is_embedded_once_and_many_at_a_time(minilm: adv.Embedder, tmp_path: Path) -> None:
    texts = [f"row {n} of the ledger" for n in range(1300)]
    texts[7] = "a long story of ropes, lamps and cliffs. " * 60
    write_deltalake(tmp_path / "t", pa.table({"id": range(1300), "text": texts}))
    watched: Any = Watched(minilm)
    library = adv.Library.open(tmp_path / "l", embedder=watched)
    report = library.sync(tmp_path / "t", id="id", text="{text}")
    pieces = minilm.split(texts, max_tokens=256, overlap=32)
    flat = [piece for own in pieces for piece in own]
    assert len(pieces[7]) > 2
    embedded = [text for batch in watched.batches for text in batch.to_pylist()]
    assert sorted(embedded) == sorted(flat), "each once"
    assert max(map(len, watched.batches)) == 512
    assert len(watched.batches) <= 6, "few calls, each of many texts"
    assert watched.counted == 1300 + len(pieces[7]), "a text that fits is tokenized once more than it is embedded"
    encoded = minilm.encode(flat)
    assert (report.tokens, report.truncated, report.passages) == (int(encoded.tokens.sum()), 0, len(flat))
    rows = library.table.to_arrow().select(["text", "vector"]).to_pylist()
    by_text = dict(zip(flat, encoded.vectors, strict=True))
    assert all(np.array_equal(np.float32(row["vector"]), by_text[row["text"]]) for row in rows)


def test_the_measurement_in_short(minilm: adv.Embedder) -> None:
    ((alone, synced),) = bench_sync_rate.measure(minilm, 60, 1)
    assert alone.tokens == synced.tokens > 60 * 6
    assert min(alone.wall, alone.cpu, synced.wall, synced.cpu) > 0


def test_the_scale_model_measures_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of few rows, with all indexes that a large library has."""
    monkeypatch.setattr("adventures.store.INDEX_FROM", 10**9)
    monkeypatch.setattr("adventures.store.NAMES_FROM", 0)
    found = scale_model.measure("all-minilm-l6-v2", 1000)
    assert len(found) == 9
    assert all(value > 0 for value in found.values())
