"""What a user gets by `pip install`: size, start-up time, no torch."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import time
from pathlib import Path

import pytest

import adventures as adv


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def fastest(code: str) -> float:
    """The best of five: what it costs when nothing else runs."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        run(code)
        times.append(time.perf_counter() - start)
    return min(times)


@pytest.mark.alone
def test_import_is_quick() -> None:
    assert fastest("import adventures") - fastest("import numpy") <= 0.15
    seconds = float(run("import time; s = time.perf_counter(); import adventures; print(time.perf_counter() - s)"))
    assert seconds <= 1


@pytest.mark.alone
def test_first_vector_within_a_second(minilm: adv.Embedder) -> None:
    path = minilm.path
    assert fastest(f"import adventures; adventures.Embedder({path!r}).embed('a dragon')") <= 1.0


def test_import_loads_nothing_heavy() -> None:
    loaded = run("import adventures, sys; print(*sys.modules)").split()
    heavy = {"torch", "lancedb", "polars", "pyarrow", "deltalake", "huggingface_hub", "click", "tqdm"}
    assert not heavy & set(loaded)


def test_no_torch_among_the_requirements() -> None:
    names = [line.split(";")[0].lower() for line in importlib.metadata.requires("adventures") or []]
    assert names
    assert not [name for name in names if name.startswith(("torch", "transformers", "sentence", "tensorflow", "onnx"))]


def test_the_installed_size_is_small() -> None:
    package = Path(adv.__file__).parent
    total = sum(
        path.stat().st_size for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    )
    assert total <= 60e6


def test_every_public_name_is_there() -> None:
    for name in adv.__all__:
        assert getattr(adv, name) is not None
    assert set(adv.__all__) <= set(dir(adv))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = adv.Nothing
