"""A Delta table and its library on an object store: what is synced, followed and found, on S3, Google and Azure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner
from deltalake import DeltaTable, write_deltalake

import adventures as adv
from adventures import demo
from adventures.cli import app
from adventures.library import Library
from object_store import Place, google_at
from serving import Server, program
from test_follow import COLUMNS, FEED
from test_library import contents, table
from words import WordEmbedder


@pytest.fixture(params=["s3", "gs", "az"])
def bucket(request: pytest.FixtureRequest) -> Place:
    return request.getfixturevalue(request.param)()


def library(bucket: Place) -> Library:
    return Library.open(f"{bucket.uri}/library", embedder=WordEmbedder(), storage_options=bucket.options)


def test_a_table_is_followed(bucket: Place, tmp_path: Path) -> None:
    delta, options = f"{bucket.uri}/delta", bucket.options
    write_deltalake(delta, table(200), configuration=FEED, storage_options=options)
    shop = library(bucket)
    first = shop.sync(delta, **COLUMNS, storage_options=options)
    assert (first.added, first.method) == (200, "full")
    reader = library(bucket)
    before = contents(reader)

    write_deltalake(delta, table(20, start=200), mode="append", storage_options=options)
    changed = DeltaTable(delta, storage_options=options)
    changed.update(predicate="id % 50 = 0", updates={"text": "'a rope of silk'"})
    changed.delete("id % 40 = 1")
    planned = shop.sync(delta, **COLUMNS, storage_options=options, dry_run=True)
    assert contents(reader) == before
    second = shop.sync(delta, **COLUMNS, storage_options=options)
    assert (second.added, second.updated, second.deleted, second.method) == (19, 4, 5, "feed")
    assert (planned.added, planned.updated, planned.deleted) == (19, 4, 5)

    write_deltalake(tmp_path / "delta", changed.to_pyarrow_table())
    own = Library.open(tmp_path / "library", embedder=WordEmbedder())
    own.sync(tmp_path / "delta", **COLUMNS)
    assert contents(reader) == contents(own)
    found = reader.search("a rope of silk", k=5, hybrid=True)
    assert {hit.text for hit in found} == {"a rope of silk"}
    assert found[0].source.table.startswith(bucket.uri)


def test_what_cannot_be_reached_is_named(bucket: Place) -> None:
    with pytest.raises(FileNotFoundError, match=f"no Delta table at {bucket.uri}/nothing"):
        library(bucket).sync(f"{bucket.uri}/nothing", **COLUMNS, storage_options=bucket.options)
    nowhere = f"{bucket.uri.partition(':')[0]}://no-such-place/table"
    with pytest.raises(OSError, match=f"cannot open the Delta table {nowhere}: .*does not exist") as caught:
        library(bucket).sync(nowhere, **COLUMNS, storage_options=bucket.options)
    assert str(caught.value).isprintable()


def test_by_commands(bucket: Place) -> None:
    delta = f"{bucket.uri}/delta"
    rows = {"id": ["a", "b"], "text": ["a rope for climbing", "a lamp for caves"]}
    write_deltalake(delta, pa.table(rows), storage_options=bucket.options)
    place = ("--library", f"{bucket.uri}/library", "--table", "tools")

    def run(*arguments: str, **environment: str) -> str:
        result = CliRunner(env={"ADVENTURES_LIBRARY": None, **environment}).invoke(app, arguments)
        assert result.exit_code == 0, result.output
        return result.stdout

    done = run("sync", "--delta", delta, *place, "--id", "id", "--text", "{text}", *bucket.flags)
    assert done.startswith("version 0: 2 added; 2 passages")
    assert run("library", "versions", *place, *bucket.flags) == "version 0: 2 passages, published\n"
    # The variable, too, with commas between settings.
    variable = ",".join(f"{name}={value}" for name, value in bucket.options.items())
    found = run("search", "light below ground", *place, "-k", "1", ADVENTURES_STORAGE_OPTION=variable)
    assert found.endswith("b: a lamp for caves\n")


class TestService:
    """The service over a library on an object store; that it follows is in test_replicas.py."""

    def test_it_finds_what_it_finds_in_a_folder(self, bucket: Place, stock: adv.Library, minilm: adv.Embedder) -> None:
        own = adv.Library.open(f"{bucket.uri}/library", embedder=minilm, storage_options=bucket.options)
        demo.write_table(delta := Path(stock.path).parent / "delta-of-the-store")
        own.sync(delta, id="scenario", text=demo.TEXT)
        common = ("--generator", "none")
        with (
            Server("--library", own.path, *bucket.flags, *common) as there,
            Server("--library", stock.path, *common) as here,
        ):
            assert there.get("/info").json()["library"]["passages"] == here.get("/info").json()["library"]["passages"]
            for ask in (
                {"query": "a rope for an icy cliff"},
                {"query": "a rope for an icy cliff", "hybrid": True, "k": 9},
                {"query": "a light in a cave", "where": {"category": "potion"}, "expand": 1},
            ):
                found, expected = there.post("/v1/search", ask), here.post("/v1/search", ask)
                assert found.status == expected.status == 200, found.json()
                kept = ("id", "text", "similarity", "score", "metadata")
                assert [{key: hit[key] for key in kept} for hit in found.json()["hits"]] == [
                    {key: hit[key] for key in kept} for hit in expected.json()["hits"]
                ]

    def test_started_from_python(self, bucket: Place, minilm: adv.Embedder, tmp_path: Path) -> None:
        """`adventures serve` asks the library for its model before it becomes the service."""
        own = adv.Library.open(f"{bucket.uri}/library", embedder=minilm, storage_options=bucket.options)
        write_deltalake(tmp_path / "delta", table(20))
        own.sync(tmp_path / "delta", **COLUMNS)
        program()
        command = [sys.executable, "-m", "adventures", "serve"]
        with Server("--library", own.path, *bucket.flags, "--generator", "none", command=command) as server:
            assert server.get("/info").json()["library"]["passages"] == 20
            assert server.stop() == 0
        (config := tmp_path / "config.toml").write_text(f'library = "{own.path}"\ngenerator = "none"\n')
        # Google's key itself, JSON with commas in it.
        options = dict(bucket.options)
        if key := options.pop("google_service_account", None):
            options["google_service_account_key"] = Path(key).read_text()
        variables = {
            "ADVENTURES_CONFIG": str(config),
            "ADVENTURES_STORAGE_OPTION": ",".join(f"{name}={value}" for name, value in options.items()),
        }
        with Server(command=command, env=variables) as server:
            assert server.get("/info").json()["library"]["passages"] == 20

    @pytest.mark.parametrize("option", ["secret", "=secret"])
    def test_a_setting_that_is_none(self, option: str) -> None:
        """It is refused before the library is asked for."""
        program()
        command = [sys.executable, "-m", "adventures", "serve", "-l", "s3://shop/library", "--storage-option", option]
        finished = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert finished.returncode == 2
        assert "storage-option 1: expected NAME=VALUE" in finished.stderr
        assert "secret" not in finished.stderr

    def test_what_is_not_there_is_named(self, bucket: Place, tmp_path: Path) -> None:
        store = bucket.uri.partition(":")[0]
        nowhere = "http://127.0.0.1:1"
        what, elsewhere = {
            "s3": ("bucket", {"aws_endpoint": nowhere}),
            "gs": ("bucket", google_at(nowhere, tmp_path)),
            "az": (
                "container",
                {"azure_storage_use_emulator": "false", "azure_storage_endpoint": nowhere, "allow_http": "true"},
            ),
        }[store]
        secret = bucket.options.get("azure_storage_account_key", "secret")
        for library, options, message in (
            (f"{bucket.uri}/nothing", {}, f"no library at {bucket.uri}/nothing"),
            (f"{store}://no-such-{what}/library", {}, f"The specified {what} does not exist"),
            (f"{bucket.uri}/library", elsewhere, "127.0.0.1:1"),
        ):
            more = Place(library, options).flags
            command = [program(), "--port", "0", "--generator", "none", "--library", library, *bucket.flags, *more]
            finished = subprocess.run(command, capture_output=True, text=True, timeout=60)
            assert finished.returncode == 1
            said = finished.stderr.splitlines()[-1]
            assert library in said
            assert said.count(message) == 1
            assert secret not in finished.stderr
