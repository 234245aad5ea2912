"""The command line: what it prints where, how it ends, and what it says to bad input."""

from __future__ import annotations

import json
import math
import os
import pty
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result
from deltalake import write_deltalake

import adventures as adv
import tiny
from adventures.cli import app
from adventures.cli.options import parse_where
from adventures.models import list_models

if TYPE_CHECKING:
    from pathlib import Path

ROWS = {
    "scenario": ["an icy cliff", "a dark cave", "a rainy night", "a long road"],
    "advice": ["the Winter Boots", "the Moth Lantern", "the Dry Tarpaulin", "the Ninth Boot"],
    "price": [40, 15, 12, 38],
}


def invoke(*arguments: str, stdin: str | bytes | None = None, **environment: str | None) -> Result:
    """Runs a command in this process."""
    return CliRunner(env={"ADVENTURES_DEBUG": None, "ADVENTURES_LIBRARY": None, **environment}).invoke(
        app, list(arguments), input=stdin
    )


def start(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    """Starts a command as a process of its own."""
    environment = {**os.environ, **options.pop("env", {})}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([sys.executable, "-m", "adventures", *arguments], env=environment, **{**pipes, **options})


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Delta table of four rows."""
    path = tmp_path_factory.mktemp("cli") / "table"
    write_deltalake(path, pa.table(ROWS))
    return path


@pytest.fixture(scope="module")
def library(table: Path) -> Path:
    """The library of that table, made by the command."""
    path = table.parent / "library"
    text = "For {scenario} you should use {advice}"
    result = invoke("sync", "--delta", str(table), "-l", str(path), "--id", "scenario", "--text", text)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("version 0: 4 added; 4 passages in ")
    return path


def commands(command: click.Command = app, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every command and group, by the words that call it."""
    below = command.commands.items() if isinstance(command, click.Group) else ()
    return [path, *(words for name, each in below for words in commands(each, (*path, name)))]


class TestHelp:
    @pytest.mark.parametrize("words", commands(), ids=" ".join)
    def test_teaches_with_an_example(self, words: tuple[str, ...]) -> None:
        result = invoke(*words, "--help")
        assert result.exit_code == 0
        assert result.stderr == ""
        assert result.stdout == invoke(*words, "-h").stdout
        if words != ("models",):
            assert re.search(rf"^ {{4,}}adventures {' '.join(words)}", result.stdout, re.MULTILINE)
        assert max(map(len, result.stdout.splitlines())) <= 100

    def test_commands_come_in_the_order_of_a_first_day(self) -> None:
        listed = re.findall(r"^  (\w+)  +\S", invoke("--help").stdout.split("Commands:")[1], re.MULTILINE)
        assert listed == [
            "demo",
            "models",
            "embed",
            "sync",
            "search",
            "library",
            "index",
            "ask",
            "chat",
            "eval",
            "serve",
        ]

    def test_version(self) -> None:
        assert invoke("--version").stdout == f"adventures {adv.__version__}\n"

    def test_examples_parse(self) -> None:
        """Options in the examples of the help exist: a renamed one would stay in the text."""
        for words in commands():
            command: click.Command = app
            for word in words:
                assert isinstance(command, click.Group)
                command = command.commands[word]
            for example in re.findall(r"^ +(adventures .*)$", command.help or "", re.MULTILINE):
                used = re.findall(r"(?<= )--?[a-z][a-z-]*", example.split(" | ")[0])
                target: click.Command = app
                for word in example.split()[1:]:
                    if isinstance(target, click.Group) and word in target.commands:
                        target = target.commands[word]
                known = {name for parameter in target.params for name in parameter.opts}
                if target.name == "serve":
                    known |= {"--port"}  # the service's own, which it passes on
                assert set(used) <= known, example


class TestUsage:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["nope"], "No such command 'nope'"),
            (["--nope"], "No such option '--nope'"),
            (["ask"], "Missing argument 'QUESTION'"),
            (["ask", "why"], "Missing option '-l' / '--library'"),
            (["search", "why", "-l", "x", "-k", "0"], "0 is not in the range 1<=x<=1000000"),
            (["search", "why", "-l", "x", "--expand", "101"], "101 is not in the range 0<=x<=100"),
            (["search", "why", "-l", "x", "--mmr", "1.5"], "1.5 is not in the range 0<=x<=1"),
            (["search", "why", "-l", "x", "--mmr", "1", "-r", "y"], "each choose an order: give one of them"),
            (["search", "why", "-l", "x", "--where", "price"], "'price' is not COLUMN=VALUE"),
            (["search", "why", "-l", "x", "-w", "a<1", "-w", "a<2"], "a< comes twice"),
            (["search", "why", "-l", "x", "-w", 'a={"lt": 1}', "-w", "a<2"], "a< comes twice"),
            (["search", "why", "-l", "x", "--storage-option", "secret"], "'--storage-option': expected NAME=VALUE"),
            (["sync", "--delta", "x", "-l", "y", "--id", "a", "--text", "b", "--workers", "2"], "is of --runner ray"),
            (["eval", "compare", "demo", "dense", "--table", "x"], "are of a library: name it with --library"),
            (["search", "why", "-l", "x", "-w", "a=1", "-w", "a = 2"], 'a= comes twice; for either, a=["a", "b"]'),
            (["sync", "--delta", "x", "-l", "y", "--text", "{a}"], "Missing option '--id'"),
            (["ask", "why", "-l", "x", "--seed", str(2**64)], "is not in the range 0<=x<=18446744073709551615"),
            (["ask", "why", "-l", "x", "--max-tokens", str(2**64)], "is not in the range 1<=x<=1000000"),
            (["models", "pull"], "Missing argument 'NAME"),
            (["models", "pull", "x", "--source", "ftp"], "'ftp' is not one of 'auto', 'hub', 'pypi'"),
            (["embed", "--kind", "poem"], "'poem' is not one of"),
            (["embed", "--threads", "0"], "0 is not in the range"),
            (["eval", "answers", "x.jsonl"], "give both, or neither for the demo"),
            (["eval", "answers", "-l", "x"], "give both, or neither for the demo"),
            (["eval", "compare", "x.jsonl", "dense"], "x.jsonl judges rows of a library: name it with --library"),
            (["eval", "calibrate", "x.jsonl"], "x.jsonl judges rows of a library: name it with --library"),
            (["eval", "calibrate", "--recall", "0"], "0.0 is not in the range 0<x<=1"),
        ],
    )
    def test_wrong_use_ends_with_2(self, arguments: list[str], message: str) -> None:
        result = invoke(*arguments)
        assert result.exit_code == 2
        assert result.stdout == ""
        assert message in result.stderr
        assert "Usage: " in result.stderr

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["search", "why", "-l", "{tmp}/none"], "error: no library at {tmp}/none; `adventures sync` makes one"),
            (["search", "why", "-l", "{tmp}/file"], "error: cannot open a library at {tmp}/file: it is a file"),
            (["search", "", "-l", "{library}"], "error: the query is empty"),
            (["search", "why", "-l", "{library}", "-w", "colour=red"], "error: where names the column 'colour'"),
            (["search", "why", "-l", "{library}", "-w", "price=cheap"], "error: "),
            (["search", "why", "-l", "{library}", "-e", "nope"], "error: no model 'nope' in the catalogue"),
            (["search", "why", "-l", "{library}", "-r", "nope"], "error: no model 'nope' in the catalogue"),
            (
                ["search", "why", "-l", "{library}", "-r", "all-minilm-l6-v2"],
                "error: all-minilm-l6-v2 is not a reranker",
            ),
            (
                ["search", "why", "-l", "{library}", "-e", "smollm2-135m-instruct"],
                "error: smollm2-135m-instruct is not an",
            ),
            (
                ["sync", "--delta", "{tmp}/none", "-l", "{tmp}/l", "--id", "a", "--text", "{{a}}"],
                "error: no Delta table at",
            ),
            (["sync", "--delta", "{table}", "-l", "{tmp}/l", "--id", "nope", "--text", "{{advice}}"], "error: "),
            (["sync", "--delta", "{table}", "-l", "{tmp}/l", "--id", "scenario", "--text", "{{nope}}"], "error: "),
            (["sync", "--delta", "{table}", "-l", "{tmp}/l", "--id", "scenario", "--text", "{{advice"], "error: "),
            (["models", "show", "nope"], "error: no model 'nope' in the catalogue"),
            (["models", "pull", "nope"], "error: no model 'nope' in the catalogue"),
            (["models", "pull", "a/b", "--source", "pypi"], "error: a/b is a hub id"),
            (["embed", "{tmp}/none.txt"], "error: no such file or directory: {tmp}/none.txt"),
            (["embed", "{tmp}"], "error: is a directory: {tmp}"),
            (["embed", "{tmp}/latin.txt"], "error: {tmp}/latin.txt, line 2: not UTF-8"),
            (["embed", "{tmp}/file", "-o", "{tmp}/none/x.npy"], "error: no such file or directory: {tmp}/none"),
            (["embed", "{tmp}/file", "-e", "./none"], "error: no model at none"),
            (["embed", "{tmp}/file", "--device", "cuda:99"], "error: "),
            (["eval", "compare", "demo"], "error: there is no setting to compare; dense and hybrid are two"),
            (["eval", "compare", "demo", "rrf"], "error: the setting 'rrf' must begin with dense or hybrid"),
            (
                ["eval", "compare", "demo", "dense", "--plot", "x.gif"],
                "error: a plot is written to a file",
            ),
            (["eval", "compare", "{tmp}/none", "dense"], "error: no data set at {tmp}/none"),
            (["eval", "calibrate", "--off-topic", "{tmp}/none"], "error: no such file or directory: {tmp}/none"),
            (["eval", "{tmp}/none.zip"], "error: no data set at {tmp}/none.zip"),
            (["eval", "{tmp}/file"], "error: {tmp}/file is neither a folder nor a zip"),
            (["ask", "why", "-l", "{tmp}/none"], "error: no library at {tmp}/none"),
            (["chat", "-l", "{tmp}/none"], "error: no library at {tmp}/none"),
            (["demo", "--data", "{tmp}/file"], "error: file exists: {tmp}/file"),
        ],
    )
    def test_failures_are_one_line_and_end_with_1(
        self, arguments: list[str], message: str, tmp_path: Path, library: Path, table: Path
    ) -> None:
        (tmp_path / "file").write_text("x")
        (tmp_path / "latin.txt").write_bytes("x\ncafé\n".encode("latin-1"))
        places = {"tmp": str(tmp_path), "library": str(library), "table": str(table)}
        result = invoke(*(argument.format(**places) for argument in arguments))
        assert result.exit_code == 1, result.output
        assert result.stdout == ""
        lines = result.stderr.splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        assert lines[-1:] == errors
        assert errors[0].startswith(message.format(**places))
        assert "Traceback" not in result.stderr
        assert "bug" not in result.stderr
        assert ".part" not in result.stderr, "a file of our own making, which nobody named"

    def test_debug_shows_where(self) -> None:
        for arguments, environment in [(["--debug"], {}), ([], {"ADVENTURES_DEBUG": "1"})]:
            process = start(*arguments, "models", "show", "nope", env=environment)
            _, err = process.communicate(timeout=60)
            assert process.returncode == 1
            assert b"Traceback" in err
            assert b"LookupError: no model 'nope'" in err


class TestModels:
    def test_list_is_the_catalogue(self) -> None:
        lines = invoke("models", "list").stdout.splitlines()
        assert lines[0].split() == ["NAME", "KIND", "SIZE", "PULLED", "LICENCE"]
        assert [line.split()[0] for line in lines[1:]] == [model.name for model in list_models()]

    def test_json_is_a_line_for_each(self) -> None:
        entries = [
            json.loads(line) for line in invoke("models", "list", "--kind", "generator", "--json").stdout.splitlines()
        ]
        assert [entry["name"] for entry in entries] == [model.name for model in list_models("generator")]
        assert {entry["kind"] for entry in entries} == {"generator"}

    def test_show_spells_a_profile(self) -> None:
        shown = invoke("models", "show", "smollm2-135m-instruct").stdout
        assert re.search(r'^profile: prefix +"\[1\]"$', shown, re.MULTILINE)
        assert re.search(r"^profile: examples +2 worked turns", shown, re.MULTILINE)
        assert max(map(len, shown.splitlines()[1:])) < 200, "examples are pages, not a line"

    def test_show(self, tmp_path: Path) -> None:
        shown = invoke("models", "show", "Gemma-2B-it", ADVENTURES_CACHE=str(tmp_path)).stdout
        assert "gemma-2b-it: generator" in shown
        assert "asks for a token" in shown
        assert not re.search("sha256|profile", shown)
        assert "adventures models pull gemma-2b-it" in shown
        entry = json.loads(invoke("models", "show", "gemma-2b-it", "--json", ADVENTURES_CACHE=str(tmp_path)).stdout)
        assert (entry["repository"], entry["gated"], entry["path"]) == ("google/gemma-2b-it", True, None)

    def test_pull_prints_the_path_alone(self, minilm: adv.Embedder) -> None:
        result = invoke("models", "pull", "all-minilm-l6-v2")
        assert (result.exit_code, result.stdout) == (0, f"{minilm.path}\n")

    def test_offline_names_the_command(self, tmp_path: Path) -> None:
        environment = {"ADVENTURES_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
        process = start("embed", "-e", "all-minilm-l6-v2", env=environment)
        out, err = process.communicate(b"text\n", timeout=60)
        assert (process.returncode, out) == (1, b"")
        assert err.decode().strip().endswith("run: adventures models pull all-minilm-l6-v2")
        assert len(err.splitlines()) == 1


class TestEmbed:
    def test_lines_of_stdin(self, minilm: adv.Embedder) -> None:
        result = invoke("embed", stdin="a rope\n\nnaïve\u2028tea\r\n")
        records = [json.loads(line) for line in result.stdout.rstrip("\n").split("\n")]
        texts = ["a rope", "", "naïve\u2028tea"]
        assert [record["text"] for record in records] == texts
        assert np.array_equal(np.float32([record["vector"] for record in records]), minilm.embed(texts))

    def test_files_and_stdin_in_order(self, tmp_path: Path, minilm: adv.Embedder) -> None:
        (tmp_path / "a").write_text("one\ntwo")
        (tmp_path / "b").write_text("\ufefffour\n", encoding="utf-8")
        output = tmp_path / "all.npy"
        result = invoke("embed", str(tmp_path / "a"), "-", str(tmp_path / "b"), "-o", str(output), stdin="three\n")
        assert (result.exit_code, result.output) == (0, "")
        assert np.array_equal(np.load(output), minilm.embed(["one", "two", "three", "four"]))

    def test_whole_files_as_queries(self, tmp_path: Path, minilm: adv.Embedder) -> None:
        (tmp_path / "a").write_text("one\ntwo")
        result = invoke("embed", "--whole", "--kind", "query", "--format", "npy", str(tmp_path / "a"))
        (tmp_path / "out").write_bytes(result.stdout_bytes)
        assert np.array_equal(np.load(tmp_path / "out"), minilm.embed(["one\ntwo"], kind="query"))

    def test_nothing_in_nothing_out(self, tmp_path: Path, minilm: adv.Embedder) -> None:
        assert invoke("embed", stdin="").stdout == ""
        assert invoke("embed", "-o", str(tmp_path / "x.npy"), stdin="").exit_code == 0
        assert np.load(tmp_path / "x.npy").shape == (0, minilm.dim)

    def test_a_failure_leaves_no_file(self, tmp_path: Path) -> None:
        (tmp_path / "bad").write_bytes(b"fine\n\xff\n")
        (tmp_path / "out.jsonl").write_text("before")
        assert invoke("embed", str(tmp_path / "bad"), "-o", str(tmp_path / "out.jsonl")).exit_code == 1
        assert (tmp_path / "out.jsonl").read_text() == "before"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "out.jsonl"]

    def test_cut_texts_are_counted(self) -> None:
        result = invoke("embed", stdin="word " * 1000 + "\nshort\n")
        assert "warning: 1 texts were cut to the 256 tokens that all-minilm-l6-v2 reads" in result.stderr


class TestLibrary:
    def test_a_second_sync_does_nothing(self, table: Path, library: Path) -> None:
        arguments = ["--delta", str(table), "-l", str(library), "--id", "scenario"]
        result = invoke("sync", *arguments, "--text", "For {scenario} you should use {advice}", "--json")
        report = json.loads(result.stdout)
        assert (report["changed"], report["version"], report["written"], report["passages"]) == (False, 0, 4, 4)

    def test_a_dry_run_writes_nothing(self, table: Path, tmp_path: Path) -> None:
        arguments = ["--delta", str(table), "-l", str(tmp_path / "l"), "--id", "scenario", "--text", "{advice}"]
        result = invoke("sync", *arguments, "--dry-run")
        assert result.stdout == "version 0: 4 added; a dry run, nothing was written\n"
        assert not (tmp_path / "l").exists()

    def test_a_precision_stays_with_the_library(self, table: Path, tmp_path: Path) -> None:
        library = str(tmp_path / "l")
        sync = ["sync", "--delta", str(table), "-l", library, "--id", "scenario", "--text", "{advice}"]
        assert invoke(*sync, "--precision", "int8").exit_code == 0
        made_with = adv.Library.open(library, embedder=adv.Embedder("all-minilm-l6-v2", precision="int8")).metadata
        assert made_with["model"]["revision"].endswith("+int8")
        # Without the option, what it was made with goes on.
        assert invoke(*sync).stdout.startswith("version 0: nothing to do")
        assert invoke("search", "ice", "-l", library).exit_code == 0
        other = invoke(*sync, "--precision", "f32")
        assert other.exit_code == 1
        assert "int8" in other.stderr

    def test_several_libraries_at_one_place(self, table: Path, tmp_path: Path) -> None:
        sync = ["sync", "--delta", str(table), "-l", str(tmp_path / "l"), "--id", "scenario", "--text"]
        assert invoke(*sync, "{advice}").exit_code == 0
        assert invoke(*sync, "{scenario}", "--table", "other", "--rows", "scenario = 'an icy cliff'").exit_code == 0
        for name, count in (("passages", 4), ("other", 1)):
            told = invoke("library", "versions", "-l", str(tmp_path / "l"), "--table", name).stdout
            assert told == f"version 0: {count} passages, published\n"
        repaired = invoke("library", "repair", "-l", str(tmp_path / "l"), "--table", "other").stdout
        assert repaired == "version 0: 1 passages can be read\n"
        found = invoke("search", "ice", "-l", str(tmp_path / "l"), ADVENTURES_TABLE="other").stdout
        assert len(found.splitlines()) == 1
        lost = invoke("search", "ice", "-l", str(tmp_path / "l"), "--table", "none")
        assert lost.stderr == f"error: no library at {tmp_path / 'l'} (table 'none'); `adventures sync` makes one\n"

    def test_versions_and_repair(self, library: Path) -> None:
        assert invoke("library", "versions", "-l", str(library)).stdout == "version 0: 4 passages, published\n"
        assert invoke("library", "repair", "-l", str(library)).stdout == "version 0: 4 passages can be read\n"
        report = json.loads(invoke("library", "repair", "-l", str(library), "--json").stdout)
        assert (report["passages"], report["moved"], report["rebuilt"]) == (4, {}, [])

    def test_skipped_rows_are_told(self, tmp_path: Path) -> None:
        write_deltalake(tmp_path / "t", pa.table({"id": ["a", None, "c"], "text": ["x", "y", None]}))
        arguments = ["--delta", str(tmp_path / "t"), "-l", str(tmp_path / "l"), "--id", "id", "--text", "{text}"]
        result = invoke("sync", *arguments)
        assert result.exit_code == 0
        assert "version 0: 1 added; 1 passages" in result.stdout
        assert "skipped 1 rows: null id" in result.stderr
        assert "skipped 1 rows: null text (c)" in result.stderr

    def test_search(self, library: Path) -> None:
        result = invoke("search", "how do I climb on ice?", "-l", str(library), "-k", "2")
        assert result.exit_code == 0
        assert re.match(
            r"\[1\] 0\.\d\d  an icy cliff: For an icy cliff you should use the Winter Boots\n\[2\] ", result.stdout
        )
        assert invoke(
            "search", "-", "-k", "2", stdin="how do I climb on ice?\n", ADVENTURES_LIBRARY=str(library)
        ).stdout == (result.stdout)

    def test_search_with_a_reranker(self, library: Path, tmp_path: Path) -> None:
        model = tiny.cross_encoder(tmp_path / "reranker", seed=6)
        result = invoke("search", "ice", "-l", str(library), "-k", "3", "--rerank", str(model), "--json")
        scores = [json.loads(line)["score"] for line in result.stdout.splitlines()]
        assert len(scores) == 3
        assert scores == sorted(scores, reverse=True)
        shown = invoke("search", "ice", "-l", str(library), "-k", "3", "-r", str(model)).stdout.splitlines()
        assert [line.split()[1] for line in shown] == [f"{score:.2f}" for score in scores]

    def test_search_with_neighbours_and_for_variety(self, tmp_path: Path) -> None:
        tale = " ".join(f"Then knight {n} rode out to the mill." for n in range(60))
        write_deltalake(tmp_path / "t", pa.table({"id": ["a", "b"], "text": [tale, "A lamp."]}))
        arguments = ["--delta", str(tmp_path / "t"), "-l", str(tmp_path / "l"), "--id", "id", "--text", "{text}"]
        assert invoke("sync", *arguments, "--max-tokens", "64").exit_code == 0
        query = ["search", "knight 30", "-l", str(tmp_path / "l"), "-k", "1", "--json"]
        plain, wide, various = (
            json.loads(invoke(*query, *more).stdout) for more in ([], ["--expand", "1"], ["--mmr", "1"])
        )
        assert various == plain
        assert len(plain["passages"]) == 1
        assert wide["passages"] == list(range(plain["passages"][0] - 1, plain["passages"][0] + 2))
        assert plain["text"] in wide["text"]
        assert wide["text"] in tale

    def test_search_json(self, library: Path) -> None:
        result = invoke("search", "boots", "-l", str(library), "--json", "--where", "price<=38", "--where", "price>12")
        hits = [json.loads(line) for line in result.stdout.splitlines()]
        assert sorted(hit["metadata"]["price"] for hit in hits) == [15, 38]
        assert hits[0]["source"]["row"] in ({"scenario": "a long road"}, {"scenario": "a dark cave"})

    def test_json_is_json(self, tmp_path: Path) -> None:
        odd = {"id": [1], "text": ["boots"], "ratio": [math.nan], "ratios": [[1.5, math.inf]], "raw": [b"\x00\xff"]}
        write_deltalake(tmp_path / "t", pa.table(odd))
        invoke("sync", "--delta", str(tmp_path / "t"), "-l", str(tmp_path / "l"), "--id", "id", "--text", "{text}")
        result = invoke("search", "boots", "-l", str(tmp_path / "l"), "--json")
        hit = json.loads(result.stdout, parse_constant=pytest.fail)
        assert hit["metadata"] == {"ratio": None, "ratios": [1.5, None], "raw": "00ff"}

    def test_nothing_found(self, library: Path) -> None:
        result = invoke("search", "boots", "-l", str(library), "--where", "price>1000")
        assert (result.exit_code, result.stdout, result.stderr) == (0, "", "nothing found\n")

    @pytest.mark.parametrize(
        ("conditions", "expected"),
        [
            ([], None),
            (["a=1"], {"a": {"eq": 1}}),
            (["a=b"], {"a": {"eq": "b"}}),
            (["a = b c "], {"a": {"eq": "b c"}}),
            (['a="1"'], {"a": {"eq": "1"}}),
            (["a=null"], {"a": {"eq": None}}),
            (["a>=1", "a<3"], {"a": {"gte": 1, "lt": 3}}),
            (["a!=x"], {"a": {"ne": "x"}}),
            (["a!=x", "a!=1", 'a!=["y"]'], {"a": {"ne": ["x", 1, "y"]}}),
            (['a={"contains": "x"}', 'a={"ne": null}'], {"a": {"contains": "x", "ne": None}}),
            (['a=["x", "y"]'], {"a": {"in": ["x", "y"]}}),
            (["a=x=y"], {"a": {"eq": "x=y"}}),
            (["a="], {"a": {"eq": ""}}),
            (["a='; DROP TABLE"], {"a": {"eq": "'; DROP TABLE"}}),
            (["a=NaN", "b=-Infinity"], {"a": {"eq": "NaN"}, "b": {"eq": "-Infinity"}}),
        ],
    )
    def test_where(self, conditions: list[str], expected: dict[str, Any] | None) -> None:
        assert parse_where(conditions) == expected


class TestEval:
    def test_the_demo(self) -> None:
        scores = json.loads(invoke("eval", "--json").stdout)
        assert scores["mean"]["recall"]["5"] >= 0.95
        assert (scores["queries"], scores["unanswerable"]) == (60, 0)

    def test_a_data_set(self, tmp_path: Path) -> None:
        (tmp_path / "qrels").mkdir()
        (tmp_path / "corpus.jsonl").write_text('{"_id": "1", "text": "a rope"}\n{"_id": "2", "text": "a lamp"}\n')
        (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "something to see in the dark"}\n')
        (tmp_path / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq\t2\t1\n")
        result = invoke("eval", str(tmp_path), "--split", "dev")
        assert result.exit_code == 0
        assert re.search(r"^nDCG@10 +1\.0000$", result.stdout, re.MULTILINE)
        assert re.search(rf"^data +{re.escape(tmp_path.name)}: 1 queries, 2 documents$", result.stdout, re.MULTILINE)

    @pytest.fixture
    def set_(self, tmp_path: Path) -> Path:
        path = tmp_path / "tools"
        (path / "qrels").mkdir(parents=True)
        texts = ["a rope for climbing", "a lamp for caves", "boots for ice", "a bell for sheep"]
        (path / "corpus.jsonl").write_text("".join(f'{{"_id": "{n}", "text": "{t}"}}\n' for n, t in enumerate(texts)))
        asked = ["how do I climb?", "what gives light underground?", "slippery frozen ground", "where is my herd?"]
        (path / "queries.jsonl").write_text("".join(f'{{"_id": "q{n}", "text": "{t}"}}\n' for n, t in enumerate(asked)))
        (path / "qrels" / "test.tsv").write_text("".join(f"q{n}\t{n}\t1\n" for n in range(4)))
        return path

    def test_settings_compared(self, set_: Path, tmp_path: Path) -> None:
        (tmp_path / "more.toml").write_text('[[setting]]\nname = "few"\nk = 1\n')
        reranked = f"dense,rerank={tiny.cross_encoder(tmp_path / 'reranker', seed=6)}"
        arguments = ["eval", "compare", str(set_), "dense", reranked, "--settings", str(tmp_path / "more.toml")]
        page = tmp_path / "x.html"
        result = invoke(*arguments, "--plot", str(page))
        assert result.exit_code == 0, result.output
        heading, *lines = result.stdout.splitlines()
        assert heading.split()[:3] == ["setting", "nDCG@10", "recall@1"]
        assert [line.split()[0] for line in lines] == ["few", "dense", reranked]
        assert "tools: 4 questions" in page.read_text()
        outcomes = [json.loads(line) for line in invoke(*arguments, "--json").stdout.splitlines()]
        assert [outcome["setting"]["name"] for outcome in outcomes] == ["few", "dense", reranked]
        assert outcomes[0]["difference"] is None
        assert outcomes[1]["difference"]["low"] <= outcomes[1]["difference"]["mean"]
        assert outcomes[1]["measures"]["MRR"] >= outcomes[0]["measures"]["MRR"]

    def test_questions_about_a_library(self, library: Path, tmp_path: Path) -> None:
        questions = [("climbing on ice", "an icy cliff"), ("light below ground", "a dark cave")] * 2
        lines = [json.dumps({"user_input": text, "rows": [row]}) for text, row in questions]
        lines += [json.dumps({"user_input": text}) for text in ("tax law", "a sonata", "my printer", "election day")]
        (tmp_path / "asked.jsonl").write_text("\n".join(lines))
        arguments = [str(tmp_path / "asked.jsonl"), "-l", str(library)]
        [outcome] = [
            json.loads(line) for line in invoke("eval", "compare", *arguments, "dense", "--json").stdout.splitlines()
        ]
        assert (outcome["queries"], outcome["passages"]) == (4, 4)
        assert outcome["measures"]["recall@1"] == 1.0
        assert 0 < outcome["megabytes"] < 1
        other = invoke("eval", "compare", *arguments, "dense", "-e", str(tiny.bert(tmp_path / "e", seed=1)))
        assert other.exit_code == 1
        assert "was embedded with all-minilm-l6-v2" in other.stderr
        (tmp_path / "lost.jsonl").write_text(lines[0] + '\n{"user_input": "a sonata", "rows": ["gone", "lost"]}')
        told = invoke("eval", "compare", str(tmp_path / "lost.jsonl"), "-l", str(library), "dense").stderr
        assert "the library has no gone, lost: 2 of the judged rows, which count as not found" in told
        fitted = json.loads(invoke("eval", "calibrate", *arguments, "--json").stdout)
        assert (fitted["answerable"], fitted["unanswerable"], fitted["auc"]) == (4, 4, 1.0)
        assert fitted["fitted"] == {"precision": 1.0, "recall": 1.0, "refused": 1.0}

    def test_the_demo_calibrated(self, tmp_path: Path) -> None:
        (tmp_path / "more.txt").write_text("Who won the election?\n\nHow do I reset my router?\n")
        result = invoke("eval", "calibrate", "--off-topic", str(tmp_path / "more.txt"))
        assert result.exit_code == 0, result.output
        assert re.search(r"^--min-similarity +0\.\d{3}$", result.stdout, re.MULTILINE)
        assert re.search(r"^questions +60 with an answer, 22 without$", result.stdout, re.MULTILINE)
        recall = re.search(r"^recall +(\S+) +(\S+)$", result.stdout, re.MULTILINE)
        assert recall
        assert float(recall[1]) >= float(recall[2]) - 0.02 >= 0.8


class TestProcess:
    def test_a_reader_that_leaves_is_no_failure(self, tmp_path: Path) -> None:
        (tmp_path / "texts").write_text("a rope\n" * 5000)
        with start("embed", str(tmp_path / "texts")) as process:
            assert process.stdout
            assert process.stderr
            assert process.stdout.readline().startswith(b'{"text": "a rope"')
            process.stdout.close()
            assert process.stderr.read() == b""
        assert process.returncode == 0

    def test_ctrl_c_ends_with_130(self, tmp_path: Path) -> None:
        (tmp_path / "texts").write_text("\n".join(f"rope number {number}" for number in range(200_000)))
        with start("embed", str(tmp_path / "texts"), start_new_session=True) as process:
            assert process.stdout
            process.stdout.readline()
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert err.strip() == b""

    @pytest.mark.parametrize(
        ("redirection", "code", "message"),
        [
            (">/dev/full", 1, "error: no space left on device\n"),
            ("-o /dev/full", 1, "error: no space left on device\n"),
            (">&-", 1, "error: stdout is closed\n"),
            ("<&-", 1, "error: stdin is closed\n"),
            ("-o /dev/null", 0, ""),
            ("| true", 0, ""),
        ],
    )
    def test_streams_that_are_full_or_closed(self, redirection: str, code: int, message: str) -> None:
        command = f"set -o pipefail; echo rope | {sys.executable} -m adventures embed {redirection}"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (code, message)

    def test_a_conversation_without_stdin(self, library: Path) -> None:
        command = f"{sys.executable} -m adventures chat -l '{library}' <&-"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (1, "error: stdin is closed\n")

    def test_a_terminal_is_not_told_what_to_do(self) -> None:
        leader, terminal = pty.openpty()
        with start("eval", "no\x1b]0;set\x07", stderr=terminal) as process:
            assert process.wait(timeout=60) == 1
        os.close(terminal)
        shown = os.read(leader, 1000).decode()
        os.close(leader)
        assert shown.startswith("error: no data set at no\ufffd]0;set\ufffd: ")

    def test_utf8_in_any_locale(self) -> None:
        process = start("embed", env={"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"})
        out, _ = process.communicate("Æther\n".encode(), timeout=60)
        assert json.loads(out)["text"] == "Æther"

    def test_help_loads_nothing_heavy(self) -> None:
        heavy = ["lancedb", "polars", "pyarrow", "deltalake", "huggingface_hub", "tqdm"]
        code = f"import sys, adventures.cli; print(*sorted(set({heavy}) & set(sys.modules)))"
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"\n"
