"""The arrows that CONTRIBUTING.md draws are the arrows of the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RUST = ROOT / "adventures" / "src"
PYTHON = ROOT / "python" / "adventures"


def drawn(language: str) -> dict[str, set[str]]:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found = re.search(rf"```arrows {language}\n(.*?)```", text, re.DOTALL)
    assert found, f"CONTRIBUTING.md draws no arrows for {language}"
    return {line.split(":")[0]: set(line.split(":")[1].split()) for line in found[1].strip().splitlines()}


def module(path: Path, root: Path) -> str:
    return path.relative_to(root).parts[0].removesuffix(path.suffix)


def rust_uses() -> dict[str, set[str]]:
    uses: dict[str, set[str]] = {}
    for path in RUST.rglob("*.rs"):
        name = module(path, RUST)
        if name == "lib":
            continue
        code = re.sub(r"//.*", "", path.read_text(encoding="utf-8"))
        found = set(re.findall(r"\bcrate::(\w+)", code))
        for group in re.findall(r"\bcrate::\{(.*?)\};", code, re.DOTALL):
            depth, word = 0, ""
            for letter in group + ",":
                depth += (letter == "{") - (letter == "}")
                if letter == "," and depth == 0:
                    found.add(re.match(r"\s*(\w+)", word)[1])
                    word = ""
                else:
                    word += letter
        # Capitalized names are lib.rs's re-exports, which their own modules define.
        uses.setdefault(name, set()).update(use for use in found if use[0].islower())
    return uses


def python_uses() -> dict[str, set[str]]:
    uses: dict[str, set[str]] = {}
    for path in PYTHON.rglob("*.py"):
        name = module(path, PYTHON)
        if name in {"__init__", "__main__"}:
            continue
        found = uses.setdefault(name, set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
                if node.module == "adventures":
                    names = [f"adventures.{alias.name}" for alias in node.names]
            else:
                continue
            found.update(
                parts[1] for parts in (name.split(".") for name in names) if parts[0] == "adventures" and len(parts) > 1
            )
    return uses


@pytest.mark.parametrize(("language", "uses"), [("rust", rust_uses), ("python", python_uses)])
def test_arrows(language: str, uses: object) -> None:
    arrows = drawn(language)
    order = list(arrows)
    for name, below in arrows.items():
        upward = [other for other in below if order.index(other) >= order.index(name)]
        assert not upward, f"{name} is drawn above {upward}: arrows point down only"
    found = {name: {use for use in used if use in arrows} - {name} for name, used in uses().items()}
    assert set(found) == set(arrows), "a module is not drawn, or a drawn one is gone"
    undrawn = {name: used - arrows[name] for name, used in found.items() if used - arrows[name]}
    assert not undrawn, f"arrows that CONTRIBUTING.md does not draw: {undrawn}"


def test_files_are_short() -> None:
    long = []
    for path in [*RUST.rglob("*.rs"), *(ROOT / "adventures-py").rglob("*.rs"), *PYTHON.rglob("*.py")]:
        code = path.read_text(encoding="utf-8").split("#[cfg(test)]\nmod tests {")[0]
        if path.name != "tests.rs" and code.count("\n") > 500:
            long.append(path.name)
    assert not long
