"""`SentenceTransformer` without torch: vectors of the embedder, prompts and lengths as the original has them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import adventures as adv
import tiny
from adventures.sentence_transformers import SentenceTransformer

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = ["the dragon sleeps at night", "a rope to climb", "", "a red potion at night"]


@pytest.fixture(scope="module")
def model() -> SentenceTransformer:
    return SentenceTransformer("all-minilm-l6-v2", device="cpu")


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A checkpoint that does not say that vectors are of unit length."""
    return tiny.bert(tmp_path / "bare", seed=3)


def test_vectors_are_those_of_the_embedder(model: SentenceTransformer, minilm: adv.Embedder) -> None:
    want = minilm.embed(TEXTS)
    found = model.encode(TEXTS, batch_size=2, show_progress_bar=False, convert_to_numpy=True)
    assert found.dtype == np.float32
    assert np.allclose(found, want, atol=1e-6)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6), "this checkpoint says so"
    assert np.array_equal(model.encode(TEXTS[0]), found[0])
    assert np.array_equal(model.encode(np.array(TEXTS)), found)
    assert np.array_equal(model.encode(TEXTS, normalize_embeddings=True), found)
    assert model.encode([]).shape == (0, 384)
    assert (model.get_sentence_embedding_dimension(), model.max_seq_length, model.device) == (384, 256, "cpu")


def test_lengths_are_the_checkpoints(bare: Path) -> None:
    model = SentenceTransformer(bare)
    raw = adv.Embedder(bare, normalize=False).embed(TEXTS)
    assert np.array_equal(model.encode(TEXTS), raw)
    assert np.abs(np.linalg.norm(raw, axis=1) - 1).max() > 0.1
    unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    assert np.allclose(model.encode(TEXTS, normalize_embeddings=True), unit, atol=1e-6)
    assert np.array_equal(model.encode(TEXTS, truncate_dim=8), raw[:, :8])
    short = model.encode(TEXTS, truncate_dim=8, normalize_embeddings=True)
    assert np.allclose(np.linalg.norm(short, axis=1), 1, atol=1e-6)
    assert SentenceTransformer(bare, truncate_dim=8).encode("x").shape == (8,)


def test_truncation_comes_after_the_checkpoints_own_length(model: SentenceTransformer) -> None:
    whole = model.encode(TEXTS)
    assert np.array_equal(model.encode(TEXTS, truncate_dim=100), whole[:, :100])


def test_prompts(bare: Path) -> None:
    config = {"prompts": {"query": "ask: ", "passage": "read: "}, "default_prompt_name": "passage"}
    (bare / "config_sentence_transformers.json").write_text(json.dumps(config | {"similarity_fn_name": "dot"}))
    plain = adv.Embedder(bare, normalize=False, query_prefix="", passage_prefix="")
    model = SentenceTransformer(bare, prompts={"other": "so: "})
    for options, before in [
        ({}, "read: "),
        ({"prompt_name": "query"}, "ask: "),
        ({"prompt_name": "other"}, "so: "),
        ({"prompt": ""}, ""),
        ({"prompt": "x ", "prompt_name": "query"}, "x "),
    ]:
        want = plain.embed([before + text for text in TEXTS])
        assert np.array_equal(model.encode(TEXTS, **options), want), options
    assert np.array_equal(model.encode_query(TEXTS), plain.embed(["ask: " + text for text in TEXTS]))
    assert np.array_equal(model.encode_document("x"), plain.embed(["read: x"])[0])
    with pytest.raises(ValueError, match="no prompt 'nope'; there are 'query'"):
        model.encode(TEXTS, prompt_name="nope")
    with pytest.raises(ValueError, match="no prompt 'nope'"):
        SentenceTransformer(bare, default_prompt_name="nope")
    vectors = model.encode(TEXTS)
    assert np.allclose(model.similarity(vectors, vectors[0]), vectors @ vectors[:1].T), "as the checkpoint says"


def test_similarity(model: SentenceTransformer, bare: Path) -> None:
    vectors = SentenceTransformer(bare).encode(TEXTS)
    cosine = model.similarity(vectors, vectors[:2])
    assert cosine.shape == (4, 2)
    assert np.allclose(np.diagonal(cosine), 1, atol=1e-6)
    for name, order in (("euclidean", 2), ("manhattan", 1)):
        found = SentenceTransformer(bare, similarity_fn_name=name).similarity(vectors, vectors[:2])
        assert np.allclose(found[3, 1], -np.linalg.norm(vectors[3] - vectors[1], ord=order))
    with pytest.raises(ValueError, match="similarity_fn_name='x': expected one of cosine, dot"):
        SentenceTransformer(bare, similarity_fn_name="x")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"convert_to_tensor": True}, NotImplementedError, r"encode\(convert_to_tensor=True\): not supported"),
        ({"convert_to_numpy": False}, NotImplementedError, r"encode\(convert_to_numpy=False\)"),
        ({"output_value": "token_embeddings"}, NotImplementedError, r"output_value='token_embeddings'"),
        ({"precision": "ubinary"}, NotImplementedError, "precision='ubinary'"),
        ({"device": "cuda:0"}, NotImplementedError, r"encode\(device='cuda:0'\): the model is on cpu"),
        ({"nonsense": 1}, TypeError, "encode has no argument 'nonsense'"),
        ({"batch_size": 0}, ValueError, "batch_size must be a whole number from 1 on, not 0"),
        ({"truncate_dim": 0}, ValueError, "truncate_dim must be from 1 to 384, not 0"),
    ],
)
def test_what_is_not_supported_is_named(
    model: SentenceTransformer, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        model.encode(TEXTS, **options)


def test_the_constructor_refuses_too() -> None:
    with pytest.raises(NotImplementedError, match=r"SentenceTransformer\(backend='onnx'\): not supported"):
        SentenceTransformer("all-minilm-l6-v2", backend="onnx")
    with pytest.raises(TypeError, match="SentenceTransformer has no argument 'gpu'"):
        SentenceTransformer("all-minilm-l6-v2", gpu=1)
    SentenceTransformer("all-minilm-l6-v2", trust_remote_code=False, model_kwargs={})


def test_a_bar_is_shown_where_asked(model: SentenceTransformer, capsys: pytest.CaptureFixture[str]) -> None:
    many = ["a"] * 1500
    assert np.array_equal(model.encode(many, show_progress_bar=True), model.encode(many))
    assert "1500/1500" in capsys.readouterr().err
    model.encode(many)
    assert capsys.readouterr().err == ""
