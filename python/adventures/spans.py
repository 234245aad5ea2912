"""Test sets whose answers are stretches of characters, and what share of them is retrieved.

The format and the measures are those of Chroma's chunking evaluation (Smith and Troynikov 2024), so that ways to cut
texts into passages can be compared.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence

Span = tuple[str, int, int]
"""A document and a stretch of its characters: the first, and the one after the last."""


@dataclass(frozen=True, slots=True)
class SpanSet:
    """Documents, queries, and the stretches of the documents that answer each.

    Attributes:
        name: What to call it in a report.
        documents: Document id → text.
        queries: Query id → text.
        spans: Query id → what answers it.
    """

    name: str
    documents: dict[str, str]
    queries: dict[str, str]
    spans: dict[str, list[Span]]

    @classmethod
    def found_at(cls, path: str | os.PathLike[str]) -> bool:
        """Whether a path looks like such a set, and not like one of BEIR's."""
        return (Path(path) / "questions_df.csv").is_file()

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> SpanSet:
        """Reads a folder with `questions_df.csv` (question, references, corpus_id) and `corpora/<corpus_id>.md`.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: A line cannot be understood, or a reference is not in its document.
        """
        root = Path(path)
        documents = {file.stem: file.read_text(encoding="utf-8") for file in sorted((root / "corpora").glob("*.md"))}
        if not documents:
            raise FileNotFoundError(f"no documents at {root / 'corpora'}: they are expected as .md files")
        queries: dict[str, str] = {}
        spans: dict[str, list[Span]] = {}
        with (root / "questions_df.csv").open(encoding="utf-8", newline="") as file:
            for number, row in enumerate(csv.DictReader(file), start=1):
                place = f"{root / 'questions_df.csv'}, question {number}"
                try:
                    document, found = row["corpus_id"], json.loads(row["references"])
                    queries[str(number)] = row["question"]
                    spans[str(number)] = [_span(document, documents[document], each) for each in found]
                except (KeyError, TypeError, ValueError) as error:
                    raise ValueError(f"{place}: not a question with references into a document: {error!r}") from error
        if not queries:
            raise ValueError(f"{root / 'questions_df.csv'} has no questions")
        return cls(root.resolve().name, documents, queries, spans)


def _span(document: str, text: str, reference: dict[str, Any]) -> Span:
    start, end = int(reference["start_index"]), int(reference["end_index"])
    if not text[start:end] or text[start:end] != reference["content"]:
        raise ValueError(f"characters {start} to {end} of {document} are not {reference['content'][:60]!r}")
    return document, start, end


def places(pieces: Sequence[str], text: str) -> list[tuple[int, int]]:
    """Returns where the pieces of a text are in it, of which each begins after the one before, at most white space on.

    Where a text repeats itself so that there are several ways, the pieces share as little as they can.

    Raises:
        ValueError: They are not the pieces of this text.
    """
    # The last place that each may have, so that those after it find one.
    latest = [0] * len(pieces)
    after = len(text)
    for number in range(len(pieces) - 1, -1, -1):
        after = latest[number] = text.rfind(pieces[number], 0, after - 1 + len(pieces[number]))
        if after < 0:
            raise ValueError(f"the passage {pieces[number][:60]!r} is not in the text where it should be")
    found: list[tuple[int, int]] = []
    start, end = -1, 0
    for piece, last in zip(pieces, latest, strict=True):
        limit = end
        while limit < len(text) and text[limit].isspace():
            limit += 1
        place = text.rfind(piece, start + 1, min(limit, last) + len(piece))
        start = text.find(piece, start + 1) if place < 0 else place
        end = start + len(piece)
        found.append((start, end))
    return found


def covered(wanted: Iterable[Span], retrieved: Iterable[Span], *, budget: int) -> Mapping[str, float]:
    """Returns what is retrieved of the wanted stretches, in the first `budget` characters of what is retrieved.

    `recall` is the share of the wanted characters, `precision` that of the retrieved ones that are wanted, a character
    that comes twice counted twice, and `IoU` the share that is both of those that are either.
    """
    left, read = budget, 0
    taken: set[tuple[str, int]] = set()
    for document, start, end in retrieved:
        last = min(end, start + left)
        taken.update((document, at) for at in range(start, last))
        read += last - start
        left -= last - start
        if not left:
            break
    target = {(document, at) for document, start, end in wanted for at in range(start, end)}
    both = len(target & taken)
    return {
        "recall": both / len(target),
        "precision": both / read if read else 0.0,
        # What is retrieved twice was read for nothing once more.
        "IoU": both / (read + len(target) - both),
    }
