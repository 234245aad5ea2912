"""Writes a model of random weights for benchmarks: a llama of 1.1 billion weights in Q4_K and Q6_K, as TinyLlama's.

It says nothing, but costs what a real one costs. The tokenizer is the first 32,000 tokens of another file's; the same
bytes are written each time.

    python tools/bench_model.py SOURCE TARGET
"""

from __future__ import annotations

import argparse
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

LAYERS, HIDDEN, FEED_FORWARD, HEADS, KV_HEADS, VOCAB, CONTEXT = 22, 2048, 5632, 32, 4, 32_000, 8192
U32, F32, STRING, ARRAY = 4, 6, 8, 9
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
ALIGNMENT = 32
# Number in the file, weights per block, bytes per block.
TYPES = {"F32": (0, 1, 4), "Q4_K": (12, 256, 144), "Q6_K": (14, 256, 210)}


def read_metadata(path: Path) -> dict[str, tuple[int, Any]]:
    """Returns type and value of each entry of a GGUF file; of an array, the type of its elements and a list."""
    with path.open("rb") as file:
        magic, _, _, count = struct.unpack("<4sIQQ", file.read(24))
        if magic != b"GGUF":
            raise ValueError(f"{path}: no GGUF file")
        entries = {}
        for _ in range(count):
            name = read_value(file, STRING)
            (kind,) = struct.unpack("<I", file.read(4))
            if kind == ARRAY:
                kind, length = struct.unpack("<IQ", file.read(12))
                entries[name] = (kind, [read_value(file, kind) for _ in range(length)])
            else:
                entries[name] = (kind, read_value(file, kind))
    return entries


def read_value(file: BinaryIO, kind: int) -> Any:
    """Returns one value that is no array."""
    if kind == STRING:
        (length,) = struct.unpack("<Q", file.read(8))
        return file.read(length).decode()
    code = "<" + NUMBERS[kind]
    return struct.unpack(code, file.read(struct.calcsize(code)))[0]


def value_bytes(kind: int, value: Any) -> bytes:
    """Returns one value that is no array as the file has it."""
    if kind == STRING:
        data = value.encode()
        return struct.pack("<Q", len(data)) + data
    return struct.pack("<" + NUMBERS[kind], value)


def entry_bytes(name: str, kind: int, value: Any) -> bytes:
    """Returns one entry as the file has it."""
    start = value_bytes(STRING, name)
    if not isinstance(value, list):
        return start + struct.pack("<I", kind) + value_bytes(kind, value)
    return start + struct.pack("<IIQ", ARRAY, kind, len(value)) + b"".join(value_bytes(kind, item) for item in value)


def tokenizer(source: Path) -> dict[str, tuple[int, Any]]:
    """Returns the entries of a byte-level tokenizer cut to the first tokens, with the merges that stay among them."""
    entries = {name: entry for name, entry in read_metadata(source).items() if name.startswith("tokenizer.")}
    tokens = entries["tokenizer.ggml.tokens"][1][:VOCAB]
    known = set(tokens)
    for name, (kind, value) in entries.items():
        if name == "tokenizer.ggml.merges":
            kept = [merge for merge in value if "".join(merge.split(" ")) in known and set(merge.split(" ")) <= known]
            entries[name] = (kind, kept)
        elif isinstance(value, list):
            entries[name] = (kind, value[:VOCAB])
    return entries


def blocks(noise: np.random.Generator, kind: str, count: int) -> bytes:
    """Returns blocks of any bytes whose scales give weights of about 0.02."""
    if kind == "F32":
        return np.ones(count, np.float32).tobytes()
    data = noise.integers(0, 256, (count, TYPES[kind][2]), np.uint8)
    if kind == "Q4_K":  # the mean of the weights is 7.5 steps of the scales, 1 of the minima
        data[:, :4] = np.array([1.2e-4, 9.0e-4], np.float16).view(np.uint8)
    else:
        data[:, 208:] = np.array([1.5e-5], np.float16).view(np.uint8)
    return data.tobytes()


def tensors() -> list[tuple[str, str, tuple[int, ...]]]:
    """Returns name, type and dimensions (innermost first) of each tensor, mixed as `Q4_K_M` mixes them."""
    kv = HIDDEN // HEADS * KV_HEADS
    found: list[tuple[str, str, tuple[int, ...]]] = [
        ("token_embd", "Q4_K", (HIDDEN, VOCAB)),
        ("output", "Q6_K", (HIDDEN, VOCAB)),
        ("output_norm", "F32", (HIDDEN,)),
    ]
    for i in range(LAYERS):
        finer = "Q6_K" if i % 2 == 0 else "Q4_K"
        found += [
            (f"blk.{i}.attn_norm", "F32", (HIDDEN,)),
            (f"blk.{i}.attn_q", "Q4_K", (HIDDEN, HIDDEN)),
            (f"blk.{i}.attn_k", "Q4_K", (HIDDEN, kv)),
            (f"blk.{i}.attn_v", finer, (HIDDEN, kv)),
            (f"blk.{i}.attn_output", "Q4_K", (HIDDEN, HIDDEN)),
            (f"blk.{i}.ffn_norm", "F32", (HIDDEN,)),
            (f"blk.{i}.ffn_gate", "Q4_K", (HIDDEN, FEED_FORWARD)),
            (f"blk.{i}.ffn_up", "Q4_K", (HIDDEN, FEED_FORWARD)),
            (f"blk.{i}.ffn_down", finer, (FEED_FORWARD, HIDDEN)),
        ]
    return [(f"{name}.weight", kind, shape) for name, kind, shape in found]


def write(source: Path, target: Path) -> None:
    """Writes the model, with the tokenizer of `source`."""
    entries: dict[str, tuple[int, Any]] = {
        "general.architecture": (STRING, "llama"),
        "general.name": (STRING, "random 1.1B"),
        "llama.block_count": (U32, LAYERS),
        "llama.context_length": (U32, CONTEXT),
        "llama.embedding_length": (U32, HIDDEN),
        "llama.feed_forward_length": (U32, FEED_FORWARD),
        "llama.attention.head_count": (U32, HEADS),
        "llama.attention.head_count_kv": (U32, KV_HEADS),
        "llama.attention.layer_norm_rms_epsilon": (F32, 1e-5),
        "llama.rope.dimension_count": (U32, HIDDEN // HEADS),
        "llama.rope.freq_base": (F32, 10_000.0),
        "llama.vocab_size": (U32, VOCAB),
        **tokenizer(source),
    }
    listed = tensors()
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(listed), len(entries))
    head += b"".join(entry_bytes(name, kind, value) for name, (kind, value) in entries.items())
    at = 0
    sizes = []
    for name, kind, shape in listed:
        number, weights, size = TYPES[kind]
        head += value_bytes(STRING, name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, number, at)
        sizes.append(int(np.prod(shape)) // weights * size)
        at += -(-sizes[-1] // ALIGNMENT) * ALIGNMENT
    noise = np.random.Generator(np.random.PCG64(11))
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    with partial.open("wb") as file:
        file.write(head + bytes(-len(head) % ALIGNMENT))
        for (_, kind, shape), size in zip(listed, sizes, strict=True):
            file.write(blocks(noise, kind, int(np.prod(shape)) // TYPES[kind][1]) + bytes(-size % ALIGNMENT))
    partial.rename(target)


def main() -> None:
    """Writes the model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path, help="a GGUF file with a byte-level tokenizer")
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    write(options.source, options.target)
    print(f"wrote {options.target}, {options.target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
