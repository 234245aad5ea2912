"""A library with token vectors beside its table: found by them, in step with the table, whoever dies when.

KILLS=100 kills a hundred syncs in place of a few.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

import adventures as adv
import tiny_colbert
from adventures import late
from adventures.library import Library
from killing import kill
from test_cli import invoke
from words import WordEmbedder

TESTS = Path(__file__).parent
KILLS = int(os.environ.get("KILLS", "4"))
COLUMNS: dict[str, Any] = {"id": "id", "text": "{text}"}
FEED = {"delta.enableChangeDataFeed": "true"}
WORDS = [
    "a",
    "the",
    "rope",
    "dragon",
    "sleeps",
    "at",
    "night",
    "climb",
    "red",
    "potion",
    "lamp",
    "cave",
    "boots",
    "ice",
    "river",
]


def rows(count: int, *, start: int = 0) -> pa.Table:
    rng = random.Random(start)
    texts = [" ".join(rng.choices(WORDS, k=6)) + f" {number}" for number in range(start, start + count)]
    return pa.table({"id": range(start, start + count), "text": texts, "price": [n % 7 for n in range(count)]})


@pytest.fixture(scope="module")
def colbert(tmp_path_factory: pytest.TempPathFactory) -> adv.ColBERT:
    return adv.ColBERT(tiny_colbert.colbert(tmp_path_factory.mktemp("colbert") / "model", "stanford"))


@pytest.fixture
def delta(tmp_path: Path) -> Path:
    path = tmp_path / "delta"
    write_deltalake(path, rows(60), configuration=FEED)
    return path


@pytest.fixture
def library(tmp_path: Path, colbert: adv.ColBERT) -> Library:
    return Library.open(tmp_path / "library", embedder=WordEmbedder(), colbert=colbert)


def exact(library: Library, query: str, k: int, among: Any = None) -> list[tuple[str, float]]:
    """The best passages of the table as it is, by scores of their texts."""
    table = library.table.to_arrow().select(["id", "text"]).to_pylist()
    wanted = [row for row in table if among is None or among(row)]
    assert library.colbert
    scores = library.colbert.scores(query, [row["text"] for row in wanted])
    best = sorted(zip((row["id"] for row in wanted), scores.tolist(), strict=True), key=lambda one: (-one[1], one[0]))
    return best[:k]


def in_step(library: Library, query: str = "the dragon sleeps") -> None:
    """What is found by tokens is what the table holds, no more and no less."""
    everything = len(library)
    hits = library.search(query, everything + 5, retrieval="colbert")
    want = dict(exact(library, query, everything))
    assert {hit.id: hit.score for hit in hits} == pytest.approx(want, abs=1e-3)
    assert len({hit.source.version for hit in hits}) == 1


def folders(library: Library) -> list[str]:
    root = Path(library.path) / "passages.colbert"
    return sorted(folder.name for folder in root.iterdir()) if root.exists() else []


class TestSearch:
    def test_finds_what_maxsim_says(self, library: Library, delta: Path) -> None:
        report = library.sync(delta, **COLUMNS)
        assert (report.colbert, report.colbert_truncated, report.passages) == (60, 0, 60)
        for query in ("a dragon at night", "red potion", "7"):
            hits = library.search(query, 5, retrieval="colbert")
            want = exact(library, query, 5)
            assert [hit.id for hit in hits] == [id_ for id_, _ in want]
            assert [hit.score for hit in hits] == pytest.approx([score for _, score in want], abs=1e-3)
            same = {hit.id: hit for hit in library.search(query, 60)}
            for hit in hits:
                one = same[hit.id]
                assert (hit.text, hit.metadata, hit.source) == (one.text, one.metadata, one.source)
                assert hit.similarity == pytest.approx(one.similarity, abs=1e-6)

    def test_a_filter_is_the_tables(self, library: Library, delta: Path) -> None:
        library.sync(delta, **COLUMNS)
        hits = library.search("a dragon", 50, retrieval="colbert", where={"price": {"lt": 2}})
        assert {hit.metadata["price"] for hit in hits} == {0, 1}
        cheap = {hit.id for hit in hits}
        want = [id_ for id_, _ in exact(library, "a dragon", 50, lambda row: row["id"] in cheap)]
        assert [hit.id for hit in hits] == want
        assert library.search("a dragon", retrieval="colbert", where={"price": 99}) == []

    def test_with_words_with_diversity_and_with_a_reranker(self, library: Library, delta: Path) -> None:
        library.sync(delta, **COLUMNS)
        fused = library.search("17", 3, retrieval="colbert", hybrid=True)
        assert fused[0].text.split()[-1] == "17", "the only passage that has the word"
        plain = library.search("dragon", 5, retrieval="colbert")
        assert library.search("dragon", 5, retrieval="colbert", mmr=1.0)[0] == plain[0]
        assert {hit.id for hit in library.search("dragon", 5, retrieval="colbert", mmr=0.1)} != {h.id for h in plain}

        class Length:
            def scores(self, query: str, docs: list[str]) -> Any:
                return np.array([len(doc) for doc in docs], np.float32)

        best = library.search("dragon", 2, retrieval="colbert", rerank=Length())
        assert best[0].score == max(len(hit.text) for hit in library.search("dragon", 50, retrieval="colbert"))

    def test_ids_with_quotes(self, tmp_path: Path, library: Library) -> None:
        write_deltalake(tmp_path / "odd", pa.table({"id": ["it's", '"a"', "é%'"], "text": ["a rope", "b", "c d"]}))
        library.sync(tmp_path / "odd", **COLUMNS)
        in_step(library)

    def test_an_empty_library(self, tmp_path: Path, library: Library) -> None:
        assert library.search("x", retrieval="colbert") == []
        write_deltalake(tmp_path / "none", rows(0))
        library.sync(tmp_path / "none", **COLUMNS)
        assert library.search("x", retrieval="colbert") == []

    def test_chat_retrieves_by_tokens(self, library: Library, delta: Path, smollm2: adv.Generator) -> None:
        library.sync(delta, **COLUMNS)
        chat = adv.Chat(library, smollm2, retrieval="colbert", max_tokens=4)
        with chat.ask("the dragon sleeps") as answer:
            assert answer.sources[0].id == exact(library, "the dragon sleeps", 1)[0][0]
        with pytest.raises(ValueError, match="retrieval must be 'dense' or 'colbert', not 'x'"):
            adv.Chat(library, smollm2, retrieval="x")  # type: ignore[arg-type]


class TestSync:
    def test_only_what_changed_is_embedded(self, library: Library, delta: Path) -> None:
        library.sync(delta, **COLUMNS)
        write_deltalake(delta, rows(5, start=60), mode="append")
        report = library.sync(delta, **COLUMNS)
        assert (report.added, report.colbert) == (5, 5)
        in_step(library)
        DeltaTable(delta).update(predicate="id < 3", updates={"text": "concat('new ', text)"})
        report = library.sync(delta, **COLUMNS)
        assert (report.updated, report.colbert) == (3, 3)
        in_step(library)
        DeltaTable(delta).update(predicate="id >= 60", updates={"price": "70"})
        before = folders(library)
        report = library.sync(delta, **COLUMNS)
        assert (report.updated, report.colbert) == (5, 0)
        assert set(folders(library)) < set(before), "the files of before are of use"
        in_step(library)
        DeltaTable(delta).delete("id % 2 = 0")
        report = library.sync(delta, **COLUMNS)
        assert (report.deleted, report.colbert) == (33, 0)
        in_step(library)
        assert library.sync(delta, **COLUMNS).changed is False

    def test_passages_of_a_row_that_got_shorter_are_gone(self, tmp_path: Path, library: Library) -> None:
        for text, passages in (("word " * 40, 4), ("word " * 12, 2), ("word", 1)):
            write_deltalake(tmp_path / "long", pa.table({"id": [1], "text": [text]}), mode="overwrite")
            report = library.sync(tmp_path / "long", **COLUMNS, max_tokens=10, overlap=0)
            assert (report.passages, report.colbert) == (passages, passages)
            in_step(library)

    def test_long_passages_are_counted(self, tmp_path: Path, library: Library) -> None:
        write_deltalake(tmp_path / "long", pa.table({"id": [1, 2], "text": ["x " * 61, "x"]}))
        report = library.sync(tmp_path / "long", **COLUMNS)
        assert (report.colbert, report.colbert_truncated) == (2, 1)

    def test_each_version_has_its_own(self, library: Library, delta: Path, colbert: adv.ColBERT) -> None:
        library.sync(delta, **COLUMNS)
        DeltaTable(delta).delete("id < 50")
        library.sync(delta, **COLUMNS)
        in_step(library)
        old = Library.open(library.path, embedder=WordEmbedder(), colbert=colbert, version=0)
        in_step(old)
        assert len(old) == 60
        assert len(folders(library)) == 2
        DeltaTable(delta).delete("id < 55")
        library.sync(delta, **COLUMNS, keep=1)
        assert len(folders(library)) == 1
        assert len(old.search("a", 99, retrieval="colbert")) == 60, "what was opened stays readable"

    def test_a_library_gets_them_later(self, tmp_path: Path, delta: Path, colbert: adv.ColBERT) -> None:
        plain = Library.open(tmp_path / "l", embedder=WordEmbedder())
        plain.sync(delta, **COLUMNS)
        library = Library.open(tmp_path / "l", embedder=WordEmbedder(), colbert=colbert)
        with pytest.raises(ValueError, match="has no token vectors; a sync makes them"):
            library.search("a", retrieval="colbert")
        report = library.sync(delta, **COLUMNS)
        assert (report.changed, report.added, report.colbert, report.tokens) == (True, 0, 60, 0)
        in_step(library)
        assert plain.search("a")
        with pytest.raises(ValueError, match="without their model; open it with colbert="):
            plain.search("a", retrieval="colbert")
        with pytest.raises(ValueError, match=r"keeps token vectors made by model, which would fall behind"):
            plain.sync(delta, **COLUMNS)
        with pytest.raises(ValueError, match="drop_colbert leaves out what colbert= makes"):
            library.sync(delta, **COLUMNS, drop_colbert=True)
        assert plain.sync(delta, **COLUMNS, drop_colbert=True).changed
        with pytest.raises(ValueError, match="has no token vectors"):
            library.search("a", retrieval="colbert")
        assert not plain.sync(delta, **COLUMNS).changed
        plain.sync(delta, **COLUMNS, where="id > 1", keep=1)
        assert folders(library) == []

    def test_another_model_makes_them_anew(
        self, library: Library, delta: Path, tmp_path: Path, colbert: adv.ColBERT
    ) -> None:
        library.sync(delta, **COLUMNS)
        assert library.sync(delta, **COLUMNS, nbits=2).colbert == 60
        assert not library.sync(delta, **COLUMNS).changed, "it keeps its bits"
        other = adv.ColBERT(tiny_colbert.colbert(tmp_path / "other", "pylate"))
        second = Library.open(library.path, embedder=WordEmbedder(), colbert=other)
        with pytest.raises(ValueError, match=r"were made by model .*, not by other"):
            second.search("a", retrieval="colbert")
        assert second.sync(delta, **COLUMNS).colbert == 60
        in_step(second)
        for wrong in (3, True, "4"):
            with pytest.raises(ValueError, match=r"nbits must be 1, 2, 4 or 32, not"):
                library.sync(delta, **COLUMNS, nbits=wrong)  # type: ignore[arg-type]

    @pytest.mark.parametrize("damage", ["gone", "torn", "emptied"])
    def test_damaged_files_are_told_and_made_anew(
        self, damage: str, library: Library, delta: Path, colbert: adv.ColBERT
    ) -> None:
        library.sync(delta, **COLUMNS)
        folder = Path(library.path) / "passages.colbert" / folders(library)[0]
        if damage == "gone":
            shutil.rmtree(folder)
        else:
            for file in folder.iterdir():
                if damage == "emptied" or file.suffix != ".json":
                    file.write_bytes(file.read_bytes()[: 0 if damage == "emptied" else 100])
        fresh = Library.open(library.path, embedder=WordEmbedder(), colbert=colbert)
        with pytest.raises(
            adv.AdventuresError, match=r"are damaged: .* delete |no token vectors at .* makes them anew"
        ):
            fresh.search("a", retrieval="colbert")
        write_deltalake(delta, rows(1, start=100), mode="append")
        assert fresh.sync(delta, **COLUMNS).colbert == 61
        in_step(fresh)

    def test_a_failure_leaves_all_as_it_was(
        self, library: Library, delta: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        library.sync(delta, **COLUMNS)
        before = folders(library)
        write_deltalake(delta, rows(600, start=60), mode="append")
        read = late.Reader.embed_documents

        def breaks(self: Any, texts: list[str]) -> Any:
            if self.read > 300:
                raise MemoryError("no more")
            return read(self, texts)

        monkeypatch.setattr(late.Reader, "embed_documents", breaks)
        with pytest.raises(MemoryError, match="no more"):
            library.sync(delta, **COLUMNS)
        assert folders(library) == before
        in_step(library)
        monkeypatch.undo()
        assert library.sync(delta, **COLUMNS).colbert == 600
        in_step(library)

    def test_what_it_is_not_for(self, tmp_path: Path, colbert: adv.ColBERT, delta: Path) -> None:
        with pytest.raises(ValueError, match="kept on a file system, not at s3://bucket/x"):
            Library.open("s3://bucket/x", embedder=WordEmbedder(), colbert=colbert)
        with pytest.raises(TypeError, match="colbert must be a ColBERT, not str"):
            Library.open(tmp_path / "l", embedder=WordEmbedder(), colbert="x")  # type: ignore[arg-type]
        library = Library.open(tmp_path / "l", embedder=WordEmbedder())
        with pytest.raises(ValueError, match="retrieval must be 'dense' or 'colbert', not 'tokens'"):
            library.search("x", retrieval="tokens")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="nbits=2 is of token vectors"):
            library.sync(delta, **COLUMNS, nbits=2)


class TestKilled:
    @pytest.mark.timeout(120 + 20 * KILLS)
    def test_at_any_moment(self, library: Library, delta: Path, colbert: adv.ColBERT) -> None:
        """SIGKILL in syncs that add, change and delete: a reader finds one version, table and tokens alike."""
        write_deltalake(delta, rows(40, start=60), mode="append")
        DeltaTable(delta).update(predicate="id % 5 = 0", updates={"text": "concat('up ', text)"})
        DeltaTable(delta).delete("id % 4 = 1")
        library.sync(delta, **COLUMNS, version=0)
        sizes = {version: DeltaTable(delta, version=version).count() for version in range(4)}
        started = time.monotonic()
        library.sync(delta, **COLUMNS, version=3)
        longest = 2 * (time.monotonic() - started)
        torn: list[Any] = []
        reader = Library.open(library.path, embedder=WordEmbedder(), colbert=colbert)

        def read() -> None:
            try:
                hits = reader.search("the dragon", 500, retrieval="colbert")
            except adv.AdventuresError as error:
                torn.append(error)
                return
            versions = {hit.source.version for hit in hits}
            if len(versions) != 1 or len(hits) != sizes[versions.pop()]:
                torn.append(hits)

        prepare = f"""
import adventures as adv
from words import WordEmbedder
library = adv.Library.open({library.path!r}, embedder=WordEmbedder(), colbert=adv.ColBERT({colbert.path!r}))
"""
        write = f'library.sync({str(delta)!r}, id="id", text="{{text}}", version=rng.randrange(4), keep=1)'
        kill(prepare, write, times=KILLS, longest=longest, after=lambda: in_step(library), read=read)
        assert torn == []
        for version in (1, 2):
            library.sync(delta, **COLUMNS, version=version, keep=1)
            in_step(library)
        assert len(folders(library)) == 1, "what dead writers left is gone"


class TestCommands:
    def test_sync_and_search(self, tmp_path: Path, delta: Path, colbert: adv.ColBERT) -> None:
        place = str(tmp_path / "library")
        arguments = ["sync", "--delta", str(delta), "-l", place, "--id", "id", "--text", "{text}"]
        result = invoke(*arguments, "--colbert", colbert.path, "--nbits", "2")
        assert result.exit_code == 0, result.output
        assert "60 passages, 60 of them token by token in " in result.stdout
        library = Library.open(place, embedder=adv.Embedder("all-minilm-l6-v2"), colbert=colbert)
        want = library.search("a dragon", 3, retrieval="colbert")
        search = ["search", "-l", place, "a dragon", "-k", "3", "--retrieval", "colbert"]
        hits = [json.loads(line) for line in invoke(*search, "--json").stdout.splitlines()]
        assert [(hit["id"], hit["score"]) for hit in hits] == [(hit.id, hit.score) for hit in want]
        shown = invoke(*search).stdout.splitlines()
        assert [line.split()[1] for line in shown] == [f"{hit.score:.2f}" for hit in want]
        # Later syncs keep them without being told, and an end to it is an order.
        write_deltalake(delta, rows(2, start=60), mode="append")
        assert json.loads(invoke(*arguments, "--json").stdout)["colbert"] == 2
        assert "it is not clear" in invoke(*arguments, "--drop-colbert", "--colbert", colbert.path).stderr
        assert invoke(*arguments, "--drop-colbert").exit_code == 0
        assert "has no token vectors" in invoke(*search).stderr
        assert "has no token vectors" in invoke("ask", "-l", place, "x", "--retrieval", "colbert").stderr

    def test_the_model_is_looked_for_where_it_was(self, tmp_path: Path, delta: Path) -> None:
        model = tiny_colbert.colbert(tmp_path / "model", "stanford")
        place = str(tmp_path / "library")
        arguments = ["--delta", str(delta), "-l", place, "--id", "id", "--text", "{text}", "--colbert", str(model)]
        assert invoke("sync", *arguments).exit_code == 0
        model.rename(tmp_path / "moved")
        search = ["search", "-l", place, "x", "--retrieval", "colbert"]
        assert "the library's ColBERT model 'model' is not at " in invoke(*search).stderr
        (tmp_path / "again").mkdir()
        shutil.copytree(tmp_path / "moved", tmp_path / "again" / "model")
        assert invoke(*search, "--colbert", str(tmp_path / "again" / "model")).exit_code == 0
