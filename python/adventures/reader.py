"""A ColBERT model as an index uses it: documents are read up to a length, and those that were cut are counted."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from adventures._adventures import ColBERT

# How many tokens a word has, as RAGatouille counts.
TOKENS_PER_WORD = 1.35


class Reader:
    """Makes token vectors for a `ColbertIndex`.

    Attributes:
        model: The model.
        doc_maxlen: How many tokens of a document are read at most.
        read: Documents that were read so far.
        truncated: Those of them that were longer and were cut.
    """

    def __init__(self, model: ColBERT, doc_maxlen: int | None = None) -> None:
        self.model = model
        self.doc_maxlen = model.doc_maxlen if doc_maxlen is None else doc_maxlen
        self.read = 0
        self.truncated = 0

    @property
    def name(self) -> str:
        """Of the model."""
        return self.model.name

    @property
    def revision(self) -> str:
        """Of the model."""
        return self.model.revision

    @property
    def dim(self) -> int:
        """Of the vectors."""
        return self.model.dim

    def embed_documents(self, texts: list[str], /) -> list[NDArray[np.float32]]:
        """Returns `(tokens, dim)` of each text."""
        found = self.model.encode_documents(texts, doc_maxlen=self.doc_maxlen)
        self.read += len(texts)
        self.truncated += len(found.truncated)
        return [found[at] for at in range(len(found))]

    def embed_query(self, text: str, /) -> NDArray[np.float32]:
        """Returns `(tokens, dim)`."""
        return self.model.embed_query(text)


class LongQueries(Reader):
    """As RAGatouille reads: a query has as many tokens as its words need, if more than the model's own."""

    def __init__(self, model: ColBERT, doc_maxlen: int | None = None) -> None:
        super().__init__(model, None if doc_maxlen is None else min(doc_maxlen, model.max_tokens))

    def embed_documents(self, texts: list[str], /) -> list[NDArray[np.float32]]:
        """Returns `(tokens, dim)` of each text; warns of those that were cut."""
        return self.model.embed_documents(texts, doc_maxlen=self.doc_maxlen)

    def embed_query(self, text: str, /) -> NDArray[np.float32]:
        """Returns `(tokens, dim)`."""
        words = math.floor(len(text.split()) * TOKENS_PER_WORD)
        length = min(max(self.model.query_maxlen, words), self.model.max_tokens)
        return self.model.embed_query(text, query_maxlen=length)
