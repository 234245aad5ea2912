"""Broken `tokenizer.json` files beside sound weights, the same for the same seed (`tools/mutants.py`).

What is broken is a value anywhere in the file, its vocabulary, its merges, the steps that it normalizes and cuts text
with, or its JSON.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from mutant_models import CHATML, DATA, MERGES, ROOT, TEMPLATES, TINY, alphabet

sys.path.insert(0, str(ROOT / "tests"))

import tiny

if TYPE_CHECKING:
    from pathlib import Path

BASES = ("gemma", "bytelevel", "llama", "unigram", "wordpiece")
REAL = ("llama-2", "mistral-mixtral-v0.1")
VALUES: list[Any] = [
    None,
    True,
    False,
    -1,
    0,
    1,
    2,
    48,
    49,
    2**31,
    2**32 - 1,
    2**32,
    2**63,
    -(2**63),
    1e308,
    0.5,
    -1.5,
    "",
    " ",
    "▁",
    "a",
    "\u0000",
    "x" * 5000,
    "<unk>",
    "[UNK]",
    "none such",
    [],
    {},
    [[]],
    [None],
    {"type": "ByteLevel"},
    {"type": "Nothing"},
    {"String": ""},
    {"Regex": ""},
]
PATTERNS = [
    "",
    "(",
    "(a*)*$",
    "(a|aa)+$",
    "(?<=a)b",
    "\\p{L}{1,1000}",
    "((a{100}){100}){100}",
    "(?=(a+))a*b\\1",
    ".",
    "^",
    "\\b",
]


def _split(pattern: str, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}


def _replace(old: dict[str, str], new: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": old, "content": new}


def llama() -> dict[str, Any]:
    """Returns a tokenizer as Llama 2 has it: spaces are ▁, what is unknown is bytes, and merges say the rest."""
    merges = [["▁", "t"], ["h", "e"], ["▁t", "he"], ["a", "t"], ["c", "at"], ["▁", "cat"]]
    words = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyzTC."]
    ids = {word: i for i, word in enumerate(dict.fromkeys([*words, *("".join(pair) for pair in merges)]))}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": tiny._special(["<unk>", "<s>", "</s>"], ids),
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Prepend", "prepend": "▁"}, _replace({"String": " "}, "▁")],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                _replace({"String": "▁"}, " "),
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": ids,
            "merges": merges,
        },
    }


def _byte_level() -> dict[str, Any]:
    """As Qwen has it."""
    words = [*alphabet(), *(merge.replace(" ", "") for merge in MERGES), "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    ids = {word: i for i, word in enumerate(words)}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0",
        "added_tokens": tiny._special(words[-3:], ids),
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [_split(r"\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+| ?\p{L}+"), level],
        },
        "post_processor": level,
        "decoder": level,
        "model": {
            "type": "BPE",
            "unk_token": None,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {word: i for word, i in ids.items() if not word.startswith("<|")},
            "merges": MERGES,
        },
    }


def _checkpoint(path: Path, tokenizer: dict[str, Any], vocabulary: int, hidden: int) -> None:
    """Writes a decoder of one layer with this tokenizer."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": hidden,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    rng = np.random.Generator(np.random.PCG64(7))
    half = hidden // 2
    block = "model.layers.0."
    shapes = {
        "model.embed_tokens": (vocabulary, hidden),
        **{f"{block}self_attn.{n}_proj": (rows, hidden) for n, rows in {"q": hidden, "k": half, "v": half}.items()},
        **{f"{block}{n}_proj": (hidden, hidden) for n in ("self_attn.o", "mlp.gate", "mlp.up", "mlp.down")},
        **dict.fromkeys(("model.norm", f"{block}input_layernorm", f"{block}post_attention_layernorm"), (hidden,)),
    }
    tensors = {f"{n}.weight": rng.standard_normal(shape).astype(np.float32) for n, shape in shapes.items()}
    path.mkdir(parents=True)
    tiny.save_safetensors(path / "model.safetensors", tensors)
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")


def prepare(name: str, path: Path) -> None:
    """Writes the sound model of this name to a folder."""
    match name:
        case "gemma":
            shutil.copytree(TINY / "tiny-gemma", path)
        case "bytelevel":
            _checkpoint(path, _byte_level(), 320, 16)
        case "llama":
            _checkpoint(path, llama(), 320, 16)
        case "unigram":
            tiny.bert(path, seed=3, model_type="xlm-roberta", pooling="mean")
        case "wordpiece":
            tiny.bert(path, seed=1)
        case _:
            _checkpoint(path, _sound(name), 32_000, 8)


@cache
def _sound(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DATA / "tokenizers" / name / "tokenizer.json").read_text(encoding="utf-8"))
    return found


def _places(value: Any, rng: random.Random) -> tuple[Any, Any]:
    """A container somewhere in `value` and a key of it: each depth is as likely as the next."""
    while True:
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        inner = value[key]
        if not isinstance(inner, (dict, list)) or not inner or rng.random() < 0.25:
            return value, key
        value = inner


def _value(tokenizer: dict[str, Any], rng: random.Random) -> None:
    """A value anywhere is another, gone, or that of another place."""
    container, key = _places(tokenizer, rng)
    match rng.randrange(4):
        case 0 | 1:
            container[key] = rng.choice(VALUES)
        case 2:
            del container[key]
        case 3:
            other, place = _places(tokenizer, rng)
            container[key] = json.loads(json.dumps(other[place]))


def _vocabulary(tokenizer: dict[str, Any], rng: random.Random) -> None:
    """Ids that are missing, shared or huge; pieces of odd text and score."""
    vocab = tokenizer["model"].get("vocab")
    if not isinstance(vocab, (dict, list)) or not vocab:
        return
    if isinstance(vocab, list):
        at = rng.randrange(len(vocab))
        choices: list[Any] = [["", -1.0], ["x", 1e308], ["y", -1e308], ["a" * 9999, 0.0], ["x"], ["x", "y"], vocab[0]]
        vocab[at] = rng.choice(choices)
        if rng.random() < 0.3:
            tokenizer["model"]["unk_id"] = rng.choice([None, 0, -1, len(vocab), 2**40])
        if rng.random() < 0.2:
            tokenizer["model"]["vocab"] = vocab[: rng.choice([0, 1, 4, len(vocab) // 2])]
        return
    words = list(vocab)
    word = rng.choice(words)
    match rng.randrange(6):
        case 0:
            vocab[word] = rng.choice([0, vocab[rng.choice(words)], len(vocab), 10**6, 3_999_999, 2**31, 2**32 - 1, -1])
        case 1:
            del vocab[word]
        case 2:
            vocab[rng.choice(["", " ", "x" * 9999, "\u0000", "<0xFF>", "<|im_end|>"])] = vocab.pop(word)
        case 3:
            tokenizer["model"]["vocab"] = {word: i for i, word in enumerate(words)}
        case 4:
            for word in words[:: rng.choice([2, 3, 50])]:
                del vocab[word]
        case 5:
            tokenizer["model"]["vocab"] = {}


def _merges(tokenizer: dict[str, Any], rng: random.Random) -> None:
    """Merges that name no piece, that make none, or that are no pairs."""
    merges = tokenizer["model"].get("merges")
    if not isinstance(merges, list):
        return _steps(tokenizer, rng)
    pieces = list(tokenizer["model"].get("vocab") or {"a": 0})
    left, right = rng.choice(pieces), rng.choice(pieces)
    new: Any = rng.choice(
        [
            f"{left} {right}",
            [left, right],
            [left],
            [left, right, left],
            "",
            " ",
            f"{left}",
            f"{left} {right} {left}",
            ["", right],
            [left, ""],
            ["x" * 9999, "y"],
            [left * 500, right],
            7,
            None,
        ]
    )
    merges.insert(rng.randrange(len(merges) + 1), new)
    if rng.random() < 0.2:
        tokenizer["model"]["merges"] = [new] * rng.choice([1, 2, 20_000])
    if rng.random() < 0.3:
        tokenizer["model"]["continuing_subword_prefix"] = rng.choice(["##", "", "x" * 100, "é", "▁"])
    if rng.random() < 0.2:
        tokenizer["model"]["end_of_word_suffix"] = rng.choice(["</w>", "", "é"])
    return None


def _added(tokenizer: dict[str, Any], rng: random.Random) -> None:
    """Added tokens with ids and texts that others have, or that nothing can have."""
    added = tokenizer.setdefault("added_tokens", [])
    if not isinstance(added, list):
        return
    text = rng.choice(["", " ", "a", "e", "<s>", "</s>", "x" * 9999, "\u0000", "the", "▁", "🐉"])
    token = {
        "id": rng.choice([0, 1, 48, 49, 320, 10**6, 2**31, 2**32 - 1, -1]),
        "content": text,
        **{flag: rng.random() < 0.5 for flag in ("single_word", "lstrip", "rstrip", "normalized", "special")},
    }
    added.extend([token] * rng.choice([1, 1, 2, 3000]))


def _steps(tokenizer: dict[str, Any], rng: random.Random) -> None:
    """Steps before, beside or instead of those that are there: some make a text grow without end."""
    pattern = rng.choice([{"Regex": rng.choice(PATTERNS)}, {"String": rng.choice(["", "a", " ", "▁"])}])
    normalizers: list[Any] = [
        _replace(pattern, rng.choice(["", "a", "aa", "x" * 1000, "▁"])),
        {"type": "Prepend", "prepend": rng.choice(["", "▁", "x" * 1000])},
        {"type": "Precompiled", "precompiled_charsmap": rng.choice(["", "AAAA", "////" * 100, "!", "AAAAAAAA" * 50])},
        {"type": "NFKD"},
        {"type": "Lowercase"},
        {"type": "Strip", "strip_left": True, "strip_right": True},
        {"type": "ByteLevel"},
    ]
    cutters: list[Any] = [
        {**_split(""), "pattern": pattern, "behavior": rng.choice(["Removed", "MergedWithNext", "Contiguous"])},
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        {
            "type": "Metaspace",
            "replacement": rng.choice(["▁", "", "ab", " "]),
            "prepend_scheme": "always",
            "split": True,
        },
        {"type": "Digits", "individual_digits": True},
        {"type": "CharDelimiterSplit", "delimiter": rng.choice(["a", "", "ab"])},
        {"type": "FixedLength", "length": rng.choice([0, 1, 3, 2**40])},
        {"type": "UnicodeScripts"},
        {"type": "Punctuation", "behavior": "Isolated"},
    ]
    post: list[Any] = [
        {"type": "BertProcessing", "sep": ["x", 2**32 - 1], "cls": ["y", 5]},
        {
            "type": "RobertaProcessing",
            "sep": ["", 0],
            "cls": ["", 9999],
            "trim_offsets": True,
            "add_prefix_space": True,
        },
        {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}},
        {"type": "Sequence", "processors": []},
    ]
    for key, inner, choices in (
        ("normalizer", "normalizers", normalizers),
        ("pre_tokenizer", "pretokenizers", cutters),
        ("post_processor", "processors", post),
    ):
        if rng.random() < 0.5:
            step = rng.choice(choices)
            times = rng.choice([1, 1, 1, 12, 40])
            old = tokenizer.get(key)
            tokenizer[key] = {"type": "Sequence", inner: [*([old] if old else []), *([step] * times)]}


def _model(tokenizer: dict[str, Any], rng: random.Random) -> None:
    """The model's own switches."""
    name, values = rng.choice(
        [
            ("type", ["BPE", "Unigram", "WordPiece", "WordLevel", "", None]),
            ("dropout", [0, 1, 0.5, -1, 2, 1e308]),
            ("unk_token", ["", "none such", "a", "</s>", None]),
            ("unk_id", [0, 1, 10**9, -1, None]),
            ("byte_fallback", [True, False, None]),
            ("fuse_unk", [True, False]),
            ("ignore_merges", [True, False]),
            ("continuing_subword_prefix", ["", "##", "é", None]),
            ("max_input_chars_per_word", [0, 1, 2**63, -1]),
        ]
    )
    tokenizer["model"][name] = rng.choice(values)


def _bytes(data: bytes, rng: random.Random) -> bytes:
    """JSON that is cut, nested without end, or none."""
    at = rng.randrange(len(data))
    match rng.randrange(6):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
        case 2:
            return b"[" * 200_000
        case 3:
            return b'{"model":' * 50_000
        case 4:
            return data[:at] + data[at + rng.choice([1, 10, 100]) :]
        case _:
            return rng.choice([b"", b"null", b"{}", b"[]", b"7", b"\xef\xbb\xbf" + data, data + data, b"\x00" * 100])


def _neighbours(path: Path, rng: random.Random) -> None:
    """What the files beside it say about special tokens and templates."""
    settings = {
        rng.choice(["bos_token", "eos_token"]): rng.choice(["a", "", 7, None, {"content": "<s>"}, {"content": 7}, []]),
        "chat_template": rng.choice([*TEMPLATES, CHATML, 7, [], [{"name": "default", "template": 7}]]),
        "model_max_length": rng.choice([0, -1, 10**30, "x", None, 3]),
    }
    (path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    ids = rng.choice([0, -1, 2**40, [0, 1], [], "x", None, [None], {"a": 1}, 1.5])
    (path / "generation_config.json").write_text(
        json.dumps({"eos_token_id": ids, "bos_token_id": ids}), encoding="utf-8"
    )


MUTATORS = [_value, _value, _vocabulary, _merges, _added, _steps, _steps, _model]


def write(seed: int, folder: Path) -> tuple[str, Path, int]:
    """Writes the mutant of this seed; returns what is wrong with it, where it is and the size of its tokenizer."""
    rng = random.Random(f"tokenizer {seed}")
    real = [name for name in REAL if (DATA / "tokenizers" / name / "tokenizer.json").is_file()]
    name = rng.choice(real) if real and rng.random() < 0.02 else rng.choice(BASES)
    sound = folder / f"sound-{name}"
    if not sound.exists():
        prepare(name, sound)
    path = folder / f"mutant-{name}"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(sound, path)
    tokenizer = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
    used = []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        mutator = rng.choice(MUTATORS)
        if isinstance(tokenizer.get("model"), dict):
            mutator(tokenizer, rng)
            used.append(mutator.__name__.removeprefix("_"))
    data = json.dumps(tokenizer, ensure_ascii=rng.random() < 0.5).encode(errors="surrogatepass")
    if rng.random() < 0.08:
        data = _bytes(data, rng)
        used.append("bytes")
    if rng.random() < 0.1 and name not in {"unigram", "wordpiece"}:
        _neighbours(path, rng)
        used.append("neighbours")
    (path / "tokenizer.json").write_bytes(data)
    return f"{name}: {'+'.join(used)}", path, sum(file.stat().st_size for file in path.rglob("*.*"))
