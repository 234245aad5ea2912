"""LlamaIndex's interfaces (`pip install adventures[llama-index]`): an embedding, a retriever, a node postprocessor."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal

from pydantic import PrivateAttr

from adventures import ranking
from adventures._adventures import Embedder

try:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.retrievers import BaseRetriever
    from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, TextNode
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "adventures.llama_index needs llama-index-core: pip install 'adventures[llama-index]'"
    ) from error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adventures.library import Library
    from adventures.ranking import Scorer

__all__ = ["AdventuresEmbedding", "LibraryRetriever", "RerankerPostprocessor"]


class AdventuresEmbedding(BaseEmbedding):
    """An `Embedder` as LlamaIndex's embedding: nodes are passages, and have another prefix than queries.

    Args:
        embedder: The model, or what opens it.
        options: As LlamaIndex's own embeddings take them: `embed_batch_size`, `callback_manager`, …
    """

    _embedder: Embedder = PrivateAttr()

    def __init__(self, embedder: Embedder | str, **options: Any) -> None:
        opened = Embedder(embedder) if isinstance(embedder, str) else embedder
        # Nothing is padded, so larger batches only cost less.
        super().__init__(**{"model_name": opened.name, "embed_batch_size": 256, **options})
        self._embedder = opened

    @classmethod
    def class_name(cls) -> str:
        """Returns the name that LlamaIndex knows it by."""
        return "AdventuresEmbedding"

    def _get_query_embedding(self, query: str) -> list[float]:
        vector: list[float] = self._embedder.embed([query], "query")[0].tolist()
        return vector

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = self._embedder.embed(texts).tolist()
        return vectors

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)


class LibraryRetriever(BaseRetriever):
    """A `Library` as LlamaIndex's retriever.

    A node's metadata are the row's columns, and under `adventures` where it is from and its cosine similarity; the
    models that read nodes see none of the latter.

    Args:
        library: The library.
        k: How many passages; this and what follows as in `Library.search`.
        hybrid: Whether full-text search takes part.
        retrieval: What finds passages.
        where: Which passages may answer.
        rerank: What chooses among more of them.
        mmr: How much relevance counts against being unlike the passages before.
        options: As LlamaIndex's own retrievers take them: `callback_manager`, `verbose`, …
    """

    def __init__(
        self,
        library: Library,
        *,
        k: int = 4,
        hybrid: bool = False,
        retrieval: Literal["dense", "colbert"] = "dense",
        where: Mapping[str, object] | None = None,
        rerank: Scorer | None = None,
        mmr: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._library = library
        self._k = k
        self._how: dict[str, Any] = {
            "hybrid": hybrid,
            "retrieval": retrieval,
            "where": where,
            "rerank": rerank,
            "mmr": mmr,
        }

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        hits = self._library.search(query_bundle.query_str, self._k, **self._how)
        found = []
        for hit in hits:
            origin = {"table": hit.source.table, "version": hit.source.version, "similarity": hit.similarity}
            node = TextNode(
                id_=hit.id,
                text=hit.text,
                metadata={**hit.source.row, **hit.metadata, "adventures": origin},
                excluded_embed_metadata_keys=["adventures"],
                excluded_llm_metadata_keys=["adventures"],
            )
            found.append(NodeWithScore(node=node, score=hit.score))
        return found

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)


class RerankerPostprocessor(BaseNodePostprocessor):
    """A `Reranker`, or a `ColBERT`, as LlamaIndex's node postprocessor: the best nodes, best first.

    Attributes:
        reranker: Anything with `scores(query, docs)`.
        top_n: How many nodes stay.
    """

    reranker: Any
    top_n: int = 2

    @classmethod
    def class_name(cls) -> str:
        """Returns the name that LlamaIndex knows it by."""
        return "AdventuresRerankerPostprocessor"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise ValueError("a reranker compares nodes with a question: give query_bundle or query_str")
        texts = [one.node.get_content(metadata_mode=MetadataMode.NONE) for one in nodes]
        chosen = ranking.best(self.reranker, query_bundle.query_str, texts, self.top_n)
        return [NodeWithScore(node=nodes[at].node, score=score) for at, score in chosen]
