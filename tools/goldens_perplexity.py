"""Writes how well llama.cpp predicts a text: the references of adventures/tests/perplexity.rs.

Needs llama-cpp-python and the two models in the cache. The text is this repository's: documents, then sources. It
is read in windows that know nothing of each other; each window's sum of -log p over all tokens but the first is kept.

    python tools/goldens_perplexity.py [--tokens 1000] [--cache DIR] [--out tests/goldens]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import llama_cpp
import numpy as np

from goldens_llama import MODELS

ROOT = Path(__file__).parents[1]
WINDOW = 512


def text() -> str:
    """Returns the repository's prose and code."""
    sources = sorted((ROOT / "python").rglob("*.py")) + sorted((ROOT / "adventures" / "src").rglob("*.rs"))
    paths = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sources]
    return "\n\n".join(path.read_text(encoding="utf-8") for path in paths)


def surprise(model: llama_cpp.Llama, ids: list[int]) -> float:
    """Returns the sum of -log p of all ids but the first."""
    model.reset()
    model.eval(ids)
    total = 0.0
    for i, following in enumerate(ids[1:]):
        found = llama_cpp.llama_get_logits_ith(model.ctx, i)
        logits = np.ctypeslib.as_array(found, (model.n_vocab(),)).astype(np.float64)
        top = logits.max()
        total += top + np.log(np.exp(logits - top).sum()) - logits[following]
    return float(total)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "adventures")
    parser.add_argument("--out", type=Path, default=ROOT / "tests" / "goldens")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name, file in MODELS.items():
        path = options.cache / "models" / name / file
        model = llama_cpp.Llama(
            str(path), n_ctx=WINDOW, n_batch=WINDOW, n_ubatch=WINDOW, n_threads=2, logits_all=True, verbose=False
        )
        start = [model.token_bos()] if model.metadata.get("tokenizer.ggml.add_bos_token") == "true" else []
        ids = model.tokenize(text().encode(), add_bos=False)[: options.tokens]
        step = WINDOW - len(start)
        windows = [start + ids[at : at + step] for at in range(0, len(ids), step)]
        sums = [round(surprise(model, window), 4) for window in windows]
        golden = {
            "model": name,
            "file": file,
            "llama_cpp_python": llama_cpp.__version__,
            "windows": [{"ids": window, "surprise": total} for window, total in zip(windows, sums, strict=True)],
        }
        target = options.out / f"perplexity-{name}.json"
        target.write_text(json.dumps(golden, separators=(",", ":")) + "\n")
        predicted = sum(len(window) - 1 for window in windows)
        print(f"wrote {target}: perplexity {np.exp(sum(sums) / predicted):.4f} over {predicted} tokens")


if __name__ == "__main__":
    main()
