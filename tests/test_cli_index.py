"""`adventures index`: documents from every kind of file, what it prints, how it ends."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import termios
from datetime import date
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake

import adventures as adv
import tiny_colbert
from test_cli import invoke

if TYPE_CHECKING:
    from pathlib import Path

ROWS = [
    {"id": "rope", "text": "a rope to climb", "price": 3},
    {"id": "dragon", "text": "the dragon sleeps at night. " * 9, "price": 4},
    {"id": "potion", "text": "a red potion at night", "price": 5},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_colbert.colbert(tmp_path_factory.mktemp("colbert") / "model", "stanford"))


@pytest.fixture
def index(model: str, tmp_path: Path) -> str:
    """The three rows, made by the command; the dragon in pieces."""
    place = str(tmp_path / "index")
    result = create(place, "-", model, "--split", "--max-length", "24", stdin=lines(ROWS))
    assert result.exit_code == 0, result.output
    return place


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def create(place: str, file: str, model: str, *options: str, stdin: str | None = None) -> Any:
    return invoke("index", "create", place, file, "--model", model, *options, stdin=stdin)


def found(place: str, query: str = "a", *options: str) -> dict[str, dict[str, Any]]:
    result = invoke("index", "search", place, query, "-k", "50", "--json", *options)
    assert result.exit_code == 0, result.output
    hits = [json.loads(line) for line in result.stdout.splitlines()]
    assert [hit["rank"] for hit in hits] == list(range(1, len(hits) + 1))
    return {hit["id"]: hit for hit in hits}


class TestFiles:
    def test_every_format_is_the_same(self, model: str, tmp_path: Path) -> None:
        table = pa.Table.from_pylist(ROWS)
        (tmp_path / "rows.jsonl").write_text(lines(ROWS) + "\n")
        pq.write_table(table, tmp_path / "rows.parquet")
        write_deltalake(tmp_path / "delta", table)
        (tmp_path / "rows.csv").write_text(
            "\ufeffid,text,price\n" + "".join(f'{row["id"]},"{row["text"]}",{row["price"]}\n' for row in ROWS),
            encoding="utf-8",
        )
        answers = {}
        for name in ("rows.jsonl", "rows.parquet", "delta", "rows.csv"):
            place = str(tmp_path / f"index-{name}")
            result = create(place, str(tmp_path / name), model)
            assert result.exit_code == 0, result.output
            assert result.stdout.startswith("3 passages added; 3 with ")
            answers[name] = found(place)
        # CSV has no numbers, only texts.
        assert {name: hit["metadata"] for name, hit in answers.pop("rows.csv").items()} == {
            row["id"]: {"price": str(row["price"])} for row in ROWS
        }
        first = answers.pop("rows.jsonl")
        assert {name: hit["metadata"] for name, hit in first.items()} == {
            row["id"]: {"price": row["price"]} for row in ROWS
        }
        assert all(answer == first for answer in answers.values())

    def test_columns_are_chosen(self, model: str, tmp_path: Path) -> None:
        row = {"sku": 7, "name": "rope", "about": "to {climb}", "when": date(2024, 1, 31), "raw": b"\x00\xff", "x": 1.5}
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
        options = ["--id", "sku", "--text", "{name} {{{x}}}: {about}", "--metadata", "when", "--metadata", "raw"]
        create(str(tmp_path / "i"), str(tmp_path / "a.parquet"), model, *options)
        hit = found(str(tmp_path / "i"))["7"]
        assert hit["text"] == "rope {1.5}: to {climb}"
        assert hit["metadata"] == {"when": "2024-01-31", "raw": "00ff"}
        # What comes later is read the same way.
        pq.write_table(pa.Table.from_pylist([row | {"sku": 8}]), tmp_path / "b.parquet")
        assert invoke("index", "add", str(tmp_path / "i"), str(tmp_path / "b.parquet")).exit_code == 0
        assert found(str(tmp_path / "i"))["8"]["metadata"] == hit["metadata"]

    def test_rows_that_say_nothing_are_told(self, model: str, tmp_path: Path) -> None:
        rows = [*ROWS, {"id": None, "text": "x"}, {"id": "", "text": "x"}, {"id": "n", "text": None}]
        result = create(str(tmp_path / "i"), "-", model, "--json", stdin=lines([*rows, {"id": "e", "text": " \n"}]))
        report = json.loads(result.stdout)
        assert (report["added"], report["passages"], report["truncated"]) == (3, 3, 1)
        reasons = ["empty id", "empty text", "null id", "null text"]
        assert report["skipped"] == [{"reason": reason, "count": 1} for reason in reasons]
        assert "warning: 1 texts were cut to 60 tokens; --split splits them" in result.stderr
        assert "skipped 1 rows: null text" in result.stderr

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("a.jsonl", b'{"id": "a", "text": "x"}\n{"id"\n', "a.jsonl, line 2: not JSON: "),
            ("a.jsonl", b"[1]\n", "a.jsonl, line 1: '[1]' is no JSON object"),
            ("a.jsonl", b'{"id": "a", "text": "\xff"}\n', "a.jsonl, line 1: not UTF-8: "),
            ("a.jsonl", b'{"id": "a", "body": "x"}\n', "a.jsonl, line 1: no column 'text'; there are 'id', 'body'"),
            ("a.jsonl", b'{"id": "a", "text": "x"}\n' * 2, 'id "a" is given twice'),
            ("a.csv", b"id,text\na\n", "a.csv, line 2: 1 values for 2 columns"),
            ("a.csv", b"id,id\na,b\n", "a.csv, line 1: a column is named twice"),
            ("a.csv", b"", "a.csv: empty; its first line names the columns"),
            ("a.csv", b'id,text\na,"x\n', "a.csv, line 2: not CSV: "),
            ("a.parquet", b"PAR1", "a.parquet: not Parquet: "),
            ("a.txt", b"x", "a.txt: .txt ending is none of .jsonl"),
            ("a", b"x", "a: no ending is none of .jsonl"),
        ],
    )
    def test_broken_files(self, name: str, content: bytes, message: str, model: str, tmp_path: Path) -> None:
        (tmp_path / name).write_bytes(content)
        place = tmp_path / "index"
        result = create(str(place), str(tmp_path / name), model)
        assert (result.exit_code, result.stdout) == (1, "")
        assert message in result.stderr
        assert "bug" not in result.stderr
        (tmp_path / "good.jsonl").write_text(lines(ROWS))
        assert create(str(place), str(tmp_path / "good.jsonl"), model).exit_code == 0, "nothing is left in the way"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (
                ["create", "{tmp}/i", "{tmp}/none.jsonl", "-m", "{model}"],
                "error: no such file or directory: {tmp}/",
            ),
            (["create", "{tmp}/i", "{tmp}/none.parquet", "-m", "{model}"], "error: no such file or directory: {tmp}/"),
            (["create", "{tmp}/i", "{tmp}", "-m", "{model}"], "error: {tmp} is not a Delta table"),
            (["create", "{tmp}/i", "--format", "delta", "-m", "{model}"], "error: a Delta table is a folder or a URI"),
            (
                ["create", "{tmp}/i", "-m", "{model}", "--max-length", "99"],
                "error: --max-length 99: model reads up",
            ),
            (["create", "{tmp}/i", "-m", "{tmp}/none"], "error: no model at {tmp}/none"),
            (["create", "{index}", "-m", "{model}"], "error: {index}: there is something already"),
            (["create", "{tmp}", "-m", "{model}"], "error: {tmp}: not empty"),
            (["add", "{tmp}/none"], "error: {tmp}/none: no index there"),
            (["search", "{tmp}/none", "x"], "error: {tmp}/none: no index there"),
            (["info", "{tmp}/none"], "error: {tmp}/none: no index there"),
            (["delete", "{tmp}/none", "x"], "error: {tmp}/none: no index there"),
            (["delete", "{index}", "rope", "nope"], "error: no document 'nope' in {index}"),
            (["search", "{index}", " "], "error: the query is empty"),
            (["search", "{index}", "x", "--only", "nope"], "error: no document 'nope' in {index}"),
            (["search", "{index}", "x", "-m", "{tmp}/other"], "error: {index} was made with model"),
        ],
    )
    def test_failures_are_one_line(
        self, arguments: list[str], message: str, index: str, model: str, tmp_path: Path
    ) -> None:
        tiny_colbert.colbert(tmp_path / "other", "pylate")
        places = {"tmp": str(tmp_path), "model": model, "index": index}
        result = invoke("index", *(argument.format(**places) for argument in arguments), stdin="")
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith(message.format(**places))
        assert len(result.stderr.splitlines()) == 1
        assert "bug" not in result.stderr
        assert len(adv.ColbertIndex.open(index).ids()) > 3, "nothing was deleted"

    def test_a_template_is_checked_before_anything_is_read(self, model: str, tmp_path: Path) -> None:
        for text, message in [("{a", "a lone '{' at 0"), ("}{", "a lone '}' at 0"), ("{{a}}", "names no column")]:
            result = create(str(tmp_path / "i"), "-", model, "--text", text)
            assert result.exit_code == 2
            assert message in result.stderr


class TestDocuments:
    def test_search_is_that_of_the_index(self, index: str, model: str) -> None:
        opened = adv.ColbertIndex.open(index, adv.ColBERT(model))
        hits = opened.search("a dragon", 4)
        shown = invoke("index", "search", index, "a dragon").stdout.splitlines()
        assert [line.split(":")[0] for line in shown] == [f"[{hit.rank}] {hit.score:.2f}  {hit.id}" for hit in hits]
        assert invoke("index", "search", index, "-", stdin="a dragon\n").stdout.splitlines() == shown
        assert {hit["document"] for hit in found(index).values()} == {"rope", "dragon", "potion"}
        only = found(index, "a", "--only", "dragon", "--only", "rope", "--exhaustive")
        assert {hit["document"] for hit in only.values()} == {"dragon", "rope"}

    def test_they_come_and_go(self, index: str) -> None:
        assert invoke("index", "add", index, stdin=lines([{"id": "lamp", "text": "a lamp"}])).exit_code == 0
        result = invoke("index", "add", index, stdin=lines(ROWS[:1]))
        assert (result.exit_code, result.stderr) == (
            1,
            "error: the document 'rope' is in the index already; --replace takes its place\n",
        )
        shorter = [{"id": "dragon", "text": "the dragon", "price": 9}, {"id": "cave", "text": "a cave"}]
        assert invoke("index", "add", index, "--replace", stdin=lines(shorter)).exit_code == 0
        hits = found(index)
        assert set(hits) == {"rope#0", "potion#0", "lamp#0", "dragon#0", "cave#0"}, "no piece of before is left"
        assert (hits["dragon#0"]["text"], hits["dragon#0"]["metadata"]) == ("the dragon", {"price": 9})
        assert invoke("index", "delete", index, "lamp").stdout == "1 documents deleted, 4 left\n"
        result = invoke("index", "delete", index, "--compact", "--json", "-", stdin="rope\ncave\n")
        assert json.loads(result.stdout) == {"deleted": 2, "documents": 2}
        info = json.loads(invoke("index", "info", index, "--json").stdout)
        assert (info["documents"], info["passages"], info["deleted"]) == (2, 2, 0)

    def test_info(self, index: str, model: str) -> None:
        info = json.loads(invoke("index", "info", index, "--json").stdout)
        assert (info["documents"], info["model"], info["doc_maxlen"], info["split"]) == (3, "model", 24, True)
        assert info["passages"] > 3
        shown = dict(line.split(maxsplit=1) for line in invoke("index", "info", index).stdout.splitlines())
        assert shown["documents"] == "3"
        assert shown["bytes"] == f"{info['bytes']:,}"

    def test_an_index_that_python_made_needs_a_model(self, model: str, tmp_path: Path) -> None:
        place = str(tmp_path / "python")
        adv.ColbertIndex.create(place, ["a rope"], ids=["a"], model=adv.ColBERT(model))
        assert "does not say which model made it; name it with --model" in invoke("index", "search", place, "x").stderr
        assert set(found(place, "x", "--model", model)) == {"a"}

    def test_a_broken_record(self, index: str) -> None:
        for broken in ("{", "[]", '{"model": "x"}'):
            with open(f"{index}/documents.json", "w") as file:  # noqa: PTH123
                file.write(broken)
            result = invoke("index", "search", index, "x")
            assert result.exit_code == 1
            assert result.stderr.startswith(f"error: {index}/documents.json is broken: ")


def test_a_terminal_sees_how_far_it_is(model: str, tmp_path: Path) -> None:
    """Bars on stderr where that is a terminal, and nothing of them on stdout or with --quiet."""
    rows = lines([{"id": str(i), "text": "a rope to climb the cliff at night " * 5} for i in range(1200)])
    (tmp_path / "rows.jsonl").write_text(rows)
    for flags, bars in (([], True), (["--quiet"], False)):
        leader, terminal = pty.openpty()
        termios.tcsetwinsize(terminal, (24, 100))
        place = str(tmp_path / f"index-{bars}")
        command = [sys.executable, "-m", "adventures", *flags, "index", "create", place]
        with subprocess.Popen(
            [*command, str(tmp_path / "rows.jsonl"), "-m", model], stdout=subprocess.PIPE, stderr=terminal
        ) as process:
            os.close(terminal)
            seen = b""
            while True:
                try:
                    part = os.read(leader, 4096)
                except OSError:
                    break
                if not part:
                    break
                seen += part
            assert process.stdout
            out = process.stdout.read().decode()
        os.close(leader)
        assert process.returncode == 0, seen
        assert out.startswith("1,200 passages added; 1,200 with ")
        for stage in ("read", "train", "compress"):
            assert (f"{stage}: ".encode() in seen) == bars, seen.decode()
