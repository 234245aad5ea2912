"""Broken model files, a few of those of `make mutants`: each gives a text or a clear error, and no process dies."""

from __future__ import annotations

from pathlib import Path

import pytest

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
    assert mutants.mutant_models.gguf_mutant(7) == mutants.mutant_models.gguf_mutant(7)
    assert mutants.mutant_models.gguf_mutant(7) != mutants.mutant_models.gguf_mutant(8)


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
