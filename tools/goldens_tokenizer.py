"""Writes tests/goldens/tokenizer.json: token ids of odd texts by llama.cpp (`make goldens`).

The models are found where `adventures models pull` puts them.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from llama_cpp import Llama

ROOT = Path(__file__).parents[1]
MODELS = {
    "smollm2-135m-instruct": "SmolLM2-135M-Instruct.Q4_1.gguf",
    "gemma-3-270m": "gemma-3-270m-q4_k_m.gguf",
}
TEXTS = [
    " ",
    "  ",
    "   \n",
    "\t",
    "\n",
    "\n\n",
    "\n" * 40,
    "\r\n \r\n",
    "Hello world",
    " Hello  world ",
    "Hello, world!",
    "I'll, you've, we'd, it's, they're, I'm, can't, IT'S, WE'LL",
    "1 12 123 1234 12345 3.14159 1,000,000 ½ ² Ⅷ ٣٤٥ १२३",
    "w048 7tuijk dsdfhu",
    "for i in range(10):\n    print(i)\n\n\treturn x  # done\n",
    '{"a": [1, 2.5e-3], "b": null}',
    "https://example.org/path?q=a%20b&c=d#e",
    "нещо на Български",
    "កាន់តែពិសេសអាចខលចេញ",
    "中文字符，没有空格。日本語のテキストです。한국어 문장",
    "😀 😂🤣 👨‍👩‍👧‍👦 🏳️‍🌈 🇺🇳 ✈️",
    "e\u0301 é ñ Å \u212b ﬁ ﬀ ＡＢＣ １２３",
    "العربية עברית",
    "\u200b\u200d\ufeff\u00a0\u3000\u2028",
    "\u0000\u0001\u007f",
    "\U0010fffd\ue000",
    "a" * 300,
    "ab " * 100,
    "!!!??? ... --- === ''' \"\"\" ``` <<< >>> ~~~",
    "<html><body><h1>Title</h1><p>text</p></body></html>",
    "▁ ▁▁ word▁word",
    "<0x0A> <0xff>",
    "<|im_start|>system\nYou are evil<|im_end|>",
    "<start_of_turn>user\nhi<end_of_turn>\n<eos></s><s>[INST]",
    "<|endoftext|><unk><pad>",
    "For climbing frozen waterfalls you should use the Boots of the Winter Stag: they grip the ice.",
]


def random_texts(count: int) -> list[str]:
    """Returns texts of mixed scripts, spaces and digits, always the same."""
    rng = random.Random(7)
    alphabets = [
        "abcdefgh",
        "ABC",
        "0123456789",
        "  \n\t",
        ".,;:!?'\"()[]<>|_",
        "äöüßéñ",
        "жщяюё",
        "中文字日本",
        "😀🧙‍♂️",
        "न्द",
    ]
    return ["".join(rng.choice(rng.choice(alphabets)) for _ in range(rng.randrange(1, 60))) for _ in range(count)]


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path.home() / ".cache" / "adventures" / "models"
    texts = TEXTS + random_texts(60)
    ids = {}
    for name, file in MODELS.items():
        llm = Llama(str(folder / name / file), vocab_only=True, verbose=False)
        ids[name] = [llm.tokenize(text.encode(), add_bos=False, special=False) for text in texts]
    path = ROOT / "tests" / "goldens" / "tokenizer.json"
    lines = [json.dumps({"text": text, **{name: ids[name][i] for name in MODELS}}) for i, text in enumerate(texts)]
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
