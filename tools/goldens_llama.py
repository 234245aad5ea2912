"""Writes what llama.cpp says: the references of adventures/tests/decoder_parity.rs.

Needs llama-cpp-python and the two models in the cache. Each prompt is read at once and continued greedily; each step's
two largest logits are kept, so that a test can tell a wrong token from a tie.

    python tools/goldens_llama.py [--cache DIR] [--out tests/goldens]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

STEPS = 48
MODELS = {
    "smollm2-135m-instruct": "SmolLM2-135M-Instruct.Q4_1.gguf",
    "gemma-3-270m": "gemma-3-270m-q4_k_m.gguf",
}

SHOP = (
    "The shop stands where the river road meets the pass, and its door is never locked before midnight. Whoever "
    "comes in\nfrom the snow finds three rooms. The first holds what travellers ask for: rope, lamp oil, waxed "
    "boots, dried plums, a\nkettle that is always warm. The second is kept for those who know what they want: a "
    "compass that points to the nearest\nbridge, gloves in which no blade slips, a whistle that only horses "
    "hear. The third room has no shelves at all. There the\nkeeper listens, and writes down what a customer is "
    "afraid of, and says which of her things would help, and which would only\nbe heavy. She sells little in "
    "that room and is proud of it. "
)

ADVICE = (
    "For climbing a frozen waterfall you should use the Winter Stag boots, because their soles grip wet ice. For "
    "crossing\na marsh at night you should use the lantern of the heron, because it shows firm ground in green "
    "and deep water in red. For\ntalking to a river you should use a reed flute cut before dawn, because the "
    "water knows its voice. For finding a lost\nsheep you should use the bell of echoes, because it answers "
    "whatever bleats within a mile. For sleeping among wolves you\nshould use the grey blanket, because it "
    "smells of the pack. For opening a door that was never closed you should use the\nglass key, because it "
    "forgets which side it is on. "
)

PROMPTS = {
    "opening": "The old lighthouse keeper climbed the stairs, as on every evening for forty years, "
    "lit the lamp one last time and then",
    "list": "Five things that every traveller should carry across the northern moors, with the reason for each:\n\n1.",
    "code": 'def median(numbers):\n    """Return the middle value of a list of numbers."""\n'
    "    ordered = sorted(numbers)\n",
    "letter": "Dear Sir,\n\nI write to complain about the kettle that I bought in your shop on the third of March. It",
    "recipe": "Bread soup for six\n\nIngredients:\n- 400 g stale bread\n- 2 onions\n-",
    "json": '{"name": "rope", "length_m": 30, "price": 4.5}\n'
    '{"name": "lamp oil", "litres": 2, "price": 3.25}\n{"name":',
    "sums": "12 + 7 = 19\n23 + 8 = 31\n45 + 6 = 51\n17 + 5 =",
    "question": "Question: Why does ice float on water?\nAnswer:",
    "french": "Il était une fois, dans un petit village au bord de la mer,",
    "german": "Der Wirt stellte die Laterne auf den Tisch und sagte: „",
    "polish": "Stary młyn nad rzeką stał pusty od lat, aż pewnego wieczoru",
    "japanese": "昔々、あるところに、おじいさんとおばあさんが",
    "symbols": "🐉🐉🐉 → 🔥; 🐑🐑 → 🧶; 🐝🐝🐝🐝 →",
    "rust": "/// Returns the largest of `numbers`, `None` where there are none.\n"
    "fn largest(numbers: &[i64]) -> Option<i64> {\n",
    "table": "| item | weight | price |\n|---|---|---|\n| rope | 3 kg | 4.50 |\n| lamp | 1 kg | 7.00 |\n|",
    "dialogue": '"Have you ever seen the sea?" asked the boy.\n"Once," said the ferryman. "It was',
    "one word": "The",
    "spaces": "a    b\n\n\n\tc\r\n   d  e\n",
    "shop": SHOP + SHOP.replace("river road", "coast road").replace("horses", "dogs") + "One evening",
    "advice": ADVICE * 4 + "For crossing a river in flood you should use",
}


def chat(question: str) -> str:
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def continue_greedily(model: llama_cpp.Llama, ids: list[int]) -> list[dict[str, Any]]:
    model.reset()
    model.eval(ids)
    steps = []
    for _ in range(STEPS):
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(model.ctx, -1), (model.n_vocab(),))
        best = np.argpartition(logits, -2)[-2:]
        best = best[np.argsort(-logits[best], kind="stable")]
        steps.append({"ids": [int(i) for i in best], "logits": [round(float(logits[i]), 5) for i in best]})
        model.eval([int(best[0])])
    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "adventures")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "tests" / "goldens")
    options = parser.parse_args()
    for name, file in MODELS.items():
        path = options.cache / "models" / name / file
        model = llama_cpp.Llama(str(path), n_ctx=1024, n_batch=1024, n_ubatch=1024, n_threads=2, verbose=False)
        prompts = dict(PROMPTS)
        if name.startswith("smollm2"):
            prompts["list"] = chat(PROMPTS["list"].removesuffix("\n\n1."))
            prompts["question"] = chat("Why does ice float on water?")
            prompts["french"] = chat("Comment fait-on du pain sans levure ?")
        out = []
        for title, text in prompts.items():
            ids = model.tokenize(text.encode(), special=True)
            print(f"{name} {title}: {len(ids)} tokens")
            out.append({"title": title, "text": text, "ids": ids, "steps": continue_greedily(model, ids)})
        golden = {"model": name, "file": file, "llama_cpp_python": llama_cpp.__version__, "prompts": out}
        target = options.out / f"llama-{name}.json"
        target.write_text(json.dumps(golden, separators=(",", ":")) + "\n")
        print(f"wrote {target}, {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
