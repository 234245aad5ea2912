"""What an index of `adventures index` was made with, and its documents as the index holds them: whole, or in pieces."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from itertools import islice, tee
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adventures.cli.rows import Document

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from adventures import ColBERT, ColbertIndex
    from adventures.reader import Reader

# Beside the index. One without is one that Python made, whose model only its maker knows.
_RECORD = "documents.json"
# Documents that are split at a time.
_BATCH = 256


@dataclass(frozen=True, slots=True)
class Record:
    """What an index was made with, and what its documents are made of.

    Attributes:
        model: What opens the model: a hub id, or a directory.
        name: What the model calls itself.
        revision: Its commit; empty where unknown.
        doc_maxlen: How many tokens of a document, or of a piece of one, are read.
        split: Whether longer documents are split: the pieces of `a` are `a#0`, `a#1`, …
        id: The column that names a document.
        text: The template of its text.
        metadata: The columns kept; None for all others.
    """

    model: str
    name: str
    revision: str
    doc_maxlen: int
    split: bool
    id: str
    text: str
    metadata: tuple[str, ...] | None

    @classmethod
    def read(cls, place: str) -> Record | None:
        """Returns the record of an index; None where it has none."""
        path = Path(place) / _RECORD
        try:
            return cls(**json.loads(path.read_text("utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is broken: {error}") from error

    def write(self, place: str) -> None:
        """Puts the record beside an index."""
        path = Path(place) / _RECORD
        part = path.with_suffix(".part")
        part.write_text(json.dumps(asdict(self), ensure_ascii=False), "utf-8")
        part.replace(path)


def open_index(place: str, spec: str | None, threads: int | None) -> tuple[ColbertIndex, Reader, Record]:
    """Returns an index with its model, and what it was made with.

    Raises:
        ValueError: It is not known which model; another one than it was made with is named.
    """
    from adventures import ColbertIndex

    record = Record.read(place)
    # Without a model first: a missing or broken index is told of in a moment.
    ColbertIndex.open(place)
    if record is None and spec is None:
        raise ValueError(f"{place} does not say which model made it; name it with --model")
    model = open_model(spec or record.model, "" if spec or record is None else record.revision, threads)  # type: ignore[union-attr]
    if record is None:
        record = Record(spec_of(model), model.name, model.revision, model.doc_maxlen, False, "id", "{text}", None)
    elif model.name != record.name or (record.revision and model.revision and model.revision != record.revision):
        made = f"{record.name} {record.revision}".strip()
        raise ValueError(f"{place} was made with {made}, not with {model.name} {model.revision}".strip())
    reader = reader_of(model, record)
    return ColbertIndex.open(place, reader, threads=threads), reader, record


def open_model(spec: str, revision: str, threads: int | None) -> ColBERT:
    """Opens a ColBERT model; of a hub id, at a revision."""
    from adventures import ColBERT

    commit = revision.split("+")[0] or None if "/" in spec and not Path(spec).is_absolute() else None
    return ColBERT(spec, revision=commit, threads=threads)


def spec_of(model: ColBERT) -> str:
    """Returns what opens a model again: a hub id, or where its files are."""
    return model.name if "/" in model.name else str(Path(model.path).absolute())


def reader_of(model: ColBERT, record: Record) -> Reader:
    """Returns what reads documents as an index has them."""
    from adventures.reader import Reader

    return Reader(model, record.doc_maxlen)


def pieces_of(documents: Iterable[Document], reader: Reader, record: Record) -> Iterator[tuple[str, Document]]:
    """Yields the documents, or the pieces of them, each with the id of its document."""
    if not record.split:
        for document in documents:
            yield document.id, document
        return
    length = record.doc_maxlen
    stream = iter(documents)
    while some := list(islice(stream, _BATCH)):
        cut = reader.model.split([one.text for one in some], doc_maxlen=length, overlap=min(32, length // 4))
        for one, texts in zip(some, cut, strict=True):
            for number, text in enumerate(texts):
                yield one.id, Document(f"{one.id}#{number}", text, one.metadata)


def columns_of(pieces: Iterator[tuple[str, Document]]) -> tuple[Iterator[Any], Iterator[Any], Iterator[Any]]:
    """Returns the ids, texts and metadata of pieces, each to be read some at a time."""
    ids, texts, metadata = tee((piece for _, piece in pieces), 3)
    return (one.id for one in ids), (one.text for one in texts), (one.metadata for one in metadata)


def unlike(documents: Iterator[Document], known: dict[str, list[str]] | None) -> Iterator[Document]:
    """Yields the documents; an error where the index has pieces of one already, be they others than it has now."""
    for document in documents:
        if known is not None and document.id in known:
            raise ValueError(f"the document {document.id!r} is in the index already; --replace takes its place")
        yield document


def owner_of(piece: str, record: Record | None) -> str:
    """Returns the id of the document that a passage of an index is of."""
    from adventures.collection import document_of

    return document_of(piece) if record is not None and record.split else piece


def by_document(opened: ColbertIndex, record: Record | None) -> dict[str, list[str]]:
    """Returns the passages of each document of an index."""
    found: dict[str, list[str]] = {}
    for piece in opened.ids():
        found.setdefault(owner_of(piece, record), []).append(piece)
    return found
