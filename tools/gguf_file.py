"""GGUF files written from Python, piece by piece: for tests that need a model, and for tools that break one.

Follows https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, version 3.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# Numbers of value types.
U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
PACKED = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", I64: "q", F64: "d"}

# Tensor types: number, weights per block, bytes per block, and where in a block half-precision scales lie.
TYPES: dict[str, tuple[int, int, int, tuple[int, ...]]] = {
    "F32": (0, 1, 4, ()),
    "F16": (1, 1, 2, (0,)),
    "Q4_0": (2, 32, 18, (0,)),
    "Q4_1": (3, 32, 20, (0, 2)),
    "Q5_0": (6, 32, 22, (0,)),
    "Q5_1": (7, 32, 24, (0, 2)),
    "Q8_0": (8, 32, 34, (0,)),
    "Q2_K": (10, 256, 84, (80, 82)),
    "Q3_K": (11, 256, 110, (108,)),
    "Q4_K": (12, 256, 144, (0, 2)),
    "Q5_K": (13, 256, 176, (0, 2)),
    "Q6_K": (14, 256, 210, (208,)),
    "BF16": (30, 1, 2, ()),
}


@dataclass
class Key:
    """A key of the metadata. An array's value is the number of its element type and a list."""

    name: bytes
    kind: int
    value: Any


@dataclass
class Tensor:
    """A tensor, fastest dimension first; it lies where `offset` says, else at the next aligned place."""

    name: bytes
    shape: list[int]
    kind: int
    data: bytes
    offset: int | None = None


Piece = tuple[str, bytes]


def _string(what: str, text: bytes) -> list[Piece]:
    return [(f"length of {what}", struct.pack("<Q", len(text))), (what, text)]


def _value(kind: int, value: Any, what: str) -> list[Piece]:
    if kind == STRING:
        return _string(what, value)
    if kind == ARRAY:
        element, items = value
        head = [("element type", struct.pack("<I", element)), ("array length", struct.pack("<Q", len(items)))]
        if element in PACKED:
            return [*head, (what, struct.pack(f"<{len(items)}{PACKED[element]}", *items))]
        return head + [piece for item in items for piece in _value(element, item, what)]
    return [(what, struct.pack("<" + PACKED[kind], value))]


@dataclass
class GgufFile:
    """A file in parts."""

    keys: list[Key] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    alignment: int = 32

    def add(self, name: str, kind: int, value: Any) -> None:
        """Adds a key; texts are encoded."""
        if kind == STRING:
            value = value.encode()
        elif kind == ARRAY and value[0] == STRING:
            value = (STRING, [text.encode() for text in value[1]])
        self.keys.append(Key(name.encode(), kind, value))

    def add_tensor(self, name: str, numbers: np.ndarray) -> None:
        """Adds a tensor in single precision, outermost dimension first as numpy has it."""
        data = np.ascontiguousarray(numbers, np.float32).tobytes()
        self.tensors.append(Tensor(name.encode(), list(numbers.shape[::-1]), TYPES["F32"][0], data))

    def pieces(self) -> list[Piece]:
        """Returns the file's fields in order, each with what it is."""
        pieces: list[Piece] = [
            ("magic", b"GGUF"),
            ("version", struct.pack("<I", 3)),
            ("tensor count", struct.pack("<Q", len(self.tensors))),
            ("key count", struct.pack("<Q", len(self.keys))),
        ]
        for key in self.keys:
            pieces += [*_string("key", key.name), ("value type", struct.pack("<I", key.kind))]
            pieces += _value(key.kind, key.value, "value")
        blobs: list[Piece] = []
        end = 0
        for tensor in self.tensors:
            padding = -end % self.alignment
            offset = end + padding if tensor.offset is None else tensor.offset
            pieces += [*_string("tensor name", tensor.name), ("rank", struct.pack("<I", len(tensor.shape)))]
            pieces += [("dimension", struct.pack("<Q", size)) for size in tensor.shape]
            pieces += [("tensor type", struct.pack("<I", tensor.kind)), ("offset", struct.pack("<Q", offset))]
            blobs += [("padding", bytes(padding)), ("data", tensor.data)]
            end += padding + len(tensor.data)
        header = sum(len(data) for _, data in pieces)
        return [*pieces, ("padding", bytes(-header % self.alignment)), *blobs]

    def to_bytes(self) -> bytes:
        """Returns the file."""
        return b"".join(data for _, data in self.pieces())


def random_tensor(name: str, shape: list[int], kind: str, random: np.random.Generator, scale: float = 0.05) -> Tensor:
    """Returns a tensor of random blocks whose scales are small; for floats, random numbers."""
    number, block, size, halves = TYPES[kind]
    count = int(np.prod(shape))
    if block == 1:
        numbers = (random.standard_normal(count) * scale).astype(np.float32)
        if kind == "F16":
            data = numbers.astype(np.float16).tobytes()
        elif kind == "BF16":
            data = (numbers.view(np.uint32) >> 16).astype(np.uint16).tobytes()
        else:
            data = numbers.tobytes()
        return Tensor(name.encode(), shape, number, data)
    blocks = random.integers(0, 256, (count // block, size), dtype=np.uint8)
    for at in halves:
        scales = (random.random(len(blocks)) * scale / 16).astype(np.float16)
        blocks[:, at : at + 2] = scales.view(np.uint8).reshape(-1, 2)
    return Tensor(name.encode(), shape, number, blocks.tobytes())


def parse(data: bytes) -> GgufFile:
    """Returns a whole and sound file in parts; for real files that are to be broken."""
    at = 4

    def read(kind: int) -> Any:
        nonlocal at
        if kind == STRING:
            length = read(U64)
            at += length
            return data[at - length : at]
        if kind == ARRAY:
            element, length = read(U32), read(U64)
            if element in PACKED:
                layout = f"<{length}{PACKED[element]}"
                at += struct.calcsize(layout)
                return element, list(struct.unpack_from(layout, data, at - struct.calcsize(layout)))
            return element, [read(element) for _ in range(length)]
        layout = "<" + PACKED[kind]
        at += struct.calcsize(layout)
        return struct.unpack_from(layout, data, at - struct.calcsize(layout))[0]

    read(U32)
    tensors, keys = read(U64), read(U64)
    file = GgufFile()
    for _ in range(keys):
        name, kind = read(STRING), read(U32)
        file.keys.append(Key(name, kind, read(kind)))
    sizes = {number: (block, size) for number, block, size, _ in TYPES.values()}
    entries = []
    for _ in range(tensors):
        name, rank = read(STRING), read(U32)
        shape = [read(U64) for _ in range(rank)]
        entries.append((name, shape, read(U32), read(U64)))
    start = at + -at % file.alignment
    for name, shape, kind, offset in entries:
        block, size = sizes[kind]
        length = int(np.prod(shape)) // block * size
        file.tensors.append(Tensor(name, shape, kind, data[start + offset : start + offset + length]))
    return file
