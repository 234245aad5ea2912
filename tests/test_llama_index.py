"""LlamaIndex's interfaces, with the real llama-index-core."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.schema import MetadataMode, NodeWithScore, TextNode

import adventures as adv
import tiny
from adventures.llama_index import AdventuresEmbedding, LibraryRetriever, RerankerPostprocessor

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = ["the dragon sleeps at night", "a rope to climb", "a red potion at night"]


class TestEmbedding:
    def test_vectors_are_those_of_the_embedder(self) -> None:
        embedder = adv.Embedder("all-minilm-l6-v2", query_prefix="ask: ", passage_prefix="read: ")
        embedding = AdventuresEmbedding(embedder, embed_batch_size=2)
        assert np.array_equal(np.float32(embedding.get_text_embedding_batch(TEXTS)), embedder.embed(TEXTS))
        assert np.array_equal(np.float32(embedding.get_text_embedding(TEXTS[1])), embedder.embed(TEXTS[1:2])[0])
        query = embedder.embed(TEXTS[:1], "query")[0]
        assert np.array_equal(np.float32(embedding.get_query_embedding(TEXTS[0])), query)
        assert np.array_equal(np.float32(asyncio.run(embedding.aget_query_embedding(TEXTS[0]))), query)
        assert asyncio.run(embedding.aget_text_embedding_batch(TEXTS)) == embedding.get_text_embedding_batch(TEXTS)
        assert (embedding.model_name, embedding.embed_batch_size) == ("all-minilm-l6-v2", 2)
        assert embedding.to_payload()["class_name"] == "AdventuresEmbedding"

    def test_in_an_index_of_theirs(self, minilm: adv.Embedder) -> None:
        embedding = AdventuresEmbedding("all-minilm-l6-v2")
        index = VectorStoreIndex.from_documents([Document(text=text) for text in TEXTS], embed_model=embedding)
        found = index.as_retriever(similarity_top_k=3).retrieve("something to drink")
        scores = minilm.embed(TEXTS) @ minilm.embed(["something to drink"], "query")[0]
        assert [one.node.get_content() for one in found] == [TEXTS[at] for at in np.argsort(-scores)]
        assert [one.score for one in found] == pytest.approx(sorted(scores.tolist(), reverse=True), abs=1e-5)


class TestRetriever:
    def test_nodes_are_the_librarys_hits(self, stock: adv.Library) -> None:
        retriever = LibraryRetriever(stock, k=3, hybrid=True, where={"price": {"lt": 100}})
        found = retriever.retrieve("an icy cliff at night")
        hits = stock.search("an icy cliff at night", 3, hybrid=True, where={"price": {"lt": 100}})
        assert [(one.node.node_id, one.node.get_content(), one.score) for one in found] == [
            (hit.id, hit.text, hit.score) for hit in hits
        ]
        for one, hit in zip(found, hits, strict=True):
            ours = one.node.metadata.pop("adventures")
            assert one.node.metadata == {**hit.source.row, **hit.metadata}
            assert ours["similarity"] == hit.similarity
            assert "similarity" not in one.node.get_content(MetadataMode.LLM)
        again = asyncio.run(retriever.aretrieve("an icy cliff at night"))
        assert [one.node.node_id for one in again] == [hit.id for hit in hits]

    def test_a_postprocessor_reranks(self, tmp_path: Path) -> None:
        reranker = adv.Reranker(tiny.cross_encoder(tmp_path / "reranker", seed=6))
        nodes = [NodeWithScore(node=TextNode(text=text, metadata={"n": n})) for n, text in enumerate(TEXTS)]
        post = RerankerPostprocessor(reranker=reranker, top_n=2)
        found = post.postprocess_nodes(nodes, query_str="a potion")
        want = reranker.rank("a potion", TEXTS).top_k(2)
        assert [(one.node.metadata["n"], one.score) for one in found] == [(one.doc_id, one.score) for one in want]
        assert [one.score for one in nodes] == [None] * 3, "what was given is as it was"
        assert post.postprocess_nodes([], query_str="x") == []
        assert len(asyncio.run(post.apostprocess_nodes(nodes, query_str="a potion"))) == 2
        with pytest.raises(ValueError, match="give query_bundle or query_str"):
            post.postprocess_nodes(nodes)


def test_what_is_missing_is_named() -> None:
    code = "import sys; sys.modules['llama_index'] = None; import adventures.llama_index"
    failed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert failed.stderr.splitlines()[-1].endswith("pip install 'adventures[llama-index]'")
