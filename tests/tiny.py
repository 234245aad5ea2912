"""Makes seeded tiny checkpoints: real architectures, random weights, a vocabulary of characters.

numpy alone writes them, so the tests need no torch; `tools/goldens_embedder.py` runs the same files through
transformers to get what the tests expect.
"""

from __future__ import annotations

import json
import string
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

HIDDEN, INNER, LAYERS, HEADS, POSITIONS = 32, 80, 3, 4, 66
CHARACTERS = string.ascii_lowercase + string.digits + ".,:;!?'\"()[]-–éüñß日本語"
WORDS = ["query", "passage", "the", "dragon", "climb", "rope", "##ing", "##s", "potion", "night"]


def save_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes `tensors` as https://github.com/huggingface/safetensors describes."""
    header, blobs, start = {}, [], 0
    names = {"float32": "F32", "float16": "F16"}
    for name, tensor in tensors.items():
        blob = np.ascontiguousarray(tensor).tobytes()
        end = start + len(blob)
        header[name] = {"dtype": names[str(tensor.dtype)], "shape": tensor.shape, "data_offsets": [start, end]}
        blobs.append(blob)
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def _special(tokens: list[str], ids: dict[str, int]) -> list[dict[str, Any]]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return [{"id": ids[token], "content": token, **flags} for token in tokens]


def load_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a file that `save_safetensors` wrote."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    tensors = {}
    for name, info in json.loads(data[8 : 8 + size]).items():
        start, end = info["data_offsets"]
        numbers = np.frombuffer(
            data[8 + size + start : 8 + size + end], {"F32": np.float32, "F16": np.float16}[info["dtype"]]
        )
        tensors[name] = numbers.reshape(info["shape"])
    return tensors


def _template(first: str, last: str, ids: dict[str, int], *, second: int = 0) -> dict[str, Any]:
    special = {token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in (first, last)}
    single = [
        {"SpecialToken": {"id": first, "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": last, "type_id": 0}},
    ]
    pair = [*single, {"Sequence": {"id": "B", "type_id": second}}, {"SpecialToken": {"id": last, "type_id": second}}]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}


def wordpiece() -> dict[str, Any]:
    """Returns a BERT tokenizer."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CHARACTERS, *("##" + c for c in CHARACTERS), *WORDS]
    ids = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    normalizer = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None}
    model = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##"}
    return {
        "version": "1.0",
        "added_tokens": _special(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], ids),
        "normalizer": {**normalizer, "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": _template("[CLS]", "[SEP]", ids, second=1),
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {**model, "max_input_chars_per_word": 100, "vocab": ids},
    }


def unigram() -> dict[str, Any]:
    """Returns an XLM-RoBERTa tokenizer, whose padding is id 1."""
    pieces = ["▁", *CHARACTERS, *("▁" + word.removeprefix("##") for word in WORDS)]
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *dict.fromkeys(pieces)]
    ids = {token: i for i, token in enumerate(tokens)}
    vocab = [[token, 0.0 if i < 4 else -2.0 - (i % 7) - len(token) * 0.1] for i, token in enumerate(tokens)]
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    return {
        "version": "1.0",
        "added_tokens": _special(["<s>", "<pad>", "</s>", "<unk>"], ids),
        "normalizer": {"type": "NFKC"},
        "pre_tokenizer": metaspace,
        "post_processor": _template("<s>", "</s>", ids),
        "decoder": metaspace,
        "model": {"type": "Unigram", "unk_id": 3, "vocab": vocab, "byte_fallback": False},
    }


def bert(
    path: Path,
    *,
    seed: int,
    model_type: str = "bert",
    pooling: str | None = None,
    prompts: dict[str, str] | None = None,
    change: dict[str, Any] | None = None,
    dense: int | None = None,
) -> Path:
    """Writes a BERT or XLM-RoBERTa encoder to the directory `path`.

    Args:
        path: Where to; made where it is absent.
        seed: Of the weights.
        model_type: `"bert"` or `"xlm-roberta"`.
        pooling: `"mean"` or `"cls"` writes sentence-transformers' module files; None leaves a plain checkpoint.
        prompts: What `config_sentence_transformers.json` holds.
        change: Fields of `config.json` to set otherwise.
        dense: How many numbers a Dense module makes of the pooled ones; None leaves it out.
    """
    roberta = model_type == "xlm-roberta"
    tokenizer = unigram() if roberta else wordpiece()
    vocabulary = len(tokenizer["model"]["vocab"])
    types = 1 if roberta else 2
    config = {
        "model_type": model_type,
        "architectures": ["XLMRobertaModel" if roberta else "BertModel"],
        "vocab_size": vocabulary,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": INNER,
        "hidden_act": "gelu",
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": types,
        "layer_norm_eps": 1e-5 if roberta else 1e-12,
        "pad_token_id": 1 if roberta else 0,
        **(change or {}),
    }
    path.mkdir(parents=True, exist_ok=True)
    _write(path / "config.json", config)
    _write(path / "tokenizer.json", tokenizer)
    _write(path / "tokenizer_config.json", {"model_max_length": 10**30})
    if pooling:
        modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
        modules += [("2_Dense", "Dense")] if dense else []
        modules += [("3_Normalize", "Normalize")]
        entries = [
            {"idx": i, "name": str(i), "path": folder, "type": f"sentence_transformers.models.{kind}"}
            for i, (folder, kind) in enumerate(modules)
        ]
        _write(path / "modules.json", entries)
        modes = {"pooling_mode_cls_token": pooling == "cls", "pooling_mode_mean_tokens": pooling == "mean"}
        _write(path / "1_Pooling" / "config.json", {"word_embedding_dimension": HIDDEN, **modes})
        _write(path / "sentence_bert_config.json", {"max_seq_length": 48, "do_lower_case": False})
    if prompts:
        _write(path / "config_sentence_transformers.json", {"prompts": prompts, "default_prompt_name": None})

    random = np.random.Generator(np.random.PCG64(seed))

    def normal(*shape: int, scale: float = 0.15) -> np.ndarray:
        return (random.standard_normal(shape) * scale).astype(np.float32)

    tensors = {
        "embeddings.word_embeddings.weight": normal(vocabulary, HIDDEN, scale=0.6),
        "embeddings.position_embeddings.weight": normal(POSITIONS, HIDDEN, scale=0.4),
        "embeddings.token_type_embeddings.weight": normal(types, HIDDEN),
        "embeddings.LayerNorm.weight": 1 + normal(HIDDEN),
        "embeddings.LayerNorm.bias": normal(HIDDEN),
    }
    for i in range(LAYERS):
        layer = f"encoder.layer.{i}."
        shapes = {
            "attention.self.query": (HIDDEN, HIDDEN),
            "attention.self.key": (HIDDEN, HIDDEN),
            "attention.self.value": (HIDDEN, HIDDEN),
            "attention.output.dense": (HIDDEN, HIDDEN),
            "intermediate.dense": (INNER, HIDDEN),
            "output.dense": (HIDDEN, INNER),
        }
        for name, shape in shapes.items():
            tensors[f"{layer}{name}.weight"] = normal(*shape)
            tensors[f"{layer}{name}.bias"] = normal(shape[0])
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            tensors[f"{layer}{name}.weight"] = 1 + normal(HIDDEN)
            tensors[f"{layer}{name}.bias"] = normal(HIDDEN)
    save_safetensors(path / "model.safetensors", tensors)
    if dense:
        kind = "torch.nn.modules.activation.Tanh"
        _write(
            path / "2_Dense" / "config.json",
            {"in_features": HIDDEN, "out_features": dense, "bias": True, "activation_function": kind},
        )
        layer = {"linear.weight": normal(dense, HIDDEN, scale=0.4), "linear.bias": normal(dense)}
        save_safetensors(path / "2_Dense" / "model.safetensors", layer)
    return path


def cross_encoder(path: Path, *, seed: int, model_type: str = "bert", identity: bool = False, labels: int = 1) -> Path:
    """Writes a cross-encoder: `bert`'s checkpoint below a prefix, and a head.

    Args:
        path: Where to; made where it is absent.
        seed: Of the weights.
        model_type: `"bert"` or `"xlm-roberta"`.
        identity: Whether the scores are stated to be the logits.
        labels: How many numbers the head gives.
    """
    bert(path, seed=seed, model_type=model_type)
    roberta = model_type == "xlm-roberta"
    config = json.loads((path / "config.json").read_text("utf-8"))
    kind = "XLMRobertaForSequenceClassification" if roberta else "BertForSequenceClassification"
    config |= {"architectures": [kind], "id2label": {str(i): f"LABEL_{i}" for i in range(labels)}}
    config |= {"label2id": {f"LABEL_{i}": i for i in range(labels)}}
    if identity:
        config["sentence_transformers"] = {"activation_fn": "torch.nn.modules.linear.Identity"}
    _write(path / "config.json", config)
    prefix = "roberta." if roberta else "bert."
    tensors = {prefix + name: tensor for name, tensor in load_safetensors(path / "model.safetensors").items()}
    random = np.random.Generator(np.random.PCG64(seed))
    layers = {"classifier.dense" if roberta else "bert.pooler.dense": HIDDEN}
    layers["classifier.out_proj" if roberta else "classifier"] = labels
    for name, outputs in layers.items():
        tensors[f"{name}.weight"] = (random.standard_normal((outputs, HIDDEN)) * 0.3).astype(np.float32)
        tensors[f"{name}.bias"] = (random.standard_normal(outputs) * 0.1).astype(np.float32)
    save_safetensors(path / "model.safetensors", tensors)
    return path


def cross_encoders(root: Path) -> dict[str, Path]:
    """Writes one tiny cross-encoder for each kind of head and returns them by name."""
    return {
        "ms-marco": cross_encoder(root / "ms-marco", seed=6, identity=True),
        "bge-reranker": cross_encoder(root / "bge-reranker", seed=7, model_type="xlm-roberta"),
    }


QUERIES = ["where does the dragon sleep?", "", "the rope " * 40]
E5_PROMPTS = {"query": "query: ", "passage": "passage: "}
BGE_QUERY = "climb the rope: "


def family(root: Path) -> dict[str, Path]:
    """Writes one tiny checkpoint for each branch of the family and returns them by name."""
    return {
        "e5": bert(root / "e5", seed=1),
        "bge": bert(root / "bge", seed=2, pooling="cls", prompts={"query": BGE_QUERY}),
        "multilingual-e5": bert(root / "multilingual-e5", seed=3, model_type="xlm-roberta", pooling="mean"),
        "dense": bert(root / "dense", seed=4, pooling="mean", prompts=E5_PROMPTS, dense=20),
    }


def prefixes(name: str) -> dict[str, str]:
    """Returns what the model `name` of `family` puts before a query and a passage."""
    return {"query": BGE_QUERY, "passage": ""} if name == "bge" else E5_PROMPTS


TEXTS = [
    "",
    " ",
    "a",
    "The dragon sleeps at night.",
    "the DRAGON sleeps at night!",
    "  climbing a rope,  twice  ",
    "potions? (red) [blue] – 'green'",
    "日本語 と é ü ñ ß",
    "unknown → symbols ☃ and 🐉",
    "line\nbreaks\tand\r\ntabs",
    "1234567890 " * 3,
    "word " * 60,
    "x" * 130,
    "the rope " * 20 + "dragon",
    *(f"the {WORDS[3 + i % 3]} number {i} of {'abcdefgh'[: i % 8]}" for i in range(26)),
]
