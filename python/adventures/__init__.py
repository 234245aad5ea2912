"""Self-hosted retrieval-augmented chat over Delta tables, without torch.

Read a Delta table into a library, search it, and stream answers that cite it:

    import adventures as adv

    emb = adv.Embedder("all-minilm-l6-v2")
    lib = adv.Library.open("data/library", embedder=emb)
    lib.sync(delta="data/fantasy-library", id="scenario", text="For {scenario} you should use {advice}")
    chat = adv.Chat(lib, adv.Generator("smollm2-135m-instruct"))
    for piece in chat.ask("What do I need to climb an icy cliff?"):
        print(piece, end="", flush=True)
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

from adventures import cuda

cuda.load()  # before the Rust part is imported

from adventures._adventures import (  # noqa: E402
    AdventuresError,
    BusyError,
    ColBERT,
    Embedder,
    Embeddings,
    EmbeddingStream,
    Generation,
    GenerationStats,
    Generator,
    HeatMap,
    Reranker,
    Scores,
    TokenLogprob,
    TokenVectors,
    TruncationWarning,
    __version__,
)

if TYPE_CHECKING:
    from adventures.chat import Answer, Chat
    from adventures.index import ColbertIndex, IndexHit
    from adventures.library import Hit, Library, Source, SyncReport
    from adventures.ranking import Ranked, Ranking
    from adventures.seed import Adventures

__all__ = [
    "Adventures",
    "AdventuresError",
    "Answer",
    "BusyError",
    "Chat",
    "ColBERT",
    "ColbertIndex",
    "Embedder",
    "EmbeddingStream",
    "Embeddings",
    "Generation",
    "GenerationStats",
    "Generator",
    "HeatMap",
    "Hit",
    "IndexHit",
    "Library",
    "Ranked",
    "Ranking",
    "Reranker",
    "Scores",
    "Source",
    "SyncReport",
    "TokenLogprob",
    "TokenVectors",
    "TruncationWarning",
    "__version__",
]

# Read when LanceDB is imported. Where upkeep joins and splits partitions, it would warn of what it sees to itself.
os.environ.setdefault("LANCEDB_LOG", "warn,lance::index::vector::builder=error")
# How far LanceDB reads ahead of what it computes: by itself 2 GiB, so that an index is made of vectors that are all in
# memory.
os.environ.setdefault("LANCE_DEFAULT_IO_BUFFER_SIZE", str(32 << 20))

# LanceDB, Polars and deltalake take a second to import: only what is used is loaded (PEP 562).
_LAZY = {
    "Adventures": "adventures.seed",
    "Answer": "adventures.chat",
    "Chat": "adventures.chat",
    "ColbertIndex": "adventures.index",
    "Hit": "adventures.library",
    "IndexHit": "adventures.index",
    "Library": "adventures.library",
    "Ranked": "adventures.ranking",
    "Ranking": "adventures.ranking",
    "Source": "adventures.library",
    "SyncReport": "adventures.library",
}


def __getattr__(name: str) -> object:
    if name in _LAZY:
        value = getattr(import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
