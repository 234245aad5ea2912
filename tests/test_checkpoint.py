"""Damaged files of a model's directory: each error names the file, and none is a panic."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import adventures as adv
import tiny

if TYPE_CHECKING:
    from collections.abc import Callable

GEMMA = Path(__file__).parent / "goldens" / "tiny-gemma"


@pytest.fixture
def gemma(tmp_path: Path) -> Path:
    """A copy of the tiny Gemma, to be damaged."""
    return shutil.copytree(GEMMA, tmp_path / "gemma")


def change(path: Path, *keys: Any, to: Any) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    place = value
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = to
    path.write_text(json.dumps(value), encoding="utf-8")


DAMAGE: list[tuple[str, Callable[[Path], Any], str]] = [
    ("tokenizer.json", lambda path: path.write_bytes(b""), "EOF"),
    ("tokenizer.json", lambda path: path.write_bytes(path.read_bytes()[:900]), "EOF"),
    ("tokenizer.json", lambda path: path.write_bytes(b"\xff" * 99), "expected value"),
    ("tokenizer.json", lambda path: path.write_text("{}"), "Model missing"),
    ("tokenizer.json", lambda path: change(path, "decoder", "decoders", to="\ud83d"), "not a tokenizer"),
    ("config.json", lambda path: path.write_text("[]"), "not a JSON object"),
    ("config.json", lambda path: change(path, "hidden_size", to=10**30), "hidden_size"),
    ("config.json", lambda path: change(path, "num_attention_heads", to=0), "heads"),
    ("model.safetensors", lambda path: path.write_bytes(b""), "not a safetensors file"),
    ("model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-4]), "not a safetensors file"),
    ("model.safetensors", lambda path: path.write_bytes(b"\xff" * 99), "not a safetensors file"),
    ("model.safetensors", lambda path: path.unlink(), "no model.safetensors"),
]


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGE, ids=[f"{name}: {word}" for name, _, word in DAMAGE])
def test_a_damaged_file_is_named(gemma: Path, name: str, damage: Callable[[Path], Any], message: str) -> None:
    damage(gemma / name)
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        adv.Generator(gemma)
    assert str(gemma) in str(raised.value)
    assert message in str(raised.value)


def test_a_start_token_that_is_nowhere_defined_is_found_at_once(tmp_path: Path) -> None:
    path = tiny.bert(tmp_path / "bert", seed=1)
    adv.Embedder(path)
    change(path / "tokenizer.json", "post_processor", "special_tokens", to={})
    with pytest.raises(ValueError, match=r"tokenizer.json: not a tokenizer: "):
        adv.Embedder(path)


def test_a_tokenizer_larger_than_the_model_is_refused_with_both_sizes(gemma: Path) -> None:
    size = adv.Generator(gemma).vocab_size
    vocabulary = json.loads((gemma / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    change(gemma / "tokenizer.json", "model", "vocab", to={**vocabulary, "<far>": size + 6})
    with pytest.raises(ValueError, match=f"the tokenizer has {size + 7} entries, the model {size} logits"):
        adv.Generator(gemma)


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{% if %}", "the chat template cannot be read: syntax error"),
        ("{{ 'x' | nothing_of_the_kind }}", "nothing_of_the_kind"),
        ("(" * 100_000, ""),
        ("{{ " + "(" * 100_000, "the chat template cannot be read"),
        ("x" * (2 << 20), "the chat template has 2097152 bytes, at most 1048576"),
        ([{"name": "tools", "template": "x"}], 'none of the chat templates is named "default"'),
        (7, "neither a text nor a list"),
    ],
)
def test_a_broken_template_is_no_reason_not_to_load(gemma: Path, template: Any, problem: str) -> None:
    plain = adv.Generator(gemma).complete("ab", max_tokens=4).text()
    change(gemma / "tokenizer_config.json", "chat_template", to=template)
    generator = adv.Generator(gemma)
    assert generator.complete("ab", max_tokens=4).text() == plain
    if problem:
        with pytest.raises(ValueError, match=problem):
            generator.generate("ab")


def test_a_template_that_is_not_text_is_no_reason_not_to_load(gemma: Path) -> None:
    (gemma / "chat_template.jinja").write_bytes(b"\xff\xfe")
    generator = adv.Generator(gemma)
    assert generator.complete("ab", max_tokens=1).stats.prompt_tokens == 3
    with pytest.raises(ValueError, match=r"chat_template.jinja"):
        generator.generate("ab")
