"""Broken model files, a few of those of `make mutants`: each gives a text or a clear error, and no process dies."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import adventures as adv
import gguf_file
import mutant_models
import mutant_tokenizers
import mutants

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from Linux's /proc")


@pytest.mark.parametrize(("kind", "count"), [("gguf", 300), ("tokenizer", 100)])
def test_mutants(kind: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # A tenth of a second is usual; beside other tests, only what never ends is too slow.
    monkeypatch.setattr(mutants, "SECONDS", 5.0)
    report = mutants.run([f"{kind}:{seed}" for seed in range(count)], jobs=2)
    assert not report.failures, "\n".join(f"{name}: {why}" for name, why in report.failures.items())
    assert sum(report.outcomes.values()) == count
    assert min(report.outcomes["text"], report.outcomes["refused"]) > count // 20, "mutants are to be of both kinds"


def test_the_same_seed_is_the_same_mutant() -> None:
    assert mutant_models.gguf_mutant(7) == mutant_models.gguf_mutant(7)
    assert mutant_models.gguf_mutant(7) != mutant_models.gguf_mutant(8)


def test_a_child_that_dies_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deadly = tmp_path / "deadly.py"
    deadly.write_text(
        "import json, os, sys\n"
        "names = sys.stdin.read().split()\n"
        "for name in names:\n"
        "    print(json.dumps({'begun': name, 'what': 'x'}), flush=True)\n"
        "    if name == 'gguf:1':\n"
        "        os.abort()\n"
        "    print(json.dumps({'seconds': 0, 'peak': 0, 'errors': [], 'wrong': []}), flush=True)\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(mutants, "__file__", str(deadly))
    report = mutants.run([f"gguf:{seed}" for seed in range(4)], jobs=1)
    assert list(report.failures) == ["gguf:1"]
    assert report.outcomes == {"text": 3, "died": 1}
    assert "status -6" in report.failures["gguf:1"][1]


def broken(path: Path, *, row: int | None = None, template: str | None = None) -> adv.Generator:
    """A small model with a weight that is no number in the embedding of one token, or with another template."""
    file = copy.deepcopy(mutant_models.base("qwen3"))
    embedding = next(tensor for tensor in file.tensors if tensor.name == b"token_embd.weight")
    if row is not None:
        numbers = np.frombuffer(embedding.data, np.float32).reshape(embedding.shape[::-1]).copy()
        numbers[row, 3] = np.nan
        embedding.data = numbers.tobytes()
    if template is not None:
        file.keys = [key for key in file.keys if key.name != b"tokenizer.chat_template"]
        file.add("tokenizer.chat_template", gguf_file.STRING, template)
    path.write_bytes(file.to_bytes())
    return adv.Generator(path, threads=1)


def test_a_weight_that_is_no_number_fails_who_meets_it(tmp_path: Path) -> None:
    sound = broken(tmp_path / "sound.gguf")
    (row,) = sound.tokenize("q")
    generator = broken(tmp_path / "broken.gguf", row=row)
    expected = sound.complete("the cat", max_tokens=3).text()
    for _ in range(3):
        with pytest.raises(ValueError, match="the model computed NaN for a logit"):
            generator.complete("a q", max_tokens=3).text()
        assert generator.complete("the cat", max_tokens=3).text() == expected


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "does not come to an end"),
        ("{% set x = ['a'] %}" + "{% set x = [x, x] %}" * 40 + "{{ x | tojson }}", "builds values of more than"),
        ("{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}", "puts a namespace into another value"),
        ("{{ " + "not " * 50_000 + "1 }}", "an expression of more than 256 operations"),
        ("{% if 1 %}" + "{% elif 1 %}" * 50_000 + "{% endif %}", "more than 256 elifs"),
        ("{{ ('a' * 99999).replace('a', 'b' * 99999) }}", "builds values of more than"),
        ("{{ raise_exception('x' * 99999) }}", r"x{399}…$"),
    ],
)
def test_a_hostile_template_fails_its_own_request(tmp_path: Path, template: str, message: str) -> None:
    generator = broken(tmp_path / "broken.gguf", template=template)
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            generator.generate("Hi", max_tokens=2)
        assert generator.complete("the cat", max_tokens=2).text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {
                "normalizer": {
                    "type": "Sequence",
                    "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 40,
                }
            },
            "its steps make a text 2199023255552 times as long",
        ),
        ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "not a tokenizer: chunk size must be non-zero"),
        (
            {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "////" * 9}},
            "it has 4294967295 bytes, it has 27",
        ),
        (
            {"added_tokens": [{"id": 1, "content": "x" * 9999}]},
            "an added token of 9999 bytes, at most 1024 are allowed",
        ),
        ({"added_tokens": "x" * 9999}, "…$"),
    ],
    ids=["grows", "panics", "lies", "slow", "long"],
)
def test_a_hostile_tokenizer_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "model"
    mutant_tokenizers.prepare("bytelevel", path)
    tokenizer = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
    (path / "tokenizer.json").write_text(json.dumps(tokenizer | change), encoding="utf-8")
    with pytest.raises(ValueError, match=message) as raised:
        adv.Generator(path)
    assert len(str(raised.value)) < 1000
