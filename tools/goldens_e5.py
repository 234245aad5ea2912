"""Writes tests/goldens/e5.npz (`make goldens`): 300 texts, by sentence-transformers and the E5 in a folder."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import languages  # noqa: E402


def main() -> None:
    """Embeds all texts as questions and as passages."""
    model = SentenceTransformer(sys.argv[1], device="cpu")
    texts = languages.texts()
    vectors = {
        kind: model.encode([f"{kind}: {text}" for text in texts], batch_size=8).astype(np.float16)
        for kind in ("query", "passage")
    }
    np.savez_compressed(ROOT / "tests" / "goldens" / "e5.npz", **vectors)


if __name__ == "__main__":
    main()
