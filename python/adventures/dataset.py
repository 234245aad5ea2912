"""Retrieval test sets: documents, queries, and which documents people judged to answer which query."""

from __future__ import annotations

import json
import lzma
import re
import zipfile
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

# A line is one document. The limit keeps a file without line ends, or a zip bomb, from filling the memory.
_LONGEST_LINE = 64 << 20
# What the decompressors of a zip raise: bzip2's is an OSError.
_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError)
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Dataset:
    """A retrieval test set in memory.

    Attributes:
        name: What to call it in a report.
        documents: Document id → text.
        queries: Query id → text; the judged ones only.
        judgements: Query id → document id → grade. Grades above 0 are relevant. A judged document may be missing from
            `documents`: it cannot be found, and counts as not found.
    """

    name: str
    documents: dict[str, str]
    queries: dict[str, str]
    judgements: dict[str, dict[str, int]]

    @classmethod
    def read(cls, path: str | os.PathLike[str], *, split: str = "test") -> Dataset:
        """Reads a folder or zip in BEIR's format: `corpus.jsonl`, `queries.jsonl` and `qrels/<split>.tsv`.

        A document's text is its title, a space and its text, as BEIR and sentence-transformers join them. A zip is read
        in place; nothing of it is written to the disk.

        Raises:
            FileNotFoundError: The folder, the zip or one of the files is missing; for a split, the message lists those
                that are there.
            ValueError: A line cannot be understood, an id comes twice, or a judged query has no text; the message names
                the file and the line.
        """
        root = Path(path)
        if not root.exists():
            raise FileNotFoundError(f"no data set at {root}: there is no such file or directory")
        if root.is_file():
            return _read(_Zip(root), root.stem, split)
        return _read(_Folder(root), root.resolve().name, split)

    @classmethod
    def demo(cls) -> Dataset:
        """Returns the demo's stock with its held-out questions."""
        from adventures import demo

        questions = {f"q{number}": question for number, question in enumerate(demo.questions(), start=1)}
        return cls(
            name="demo",
            documents={row.scenario: row.text for row in demo.rows()},
            queries={key: question.question for key, question in questions.items()},
            judgements={key: {question.scenario: 1} for key, question in questions.items()},
        )


class _Folder:
    """The files of a data set in a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        return sorted(path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file())

    def label(self, name: str) -> str:
        return str(self.root / name)

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        with (self.root / name).open("rb") as file:
            yield file


class _Zip:
    """The files of a data set in a zip, at its top or in a folder inside."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.archive = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise ValueError(f"{path} is neither a folder nor a zip: {error}") from error
        corpora = [name for name in self.archive.namelist() if name.split("/")[-1] == "corpus.jsonl"]
        self.prefix = min(corpora, key=len).removesuffix("corpus.jsonl") if corpora else ""

    def names(self) -> list[str]:
        return [name.removeprefix(self.prefix) for name in self.archive.namelist() if name.startswith(self.prefix)]

    def label(self, name: str) -> str:
        return f"{self.path}:{self.prefix}{name}"

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        try:
            with self.archive.open(self.prefix + name) as file:
                yield file
        except (*_DAMAGED, NotImplementedError, RuntimeError) as error:
            raise ValueError(f"{self.label(name)} cannot be read: {error}") from error


def _read(source: _Folder | _Zip, name: str, split: str) -> Dataset:
    qrels = f"qrels/{split}.tsv"
    present = source.names()
    for needed in ("corpus.jsonl", "queries.jsonl"):
        if needed not in present:
            raise FileNotFoundError(
                f"no {source.label(needed)}: a BEIR data set has corpus.jsonl, queries.jsonl and qrels/"
            )
    if qrels not in present:
        splits = [Path(file).stem for file in present if file.startswith("qrels/") and file.endswith(".tsv")]
        raise FileNotFoundError(f"no {source.label(qrels)}: the splits are {', '.join(splits) or 'none'}")
    judgements = _judgements(source, qrels)
    queries = _texts(source, "queries.jsonl")
    if unknown := [query for query in judgements if query not in queries]:
        raise ValueError(
            f"{source.label(qrels)} judges query {unknown[0]!r}, which {source.label('queries.jsonl')} lacks"
        )
    return Dataset(
        name=name,
        documents=_texts(source, "corpus.jsonl"),
        queries={query: queries[query] for query in judgements},
        judgements=judgements,
    )


def _lines(source: _Folder | _Zip, name: str) -> Iterator[tuple[str, str]]:
    """Yields each line that is not blank, with the place to name in an error."""
    with source.open(name) as file:
        number = 0
        while line := file.readline(_LONGEST_LINE + 1):
            number += 1
            place = f"{source.label(name)}, line {number}"
            if len(line) > _LONGEST_LINE:
                raise ValueError(f"{place}: longer than {_LONGEST_LINE >> 20} MiB")
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip("\r\n")
            except UnicodeDecodeError as error:
                raise ValueError(f"{place}: not UTF-8: {error}") from error
            if text.strip():
                yield place, text


def _texts(source: _Folder | _Zip, name: str) -> dict[str, str]:
    texts: dict[str, str] = {}
    for place, line in _lines(source, name):
        key, text = _text(place, line)
        if key in texts:
            raise ValueError(f"{place}: the id {key!r} comes twice")
        texts[key] = text
    return texts


def _text(place: str, line: str) -> tuple[str, str]:
    try:
        record: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: not JSON: {error}") from error
    match record:
        case {"_id": str(key), "text": str(text)}:
            title = record.get("title")
            whole = f"{title} {text}".strip() if title else text.strip()
            # JSON can spell half a character, as \ud800; UTF-8, which the models read, cannot.
            if _SURROGATE.search(key + whole):
                raise ValueError(f"{place}: not valid Unicode: {line[:60]}")
            return key, whole
    raise ValueError(f"{place}: not an object with the strings `_id` and `text`: {line[:60]}")


def _judgements(source: _Folder | _Zip, name: str) -> dict[str, dict[str, int]]:
    judgements: dict[str, dict[str, int]] = {}
    for index, (place, line) in enumerate(_lines(source, name)):
        cells = line.split("\t")
        if len(cells) != 3:
            raise ValueError(f"{place}: {len(cells)} columns, not 3 with tabs between (query-id, corpus-id, score)")
        query, document, grade = (cell.strip() for cell in cells)
        try:
            value = int(grade)
        except ValueError:
            if index == 0 and not re.search(r"\d", grade):  # the heading, which some copies lack
                continue
            raise ValueError(f"{place}: the score must be a whole number, not {grade!r}") from None
        if judgements.setdefault(query, {}).setdefault(document, value) != value:
            raise ValueError(f"{place}: {query!r} and {document!r} are judged twice, differently")
    if not judgements:
        raise ValueError(f"{source.label(name)} has no judgements")
    return judgements
