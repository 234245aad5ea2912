"""The arrows that CONTRIBUTING.md draws are the arrows of the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[1]
RUST = ROOT / "adventures" / "src"
SERVER = ROOT / "adventures-server" / "src"
PYTHON = ROOT / "python" / "adventures"


def drawn(language: str) -> dict[str, set[str]]:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found = re.search(rf"```arrows {language}\n(.*?)```", text, re.DOTALL)
    assert found, f"CONTRIBUTING.md draws no arrows for {language}"
    return {line.split(":")[0]: set(line.split(":")[1].split()) for line in found[1].strip().splitlines()}


def module(path: Path, root: Path) -> str:
    return path.relative_to(root).parts[0].removesuffix(path.suffix)


def rust_uses(root: Path = RUST) -> dict[str, set[str]]:
    uses: dict[str, set[str]] = {}
    for path in root.rglob("*.rs"):
        name = module(path, root)
        if name in {"lib", "main"}:
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


def exports() -> dict[str, str]:
    """Which module each name of the package comes from."""
    found = {}
    for node in ast.walk(ast.parse((PYTHON / "__init__.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("adventures."):
            found.update({alias.asname or alias.name: node.module.split(".")[1] for alias in node.names})
    return found


def python_uses() -> dict[str, set[str]]:
    uses: dict[str, set[str]] = {}
    exported = exports()
    for path in PYTHON.rglob("*.py"):
        name = module(path, PYTHON)
        if name in {"__init__", "__main__"}:
            continue
        found = uses.setdefault(name, set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path.name}: a relative import, which hides where it leads"
                names = [node.module or ""]
                if node.module == "adventures":
                    names = [f"adventures.{exported.get(alias.name, alias.name)}" for alias in node.names]
            else:
                continue
            parts = [name.split(".") for name in names]
            found.update(part[1] for part in parts if part[0] == "adventures" and len(part) > 1)
        # The Rust part is below everything, and the package's version is nobody's.
        found -= {"_adventures", "__version__"}
    return uses


def server_uses() -> dict[str, set[str]]:
    return rust_uses(SERVER)


@pytest.mark.parametrize(("language", "uses"), [("rust", rust_uses), ("server", server_uses), ("python", python_uses)])
def test_arrows(language: str, uses: Callable[[], dict[str, set[str]]]) -> None:
    arrows = drawn(language)
    order = list(arrows)
    for name, below in arrows.items():
        assert below <= set(order), f"{name} is drawn above {below - set(order)}, which is nowhere drawn itself"
        upward = [other for other in below if order.index(other) >= order.index(name)]
        assert not upward, f"{name} is drawn above {upward}: arrows point down only"
    found = {name: used - {name} for name, used in uses().items()}
    assert not set(found) - set(arrows), "modules that CONTRIBUTING.md does not draw"
    assert not set(arrows) - set(found), "modules that CONTRIBUTING.md draws and that are gone"
    undrawn = {name: used - arrows[name] for name, used in found.items() if used - arrows[name]}
    assert not undrawn, f"arrows that CONTRIBUTING.md does not draw: {undrawn}"


def tree() -> list[Path]:
    """The paths of CONTRIBUTING.md's tree. A line is an indentation, names, and after two spaces what they are."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found = re.search(r"## The tree\n\n```\n(.*?)```", text, re.DOTALL)
    assert found, "CONTRIBUTING.md draws no tree"
    paths: list[Path] = []
    folders: list[str] = []
    for line in found[1].splitlines():
        indent = len(line) - len(line.lstrip())
        if indent > 8 or not line:
            continue  # the line before goes on
        names = re.split(r" {2,}", line.strip())[0].split()
        folders = folders[: indent // 2]
        paths.extend(ROOT.joinpath(*folders, name) for name in names)
        folders.append(names[0])
    return paths


def test_the_tree_is_that_of_the_files() -> None:
    paths = tree()
    gone = [str(path.relative_to(ROOT)) for path in paths if not path.exists()]
    assert not gone, f"in CONTRIBUTING.md's tree and nowhere else: {gone}"
    modules = [
        path
        for root in (RUST, SERVER, PYTHON)
        for path in root.iterdir()
        if path.suffix in {".rs", ".py"} or path.is_dir()
    ]
    missing = {path.name for path in modules} - {path.name for path in paths}
    assert not missing - {"__pycache__", "__main__.py", "__init__.py"}, f"not in CONTRIBUTING.md's tree: {missing}"


def test_files_are_short() -> None:
    long = []
    for path in [
        *RUST.rglob("*.rs"),
        *SERVER.rglob("*.rs"),
        *(ROOT / "adventures-py").rglob("*.rs"),
        *PYTHON.rglob("*.py"),
    ]:
        code = path.read_text(encoding="utf-8").split("#[cfg(test)]\nmod tests {")[0]
        if path.name != "tests.rs" and code.count("\n") > 500:
            long.append(path.name)
    assert not long
