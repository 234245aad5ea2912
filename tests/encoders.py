"""Makes seeded tiny encoders of the architectures after BERT, as their first files are named on the hub."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

import tiny

if TYPE_CHECKING:
    from pathlib import Path

HIDDEN, INNER, LAYERS, HEADS, POSITIONS = tiny.HIDDEN, tiny.INNER, 4, tiny.HEADS, 700
RANGES = 32  # of MPNet's distances

_SHAPE = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
    "max_position_embeddings": POSITIONS,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "mpnet": {
        "model_type": "mpnet",
        **_SHAPE,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "pad_token_id": 1,
        "relative_attention_num_buckets": RANGES,
    },
    "modernbert": {
        "model_type": "modernbert",
        **_SHAPE,
        "hidden_activation": "gelu",
        "norm_eps": 1e-5,
        "global_attn_every_n_layers": 3,
        "local_attention": 20,
        "global_rope_theta": 160000.0,
        "local_rope_theta": 10000.0,
    },
    "modernbert-biased": {
        "model_type": "modernbert",
        **_SHAPE,
        "norm_bias": True,
        "attention_bias": True,
        "mlp_bias": True,
        "local_attention": 6,
        "layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 5000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
        },
    },
    "nomic": {
        "model_type": "nomic_bert",
        "n_embd": HIDDEN,
        "n_layer": LAYERS,
        "n_head": HEADS,
        "n_inner": INNER,
        "n_positions": POSITIONS,
        "type_vocab_size": 2,
        "activation_function": "swiglu",
        "layer_norm_epsilon": 1e-12,
        "prenorm": False,
        "qkv_proj_bias": False,
        "mlp_fc1_bias": False,
        "mlp_fc2_bias": False,
        "rotary_emb_fraction": 1.0,
        "rotary_emb_base": 1000,
        "rotary_emb_interleaved": False,
        "rotary_emb_scale_base": None,
        "rotary_scaling_factor": None,
        "max_trained_positions": 2048,
    },
    "gte": {
        "model_type": "new",
        **_SHAPE,
        "hidden_act": "gelu",
        "layer_norm_type": "layer_norm",
        "layer_norm_eps": 1e-12,
        "position_embedding_type": "rope",
        "rope_theta": 500000,
        "rope_scaling": {"factor": 2.0, "type": "ntk"},
        "type_vocab_size": 0,
        "pack_qkv": True,
        "logn_attention_scale": False,
    },
    "gte-typed": {
        "model_type": "new",
        **_SHAPE,
        "hidden_act": "gelu",
        "rope_theta": 20000,
        "rope_scaling": None,
        "position_embedding_type": "rope",
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-12,
    },
}
NAMES = list(CONFIGS)
# What a cross-encoder is made of.
CROSS = {
    "mpnet": "mpnet",
    "modernbert-cls": "modernbert",
    "modernbert-mean": "modernbert-biased",
    "gte": "gte-typed",
}


def _tensors(name: str, config: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    random = np.random.Generator(np.random.PCG64(seed))
    tensors: dict[str, np.ndarray] = {}

    def normal(name: str, *shape: int, scale: float = 0.15, mean: float = 0) -> None:
        tensors[name] = (mean + random.standard_normal(shape) * scale).astype(np.float32)

    def norm(name: str, *, bias: bool = True) -> None:
        normal(f"{name}.weight", HIDDEN, mean=1)
        if bias:
            normal(f"{name}.bias", HIDDEN)

    def linear(name: str, outputs: int, inputs: int = HIDDEN, *, bias: bool = True) -> None:
        normal(f"{name}.weight", outputs, inputs, scale=0.25)
        if bias:
            normal(f"{name}.bias", outputs)

    vocabulary = config["vocab_size"]
    if name.startswith("modernbert"):
        biased = bool(config.get("norm_bias"))
        normal("embeddings.tok_embeddings.weight", vocabulary, HIDDEN, scale=0.6)
        norm("embeddings.norm", bias=biased)
        for i in range(LAYERS):
            layer = f"layers.{i}"
            if i:
                norm(f"{layer}.attn_norm", bias=biased)
            linear(f"{layer}.attn.Wqkv", 3 * HIDDEN, bias=biased)
            linear(f"{layer}.attn.Wo", HIDDEN, bias=biased)
            norm(f"{layer}.mlp_norm", bias=biased)
            linear(f"{layer}.mlp.Wi", 2 * INNER, bias=biased)
            linear(f"{layer}.mlp.Wo", HIDDEN, INNER, bias=biased)
        norm("final_norm", bias=biased)
        return tensors
    normal("embeddings.word_embeddings.weight", vocabulary, HIDDEN, scale=0.6)
    if config.get("type_vocab_size"):
        normal("embeddings.token_type_embeddings.weight", config["type_vocab_size"], HIDDEN)
    if name == "nomic":
        norm("emb_ln")
        for i in range(LAYERS):
            layer = f"encoder.layers.{i}"
            linear(f"{layer}.attn.Wqkv", 3 * HIDDEN, bias=False)
            linear(f"{layer}.attn.out_proj", HIDDEN, bias=False)
            linear(f"{layer}.mlp.fc11", INNER, bias=False)
            linear(f"{layer}.mlp.fc12", INNER, bias=False)
            linear(f"{layer}.mlp.fc2", HIDDEN, INNER, bias=False)
            norm(f"{layer}.norm1")
            norm(f"{layer}.norm2")
        return tensors
    norm("embeddings.LayerNorm")
    if name == "mpnet":
        normal("embeddings.position_embeddings.weight", POSITIONS, HIDDEN, scale=0.4)
        normal("encoder.relative_attention_bias.weight", RANGES, HEADS, scale=1)
    for i in range(LAYERS):
        layer = f"encoder.layer.{i}"
        if name == "mpnet":
            for part in ("q", "k", "v", "o"):
                linear(f"{layer}.attention.attn.{part}", HIDDEN)
            norm(f"{layer}.attention.LayerNorm")
            linear(f"{layer}.intermediate.dense", INNER)
            linear(f"{layer}.output.dense", HIDDEN, INNER)
            norm(f"{layer}.output.LayerNorm")
        else:
            linear(f"{layer}.attention.qkv_proj", 3 * HIDDEN)
            linear(f"{layer}.attention.o_proj", HIDDEN)
            linear(f"{layer}.mlp.up_gate_proj", 2 * INNER, bias=False)
            linear(f"{layer}.mlp.down_proj", HIDDEN, INNER)
            norm(f"{layer}.attn_ln")
            norm(f"{layer}.mlp_ln")
    return tensors


def cross_encoder(path: Path, name: str, *, change: dict[str, Any] | None = None) -> Path:
    """Writes one of `CROSS` with a classifier of one label to the directory `path`; `change` as `encoder` has it."""
    kind = CROSS[name]
    modern = kind.startswith("modernbert")
    config = {"classifier_pooling": "mean" if name.endswith("mean") else "cls"} if modern else {}
    encoder(path, kind, change={**config, **(change or {})})
    random = np.random.Generator(np.random.PCG64(40))

    def normal(*shape: int, mean: float = 0) -> np.ndarray:
        return (mean + random.standard_normal(shape) * 0.3).astype(np.float32)

    prefix = {"mpnet": "mpnet.", "modernbert": "model.", "gte": "new."}[kind.split("-")[0]]
    dense = {"mpnet": "classifier.dense", "modernbert": "head.dense", "gte": "new.pooler.dense"}[kind.split("-")[0]]
    out = "classifier.out_proj" if kind == "mpnet" else "classifier"
    tensors = {prefix + name: tensor for name, tensor in tiny.load_safetensors(path / "model.safetensors").items()}
    tensors |= {f"{dense}.weight": normal(HIDDEN, HIDDEN), f"{out}.weight": normal(1, HIDDEN), f"{out}.bias": normal(1)}
    if not modern:
        tensors[f"{dense}.bias"] = normal(HIDDEN)
    else:
        tensors["head.norm.weight"] = normal(HIDDEN, mean=1)
    if kind == "modernbert-biased":
        tensors |= {"head.norm.bias": normal(HIDDEN)}
    tiny.save_safetensors(path / "model.safetensors", tensors)
    return path


def encoder(path: Path, name: str, *, pooling: str = "mean", change: dict[str, Any] | None = None) -> Path:
    """Writes one of `NAMES` to the directory `path`.

    Args:
        path: Where to; made where it is absent.
        name: What to write.
        pooling: `"mean"` or `"cls"`.
        change: Fields of `config.json` to set otherwise; the weights stay.
    """
    tokenizer = tiny.unigram() if name == "mpnet" else tiny.wordpiece()
    config = {**CONFIGS[name], "vocab_size": len(tokenizer["model"]["vocab"])}
    path.mkdir(parents=True, exist_ok=True)
    files: dict[str, Any] = {
        "config.json": {**config, **(change or {})},
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": {"model_max_length": 10**30},
        "1_Pooling/config.json": {f"pooling_mode_{pooling}{'_token' if pooling == 'cls' else '_tokens'}": True},
    }
    for file, value in files.items():
        (path / file).parent.mkdir(exist_ok=True)
        (path / file).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    tiny.save_safetensors(path / "model.safetensors", _tensors(name, config, 20 + NAMES.index(name)))
    return path


TEXTS = [*tiny.TEXTS, "the rope and a dragon " * 110, "climbing " * 300]
