"""Answers examined: names, citations, support, refusals; and the judged questions that they are examined by."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from adventures.answers import examine, names, summarise, support
from adventures.library import Library
from adventures.questions import Question, Questions, judged, read_questions
from words import WordEmbedder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import adventures as adv


class TestNames:
    @pytest.mark.parametrize(
        ("text", "item", "named"),
        [
            ("Take the Magpie Claws, they bite. [1]", "Magpie Claws", True),
            ("take the magpie  claws.", "Magpie Claws", True),
            ("Take Hobbler’s Ninth Boot", "Hobbler's Ninth Boot", True),
            ("Take the Magpie Clawset", "Magpie Claws", False),
            ("Take the claws", "Magpie Claws", False),
            ("a (Gecko+ Mitt)", "Gecko+ Mitt", True),
        ],
    )
    def test_names(self, text: str, item: str, named: bool) -> None:
        assert names(text, item) is named


class Canned:
    """A chat that answers from a library with prepared texts."""

    def __init__(self, library: Library, answers: dict[str, str]) -> None:
        self.library = library
        self.answers = answers
        self.resets = 0

    def reset(self) -> None:
        self.resets += 1

    def ask(self, question: str) -> Any:
        return CannedAnswer(self.answers.get(question), self.library.search(question, k=2))


class CannedAnswer:
    def __init__(self, text: str | None, hits: list[Any]) -> None:
        self.hits = hits
        self.sources = hits if text is not None else []
        self.found = text is not None
        self.text = text if text is not None else "The library holds nothing on that."

    def __enter__(self) -> CannedAnswer:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> Iterator[str]:
        return iter(self.text)


@pytest.fixture
def library(tmp_path: Path) -> Library:
    texts = ["a cliff of ice: Winter Boots grip.", "a dark cave: the Moth Lantern glows.", "rain: the Dry Tarpaulin."]
    write_deltalake(tmp_path / "d", pa.table({"id": ["cliff#1", "cave", "rain"], "text": texts}))
    library = Library.open(tmp_path / "l", embedder=WordEmbedder(dim=2048))
    library.sync(tmp_path / "d", id="id", text="{text}")
    return library


QUESTIONS = (
    Question("a cliff of ice", ("cliff#1",), "Winter Boots.", "Winter Boots"),
    Question("a dark cave", ("cave",), names="Moth Lantern"),
    Question("rain: the", ("rain",)),
    Question("an old sonata"),
    Question("dark tax law"),
)


class TestExamine:
    def test_what_is_right_and_wrong(self, library: Library) -> None:
        chat: Any = Canned(
            library,
            {
                "a cliff of ice": "Winter Boots grip. [1]",
                "a dark cave": "Take Winter Boots. [2] Or the Iron Bell. [9]",
                "dark tax law": "the Moth Lantern glows. [1]",
            },
        )
        replies = list(examine(chat, QUESTIONS, items=["Iron Bell"]))
        assert chat.resets == 5
        good, bad, refused, right, wrong = replies
        assert (good.named, good.others, good.cited, good.citations, good.right, good.unknown) == (
            True,
            [],
            True,
            1,
            1,
            0,
        )
        assert good.context_rows[0] == "cliff#1"
        assert good.support is not None
        assert 0.6 < good.support < 1
        assert (bad.named, bad.others, bad.cited, bad.right, bad.unknown) == (
            False,
            ["Iron Bell", "Winter Boots"],
            False,
            0,
            1,
        )
        assert bad.support is not None
        assert bad.support < good.support
        assert (refused.found, refused.named, refused.support, refused.retrieved) == (False, None, None, True)
        assert (right.found, wrong.found, wrong.retrieved) == (False, True, False)
        scores = summarise(replies)
        assert (scores.questions, scores.off_topic) == (3, 2)
        assert (scores.named, scores.alone) == (0.5, 0.5)
        assert scores.cited == scores.refused == pytest.approx(1 / 3)
        assert (scores.precision, scores.unknown, scores.off_topic_refused) == (pytest.approx(1 / 3), 1, 0.5)

    def test_nothing_to_take_a_share_of(self, library: Library) -> None:
        chat: Any = Canned(library, {})
        scores = summarise(list(examine(chat, QUESTIONS[3:])))
        assert (scores.questions, scores.named, scores.precision, scores.support) == (0, None, None, None)
        assert scores.off_topic_refused == 1.0
        assert summarise([]).off_topic_refused is None

    def test_a_record_is_a_sample(self, library: Library) -> None:
        chat: Any = Canned(library, {"a cliff of ice": "Winter Boots grip. [1]"})
        [reply] = examine(chat, QUESTIONS[:1])
        record = json.loads(json.dumps(reply.record()))
        assert record["user_input"] == "a cliff of ice"
        assert record["response"] == "Winter Boots grip. [1]"
        assert record["retrieved_contexts"][0] == "a cliff of ice: Winter Boots grip."
        assert record["retrieved_context_ids"][0] == record["reference_context_ids"][0] == "cliff#1"
        assert record["reference"] == "Winter Boots."


class TestSupport:
    def test_a_quotation_is_supported_whole(self, minilm: adv.Embedder) -> None:
        passage = "For an icy cliff use the Winter Boots. Their nails are of cold iron."
        assert support(minilm, "Their nails are of cold iron. [1]", [passage]) == pytest.approx(1, abs=1e-4)
        said = support(minilm, "The boots have iron nails. [1]", [passage])
        invented = support(minilm, "The parliament passed a budget. [1]", [passage])
        assert said is not None
        assert invented is not None
        assert 1 > said > invented + 0.3
        mixed = support(minilm, "Their nails are of cold iron. The parliament passed a budget.", [passage])
        assert mixed == pytest.approx((1 + invented) / 2, abs=1e-3)

    def test_nothing_is_supported_by_nothing(self, minilm: adv.Embedder) -> None:
        assert support(minilm, " [1] ... ", ["a rope"]) is None
        assert support(minilm, "a rope", []) is None


class TestQuestions:
    def test_a_file(self, tmp_path: Path) -> None:
        path = tmp_path / "asked.jsonl"
        first = '\ufeff{"user_input": "a?", "rows": ["r#1"], "reference": "b", "names": "c", "more": 1}'
        path.write_text(first + '\n\n{"user_input": "d?"}\n', encoding="utf-8")
        asked = read_questions(path)
        assert asked == Questions("asked", (Question("a?", ("r#1",), "b", "c"), Question("d?")))
        assert asked.dataset().judgements == {"1": {"r#1": 1}}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "has no questions"),
            ("{", "line 1: not JSON"),
            ('{"user_input": "x"}\n[]', "line 2: not an object with a question as `user_input`"),
            ('{"user_input": " "}', "line 1: not an object with a question"),
            ('{"user_input": "x", "rows": "r"}', "`rows` must be a list of row ids as strings, not 'r'"),
            ('{"user_input": "x", "rows": [1]}', r"`rows` must be a list of row ids as strings, not \[1\]"),
            ('{"user_input": "x", "reference": 3}', "`reference` must be a string, not 3"),
        ],
    )
    def test_a_bad_line(self, tmp_path: Path, text: str, message: str) -> None:
        path = tmp_path / "asked.jsonl"
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_questions(path)

    def test_the_queries_of_a_data_set(self, tmp_path: Path) -> None:
        (tmp_path / "qrels").mkdir()
        (tmp_path / "corpus.jsonl").write_text('{"_id": "1", "text": "a rope"}')
        (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "climb"}\n{"_id": "r", "text": "swim"}')
        (tmp_path / "qrels" / "test.tsv").write_text("q\t1\t2\nr\t1\t0\n")
        assert judged(str(tmp_path)).questions == (Question("climb", ("1",)), Question("swim"))
