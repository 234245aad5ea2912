"""LangChain's interfaces, with the real langchain-core."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda
from langchain_core.vectorstores import InMemoryVectorStore

import adventures as adv
import tiny
import tiny_colbert
from adventures.langchain import AdventuresEmbeddings, LibraryRetriever, RerankerCompressor
from adventures.ragatouille import RAGPretrainedModel

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = ["the dragon sleeps at night", "a rope to climb", "a red potion at night"]


@pytest.fixture(scope="module")
def colbert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_colbert.colbert(tmp_path_factory.mktemp("colbert") / "model", "stanford")


class TestEmbeddings:
    def test_vectors_are_those_of_the_embedder(self) -> None:
        embedder = adv.Embedder("all-minilm-l6-v2", query_prefix="ask: ", passage_prefix="read: ")
        embeddings = AdventuresEmbeddings(embedder)
        assert np.array_equal(np.float32(embeddings.embed_documents(TEXTS)), embedder.embed(TEXTS))
        assert np.array_equal(np.float32(embeddings.embed_query(TEXTS[0])), embedder.embed(TEXTS[:1], "query")[0])
        assert embeddings.embed_query(TEXTS[0]) != embeddings.embed_documents(TEXTS[:1])[0]
        assert asyncio.run(embeddings.aembed_documents(TEXTS)) == embeddings.embed_documents(TEXTS)
        assert embeddings.embed_documents([]) == []

    def test_in_a_store_of_theirs(self, minilm: adv.Embedder) -> None:
        store = InMemoryVectorStore.from_texts(TEXTS, AdventuresEmbeddings("all-minilm-l6-v2"))
        found = store.similarity_search_with_score("something to drink", 3)
        scores = minilm.embed(TEXTS) @ minilm.embed(["something to drink"], "query")[0]
        assert [document.page_content for document, _ in found] == [TEXTS[at] for at in np.argsort(-scores)]
        assert [score for _, score in found] == pytest.approx(sorted(scores.tolist(), reverse=True), abs=1e-6)


class TestRetriever:
    def test_documents_are_the_librarys_hits(self, stock: adv.Library) -> None:
        retriever = LibraryRetriever(library=stock, k=3, hybrid=True, where={"price": {"lt": 100}})
        found = retriever.invoke("an icy cliff at night")
        hits = stock.search("an icy cliff at night", 3, hybrid=True, where={"price": {"lt": 100}})
        assert [(document.id, document.page_content) for document in found] == [(hit.id, hit.text) for hit in hits]
        for document, hit in zip(found, hits, strict=True):
            ours = document.metadata.pop("adventures")
            assert document.metadata == {**hit.source.row, **hit.metadata}
            assert ours == {
                "table": hit.source.table,
                "version": hit.source.version,
                "score": hit.score,
                "similarity": hit.similarity,
            }
        assert asyncio.run(retriever.ainvoke("an icy cliff at night", k=1))[0].id == hits[0].id
        with pytest.raises(ValueError, match=r"a search of a library has no 'depth'; it has k, hybrid"):
            retriever.invoke("x", depth=3)

    def test_in_a_chain(self, stock: adv.Library) -> None:
        chain = LibraryRetriever(library=stock, k=2) | RunnableLambda(
            lambda documents: "\n".join(document.page_content for document in documents)
        )
        assert chain.invoke("a river of lava") == "\n".join(hit.text for hit in stock.search("a river of lava", 2))

    def test_a_compressor_reranks(self, tmp_path: Path) -> None:
        reranker = adv.Reranker(tiny.cross_encoder(tmp_path / "reranker", seed=6))
        documents = [Document(text, metadata={"n": n}) for n, text in enumerate(TEXTS)]
        found = RerankerCompressor(reranker=reranker, top_n=2).compress_documents(documents, "a potion")
        want = reranker.rank("a potion", TEXTS).top_k(2)
        assert [(one.page_content, one.metadata) for one in found] == [
            (one.text, {"n": one.doc_id, "relevance_score": one.score}) for one in want
        ]
        assert documents[0].metadata == {"n": 0}, "what was given is as it was"
        assert RerankerCompressor(reranker=reranker).compress_documents([], "x") == []


class TestRagatouille:
    @pytest.fixture
    def rag(self, colbert: Path, tmp_path: Path) -> RAGPretrainedModel:
        rag = RAGPretrainedModel.from_pretrained(colbert, index_root=tmp_path)
        rag.index(TEXTS, ["dragon", "rope", "potion"], [{"n": 0}, {"n": 1}, {"n": 2}], index_name="shop")
        return rag

    def test_retriever(self, rag: RAGPretrainedModel) -> None:
        found = rag.as_langchain_retriever(k=2, doc_ids=["rope", "potion"]).invoke("a dragon")
        want = rag.search("a dragon", k=2, doc_ids=["rope", "potion"])
        assert [(one.page_content, one.metadata, one.id) for one in found] == [
            (one["content"], one["document_metadata"], one["passage_id"]) for one in want
        ]
        rag.index(TEXTS, index_name="bare")
        assert [one.metadata for one in rag.as_langchain_retriever().invoke("x")] == [{}, {}, {}]

    def test_compressor(self, rag: RAGPretrainedModel) -> None:
        documents: list[Any] = [Document(text, metadata={"n": n}) for n, text in enumerate(TEXTS)]
        compressor = rag.as_langchain_document_compressor(k=2)
        found = compressor.compress_documents(documents, "a dragon")
        want = rag.rerank("a dragon", TEXTS, k=2)
        assert [(one.metadata["n"], one.metadata["relevance_score"]) for one in found] == [
            (one["result_index"], one["score"]) for one in want
        ]
        assert len(compressor.compress_documents(documents, "a dragon", k=1)) == 1
        assert [one.page_content for one in asyncio.run(compressor.acompress_documents(documents, "a dragon"))] == [
            one["content"] for one in want
        ]
        assert compressor.compress_documents([], "a dragon") == []


def test_what_is_missing_is_named() -> None:
    code = "import sys; sys.modules['langchain_core'] = None; import adventures.langchain"
    failed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert failed.stderr.splitlines()[-1].endswith("pip install 'adventures[langchain]'")
