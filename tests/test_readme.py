"""README.md: what it shows is what happens."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import adventures as adv
import tiny
from adventures import demo
from adventures.cli import app

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    """Returns the first fenced block of a language that has no other."""
    match = re.search(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    assert match is not None
    return match[1]


def test_the_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    demo.write_table("data/fantasy-library")
    names: dict[str, object] = {}
    exec(compile(block("python"), "README.md", "exec"), names)
    assert names["report"].written == len(demo.rows())  # type: ignore[attr-defined]
    assert len(names["hits"]) == 4  # type: ignore[arg-type]
    assert 1 <= json.loads(names["data"])["weight"] <= 50  # type: ignore[call-overload]
    assert "you should use" in capsys.readouterr().out


# The tiny vocabulary cuts words to letters, of which a document has too many.
@pytest.mark.filterwarnings("ignore::adventures.TruncationWarning")
def test_the_interfaces_of_others(stock: adv.Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    section = README.split("## In what you have already")[1].split("\n## ")[0]
    blocks = re.findall(r"^```py\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 4
    # A tiny checkpoint stands for the reranker, which is not among the models that `make test` pulls.
    model = str(tiny.cross_encoder(tmp_path / "reranker", seed=6))
    names: dict[str, Any] = {"lib": stock, "reranker": adv.Reranker(model)}
    want = adv.Embedder("all-minilm-l6-v2").embed(["a rope", "a lamp"])
    for number, code in enumerate(blocks):
        exec(compile(code.replace("ms-marco-minilm-l6-v2", model), f"README.md, interface {number}", "exec"), names)
        if number == 0:
            assert [row["text"] for row in names["rows"]] in (["a rope", "a lamp"], ["a lamp", "a rope"])
        else:
            assert np.allclose(names["vectors"], want, atol=1e-6)
        if number in (1, 2):
            assert len(names["best"]) == 2
    assert names["alike"].shape == (2, 1)


def test_the_demo_answers_as_shown(tmp_path: Path) -> None:
    shown = re.search(r"^```\n(> .*?)^```$", README, re.DOTALL | re.MULTILINE)
    assert shown is not None
    result = CliRunner().invoke(app, ["demo", "--data", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert shown[1] in result.output


def test_numbers_of_the_stock() -> None:
    assert f"{len(demo.rows())} pieces of advice" in README
    assert f"demo's {len(demo.questions())} held-out questions" in README
    assert f"| {len(demo.off_topic())} questions that" in README


def test_commands_exist() -> None:
    commands = set(re.findall(r"(?:^\$ |`)adventures ([a-z]+)", README, re.MULTILINE))
    assert {"sync", "ask", "chat", "eval", "models"} <= commands
    assert commands <= set(app.commands)
