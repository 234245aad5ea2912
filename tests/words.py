"""An embedder without a model: words hashed into a vector. For tests of storage, where meaning does not matter."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Encoded:
    vectors: NDArray[np.float32]
    tokens: NDArray[np.uint32]
    truncated: list[int]


@dataclass
class WordEmbedder:
    """Cuts at blanks; one word is one token; the same text always gives the same vector."""

    name: str = "words"
    revision: str = "1"
    dim: int = 32
    max_tokens: int = 64
    pooling: str = "mean"
    prompts: dict[str, str] = field(default_factory=lambda: {"query": "", "passage": ""})
    embedded: list[str] = field(default_factory=list)
    keep: bool = True

    def encode(self, texts: list[str], kind: str = "passage") -> Encoded:
        if self.keep:
            self.embedded += texts
        vectors = np.zeros((len(texts), self.dim), np.float32)
        tokens = np.zeros(len(texts), np.uint32)
        for row, text in enumerate(texts):
            words = text.lower().split()
            tokens[row] = min(len(words), self.max_tokens)
            for word in words[: self.max_tokens]:
                vectors[row, zlib.crc32(word.encode()) % self.dim] += 1
            vectors[row, 0] += 1e-3
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return Encoded(vectors, tokens, [row for row, text in enumerate(texts) if len(text.split()) > self.max_tokens])

    def embed_arrow(self, texts: pa.Array, kind: str = "passage") -> pa.FixedSizeListArray:
        return pa.FixedSizeListArray.from_arrays(self.encode(texts.to_pylist(), kind).vectors.reshape(-1), self.dim)

    def embed(self, texts: list[str], kind: str = "passage") -> NDArray[np.float32]:
        return self.encode(texts, kind).vectors

    def count_tokens(self, texts: list[str], kind: str = "passage") -> list[int]:
        return [len(text.split()) for text in texts]

    def split(self, texts: list[str], *, max_tokens: int | None = None, overlap: int = 0) -> list[list[str]]:
        spans = self.split_spans(texts, max_tokens=max_tokens, overlap=overlap)
        return [[text[start:end] for start, end in own] for text, own in zip(texts, spans, strict=True)]

    def split_spans(
        self, texts: list[str], *, max_tokens: int | None = None, overlap: int = 0
    ) -> list[list[tuple[int, int]]]:
        window = max_tokens or self.max_tokens
        return [self._spans(text, window, overlap) for text in texts]

    def _spans(self, text: str, window: int, overlap: int) -> list[tuple[int, int]]:
        words = list(re.finditer(r"\S+", text))
        if len(words) <= window:
            return [(0, len(text))]
        runs = [words[at : at + window] for at in range(0, max(len(words) - overlap, 1), window - overlap)]
        return [(run[0].start(), run[-1].end()) for run in runs]
