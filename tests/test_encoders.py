"""Encoders after BERT: parity with transformers, invariance, and configurations that are not supported."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

import adventures as adv
import encoders
import tiny

GOLDENS = Path(__file__).parent / "goldens" / "encoders.npz"
POOLINGS = ["mean", "cls"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("encoders")
    return {
        f"{name}/{pooling}": encoders.encoder(root / f"{name}-{pooling}", name, pooling=pooling)
        for name in encoders.NAMES
        for pooling in POOLINGS
    }


def quiet(embedder: adv.Embedder, texts: list[str]) -> np.ndarray:
    return embedder.encode(texts).vectors


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("name", encoders.NAMES)
def test_vectors_equal_transformers(models: dict[str, Path], name: str, pooling: str) -> None:
    embedder = adv.Embedder(models[f"{name}/{pooling}"])
    assert embedder.pooling == pooling
    assert embedder.max_tokens == encoders.POSITIONS - (2 if name == "mpnet" else 0)
    with np.load(GOLDENS) as goldens:
        want = goldens[f"{name}/{pooling}"]
    found = embedder.encode(encoders.TEXTS)
    assert found.tokens.max() == embedder.max_tokens, "keys of several blocks, and texts that are cut"
    assert np.abs(found.vectors - want).max() <= 1e-5


@pytest.mark.parametrize("precision", ["f32", "bf16x2", "bf16", "int8"])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("name", ["mpnet", "modernbert", "nomic", "gte"])
def test_a_vector_has_the_same_bits_beside_any_others(
    models: dict[str, Path], name: str, pooling: str, precision: str
) -> None:
    path, texts = models[f"{name}/{pooling}"], encoders.TEXTS
    embedder = adv.Embedder(path, precision=precision)
    whole = quiet(embedder, texts)
    assert np.array_equal(np.concatenate([quiet(embedder, [text]) for text in texts]), whole)
    order = np.random.default_rng(0).permutation(len(texts))
    assert np.array_equal(quiet(embedder, [texts[i] for i in order]), whole[order])
    assert np.array_equal(quiet(adv.Embedder(path, precision=precision, threads=1), texts), whole)
    cosines = (whole * quiet(adv.Embedder(path), texts)).sum(1)
    # Weights of chance at width 32 are far more sensitive than trained ones.
    assert np.median(cosines) >= {"f32": 0.999999, "bf16x2": 0.999999, "bf16": 0.999, "int8": 0.98}[precision]


@pytest.mark.parametrize("precision", ["f32", "bf16x2", "int8"])
@pytest.mark.parametrize("name", list(encoders.CROSS))
def test_cross_encoders_equal_transformers(tmp_path: Path, name: str, precision: str) -> None:
    path = encoders.cross_encoder(tmp_path / name, name)
    reranker = adv.Reranker(path, activation="none", precision=precision)
    query, texts = tiny.QUERIES[0], encoders.TEXTS
    got = reranker.compare(query, texts).scores
    single = [reranker.compare(query, [text]).scores[0] for text in texts]
    assert np.array_equal(single, got)
    with np.load(GOLDENS) as goldens:
        want = goldens[f"cross/{name}"]
    assert np.ptp(want) > 0.5
    assert np.median(np.abs(got - want)) <= {"f32": 1e-5, "bf16x2": 1e-4, "int8": 0.2}[precision]
    if precision == "f32":
        assert np.abs(got - want).max() <= 3e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classifier_pooling": "max"}, 'classifier_pooling "max"; supported are "cls" and "mean"'),
        ({"classifier_activation": "relu"}, 'classifier_activation "relu"; only "gelu" is supported'),
    ],
)
def test_heads_that_are_not_supported(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(NotImplementedError, match=message):
        adv.Reranker(encoders.cross_encoder(tmp_path / "model", "modernbert-cls", change=change))


@pytest.mark.parametrize(
    ("name", "change", "error", "message"),
    [
        (
            "gte",
            {"model_type": "deberta-v2"},
            NotImplementedError,
            'model_type "deberta-v2"; supported encoders are bert',
        ),
        ("gte", {"rope_scaling": {"factor": 2.0, "type": "dynamic"}}, NotImplementedError, 'rope_scaling "dynamic"'),
        ("gte", {"rope_scaling": {"factor": 2.0, "type": "ntk", "mixed_b": 0.5}}, NotImplementedError, "mixed_b"),
        ("gte", {"position_embedding_type": "absolute"}, NotImplementedError, 'position_embedding_type "absolute"'),
        ("gte", {"layer_norm_type": "rms_norm"}, NotImplementedError, 'layer_norm_type "rms_norm"'),
        ("gte", {"logn_attention_scale": True}, NotImplementedError, "logn_attention_scale"),
        ("gte", {"hidden_act": "tanh"}, NotImplementedError, 'hidden_act "tanh"'),
        ("gte", {"rope_theta": 0}, ValueError, "rotary positions of base 0"),
        ("gte", {"max_position_embeddings": 10**12}, ValueError, "max_position_embeddings 1000000000000: expected"),
        ("gte", {"num_attention_heads": 5}, ValueError, "does not split into num_attention_heads 5"),
        ("gte", {"num_attention_heads": 32}, ValueError, "heads of 1 numbers do not split into pairs"),
        ("gte", {"intermediate_size": 40}, ValueError, r"up_gate_proj.weight\" has shape \[160, 32\]"),
        ("gte", {"hidden_size": "large"}, ValueError, 'config.json of model_type "new": invalid type'),
        ("nomic", {"num_experts": 8}, NotImplementedError, "num_experts"),
        ("nomic", {"parallel_block": True}, NotImplementedError, "parallel_block"),
        ("nomic", {"use_rms_norm": True}, NotImplementedError, "use_rms_norm"),
        ("nomic", {"prenorm": True}, NotImplementedError, "prenorm"),
        ("nomic", {"rotary_emb_fraction": 0.0}, NotImplementedError, "rotary_emb_fraction"),
        ("nomic", {"rotary_emb_interleaved": True}, NotImplementedError, "rotary_emb_interleaved"),
        ("nomic", {"rotary_emb_scale_base": 512}, NotImplementedError, "rotary_emb_scale_base"),
        ("nomic", {"activation_function": "gelu"}, NotImplementedError, 'activation_function "gelu"'),
        ("nomic", {"n_embd": None}, NotImplementedError, "without n_embd"),
        ("modernbert", {"layer_types": ["full_attention"]}, ValueError, "1 layer_types of 4 layers"),
        ("modernbert", {"layer_types": ["linear_attention"] * 4}, NotImplementedError, 'layer type "linear_attention"'),
        ("modernbert", {"hidden_activation": "relu"}, NotImplementedError, 'hidden_activation "relu"'),
        ("mpnet", {"hidden_act": "silu"}, NotImplementedError, 'hidden_act "silu"'),
        ("mpnet", {"max_position_embeddings": 2}, ValueError, "max_position_embeddings 2 leaves no position"),
    ],
)
def test_configurations_that_are_not_supported(
    tmp_path: Path, name: str, change: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        adv.Embedder(encoders.encoder(tmp_path / "model", name, change=change))


@pytest.mark.parametrize("name", encoders.NAMES)
def test_any_value_of_a_field_is_read_or_refused(tmp_path: Path, name: str) -> None:
    path = encoders.encoder(tmp_path / "model", name)
    config = json.loads((path / "config.json").read_text("utf-8"))
    refused = 0
    for field in set(config) - {"model_type"}:
        for value in (
            0,
            -1,
            3,
            2**62,
            2**63 + 40,
            1e300,
            -0.5,
            "x",
            True,
            [],
            [1],
            {},
            {"factor": 0, "type": "ntk"},
            None,
        ):
            (path / "config.json").write_text(json.dumps({**config, field: value}), "utf-8")
            begun = time.monotonic()
            try:
                vectors = quiet(adv.Embedder(path), ["a rope", "x" * 90])
                assert np.isfinite(vectors).all(), (field, value)
            except (ValueError, NotImplementedError, FileNotFoundError):
                refused += 1
            assert time.monotonic() - begun < 5, (field, value)
    assert refused > 80


def test_scaled_positions_of_nomic_end_where_scaling_begins(tmp_path: Path, models: dict[str, Path]) -> None:
    # Beyond, each length would turn all of its positions by its own angles.
    change = {"rotary_scaling_factor": 2.0, "max_trained_positions": 100}
    embedder = adv.Embedder(encoders.encoder(tmp_path / "scaled", "nomic", change=change))
    assert embedder.max_tokens == 100
    short = tiny.TEXTS[:11]
    assert np.array_equal(quiet(embedder, short), quiet(adv.Embedder(models["nomic/mean"]), short))


def test_names_of_transformers_5_are_read(tmp_path: Path, models: dict[str, Path]) -> None:
    path = encoders.encoder(tmp_path / "nomic", "nomic")
    shape = {
        "model_type": "nomic_bert",
        "vocab_size": json.loads((path / "config.json").read_text("utf-8"))["vocab_size"],
        "hidden_size": encoders.HIDDEN,
        "num_hidden_layers": encoders.LAYERS,
        "num_attention_heads": encoders.HEADS,
        "max_position_embeddings": encoders.POSITIONS,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "hidden_act": "silu",
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
    }
    (path / "config.json").write_text(json.dumps(shape), "utf-8")
    assert np.array_equal(
        quiet(adv.Embedder(path), encoders.TEXTS), quiet(adv.Embedder(models["nomic/mean"]), encoders.TEXTS)
    )
    change = {
        "model_type": "gte",
        "rope_theta": None,
        "rope_scaling": None,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 1_000_000.0, "factor": 2 ** (2 / 8)},
    }
    gte = adv.Embedder(encoders.encoder(tmp_path / "gte", "gte", change=change))
    assert np.abs(quiet(gte, encoders.TEXTS) - quiet(adv.Embedder(models["gte/mean"]), encoders.TEXTS)).max() <= 1e-6


def test_weights_that_are_missing_are_named(tmp_path: Path) -> None:
    path = encoders.encoder(tmp_path / "model", "modernbert")
    tensors = tiny.load_safetensors(path / "model.safetensors")
    del tensors["layers.2.mlp.Wi.weight"]
    tiny.save_safetensors(path / "model.safetensors", tensors)
    with pytest.raises(FileNotFoundError, match=r'no tensor "layers\.2\.mlp\.Wi\.weight"'):
        adv.Embedder(path)
    tiny.save_safetensors(path / "model.safetensors", {"weight": np.zeros(3, np.float32)})
    with pytest.raises(
        ValueError, match=r'no tensor "embeddings\.tok_embeddings\.weight"; the weights are not of this family'
    ):
        adv.Embedder(path)
