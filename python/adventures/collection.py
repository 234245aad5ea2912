"""Documents, and the passages that they are cut into for an index."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

# What an index was made with, beside it.
RECORD = "ragatouille.json"
# What makes `{"document_id", "content"}` of each passage.
Change = Callable[..., list[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Passages:
    """What documents were cut into.

    Attributes:
        documents: The ids of the documents.
        ids: Of the passages: that of the document, `#` and a number from 0 on.
        owners: The id of the document of each.
        texts: The passages.
    """

    documents: list[str]
    ids: list[str]
    owners: list[str]
    texts: list[str]

    @classmethod
    def of(
        cls,
        collection: Sequence[str],
        document_ids: Sequence[str] | None,
        split: Change | None,
        changes: list[Change],
        *,
        chunk_size: int,
    ) -> Self:
        """Cuts documents.

        Args:
            collection: The documents.
            document_ids: What they are called; made up by default.
            split: Is given the documents, their ids and `chunk_size`; without it each document is a passage.
            changes: Are given the passages and the ids of the documents, each in its turn.
            chunk_size: The longest passage, in tokens.

        Raises:
            ValueError: The ids are not as many as the documents, not different, not texts, or empty; a passage is of no
                document.
        """
        texts = [collection] if isinstance(collection, str) else list(collection)
        ids = [str(uuid.uuid4()) for _ in texts] if document_ids is None else list(document_ids)
        if len(ids) != len(texts):
            raise ValueError(f"document_ids must be as many as the documents: {len(ids)} for {len(texts)}")
        count: dict[str, int] = {}
        for id_ in ids:
            if not isinstance(id_, str) or not id_:
                raise ValueError(f"document_ids: {id_!r} is no text, or an empty one")
            if id_ in count:
                raise ValueError(f"document_ids holds {id_!r} twice")
            count[id_] = 0
        if split is not None:
            pieces = split(texts, ids, chunk_size=chunk_size)
        else:
            pieces = [{"document_id": id_, "content": text} for id_, text in zip(ids, texts, strict=True)]
        for change in changes:
            pieces = change(pieces, ids)
        found = cls(ids, [], [], [])
        for piece in pieces:
            owner = piece["document_id"]
            if owner not in count:
                raise ValueError(f"a passage is of the document {owner!r}, which is not among them")
            found.ids.append(f"{owner}#{count[owner]}")
            found.owners.append(owner)
            found.texts.append(piece["content"])
            count[owner] += 1
        return found


def document_of(passage: str) -> str:
    """Returns the id of the document that a passage is of."""
    return passage.rpartition("#")[0]


def by_document(
    documents: list[str], metadatas: Sequence[dict[str, Any]] | None, what: str
) -> dict[str, dict[str, Any]]:
    """Returns the metadata of each document by its id; `what` names them where they are not as many.

    Raises:
        ValueError: They are not.
    """
    if metadatas is None:
        return {}
    if len(metadatas) != len(documents):
        raise ValueError(f"{what} must be as many as the documents: {len(metadatas)} for {len(documents)}")
    return dict(zip(documents, metadatas, strict=True))


def record_of(path: Path) -> dict[str, Any]:
    """Returns what the index at a path was made with.

    Raises:
        FileNotFoundError: There is none.
        ValueError: The record is broken.
    """
    try:
        record = json.loads((path / RECORD).read_text("utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"no index at {path}: `index` makes one") from None
    except ValueError as error:
        raise ValueError(f"{path / RECORD} is broken: {error}") from error
    if not isinstance(record, dict) or not record.keys() >= {"model", "max_document_length"}:
        raise ValueError(f"{path / RECORD} is broken: it says neither model nor length")
    return record
