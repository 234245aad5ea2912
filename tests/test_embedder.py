"""Embedder: parity with transformers and sentence-transformers, invariance, and every bad input."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest

import adventures as adv
import languages
import tiny
from adventures.models.cache import cache_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

GOLDENS = Path(__file__).parent / "goldens"
E5 = cache_folder() / "tests" / "multilingual-e5-small-q4" / "model.safetensors"


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny.family(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_bert(family: dict[str, Path]) -> adv.Embedder:
    return adv.Embedder(family["e5"])


def quiet(embedder: adv.Embedder, texts: list[str], kind: str = "passage") -> np.ndarray:
    return embedder.encode(texts, kind).vectors


@pytest.mark.parametrize("name", ["e5", "bge", "multilingual-e5", "dense"])
@pytest.mark.parametrize("kind", ["query", "passage"])
def test_tiny_checkpoints_equal_transformers(family: dict[str, Path], name: str, kind: str) -> None:
    prompts = {} if name in ("bge", "dense") else {"query_prefix": "query: ", "passage_prefix": "passage: "}
    embedder = adv.Embedder(family[name], **prompts)
    assert embedder.prompts == tiny.prefixes(name)
    assert embedder.pooling == ("cls" if name == "bge" else "mean")
    with np.load(GOLDENS / "tiny.npz") as goldens:
        want = goldens[f"{name}/{kind}"]
    got = quiet(embedder, tiny.TEXTS, kind)
    assert got.shape == want.shape == (len(tiny.TEXTS), embedder.dim)
    assert embedder.dim == (20 if name == "dense" else tiny.HIDDEN)
    assert got.dtype == np.float32
    assert np.abs(got - want).max() <= 1e-5


def test_minilm_equals_sentence_transformers(minilm: adv.Embedder) -> None:
    with np.load(GOLDENS / "minilm.npz") as goldens:
        texts, want = json.loads(str(goldens["texts"])), goldens["vectors"].astype(np.float32)
    want /= np.linalg.norm(want, axis=1, keepdims=True)
    found = minilm.encode(texts)
    assert len(texts) == 500
    cosines = (found.vectors * want).sum(1)
    assert cosines.min() >= 0.99999
    assert np.allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-6)
    assert 0 < len(found.truncated) < 100
    assert found.tokens[found.truncated].tolist() == [256] * len(found.truncated)


@pytest.mark.skipif(not E5.exists(), reason=f"{E5} is not here: `make models` makes it")
@pytest.mark.parametrize(
    ("precision", "least"), [("f32", 0.99999), ("bf16x2", 0.99999), ("bf16", 0.9999), ("int8", 0.999)]
)
@pytest.mark.parametrize("kind", ["query", "passage"])
def test_a_real_e5_equals_sentence_transformers(kind: str, precision: str, least: float) -> None:
    """Of 300 texts in eight languages, some of them longer than the model reads."""
    embedder = adv.Embedder(E5.parent, precision=precision, query_prefix="query: ", passage_prefix="passage: ")
    with np.load(GOLDENS / "e5.npz") as goldens:
        want = goldens[kind].astype(np.float32)
    want /= np.linalg.norm(want, axis=1, keepdims=True)
    found = embedder.encode(languages.texts(), kind)
    assert found.vectors.shape == want.shape == (300, 384)
    assert (found.vectors * want).sum(1).min() >= least
    assert len(found.truncated) == 16
    assert found.tokens[found.truncated].tolist() == [512] * 16


@pytest.mark.parametrize("precision", ["f32", "bf16x2", "bf16", "int8"])
@pytest.mark.parametrize("name", ["all-minilm-l6-v2", "bge"])
def test_a_vector_has_the_same_bits_beside_any_others(family: dict[str, Path], name: str, precision: str) -> None:
    embedder = adv.Embedder(family.get(name, name), precision=precision)
    texts = [*tiny.TEXTS, "a long one " * 400]
    whole = quiet(embedder, texts)
    single = np.concatenate([quiet(embedder, [text]) for text in texts])
    assert np.array_equal(whole, single)
    order = np.random.default_rng(0).permutation(len(texts))
    assert np.array_equal(quiet(embedder, [texts[i] for i in order]), whole[order])
    one = adv.Embedder(family.get(name, name), precision=precision, threads=1)
    assert np.array_equal(quiet(one, texts), whole)


@pytest.mark.parametrize(
    ("precision", "least"), [("bf16x2", 0.99999), ("bf16", 0.9999), ("int8", 0.999), ("auto", 0.999)]
)
def test_precisions_keep_their_cosine(minilm: adv.Embedder, precision: str, least: float) -> None:
    with np.load(GOLDENS / "minilm.npz") as goldens:
        texts = sorted(json.loads(str(goldens["texts"])), key=lambda text: not text.strip())
    words = sum(1 for text in texts if text.strip())
    texts += [".", "\n", "!", "?", "?!", "...", "ok", "no", "yes", "I", "7", "the", "please", "really"]
    embedder = adv.Embedder("all-minilm-l6-v2", precision=precision)
    assert embedder.precision in ({"f32", "bf16", "int8"} if precision == "auto" else {precision})
    cosines = (quiet(embedder, texts) * quiet(minilm, texts)).sum(1)
    assert cosines[:words].min() >= least
    # The vector of no token or one is the mean of two or three, whose rounding does not cancel out.
    assert cosines.min() >= 1 - 1.5 * (1 - least)


def test_what_makes_other_vectors_is_part_of_the_revision(family: dict[str, Path]) -> None:
    plain = adv.Embedder(family["e5"])
    assert plain.precision == "f32"
    assert adv.Embedder(family["e5"], precision="f32", normalize=True).revision == plain.revision
    assert adv.Embedder(family["e5"], precision="int8").revision == plain.revision + "+int8"
    other = adv.Embedder(family["e5"], precision="bf16", normalize=False)
    assert other.revision == plain.revision + "+bf16+unnormalized"


@pytest.mark.parametrize("name", ["e5", "bge", "dense"])
def test_first_numbers_and_lengths(family: dict[str, Path], name: str) -> None:
    whole = quiet(adv.Embedder(family[name]), tiny.TEXTS)
    short = adv.Embedder(family[name], dim=12)
    assert short.dim == 12
    want = whole[:, :12] / np.linalg.norm(whole[:, :12], axis=1, keepdims=True)
    assert np.allclose(quiet(short, tiny.TEXTS), want, atol=1e-6)
    raw = quiet(adv.Embedder(family[name], normalize=False), tiny.TEXTS)
    lengths = np.linalg.norm(raw, axis=1, keepdims=True)
    assert np.abs(lengths - 1).max() > 0.1
    assert np.allclose(raw / lengths, whole, atol=1e-6)
    if name == "dense":
        assert np.abs(raw).max() <= 1, "of a tangent, not of its multiple"


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=str
)
def test_arrow_in_and_out(tiny_bert: adv.Embedder, kind: pa.DataType) -> None:
    texts = [*tiny.TEXTS, "", "a dragon", "", "日本語"]
    want = quiet(tiny_bert, texts)
    array = pa.array(texts, pa.string()).cast(kind)

    def check(given: pa.Array | pa.ChunkedArray, want: np.ndarray) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", adv.TruncationWarning)
            got = tiny_bert.embed_arrow(given)
        assert got.type == pa.list_(pa.float32(), 32)
        assert np.array_equal(got.flatten().to_numpy().reshape(-1, 32), want)

    check(array, want)
    check(array[3:-1], want[3:-1])
    check(pa.chunked_array([array[:5], array[5:5], array[5:]]), want)
    check(array[:0], want[:0])
    check(array[:1], want[:1])  # an empty text


def test_arrow_that_is_not_text(tiny_bert: adv.Embedder) -> None:
    with pytest.raises(ValueError, match="text 1 is null"):
        tiny_bert.embed_arrow(pa.array(["a", None, "b", None]))
    with pytest.raises(TypeError, match="of the Arrow type int64, not strings"):
        tiny_bert.embed_arrow(pa.array([1]))
    with pytest.raises(TypeError, match="list<item: string>, not strings"):
        tiny_bert.embed_arrow(pa.array([["a"]]))
    with pytest.raises(TypeError, match=r"must be a pyarrow.Array or ChunkedArray, not list"):
        tiny_bert.embed_arrow(["a"])
    bad = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")])
    with pytest.raises(ValueError, match="text 0 is not valid Unicode"):
        tiny_bert.embed_arrow(bad)
    with pytest.warns(adv.TruncationWarning, match="1 of 2 texts were longer"):
        tiny_bert.embed_arrow(pa.array(["a", "word " * 100]))


def test_a_stream_is_read_as_it_is_needed(tiny_bert: adv.Embedder) -> None:
    read = 0

    def endless() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield f"the dragon {read}"

    stream = tiny_bert.encode_stream(endless(), batch=10)
    first, second = next(stream), next(stream)
    assert read == 20
    want = quiet(tiny_bert, [f"the dragon {i}" for i in range(1, 21)])
    assert np.array_equal(np.concatenate([first.vectors, second.vectors]), want)
    parts = list(tiny_bert.encode_stream(iter(tiny.TEXTS), "query", batch=7))
    assert [len(part.tokens) for part in parts] == [7] * (len(tiny.TEXTS) // 7) + [len(tiny.TEXTS) % 7]
    assert np.array_equal(np.concatenate([p.vectors for p in parts]), quiet(tiny_bert, tiny.TEXTS, "query"))
    assert list(tiny_bert.encode_stream([])) == []


def test_a_stream_that_cannot_be(tiny_bert: adv.Embedder) -> None:
    with pytest.raises(ValueError, match="batch=0"):
        tiny_bert.encode_stream(["a"], batch=0)
    for texts, name in (("a text", "str"), (7, "int")):
        with pytest.raises(TypeError, match=f"must be an iterable of str, not {name}"):
            tiny_bert.encode_stream(texts)
    with pytest.raises(ValueError, match='kind="poem"'):
        tiny_bert.encode_stream(["a"], "poem")
    with pytest.raises(TypeError, match="text 1 is int, not str"):
        next(tiny_bert.encode_stream(["a", 7]))

    def broken() -> Iterator[str]:
        yield "a"
        raise OSError("the table is gone")

    with pytest.raises(OSError, match="the table is gone"):
        next(tiny_bert.encode_stream(broken()))


def test_equal_texts_have_equal_vectors_and_reports(tiny_bert: adv.Embedder) -> None:
    texts = ["the rope", "x " * 200, "the rope", "a dragon", "x " * 200]
    found = tiny_bert.encode(texts)
    assert found.truncated == [1, 4]
    assert np.array_equal(found.vectors[0], found.vectors[2])
    assert np.array_equal(found.vectors[1], found.vectors[4])
    assert found.tokens[0] == found.tokens[2] == tiny_bert.count_tokens("the rope")[0]
    assert not np.array_equal(found.vectors[0], found.vectors[3])


def test_truncation_is_counted_and_warned_of(minilm: adv.Embedder) -> None:
    long = "the dragon sleeps " * 200
    with pytest.warns(
        adv.TruncationWarning, match=r"1 of 2 texts were longer than 256 tokens and were cut; the first is text 1"
    ):
        minilm.embed(["short", long])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        minilm.embed("short")
    assert minilm.count_tokens([long, "", "dragon"]) == [602, 2, 3]
    assert np.allclose(quiet(minilm, [long]), quiet(minilm, ["the dragon sleeps " * 90]))


def test_empty_and_megabyte_texts(minilm: adv.Embedder) -> None:
    texts = ["", "dragon " * 150_000, "x" * 1_000_000, "\n" * 1_000_000, "ドラゴン" * 250_000]
    found = minilm.encode(texts)
    assert np.isfinite(found.vectors).all()
    assert found.truncated == [1]  # a word of a million letters is one unknown token
    assert np.allclose(found.vectors[0], found.vectors[3])


def test_no_texts(minilm: adv.Embedder) -> None:
    assert minilm.embed([]).shape == (0, 384)
    assert minilm.encode([]).truncated == []
    assert minilm.count_tokens([]) == []
    assert minilm.split([]) == []


def test_takes_any_iterable_of_text(tiny_bert: adv.Embedder) -> None:
    want = tiny_bert.embed(["a", "b"])
    for texts in (("a", "b"), iter("ab"), {"a": 1, "b": 2}, np.array(["a", "b"])):
        assert np.array_equal(tiny_bert.embed(texts), want)
    assert tiny_bert.embed("ab").shape == (1, 32)


def test_eight_threads_share_one_embedder(minilm: adv.Embedder) -> None:
    texts = [f"{text} {i}" for i, text in enumerate(tiny.TEXTS)]
    want = quiet(minilm, texts)
    with ThreadPoolExecutor(8) as pool:
        for got in pool.map(lambda _: quiet(minilm, texts), range(24)):
            assert np.abs(got - want).max() <= 1e-5


def test_queries_beside_each_other_and_beside_a_batch_have_the_same_bits(minilm: adv.Embedder) -> None:
    queries = [f"{text[:90]} {i}" for i, text in enumerate(text for text in tiny.TEXTS if text.strip())]
    want, batch = quiet(minilm, queries), [f"{text} {i}" for i in range(20) for text in queries]
    with ThreadPoolExecutor(5) as pool:
        beside = pool.submit(quiet, minilm, batch)
        found = list(pool.map(lambda query: quiet(minilm, [query])[0], queries * 20))
    assert np.array_equal(np.stack(found), np.tile(want, (20, 1)))
    assert np.array_equal(beside.result(), quiet(minilm, batch))


@pytest.mark.alone
def test_the_gil_is_free_while_it_computes(minilm: adv.Embedder) -> None:
    ticks = 0
    done = threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not done.is_set():
            ticks += 1
            time.sleep(0.001)

    ticker = threading.Thread(target=tick)
    ticker.start()
    start = time.perf_counter()
    quiet(minilm, [f"{i} the dragon sleeps at night " * 10 for i in range(150)])
    seconds = time.perf_counter() - start
    done.set()
    ticker.join()
    assert ticks > seconds * 1000 * 0.05


def test_split_gives_pieces_that_fit(minilm: adv.Embedder) -> None:
    text = " ".join(f"Sentence {i} tells of the dragon of hill {i}." for i in range(200))
    (short,), pieces = minilm.split(["as it is", text], overlap=16)
    assert short == "as it is"
    assert len(pieces) > 5
    assert max(minilm.count_tokens(pieces)) <= 256
    assert all(f"hill {i}." in " ".join(pieces) for i in range(200))
    assert max(minilm.count_tokens(minilm.split([text], max_tokens=20)[0])) <= 20


@pytest.mark.parametrize(
    "sentence", ["The dragon sleeps at night. ", "日本語の本", "dragon"], ids=["words", "no-spaces", "word"]
)
def test_a_huge_text_has_the_vector_of_its_beginning(minilm: adv.Embedder, sentence: str) -> None:
    long, huge = (minilm.encode(sentence * times) for times in (600, 200_000))
    assert np.array_equal(long.vectors, huge.vectors)
    assert np.array_equal(long.tokens, huge.tokens)
    # A word of more than a hundred letters is one unknown token, however long it is.
    assert huge.truncated == ([] if sentence == "dragon" else [0])


@pytest.mark.alone
def test_a_huge_text_is_not_read_to_be_cut(minilm: adv.Embedder) -> None:
    start = time.perf_counter()
    minilm.encode("日" * 3_000_000)
    assert time.perf_counter() - start < 3, "all of it takes ten seconds"


@pytest.mark.alone
def test_ctrl_c_stops_a_split() -> None:
    code = """
import adventures as adv, os, signal, threading, time
embedder = adv.Embedder("all-minilm-l6-v2")
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
start = time.monotonic()
try:
    embedder.split(["The dragon sleeps at night. " * 200_000])
except KeyboardInterrupt:
    print(time.monotonic() - start < 3)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert out.stdout.strip() == "True", out.stdout + out.stderr


@pytest.mark.alone
def test_ctrl_c_stops_it() -> None:
    code = """
import adventures as adv, sys, threading, signal, os, time, tiny, pathlib, tempfile
emb = adv.Embedder(tiny.bert(pathlib.Path(tempfile.mkdtemp()) / "m", seed=1))
texts = [f"the dragon of {i} sleeps " * 9 for i in range(2_000_000 // 8)]
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
start = time.perf_counter()
try:
    emb.encode(texts)
except KeyboardInterrupt:
    print("stopped", time.perf_counter() - start)
"""
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=120
    )
    word, seconds = out.stdout.split()
    assert (word, out.returncode) == ("stopped", 0), out.stderr
    assert float(seconds) < 1.5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_use_after_fork_is_an_error_not_a_hang(tiny_bert: adv.Embedder) -> None:
    tiny_bert.embed("warm")
    receiver, sender = multiprocessing.Pipe(duplex=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of forking a process with threads
        pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        try:
            tiny_bert.embed("child")
            sender.send("no error")
        except adv.AdventuresError as error:
            sender.send(str(error))
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert receiver.poll(0)
    assert "before the process forked" in receiver.recv()


@pytest.mark.parametrize(
    ("texts", "kind", "error", "message"),
    [
        (["a", 7], "passage", TypeError, "text 1 is int, not str"),
        (["a", None], "passage", TypeError, "text 1 is NoneType, not str"),
        (["a", b"b"], "passage", TypeError, "text 1 is bytes, not str"),
        (7, "passage", TypeError, "texts must be a str or an iterable of str, not int"),
        (["ok", "lone \ud800 surrogate"], "passage", ValueError, "text 1 is not valid Unicode"),
        (["a"], "document", ValueError, 'kind="document": expected "query" or "passage"'),
    ],
)
def test_bad_texts(tiny_bert: adv.Embedder, texts: object, kind: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tiny_bert.embed(texts, kind)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"threads": 0}, ValueError, "threads=0"),
        ({"max_tokens": 0}, ValueError, "max_tokens=0: this model reads 1 to 66"),
        ({"max_tokens": 67}, ValueError, "max_tokens=67: this model reads 1 to 66"),
        ({"max_tokens": 2}, ValueError, "max_tokens=2"),
        ({"precision": "fp16"}, ValueError, 'precision="fp16": expected "auto"'),
        ({"precision": None}, TypeError, "precision=None: expected a str"),
        ({"dim": 0}, ValueError, "dim=0: this model's vectors have 32 numbers"),
        ({"dim": 33}, ValueError, "dim=33"),
        ({"normalize": 1}, TypeError, "normalize=1: expected True or False"),
        ({"device": "cuda"}, NotImplementedError, 'device "cuda"'),
        ({"device": "cuda:0"}, NotImplementedError, 'device "cuda:0"'),
        ({"device": "gpu"}, ValueError, 'device "gpu"'),
        ({"query_prefix": "the " * 100}, ValueError, "the prefix"),
    ],
)
def test_bad_options(family: dict[str, Path], options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        adv.Embedder(family["e5"], **options)


def test_split_refuses_what_cannot_be(tiny_bert: adv.Embedder) -> None:
    with pytest.raises(ValueError, match="max_tokens=100: this model reads at most 66"):
        tiny_bert.split(["a"], max_tokens=100)
    with pytest.raises(ValueError, match="max_tokens=2: prefix and special tokens alone take 2"):
        tiny_bert.split(["a"], max_tokens=2)
    with pytest.raises(ValueError, match="overlap=30 must be smaller than the 18 tokens"):
        tiny_bert.split(["a " * 100], max_tokens=20, overlap=30)


def broken(path: Path, what: str) -> Path:
    tiny.bert(path, seed=5, pooling="mean")
    weights = path / "model.safetensors"
    config = json.loads((path / "config.json").read_text())
    match what:
        case "no config":
            (path / "config.json").unlink()
        case "config is a list":
            (path / "config.json").write_text("[]")
        case "config is no JSON":
            (path / "config.json").write_text("{")
        case "no tokenizer":
            (path / "tokenizer.json").unlink()
        case "broken tokenizer":
            (path / "tokenizer.json").write_text('{"model": 7}')
        case "no weights":
            weights.unlink()
        case "pickle":
            weights.rename(path / "pytorch_model.bin")
        case "cut weights":
            weights.write_bytes(weights.read_bytes()[:-1000])
        case "not safetensors":
            weights.write_bytes(b"GGUF" + b"\xff" * 64)
        case "empty weights":
            weights.write_bytes(b"")
        case "wrong width":
            (path / "config.json").write_text(json.dumps({**config, "intermediate_size": 81}))
        case "more layers":
            (path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
        case "small vocabulary":
            (path / "config.json").write_text(json.dumps({**config, "vocab_size": 10}))
        case "gpt2":
            (path / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
        case "relative positions":
            (path / "config.json").write_text(json.dumps({**config, "position_embedding_type": "relative_key"}))
        case "odd heads":
            (path / "config.json").write_text(json.dumps({**config, "num_attention_heads": 5}))
        case "zero heads":
            (path / "config.json").write_text(json.dumps({**config, "num_attention_heads": 0}))
        case "activation":
            (path / "config.json").write_text(json.dumps({**config, "hidden_act": "swish"}))
        case "max pooling":
            (path / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
        case "dense module":
            tiny.bert(path, seed=5, pooling="mean", dense=7)
            (path / "2_Dense" / "config.json").write_text('{"in_features": 31, "out_features": 7}')
        case "dense activation":
            tiny.bert(path, seed=5, pooling="mean", dense=7)
            config = json.loads((path / "2_Dense" / "config.json").read_text())
            config["activation_function"] = "torch.nn.modules.activation.Softsign"
            (path / "2_Dense" / "config.json").write_text(json.dumps(config))
        case "other module":
            modules = json.loads((path / "modules.json").read_text())
            modules.append({"idx": 3, "path": "3_LSTM", "type": "sentence_transformers.models.LSTM"})
            (path / "modules.json").write_text(json.dumps(modules))
        case "module outside":
            (path / "modules.json").write_text(
                '[{"path": "../..", "type": "sentence_transformers.models.Transformer"}]'
            )
        case "not a number":
            data = bytearray(weights.read_bytes())
            data[-4:] = np.float32("nan").tobytes()
            weights.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("no config", ValueError, "neither a config.json nor a .gguf file"),
        ("config is a list", ValueError, "not a JSON object"),
        ("config is no JSON", ValueError, "config.json: not JSON"),
        ("no tokenizer", FileNotFoundError, "no tokenizer.json"),
        ("broken tokenizer", ValueError, "tokenizer.json"),
        ("no weights", FileNotFoundError, "no model.safetensors"),
        ("pickle", NotImplementedError, "pickle"),
        ("cut weights", ValueError, "not a safetensors file"),
        ("not safetensors", ValueError, "not a safetensors file"),
        ("empty weights", ValueError, "not a safetensors file"),
        ("wrong width", ValueError, r'tensor "encoder.layer.0.intermediate.dense.weight" has shape \[80, 32\]'),
        ("more layers", FileNotFoundError, 'no tensor "encoder.layer.3'),
        ("small vocabulary", ValueError, "they do not belong together"),
        ("gpt2", NotImplementedError, 'model_type "gpt2"'),
        ("relative positions", NotImplementedError, "relative_key"),
        ("odd heads", ValueError, "hidden_size 32 does not split into num_attention_heads 5"),
        ("zero heads", ValueError, "num_attention_heads 0"),
        ("activation", NotImplementedError, 'hidden_act "swish"'),
        ("max pooling", NotImplementedError, "max_tokens"),
        ("dense module", ValueError, r'tensor "linear.weight" has shape \[7, 32\]'),
        ("dense activation", NotImplementedError, "Softsign"),
        ("other module", NotImplementedError, "LSTM"),
        ("module outside", ValueError, "is not a folder of the model"),
        ("not a number", ValueError, "NaN at element 31"),
    ],
)
def test_broken_checkpoints(tmp_path: Path, what: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        adv.Embedder(broken(tmp_path / "model", what))


def test_half_precision_weights_and_shards(tmp_path: Path, family: dict[str, Path]) -> None:
    """f16 weights in two shards, with gamma and beta for the norms and a `bert.` prefix, give the same vectors."""
    path = tiny.bert(tmp_path / "sharded", seed=1)
    data = (path / "model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    tensors = {}
    for name, info in header.items():
        start, end = info["data_offsets"]
        values = np.frombuffer(data[8 + size + start : 8 + size + end], np.float32).reshape(info["shape"])
        if "LayerNorm" in name:
            name = name.replace("weight", "gamma").replace("bias", "beta")
        tensors["bert." + name] = values.astype(np.float16)
    (path / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in shards.items():
        tiny.save_safetensors(path / file, {name: tensors[name] for name in part})
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    got = quiet(adv.Embedder(path), tiny.TEXTS)
    assert np.abs(got - quiet(adv.Embedder(family["e5"]), tiny.TEXTS)).max() < 5e-3
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../../etc/passwd"}}))
    with pytest.raises(ValueError, match="is not a file name"):
        adv.Embedder(path)


def test_seed_alias(minilm: adv.Embedder) -> None:
    rows = adv.Adventures().embeddings(["a dragon", "a rope"])
    assert np.allclose(rows, minilm.embed(["a dragon", "a rope"]))
    assert isinstance(rows[0][0], float)


def test_repr_names_the_model(tiny_bert: adv.Embedder) -> None:
    assert repr(tiny_bert) == 'Embedder("e5", dim=32, max_tokens=66, device="cpu")'
