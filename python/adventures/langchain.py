"""LangChain's interfaces (`pip install adventures[langchain]`): embeddings, retrievers, document compressors."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, Field

from adventures import ranking
from adventures._adventures import Embedder

try:
    from langchain_core.documents import BaseDocumentCompressor, Document
    from langchain_core.embeddings import Embeddings
    from langchain_core.retrievers import BaseRetriever
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "adventures.langchain needs langchain-core: pip install 'adventures[langchain]'"
    ) from error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from langchain_core.callbacks import (
        AsyncCallbackManagerForRetrieverRun,
        CallbackManagerForRetrieverRun,
        Callbacks,
    )

__all__ = ["AdventuresEmbeddings", "LibraryRetriever", "RAGCompressor", "RAGRetriever", "RerankerCompressor"]


class AdventuresEmbeddings(Embeddings):
    """An `Embedder` as LangChain's `Embeddings`: documents are passages, and have another prefix than queries.

    Args:
        embedder: The model, or what opens it.
    """

    def __init__(self, embedder: Embedder | str) -> None:
        self.embedder = Embedder(embedder) if isinstance(embedder, str) else embedder

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Returns a vector of each text."""
        vectors: list[list[float]] = self.embedder.embed(texts).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """Returns the vector of a question."""
        vector: list[float] = self.embedder.embed([text], "query")[0].tolist()
        return vector


class LibraryRetriever(BaseRetriever):
    """A `Library` as LangChain's retriever.

    A document's metadata are the row's columns, and under `adventures` where it is from and its scores; `invoke` takes
    `where=` and the other fields for one question.

    Attributes:
        library: The library.
        k: How many passages; this and what follows as in `Library.search`.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    library: Any
    k: int = 4
    hybrid: bool = False
    retrieval: Literal["dense", "colbert"] = "dense"
    where: dict[str, Any] | None = None
    rerank: Any = None
    mmr: float | None = None

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **changes: Any
    ) -> list[Document]:
        del run_manager
        names = ("k", "hybrid", "retrieval", "where", "rerank", "mmr")
        unknown = [name for name in changes if name not in names]
        if unknown:
            raise ValueError(f"a search of a library has no {', '.join(map(repr, unknown))}; it has {', '.join(names)}")
        hits = self.library.search(query, **{name: getattr(self, name) for name in names} | changes)
        return [
            Document(
                hit.text,
                id=hit.id,
                metadata={
                    **hit.source.row,
                    **hit.metadata,
                    "adventures": {
                        "table": hit.source.table,
                        "version": hit.source.version,
                        "score": hit.score,
                        "similarity": hit.similarity,
                    },
                },
            )
            for hit in hits
        ]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **changes: Any
    ) -> list[Document]:
        # Theirs passes nothing on.
        sync = run_manager.get_sync()
        return await asyncio.to_thread(self._get_relevant_documents, query, run_manager=sync, **changes)


class RerankerCompressor(BaseDocumentCompressor):
    """A `Reranker`, or a `ColBERT`, as LangChain's document compressor: the best documents, best first.

    Attributes:
        reranker: Anything with `scores(query, docs)`.
        top_n: How many documents stay; each has its `relevance_score` in its metadata.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    reranker: Any
    top_n: int = 3

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """Returns the `top_n` documents that answer a question best."""
        del callbacks
        texts = [document.page_content for document in documents]
        return [_scored(documents[at], score) for at, score in ranking.best(self.reranker, query, texts, self.top_n)]


class RAGRetriever(BaseRetriever):
    """What `RAGPretrainedModel.as_langchain_retriever` returns: its `search`.

    Attributes:
        model: The `RAGPretrainedModel`.
        kwargs: What `search` is given besides the query.
    """

    model: Any
    kwargs: dict[str, Any] = Field(default_factory=dict)

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        del run_manager
        results = self.model.search(query, **self.kwargs)
        return [
            Document(one["content"], id=one["passage_id"], metadata=one.get("document_metadata", {})) for one in results
        ]


class RAGCompressor(BaseDocumentCompressor):
    """What `RAGPretrainedModel.as_langchain_document_compressor` returns: its `rerank`.

    Attributes:
        model: The `RAGPretrainedModel`.
        k: How many documents stay.
    """

    model: Any
    k: int = 5

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None, **kwargs: Any
    ) -> Sequence[Document]:
        """Returns the `k` documents that fit a query best, each with its `relevance_score`."""
        del callbacks
        texts = [document.page_content for document in documents]
        found = self.model.rerank(query, texts, k=kwargs.get("k", self.k))
        return [_scored(documents[one["result_index"]], one["score"]) for one in found]


def _scored(document: Document, score: float) -> Document:
    return document.model_copy(update={"metadata": {**document.metadata, "relevance_score": score}})
