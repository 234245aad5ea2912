"""Makes seeded tiny ColBERT checkpoints in both layouts: Stanford's, and PyLate's.

As `tiny.py`, with numpy alone; `tools/goldens_colbert.py` reads the same files with torch.
"""

from __future__ import annotations

import json
import shutil
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

import encoders
import tiny

if TYPE_CHECKING:
    from pathlib import Path

DIM = 20
PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"


@dataclass(frozen=True)
class Variant:
    """A checkpoint and how it is to be read.

    Attributes:
        layout: `"stanford"` or `"pylate"`.
        settings: What `artifact.metadata` or `config_sentence_transformers.json` holds; None leaves the file out.
        query: The query's mark.
        doc: The document's mark.
        query_maxlen: Tokens of a query.
        doc_maxlen: The most tokens of a document.
        expands: Whether queries are filled up with [MASK].
        attends: Whether these are attended to.
        skiplist: Which tokens of documents have no vectors.
        encoder: `"bert"` or one of `encoders`, with what its configuration has otherwise.
    """

    layout: str
    settings: dict[str, Any] | None
    query: str = "[unused0]"
    doc: str = "[unused1]"
    query_maxlen: int = 32
    doc_maxlen: int = tiny.POSITIONS
    expands: bool = True
    attends: bool = False
    skiplist: list[str] = field(default_factory=lambda: list(PUNCTUATION))
    encoder: tuple[str, dict[str, Any]] = ("bert", {})


VARIANTS = {
    "stanford": Variant(
        "stanford",
        {
            "query_token_id": "[unused0]",
            "doc_token_id": "[unused1]",
            "query_token": "[Q]",
            "query_maxlen": 32,
            "doc_maxlen": 60,
            "dim": DIM,
            "mask_punctuation": True,
            "attend_to_mask_tokens": False,
            "similarity": "cosine",
        },
        doc_maxlen=60,
    ),
    "bare": Variant("stanford", None),
    "attending": Variant(
        "stanford",
        {"attend_to_mask_tokens": True, "mask_punctuation": False, "query_maxlen": 24, "doc_maxlen": 40},
        query_maxlen=24,
        doc_maxlen=40,
        attends=True,
        skiplist=[],
    ),
    "pylate": Variant(
        "pylate",
        {
            "query_prefix": "[Q] ",
            "document_prefix": "[D] ",
            "query_length": 32,
            "document_length": 48,
            "attend_to_expansion_tokens": False,
            "skiplist_words": [".", ",", "no such word"],
            "do_query_expansion": True,
            "similarity_fn_name": "MaxSim",
        },
        query="[Q] ",
        doc="[D] ",
        doc_maxlen=48,
        skiplist=[".", ","],
    ),
    # Its windows see 32 tokens on each side, so the last [MASK] sees some of the shortest query.
    "modern": Variant(
        "pylate",
        {"query_prefix": "[Q] ", "document_prefix": "[D] ", "query_length": 32, "document_length": 90},
        query="[Q] ",
        doc="[D] ",
        doc_maxlen=90,
        encoder=("modernbert", {"local_attention": 64, "pad_token_id": 0}),
    ),
    "unexpanded": Variant(
        "pylate", {"query_prefix": "[unused0]", "do_query_expansion": False}, doc="[D] ", expands=False
    ),
}

TEXTS = [
    "",
    "the dragon sleeps at night.",
    "The DRAGON, sleeps at night!",
    "climbing: a rope (twice); 'potions' – \"night\"",
    "..., !? -",
    "unknown → symbols ☃ and 日本語",
    "[unused0] is no mark here, nor is [unused1]",
    "the rope " * 40 + "dragon.",
]
# Beside the longest query, and beside the longest document of each variant.
EDGES = ["x " * count for count in (20, 21, 22, 28, 29, 30, 36, 37, 38, 44, 45, 46, 56, 57, 58, 62, 63, 64)]


def save_bfloat16(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes the upper halves of single precision numbers."""
    header, blobs, start = {}, [], 0
    for name, tensor in tensors.items():
        blob = (np.ascontiguousarray(tensor).view(np.uint32) >> 16).astype(np.uint16).tobytes()
        header[name] = {"dtype": "BF16", "shape": tensor.shape, "data_offsets": [start, start + len(blob)]}
        blobs.append(blob)
        start += len(blob)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def colbert(path: Path, name: str, *, dim: int = DIM) -> Path:
    """Writes the checkpoint of a variant to the directory `path`; its vectors have `dim` numbers."""
    variant = VARIANTS[name]
    kind, config = variant.encoder
    if kind == "bert":
        tiny.bert(path, seed=11)
    else:
        encoders.encoder(path, kind, change=config)
    random = np.random.Generator(np.random.PCG64(12))
    tokenizer = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    for token in ("[unused0]", "[unused1]", "#", "$", "*", "[Q] ", "[D] "):
        if token not in vocabulary and (token[0] != "[" or variant.layout == "pylate" or token[1] == "u"):
            vocabulary[token] = len(vocabulary)
            if token.endswith(" "):
                flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
                tokenizer["added_tokens"].append({"id": vocabulary[token], "content": token, **flags})
    (path / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    tensors = tiny.load_safetensors(path / "model.safetensors")
    embeddings = f"embeddings.{'word' if kind == 'bert' else 'tok'}_embeddings.weight"
    words = tensors[embeddings]
    more = random.standard_normal((len(vocabulary) - len(words), tiny.HIDDEN)) * 0.6
    tensors[embeddings] = np.concatenate([words, more.astype(np.float32)])
    projection = (random.standard_normal((dim, tiny.HIDDEN)) * 0.3).astype(np.float32)
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    config["vocab_size"] = len(vocabulary)
    if variant.layout == "stanford":
        config["architectures"] = ["HF_ColBERT"]
        tensors = {f"bert.{key}": tensor for key, tensor in tensors.items()}
        tensors["linear.weight"] = projection
        if variant.settings is not None:
            (path / "artifact.metadata").write_text(json.dumps(variant.settings))
    else:
        modules = [("", "sentence_transformers.models.Transformer"), ("1_Dense", "pylate.models.Dense.Dense")]
        entries = [{"idx": i, "name": str(i), "path": folder, "type": kind} for i, (folder, kind) in enumerate(modules)]
        (path / "modules.json").write_text(json.dumps(entries))
        (path / "1_Dense").mkdir(exist_ok=True)
        dense = {"in_features": tiny.HIDDEN, "out_features": dim, "bias": False}
        dense["activation_function"] = "torch.nn.modules.linear.Identity"
        (path / "1_Dense" / "config.json").write_text(json.dumps(dense))
        tiny.save_safetensors(path / "1_Dense" / "model.safetensors", {"linear.weight": projection})
        (path / "config_sentence_transformers.json").write_text(json.dumps(variant.settings))
    (path / "config.json").write_text(json.dumps(config))
    tiny.save_safetensors(path / "model.safetensors", tensors)
    return path


def change(source: Path, path: Path, file: str, **fields: Any) -> Path:
    """Copies a checkpoint and sets fields of one of its JSON files; None removes one."""
    shutil.copytree(source, path)
    value = json.loads((path / file).read_text(encoding="utf-8")) | fields
    (path / file).write_text(json.dumps({key: field for key, field in value.items() if field is not None}))
    return path
