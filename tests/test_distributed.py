"""A sync by Daft: the same rows and vectors as on one machine, from any table, whatever a worker does."""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from deltalake import DeltaTable, write_deltalake

from adventures.cli import app
from adventures.distributed import DaftRunner
from adventures.distributed.parts import parts_of
from adventures.library import Library
from test_follow import FEED
from test_library import contents, table
from words import WordEmbedder

if TYPE_CHECKING:
    import adventures as adv

SHARED = Path(__file__).parents[1] / ".." / "shared" / "data" / "delta-tables"
COLUMNS: dict[str, Any] = {"id": "id", "text": "{text}"}


def runner(**options: Any) -> DaftRunner:
    return DaftRunner(WordEmbedder, rows=30, **options)  # type: ignore[arg-type]


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library.open(tmp_path / "library", embedder=WordEmbedder())


def scanned(table: DeltaTable) -> list[str]:
    return sorted(map(str, pa.RecordBatchReader.from_stream(table.scan()).read_all().to_pylist()))


def in_parts(table: DeltaTable, rows: int, predicate: str | None = None) -> list[str]:
    names = [field.name for field in table.schema().fields]
    found = [part.scan(names, predicate).read_all() for part in parts_of(table, rows)]
    return sorted(str(row) for part in found for row in part.to_pylist())


class TestParts:
    @pytest.mark.skipif(not SHARED.exists(), reason=f"{SHARED} is not here")
    @pytest.mark.parametrize("name", ["simple_table", "table-with-dv-small", "table_with_column_mapping", "cdf-table"])
    def test_tables_of_other_writers(self, name: str) -> None:
        for version in range(DeltaTable(SHARED / name).version() + 1):
            whole = DeltaTable(SHARED / name, version=version)
            for rows in (2, 100):
                assert in_parts(whole, rows) == scanned(whole)

    def test_a_life(self, tmp_path: Path) -> None:
        path = tmp_path / "d"
        rows = table(100).append_column("at", pa.array([dt.datetime(2024, 1, 1, 0, 0, n % 60) for n in range(100)]))
        rows = rows.set_column(2, "aisle", pa.array([("a b/c%2F", None, "ü=")[n % 3] for n in range(100)]))
        write_deltalake(path, rows, partition_by=["aisle"])
        DeltaTable(path).update(predicate="id < 10", updates={"text": "concat(text, '!')"})
        DeltaTable(path).delete("id % 7 = 0")
        more = rows.slice(0, 3).append_column("extra", pa.array(["x", None, "y"]))
        write_deltalake(path, more, mode="append", schema_mode="merge", partition_by=["aisle"])
        whole = DeltaTable(path)
        for size in (7, 1000):
            assert in_parts(whole, size) == scanned(whole)
        where = "id > 20 AND (aisle IS NULL OR extra = 'x')"
        wanted = pa.RecordBatchReader.from_stream(whole.scan(predicate=where)).read_all().to_pylist()
        assert in_parts(whole, 7, where) == sorted(map(str, wanted))
        assert wanted

    def test_big_files_are_cut(self, tmp_path: Path) -> None:
        write_deltalake(tmp_path / "d", table(1000))
        parts = parts_of(DeltaTable(tmp_path / "d"), 300)
        assert [part.scan(["id"], None).read_all().num_rows for part in parts] == [300, 300, 300, 100]


class TestSync:
    def test_it_is_that_of_one_machine(self, library: Library, tmp_path: Path) -> None:
        path, other = tmp_path / "d", Library.open(tmp_path / "other", embedder=WordEmbedder())
        rows = table(100)
        twice = pa.table({"id": [3, 3, 200, 201], "text": ["three", "tres", None, " "], "aisle": ["x", "y", "z", "z"]})
        write_deltalake(path, pa.concat_tables([rows, twice]), partition_by=["aisle"], configuration=FEED)

        def both(**options: Any) -> None:
            left = library.sync(path, **COLUMNS, **options, runner=runner())
            right = other.sync(path, **COLUMNS, **options)
            for name in ("method", "read", "written", "added", "updated", "deleted", "unchanged", "passages", "tokens"):
                assert getattr(left, name) == getattr(right, name), name
            assert {one.reason: one.count for one in left.skipped} == {one.reason: one.count for one in right.skipped}
            assert contents(library) == contents(other)
            vectors = [one.table.to_arrow().sort_by("id").column("vector") for one in (library, other)]
            assert np.array_equal(*(np.array(column.to_pylist()) for column in vectors))

        both()
        DeltaTable(path).update(predicate="id = 30", updates={"text": "'thirty'"})
        DeltaTable(path).update(predicate="id = 31", updates={"aisle": "'moved'"})
        DeltaTable(path).delete("id = 32")
        both()
        DeltaTable(path).update(predicate="id > 40", updates={"text": "concat(text, '?')"})
        both()
        # Nothing is written then.
        DeltaTable(path).delete("id = 33")
        both()
        both(metadata=[])
        both(where="aisle = 'a1' AND id < 90")
        assert library.sync(path, **COLUMNS, where="aisle = 'a1' AND id < 90", runner=runner()).method == "none"
        both(where="id > 1000")
        DeltaTable(path).delete()
        both()

    def test_one_commit_for_all_parts(self, library: Library, tmp_path: Path) -> None:
        write_deltalake(tmp_path / "d", table(200))
        library.sync(tmp_path / "d", **COLUMNS, runner=runner())
        lance = lancedb.connect(library.path).open_table("passages")
        counts = []
        for version in lance.list_versions():
            lance.checkout(version["version"])
            counts.append(lance.count_rows())
        assert set(counts) <= {0, 200}

    def test_an_error_of_a_part_is_ours(self, library: Library, tmp_path: Path) -> None:
        write_deltalake(tmp_path / "d", table(100))
        library.sync(tmp_path / "d", **COLUMNS, runner=runner())
        write_deltalake(tmp_path / "d", table(1, start=500), mode="append")
        other = DaftRunner(lambda: WordEmbedder(name="others"), rows=30)  # type: ignore[arg-type, return-value]
        with pytest.raises(ValueError, match="the workers load another model than the library's"):
            library.sync(tmp_path / "d", **COLUMNS, runner=other)
        assert len(library) == 100
        assert library.sync(tmp_path / "d", **COLUMNS, runner=runner()).added == 1
        with pytest.raises(ValueError, match="cannot read the Delta table") as failed:
            library.sync(tmp_path / "d", **COLUMNS, where="nowhere = 1", runner=runner())
        assert "nowhere" in str(failed.value)
        assert "Traceback" not in str(failed.value)

    def test_what_it_cannot_do(self, library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_deltalake(tmp_path / "d", table(10))
        monkeypatch.setitem(sys.modules, "ray", None)
        with pytest.raises(ImportError, match=r"pip install 'adventures\[distributed\]'"):
            library.sync(tmp_path / "d", **COLUMNS, runner=runner(engine="ray"))
        postgres: Any = object()
        with pytest.raises(ValueError, match="Daft writes libraries in LanceDB only"):
            runner().check(postgres)

    def test_bad_numbers(self) -> None:
        for name in ("workers", "cpus", "rows"):
            with pytest.raises(ValueError, match=f"{name} must be a whole number from 1 on, not 0"):
                DaftRunner(WordEmbedder, **{name: 0})  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="engine must be 'native' or 'ray', not 'spark'"):
            DaftRunner(WordEmbedder, engine="spark")  # type: ignore[arg-type]


def test_the_command(tmp_path: Path, minilm: adv.Embedder) -> None:
    write_deltalake(tmp_path / "d", table(40))
    sync = ["sync", "--delta", str(tmp_path / "d"), "--id", "id", "--text", "{text}", "--threads", "1"]
    for name, more in (("alone", []), ("daft", ["--runner", "daft"])):
        result = CliRunner().invoke(app, [*sync, "-l", str(tmp_path / name), *more])
        assert result.exit_code == 0, result.output
        assert "40 added; 40 passages" in result.stdout
    write_deltalake(tmp_path / "d", table(1, start=500), mode="append")
    result = CliRunner().invoke(app, [*sync, "-l", str(tmp_path / "daft"), "--runner", "daft"])
    assert "1 added, 40 unchanged" in result.stdout
    found, expected = (
        Library.open(tmp_path / name, embedder=minilm).search("row 7 of the ledger", k=3) for name in ("daft", "alone")
    )
    assert [(hit.id, hit.similarity) for hit in found] == [(hit.id, hit.similarity) for hit in expected]


@pytest.mark.skipif(not os.environ.get("RAY"), reason="starts a Ray: RAY=1, as `make ray-test` does")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kill", [False, True])
def test_two_workers_of_a_cluster(tmp_path: Path, *, kill: bool) -> None:
    """The same rows as on one machine, also where a worker is killed as it embeds."""
    write_deltalake(tmp_path / "d", table(1000), partition_by=["aisle"])
    arguments = [tmp_path / "d", tmp_path / "l", tmp_path, *(["kill"] if kill else [])]
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("distributed.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        # Ray's workers let all others go first; on a busy machine they would not start in the time that Daft gives.
        env={**os.environ, "RAY_worker_niceness": "0"},
    )
    assert done.returncode == 0, done.stderr
    # Ray tells on stdout, too, that a worker is gone.
    report = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert (report["added"], report["passages"]) == (1000, 1000)
    assert (tmp_path / "killed").exists() == kill
    library = Library.open(tmp_path / "l", embedder=WordEmbedder())
    other = Library.open(tmp_path / "other", embedder=WordEmbedder())
    other.sync(tmp_path / "d", **COLUMNS)
    assert contents(library) == contents(other)
