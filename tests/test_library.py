"""Syncing Delta tables into a library: what is written, what is left out, what happens when it goes wrong."""

from __future__ import annotations

import errno
import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import lancedb
import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

import adventures as adv
from adventures.library import Library, Skip, SyncReport
from words import WordEmbedder

SHARED = Path(__file__).parents[1] / ".." / "shared" / "data" / "delta-tables"
TESTS = Path(__file__).parent


def table(count: int, *, start: int = 0, text: str = "row {} of the ledger") -> pa.Table:
    numbers = range(start, start + count)
    return pa.table(
        {
            "id": pa.array(numbers, pa.int64()),
            "text": [text.format(n) for n in numbers],
            "aisle": [f"a{n % 3}" for n in numbers],
        }
    )


def contents(library: Library) -> dict[str, tuple[str, Any]]:
    """Passages by id; fails where an id is there twice, or a vector is not that of its text."""
    if not len(library):
        return {}
    rows = library.table.search().limit(None).to_arrow().to_pylist()
    found = {row["id"]: (row["text"], row.get("metadata")) for row in rows}
    assert len(found) == len(rows) == len(library)
    vectors = WordEmbedder().encode([row["text"] for row in rows]).vectors
    for row, vector in zip(rows, vectors, strict=True):
        assert row["vector"] == pytest.approx(vector.tolist(), abs=1e-6)
    return found


def state(library: Library) -> tuple[Any, Any]:
    return contents(library), library.metadata


def adds_up(report: SyncReport) -> None:
    assert report.read == report.written + sum(skip.count for skip in report.skipped)
    assert report.written == report.added + report.updated + report.unchanged


@pytest.fixture
def words() -> WordEmbedder:
    return WordEmbedder()


@pytest.fixture
def delta(tmp_path: Path) -> Path:
    path = tmp_path / "delta"
    write_deltalake(path, table(50))
    return path


@pytest.fixture
def library(tmp_path: Path, words: WordEmbedder) -> Library:
    return Library.open(tmp_path / "library", embedder=words)


COLUMNS: dict[str, Any] = {"id": "id", "text": "{text}"}


class TestSync:
    def test_first(self, library: Library, delta: Path, words: WordEmbedder) -> None:
        report = library.sync(delta, **COLUMNS)
        adds_up(report)
        assert (report.version, report.read, report.written, report.added) == (0, 50, 50, 50)
        assert (report.passages, report.tokens, report.truncated, report.changed) == (50, 250, 0, True)
        assert len(library) == 50
        assert contents(library)["7#0"] == ("row 7 of the ledger", {"aisle": "a1"})
        assert Counter(words.embedded) == Counter(f"row {n} of the ledger" for n in range(50))

    def test_again_does_nothing(self, library: Library, delta: Path, words: WordEmbedder) -> None:
        first = library.sync(delta, **COLUMNS)
        version, before = library.table.version, len(words.embedded)
        again = library.sync(delta, **COLUMNS)
        adds_up(again)
        assert not again.changed
        assert (again.read, again.unchanged, again.tokens) == (first.read, 50, 0)
        assert (library.table.version, len(words.embedded)) == (version, before)

    def test_changes_only(self, library: Library, delta: Path, words: WordEmbedder) -> None:
        library.sync(delta, **COLUMNS)
        words.embedded.clear()
        source = DeltaTable(delta)
        source.update(predicate="id = 3", updates={"text": "'three'"})
        source.update(predicate="id = 4", updates={"aisle": "'moved'"})
        source.delete("id = 5")
        write_deltalake(delta, table(1, start=99), mode="append")
        report = library.sync(delta, **COLUMNS)
        adds_up(report)
        assert (report.added, report.updated, report.deleted, report.unchanged) == (1, 2, 1, 47)
        assert sorted(words.embedded) == ["row 99 of the ledger", "three"]
        found = contents(library)
        assert found["3#0"][0] == "three"
        assert found["4#0"] == ("row 4 of the ledger", {"aisle": "moved"})
        assert "5#0" not in found
        assert library.metadata["source"]["version"] == report.version == 4

    def test_most_rows_change(self, library: Library, delta: Path, words: WordEmbedder) -> None:
        library.sync(delta, **COLUMNS)
        words.embedded.clear()
        write_deltalake(delta, table(60, start=25, text="row {} of the ledger"), mode="overwrite")
        report = library.sync(delta, **COLUMNS)
        adds_up(report)
        assert (report.added, report.deleted, report.unchanged) == (35, 25, 25)
        assert len(words.embedded) == 35
        assert set(contents(library)) == {f"{n}#0" for n in range(25, 85)}

    def test_a_commit_that_changes_no_row(self, library: Library, delta: Path, words: WordEmbedder) -> None:
        write_deltalake(delta, table(10, start=50), mode="append")
        library.sync(delta, **COLUMNS)
        words.embedded.clear()
        DeltaTable(delta).optimize.compact()
        report = library.sync(delta, **COLUMNS)
        adds_up(report)
        assert (report.version, report.changed, report.unchanged) == (2, False, 60)
        assert not words.embedded
        assert library.metadata["source"]["version"] == 2

    def test_older_and_newer_versions(self, library: Library, delta: Path) -> None:
        write_deltalake(delta, table(10, start=50), mode="append")
        states = {}
        for version in (0, 1):
            library.sync(delta, **COLUMNS, version=version)
            states[version] = contents(library)
        for version in (0, 1, 1, 0):
            assert library.sync(delta, **COLUMNS, version=version).version == version
            assert contents(library) == states[version]

    @pytest.mark.parametrize(
        ("other", "embedded"),
        [
            ({"text": "The {text}"}, 50),
            ({"metadata": []}, 0),
            ({"metadata": ["aisle", "text"]}, 0),
            ({"id": ["id", "aisle"]}, 50),
            ({"where": "id < 10"}, 0),
            ({"overlap": 8}, 50),
            ({"max_tokens": 32}, 50),
            ({"text": pl.col("text") + "!"}, 50),
        ],
    )
    def test_other_arguments_are_another_sync(
        self, library: Library, delta: Path, words: WordEmbedder, other: dict[str, Any], embedded: int
    ) -> None:
        library.sync(delta, **COLUMNS)
        words.embedded.clear()
        report = library.sync(delta, **{**COLUMNS, **other})
        adds_up(report)
        assert report.changed
        assert len(words.embedded) == embedded
        fresh = Library.open(Path(library.path).parent / "fresh", embedder=words)
        fresh.sync(delta, **{**COLUMNS, **other})
        assert contents(library) == contents(fresh)
        assert not library.sync(delta, **{**COLUMNS, **other}).changed

    def test_an_expression_with_python_inside_is_computed_again(self, library: Library, delta: Path) -> None:
        for suffix in ("one", "two"):
            text = pl.col("text").map_elements(lambda value, end=suffix: f"{value} {end}", return_dtype=pl.String)
            assert library.sync(delta, id="id", text=text).changed
            assert contents(library)["1#0"][0] == f"row 1 of the ledger {suffix}"

    def test_another_table_at_the_same_path(self, library: Library, delta: Path) -> None:
        library.sync(delta, **COLUMNS)
        for file in sorted(delta.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        write_deltalake(delta, table(5, text="new {}"))
        assert library.sync(delta, **COLUMNS).deleted == 45
        assert contents(library)["0#0"][0] == "new 0"

    def test_many_small_syncs_stay_tidy(self, library: Library, delta: Path) -> None:
        library.sync(delta, **COLUMNS)
        for n in range(15):
            write_deltalake(delta, table(1, start=100 + n), mode="append")
            library.sync(delta, **COLUMNS)
        assert len(contents(library)) == 65
        assert library.table.stats()["fragment_stats"]["num_fragments"] <= 12
        assert library.search("row 114 of the ledger", hybrid=True)[0].source.version == 15

    @pytest.mark.parametrize("name", ["josé", "日本 #1", "a%20b", "~[x]?"])
    def test_any_folder(self, tmp_path: Path, delta: Path, words: WordEmbedder, name: str) -> None:
        place = tmp_path / "home" / name
        library = Library.open(place, embedder=words)
        library.sync(delta, **COLUMNS)
        library.sync(delta, **COLUMNS, where="id < 40")
        # LanceDB makes a folder of a percent-encoded name beside ours, which in /home it may not.
        assert [path.name for path in (tmp_path / "home").iterdir()] == [name]
        kept = library.table
        del library
        gc.collect()
        assert kept.count_rows() == len(Library.open(place, embedder=words)) == 40

    def test_the_home_folder(
        self, tmp_path: Path, delta: Path, words: WordEmbedder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.chdir(tmp_path)
        Library.open("~/library", embedder=words).sync(delta, **COLUMNS)
        assert len(Library.open("~/library")) == len(Library.open(tmp_path / "home" / "library")) == 50
        assert not Path("~").exists()

    def test_two_tables_in_one_database(self, tmp_path: Path, delta: Path, words: WordEmbedder) -> None:
        one = Library.open(tmp_path / "db", embedder=words, table="one")
        two = Library.open(tmp_path / "db", embedder=words, table="two")
        one.sync(delta, **COLUMNS)
        assert (len(one), len(two)) == (50, 0)
        two.sync(delta, **COLUMNS, where="id = 1")
        assert (len(one), len(two)) == (50, 1)


class TestSkips:
    def test_every_reason_is_counted(self, library: Library, tmp_path: Path) -> None:
        write_deltalake(
            tmp_path / "d",
            pa.table(
                {
                    "id": ["a", None, "c", "d", "e", "a", "a", "f"],
                    "text": ["one", "two", None, "  \n", "five", "uno", "one", ""],
                }
            ),
        )
        report = library.sync(tmp_path / "d", **COLUMNS)
        adds_up(report)
        assert report.skipped == [
            Skip("duplicate id", 2, ["a"]),
            Skip("empty text", 2, ["d", "f"]),
            Skip("null id", 1, ["two"]),
            Skip("null text", 1, ["c"]),
        ]
        assert set(contents(library)) == {"a#0", "e#0"}
        assert library.sync(tmp_path / "d", **COLUMNS).skipped == report.skipped

    def test_which_duplicate_stays_is_not_a_matter_of_order(self, tmp_path: Path, words: WordEmbedder) -> None:
        rows = [("x", f"text {n}") for n in range(20)]
        kept = set()
        for name, order in [("a", rows), ("b", rows[::-1]), ("c", rows[10:] + rows[:10])]:
            for n, (row_id, text) in enumerate(order):
                write_deltalake(tmp_path / name, pa.table({"id": [row_id], "text": [text]}), mode="append")
                if n == 10 and name == "b":
                    DeltaTable(tmp_path / name).optimize.compact()
            library = Library.open(tmp_path / "library", embedder=words, table=name)
            assert library.sync(tmp_path / name, **COLUMNS).skipped == [Skip("duplicate id", 19, ["x"])]
            kept.add(contents(library)["x#0"][0])
        assert len(kept) == 1

    def test_nothing_but_skips(self, library: Library, tmp_path: Path) -> None:
        write_deltalake(tmp_path / "d", pa.table({"id": ["a", "b"], "text": pa.array([None, None], pa.string())}))
        report = library.sync(tmp_path / "d", **COLUMNS)
        adds_up(report)
        assert (report.read, report.written, report.passages) == (2, 0, 0)
        assert library.search("anything", hybrid=True) == []
        write_deltalake(tmp_path / "d", pa.table({"id": ["a"], "text": ["now"]}), mode="overwrite")
        library.sync(tmp_path / "d", **COLUMNS)
        assert library.search("now", hybrid=True)[0].text == "now"

    def test_a_row_that_loses_its_text_leaves(self, library: Library, delta: Path) -> None:
        library.sync(delta, **COLUMNS)
        DeltaTable(delta).update(predicate="id < 2", updates={"text": "NULL"})
        report = library.sync(delta, **COLUMNS)
        adds_up(report)
        assert (report.deleted, report.skipped) == (2, [Skip("null text", 2, ["0", "1"])])

    def test_an_empty_table(self, library: Library, tmp_path: Path, delta: Path) -> None:
        DeltaTable.create(tmp_path / "empty", table(0).schema)
        report = library.sync(tmp_path / "empty", **COLUMNS)
        adds_up(report)
        assert (report.read, report.passages, len(library)) == (0, 0, 0)
        assert library.search("anything") == []
        library.sync(delta, **COLUMNS)
        assert len(contents(library)) == 50
        write_deltalake(delta, table(0), mode="overwrite")
        library.sync(delta, **COLUMNS)
        assert contents(library) == {}


class TestTable:
    def test_another_table_does_not_replace_the_rows(self, library: Library, tmp_path: Path, delta: Path) -> None:
        library.sync(delta, **COLUMNS)
        write_deltalake(tmp_path / "another", table(3))
        with pytest.raises(ValueError, match=r"follows .*/delta/, and .*/another/ is another table.* 50 passages"):
            library.sync(tmp_path / "another", **COLUMNS)
        assert len(contents(library)) == 50

    def test_a_table_that_was_moved_is_the_same(self, library: Library, tmp_path: Path, delta: Path) -> None:
        library.sync(delta, **COLUMNS)
        moved = delta.rename(tmp_path / "moved")
        write_deltalake(moved, table(2, start=50), mode="append")
        report = library.sync(moved, **COLUMNS)
        assert (report.added, report.unchanged) == (2, 50)

    def test_a_table_made_anew_at_its_place_is_followed(self, library: Library, delta: Path) -> None:
        library.sync(delta, **COLUMNS)
        shutil.rmtree(delta)
        write_deltalake(delta, table(49))
        report = library.sync(delta, **COLUMNS)
        assert (report.deleted, report.unchanged) == (1, 49)


class TestPassages:
    def test_long_texts_are_split(self, library: Library, tmp_path: Path, words: WordEmbedder) -> None:
        long = " ".join(f"w{n}" for n in range(150))
        write_deltalake(
            tmp_path / "d", pa.table({"id": ["long", "short"], "text": [long, "one two"], "kind": ["l", "s"]})
        )
        report = library.sync(tmp_path / "d", **COLUMNS, max_tokens=50, overlap=10)
        assert (report.written, report.passages, report.truncated) == (2, 5, 0)
        found = contents(library)
        assert sorted(found) == ["long#0", "long#1", "long#2", "long#3", "short#0"]
        assert found["long#1"] == (" ".join(f"w{n}" for n in range(40, 90)), {"kind": "l"})
        DeltaTable(tmp_path / "d").update(predicate="id = 'long'", updates={"kind": "'new'"})
        words.embedded.clear()
        library.sync(tmp_path / "d", **COLUMNS, max_tokens=50, overlap=10)
        assert not words.embedded
        assert {row[1]["kind"] for id_, row in contents(library).items() if id_.startswith("long")} == {"new"}
        DeltaTable(tmp_path / "d").update(predicate="id = 'long'", updates={"text": "'now short'"})
        library.sync(tmp_path / "d", **COLUMNS, max_tokens=50, overlap=10)
        assert set(contents(library)) == {"long#0", "short#0"}

    def test_a_megabyte_of_text(self, library: Library, tmp_path: Path) -> None:
        text = " ".join(f"word{n}" for n in range(120_000))
        write_deltalake(tmp_path / "d", pa.table({"id": [1], "text": [text]}))
        report = library.sync(tmp_path / "d", **COLUMNS, overlap=0)
        assert (report.written, report.passages, report.truncated) == (1, 1875, 0)
        rows = library.table.search().select(["ordinal", "text"]).limit(None).to_arrow().sort_by("ordinal")
        assert " ".join(rows.column("text").to_pylist()) == text

    @pytest.mark.parametrize(
        "name", ["a#1", "a", "'; DROP TABLE x; --", "ключ 🗝", "a/b\\c", '"', "", " ", "#", "x\n\ty"]
    )
    def test_any_id(self, library: Library, tmp_path: Path, name: str) -> None:
        write_deltalake(tmp_path / "d", pa.table({"id": [name, "other"], "text": ["mine", "another"]}))
        library.sync(tmp_path / "d", **COLUMNS)
        hit = library.search("mine", k=1)[0]
        assert (hit.id, hit.source.row) == (f"{name}#0", {"id": name})
        assert [hit.id for hit in library.search("mine", where={"id": name})] == [f"{name}#0"]
        DeltaTable(tmp_path / "d").update(predicate="text = 'mine'", updates={"text": "'changed'"})
        library.sync(tmp_path / "d", **COLUMNS)
        assert contents(library) == {f"{name}#0": ("changed", None), "other#0": ("another", None)}

    def test_composite_keys(self, library: Library, tmp_path: Path) -> None:
        write_deltalake(tmp_path / "d", pa.table({"a": ["x", "x,y"], "b": [1, 2], "text": ["one", "two"]}))
        library.sync(tmp_path / "d", id=["a", "b"], text="{text}")
        hit = library.search("two", k=1)[0]
        assert (hit.id, hit.source.row) == ('["x,y","2"]#0', {"a": "x,y", "b": 2})

    def test_columns_named_like_ours(self, library: Library, tmp_path: Path) -> None:
        names = ["id", "row_id", "ordinal", "text", "vector", "key", "metadata", "_rowid", "_distance", "score"]
        write_deltalake(tmp_path / "d", pa.table({name: [f"{name} {n}" for n in range(2)] for name in names}))
        library.sync(tmp_path / "d", id="vector", text="{text}")
        hit = library.search("text 1", k=1, where={"metadata": "metadata 1", "ordinal": "ordinal 1"})[0]
        assert hit.source.row == {"vector": "vector 1"}
        assert hit.metadata == {name: f"{name} 1" for name in names if name not in ("vector", "text")}


class TestRewrittenTables:
    """Whatever a table went through, the library has exactly its rows."""

    def check(self, library: Library, path: Path) -> None:
        report = library.sync(path, **COLUMNS)
        adds_up(report)
        truth = pl.DataFrame(pa.RecordBatchReader.from_stream(DeltaTable(path).scan()).read_all()).drop_nulls("text")
        assert contents(library) == {
            f"{row['id']}#0": (row["text"], {k: v for k, v in row.items() if k not in ("id", "text")})
            for row in truth.to_dicts()
        }

    def test_a_life(self, library: Library, tmp_path: Path) -> None:
        path = tmp_path / "d"
        write_deltalake(path, table(40), partition_by=["aisle"])
        self.check(library, path)
        DeltaTable(path).update(predicate="id % 7 = 0", updates={"text": "concat('up ', text)"})
        self.check(library, path)
        DeltaTable(path).delete("aisle = 'a1'")
        self.check(library, path)
        source = table(10, start=35, text="merged {}")
        (
            DeltaTable(path)
            .merge(source, "s.id = t.id", "s", "t")
            .when_matched_update_all()
            .when_not_matched_insert_all()
            .when_not_matched_by_source_delete("t.id < 5")
            .execute()
        )
        self.check(library, path)
        DeltaTable(path).optimize.compact()
        self.check(library, path)
        DeltaTable(path).optimize.z_order(["id"])
        self.check(library, path)
        DeltaTable(path).vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
        self.check(library, path)
        more = table(3, start=200).append_column("extra", pa.array(["x", None, "z"]))
        write_deltalake(path, more, mode="append", schema_mode="merge")
        self.check(library, path)
        version = DeltaTable(path).version()
        write_deltalake(path, table(7, start=500), mode="overwrite", schema_mode="overwrite", partition_by=["aisle"])
        self.check(library, path)
        DeltaTable(path).restore(version)
        self.check(library, path)

    @pytest.mark.skipif(not SHARED.exists(), reason=f"{SHARED} is not here")
    @pytest.mark.parametrize(
        ("name", "id_", "text"),
        [
            ("table-with-dv-small", "value", "value {value}"),
            ("table_with_column_mapping", "Super Name", "{Super Name} works at {Company Very Short}"),
            ("cdf-table", "id", "{name} was born on {birthday}"),
            ("simple_table", "id", "number {id}"),
        ],
    )
    def test_tables_of_other_writers(self, library: Library, name: str, id_: str, text: str) -> None:
        report = library.sync(SHARED / name, id=id_, text=text)
        adds_up(report)
        assert not report.skipped
        truth = pa.RecordBatchReader.from_stream(DeltaTable(SHARED / name).scan()).read_all().to_pylist()
        expected = {f"{row[id_]}#0": text.format(**row) for row in truth}
        assert {key: value[0] for key, value in contents(library).items()} == expected


class TestOpen:
    def test_another_model(self, library: Library, delta: Path) -> None:
        library.sync(delta, **COLUMNS)
        for change in (
            {"name": "others"},
            {"revision": "2"},
            {"dim": 16},
            {"prompts": {"query": "q: ", "passage": ""}},
        ):
            with pytest.raises(ValueError, match=r"was embedded with words at revision 1 \(32 dimensions.* not with "):
                Library.open(library.path, embedder=WordEmbedder(**change))
        Library.open(library.path, embedder=WordEmbedder(revision=""))

    def test_a_model_that_comes_too_late(self, tmp_path: Path, delta: Path) -> None:
        late = Library.open(tmp_path / "library", embedder=WordEmbedder(name="late"))
        Library.open(tmp_path / "library", embedder=WordEmbedder()).sync(delta, **COLUMNS)
        with pytest.raises(ValueError, match="was embedded with words"):
            late.sync(delta, **COLUMNS)
        with pytest.raises(ValueError, match="was embedded with words"):
            late.search("row")

    def test_without_a_model(self, library: Library, delta: Path) -> None:
        library.sync(delta, **COLUMNS)
        reader = Library.open(library.path)
        assert len(reader) == 50
        assert reader.metadata["model"]["name"] == "words"
        assert reader.metadata["source"]["text"] == "{text}"
        for call in (lambda: reader.search("row"), lambda: reader.sync(delta, **COLUMNS)):
            with pytest.raises(ValueError, match="without a model; open it with embedder="):
                call()

    def test_nothing_there(self, tmp_path: Path, words: WordEmbedder) -> None:
        with pytest.raises(FileNotFoundError, match="no library at"):
            Library.open(tmp_path / "no")
        library = Library.open(tmp_path / "no", embedder=words)
        assert (len(library), library.metadata, library.search("x"), bool(library)) == (0, {}, [], True)
        assert not (tmp_path / "no").exists()
        with pytest.raises(LookupError, match="nothing was synced yet"):
            _ = library.table

    @pytest.mark.parametrize("name", ["", "../up", "a/b", "a b", ".", "-x", "x" * 64, "a\0", "é"])
    def test_bad_names(self, tmp_path: Path, words: WordEmbedder, name: str) -> None:
        with pytest.raises(ValueError, match="the table name"):
            Library.open(tmp_path / "l", embedder=words, table=name)

    def test_arguments_of_another_kind(self, tmp_path: Path, words: WordEmbedder) -> None:
        with pytest.raises(TypeError, match="must be an Embedder, not the name 'e5'"):
            Library.open(tmp_path / "l", embedder="e5")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="the path of the library is empty"):
            Library.open("", embedder=words)
        for path in ("a\0b", tmp_path / "a\nb"):
            with pytest.raises(ValueError, match=r"the path of the library has a control character: '.*a\\(x00|n)b'"):
                Library.open(path, embedder=words)
        assert list(tmp_path.iterdir()) == []
        for path in (None, 3, b"library"):
            with pytest.raises(
                TypeError, match=r"path of the library must be a string or a path, not (NoneType|int|byt)"
            ):
                Library.open(path, embedder=words)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="the table name must be a string, not int"):
            Library.open(tmp_path / "l", embedder=words, table=3)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="embedder must be an Embedder, not int"):
            Library.open(tmp_path / "l", embedder=3)  # type: ignore[arg-type]
        for uri in ("nowhere://library", "db://library"):
            with pytest.raises(ValueError, match=f"cannot open a library at {uri}: "):
                Library.open(uri, embedder=words)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"delta": None}, "delta must be a path, a URI or a DeltaTable, not NoneType"),
            ({"delta": b"delta"}, "delta must be a path, a URI or a DeltaTable, not bytes"),
            ({"id": None}, "id must be a list of columns, not NoneType"),
            ({"metadata": 3}, "metadata must be a list of columns, not int"),
            ({"where": {"n": 1}}, "where must be a SQL predicate, a string, not dict"),
        ],
    )
    def test_sync_with_arguments_of_another_kind(
        self, library: Library, delta: Path, arguments: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(TypeError, match=message):
            library.sync(**{"delta": delta, **COLUMNS, **arguments})

    @pytest.mark.parametrize("path", ["", "a\0"])
    def test_what_is_no_path_of_a_table(self, library: Library, path: str) -> None:
        with pytest.raises(ValueError, match="delta must be a path, a URI or a DeltaTable, not '"):
            library.sync(path, **COLUMNS)

    def test_damaged_files(self, tmp_path: Path, library: Library, delta: Path, words: WordEmbedder) -> None:
        library.sync(delta, **COLUMNS)
        data, versions = (Path(library.path) / "passages.lance" / name for name in ("data", "_versions"))
        for file in data.iterdir():
            file.write_bytes(file.read_bytes()[:50])
        with pytest.raises(adv.AdventuresError, match=f"cannot read the library {re.escape(library.path)} .*: "):
            Library.open(library.path, embedder=words).search("row")
        for file in versions.iterdir():
            file.write_bytes(b"x\n")
        with pytest.raises(adv.AdventuresError, match=f"cannot read the library {re.escape(library.path)} .*: "):
            Library.open(library.path, embedder=words)

    def test_a_query_that_is_cut(self, library: Library, delta: Path) -> None:
        library.sync(delta, **COLUMNS)
        with pytest.warns(adv.TruncationWarning, match="the query is longer than the 64 tokens that words reads"):
            assert library.search("row " * 65)

    def test_any_k(self, library: Library, delta: Path) -> None:
        library.sync(delta, **COLUMNS)
        for k in (50, 10**9, 10**30):
            assert len(library.search("row 3", k)) == len(library.search("row 3", k, hybrid=True)) == 50

    def test_what_is_no_unicode(self, tmp_path: Path, library: Library, delta: Path, words: WordEmbedder) -> None:
        half = "\ud800"
        for call, message in (
            (lambda: Library.open(tmp_path / half, embedder=words), r"the path of the library is not valid .*\\ud800'"),
            (lambda: library.search(f"row {half}"), r"the query is not valid Unicode: 'row \\ud800'"),
            (lambda: library.sync(tmp_path / half, **COLUMNS), r"delta is not valid Unicode: '.*\\ud800'"),
            (lambda: library.sync(f"s3://b/{half}", **COLUMNS), "delta is not valid Unicode"),
            (lambda: library.sync(delta, id="id", text="{text}" + half), "text is not valid Unicode"),
            (lambda: library.sync(delta, **COLUMNS, where=f"text = '{half}'"), "where is not valid Unicode"),
            (lambda: library.sync(delta, id=half, text="{text}"), r"id names the column '\\ud800', which"),
            (lambda: library.sync(delta, **COLUMNS, metadata=[half]), r"metadata names the column '\\ud800', which"),
        ):
            with pytest.raises(ValueError, match=message) as caught:
                call()
            # The codec's own error is a ValueError too, and names nothing.
            assert not isinstance(caught.value, UnicodeError)
        assert len(library) == 0

    def test_storage_options_are_strings(self, library: Library, delta: Path) -> None:
        with pytest.raises(TypeError, match="maps 'timeout' to a int"):
            library.sync(delta, **COLUMNS, storage_options={"timeout": 30})  # type: ignore[dict-item]
        with pytest.raises(ValueError, match=r"the storage option 'secret' is not valid Unicode$"):
            library.sync(delta, **COLUMNS, storage_options={"secret": "s3cr\ud800t"})

    def test_what_is_no_library(self, tmp_path: Path, words: WordEmbedder) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(ValueError, match="it is a file"):
            Library.open(tmp_path / "file", embedder=words)
        lancedb.connect(tmp_path / "db").create_table("passages", pa.table({"x": [1]}))
        with pytest.raises(ValueError, match="was not written by adventures"):
            Library.open(tmp_path / "db", embedder=words)

    def test_a_newer_format(self, tmp_path: Path, words: WordEmbedder) -> None:
        schema = pa.schema([("id", pa.string())], metadata={"adventures": json.dumps({"format": 2})})
        lancedb.connect(tmp_path / "db").create_table("passages", schema=schema)
        with pytest.raises(ValueError, match="has format 2, this version reads up to 1"):
            Library.open(tmp_path / "db", embedder=words)

    @pytest.mark.parametrize(
        "arguments",
        [
            {"max_tokens": 65},
            {"max_tokens": 0},
            {"max_tokens": True},
            {"overlap": -1},
            {"overlap": 33},
            {"overlap": 1.5},
        ],
    )
    def test_bad_numbers(self, library: Library, delta: Path, arguments: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=f"{next(iter(arguments))} must be from"):
            library.sync(delta, **COLUMNS, **arguments)


class Fails(WordEmbedder):
    """Breaks once it has embedded `after` texts."""

    after = 10**9
    error: BaseException = RuntimeError("the model broke")

    def encode(self, texts: list[str], kind: str = "passage") -> Any:
        if len(self.embedded) >= self.after:
            raise self.error
        return super().encode(texts, kind)


class TestFailures:
    @pytest.fixture
    def big(self, tmp_path: Path) -> Path:
        write_deltalake(tmp_path / "big", table(3000))
        return tmp_path / "big"

    @pytest.mark.parametrize("error", [RuntimeError("the model broke"), MemoryError("none left"), ValueError("bad")])
    def test_the_first_sync(self, tmp_path: Path, big: Path, error: Exception) -> None:
        model = Fails()
        library = Library.open(tmp_path / "l", embedder=model)
        model.after, model.error = 1500, error
        with pytest.raises(type(error), match=str(error)):
            library.sync(big, **COLUMNS)
        assert (len(library), library.metadata) == (0, {})
        model.after = 10**9
        assert library.sync(big, **COLUMNS).added == 3000
        assert len(contents(library)) == 3000

    @pytest.mark.parametrize("share", ["few", "many"])
    def test_a_later_sync(self, tmp_path: Path, big: Path, share: str) -> None:
        model = Fails()
        library = Library.open(tmp_path / "l", embedder=model)
        library.sync(big, **COLUMNS)
        before = state(library)
        predicate = "id % 10 = 0" if share == "few" else "id > 100"
        DeltaTable(big).update(predicate=predicate, updates={"text": "concat('new ', text)"})
        DeltaTable(big).delete("id = 11")
        write_deltalake(big, table(300, start=5000), mode="append")
        model.after = len(model.embedded) + 100
        with pytest.raises(RuntimeError, match="the model broke"):
            library.sync(big, **COLUMNS)
        model.after = 10**9
        assert state(library) == before
        assert state(Library.open(library.path, embedder=model)) == before
        latest = lancedb.connect(library.path).open_table("passages")
        assert latest.count_rows() == 3000
        library.sync(big, **COLUMNS)
        assert len(contents(library)) == 3299

    def test_a_vector_that_is_no_number(self, library: Library, delta: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        plain = WordEmbedder.encode

        def broken(self: WordEmbedder, texts: list[str], kind: str = "passage") -> Any:
            encoded = plain(self, texts, kind)
            encoded.vectors[0, 0] = float("nan")
            return encoded

        monkeypatch.setattr(WordEmbedder, "encode", broken)
        with pytest.raises(adv.AdventuresError, match="not finite"):
            library.sync(delta, **COLUMNS)
        assert len(library) == 0

    def test_a_text_that_differs_each_time(self, library: Library, delta: Path) -> None:
        counter = iter(range(10**6))
        text = pl.col("text").map_elements(lambda value: f"{value} {next(counter)}", return_dtype=pl.String)
        with pytest.raises(adv.AdventuresError, match=r"rows were not found again .* 50 of 50 at least"):
            library.sync(delta, id="id", text=text)
        assert len(library) == 0

    def test_ctrl_c(self, tmp_path: Path, big: Path) -> None:
        # What a shell runs in the background is born ignoring it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))

        class Slow(WordEmbedder):
            def encode(self, texts: list[str], kind: str = "passage") -> Any:
                if not self.embedded:
                    timer.start()
                time.sleep(0.05)
                return super().encode(texts, kind)

        library = Library.open(tmp_path / "l", embedder=Slow())
        write_deltalake(big, table(20_000, start=10_000), mode="append")
        with pytest.raises(KeyboardInterrupt):
            library.sync(big, **COLUMNS)
        embedded = len(library.embedder.embedded)
        assert 0 < embedded < 23_000
        assert len(library) == 0
        time.sleep(0.2)
        assert len(library.embedder.embedded) == embedded
        assert len(Library.open(library.path, embedder=library.embedder)) == 0

    def test_a_disk_that_takes_no_more(self, tmp_path: Path, big: Path) -> None:
        code = f"""
import resource, signal, sys
sys.path.insert(0, {str(TESTS)!r})
from words import WordEmbedder
from adventures import AdventuresError, Library
library = Library.open({str(tmp_path / "l")!r}, embedder=WordEmbedder())
library.sync({str(big)!r}, id="id", text="{{text}}", version=0)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    library.sync({str(big)!r}, id="id", text="{{text}}", version=1)
except AdventuresError as error:
    print(error)
assert len(library) == 3000, len(library)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert library.sync({str(big)!r}, id="id", text="{{text}}", version=1).passages == 8000
"""
        write_deltalake(big, table(5000, start=10_000), mode="append")
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert f"cannot write the library {tmp_path / 'l'} (table 'passages')" in done.stdout
        assert ".rs" not in done.stdout
        assert "File too large" in done.stdout

    def test_a_read_only_folder(self, tmp_path: Path, delta: Path, words: WordEmbedder) -> None:
        if os.geteuid() == 0:
            pytest.skip("root may write anywhere")
        (tmp_path / "ro").mkdir(mode=0o500)
        with pytest.raises(OSError, match="Permission denied"):
            Library.open(tmp_path / "ro", embedder=words).sync(delta, **COLUMNS)

    def test_killed_at_any_moment(self, tmp_path: Path) -> None:
        """After SIGKILL a library is as before the sync or as after it, and the next sync works."""
        path = tmp_path / "d"
        write_deltalake(path, table(2000))
        write_deltalake(path, table(2000, start=2000), mode="append")
        DeltaTable(path).update(predicate="id % 50 = 0", updates={"text": "concat('up ', text)"})
        code = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
from words import WordEmbedder
from adventures import Library
library = Library.open({str(tmp_path / "l")!r}, embedder=WordEmbedder())
for line in sys.stdin:
    print("go", flush=True)
    print(library.sync({str(path)!r}, id="id", text="{{text}}", version=int(line)).seconds, flush=True)
"""
        truth = {}
        for version in (0, 1, 2):
            fresh = Library.open(tmp_path / "truth", embedder=WordEmbedder(), table=f"v{version}")
            fresh.sync(path, **COLUMNS, version=version)
            truth[version] = contents(fresh)
        library = Library.open(tmp_path / "l", embedder=WordEmbedder())
        library.sync(path, **COLUMNS, version=0)
        moments = [(v, d) for d in (0.01, 0.1, 0.3) for v in (2, 1, 0)]
        start = partial(subprocess.Popen, [sys.executable, "-c", code], stdin=-1, stdout=-1, text=True)
        children = [start() for _ in moments]
        seen = Counter[str]()
        for child, (n, (target, delay)) in zip(children, enumerate(moments), strict=True):
            before = library.metadata["source"]["version"]
            child.stdin.write(f"{target}\n")
            child.stdin.flush()
            assert child.stdout.readline() == "go\n"
            time.sleep(delay)
            child.kill()
            child.communicate()
            after = library.metadata["source"]["version"]
            assert after in (before, target)
            seen["new" if after == target else "old"] += 1
            assert contents(library) == truth[after]
            if n % 2:
                library.sync(path, **COLUMNS, version=target)
                assert contents(library) == truth[target]
        assert seen["old"], seen


class TestOthers:
    """More than one reader, writer or thread."""

    def test_a_file_system_without_locks(self, library: Library, delta: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr("fcntl.flock", refuse)
        with pytest.raises(OSError, match="No locks available"):
            library.sync(delta, **COLUMNS)

    def test_two_writers(self, library: Library, delta: Path, tmp_path: Path) -> None:
        started, release = threading.Event(), threading.Event()

        class Waits(WordEmbedder):
            def encode(self, texts: list[str], kind: str = "passage") -> Any:
                started.set()
                assert release.wait(120)
                return super().encode(texts, kind)

        slow = Library.open(library.path, embedder=Waits())
        reports = []
        thread = threading.Thread(target=lambda: reports.append(slow.sync(delta, **COLUMNS)))
        thread.start()
        assert started.wait(20)
        with pytest.raises(adv.BusyError, match="is being written by another sync"):
            library.sync(delta, **COLUMNS)
        code = (
            f"import sys; sys.path.insert(0, {str(TESTS)!r})\n"
            "from words import WordEmbedder; from adventures import Library, BusyError\n"
            f"library = Library.open({library.path!r}, embedder=WordEmbedder())\n"
            f"try: library.sync({str(delta)!r}, id='id', text='{{text}}')\n"
            "except BusyError: print('busy')\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert done.stdout == "busy\n", done.stderr
        release.set()
        thread.join(120)
        assert reports[0].added == 50
        assert not library.sync(delta, **COLUMNS).changed

    def test_readers_see_whole_versions(self, library: Library, delta: Path, words: WordEmbedder) -> None:
        library.sync(delta, **COLUMNS)
        reader = Library.open(library.path, embedder=WordEmbedder())
        unsynced, stop = set(), threading.Event()

        def read() -> None:
            while not stop.is_set():
                hits = reader.search("row of the ledger", k=1000, hybrid=True)
                unsynced.add((len(hits), frozenset(hit.source.version for hit in hits)))

        thread = threading.Thread(target=read)
        thread.start()
        for n in range(6):
            if n % 2:
                DeltaTable(delta).delete(f"id >= {1000 + n - 1}")
            else:
                write_deltalake(delta, table(7, start=1000 + n), mode="append")
            library.sync(delta, **COLUMNS)
        stop.set()
        thread.join(30)
        assert unsynced <= {(50 + 7 * (n % 2), frozenset({n})) for n in range(7)}
        assert len(unsynced) > 1

    def test_eight_threads_search(self, library: Library, delta: Path) -> None:
        library.sync(delta, **COLUMNS)
        wrong: list[Any] = []

        def read(n: int) -> None:
            for m in range(n, 50, 8):
                text = f"row {m} of the ledger"
                wrong.extend(hit for hit in library.search(text, k=1) if abs(hit.similarity - 1) > 1e-6)

        threads = [threading.Thread(target=read, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


class TestProgress:
    def test_a_bar_when_asked_for(self, library: Library, delta: Path, capfd: pytest.CaptureFixture[str]) -> None:
        library.sync(delta, **COLUMNS, progress=True)
        out, err = capfd.readouterr()
        assert out == ""
        assert "50/50" in err
        assert "rows/s" in err
        assert "tokens/s" in err

    def test_none_where_stderr_is_no_terminal(
        self, library: Library, delta: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        library.sync(delta, **COLUMNS)
        assert capfd.readouterr() == ("", "")


def test_memory_does_not_grow_with_the_table(tmp_path: Path) -> None:
    """The peak of a sync of 100,000 rows is within 1.3 times that of 20,000."""
    code = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
from words import WordEmbedder
from adventures import Library
library = Library.open(sys.argv[2], embedder=WordEmbedder(keep=False))
report = library.sync(sys.argv[1], id="id", text="{{text}} in aisle {{aisle}}")
assert report.passages == int(sys.argv[3]), report
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs Linux to read the peak memory of a process")
    peaks = {}
    for count in (20_000, 100_000):
        path = tmp_path / f"d{count}"
        for start in range(0, count, 20_000):
            text = "row {} of a ledger that lists what the shop has in stock " + "and what it costs " * 5
            write_deltalake(path, table(20_000, start=start, text=text), mode="append")
        arguments = [sys.executable, "-c", code, str(path), str(tmp_path / f"l{count}"), str(count)]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        peaks[count] = int(done.stdout)
    assert peaks[100_000] < 1.3 * peaks[20_000], peaks
