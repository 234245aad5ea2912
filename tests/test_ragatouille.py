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


LIBRARY = {
    "dragon": "the dragon sleeps at night. " * 12,
    "rope": "a rope to climb",
    "potion": "a red potion at night",
}


@pytest.fixture
def indexed(path: Path, tmp_path: Path) -> RAGPretrainedModel:
    rag = RAGPretrainedModel.from_pretrained(path, index_root=tmp_path / "root")
    rag.index(
        list(LIBRARY.values()),
        list(LIBRARY),
        [{"price": i} for i in range(3)],
        index_name="shop",
        max_document_length=32,
    )
    return rag


def test_an_index_is_searched(indexed: RAGPretrainedModel, tmp_path: Path) -> None:
    assert indexed.index_path == str(tmp_path / "root" / "colbert" / "indexes" / "shop")
    found = indexed.search("a dragon at night", k=20)
    assert list(found[0]) == ["content", "score", "rank", "document_id", "passage_id", "document_metadata"]
    assert [result["rank"] for result in found] == list(range(1, len(found) + 1))
    assert {result["document_id"] for result in found} == set(LIBRARY)
    pieces = [result for result in found if result["document_id"] == "dragon"]
    assert len(pieces) > 1, "a long document is split"
    assert all(result["content"] in LIBRARY["dragon"] for result in pieces)
    assert {result["passage_id"] for result in pieces} == {f"dragon#{i}" for i in range(len(pieces))}
    prices = {result["document_id"]: result["document_metadata"]["price"] for result in found}
    assert prices == {"dragon": 0, "rope": 1, "potion": 2}
    # Small indexes are exact.
    texts = [result["content"] for result in found]
    scores = [result["score"] for result in indexed.rerank("a dragon at night", texts, k=20)]
    assert [result["score"] for result in found] == pytest.approx(scores, abs=1e-4)
    assert [result["rank"] for result in indexed.search("a", k=2, zero_index_ranks=True)] == [0, 1]
    only = indexed.search("a dragon", doc_ids=["rope", "potion"])
    assert {result["document_id"] for result in only} == {"rope", "potion"}
    assert indexed.search(["a dragon"], k=1) == [indexed.search("a dragon", k=1)]


def test_an_index_is_opened_again(indexed: RAGPretrainedModel) -> None:
    assert indexed.index_path
    other = RAGPretrainedModel.from_index(indexed.index_path)
    assert other.search("a dragon") == indexed.search("a dragon")
    indexed.add_to_index(["a lamp"], ["lamp"])
    assert "lamp" in {result["document_id"] for result in other.search("a lamp", k=50)}, "readers follow"
    assert "document_metadata" not in next(r for r in other.search("a lamp", k=50) if r["document_id"] == "lamp")
    with pytest.raises(FileNotFoundError, match="no index at"):
        RAGPretrainedModel.from_index(indexed.index_path + "-none")
    for broken in ("{", "[]", "{}", "\udcff"):
        from pathlib import Path

        Path(indexed.index_path, "ragatouille.json").write_text(broken, "utf-8", "surrogateescape")
        with pytest.raises(ValueError, match=r"ragatouille\.json is broken"):
            RAGPretrainedModel.from_index(indexed.index_path)


def test_documents_come_and_go(indexed: RAGPretrainedModel) -> None:
    indexed.add_to_index(["a lamp", "a rope of silk"], ["lamp", "rope#2"], [{"price": 3}, {"price": 4}])
    before = {r["passage_id"]: r["content"] for r in indexed.search("a", k=50)}
    indexed.delete_from_index("rope")
    indexed.delete_from_index(["dragon"])
    after = {r["passage_id"]: r["content"] for r in indexed.search("a", k=50)}
    assert set(after) == {"lamp#0", "rope#2#0", "potion#0"}
    assert all(before[id_] == text for id_, text in after.items()), "those that stay are what they were"
    for wrong in (["rope"], "rope", ["lamp", "none"]):
        with pytest.raises(ValueError, match=r"the index has no document '(rope|none)'"):
            indexed.delete_from_index(wrong)
    with pytest.raises(ValueError, match="the document 'lamp' is in the index already"):
        indexed.add_to_index(["x", "y"], ["new", "lamp"])
    assert {r["passage_id"] for r in indexed.search("a", k=50)} == set(after)
    with pytest.raises(ValueError, match="the index has no document 'new'"):
        indexed.search("a", doc_ids=["new"])


def test_an_index_is_replaced_when_the_new_one_is_whole(indexed: RAGPretrainedModel) -> None:
    def broken(_passages: list[dict[str, str]], _ids: list[str]) -> list[dict[str, str]]:
        raise RuntimeError("the splitter broke")

    with pytest.raises(RuntimeError, match="the splitter broke"):
        indexed.index(["x"], ["x"], index_name="shop", preprocessing_fn=broken)
    assert len(indexed.search("a", k=50)) >= 3
    with pytest.raises(ValueError, match="there is an index at"):
        indexed.index(["x"], ["x"], index_name="shop", overwrite_index=False)
    indexed.index(["x"], ["x"], index_name="shop")
    assert [r["passage_id"] for r in indexed.search("a", k=50)] == ["x#0"]
    assert indexed.index_path
    from pathlib import Path

    assert [entry.name for entry in Path(indexed.index_path).parent.iterdir()] == ["shop"]


def test_passages_can_be_made_otherwise(indexed: RAGPretrainedModel) -> None:
    def words(texts: list[str], ids: list[str], chunk_size: int) -> list[dict[str, str]]:
        assert chunk_size == 20
        pairs = zip(texts, ids, strict=True)
        return [{"document_id": id_, "content": word} for text, id_ in pairs for word in text.split()]

    def shout(passages: list[dict[str, str]], _ids: list[str]) -> list[dict[str, str]]:
        return [{**passage, "content": passage["content"].upper()} for passage in passages]

    given = {"document_splitter_fn": words, "preprocessing_fn": [shout], "max_document_length": 20}
    indexed.index(["a rope", "night"], ["r", "n"], index_name="words", **given)
    assert {r["content"] for r in indexed.search("a")} == {"A", "ROPE", "NIGHT"}
    assert {r["document_id"] for r in indexed.search("a", index_name="shop")} <= set(LIBRARY)
    with pytest.warns(adv.TruncationWarning):
        indexed.index([LIBRARY["dragon"]], ["d"], index_name="whole", split_documents=False, max_document_length=20)
    assert len(indexed.search("a")) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"document_ids": ["a"]}, "document_ids must be as many as the documents: 1 for 2"),
        ({"document_ids": ["a", "a"]}, "document_ids holds 'a' twice"),
        ({"document_ids": ["a", ""]}, "'' is no text, or an empty one"),
        ({"document_ids": ["a", 7]}, "7 is no text"),
        ({"document_metadatas": [{}]}, "document_metadatas must be as many"),
        ({"index_name": "../x"}, r"index_name '\.\./x'"),
        ({"index_name": ""}, "index_name ''"),
        ({"preprocessing_fn": lambda *_: [{"document_id": "z", "content": "x"}]}, "the document 'z', which is not"),
    ],
)
def test_what_an_index_is_not_made_of(rag: RAGPretrainedModel, tmp_path: Path, arguments: dict, message: str) -> None:
    rag._root = tmp_path
    with pytest.raises(ValueError, match=message):
        rag.index(["a", "b"], **arguments)
    assert list(tmp_path.rglob("*.json")) == []


def test_there_is_no_index(rag: RAGPretrainedModel) -> None:
    for use in (lambda: rag.search("a"), lambda: rag.add_to_index(["a"]), lambda: rag.delete_from_index("a")):
        with pytest.raises(ValueError, match="there is no index"):
            use()
    with pytest.raises(ValueError, match="no index 'x' below"):
        rag.search("a", index_name="x")
