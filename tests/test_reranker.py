"""Reranker: parity with sentence-transformers' CrossEncoder, invariance, search, and every bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import adventures as adv
import tiny
import tiny_colbert

GOLDENS = Path(__file__).parent / "goldens" / "cross.npz"
NAMES = ["ms-marco", "bge-reranker"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny.cross_encoders(tmp_path_factory.mktemp("cross"))


@pytest.fixture(scope="module")
def reranker(models: dict[str, Path]) -> adv.Reranker:
    return adv.Reranker(models["ms-marco"])


def quiet(reranker: adv.Reranker, query: str, docs: list[str]) -> np.ndarray:
    return reranker.compare(query, docs).scores


@pytest.mark.parametrize("name", NAMES)
def test_scores_equal_sentence_transformers(models: dict[str, Path], name: str) -> None:
    reranker = adv.Reranker(models[name])
    assert reranker.activation == ("none" if name == "ms-marco" else "sigmoid")
    with np.load(GOLDENS) as goldens:
        want = goldens[name]
    assert np.ptp(want, axis=1).min() > 0.05, "scores that are all the same would prove nothing"
    for query, scores in zip(tiny.QUERIES, want, strict=True):
        got = quiet(reranker, query, tiny.TEXTS)
        assert got.dtype == np.float32
        assert np.abs(got - scores).max() <= 1e-5


def test_the_activation_can_be_chosen(models: dict[str, Path]) -> None:
    query = tiny.QUERIES[0]
    for path in models.values():
        logits = quiet(adv.Reranker(path, activation="none"), query, tiny.TEXTS)
        scores = quiet(adv.Reranker(path, activation="sigmoid"), query, tiny.TEXTS)
        assert np.abs(scores - 1 / (1 + np.exp(-logits))).max() <= 1e-6


def test_types_come_from_templates_that_do_not_state_them(tmp_path: Path, reranker: adv.Reranker) -> None:
    path = tiny.cross_encoder(tmp_path / "old", seed=6, identity=True)
    tokenizer = json.loads((path / "tokenizer.json").read_text("utf-8"))
    ids = tokenizer["model"]["vocab"]
    special = {"sep": ["[SEP]", ids["[SEP]"]], "cls": ["[CLS]", ids["[CLS]"]]}
    tokenizer["post_processor"] = {"type": "BertProcessing", **special}
    (path / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    query = tiny.QUERIES[0]
    assert np.array_equal(quiet(adv.Reranker(path), query, tiny.TEXTS), quiet(reranker, query, tiny.TEXTS))


@pytest.mark.parametrize("precision", ["f32", "bf16x2", "bf16", "int8"])
@pytest.mark.parametrize("name", NAMES)
def test_a_score_has_the_same_bits_beside_any_others(models: dict[str, Path], name: str, precision: str) -> None:
    query, docs = tiny.QUERIES[0], [*tiny.TEXTS, "a long one " * 400]
    several = adv.Reranker(models[name], precision=precision)
    whole = quiet(several, query, docs)
    assert np.array_equal(np.concatenate([quiet(several, query, [doc]) for doc in docs]), whole)
    order = np.random.default_rng(0).permutation(len(docs))
    assert np.array_equal(quiet(several, query, [docs[i] for i in order]), whole[order])
    assert np.array_equal(quiet(adv.Reranker(models[name], precision=precision, threads=1), query, docs), whole)
    plain = quiet(adv.Reranker(models[name]), query, docs)
    assert np.abs(whole - plain).max() <= {"f32": 0, "bf16x2": 1e-3, "bf16": 0.05, "int8": 0.1}[precision]


def test_a_ranking_is_in_the_order_of_the_scores(reranker: adv.Reranker) -> None:
    query, docs = "where is the rope?", [*tiny.TEXTS[2:11], tiny.TEXTS[3]]
    scores = reranker.scores(query, docs)
    ranking = reranker.rank(query, docs)
    assert isinstance(ranking, adv.Ranking)
    assert ranking.query == query
    assert [found.doc_id for found in ranking] == np.argsort(-scores, kind="stable").tolist()
    assert [found.score for found in ranking] == np.sort(scores)[::-1].tolist()
    assert [found.text for found in ranking] == [docs[found.doc_id] for found in ranking]
    assert reranker.score(query, docs[0]) == scores[0]
    named = reranker.rank(query, docs, doc_ids=[f"d{i}" for i in range(10)], metadata=[{"n": i} for i in range(10)])
    assert [found.doc_id for found in named] == [f"d{found.doc_id}" for found in ranking]
    assert [found.metadata["n"] for found in named] == [found.doc_id for found in ranking]


def test_no_documents_make_an_empty_ranking(reranker: adv.Reranker) -> None:
    assert len(reranker.rank("rope", [])) == 0
    assert reranker.scores("rope", []).shape == (0,)
    assert reranker.compare("rope", iter([])).truncated == []


def test_what_was_cut_is_told(reranker: adv.Reranker) -> None:
    docs = ["a rope", "the dragon sleeps " * 100, "a potion", "the dragon sleeps " * 200_000]
    found = reranker.compare("dragon", docs)
    assert found.truncated == [1, 3]
    assert found.tokens[[1, 3]].tolist() == [66, 66]
    assert found.scores[1] == found.scores[3], "megabytes are cut to what is read"
    with pytest.warns(adv.TruncationWarning, match="2 of 4 documents were longer than 66 tokens .* is document 1"):
        assert np.array_equal(reranker.scores("dragon", docs), found.scores)
    with pytest.warns(adv.TruncationWarning, match="2 of 4"):
        reranker.rank("dragon", docs)
    with pytest.warns(adv.TruncationWarning, match="1 of 1"):
        reranker.score("the dragon sleeps " * 200_000, "a rope")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reranker.scores("dragon", ["a rope"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_tokens": 67}, ValueError, "max_tokens=67: this model reads 1 to 66"),
        ({"max_tokens": 0}, ValueError, "max_tokens=0"),
        ({"max_tokens": 4}, ValueError, "max_tokens=4: special tokens alone take 3"),
        ({"precision": "fp8"}, ValueError, 'precision="fp8"'),
        ({"activation": "softmax"}, ValueError, 'activation="softmax": expected "sigmoid" or "none"'),
        ({"activation": 1}, TypeError, "activation=1: expected a str, not int"),
        ({"threads": 0}, ValueError, "threads=0"),
        ({"device": "cuda"}, NotImplementedError, "cuda"),
    ],
)
def test_bad_options(models: dict[str, Path], options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        adv.Reranker(models["ms-marco"], **options)


def test_bad_texts(reranker: adv.Reranker) -> None:
    with pytest.raises(TypeError, match="the query is int, not str"):
        reranker.scores(7, ["a"])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="document 1 is NoneType, not str"):
        reranker.rank("a", ["a", None])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="documents must be a str or an iterable of str, not int"):
        reranker.scores("a", 7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the query is not valid Unicode"):
        reranker.score("\ud800", "a")
    with pytest.raises(ValueError, match="document 0 is not valid Unicode"):
        reranker.scores("a", ["\udfff"])
    with pytest.raises(ValueError, match="doc_ids must be as many as the documents: 1 for 2"):
        reranker.rank("a", ["a", "b"], doc_ids=[1])


def test_what_is_no_reranker_says_so(tmp_path: Path, models: dict[str, Path]) -> None:
    with pytest.raises(NotImplementedError, match=r'model_type "bert"\) have no classifier; rerankers are'):
        adv.Reranker(tiny.bert(tmp_path / "plain", seed=1))
    with pytest.raises(ValueError, match="the classifier has 3 labels; that of a reranker has one"):
        adv.Reranker(tiny.cross_encoder(tmp_path / "labels", seed=1, labels=3))
    with pytest.raises(ValueError, match="all-minilm-l6-v2 is not a reranker but an embedder"):
        adv.Reranker("all-minilm-l6-v2")
    tensors = tiny.load_safetensors(models["ms-marco"] / "model.safetensors")
    for name, number, message in [
        ("classifier.weight", np.nan, "NaN"),
        ("bert.pooler.dense.bias", np.inf, "inf"),
    ]:
        path = tiny.cross_encoder(tmp_path / name, seed=1)
        tiny.save_safetensors(path / "model.safetensors", {**tensors, name: np.full_like(tensors[name], number)})
        with pytest.raises(ValueError, match=f'tensor "{name}" holds {message} at element 0'):
            adv.Reranker(path)
    path = tiny.cross_encoder(tmp_path / "activation", seed=1)
    config = json.loads((path / "config.json").read_text("utf-8"))
    config["sentence_transformers"] = {"activation_fn": "torch.nn.modules.activation.Tanh"}
    (path / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(NotImplementedError, match="Tanh"):
        adv.Reranker(path)


def test_scores_beyond_all_numbers_are_an_error(tmp_path: Path) -> None:
    path = tiny.cross_encoder(tmp_path / "large", seed=1, identity=True)
    tensors = tiny.load_safetensors(path / "model.safetensors")
    tensors["classifier.weight"] = np.full_like(tensors["classifier.weight"], 3e38)
    tensors["bert.pooler.dense.bias"] = np.full_like(tensors["bert.pooler.dense.bias"], 100)
    tiny.save_safetensors(path / "model.safetensors", tensors)
    with pytest.raises(ValueError, match="document 0 has the score inf"):
        adv.Reranker(path).scores("a", ["b"])


def test_threads_share_a_reranker(reranker: adv.Reranker) -> None:
    want = {query: quiet(reranker, query, tiny.TEXTS) for query in tiny.QUERIES}
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda query: (query, quiet(reranker, query, tiny.TEXTS)), tiny.QUERIES * 8)
    assert all(np.array_equal(scores, want[query]) for query, scores in found)


def test_ctrl_c_stops_it(models: dict[str, Path]) -> None:
    code = f"""
import adventures as adv
reranker = adv.Reranker({str(models["ms-marco"])!r}, threads=1)
print("ready", flush=True)
reranker.compare("dragon", ["the dragon sleeps " * 20 for _ in range(2_000_000)])
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(1)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) in {-signal.SIGINT, 1, 130}
        assert process.stderr is not None
        assert b"KeyboardInterrupt" in process.stderr.read()


def test_the_gil_is_released(reranker: adv.Reranker) -> None:
    done = threading.Event()

    def work() -> None:
        reranker.compare("dragon", ["the dragon sleeps " * 20] * 4000)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    beats = 0
    while not done.wait(0.001):
        beats += 1
    thread.join()
    assert beats > 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_is_told(reranker: adv.Reranker) -> None:
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            reranker.score("a", "b")
        except adv.AdventuresError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader, "rb") as pipe:
        assert b"this Reranker was made before the process forked" in pipe.read()


class Shortest:
    """Finds the shortest documents the best."""

    def __init__(self) -> None:
        self.seen = 0

    def scores(self, query: str, docs: list[str]) -> np.ndarray:
        self.seen = len(docs)
        return np.array([-len(doc) for doc in docs])


@pytest.mark.parametrize("hybrid", [False, True])
def test_search_shows_a_reranker_more_and_returns_its_order(stock: adv.Library, hybrid: bool) -> None:
    query, shortest = "What do I need to climb an icy cliff?", Shortest()
    found = stock.search(query, 4, hybrid=hybrid, rerank=shortest)
    assert shortest.seen == 50
    pool = stock.search(query, 50, hybrid=hybrid)
    assert [hit.score for hit in found] == sorted((-len(hit.text) for hit in pool), reverse=True)[:4]
    by_id = {hit.id: hit for hit in pool}
    assert all((hit.text, hit.similarity) == (by_id[hit.id].text, by_id[hit.id].similarity) for hit in found)
    stock.search(query, 12, hybrid=hybrid, rerank=shortest)
    assert shortest.seen == 60


def test_search_reranks_with_a_model(stock: adv.Library, models: dict[str, Path]) -> None:
    reranker, query = adv.Reranker(models["bge-reranker"]), "What do I need to climb an icy cliff?"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", adv.TruncationWarning)
        found = stock.search(query, 5, rerank=reranker)
    scores = quiet(reranker, query, [hit.text for hit in found])
    assert [hit.score for hit in found] == scores.tolist() == sorted(scores.tolist(), reverse=True)


def test_search_refuses_what_does_not_score(stock: adv.Library) -> None:
    class Broken:
        def scores(self, query: str, docs: list[str]) -> np.ndarray:
            return np.full(len(docs), np.nan)

    with pytest.raises(
        TypeError, match=r"rerank must have a method scores\(query, docs\), as Reranker has; str has none"
    ):
        stock.search("rope", rerank="ms-marco")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the reranker must give 50 finite scores"):
        stock.search("rope", rerank=Broken())


@pytest.mark.parametrize("layout", ["stanford", "pylate"])
def test_a_colbert_model_reranks(tmp_path: Path, layout: str) -> None:
    path = tiny_colbert.colbert(tmp_path / "model", layout)
    query, docs = "where does the dragon sleep?", ["the dragon sleeps at night", "a rope to climb", "the red potion"]
    want = adv.ColBERT(path).rank(query, docs)
    for reranker in (adv.Reranker(path, model_type="colbert"), adv.Reranker(path)):
        assert (reranker.model_type, reranker.activation) == ("colbert", "none")
        ranking = reranker.rank(query, docs)
        assert [(r.rank, r.doc_id) for r in ranking] == [(r.rank, r.doc_id) for r in want]
        assert [r.score for r in ranking] == pytest.approx([r.score for r in want], abs=1e-5)
        found = reranker.compare(query, [*docs, "a rope " * 300])
        assert found.truncated == [3]
        assert len(found.tokens) == 4
        with pytest.warns(adv.TruncationWarning, match="or their query was too long"):
            reranker.scores(query, ["a rope " * 300])
    with pytest.raises(ValueError, match="the scores of ColBERT are sums"):
        adv.Reranker(path, activation="sigmoid")
    with pytest.raises(NotImplementedError, match="have no classifier"):
        adv.Reranker(path, model_type="cross-encoder")


def test_model_types(models: dict[str, Path]) -> None:
    assert adv.Reranker(models["ms-marco"]).model_type == "cross-encoder"
    with pytest.raises(ValueError, match="this is not a ColBERT model"):
        adv.Reranker(models["ms-marco"], model_type="colbert")
    with pytest.raises(ValueError, match='model_type="t5": expected "cross-encoder" or "colbert"'):
        adv.Reranker(models["ms-marco"], model_type="t5")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="model_type"):
        adv.Reranker(models["ms-marco"], model_type=7)  # type: ignore[arg-type]


def test_a_search_has_one_order(stock: adv.Library, reranker: adv.Reranker) -> None:
    with pytest.raises(ValueError, match="rerank and mmr each choose an order"):
        stock.search("a rope", rerank=reranker, mmr=0.5)
