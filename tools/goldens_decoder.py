"""Writes a tiny Gemma and what transformers says about it (`make goldens`).

- tests/goldens/tiny-gemma/: a checkpoint of Gemma's first architecture as its publisher lays it out: bfloat16, one
  key-value head, heads wider than the hidden size gives, a head tied to the embedding. The weights are random.
- tests/goldens/tiny-*/: smaller checkpoints of the other families, each with the parts that set it apart: windows,
  caps, biases, norms of queries and keys, two rotary bases, stretched positions, layers without.
  Their weights are random too.
- tests/goldens/tiny-gemma.json: the logits `(tokens, vocabulary)` of a text in single precision, and greedy
  continuations of several texts.
"""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, GemmaConfig, GemmaForCausalLM, PreTrainedModel

FOLDER = Path(__file__).parents[1] / "tests" / "goldens" / "tiny-gemma"
HIDDEN, LAYERS, HEADS, HEAD_DIM, INNER, POSITIONS = 32, 3, 4, 16, 48, 128
SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>"]
VOCABULARY = [*SPECIAL, "▁", *string.ascii_lowercase, *string.digits, *".,:;!?'-"]
READ = "the lantern is dim, the marsh is wide: take 2 ropes!"
CONTINUED = ["a dragon sleeps on its gold", "why?", "the marsh at night, 10 miles wide"]
STEPS = 32
SMALL = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]
STRETCHED = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
TWO_BASES = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 2.0},
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 100.0,
    "factor": 4.0,
    "beta_fast": 4.0,
    "beta_slow": 0.5,
    "original_max_position_embeddings": 16,
}
CAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 6}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": STRETCHED, "tie_word_embeddings": True},
    "mistral": {"sliding_window": 5},
    "gemma2": {"sliding_window": 5, "layer_types": ALTERNATING, "tie_word_embeddings": True, **CAPS},
    "gemma3_text": {"sliding_window": 5, "layer_types": ALTERNATING, "rope_parameters": TWO_BASES},
    "qwen2": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "qwen3": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "smollm3": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "no_rope_layer_interval": 2},
}
# Checkpoints that are not named after their family: the family and the settings.
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {"yarn": ("qwen3", {"rope_parameters": YARN})}
READ_SMALL = [(7 * i * i + 3 * i + 1) % SMALL["vocab_size"] for i in range(30)]
# Ten times what another order of additions may change, so the next token is the same in any right implementation.
MARGIN = 1e-3


def tokenizer() -> dict[str, Any]:
    """Returns a `tokenizer.json` of Gemma's kind, whose tokens are characters."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    start = {"SpecialToken": {"id": "<bos>", "type_id": 0}}
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    return {
        "version": "1.0",
        "added_tokens": [{"id": id_, "content": token, **flags} for id_, token in enumerate(SPECIAL)],
        "normalizer": space,
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [start, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [start, {"Sequence": {"id": "A", "type_id": 0}}, start, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": False,
            "vocab": {token: id_ for id_, token in enumerate(VOCABULARY)},
            "merges": [],
        },
    }


def weights() -> dict[str, torch.Tensor]:
    """Returns random weights, always the same; norms are what is added to 1, as Gemma stores them."""
    random = np.random.Generator(np.random.PCG64(11))

    def normal(*shape: int, scale: float) -> torch.Tensor:
        return torch.from_numpy((random.standard_normal(shape) * scale).astype(np.float32)).bfloat16()

    embedding = normal(len(VOCABULARY), HIDDEN, scale=0.25)
    # A token without a character is never the likeliest: its logit is 0.
    embedding[[0, 1, 3]] = 0
    tensors = {"model.embed_tokens.weight": embedding, "model.norm.weight": normal(HIDDEN, scale=0.3)}
    shapes = {
        "self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN),
        "self_attn.k_proj": (HEAD_DIM, HIDDEN),
        "self_attn.v_proj": (HEAD_DIM, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
    }
    for layer in range(LAYERS):
        for name, shape in shapes.items():
            tensors[f"model.layers.{layer}.{name}.weight"] = normal(*shape, scale=0.25)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{name}.weight"] = normal(HIDDEN, scale=0.3)
    return tensors


def write_checkpoint() -> None:
    """Writes the files of the model."""
    config = {
        "architectures": ["GemmaForCausalLM"],
        "model_type": "gemma",
        "vocab_size": len(VOCABULARY),
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 1,
        "head_dim": HEAD_DIM,
        "intermediate_size": INNER,
        "max_position_embeddings": POSITIONS,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        # What Gemma's files say, although it was trained with the tanh approximation, which `hidden_activation` names.
        "hidden_act": "gelu",
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        "torch_dtype": "bfloat16",
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, value in {
        "config.json": config,
        "tokenizer.json": tokenizer(),
        "tokenizer_config.json": {"add_bos_token": True, "bos_token": "<bos>", "eos_token": "<eos>"},
    }.items():
        (FOLDER / name).write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    weights_file = FOLDER / "model.safetensors"
    save_file(weights(), weights_file, metadata={"format": "pt"})
    weights_file.chmod(0o644)  # the library makes it private


def encode(text: str) -> list[int]:
    """Returns the ids of a text: the start token and a token for each character."""
    return [2, *(VOCABULARY.index(letter.replace(" ", "▁")) for letter in text)]


def logits(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """Returns the logits `(tokens, vocabulary)`, computed without a cache."""
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0]


def continued(model: GemmaForCausalLM, text: str) -> dict[str, str]:
    """Returns a text and its greedy continuation.

    Raises:
        ValueError: Two tokens are nearly as likely somewhere, so the continuation proves nothing.
    """
    ids = encode(text)
    start = len(ids)
    for _ in range(STEPS):
        best, second = torch.topk(logits(model, ids)[-1], 2).values.tolist()
        if best - second < MARGIN:
            raise ValueError(f"{text!r} has a tie at step {len(ids) - start}: {best} and {second}; take another")
        ids.append(int(torch.argmax(logits(model, ids)[-1])))
    return {"text": text, "continuation": "".join(VOCABULARY[id_] for id_ in ids[start:]).replace("▁", " ")}


def bidirectional(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """Returns the last hidden states `(tokens, hidden)` where each token sees all others: under a mask of zeros."""
    mask: Any = torch.zeros(1, 1, len(ids), len(ids))
    if "layer_types" in model.config.to_dict():
        mask = {"full_attention": mask, "sliding_attention": mask}
    with torch.no_grad():
        return model.model(torch.tensor([ids]), attention_mask=mask, use_cache=False).last_hidden_state[0]


def write_family(name: str, family: str, settings: dict[str, Any]) -> None:
    """Writes a small checkpoint of a family, its logits, `(tokens, vocabulary)`, and its states without the mask."""
    folder = FOLDER.with_name(f"tiny-{name}")
    config = AutoConfig.for_model(family, **{**SMALL, **settings})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    random = np.random.Generator(np.random.PCG64(len(name)))
    for weight in dict(sorted(model.named_parameters())).values():
        value = random.standard_normal(tuple(weight.shape)) * 0.3 + (1.0 if weight.ndim == 1 else 0.0)
        weight.data = torch.from_numpy(value.astype(np.float32)).bfloat16().float()
    golden = {
        "transformers": transformers.__version__,
        "ids": READ_SMALL,
        "logits": [[round(value, 5) for value in row] for row in logits(model, READ_SMALL).tolist()],
        "bidirectional": [[round(value, 5) for value in row] for row in bidirectional(model, READ_SMALL).tolist()],
    }
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / "model.safetensors").chmod(0o644)
    path = folder.with_suffix(".json")
    path.write_text(json.dumps(golden, separators=(",", ":")) + "\n", encoding="utf-8")


def main() -> None:
    """Writes the files."""
    for name, settings in FAMILIES.items():
        write_family(name, name, settings)
    for name, (family, settings) in OTHERS.items():
        write_family(name, family, settings)
    write_checkpoint()
    config = GemmaConfig.from_pretrained(FOLDER)
    # transformers 5 no longer reads `hidden_activation` of this architecture, and would take the exact GELU.
    config.hidden_act = "gelu_pytorch_tanh"
    model = GemmaForCausalLM.from_pretrained(FOLDER, config=config, dtype=torch.float32, attn_implementation="eager")
    model.eval()
    ids = encode(READ)
    golden = {
        "transformers": transformers.__version__,
        "text": READ,
        "ids": ids,
        "logits": [[round(value, 5) for value in row] for row in logits(model, ids).tolist()],
        "continued": [continued(model, text) for text in CONTINUED],
    }
    path = FOLDER.with_suffix(".json")
    path.write_text(json.dumps(golden, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
