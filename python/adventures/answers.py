"""Answer quality without a judge: what an answer names, cites and rests on, against what it should."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from adventures import Chat, Embedder
    from adventures.questions import Question

_CITATION = re.compile(r"\[(\d+)\]")
_SENTENCE = re.compile(r"(?<=[.!?…])\s+|\n+|(?<=[。！？])")


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer and what is right and wrong with it.

    Attributes:
        question: What was asked, with what is known of its answer.
        text: The answer.
        contexts: The passages that the generator was given.
        context_rows: The rows that they are from.
        found: Whether the chat found anything relevant; if not, it refused.
        retrieved: Whether a right row is among the retrieved.
        named: Whether the answer names what it should; None where that is not known.
        others: What other questions should have named and this answer names.
        cited: Whether it cites a right row.
        citations: How many citations it has.
        right: How many of them cite a right row.
        unknown: How many of them cite nothing that the generator was given.
        support: How near its sentences are to what it rests on, the passages that it cites, or all where it cites none:
            of each sentence the largest cosine with a sentence or the whole of a passage, averaged; None where nothing
            was written.
        seconds: From the question to the last word.
    """

    question: Question
    text: str
    contexts: list[str]
    context_rows: list[str]
    found: bool
    retrieved: bool
    named: bool | None
    others: list[str]
    cited: bool
    citations: int
    right: int
    unknown: int
    support: float | None
    seconds: float

    def record(self) -> dict[str, Any]:
        """Returns the answer as a sample that RAGAS reads with `EvaluationDataset.from_jsonl`, and what we say of it.

        RAGAS takes `user_input`, `retrieved_contexts`, `retrieved_context_ids`, `reference_context_ids`, `response` and
        `reference`, and leaves the rest.
        """
        return {
            "user_input": self.question.text,
            "retrieved_contexts": self.contexts,
            "retrieved_context_ids": self.context_rows,
            "reference_context_ids": list(self.question.rows),
            "response": self.text,
            "reference": self.question.reference,
            "names": self.question.names,
            "found": self.found,
            "retrieved": self.retrieved,
            "named": self.named,
            "others": self.others,
            "cited": self.cited,
            "citations": self.citations,
            "right": self.right,
            "unknown": self.unknown,
            "support": self.support,
            "seconds": self.seconds,
        }


@dataclass(frozen=True, slots=True)
class AnswerScores:
    """Shares over the answers, each between 0 and 1; None where there is nothing to take a share of.

    Attributes:
        questions: Questions that the library answers.
        named: Share of those with a known word whose answer names it.
        alone: Share of them whose answer names it and what no other question should.
        cited: Share whose answer cites a right row.
        retrieved: Share of which a right row was retrieved: the most that an answer can do.
        refused: Share that was refused though the library has an answer.
        precision: Share of the citations of these answers that cite a right row.
        support: Mean support of what was written, whether it should have been or not.
        unknown: Citations, in all answers, of something that the generator was not given.
        off_topic: Questions that nothing in the library answers.
        off_topic_refused: Share of them that was refused, as they should be.
        seconds: Mean time of an answer.
    """

    questions: int
    named: float | None
    alone: float | None
    cited: float | None
    retrieved: float | None
    refused: float | None
    precision: float | None
    support: float | None
    unknown: int
    off_topic: int
    off_topic_refused: float | None
    seconds: float


def examine(chat: Chat, questions: Sequence[Question], *, items: Iterable[str] = ()) -> Iterator[Reply]:
    """Asks each question in a conversation of its own, and yields what came back.

    Args:
        chat: Over a library whose rows the questions judge.
        questions: Those without an answer among them.
        items: What an answer might name in error, besides what the questions should name.
    """
    names_ = list(dict.fromkeys([*items, *(question.names for question in questions if question.names)]))
    for question in questions:
        yield _ask(chat, question, names_)


def summarise(replies: Sequence[Reply]) -> AnswerScores:
    """Returns the shares over some replies."""
    asked = [reply for reply in replies if reply.question.rows]
    stray = [reply for reply in replies if not reply.question.rows]
    known = [reply for reply in asked if reply.named is not None]
    supports = [reply.support for reply in replies if reply.support is not None]
    citations = sum(reply.citations for reply in asked)
    return AnswerScores(
        questions=len(asked),
        named=_share(bool(reply.named) for reply in known),
        alone=_share(bool(reply.named) and not reply.others for reply in known),
        cited=_share(reply.cited for reply in asked),
        retrieved=_share(reply.retrieved for reply in asked),
        refused=_share(not reply.found for reply in asked),
        precision=sum(reply.right for reply in asked) / citations if citations else None,
        support=sum(supports) / len(supports) if supports else None,
        unknown=sum(reply.unknown for reply in replies),
        off_topic=len(stray),
        off_topic_refused=_share(not reply.found for reply in stray),
        seconds=sum(reply.seconds for reply in replies) / max(len(replies), 1),
    )


def names(text: str, item: str) -> bool:
    """Whether a text names an item, in whatever case, spacing and kind of apostrophe, and as whole words."""
    return re.search(rf"(?<!\w){re.escape(_plain(item))}(?!\w)", _plain(text)) is not None


def support(embedder: Embedder, text: str, contexts: Sequence[str]) -> float | None:
    """Returns how near the sentences of a text are to passages; None where either is empty."""
    sentences = _sentences(_CITATION.sub("", text))
    grounds = [ground for context in contexts for ground in dict.fromkeys([context, *_sentences(context)])]
    if not sentences or not grounds:
        return None
    vectors = embedder.encode([*sentences, *grounds], kind="passage").vectors
    near = vectors[: len(sentences)] @ vectors[len(sentences) :].T
    return float(near.max(axis=1).mean())


def _sentences(text: str) -> list[str]:
    # What has no letter says nothing that could rest on anything.
    return [part.strip() for part in _SENTENCE.split(text) if any(map(str.isalnum, part))]


def _ask(chat: Chat, question: Question, items: Sequence[str]) -> Reply:
    chat.reset()
    start = time.perf_counter()
    with chat.ask(question.text) as answer:
        text = "".join(answer)
        seconds = time.perf_counter() - start
        retrieved = [_row(hit.id) for hit in answer.hits]
        rows = [_row(hit.id) for hit in answer.sources]
        contexts = [hit.text for hit in answer.sources]
        found = answer.found
    numbers = [int(number) for number in _CITATION.findall(text)]
    known = [number for number in numbers if 1 <= number <= len(rows)]
    right = [number for number in known if rows[number - 1] in question.rows]
    grounds = [contexts[number - 1] for number in dict.fromkeys(known)] or contexts
    embedder = chat.library.embedder
    return Reply(
        question=question,
        text=text,
        contexts=contexts,
        context_rows=rows,
        found=found,
        retrieved=any(row in question.rows for row in retrieved),
        named=None if question.names is None else names(text, question.names),
        others=[other for other in items if other != question.names and names(text, other)],
        cited=bool(right),
        citations=len(numbers),
        right=len(right),
        unknown=len(numbers) - len(known),
        support=support(embedder, text, grounds) if found and embedder is not None else None,
        seconds=seconds,
    )


def _row(hit_id: str) -> str:
    return hit_id.rpartition("#")[0]


def _plain(text: str) -> str:
    return " ".join(text.replace("\u2019", "'").casefold().split())


def _share(values: Iterable[bool]) -> float | None:
    listed = list(values)
    return sum(listed) / len(listed) if listed else None
