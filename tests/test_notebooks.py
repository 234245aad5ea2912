"""The notebooks run from a clean kernel, and what is committed is their whole output."""

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

import notebooks
from adventures import demo

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def outputs(notebook: nbformat.NotebookNode) -> Iterator[nbformat.NotebookNode]:
    for cell in notebook.cells:
        yield from cell.get("outputs", [])


def printed(notebook: nbformat.NotebookNode) -> str:
    return "".join(output.text for output in outputs(notebook) if output.output_type == "stream")


@pytest.fixture(scope="module")
def shop() -> tuple[nbformat.NotebookNode, float]:
    start = time.perf_counter()
    notebook = notebooks.run(ROOT / "notebooks" / "01-fantasy-shop.ipynb")
    return notebook, time.perf_counter() - start


def test_the_shop_runs_from_a_clean_kernel_within_a_minute(shop):
    notebook, seconds = shop
    assert [output for output in outputs(notebook) if output.get("name") == "stderr"] == []
    assert seconds < 60


def test_the_shop_shows_a_picture(shop):
    pictures = [output for output in outputs(shop[0]) if "image/png" in output.get("data", {})]
    assert len(pictures) == 1


def test_the_shop_answers_with_a_citation_and_refuses_what_it_does_not_sell(shop):
    text = printed(shop[0])
    assert f"{len(demo.rows())} read, {len(demo.rows())} written, 0 skipped" in text
    assert f"1 updated, {len(demo.rows()) - 1} unchanged" in text
    assert "[1]" in text.split("Slippers of Sainted Burglary")[0].splitlines()[-1]
    assert text.endswith("The library holds nothing on that.\nfound: False\n")


def test_late_interaction_shows_which_tokens_fit():
    notebook = notebooks.run(ROOT / "notebooks" / "02-late-interaction.ipynb")
    assert [output for output in outputs(notebook) if output.get("name") == "stderr"] == []
    assert len([output for output in outputs(notebook) if "image/png" in output.get("data", {})]) == 1
    text = printed(notebook)
    assert text.splitlines()[1].endswith("Where the glow sinks, so would you.")
    assert "14.360 is the score, 14.360\n" in text
    assert "pool_factor=4:  3334 vectors" in text


def run(name):
    """A notebook run afresh, in less than a minute of one processor; a clock would tell what else the machine does."""
    before = os.times()
    notebook = notebooks.run(ROOT / "notebooks" / name)
    after = os.times()
    assert after.children_user + after.children_system - before.children_user - before.children_system < 60
    assert [output for output in outputs(notebook) if output.get("name") == "stderr"] == []
    return notebook


def test_answers_follow_the_table():
    notebook = run("03-follow-a-table.ipynb")
    lines = printed(notebook).splitlines()
    told = [line for line in lines if line.startswith("version ") and "embedded" in line]
    stock = len(demo.rows())
    assert told[0].startswith(f"version 1, full: {stock} added")
    assert told[1] == f"version 2, feed: 1 added, 0 updated, 0 deleted, {stock} unchanged, 0 tokens embedded"
    assert told[3] == f"version 3, feed: 0 added, 1 updated, 0 deleted, {stock} unchanged, 0 tokens embedded"
    assert told[5].startswith("version 5, feed: 0 added, 0 updated, 1 deleted")
    assert told[7].startswith(f"version 8, full: 0 added, 0 updated, 0 deleted, {stock + 1} unchanged, 0 tokens")
    answers = ["Ledger of Likely Sums" in line for line in lines if line.startswith("[1] ")]
    assert answers == [False, False, True, True, False, True, True]
    assert "the column 'price' was int64 in version 6, and is string in version 7" in printed(notebook)


def test_quality_is_drawn_against_cost():
    notebook = run("04-evaluate.ipynb")
    assert len([output for output in outputs(notebook) if "image/png" in output.get("data", {})]) == 2
    text = printed(notebook)
    assert len(re.findall(r"passages, nDCG@10 0\.\d{3}", text)) == 4
    assert re.search(r"^held out +precision [01]\.\d{3}  recall (0\.9|1\.0)", text, re.MULTILINE)
    assert "refused rightly       100%" in text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_what_is_committed_is_small_whole_and_names_no_machine(path: Path):
    assert path.stat().st_size < 300 * 1024
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert [output for output in outputs(notebook) if output.output_type == "error"] == []
    shown = printed(notebook) + "".join(
        str(text)
        for output in outputs(notebook)
        for kind, text in output.get("data", {}).items()
        if kind != "image/png"
    )
    for private in ("/tmp", "/home", "/root", str(Path.home()), str(ROOT)):
        assert private not in shown
