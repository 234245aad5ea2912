"""What several test files share: the real models, pulled by `make test`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

import adventures as adv
import object_store
from adventures import demo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# The same examples each time; `--hypothesis-profile=default` looks for new ones.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def minilm() -> adv.Embedder:
    """The real all-MiniLM-L6-v2."""
    return adv.Embedder("all-minilm-l6-v2")


@pytest.fixture(scope="session")
def smollm2() -> adv.Generator:
    """The real SmolLM2-135M-Instruct."""
    return adv.Generator("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def stock(tmp_path_factory: pytest.TempPathFactory, minilm: adv.Embedder) -> adv.Library:
    """The demo's stock, synced with the real MiniLM; read only."""
    path = tmp_path_factory.mktemp("stock")
    demo.write_table(path / "delta")
    library = adv.Library.open(path / "library", embedder=minilm)
    library.sync(path / "delta", id="scenario", text=demo.TEXT)
    return library


@pytest.fixture(scope="session")
def s3() -> Iterator[Callable[[], object_store.Place]]:
    """What makes a bucket in an S3 on loopback."""
    with object_store.s3() as new:
        yield new


@pytest.fixture(scope="session")
def az() -> Iterator[Callable[[], object_store.Place]]:
    """What makes a container in an Azure on loopback."""
    with object_store.azure() as new:
        yield new


@pytest.fixture(scope="session")
def gs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], object_store.Place]]:
    """What makes a bucket in a Google Cloud Storage on loopback."""
    with object_store.google(tmp_path_factory.mktemp("keys")) as new:
        yield new


@pytest.fixture
def bucket(s3: Callable[[], object_store.Place]) -> object_store.Place:
    """A bucket of its own in that S3."""
    return s3()
