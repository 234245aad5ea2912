"""Writes a tiny Mistral with two LoRA adapters, and the vectors that LLM2Vec makes of some texts (`make goldens`).

- tests/goldens/tiny-llm2vec/base/: a Mistral with random weights, in single precision, and a tokenizer that writes
  words as SentencePiece does, with a space before the first.
- tests/goldens/tiny-llm2vec/mntp/, supervised/, causal/: adapters as PEFT saves them, the first two of the model
  without a head, the second rank-stabilized, with ranks of its own for some modules, the third of the whole causal
  model. Their weights are random too.
- tests/goldens/tiny-llm2vec.npz: texts, an instruction, how many tokens were read, and unit vectors, of the first
  adapter alone and of both.
- tests/goldens/tiny-llm2vec.json: the logits `(tokens, vocabulary)` of a text, of the causal model with the third.

The reference is transformers' own MistralModel under a mask of zeros, PEFT's merge, and the text path of llm2vec 0.2.3
(llm2vec.py: `_convert_to_str`, `prepare_for_tokenization`, `tokenize`, `get_pooling`), written down anew: that package
does not run with current transformers.
"""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import MistralConfig, MistralForCausalLM, MistralModel, PreTrainedModel, PreTrainedTokenizerFast

FOLDER = Path(__file__).parents[1] / "tests" / "goldens" / "tiny-llm2vec"
NAME = "mistralai/Mistral-7B-Instruct-v0.2"
SPECIAL = ["<unk>", "<s>", "</s>"]
WORDS = ["the", "dragon", "rope", "night", "ing", "INST"]
LETTERS = [*string.ascii_letters, *string.digits, *".,:;!?'\"()[]/@#$%^&*-é"]
SEPARATOR = "!@#$%^&*()"
MAX_LENGTH, DOC_MAX_LENGTH = 512, 400

INSTRUCTION = "Given a question, retrieve passages that answer it:"
TEXTS = [
    "",
    " ",
    "a",
    "The dragon sleeps at night.",
    "  climbing a rope,  twice  ",
    "line\nbreaks\tand\r\ntabs",
    "[INST] not an instruction [/INST]",
    "unknown → symbols ☃",
    "the rope " * 120,
    "the dragon, " * 300,
    "x" * 450,
    "one " + "y" * 900,
    *(f"the {WORDS[i % 4]} number {i} of {'abcdefgh'[: i % 8]}" for i in range(10)),
]


def tokenizer() -> dict[str, Any]:
    """Returns a `tokenizer.json` of Mistral's kind: pieces of words, a space before the first, a start token."""
    pieces = ["▁", *LETTERS]
    merges: list[list[str]] = []
    for word in WORDS:
        # Each word is put together letter by letter, and the space before it comes last.
        for end in range(2, len(word) + 1):
            pair = [word[: end - 1], word[end - 1]]
            if pair not in merges:
                merges.append(pair)
        merges.append(["▁", word])
    tokens = list(dict.fromkeys([*SPECIAL, *pieces, *("".join(pair) for pair in merges)]))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    start = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    return {
        "version": "1.0",
        "added_tokens": [{"id": id_, "content": token, **flags} for id_, token in enumerate(SPECIAL)],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [start, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [start, {"Sequence": {"id": "A", "type_id": 0}}, start, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": False,
            "vocab": {token: id_ for id_, token in enumerate(tokens)},
            "merges": merges,
        },
    }


def fill(model: torch.nn.Module, seed: int, scale: float) -> None:
    """Sets all parameters that can be trained to random numbers, always the same."""
    random = np.random.Generator(np.random.PCG64(seed))
    for _, weight in sorted(model.named_parameters()):
        if weight.requires_grad:
            value = random.standard_normal(tuple(weight.shape)) * scale + (1.0 if weight.ndim == 1 else 0.0)
            weight.data = torch.from_numpy(value.astype(np.float32))


def write(path: Path, value: Any) -> None:
    """Writes JSON."""
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def write_base() -> None:
    """Writes the model and its tokenizer."""
    file = tokenizer()
    config = MistralConfig(
        vocab_size=len(file["model"]["vocab"]),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=96,
        max_position_embeddings=640,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        # Causal Mistral would see no more than this; LLM2Vec's mask has no window.
        sliding_window=7,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = MistralForCausalLM(config)
    fill(model, 21, 0.15)
    model.save_pretrained(FOLDER / "base")
    (FOLDER / "base" / "generation_config.json").unlink(missing_ok=True)
    write(FOLDER / "base" / "tokenizer.json", file)
    write(FOLDER / "base" / "tokenizer_config.json", {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True})
    saved = json.loads((FOLDER / "base" / "config.json").read_bytes())
    write(FOLDER / "base" / "config.json", {**saved, "_name_or_path": NAME})


def write_adapter(name: str, model: PreTrainedModel, config: LoraConfig, seed: int) -> None:
    """Writes an adapter of a model."""
    wrapped = get_peft_model(model, config)
    fill(wrapped, seed, 0.1)
    wrapped.save_pretrained(FOLDER / name)
    path = FOLDER / name / "adapter_config.json"
    saved = json.loads(path.read_bytes())
    saved["target_modules"] = sorted(saved["target_modules"])
    write(path, {**saved, "base_model_name_or_path": "../base"})
    (FOLDER / name / "README.md").unlink(missing_ok=True)


def adapted(model: PreTrainedModel, names: list[str]) -> PreTrainedModel:
    """Returns a model with adapters merged into it, one after the other."""
    for name in names:
        model = PeftModel.from_pretrained(model, FOLDER / name).merge_and_unload()
    return model.eval()


class Reference:
    """LLM2Vec's text path and pooling over a MistralModel whose tokens all see each other."""

    def __init__(self, adapters: list[str]) -> None:
        base = FOLDER / "base"
        model = MistralModel.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
        self.model = adapted(model, adapters)
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(base / "tokenizer.json"), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
        )

    def ids(self, text: str, *, special: bool) -> list[int]:
        """Returns the tokens of a text, the first 512 of them."""
        found = self.tokenizer(text, add_special_tokens=special, truncation=True, max_length=MAX_LENGTH)
        return list(found["input_ids"])

    def shortened(self, text: str) -> str:
        """Returns the first words of a text, as many as are at most 400 tokens."""
        length = len(self.ids(text, special=False))
        while length > DOC_MAX_LENGTH:
            words = text.split()
            text = " ".join(words[: int(len(words) * (DOC_MAX_LENGTH / length))])
            length = len(self.ids(text, special=False))
        return text

    def tokens(self, instruction: str, text: str) -> tuple[list[int], int]:
        """Returns what is read, and how many of its last tokens are pooled."""
        text = self.shortened(text)
        marked = f"{instruction.strip()} {SEPARATOR}{text}" if instruction else f"{SEPARATOR}{text}"
        marked = f"[INST] {marked.strip()} [/INST]"
        parts = marked.split(SEPARATOR)
        return self.ids("".join(parts), special=True), len(self.ids(parts[1], special=False))

    def vector(self, ids: list[int], pooled: int) -> np.ndarray:
        """Returns the unit vector of a text."""
        mask = torch.zeros(1, 1, len(ids), len(ids))
        # A mask of four dimensions is taken as it is: zeros hide nothing.
        with torch.no_grad():
            hidden = self.model(torch.tensor([ids]), attention_mask=mask, use_cache=False).last_hidden_state[0]
        vector = hidden[-pooled:].mean(0).double().numpy()
        return (vector / np.linalg.norm(vector)).astype(np.float32)


def main() -> None:
    """Writes the files."""
    write_base()
    base = FOLDER / "base"
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    inner = MistralModel.from_pretrained(base, dtype=torch.float32)
    write_adapter("mntp", inner, LoraConfig(r=4, lora_alpha=8, target_modules=targets), 22)
    inner = MistralModel.from_pretrained(base, dtype=torch.float32)
    patterns = {"rank_pattern": {"layers.1.mlp.up_proj": 2, "v_proj": 3}, "alpha_pattern": {"o_proj": 1}}
    targets = ["q_proj", "v_proj", "o_proj", "up_proj"]
    write_adapter(
        "supervised", inner, LoraConfig(r=4, lora_alpha=3, use_rslora=True, target_modules=targets, **patterns), 23
    )
    causal = MistralForCausalLM.from_pretrained(base, dtype=torch.float32)
    write_adapter("causal", causal, LoraConfig(r=4, lora_alpha=8, target_modules=targets), 24)
    arrays: dict[str, np.ndarray] = {"texts": np.array(json.dumps(TEXTS)), "instruction": np.array(INSTRUCTION)}
    for key, adapters in {"mntp": ["mntp"], "both": ["mntp", "supervised"]}.items():
        reference = Reference(adapters)
        for kind, instruction in {"query": INSTRUCTION, "passage": ""}.items():
            tokens = [reference.tokens(instruction, text) for text in TEXTS]
            arrays[f"{key}/{kind}"] = np.stack([reference.vector(*read) for read in tokens])
            arrays[f"tokens/{kind}"] = np.array([len(ids) for ids, _ in tokens])
    model = MistralForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    model = adapted(model, ["causal"])
    ids = reference.ids("the dragon sleeps, a rope in the night", special=True)
    with torch.no_grad():
        logits = model(torch.tensor([ids]), use_cache=False).logits[0]
    golden = {"ids": ids, "logits": [[round(value, 5) for value in row] for row in logits.tolist()]}
    path = FOLDER.with_suffix(".json")
    path.write_text(json.dumps(golden, separators=(",", ":")) + "\n", encoding="utf-8")
    np.savez_compressed(FOLDER.with_suffix(".npz"), **arrays)
    for path in FOLDER.rglob("*.safetensors"):
        path.chmod(0o644)  # the library makes it private


if __name__ == "__main__":
    main()
