"""`ask`, `chat`, `demo` and `eval answers`, with the real default models over the demo's stock."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from adventures import demo
from adventures.chat import NOT_FOUND
from test_cli import invoke, start

if TYPE_CHECKING:
    from pathlib import Path

    import adventures as adv

WALL = "I need to get over the castle wall, and I can't very well bring a ladder."


@pytest.fixture
def shop(stock: adv.Library, monkeypatch: pytest.MonkeyPatch) -> str:
    """The library of the demo's stock, as `$ADVENTURES_LIBRARY` for what runs in a process of its own."""
    monkeypatch.setenv("ADVENTURES_LIBRARY", stock.path)
    return stock.path


class TestAsk:
    def test_the_answer_is_on_stdout_and_the_sources_are_on_stderr(self, shop: str) -> None:
        result = invoke("ask", WALL, "-l", shop)
        assert result.exit_code == 0
        assert "Gecko Mitts" in result.stdout
        assert result.stdout.endswith("\n")
        assert "[1]" in result.stdout
        assert re.fullmatch(
            r"    \[1\] 0\.\d\d  scaling the wall of a fortress without a ladder \(item Gecko Mitts; category .*\)\n",
            result.stderr,
        )

    def test_json(self, shop: str) -> None:
        text = invoke("ask", WALL, "-l", shop).stdout.removesuffix("\n")
        record = json.loads(invoke("ask", "-", "-l", shop, "--json", stdin=WALL + "\n").stdout)
        assert (record["question"], record["answer"], record["found"], record["citations"]) == (WALL, text, True, [1])
        assert record["sources"][0]["source"]["row"] == {"scenario": "scaling the wall of a fortress without a ladder"}
        assert record["stats"]["generated_tokens"] > 0
        assert record["stats"]["finish_reason"] == "stop"

    def test_nothing_on_that(self, shop: str) -> None:
        result = invoke("ask", "What is the boiling point of ethanol?", "-l", shop)
        assert (result.exit_code, result.stdout, result.stderr) == (0, f"{NOT_FOUND}\n", "")
        record = json.loads(invoke("ask", "What is the boiling point of ethanol?", "-l", shop, "--json").stdout)
        assert (record["found"], record["sources"], record["stats"]) == (False, [], None)

    def test_where_narrows_the_stock(self, shop: str) -> None:
        record = json.loads(invoke("ask", WALL, "-l", shop, "--json", "--where", "price<50").stdout)
        assert all(source["metadata"]["price"] < 50 for source in record["sources"])

    def test_an_answer_may_be_short(self, shop: str) -> None:
        record = json.loads(invoke("ask", WALL, "-l", shop, "--json", "--max-tokens", "2").stdout)
        assert record["stats"]["finish_reason"] == "length"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["ask", ""], "error: the query is empty"),
            (["ask", WALL, "-g", "all-minilm-l6-v2"], "error: all-minilm-l6-v2 is not a generator but an embedder"),
            (["ask", WALL, "-g", "./none.gguf"], "error: no model at none.gguf"),
            (["chat", "-g", "nope"], "error: no model 'nope' in the catalogue"),
        ],
    )
    def test_failures(self, shop: str, arguments: list[str], message: str) -> None:
        result = invoke(*arguments, "-l", shop)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith(message)
        assert result.stderr.count("\n") == 1


class TestChat:
    def test_a_conversation_on_stdin(self, shop: str) -> None:
        lines = [
            WALL,
            "/sources",
            "",
            "/nope",
            "/reset",
            "/sources",
            "What is ethanol's boiling point?",
            "/quit",
            "never",
        ]
        result = invoke("chat", "-l", shop, stdin="\n".join(lines))
        assert result.exit_code == 0
        answer, source, refusal = result.stdout.splitlines()
        assert "Gecko Mitts" in answer
        assert source.startswith("[1] 0.")
        assert refusal == NOT_FOUND
        assert "no command /nope; there are" in result.stderr
        assert "/reset     forget the conversation" in result.stderr

    def test_a_question_that_cannot_be_asked_ends_no_conversation(self, shop: str) -> None:
        # A terminal of its own: on a pipe the first error ends the program.
        primary, secondary = os.openpty()
        command = [sys.executable, "-m", "adventures", "chat", "-l", shop]
        process = subprocess.Popen(command, stdin=secondary, stdout=secondary, stderr=secondary)
        os.close(secondary)
        os.write(primary, b"why \xff\n" + f"{WALL}\n/quit\n".encode())
        shown = b""
        with suppress(OSError):  # how Linux says that the other end is closed
            while data := os.read(primary, 1 << 16):
                shown += data
        os.close(primary)
        assert process.wait(60) == 0, shown
        assert b"error: the query is not valid Unicode: 'why \\udcff'" in shown
        assert b"Gecko Mitts" in shown

    def test_ends_with_its_input(self, shop: str) -> None:
        assert invoke("chat", "-l", shop, stdin="").exit_code == 0

    def test_as_a_process(self, shop: str) -> None:
        process = start("chat")
        out, err = process.communicate(f"{WALL}\n".encode(), timeout=120)
        assert process.returncode == 0, err
        assert b"Gecko Mitts" in out


class TestDemo:
    def test_asks_three_questions(self, tmp_path: Path) -> None:
        result = invoke("demo", "--data", str(tmp_path / "data"))
        assert result.exit_code == 0, result.output
        blocks = result.stdout.strip().split("\n\n")
        assert [block.split("\n")[0] for block in blocks] == [f"> {question}" for question in demo.ASK]
        items = [row.item for row in demo.rows()]
        for block in blocks:
            assert any(item in block for item in items), block
            assert "[1]" in block
        assert f"{len(items)} added" in result.stderr
        assert len(re.findall(r"^    \[1\] 0\.\d\d  ", result.stderr, re.MULTILINE)) == 3
        assert f"adventures ask --library {tmp_path}/data/library 'your question'" in result.stderr
        again = invoke("demo", "--data", str(tmp_path / "data"))
        assert again.stdout == result.stdout
        assert "nothing to do" in again.stderr


class TestEval:
    @pytest.mark.timeout(900)
    def test_answers_name_the_right_item(self, tmp_path: Path) -> None:
        output = tmp_path / "answers.jsonl"
        result = invoke("-q", "eval", "answers", "--json", "-o", str(output))
        assert result.exit_code == 0, result.output
        scores = json.loads(result.stdout)
        assert (scores["questions"], scores["off_topic"]) == (60, 20)
        assert scores["named"] >= 0.85
        assert scores["unknown"] == 0
        assert scores["refused"] <= 0.05
        assert scores["off_topic_refused"] >= 0.85
        records = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
        assert len(records) == 80
        assert sum(record["named"] or False for record in records) == round(scores["named"] * 60)
        assert scores["precision"] >= 0.85
        assert scores["support"] >= 0.9
        for record in records:
            # The types that RAGAS' SingleTurnSample has for these.
            assert isinstance(record["user_input"], str)
            assert isinstance(record["response"], str)
            assert isinstance(record["reference"], (str, type(None)))
            for name in ("retrieved_contexts", "retrieved_context_ids", "reference_context_ids"):
                assert all(isinstance(each, str) for each in record[name])
            assert len(record["retrieved_contexts"]) == len(record["retrieved_context_ids"])
        assert sum(record["reference"] is None for record in records) == 20
