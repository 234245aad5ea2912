"""Writes what ggml says of blocks of weights: the references of adventures/src/kernels/quant/tests.rs.

Needs llama-cpp-python. One row of each format is made of noise by ggml's own quantization; kept are its bytes, every
seventeenth of the weights that ggml unpacks them to, and ggml's dot product with another row (`vec_dot`: the order of
additions of one activation row where the matrix is not packed, on a CPU with AVX2).

    python tools/goldens_quant.py [--out tests/goldens]
"""

from __future__ import annotations

import argparse
import ctypes
import json
from pathlib import Path

import llama_cpp
import numpy as np

WIDTH = 512
EVERY = 17
# Numbers of ggml's types (`enum ggml_type`); Q8_0, Q8_1 and Q8_K are what activations are rounded to.
TYPES = {
    "Q4_0": 2,
    "Q4_1": 3,
    "Q5_0": 6,
    "Q5_1": 7,
    "Q8_0": 8,
    "Q2_K": 10,
    "Q3_K": 11,
    "Q4_K": 12,
    "Q5_K": 13,
    "Q6_K": 14,
    "IQ4_NL": 20,
    "IQ4_XS": 23,
}
FLOATS = ctypes.POINTER(ctypes.c_float)
TO_FLOAT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, FLOATS, ctypes.c_int64)
FROM_FLOAT = ctypes.CFUNCTYPE(None, FLOATS, ctypes.c_void_p, ctypes.c_int64)
VEC_DOT = ctypes.CFUNCTYPE(
    None,
    ctypes.c_int,
    FLOATS,
    ctypes.c_size_t,
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
)


class Traits(ctypes.Structure):
    """`struct ggml_type_traits`."""

    _fields_ = [
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", TO_FLOAT),
    ]


class CpuTraits(ctypes.Structure):
    """`struct ggml_type_traits_cpu`."""

    _fields_ = [
        ("from_float", FROM_FLOAT),
        ("vec_dot", VEC_DOT),
        ("vec_dot_type", ctypes.c_int),
        ("nrows", ctypes.c_int64),
    ]


def noise(n: int, seed: int) -> np.ndarray:
    """Returns numbers in [-1, 1), as `noise` of the tests makes them."""
    state = (seed * 2_654_435_761 + 12345) % 2**32
    out = np.empty(n, np.float32)
    for i in range(n):
        state = (state * 1_664_525 + 1_013_904_223) % 2**32
        out[i] = np.float32(state >> 8) / np.float32(8_388_608.0) - np.float32(1.0)
    return out


def main() -> None:
    """Writes the golden file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "tests" / "goldens")
    options = parser.parse_args()
    libraries = Path(llama_cpp.__file__).parent / "lib"
    base = ctypes.CDLL(str(libraries / "libggml-base.so"))
    cpu = ctypes.CDLL(str(libraries / "libggml-cpu.so"))
    base.ggml_get_type_traits.restype = ctypes.POINTER(Traits)
    cpu.ggml_get_type_traits_cpu.restype = ctypes.POINTER(CpuTraits)
    cpu.ggml_cpu_init()
    weights, x = noise(WIDTH, 1), noise(WIDTH, 2)
    formats = {}
    for name, number in TYPES.items():
        traits = base.ggml_get_type_traits(number).contents
        of_cpu = cpu.ggml_get_type_traits_cpu(number).contents
        size = WIDTH // traits.blck_size * traits.type_size
        packed = (ctypes.c_uint8 * size)()
        base.ggml_quantize_chunk(
            number,
            weights.ctypes.data_as(FLOATS),
            packed,
            ctypes.c_int64(0),
            ctypes.c_int64(1),
            ctypes.c_int64(WIDTH),
            None,
        )
        unpacked = np.empty(WIDTH, np.float32)
        traits.to_float(ctypes.addressof(packed), unpacked.ctypes.data_as(FLOATS), WIDTH)
        rounded = (ctypes.c_uint8 * (8 * WIDTH))()
        other = cpu.ggml_get_type_traits_cpu(of_cpu.vec_dot_type).contents
        other.from_float(x.ctypes.data_as(FLOATS), ctypes.addressof(rounded), WIDTH)
        dot = ctypes.c_float()
        of_cpu.vec_dot(WIDTH, ctypes.byref(dot), 0, ctypes.addressof(packed), 0, ctypes.addressof(rounded), 0, 1)
        formats[name] = {
            "bytes": bytes(packed).hex(),
            "weights": [float(w) for w in unpacked[::EVERY]],
            "dot": dot.value,
        }
        print(name, size, dot.value, float(weights @ x))
    golden = {"llama_cpp_python": llama_cpp.__version__, "width": WIDTH, "every": EVERY, "formats": formats}
    target = options.out / "quant.json"
    target.write_text(json.dumps(golden, separators=(",", ":")) + "\n")
    print(f"wrote {target}, {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
