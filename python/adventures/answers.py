"""Answer quality without a judge: what an answer names and cites, against what it should."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from adventures import Chat
    from adventures.demo import Question

_CITATION = re.compile(r"\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer and what is right and wrong with it.

    Attributes:
        question: What was asked.
        item: The item that the answer should name; empty for a question that nothing in the library answers.
        text: The answer.
        contexts: The passages that the generator was given.
        found: Whether the chat found anything relevant; if not, it refused.
        retrieved: Whether the right row is among the retrieved.
        named: Whether the answer names the right item.
        others: Other items of the stock that it names.
        cited: Whether it cites the right row.
        citations: How many citations it has.
        unknown: How many of them cite nothing that the generator was given.
        seconds: From the question to the last word.
    """

    question: str
    item: str
    text: str
    contexts: list[str]
    found: bool
    retrieved: bool
    named: bool
    others: list[str]
    cited: bool
    citations: int
    unknown: int
    seconds: float


@dataclass(frozen=True, slots=True)
class AnswerScores:
    """Shares over the answers, each between 0 and 1.

    Attributes:
        questions: Questions that the library answers.
        named: Share of them whose answer names the right item.
        alone: Share whose answer names the right item and no other item of the stock.
        cited: Share whose answer cites the right row.
        retrieved: Share whose right row was retrieved: the most that an answer can do.
        refused: Share that was refused though the library has an answer.
        unknown: Citations, in all answers, of something that the generator was not given.
        off_topic: Questions that nothing in the library answers.
        off_topic_refused: Share of them that was refused, as they should be.
        seconds: Mean time of an answer.
    """

    questions: int
    named: float
    alone: float
    cited: float
    retrieved: float
    refused: float
    unknown: int
    off_topic: int
    off_topic_refused: float
    seconds: float


def examine(
    chat: Chat, questions: Iterable[Question], off_topic: Iterable[str], items: Sequence[str]
) -> Iterator[Reply]:
    """Asks each question in a conversation of its own, and yields what came back.

    Args:
        chat: Over a library whose rows are named by `scenario`.
        questions: With the row and the item that answers each.
        off_topic: Questions without an answer in the library.
        items: Every item of the stock.
    """
    for question in questions:
        yield _ask(chat, question.question, question.scenario, question.item, items)
    for text in off_topic:
        yield _ask(chat, text, "", "", items)


def summarise(replies: Sequence[Reply]) -> AnswerScores:
    """Returns the shares over some replies; 0 where there is nothing to take a share of."""
    asked = [reply for reply in replies if reply.item]
    stray = [reply for reply in replies if not reply.item]
    return AnswerScores(
        questions=len(asked),
        named=_share(reply.named for reply in asked),
        alone=_share(reply.named and not reply.others for reply in asked),
        cited=_share(reply.cited for reply in asked),
        retrieved=_share(reply.retrieved for reply in asked),
        refused=_share(not reply.found for reply in asked),
        unknown=sum(reply.unknown for reply in replies),
        off_topic=len(stray),
        off_topic_refused=_share(not reply.found for reply in stray),
        seconds=sum(reply.seconds for reply in replies) / max(len(replies), 1),
    )


def names(text: str, item: str) -> bool:
    """Whether a text names an item, in whatever case, spacing and kind of apostrophe, and as whole words."""
    return re.search(rf"(?<!\w){re.escape(_plain(item))}(?!\w)", _plain(text)) is not None


def _ask(chat: Chat, question: str, scenario: str, item: str, items: Sequence[str]) -> Reply:
    chat.reset()
    start = time.perf_counter()
    with chat.ask(question) as answer:
        text = "".join(answer)
        seconds = time.perf_counter() - start
        retrieved = [hit.source.row["scenario"] for hit in answer.hits]
        rows = [hit.source.row["scenario"] for hit in answer.sources]
        contexts = [hit.text for hit in answer.sources]
        found = answer.found
    numbers = [int(number) for number in _CITATION.findall(text)]
    known = [number for number in numbers if 1 <= number <= len(rows)]
    return Reply(
        question=question,
        item=item,
        text=text,
        contexts=contexts,
        found=found,
        retrieved=bool(item) and scenario in retrieved,
        named=bool(item) and names(text, item),
        others=[other for other in items if other != item and names(text, other)],
        cited=bool(item) and any(rows[number - 1] == scenario for number in known),
        citations=len(numbers),
        unknown=len(numbers) - len(known),
        seconds=seconds,
    )


def _plain(text: str) -> str:
    return " ".join(text.replace("\u2019", "'").casefold().split())


def _share(values: Iterable[bool]) -> float:
    listed = list(values)
    return sum(listed) / len(listed) if listed else 0.0
