"""Questions that people have judged: which rows of a library answer them, and how."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adventures.dataset import Dataset
from adventures.spans import SpanSet

if TYPE_CHECKING:
    import os


@dataclass(frozen=True, slots=True)
class Question:
    """A question, and what is known of its answer.

    Attributes:
        text: The question.
        rows: The ids of the rows that answer it, as in `Hit.id` before the last `#`; none where no row does.
        reference: What a good answer says; None where nobody wrote it down.
        names: What a right answer has to name, word for word; None where there is no such word.
    """

    text: str
    rows: tuple[str, ...] = ()
    reference: str | None = None
    names: str | None = None


@dataclass(frozen=True, slots=True)
class Questions:
    """Questions about one library.

    Attributes:
        name: What to call them in a report.
        questions: The questions, those without an answer among them.
    """

    name: str
    questions: tuple[Question, ...]

    @classmethod
    def demo(cls) -> Questions:
        """Returns the demo's held-out questions, and those that the shop knows nothing of."""
        from adventures import demo

        texts = {row.scenario: row.text for row in demo.rows()}
        asked = [Question(q.question, (q.scenario,), texts[q.scenario], q.item) for q in demo.questions()]
        return cls("demo", (*asked, *(Question(text) for text in demo.off_topic())))

    def dataset(self) -> Dataset:
        """Returns the questions that rows answer as a retrieval test set, without its documents."""
        answered = {str(number): question for number, question in enumerate(self.questions, start=1) if question.rows}
        return Dataset(
            name=self.name,
            documents={},
            queries={key: question.text for key, question in answered.items()},
            judgements={key: dict.fromkeys(question.rows, 1) for key, question in answered.items()},
        )


def read_questions(path: str | os.PathLike[str]) -> Questions:
    """Reads a file with a JSON object on each line: `user_input`, and of `rows`, `reference` and `names` what is known.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is something else, or there is none; the message names it.
    """
    found = []
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            found.append(_question(f"{path}, line {number}", line))
    if not found:
        raise ValueError(f"{path} has no questions")
    return Questions(Path(path).stem, tuple(found))


def judged(path: str, split: str = "test") -> Questions:
    """Reads a file of judged questions, or the queries of a data set as such.

    Raises:
        FileNotFoundError: There is nothing there.
        ValueError: It cannot be understood.
    """
    if path.endswith(".jsonl"):
        return read_questions(path)
    if SpanSet.found_at(path):
        spans = SpanSet.read(path)
        rows = {query: [document for document, _, _ in found] for query, found in spans.spans.items()}
        return Questions(spans.name, tuple(Question(spans.queries[query], tuple(rows[query])) for query in rows))
    data = Dataset.read(path, split=split)
    answered = {
        query: tuple(document for document, grade in grades.items() if grade > 0)
        for query, grades in data.judgements.items()
    }
    return Questions(data.name, tuple(Question(data.queries[query], rows) for query, rows in answered.items()))


def _question(place: str, line: str) -> Question:
    try:
        record: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: not JSON: {error}") from error
    if not isinstance(record, dict) or not isinstance(text := record.get("user_input"), str) or not text.strip():
        raise ValueError(f"{place}: not an object with a question as `user_input`: {line[:60]}")
    rows = record.get("rows") or []
    if not isinstance(rows, list) or not all(isinstance(row, str) for row in rows):
        raise ValueError(f"{place}: `rows` must be a list of row ids as strings, not {rows!r}")
    for key in ("reference", "names"):
        if record.get(key) is not None and not isinstance(record[key], str):
            raise ValueError(f"{place}: `{key}` must be a string, not {record[key]!r}")
    return Question(text, tuple(rows), record.get("reference"), record.get("names"))
