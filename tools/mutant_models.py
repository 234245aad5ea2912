"""Broken model files, the same for the same seed: what `tools/mutants.py` feeds to the library.

A mutant starts as a small sound model and has one to three things wrong with it: a field of the format, a count, a
name, a number that a configuration would never hold, a weight that is not finite, a template that does not end.
"""

from __future__ import annotations

import copy
import random
import struct
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import gguf_file as gguf
from gguf_file import GgufFile, Key

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
TINY = ROOT / "tests" / "goldens"

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\\n' }}"
)
SPEECH = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n"
    "{% endfor %}<start_of_turn>model\n"
)
TEMPLATES = [
    "",
    "{",
    "{{",
    "{{ messages[99].content }}",
    "{{ 1 / 0 }}",
    "{{ 'a' * 10 ** 9 }}",
    "{{ ('a' * 9999) * 9999 }}",
    "{{ range(10 ** 12) | list }}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{{ j }}{% endfor %}{% endfor %}",
    "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x=['a']) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
    "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}",
    "{{ " + "[" * 20_000 + "]" * 20_000 + " }}",
    "{{ " + "not " * 50_000 + "1 }}",
    "{{ " + "-" * 50_000 + "1 }}",
    "{{ 1" + " + 1" * 50_000 + " }}",
    "{{ x" + ".x" * 50_000 + " }}",
    "{{ messages" + " | list" * 50_000 + " }}",
    "{% if 1 %}" * 20_000 + "{% endif %}" * 20_000,
    "{% for m in messages %}" * 500 + "x" + "{% endfor %}" * 500,
    "{% include 'a' %}{% import 'b' as c %}{% extends 'd' %}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ raise_exception('no') }}",
    "{{ raise_exception('x' * 100000) }}",
    "{{ messages | tojson * 1000 }}",
    "{{ '%s' % messages }}",
    "{{ 'a'.replace('', 'b' * 99999).replace('', 'b' * 99999) }}",
    "{{ 'x'.join(range(9999999)) }}",
    "{{ strftime_now('%' * 99999) }}",
    "{{ strftime_now('%999999999d') }}",
    "{{ 2 ** 2 ** 2 ** 2 ** 2 ** 2 }}",
    "{{ 9223372036854775807 + 1 }}{{ -9223372036854775807 - 2 }}",
    "{{ 'a'[::0] }}{{ 'a'[9223372036854775807:] }}",
    "{{ 'aaaa'.split('') }}",
    "{{ messages[0].content.center(10 ** 9) }}{{ 'a'.ljust(10 ** 9) }}{{ 'a' | indent(10 ** 9) }}",
    "{{ 'x' | format(1, 2, 3) }}{{ 'a' | nosuch }}",
    "{% set messages = 1 %}{% for m in messages %}{% endfor %}",
    "{% for m in messages recursive %}{{ loop([m]) }}{% endfor %}",
    "{{ bos_token }}" * 20_000,
    "\u0000{{ '\u0000' }}\ufffe",
    "x" * 2_000_000,
    "{#" * 50_000,
    "{%- generation %}x{%- endgeneration %}",
]

NUMBERS = {
    "B": [0, 1, 2, 127, 128, 255],
    "b": [0, 1, -1, 127, -128],
    "H": [0, 1, 3, 255, 32768, 65535],
    "h": [0, 1, -1, 32767, -32768],
    "I": [0, 1, 2, 3, 5, 7, 31, 33, 255, 4095, 4097, 65_535, 65_536, 2**24, 2**24 + 1, 2**31 - 1, 2**31, 2**32 - 1],
    "i": [0, 1, 3, 7, -1, -2, 2**31 - 1, -(2**31)],
    "Q": [0, 1, 2, 3, 7, 33, 2**16, 2**24, 2**31, 2**32 - 1, 2**32, 2**40, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 1],
    "q": [0, 1, 7, -1, 2**40, 2**63 - 1, -(2**63)],
    "f": [0.0, -0.0, 1.0, -1.0, 0.5, 1e-38, 1e-45, 3e38, -3e38, float("nan"), float("inf"), float("-inf")],
    "d": [0.0, 1.0, -1.0, 1e-300, 1e39, 1e300, float("nan"), float("inf"), float("-inf")],
    "?": [False, True],
}
TEXTS = [
    b"",
    b" ",
    b"\x00",
    b"\xff\xfe",
    b"\xc3",
    b"\xed\xa0\x80",
    b"<s>",
    b"<0x0A>",
    b"<0xZZ>",
    b"<0x100>",
    b"<|im_end|>",
    "▁".encode(),
    "▁▁▁▁".encode(),
    "\U0010fffd".encode(),
    b"a" * 70_000,
    b"default",
    b"gpt2",
    b"llama",
    b"gemma2",
    b"qwen2",
    b"llama-bpe",
    b"tekken",
    b"none",
    b"yarn",
    b"linear",
]


def alphabet() -> list[str]:
    """Returns GPT-2's characters for the bytes, in the order of the bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    shifted = iter(range(0x100, 0x200))
    return [chr(b) if b in printable else chr(next(shifted)) for b in range(256)]


MERGES = ["h e", "t h", "t he", "Ġ t", "Ġt he", "a n", "an d", "Ġ c", "Ġc a", "i n", "o n", "e r"]


def _byte_level(file: GgufFile, pre: str) -> int:
    tokens = [*alphabet(), *(merge.replace(" ", "") for merge in MERGES)]
    controls = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    file.add("tokenizer.ggml.model", gguf.STRING, "gpt2")
    file.add("tokenizer.ggml.pre", gguf.STRING, pre)
    file.add("tokenizer.ggml.tokens", gguf.ARRAY, (gguf.STRING, [*tokens, *controls]))
    file.add("tokenizer.ggml.token_type", gguf.ARRAY, (gguf.I32, [1] * len(tokens) + [3] * 3))
    file.add("tokenizer.ggml.merges", gguf.ARRAY, (gguf.STRING, MERGES))
    file.add("tokenizer.ggml.bos_token_id", gguf.U32, len(tokens) + 1)
    file.add("tokenizer.ggml.eos_token_id", gguf.U32, len(tokens) + 2)
    file.add("tokenizer.ggml.padding_token_id", gguf.U32, len(tokens))
    file.add("tokenizer.ggml.add_bos_token", gguf.BOOL, False)
    file.add("tokenizer.chat_template", gguf.STRING, CHATML)
    return len(tokens) + 3


def _sentencepiece(file: GgufFile) -> int:
    pieces = [*"▁abcdefghijklmnopqrstuvwxyz.,!ABCT", "th", "the", "▁the", "▁c", "at", "▁cat", "in", "an", "and", "▁and"]
    literal = ["\n\n", "▁▁", "<start_of_turn>", "<end_of_turn>"]
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{b:02X}>" for b in range(256)), *pieces, *literal]
    kinds = [3, 3, 3, 2] + [6] * 256 + [1] * len(pieces) + [4, 4, 3, 3]
    scores = [0.0] * 260 + [-float(i) for i in range(len(pieces) + 4)]
    file.add("tokenizer.ggml.model", gguf.STRING, "llama")
    file.add("tokenizer.ggml.tokens", gguf.ARRAY, (gguf.STRING, tokens))
    file.add("tokenizer.ggml.scores", gguf.ARRAY, (gguf.F32, scores))
    file.add("tokenizer.ggml.token_type", gguf.ARRAY, (gguf.I32, kinds))
    file.add("tokenizer.ggml.bos_token_id", gguf.U32, 2)
    file.add("tokenizer.ggml.eos_token_id", gguf.U32, 1)
    file.add("tokenizer.ggml.unknown_token_id", gguf.U32, 3)
    file.add("tokenizer.ggml.add_bos_token", gguf.BOOL, True)
    file.add("tokenizer.ggml.add_space_prefix", gguf.BOOL, False)
    file.add("tokenizer.chat_template", gguf.STRING, SPEECH)
    return len(tokens)


# For each base: architecture, sizes, the types of its matrices in turn.
SIZES: dict[str, tuple[str, dict[str, int], list[str]]] = {
    "llama": (
        "llama",
        {"hidden": 64, "heads": 4, "kv": 2, "dim": 16, "inner": 96, "layers": 2},
        ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "F16", "BF16", "F32"],
    ),
    "gemma3": (
        "gemma3",
        {"hidden": 256, "heads": 2, "kv": 1, "dim": 128, "inner": 256, "layers": 2},
        ["Q6_K", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "Q4_K"],
    ),
    "qwen3": ("qwen3", {"hidden": 32, "heads": 2, "kv": 2, "dim": 16, "inner": 32, "layers": 1}, ["F32", "F16"]),
}


def _model(name: str) -> GgufFile:
    architecture, size, types = SIZES[name]
    file = GgufFile()
    rng = np.random.Generator(np.random.PCG64(len(name)))
    file.add("general.architecture", gguf.STRING, architecture)
    file.add("general.name", gguf.STRING, f"tiny {name}")
    file.add("general.alignment", gguf.U32, 32)
    for key, value in {
        "context_length": 64,
        "embedding_length": size["hidden"],
        "block_count": size["layers"],
        "feed_forward_length": size["inner"],
        "attention.head_count": size["heads"],
        "attention.head_count_kv": size["kv"],
        "attention.key_length": size["dim"],
        "attention.value_length": size["dim"],
        "rope.dimension_count": size["dim"],
    }.items():
        file.add(f"{architecture}.{key}", gguf.U32, value)
    file.add(f"{architecture}.attention.layer_norm_rms_epsilon", gguf.F32, 1e-6)
    file.add(f"{architecture}.rope.freq_base", gguf.F32, 10_000.0)
    if name == "gemma3":
        file.add("gemma3.attention.sliding_window", gguf.U32, 16)
        file.add("gemma3.attention.sliding_window_pattern", gguf.ARRAY, (gguf.BOOL, [True, False]))
        file.add("gemma3.final_logit_softcapping", gguf.F32, 30.0)
    if name == "llama":
        file.add("llama.rope.scaling.type", gguf.STRING, "linear")
        file.add("llama.rope.scaling.factor", gguf.F32, 1.0)
    vocab = _sentencepiece(file) if name == "gemma3" else _byte_level(file, {"llama": "smollm"}.get(name, "qwen2"))
    hidden, dim = size["hidden"], size["dim"]
    q, kv = size["heads"] * dim, size["kv"] * dim
    turn = iter(types * 20)

    def matrix(tensor: str, cols: int, rows: int) -> None:
        file.tensors.append(gguf.random_tensor(f"{tensor}.weight", [cols, rows], next(turn), rng))

    def vector(tensor: str, length: int) -> None:
        file.add_tensor(tensor, 1 + 0.1 * rng.standard_normal(length))

    matrix("token_embd", hidden, vocab)
    vector("output_norm.weight", hidden)
    if name == "llama":
        vector("rope_freqs.weight", dim // 2)
    for i in range(size["layers"]):
        block = f"blk.{i}."
        for norm in ["attn_norm", "ffn_norm", *(["post_attention_norm", "post_ffw_norm"] if name == "gemma3" else [])]:
            vector(f"{block}{norm}.weight", hidden)
        if name != "llama":
            vector(f"{block}attn_q_norm.weight", dim)
            vector(f"{block}attn_k_norm.weight", dim)
        else:
            vector(f"{block}attn_q.bias", q)
        matrix(f"{block}attn_q", hidden, q)
        matrix(f"{block}attn_k", hidden, kv)
        matrix(f"{block}attn_v", hidden, kv)
        matrix(f"{block}attn_output", q, hidden)
        matrix(f"{block}ffn_gate", hidden, size["inner"])
        matrix(f"{block}ffn_up", hidden, size["inner"])
        matrix(f"{block}ffn_down", size["inner"], hidden)
    if name == "qwen3":
        matrix("output", hidden, vocab)
    return file


@cache
def base(name: str) -> GgufFile:
    """Returns a sound model: one of `SIZES`, or a real file of the data folder."""
    return _model(name) if name in SIZES else gguf.parse((DATA / name).read_bytes())


@cache
def real_files() -> list[str]:
    """Returns the small real GGUF files that are here."""
    names = ["model-llama2-tiny-random/llama-2-tiny-random.gguf", "gguf-vocab/ggml-vocab-llama-spm.gguf"]
    return [name for name in names if (DATA / name).is_file()]


def _number(rng: random.Random, kind: int) -> Any:
    return rng.choice(NUMBERS[gguf.PACKED[kind]])


def _any_value(rng: random.Random, depth: int = 0) -> tuple[int, Any]:
    kind = rng.randrange(13)
    if kind == gguf.STRING:
        return kind, rng.choice(TEXTS)
    if kind == gguf.ARRAY:
        element, first = _any_value(rng, depth + 1) if depth < 6 else (gguf.U8, 0)
        return kind, (element, [first] * rng.choice([0, 1, 2, 300]))
    return kind, _number(rng, kind)


def _change_number(file: GgufFile, rng: random.Random, prefix: bytes = b"") -> None:
    """A number of the metadata becomes one at the edge of its type."""
    keys = [key for key in file.keys if key.kind in gguf.PACKED and key.name.startswith(prefix)]
    key = rng.choice(keys)
    if rng.random() < 0.3:
        key.kind = rng.choice([gguf.I32, gguf.I64, gguf.U64, gguf.F32, gguf.F64, gguf.U8, gguf.BOOL])
    key.value = _number(rng, key.kind)


def _architecture(file: GgufFile, rng: random.Random) -> None:
    """A number of the architecture is wrong, or one appears that the file did not have."""
    name = next((key.value for key in file.keys if key.name == b"general.architecture"), None)
    if not isinstance(name, bytes):
        return _keys(file, rng)
    if rng.random() < 0.6:
        return _change_number(file, rng, name + b".")
    new = rng.choice(
        [
            ("rope.scaling.factor", gguf.F32),
            ("rope.scale_linear", gguf.F32),
            ("rope.freq_base_swa", gguf.F32),
            ("attn_logit_softcapping", gguf.F32),
            ("final_logit_softcapping", gguf.F32),
            ("attention.sliding_window", gguf.U32),
            ("attention.sliding_window_pattern", gguf.U32),
            ("attention.sliding_window_pattern", gguf.I64),
            ("expert_count", gguf.U32),
            ("vocab_size", gguf.U32),
        ]
    )
    key = name + b"." + new[0].encode()
    file.keys = [other for other in file.keys if other.name != key]
    file.keys.append(Key(key, new[1], _number(rng, new[1])))
    if b"scal" in key:
        file.keys = [other for other in file.keys if not other.name.endswith(b"scaling.type")]
    return None


def _architecture_name(file: GgufFile, rng: random.Random) -> None:
    """The file says that it is of another family, with the same numbers."""
    old = next((key for key in file.keys if key.name == b"general.architecture"), None)
    if old is None or not isinstance(old.value, bytes):
        return _keys(file, rng)
    new = rng.choice([b"llama", b"mistral", b"gemma", b"gemma2", b"gemma3", b"qwen2", b"qwen3", b"bert", b"", b"\xff"])
    for key in file.keys:
        if key.name.startswith(old.value + b"."):
            key.name = new + key.name[len(old.value) :]
    old.value = new
    return None


def _keys(file: GgufFile, rng: random.Random) -> None:
    """Keys are there twice, missing, misnamed, or of another type."""
    key = rng.choice(file.keys)
    match rng.randrange(5):
        case 0:
            file.keys.append(copy.deepcopy(key))
        case 1:
            file.keys.remove(key)
        case 2:
            key.name = rng.choice([*TEXTS, key.name + b"x", key.name.upper()])
        case 3:
            key.kind, key.value = _any_value(rng)
        case 4:
            rng.shuffle(file.keys)


def _items(file: GgufFile, name: bytes) -> tuple[Key, int, list[Any]] | None:
    found = next((key for key in file.keys if key.name == name and key.kind == gguf.ARRAY), None)
    return None if found is None else (found, found.value[0], list(found.value[1]))


def _tokens(file: GgufFile, rng: random.Random) -> None:
    """The arrays of the tokenizer: their lengths, their entries, their element types."""
    name = rng.choice([b"tokens", b"scores", b"token_type", b"merges"])
    found = _items(file, b"tokenizer.ggml." + name)
    if found is None or not found[2]:
        return _token_ids(file, rng)
    key, element, items = found
    some = [rng.randrange(len(items)) for _ in range(rng.choice([1, 1, 3, len(items)]))]
    match rng.randrange(7):
        case 0:
            items = items[: rng.choice([0, 1, len(items) // 2, len(items) - 1])]
        case 1:
            items += [rng.choice(items)] * rng.choice([1, 2, 1000])
        case 2:
            rng.shuffle(items)
        case 3:
            for at in some:
                items[at] = rng.choice(items)
        case 4 if element in gguf.PACKED:
            for at in some:
                items[at] = _number(rng, element)
        case 4 if name == b"merges":
            known = found[2]
            for at in some:
                left, _, right = rng.choice(known).partition(b" ")
                items[at] = rng.choice(
                    [
                        left,
                        left + right,
                        b" ",
                        left + b" ",
                        b" " + right,
                        right + b" " + left,
                        left + b"  " + right,
                        left * 999 + b" " + right,
                        b"\xff \xfe",
                        left + b" " + right + b" " + left,
                    ]
                )
        case 4 | 5:
            for at in some:
                items[at] = rng.choice(TEXTS) if element == gguf.STRING else _number(rng, element)
        case 6:
            element, first = _any_value(rng)
            items = [first] * len(items)
    key.value = (element, items)
    return None


def _token_ids(file: GgufFile, rng: random.Random) -> None:
    """Special ids out of range or colliding; flags and names of another tokenizer."""
    name, kind, values = rng.choice(
        [
            *((f"{role}_token_id", gguf.U32, [0, 1, 2, 65, 256, 999, 2**31, 2**32 - 1]) for role in ("bos", "eos")),
            ("eot_token_id", gguf.U32, [0, 65, 2**32 - 1]),
            ("unknown_token_id", gguf.U32, [0, 65, 10**6, 2**32 - 1]),
            ("bos_token_id", gguf.I32, [-1, -(2**31), 5]),
            ("add_bos_token", gguf.BOOL, [True, False]),
            ("add_space_prefix", gguf.BOOL, [True, False]),
            ("model", gguf.STRING, [b"llama", b"gpt2", b"bert", b"t5", b"", b"\xff"]),
            (
                "pre",
                gguf.STRING,
                [b"default", b"llama-bpe", b"tekken", b"gpt-4o", b"deepseek-v3", b"falcon", b"?", b""],
            ),
        ]
    )
    key = f"tokenizer.ggml.{name}".encode()
    file.keys = [other for other in file.keys if other.name != key]
    file.keys.append(Key(key, kind, rng.choice(values)))


def _template(file: GgufFile, rng: random.Random) -> None:
    """A chat template that is broken, or that wants to be rendered for ever."""
    file.keys = [key for key in file.keys if key.name != b"tokenizer.chat_template"]
    text = rng.choice(TEMPLATES)
    if rng.random() < 0.3:
        at = rng.randrange(len(CHATML))
        text = CHATML[:at] + rng.choice(["", "{", "}", "%", "'", "{{", "{%", "\\"]) + CHATML[at + rng.randrange(3) :]
    file.keys.append(Key(b"tokenizer.chat_template", gguf.STRING, text.encode()))


def _tensors(file: GgufFile, rng: random.Random) -> None:
    """The table of tensors: names, shapes, types and places that do not fit."""
    if not file.tensors:
        return _keys(file, rng)
    tensor = rng.choice(file.tensors)
    match rng.randrange(10):
        case 0:
            file.tensors.append(copy.copy(tensor))
        case 1:
            file.tensors.remove(tensor)
        case 2:
            tensor.name = rng.choice([*TEXTS, tensor.name + b"x", b"output.weight", b"blk.0.ffn_up.bias"])
        case 3:
            tensor.shape = tensor.shape[::-1]
        case 4:
            tensor.shape = [rng.choice([*NUMBERS["Q"], *tensor.shape, 32, 256]) for _ in range(rng.randrange(6))]
        case 5:
            tensor.kind = rng.choice([*range(45), 2**31, 2**32 - 1])
        case 6:
            tensor.offset = rng.choice([*NUMBERS["Q"], 32, 64, 31, 96])
        case 7:
            number, block, size, _ = rng.choice(list(gguf.TYPES.values()))
            count = int(np.prod(tensor.shape))
            tensor.kind = number
            tensor.data = rng.randbytes(-(-count // block) * size)
        case 8:
            other = rng.choice(file.tensors)
            tensor.name, other.name = other.name, tensor.name
        case 9:
            tensor.data = tensor.data[: rng.choice([0, 1, len(tensor.data) // 2, max(len(tensor.data) - 1, 0)])]
    return None


def _weights(file: GgufFile, rng: random.Random) -> None:
    """Weights and scales that are not finite, or too large for what follows."""
    if not file.tensors:
        return _keys(file, rng)
    for tensor in rng.sample(file.tensors, rng.choice([1, 1, len(file.tensors)])):
        if not tensor.data:
            continue
        data = bytearray(tensor.data)
        number = rng.choice(NUMBERS["f"])
        word = struct.pack("<f", number)
        with np.errstate(over="ignore"):
            half = np.float16(number).tobytes()
        spec = next((spec for spec in gguf.TYPES.values() if spec[0] == tensor.kind), None)
        if spec is None or rng.random() < 0.2:
            data[:] = rng.choice([b"\x00", b"\xff", b"\x7f"]) * len(data)
        elif tensor.kind == 0:
            for at in [0] if rng.random() < 0.5 else range(0, len(data) - 3, 4):
                data[at : at + 4] = word
        else:
            for start in [0] if rng.random() < 0.5 else range(0, len(data) - spec[2] + 1, spec[2]):
                for at in spec[3]:
                    data[start + at : start + at + 2] = half
        tensor.data = bytes(data)
    return None


def _fields(file: GgufFile, rng: random.Random) -> bytes:
    """The fields of the format itself, behind the back of what wrote them."""
    pieces = file.pieces()
    header = [i for i, (what, data) in enumerate(pieces) if data and what not in {"data", "padding"}]
    # Fields whose kind is rare are as likely as those of which there are hundreds.
    kinds = sorted({pieces[i][0] for i in header})
    kind = rng.choice(kinds)
    at = rng.choice([i for i in header if pieces[i][0] == kind])
    what, data = pieces[at]
    match rng.randrange(6):
        case 0:
            bit = rng.randrange(len(data) * 8)
            data = bytearray(data)
            data[bit // 8] ^= 1 << bit % 8
        case 1 if len(data) in {4, 8}:
            layout = {4: "I", 8: "Q"}[len(data)]
            old = struct.unpack("<" + layout, data)[0]
            limit = 1 << 8 * len(data)
            new = rng.choice([*NUMBERS[layout], (old + 1) % limit, (old - 1) % limit, old * 2 % limit])
            data = struct.pack("<" + layout, new)
        case 1 | 2:
            data = rng.randbytes(len(data)) if len(data) < 1 << 20 else data[::-1]
        case 3:
            data = b""
        case 4:
            data = bytes(data) * 2
        case 5:
            other = rng.choice(header)
            pieces[other] = (what, data)
            data = rng.choice(TEXTS)
    pieces[at] = (what, bytes(data))
    return b"".join(piece for _, piece in pieces)


def _cut(file: GgufFile, rng: random.Random) -> bytes:
    """The file ends at, or beside, the end of a field."""
    pieces = file.pieces()
    end = sum(len(data) for _, data in pieces[: rng.randrange(len(pieces))])
    return b"".join(data for _, data in pieces)[: max(end + rng.choice([-1, 0, 1]), 0)]


def _noise(file: GgufFile, rng: random.Random) -> bytes:
    """Bytes flipped, put in, taken out or moved, without regard to what they mean."""
    data = bytearray(file.to_bytes())
    limit = len(data) if rng.random() < 0.3 else min(len(data), 2000)
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        at = rng.randrange(limit)
        match rng.randrange(4):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at:at] = rng.randbytes(rng.choice([1, 4, 8, 100]))
            case 2:
                del data[at : at + rng.choice([1, 4, 8, 100])]
            case 3:
                data[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF])
        limit = max(min(limit, len(data)), 1)
    return bytes(data)


STRUCTURE = [_architecture, _architecture, _change_number, _architecture_name, _keys, _tensors, _tensors, _weights]
WORDS = [_tokens, _tokens, _token_ids, _template]
BYTES = [_fields, _fields, _cut, _noise]


def _named(mutators: list[Any]) -> str:
    return "+".join(mutator.__name__.removeprefix("_") for mutator in mutators)


def gguf_mutant(seed: int, words_only: bool = False) -> tuple[str, bytes]:
    """Returns what is wrong with the mutant of this seed, and its bytes.

    Args:
        seed: Of everything random in it.
        words_only: Whether only its tokenizer and its template are broken.
    """
    rng = random.Random(f"gguf {words_only} {seed}")
    real = real_files()
    name = rng.choice(real) if real and rng.random() < 0.02 else rng.choice(list(SIZES))
    file = copy.deepcopy(base(name))
    pool = WORDS if words_only else STRUCTURE + WORDS
    mutators = [rng.choice(pool) for _ in range(rng.choice([0, 1, 1, 1, 2, 3]) or int(words_only))]
    data = None
    if not mutators or (not words_only and rng.random() < 0.1):
        last = rng.choice(BYTES)
        for mutator in mutators:
            mutator(file, rng)
        return f"{name}: {_named([*mutators, last])}", last(file, rng)
    for mutator in mutators:
        mutator(file, rng)
    data = file.to_bytes()
    return f"{name}: {_named(mutators)}", data


def sound(name: str) -> bytes:
    """Returns the base model of this name, whole."""
    return base(name).to_bytes()
