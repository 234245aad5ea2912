"""RAGatouille's interface, and what that package gets wrong."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import pytest

import adventures as adv
import tiny_colbert
from adventures.ragatouille import RAGPretrainedModel

if TYPE_CHECKING:
    from pathlib import Path

DOCUMENTS = ["the dragon sleeps at night", "a rope to climb", "potions", "a red potion at night", "the dragon"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_colbert.colbert(tmp_path_factory.mktemp("colbert") / "model", "stanford")


@pytest.fixture
def rag(path: Path) -> RAGPretrainedModel:
    return RAGPretrainedModel.from_pretrained(path)


def test_rerank(rag: RAGPretrainedModel) -> None:
    found = rag.rerank(query="a dragon", documents=DOCUMENTS, k=3)
    want = rag.model.rank("a dragon", DOCUMENTS)
    assert [list(result) for result in found] == [["content", "score", "rank", "result_index"]] * 3
    assert [result["rank"] for result in found] == [1, 2, 3]
    assert [result["result_index"] for result in found] == [ranked.doc_id for ranked in want.top_k(3)]
    assert [result["content"] for result in found] == [ranked.text for ranked in want.top_k(3)]
    assert [result["score"] for result in found] == pytest.approx([ranked.score for ranked in want.top_k(3)])
    assert [result["rank"] for result in rag.rerank("a dragon", DOCUMENTS, zero_index_ranks=True)] == [0, 1, 2, 3, 4]


def test_results_are_shaped_as_queries_are(rag: RAGPretrainedModel) -> None:
    one = rag.rerank("a dragon", DOCUMENTS)
    assert len(one) == 5, "k is more than there are"
    assert rag.rerank(["a dragon"], DOCUMENTS) == [one]
    assert rag.rerank(["a dragon", "a rope"], DOCUMENTS) == [one, rag.rerank("a rope", DOCUMENTS)]
    assert rag.rerank([], DOCUMENTS) == []
    assert rag.rerank("a", []) == []
    assert rag.rerank("a", DOCUMENTS, k=0) == []
    with pytest.raises(ValueError, match="k must not be negative, not -1"):
        rag.rerank("a", DOCUMENTS, k=-1)


def test_long_queries_are_read_whole(rag: RAGPretrainedModel) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rag.rerank("a b " * 20, DOCUMENTS)
        rag.rerank("a", ["x " * 60])  # more than the checkpoint's doc_maxlen, not than it can read
    with pytest.warns(adv.TruncationWarning, match="1 of 2 documents were longer than 66 tokens"):
        rag.rerank("a", ["a", "x " * 64])
    with pytest.warns(adv.TruncationWarning, match="1 of 1 queries were longer than 66 tokens"):
        rag.rerank("a b " * 40, DOCUMENTS)


def test_encoded_documents(rag: RAGPretrainedModel) -> None:
    with pytest.raises(ValueError, match="no documents are encoded"):
        rag.search_encoded_docs("a")
    rag.encode(DOCUMENTS[:2], document_metadatas=[{"n": 0}, {"n": 1}])
    rag.encode(DOCUMENTS[2:])
    found = rag.search_encoded_docs("a dragon", k=5)
    want = rag.rerank("a dragon", DOCUMENTS)
    for result, same in zip(found, want, strict=True):
        metadata = result.pop("document_metadata", None)
        assert metadata == ({"n": result["result_index"]} if result["result_index"] < 2 else None)
        assert result == same
    several = rag.search_encoded_docs(["a dragon", "a rope"], k=2)
    assert [len(results) for results in several] == [2, 2]
    with pytest.raises(ValueError, match="document_metadatas must be as many as the documents: 1 for 2"):
        rag.encode(["a", "b"], document_metadatas=[{}])
    with pytest.warns(adv.TruncationWarning, match="1 of 1 documents were longer than 12 tokens"):
        rag.encode(["x " * 20], max_document_length=12)
    rag.clear_encoded_docs()
    with pytest.raises(ValueError, match="no documents are encoded"):
        rag.search_encoded_docs("a")


def test_no_accelerator(path: Path) -> None:
    with pytest.raises(NotImplementedError, match="n_gpu=1"):
        RAGPretrainedModel.from_pretrained(path, n_gpu=1)
