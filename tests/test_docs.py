"""docs/: what the pages show is what happens."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
import tiny_colbert
from adventures import ColbertIndex, IndexHit, Ranking

ROOT = Path(__file__).parents[1]
NAME = "answerdotai/answerai-colbert-small-v1"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A seeded tiny checkpoint of the same layout, which reads as many tokens: the page shows calls, not figures."""
    path = tiny_colbert.colbert(tmp_path_factory.mktemp("page") / "model", "bare")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 512}))
    tensors = tiny.load_safetensors(path / "model.safetensors")
    shape = (512, tiny.HIDDEN)
    tensors["bert.embeddings.position_embeddings.weight"] = np.random.default_rng(1).normal(size=shape).astype("f4")
    tiny.save_safetensors(path / "model.safetensors", tensors)
    return path


# The tiny vocabulary cuts words to letters, of which a query has too many.
@pytest.mark.filterwarnings("ignore::adventures.TruncationWarning")
def test_the_page_on_late_interaction_runs(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "late-interaction.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 7
    assert len(re.findall(r"^```", page, re.MULTILINE)) == 2 * len(blocks), "every block is run"
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks):
        # The weights of the card's model are not to be had everywhere; a tiny checkpoint stands for them.
        exec(compile(block.replace(NAME, str(checkpoint)), f"late-interaction.md, block {number}", "exec"), names)
        if number == 1:
            assert [ranked.rank for ranked in names["ranking"]] == [1, 2, 3, 4]
            assert names["best"].text in names["docs"]
            want = names["ranker"].scores(names["query"], names["docs"])
            assert names["best"].score == want.max()
        elif number == 2:
            assert [result["rank"] for result in names["results"]] == [1, 2, 3]
            assert Path(names["path"]).is_dir()
        elif number == 3:
            assert len(names["index"]) == 5
    assert all(isinstance(hit, IndexHit) for hit in names["hits"])
    assert len(names["hits"]) == 5
    assert [len(hits) for hits in names["batch"]] == [2, 2]
    assert {hit.id for hit in names["some"]} == {"hayao", "walt"}
    assert names["embedded_query"].shape == (32, tiny_colbert.DIM)
    assert isinstance(names["ranking"], Ranking)
    ids = [id_ for id_ in ColbertIndex.open("indexes/ghibli").ids() if id_ != "totoro"]
    assert names["scores"].tolist() == [names["ranking"].get_score_by_docid(id_) for id_ in ids]
    assert capsys.readouterr().out.count("\n") >= 9


def test_pages_are_linked() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").iterdir():
        assert f"(docs/{page.name})" in readme


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert "://" in link or (page.parent / link).exists(), f"{page.name}: {link}"
