"""Writes what the tests of encoders expect (`make goldens-encoders`), by transformers 5.23, which has all of them.

- tests/goldens/encoders.npz: of tests/encoders.py's checkpoints, unit vectors of the mean of all tokens and of the
  first, and the logits of its cross-encoders
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import (
    GteConfig,
    GteForSequenceClassification,
    GteModel,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    ModernBertModel,
    MPNetConfig,
    MPNetForSequenceClassification,
    MPNetModel,
    NomicBertConfig,
    NomicBertModel,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests")]

import encoders  # noqa: E402
import tiny  # noqa: E402


def loaded(kind: type[PreTrainedModel], path: Path, config: PreTrainedConfig, **options: object) -> PreTrainedModel:
    """Returns a model whose weights all are the checkpoint's."""
    found, report = kind.from_pretrained(
        path, config=config, attn_implementation="eager", dtype=torch.float32, output_loading_info=True, **options
    )
    assert not report["missing_keys"] | report["unexpected_keys"], report
    return found.eval()


def model(path: Path, name: str, *, cross: bool = False) -> PreTrainedModel:
    """Returns transformers' model of a checkpoint. Nomic's and GTE's configurations are told in its own words."""
    config = json.loads((path / "config.json").read_text("utf-8"))
    if name == "mpnet":
        if cross:
            return loaded(MPNetForSequenceClassification, path, MPNetConfig(**config, num_labels=1))
        return loaded(MPNetModel, path, MPNetConfig(**config), add_pooling_layer=False)
    if name.startswith("modernbert"):
        special = dict.fromkeys([f"{kind}_token_id" for kind in ("pad", "bos", "eos", "cls", "sep")], 0)
        kind = ModernBertForSequenceClassification if cross else ModernBertModel
        return loaded(kind, path, ModernBertConfig(**config, **special, num_labels=1 if cross else 2))
    shape = {
        "vocab_size": config["vocab_size"],
        "hidden_size": encoders.HIDDEN,
        "num_hidden_layers": encoders.LAYERS,
        "num_attention_heads": encoders.HEADS,
        "intermediate_size": encoders.INNER,
        "max_position_embeddings": encoders.POSITIONS,
        "type_vocab_size": config["type_vocab_size"],
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    }
    if name == "nomic":
        rope = {"rope_type": "default", "rope_theta": float(config["rotary_emb_base"])}
        return loaded(NomicBertModel, path, NomicBertConfig(**shape, rope_parameters=rope, hidden_act="silu"))
    rope = {"rope_type": "default", "rope_theta": float(config["rope_theta"])}
    if scaling := config["rope_scaling"]:
        # https://kexue.fm/archives/9706, as GTE's own code has it: a larger base, and all angles divided alike.
        factor, dim = scaling["factor"], encoders.HIDDEN // encoders.HEADS
        rope = {"rope_type": "linear", "rope_theta": rope["rope_theta"] * factor, "factor": factor ** (2 / dim)}
    if cross:
        return loaded(GteForSequenceClassification, path, GteConfig(**shape, rope_parameters=rope, num_labels=1))
    return loaded(GteModel, path, GteConfig(**shape, rope_parameters=rope))


def vectors(path: Path, name: str) -> dict[str, np.ndarray]:
    """Embeds encoders.TEXTS one by one, pooled by hand."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json"))
    encoder = model(path, name)
    limit = encoders.POSITIONS - (2 if name == "mpnet" else 0)
    pooled: dict[str, list[torch.Tensor]] = {"mean": [], "cls": []}
    for text in encoders.TEXTS:
        ids = tokenizer(text.strip(), truncation=True, max_length=limit, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            hidden = encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
        pooled["mean"].append(hidden.mean(0))
        pooled["cls"].append(hidden[0])
    normal = torch.nn.functional.normalize
    return {f"{name}/{kind}": normal(torch.stack(rows), dim=1).numpy() for kind, rows in pooled.items()}


def scores(path: Path, name: str) -> np.ndarray:
    """Returns the logit of each of encoders.TEXTS for tiny.QUERIES[0]."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json"))
    classifier = model(path, encoders.CROSS[name], cross=True)
    limit = encoders.POSITIONS - (2 if name == "mpnet" else 0)
    found = []
    for text in encoders.TEXTS:
        # In lists: alone, an empty text would count as none.
        batch = tokenizer([tiny.QUERIES[0]], [text], truncation=True, max_length=limit, return_tensors="pt")
        ids = batch["input_ids"]
        with torch.no_grad():
            found.append(classifier(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.item())
    return np.array(found, np.float32)


def main() -> None:
    """Writes the file."""
    found: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in encoders.NAMES:
            found |= vectors(encoders.encoder(Path(folder) / name, name), name)
        for name in encoders.CROSS:
            found[f"cross/{name}"] = scores(encoders.cross_encoder(Path(folder) / "cross" / name, name), name)
    np.savez_compressed(ROOT / "tests" / "goldens" / "encoders.npz", **found)


if __name__ == "__main__":
    main()
