"""A library that follows its table: by the change feed, by comparing all rows, after crashes, with others beside it."""

from __future__ import annotations

import datetime as dt
import decimal
import random
import shutil
from pathlib import Path
from typing import Any

import lancedb
import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

import adventures as adv
import bench_sync
from adventures.library import Library, Skip
from test_library import contents, table
from words import WordEmbedder

SHARED = Path(__file__).parents[1] / ".." / "shared" / "data" / "delta-tables"
COLUMNS: dict[str, Any] = {"id": "id", "text": "{text}"}
FEED = {"delta.enableChangeDataFeed": "true"}


def truth(path: Any, version: int | None = None) -> dict[str, tuple[str, Any]]:
    # Another reader than the library's: pyarrow's.
    rows = DeltaTable(path, version=version).to_pyarrow_table().to_pylist()
    return {f"{row['id']}#0": (row["text"], {"aisle": row["aisle"]}) for row in rows if row["text"] is not None}


@pytest.fixture
def words() -> WordEmbedder:
    return WordEmbedder()


@pytest.fixture
def delta(tmp_path: Path) -> Path:
    path = tmp_path / "delta"
    write_deltalake(path, table(100), configuration=FEED)
    return path


@pytest.fixture
def library(tmp_path: Path, words: WordEmbedder) -> Library:
    return Library.open(tmp_path / "library", embedder=words)


class TestFeed:
    def test_changes_only(self, library: Library, delta: Path, words: WordEmbedder) -> None:
        first = library.sync(delta, **COLUMNS)
        assert (first.method, first.reason) == ("full", "the library is empty")
        words.embedded.clear()
        source = DeltaTable(delta)
        source.update(predicate="id = 3", updates={"text": "'three'"})
        source.update(predicate="id = 4", updates={"aisle": "'moved'"})
        source.update(predicate="id = 6", updates={"text": "'once'"})
        source.update(predicate="id = 6", updates={"text": "'twice'"})
        source.delete("id = 5")
        write_deltalake(delta, table(1, start=500), mode="append")
        write_deltalake(delta, table(1, start=501), mode="append")
        DeltaTable(delta).delete("id = 501")
        DeltaTable(delta).optimize.compact()
        report = library.sync(delta, **COLUMNS)
        assert (report.method, report.reason) == ("feed", "")
        assert (report.added, report.updated, report.deleted, report.unchanged) == (1, 3, 1, 96)
        assert (report.read, report.written, report.skipped, report.passages) == (100, 100, [], 100)
        assert sorted(words.embedded) == ["row 500 of the ledger", "three", "twice"]
        assert contents(library) == truth(delta)
        assert library.search("three", k=1)[0].source.version == report.version
        assert library.sync(delta, **COLUMNS).method == "none"

    def test_only_the_touched_rows_are_read_as_texts(self, library: Library, delta: Path) -> None:
        library.sync(delta, **COLUMNS)
        DeltaTable(delta).update(predicate="id IN (3, 77)", updates={"text": "concat(text, '!')"})
        read: list[int] = []
        text = pl.col("text")
        library.sync(delta, id="id", text=text)
        plain = adv.delta.RowSource._rows

        def counting(self: Any, batch: pa.RecordBatch) -> Any:
            read.append(batch.num_rows)
            return plain(self, batch)

        DeltaTable(delta).update(predicate="id IN (4, 78)", updates={"text": "concat(text, '!')"})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(adv.delta.RowSource, "_rows", counting)
            assert library.sync(delta, id="id", text=text).method == "feed"
        assert set(read) == {2}
        assert contents(library) == truth(delta)

    def test_rows_that_are_skipped(self, library: Library, tmp_path: Path) -> None:
        path = tmp_path / "d"
        ids = [*map(str, range(60)), "a", None, "c", "d", "a", "a"]
        texts = [*(f"row {n}" for n in range(60)), "one", "two", None, " ", "uno", "one"]
        write_deltalake(path, pa.table({"id": ids, "text": texts}), configuration=FEED)
        library.sync(path, **COLUMNS)
        for change in (
            lambda source: source.update(predicate="id = 'c'", updates={"text": "'see'"}),
            lambda source: source.update(predicate="id = 'd'", updates={"text": "NULL"}),
            lambda source: source.update(predicate="id = '7'", updates={"text": "''"}),
            lambda source: source.delete("id = 'a' AND text = 'one'"),
            lambda source: write_deltalake(path, pa.table({"id": ["8", None], "text": ["x", "y"]}), mode="append"),
            lambda source: source.delete("id IS NULL"),
            lambda source: source.delete("id = 'a'"),
        ):
            change(DeltaTable(path))
            report = library.sync(path, **COLUMNS)
            assert report.method == "feed", report.reason
            fresh = Library.open(tmp_path / "fresh", embedder=WordEmbedder(), table=f"v{report.version}")
            full = fresh.sync(path, **COLUMNS)
            assert {s.reason: s.count for s in report.skipped} == {s.reason: s.count for s in full.skipped}
            assert (report.read, report.written, report.passages) == (full.read, full.written, full.passages)
            assert contents(library) == contents(fresh)
        assert report.skipped == [
            Skip("duplicate id", 1, ["8"]),
            Skip("empty text", 1, ["7"]),
            Skip("null text", 1, ["d"]),
        ]

    def test_rows_that_leave_and_enter_the_predicate(self, library: Library, tmp_path: Path) -> None:
        path = tmp_path / "d"
        write_deltalake(path, table(90), partition_by=["aisle"], configuration=FEED)
        where = "aisle = 'a1'"
        library.sync(path, **COLUMNS, where=where)
        DeltaTable(path).update(predicate="id = 1", updates={"aisle": "'a2'"})
        DeltaTable(path).update(predicate="id = 2", updates={"aisle": "'a1'"})
        DeltaTable(path).update(predicate="id = 3", updates={"text": "'elsewhere'"})
        report = library.sync(path, **COLUMNS, where=where)
        assert (report.method, report.added, report.deleted, report.unchanged) == ("feed", 1, 1, 29)
        assert report.read == 30
        assert set(contents(library)) == {f"{n}#0" for n in (2, *range(4, 90, 3))}

    @pytest.mark.parametrize(
        ("column", "values"),
        [
            ("s", [f'o\'{n} "x" ü\n#' for n in range(30)]),
            ("i", pa.array(range(-15, 15), pa.int8())),
            ("f", [n / 3 for n in range(30)]),
            ("d", [dt.date(2024, 1, 1) + dt.timedelta(n) for n in range(30)]),
            (
                "t",
                pa.array([dt.datetime(2024, 1, 1, 0, 0, n, n, dt.UTC) for n in range(30)], pa.timestamp("us", "UTC")),
            ),
            ("n", pa.array([decimal.Decimal(n) / 4 for n in range(30)], pa.decimal128(10, 2))),
            ("x", [bytes([n, 0, 255]) for n in range(30)]),
            ('a "b" C', [f"k{n}" for n in range(30)]),
        ],
    )
    def test_any_scalar_is_a_key(self, library: Library, tmp_path: Path, column: str, values: Any) -> None:
        path = tmp_path / "d"
        rows = pa.table({column: values, "text": [f"row {n}" for n in range(30)]})
        write_deltalake(path, rows, configuration=FEED)
        library.sync(path, id=column, text="{text}")
        DeltaTable(path).update(predicate="text = 'row 7'", updates={"text": "'seven'"})
        DeltaTable(path).delete("text = 'row 8'")
        report = library.sync(path, id=column, text="{text}")
        assert (report.method, report.updated, report.deleted, report.unchanged) == ("feed", 1, 1, 28)
        assert sorted(text for text, _ in contents(library).values()) == sorted(
            ["seven", *(f"row {n}" for n in range(30) if n not in (7, 8))]
        )

    def test_composite_keys(self, library: Library, tmp_path: Path) -> None:
        path = tmp_path / "d"
        rows = pa.table({"a": [f"x{n % 6}" for n in range(36)], "b": [n // 6 for n in range(36)], "text": ["t"] * 36})
        write_deltalake(path, rows, configuration=FEED)
        library.sync(path, id=["a", "b"], text="{text}")
        DeltaTable(path).update(predicate="a = 'x1' AND b = 2", updates={"text": "'one'"})
        DeltaTable(path).delete("a = 'x2' AND b = 1")
        report = library.sync(path, id=["a", "b"], text="{text}")
        assert (report.method, report.updated, report.deleted, report.unchanged) == ("feed", 1, 1, 34)
        assert contents(library)['["x1","2"]#0'][0] == "one"
        assert '["x1","1"]#0' in contents(library)

    def test_new_columns(self, library: Library, delta: Path) -> None:
        library.sync(delta, **COLUMNS, metadata=["aisle"])
        more = table(1, start=200).append_column("extra", pa.array(["x"]))
        write_deltalake(delta, more, mode="append", schema_mode="merge")
        report = library.sync(delta, **COLUMNS, metadata=["aisle"])
        assert (report.method, report.added, report.new_columns, report.lost_columns) == ("feed", 1, ["extra"], [])
        report = library.sync(delta, **COLUMNS)
        assert (report.method, report.reason) == ("full", "metadata is another than at the last sync")
        assert contents(library)["200#0"][1] == {"aisle": "a2", "extra": "x"}


class TestNoFeed:
    """Where the feed does not say all, every row is compared, and the report says why."""

    def check(self, library: Library, path: Path, reason: str) -> None:
        report = library.sync(path, **COLUMNS)
        assert report.method == "full"
        assert reason in report.reason, report.reason
        assert contents(library) == truth(path)

    def test_there_is_none(self, library: Library, tmp_path: Path) -> None:
        write_deltalake(tmp_path / "d", table(50))
        library.sync(tmp_path / "d", **COLUMNS)
        DeltaTable(tmp_path / "d").delete("id = 3")
        self.check(library, tmp_path / "d", "the table has no change data feed")

    def test_switched_on_later(self, library: Library, tmp_path: Path) -> None:
        path = tmp_path / "d"
        write_deltalake(path, table(50))
        library.sync(path, **COLUMNS)
        DeltaTable(path).update(predicate="id = 3", updates={"text": "'three'"})
        DeltaTable(path).alter.set_table_properties(FEED)
        DeltaTable(path).delete("id = 4")
        self.check(library, path, "version 2 changed the table's properties")
        DeltaTable(path).delete("id = 5")
        assert library.sync(path, **COLUMNS).method == "feed"
        assert contents(library) == truth(path)

    def test_vacuumed(self, library: Library, delta: Path) -> None:
        library.sync(delta, **COLUMNS)
        DeltaTable(delta).update(predicate="id = 3", updates={"text": "'three'"})
        DeltaTable(delta).optimize.compact()
        DeltaTable(delta).vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False, full=True)
        shutil.rmtree(delta / "_change_data", ignore_errors=True)
        self.check(library, delta, "the feed cannot be read from version 1 on")

    def test_overwritten_and_restored(self, library: Library, delta: Path) -> None:
        library.sync(delta, **COLUMNS)
        write_deltalake(delta, table(5, start=98), mode="overwrite")
        self.check(library, delta, "version 1 overwrote the table")
        DeltaTable(delta).restore(0)
        self.check(library, delta, "version 2 is a restore")

    def test_most_rows_are_touched(self, library: Library, delta: Path) -> None:
        library.sync(delta, **COLUMNS)
        DeltaTable(delta).update(predicate="id > 50", updates={"text": "concat(text, '!')"})
        self.check(library, delta, "the feed touches more than 20 rows")

    def test_an_older_version(self, library: Library, delta: Path) -> None:
        DeltaTable(delta).delete("id = 3")
        library.sync(delta, **COLUMNS)
        report = library.sync(delta, **COLUMNS, version=0)
        assert report.reason == "version 0 is not after version 1, which the library has"
        assert contents(library) == truth(delta, 0)
        assert library.sync(delta, **COLUMNS).method == "feed"
        assert contents(library) == truth(delta)

    def test_a_log_that_was_cut(self, library: Library, delta: Path) -> None:
        library.sync(delta, **COLUMNS)
        for n in range(4):
            write_deltalake(delta, table(1, start=200 + n), mode="append")
        DeltaTable(delta).create_checkpoint()
        for n in range(3):
            (delta / "_delta_log" / f"{n:020}.json").unlink()
        self.check(library, delta, "version 1")

    @pytest.mark.skipif(not SHARED.exists(), reason=f"{SHARED} is not here")
    def test_tables_of_other_writers(self, tmp_path: Path) -> None:
        for name, id_, method in (("cdf-table", "id", "full"), ("table-with-dv-small", "value", "full")):
            library = Library.open(tmp_path / name, embedder=WordEmbedder())
            methods = []
            for version in range(DeltaTable(SHARED / name).version() + 1):
                report = library.sync(SHARED / name, id=id_, text=f"number {{{id_}}}", version=version)
                methods.append(report.method)
                frame = DeltaTable(SHARED / name, version=version)
                keys = pa.table(pa.RecordBatchReader.from_stream(frame.scan(columns=[id_])).read_all())
                assert sorted(contents(library)) == sorted(f"{key}#0" for key in keys.column(id_).to_pylist())
            assert methods[0] == method
            # Two of three rows change in each of the first two versions; the last deletes one of ten.
            assert methods[-1] == ("feed" if name == "cdf-table" else "full")


class TestDrift:
    def test_a_column_that_changed_its_type(self, library: Library, tmp_path: Path) -> None:
        path = tmp_path / "d"
        rows = table(20).append_column("price", pa.array(range(20), pa.int64()))
        write_deltalake(path, rows, configuration=FEED)
        library.sync(path, **COLUMNS)
        other = rows.set_column(3, "price", pa.array([str(n) for n in range(20)]))
        write_deltalake(path, other, mode="overwrite", schema_mode="overwrite")
        with pytest.raises(ValueError, match="the column 'price' was int64 in version 0, and is string in version 1"):
            library.sync(path, **COLUMNS)
        assert library.metadata["source"]["version"] == 0
        assert library.sync(path, **COLUMNS, metadata=["aisle"]).new_columns == []
        assert library.sync(path, **COLUMNS, follow_types=True).method == "full"
        assert contents(library)["3#0"][1]["price"] == "3"

    def test_a_column_that_vanished(self, library: Library, delta: Path) -> None:
        library.sync(delta, **COLUMNS, metadata=["aisle"])
        write_deltalake(delta, table(100).drop_columns(["aisle"]), mode="overwrite", schema_mode="overwrite")
        with pytest.raises(ValueError, match="metadata names the column 'aisle', which the table does not have"):
            library.sync(delta, **COLUMNS, metadata=["aisle"])
        with pytest.raises(ValueError, match="text names the column 'aisle', which the table does not have"):
            library.sync(delta, id="id", text="{aisle}")
        assert len(library) == 100
        assert library.sync(delta, **COLUMNS).lost_columns == ["aisle"]


class TestDryRun:
    @pytest.mark.parametrize("feed", [True, False])
    def test_it_says_what_would_change(self, tmp_path: Path, words: WordEmbedder, *, feed: bool) -> None:
        path = tmp_path / "d"
        write_deltalake(path, table(100), configuration=FEED if feed else None)
        library = Library.open(tmp_path / "library", embedder=words)
        report = library.sync(path, **COLUMNS, dry_run=True)
        assert (report.dry_run, report.added, report.passages, report.tokens) == (True, 100, 0, 0)
        assert not (tmp_path / "library").exists()
        library.sync(path, **COLUMNS)
        words.embedded.clear()
        DeltaTable(path).update(predicate="id = 3", updates={"text": "'three'"})
        DeltaTable(path).delete("id = 4")
        before = sorted((file, file.stat().st_mtime_ns) for file in (tmp_path / "library").rglob("*"))
        dry = library.sync(path, **COLUMNS, dry_run=True)
        assert before == sorted((file, file.stat().st_mtime_ns) for file in (tmp_path / "library").rglob("*"))
        assert not words.embedded
        assert (dry.method, dry.changed) == ("feed" if feed else "full", True)
        real = library.sync(path, **COLUMNS)
        for name in ("version", "read", "written", "skipped", "added", "updated", "deleted", "unchanged", "method"):
            assert getattr(dry, name) == getattr(real, name), name
        assert (dry.dry_run, real.dry_run) == (True, False)
        assert library.sync(path, **COLUMNS, dry_run=True).method == "none"


class TestKeep:
    def test_old_versions_stay_readable(self, library: Library, delta: Path, words: WordEmbedder) -> None:
        states = {}
        for n in range(5):
            if n:
                DeltaTable(delta).update(predicate=f"id = {n}", updates={"text": f"'new {n}'"})
            library.sync(delta, **COLUMNS, keep=3)
            states[n] = contents(library)
        assert [(one.version, one.passages, one.published) for one in library.versions()] == [
            (2, 100, False),
            (3, 100, False),
            (4, 100, True),
        ]
        for n in (2, 3, 4):
            old = Library.open(library.path, embedder=words, version=n)
            assert contents(old) == states[n]
            assert old.search(f"new {n}", k=1, hybrid=True)[0].source.version == n
            with pytest.raises(ValueError, match="it was opened at one version, to be read"):
                old.sync(delta, **COLUMNS)
        with pytest.raises(LookupError, match="has no version 1; it keeps 2, 3, 4"):
            Library.open(library.path, embedder=words, version=1)
        DeltaTable(delta).delete("id = 9")
        library.sync(delta, **COLUMNS, keep=1)
        assert [one.version for one in library.versions()] == [5]

    def test_a_kept_version_survives_cleaning(self, library: Library, delta: Path) -> None:
        library.sync(delta, **COLUMNS, keep=2)
        before = contents(library)
        # A sync of everything anew cleans up after itself.
        library.sync(delta, id="id", text="The {text}", keep=2)
        library.table.checkout_latest()
        assert contents(Library.open(library.path, embedder=WordEmbedder())) != before
        table = lancedb.connect(library.path).open_table("passages")
        table.checkout(library._storage.kept_versions(table)[0])
        assert {row["text"] for row in table.search().limit(None).to_list()} == {text for text, _ in before.values()}

    @pytest.mark.parametrize("keep", [0, -1, True, 1.5])
    def test_bad_numbers(self, library: Library, delta: Path, keep: Any) -> None:
        with pytest.raises(ValueError, match="keep must be a whole number from 1 on"):
            library.sync(delta, **COLUMNS, keep=keep)


class TestResume:
    def test_what_was_embedded_is_not_embedded_again(self, tmp_path: Path, words: WordEmbedder) -> None:
        path = tmp_path / "d"
        write_deltalake(path, table(3000))

        class Fails(WordEmbedder):
            def encode(self, texts: list[str], kind: str = "passage") -> Any:
                if len(self.embedded) >= 1500:
                    raise RuntimeError("the model broke")
                return super().encode(texts, kind)

        with pytest.raises(RuntimeError, match="the model broke"):
            Library.open(tmp_path / "l", embedder=Fails()).sync(path, **COLUMNS)
        journal = tmp_path / "l" / "passages.journal"
        assert journal.exists()
        library = Library.open(tmp_path / "l", embedder=words)
        report = library.sync(path, **COLUMNS)
        assert report.resumed >= 1500
        assert report.resumed + len(words.embedded) == 3000
        assert len(contents(library)) == 3000
        assert not journal.exists()

    @pytest.mark.parametrize("damage", ["cut", "zeros", "noise", "header", "empty"])
    def test_a_torn_journal(self, tmp_path: Path, words: WordEmbedder, damage: str) -> None:
        self.test_what_was_embedded_is_not_embedded_again(tmp_path / "a", words)
        path = tmp_path / "a" / "d"
        journal = tmp_path / "l" / "passages.journal"

        class Fails(WordEmbedder):
            def encode(self, texts: list[str], kind: str = "passage") -> Any:
                if len(self.embedded) >= 1000:
                    raise RuntimeError("the model broke")
                return super().encode(texts, kind)

        with pytest.raises(RuntimeError):
            Library.open(tmp_path / "l", embedder=Fails()).sync(path, **COLUMNS)
        data = bytearray(journal.read_bytes())
        middle = len(data) // 2
        torn = {
            "cut": data[: middle + 3],
            "zeros": data[:middle] + bytes(len(data) - middle),
            "noise": data[:middle] + bytes(random.Random(1).randbytes(5000)) + data[middle + 5000 :],
            "header": b'{"name": "other"}\n' + data,
            "empty": b"",
        }[damage]
        journal.write_bytes(torn)
        words.embedded.clear()
        library = Library.open(tmp_path / "l", embedder=words)
        report = library.sync(path, **COLUMNS)
        assert report.resumed + len(words.embedded) == 3000
        assert (report.resumed > 0) == (damage not in ("header", "empty"))
        assert len(contents(library)) == 3000

    def test_another_model_computes_its_own(self, tmp_path: Path) -> None:
        path = tmp_path / "d"
        write_deltalake(path, table(600))

        class Fails(WordEmbedder):
            def encode(self, texts: list[str], kind: str = "passage") -> Any:
                if self.embedded:
                    raise RuntimeError("the model broke")
                return super().encode(texts, kind)

        with pytest.raises(RuntimeError):
            Library.open(tmp_path / "l", embedder=Fails()).sync(path, **COLUMNS)
        report = Library.open(tmp_path / "l", embedder=WordEmbedder(dim=16)).sync(path, **COLUMNS)
        assert (report.resumed, report.passages) == (0, 600)


@pytest.mark.alone
def test_the_figures_in_short(tmp_path: Path) -> None:
    """A hundredth of the rows changed: a hundredth is embedded, in little time, in little memory."""
    small = bench_sync.measure(tmp_path, 2_000)
    first, second = bench_sync.measure(tmp_path, 20_000)
    assert (first["method"], first["embedded"], first["passages"]) == ("full", 20_000, 20_000)
    assert (second["method"], second["embedded"], second["changed"]) == ("feed", 200, 200)
    assert second["passages"] == 20_000
    # Of so few rows, what a sync costs at least is a good part.
    assert second["seconds"] < 0.5 * first["seconds"]
    assert max(first["peak_mib"], second["peak_mib"]) < 1.3 * max(report["peak_mib"] for report in small)
