"""ColBERT: parity with torch in both layouts, edges, invariance, pooling, MaxSim, and every bad input."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

import adventures as adv
import tiny
import tiny_colbert
from tiny_colbert import DIM, EDGES, TEXTS, VARIANTS, change

GOLDENS = np.load(Path(__file__).parent / "goldens" / "colbert.npz")
PRECISIONS = [("f32", 0.0), ("bf16x2", 1e-4), ("bf16", 1e-2), ("int8", 3e-2)]


@pytest.fixture(scope="session")
def colberts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("colbert")
    return {name: tiny_colbert.colbert(root / name, name) for name in VARIANTS}


@pytest.fixture(scope="session")
def col(colberts: dict[str, Path]) -> adv.ColBERT:
    return adv.ColBERT(colberts["stanford"])


def golden(name: str) -> list[np.ndarray]:
    return np.split(GOLDENS[f"{name}/vectors"], GOLDENS[f"{name}/offsets"][1:-1])


def quiet(col: adv.ColBERT, texts: list[str], pool_factor: int = 1) -> list[np.ndarray]:
    return list(col.encode_documents(texts, pool_factor=pool_factor))


def queries(col: adv.ColBERT, texts: list[str]) -> list[np.ndarray]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", adv.TruncationWarning)
        return col.embed_queries(texts)


def same(got: list[np.ndarray], want: list[np.ndarray]) -> float:
    assert [rows.shape for rows in got] == [rows.shape for rows in want]
    return max(np.abs(a - b).max() for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("name", VARIANTS)
def test_both_layouts_equal_torch(colberts: dict[str, Path], name: str) -> None:
    col = adv.ColBERT(colberts[name])
    variant = VARIANTS[name]
    assert (col.dim, col.query_maxlen, col.doc_maxlen) == (DIM, variant.query_maxlen, variant.doc_maxlen)
    q, d = queries(col, TEXTS), quiet(col, TEXTS)
    assert same(q, golden(f"{name}/queries")) <= 1e-5
    assert same(d, golden(f"{name}/documents")) <= 1e-5
    assert all(np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6) for rows in [*q, *d])
    assert all(len(rows) == variant.query_maxlen for rows in q) == variant.expands
    scores = np.stack([col.maxsim(rows, d) for rows in q])
    assert scores.dtype == np.float32
    assert np.abs(scores - GOLDENS[f"{name}/scores"]).max() <= 1e-4


@pytest.mark.parametrize("name", VARIANTS)
def test_texts_as_long_as_they_may_be(colberts: dict[str, Path], name: str) -> None:
    """One token less than fits, as many, one more: what is cut keeps its [SEP] and makes no more vectors."""
    col = adv.ColBERT(colberts[name])
    for kind, rows in (("queries", queries(col, EDGES)), ("documents", quiet(col, EDGES))):
        assert [len(row) for row in rows] == GOLDENS[f"{name}/edges/{kind}/lengths"].tolist()
        assert np.abs(np.stack([row.sum(0) for row in rows]) - GOLDENS[f"{name}/edges/{kind}"]).max() <= 1e-4


def test_what_is_cut_is_told(col: adv.ColBERT) -> None:
    fits, long = "x " * 57, "x " * 58
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        col.embed_documents([fits])
        col.embed_query("x " * 29)
        assert col.encode_documents([fits, long, fits, long]).truncated == [1, 3]
    with pytest.warns(
        adv.TruncationWarning, match="1 of 2 documents were longer than 60 tokens and were cut; .* number 1"
    ):
        col.embed_documents([fits, long])
    with pytest.warns(adv.TruncationWarning, match="1 of 1 queries were longer than 32 tokens"):
        col.embed_query("x " * 30)
    with pytest.warns(adv.TruncationWarning, match="1 of 1 documents"):
        col.rank("x", [long])


def test_punctuation_is_read_but_has_no_vectors(col: adv.ColBERT) -> None:
    plain, marked, only = quiet(col, ["the dragon sleeps", "the dragon, sleeps.", "?!.,"])
    assert len(plain) == len(marked) == 11  # [CLS] [unused1] the dragon s ##l ##e ##e ##p ##s [SEP]
    assert not np.allclose(plain, marked)
    assert len(only) == 3


@pytest.mark.parametrize("precision", ["f32", "bf16x2", "bf16", "int8"])
@pytest.mark.parametrize("name", ["stanford", "pylate"])
def test_vectors_have_the_same_bits_beside_any_others(colberts: dict[str, Path], name: str, precision: str) -> None:
    col = adv.ColBERT(colberts[name], precision=precision)
    texts = [*TEXTS, *EDGES] * 3
    whole, asked = quiet(col, texts), queries(col, texts)
    one = adv.ColBERT(colberts[name], precision=precision, threads=1)
    for i in range(0, len(texts), 5):
        assert np.array_equal(quiet(one, [texts[i]])[0], whole[i])
        assert np.array_equal(queries(one, [texts[i]])[0], asked[i])
    order = np.random.default_rng(0).permutation(len(texts))
    assert all(
        np.array_equal(rows, whole[i]) for rows, i in zip(quiet(col, [texts[i] for i in order]), order, strict=True)
    )
    assert adv.ColBERT(colberts[name]).revision + ("" if precision == "f32" else f"+{precision}") == col.revision


@pytest.mark.parametrize(("precision", "most"), PRECISIONS)
def test_precisions(colberts: dict[str, Path], precision: str, most: float) -> None:
    col = adv.ColBERT(colberts["stanford"], precision=precision)
    assert col.precision == precision
    scores = np.stack([col.maxsim(rows, quiet(col, TEXTS)) for rows in queries(col, TEXTS)])
    assert np.abs(scores - GOLDENS["stanford/scores"]).max() <= 1e-4 + 32 * most


def test_half_precision_weights(tmp_path: Path, colberts: dict[str, Path]) -> None:
    """bfloat16 and half precision weights are what they stand for."""
    tensors = tiny.load_safetensors(colberts["stanford"] / "model.safetensors")
    halves = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    cut = {name: (tensor.view(np.uint32) & 0xFFFF0000).view(np.float32) for name, tensor in tensors.items()}
    wide = {name: tensor.astype(np.float32) for name, tensor in halves.items()}
    found = []
    for i, (save, weights) in enumerate(
        [
            (tiny.save_safetensors, halves),
            (tiny.save_safetensors, wide),
            (tiny_colbert.save_bfloat16, cut),
            (tiny.save_safetensors, cut),
        ]
    ):
        path = tmp_path / str(i)
        shutil.copytree(colberts["stanford"], path)
        save(path / "model.safetensors", weights)
        found.append(quiet(adv.ColBERT(path), TEXTS))
    assert same(found[0], found[1]) == 0
    assert same(found[2], found[3]) == 0
    assert 0 < same(found[0], golden("stanford/documents")) < 1e-2
    assert 0 < same(found[2], golden("stanford/documents")) < 5e-2


@pytest.mark.parametrize("name", VARIANTS)
def test_pooled_tokens_equal_scipy(colberts: dict[str, Path], name: str) -> None:
    col = adv.ColBERT(colberts[name])
    pooled = quiet(col, TEXTS, 3)
    assert same(pooled, golden(f"{name}/pooled")) <= 1e-5
    for rows, whole in zip(pooled, quiet(col, TEXTS), strict=True):
        assert len(rows) == (1 + max((len(whole) - 1) // 3, 1))
        assert np.array_equal(rows[0], whole[0])
    assert same(quiet(col, TEXTS, 1), quiet(col, TEXTS)) == 0


def test_forms_of_documents_and_queries(col: adv.ColBERT) -> None:
    found = col.encode_documents(TEXTS)
    flat, offsets = found.vectors, found.offsets
    assert flat.dtype == np.float32
    assert offsets.dtype == np.int64
    assert (len(found), flat.shape) == (len(TEXTS), (offsets[-1], DIM))
    listed = col.embed_documents(TEXTS[:5])
    assert all(rows.base is not None for rows in listed), "views, not copies"
    assert np.array_equal(found[-1], flat[offsets[-2] :])
    with pytest.raises(IndexError, match="text 8 of 8"):
        found[8]
    q = col.embed_queries(TEXTS[1:4])
    want = col.maxsim(q[0], found)
    for docs in ((flat, offsets), (flat, offsets.tolist() and np.array(offsets, np.int32)), list(found), iter(found)):
        assert np.array_equal(col.maxsim(q[0], docs), want)
    assert np.array_equal(col.maxsim(q[0].astype(np.float64), (np.asfortranarray(flat), offsets)), want)
    both = col.maxsim(np.stack(q), found)
    assert both.shape == (3, len(TEXTS))
    assert all(np.array_equal(row, col.maxsim(one, found)) for row, one in zip(both, q, strict=True))
    assert np.array_equal(col.maxsim(found, found)[2], col.maxsim(found[2], found))
    assert col.maxsim(q[0], []).shape == (0,)
    assert col.maxsim(q[0], [np.zeros((0, DIM)), found[0]]).tolist() == [-np.inf, want[0]]
    assert col.maxsim(np.zeros((0, 4, DIM)), found).shape == (0, len(TEXTS))


def test_no_texts(col: adv.ColBERT) -> None:
    assert col.embed_documents([]) == []
    assert col.embed_queries([]) == []
    found = col.encode_documents([])
    assert (len(found), found.vectors.shape, found.offsets.tolist()) == (0, (0, DIM), [0])
    assert len(col.rank("x", [])) == 0
    assert col.scores("x", []).shape == (0,)


def test_rank(col: adv.ColBERT) -> None:
    docs = TEXTS[1:6]
    scores = col.scores("a dragon at night", docs)
    assert scores.dtype == np.float32
    assert np.array_equal(scores, col.maxsim(col.embed_query("a dragon at night"), col.embed_documents(docs)))
    ranking = col.rank("a dragon at night", docs, doc_ids=list("abcde"), metadata=[{"n": i} for i in range(5)])
    order = np.argsort(-scores, kind="stable")
    assert [result.doc_id for result in ranking] == ["abcde"[i] for i in order]
    assert [result.rank for result in ranking] == [1, 2, 3, 4, 5]
    assert [result.metadata for result in ranking] == [{"n": i} for i in order]
    assert ranking[0].score == scores.max()
    assert ranking[0].text == docs[order[0]]
    assert [result.doc_id for result in col.rank("a", iter(docs))] == np.argsort(-col.scores("a", docs)).tolist()
    with pytest.raises(ValueError, match="doc_ids must be as many as the documents: 1 for 5"):
        col.rank("a", docs, doc_ids=["a"])


def test_a_search_is_reranked(stock: adv.Library, col: adv.ColBERT) -> None:
    query = "the dragon sleeps"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", adv.TruncationWarning)
        found = stock.search(query, 5, rerank=col)
        scores = col.scores(query, [hit.text for hit in found])
    assert [hit.score for hit in found] == pytest.approx(sorted(scores, reverse=True))


def test_heat(col: adv.ColBERT) -> None:
    heat = col.heat("the dragon", "the dragon, sleeps.")
    assert heat.query_tokens[:5] == ["[CLS]", "[unused0]", "the", "dragon", "[SEP]"]
    assert heat.query_tokens[5:] == ["[MASK]"] * 27
    assert heat.doc_tokens[:4] == ["[CLS]", "[unused1]", "the", "dragon"]
    assert "," not in heat.doc_tokens
    assert heat.similarities.shape == (32, len(heat.doc_tokens))
    q, d = col.embed_query("the dragon"), col.embed_documents("the dragon, sleeps.")[0]
    assert np.allclose(heat.similarities, q @ d.T, atol=1e-6)
    assert heat.similarities.max(1).sum() == pytest.approx(
        col.scores("the dragon", ["the dragon, sleeps."])[0], abs=1e-5
    )


def test_lengths_can_be_chosen(colberts: dict[str, Path]) -> None:
    col = adv.ColBERT(colberts["stanford"], query_maxlen=40, doc_maxlen=10)
    assert col.embed_query("x " * 37).shape == (40, DIM)
    assert len(quiet(col, ["x " * 20])[0]) == 10
    assert col.embed_query("a", query_maxlen=12).shape == (12, DIM)
    assert [len(rows) for rows in col.embed_queries(["a", "b c"], query_maxlen=50)] == [50, 50]
    for options, message in [
        ({"query_maxlen": 67}, "query_maxlen=67: this model reads 4 to 66 tokens"),
        ({"query_maxlen": 3}, "query_maxlen=3: "),
        ({"doc_maxlen": 0}, "doc_maxlen=0: "),
        ({"threads": 0}, "threads=0"),
        ({"precision": "fp16"}, "precision"),
    ]:
        with pytest.raises(ValueError, match=message):
            adv.ColBERT(colberts["stanford"], **options)
    with pytest.raises(ValueError, match="query_maxlen=67"):
        col.embed_query("a", query_maxlen=67)
    with pytest.raises(TypeError, match="query_maxlen='a'"):
        col.embed_query("a", query_maxlen="a")
    with pytest.raises(ValueError, match="pool_factor=0"):
        col.embed_documents(["a"], pool_factor=0)
    with pytest.raises(NotImplementedError, match="cuda"):
        adv.ColBERT(colberts["stanford"], device="cuda")


def test_windows_that_see_no_token_of_a_query_are_refused(tmp_path: Path, colberts: dict[str, Path]) -> None:
    col = adv.ColBERT(change(colberts["modern"], tmp_path / "narrow", "config.json", local_attention=20))
    with pytest.raises(ValueError, match="a sequence of 32 tokens, of which the first 4 are attended to, from 10 away"):
        col.embed_query("a")
    assert col.embed_query("a " * 20).shape == (32, DIM)


def test_checkpoints_that_are_none(tmp_path: Path, colberts: dict[str, Path]) -> None:
    embedder = tiny.bert(tmp_path / "embedder", seed=1, pooling="mean")
    dense = tiny.bert(tmp_path / "dense", seed=1, pooling="mean", dense=7)
    plain = tiny.bert(tmp_path / "plain", seed=1)
    stanford, pylate, meta = colberts["stanford"], colberts["pylate"], "artifact.metadata"
    config = "config_sentence_transformers.json"
    for path, error, message in [
        (embedder, ValueError, 'no tensor "linear.weight" and no Dense module'),
        (plain, ValueError, "is not a ColBERT model"),
        (dense, ValueError, "this is an embedder"),
        (change(stanford, tmp_path / "a", meta, similarity="l2"), NotImplementedError, 'similarity "l2"'),
        (change(stanford, tmp_path / "b", meta, query_token_id="[Q!]"), ValueError, r'no mark of a query \["\[Q!\]"\]'),
        (change(stanford, tmp_path / "c", meta, doc_maxlen="9"), ValueError, 'doc_maxlen is "9", not a count'),
        (
            change(stanford, tmp_path / "d", meta, mask_punctuation=1),
            ValueError,
            "mask_punctuation is 1, not true or false",
        ),
        (change(stanford, tmp_path / "e", meta, query_maxlen=2), ValueError, "query_maxlen=2"),
        (change(pylate, tmp_path / "f", config, skiplist_words="."), ValueError, "not a list of texts"),
        (change(pylate, tmp_path / "g", "1_Dense/config.json", out_features=21), ValueError, r"has shape \[20, 32\]"),
        (change(pylate, tmp_path / "h", "1_Dense/config.json", use_residual=True), NotImplementedError, "use_residual"),
        (tmp_path / "none", FileNotFoundError, "no model at"),
    ]:
        with pytest.raises(error, match=message):
            adv.ColBERT(path)
    with pytest.raises(ValueError, match="all-minilm-l6-v2 is not a colbert but an embedder"):
        adv.ColBERT("all-minilm-l6-v2")


def test_bad_arguments(col: adv.ColBERT) -> None:
    q, docs = col.embed_query("a"), col.encode_documents(["a", "b"])
    for vectors, documents, message in [
        (q[:, :9], docs, r"query_vectors has shape \[32, 9\]: expected \(tokens, 20\)"),
        (q[0], docs, "query_vectors has shape"),
        (q, [q[:, :9]], r"docs\[0\] has shape \[32, 9\]"),
        (q, (q, np.array([0, 33])), "offsets end with 33, and there are 32 tokens"),
        (q, (q, np.array([0, 5, 4])), "offsets must not fall"),
        (q, (q, np.array([], np.int64)), "offsets are empty"),
        (q, (q, np.array([-1, 2])), "offsets must be counts"),
        (np.where(q == q[3, 3], np.nan, q), docs, "query 0: token 3 holds NaN"),
    ]:
        with pytest.raises(ValueError, match=message):
            col.maxsim(vectors, documents)
    with pytest.raises(TypeError, match="docs: expected TokenVectors"):
        col.maxsim(q, 7)
    for call in (col.embed_query, lambda text: col.scores(text, []), lambda text: col.heat(text, "a")):
        with pytest.raises(TypeError, match="the query is int, not str"):
            call(7)
    with pytest.raises(TypeError, match="document 1 is int, not str"):
        col.embed_documents(["a", 7])
    bad = np.array(docs.vectors)
    bad[1, 2] = np.nan
    scores = col.maxsim(q, (bad, docs.offsets))
    assert np.isnan(scores).tolist() == [True, False]


@pytest.mark.alone
@pytest.mark.parametrize("call", ["col.embed_documents(texts)", "col.maxsim(np.stack([q] * 400), (flat, offsets))"])
def test_ctrl_c_stops_it(colberts: dict[str, Path], call: str) -> None:
    code = f"""
import adventures as adv, numpy as np, signal, os, sys, threading, time
col = adv.ColBERT(sys.argv[1])
texts = [f"the dragon of {{i}} sleeps " * 5 for i in range(100_000)]
q = col.embed_query("a dragon")
flat, offsets = np.tile(q, (20_000, 1)), np.arange(0, 640_001, 32)
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
start = time.perf_counter()
try:
    {call}
except KeyboardInterrupt:
    print("stopped", time.perf_counter() - start)
"""
    out = subprocess.run(
        [sys.executable, "-c", code, str(colberts["stanford"])],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert out.stdout.startswith("stopped"), out.stdout + out.stderr
    assert float(out.stdout.split()[1]) < 2


@pytest.mark.alone
def test_the_gil_is_free_while_it_computes(col: adv.ColBERT) -> None:
    ticks, done = 0, threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not done.is_set():
            ticks += 1
            time.sleep(0.001)

    ticker = threading.Thread(target=tick)
    ticker.start()
    start = time.perf_counter()
    quiet(col, [f"{i} the dragon sleeps " * 9 for i in range(3000)])
    seconds = time.perf_counter() - start
    done.set()
    ticker.join()
    assert ticks > seconds * 1000 * 0.05


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_use_after_fork_is_an_error(col: adv.ColBERT) -> None:
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of forking a process with threads
        pid = os.fork()
    if pid == 0:
        try:
            col.embed_query("a")
        except adv.AdventuresError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(writer)
    assert "this ColBERT was made before the process forked" in os.read(reader, 1000).decode()


def test_repr(col: adv.ColBERT) -> None:
    assert repr(col) == 'ColBERT("stanford", dim=20, query_maxlen=32, doc_maxlen=60, device="cpu")'
    assert repr(col.encode_documents(["a"])) == "TokenVectors(1 texts, vectors of shape (4, 20), 0 texts truncated)"
    assert repr(col.heat("a", "b")) == "HeatMap(32 query tokens, 4 document tokens)"


SMALL = os.environ.get("COLBERT_SMALL")
VENUS = "Venus is often called Earth's twin because of its similar size and proximity."
PLANETS = [
    VENUS,
    "Mars, known for its reddish appearance, is often referred to as the Red Planet.",
    "Jupiter, the largest planet in our solar system, has a prominent red spot.",
    "Saturn, famous for its rings, is sometimes mistaken for the Red Planet.",
]


@pytest.mark.skipif(not SMALL, reason="COLBERT_SMALL names no directory of answerai-colbert-small-v1")
def test_answerai_colbert_small() -> None:
    """What its model card, PyLate's, pylate-rs's and fastembed's tests state."""
    col = adv.ColBERT(SMALL)
    assert (col.dim, col.query_maxlen) == (96, 32)
    assert col.embed_documents([VENUS])[0].shape == (17, 96)
    scores = col.scores("Which planet is known as the Red Planet?", PLANETS)
    assert np.allclose(scores, [30.5692, 31.4895, 31.3029, 31.3072], atol=2e-3)
    paris = col.scores("what is the capital of france", ["paris is the capital of france"])[0]
    assert paris == pytest.approx(31.490696, abs=1e-2)
    fruits = col.scores("fruits are healthy.", ["fruits are healthy.", "fruits are good for health."])
    assert np.allclose(fruits, [31.71, 31.64], rtol=1e-2)
    document, query = col.embed_documents(["Hello World"])[0], col.embed_query("Hello World")
    assert np.allclose(document[0, :5], [-0.07281, 0.04632, -0.04711, 0.00762, -0.07374], atol=2e-3)
    assert np.allclose(document[1, :5], [-0.04464, 0.04426, -0.074, 0.01801, -0.05233], atol=2e-3)
    assert np.allclose(query[0, :5], [-0.07284, 0.04657, -0.04746, 0.00786, -0.07342], atol=2e-3)
    assert np.allclose(query[31, :5], [-0.03473, 0.04792, -0.07033, 0.02196, -0.05314], atol=2e-3)


@pytest.mark.skipif(not os.environ.get("COLBERT_V2"), reason="COLBERT_V2 names no directory of colbertv2.0")
def test_colbertv2() -> None:
    """What pylate-rs's tests state."""
    col = adv.ColBERT(os.environ["COLBERT_V2"])
    assert col.dim == 128
    paris = col.scores("what is the capital of france", ["paris is the capital of france"])[0]
    assert paris == pytest.approx(29.603443, abs=1e-2)
