"""The Rust part for NVIDIA's cards, where `adventures-cuda` is installed: it takes the place of the one for CPUs.

It is the same crate with candle's CUDA kernels, so that there is one set of classes, whatever computes. It cannot be
loaded without a driver, which is why the package for CPUs does not hold it.
"""

from __future__ import annotations

import sys
from importlib import import_module, util

_missing = 'this build of adventures has no CUDA; `pip install adventures-cuda` adds it, or use "cpu"'


def load() -> None:
    """Loads the build with CUDA in place of the one without, where it is installed, of this version, and loads."""
    global _missing
    if util.find_spec("adventures_cuda") is None:
        return
    from importlib import metadata  # a tenth of a second, for those alone who have it

    try:
        own, other = metadata.version("adventures"), metadata.version("adventures-cuda")
    except metadata.PackageNotFoundError:  # a directory of that name, and not what pip installed
        return
    if own != other:
        _missing = f"adventures-cuda {other} is installed beside adventures {own}; pip install adventures-cuda=={own}"
        return
    try:
        module = import_module("adventures_cuda._adventures")
    except ImportError as e:  # no driver, or a library that the linker does not find
        _missing = f"adventures-cuda is installed and does not load: {e}"
        return
    sys.modules["adventures._adventures"] = module


def missing() -> str:
    """Returns why there is no CUDA, for an error."""
    return _missing
