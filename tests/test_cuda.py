"""The Rust part with CUDA takes the place of the one without, where it is installed and loads."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import adventures as adv
from adventures import _adventures

VERSION = importlib.metadata.version("adventures")


def install(folder: Path, version: str = VERSION) -> Path:
    """Makes `adventures_cuda` importable from `folder`; returns where its module belongs."""
    package, info = folder / "adventures_cuda", folder / f"adventures_cuda-{version}.dist-info"
    package.mkdir()
    info.mkdir()
    (package / "__init__.py").write_text("", encoding="utf-8")
    metadata = f"Metadata-Version: 2.1\nName: adventures-cuda\nVersion: {version}\n"
    (info / "METADATA").write_text(metadata, encoding="utf-8")
    return package


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); import adventures as adv; {code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7"])
@pytest.mark.parametrize("kind", ["Embedder", "Generator", "Reranker", "ColBERT"])
def test_without_it_the_error_says_how_to_get_it(kind: str, device: str) -> None:
    with pytest.raises(NotImplementedError, match=f'device "{device}": this build .* `pip install adventures-cuda`'):
        getattr(adv, kind)("all-minilm-l6-v2", device=device)


def test_what_does_not_load_is_said_and_the_cpu_goes_on(tmp_path: Path) -> None:
    (install(tmp_path) / "_adventures.py").write_text(
        "raise ImportError('libcuda.so.1: cannot open shared object file')", encoding="utf-8"
    )
    done = run("print(adv.Embedder('all-minilm-l6-v2', device='auto').device)", tmp_path)
    assert done.stdout == "cpu\n", done.stderr
    done = run("adv.Embedder('all-minilm-l6-v2', device='cuda')", tmp_path)
    assert (
        'NotImplementedError: device "cuda": adventures-cuda is installed and does not load: '
        "libcuda.so.1: cannot open shared object file\n"
    ) in done.stderr


def test_another_version_is_not_loaded(tmp_path: Path) -> None:
    (install(tmp_path, "0.0.1") / "_adventures.py").write_text("raise SystemExit('loaded')", encoding="utf-8")
    done = run("adv.Generator('smollm2-135m-instruct', device='cuda:1')", tmp_path)
    assert (
        f'NotImplementedError: device "cuda:1": adventures-cuda 0.0.1 is installed beside adventures {VERSION}; '
        f"pip install adventures-cuda=={VERSION}\n"
    ) in done.stderr


def test_it_takes_the_place_of_the_other(tmp_path: Path) -> None:
    # The same crate without the feature: what is loaded, and that it works, does not hang on the kernels in it.
    module = Path(_adventures.__file__)
    shutil.copy(module, install(tmp_path) / module.name)
    done = run(
        "import adventures.lock; e = adv.Embedder('all-minilm-l6-v2'); "
        "print(sys.modules['adventures._adventures'].__file__); "
        "print(adv.lock.BusyError is adv.BusyError, e.embed('a dragon').shape)",
        tmp_path,
    )
    assert done.stdout.splitlines() == [str(tmp_path / "adventures_cuda" / module.name), "True (1, 384)"], done.stderr
