"""What a library is kept in: the seam between syncs and searches on one side, LanceDB and Postgres on the other."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from adventures._adventures import Embedder

FORMAT = 1
_RECORD = b"adventures"


class Snapshot(Protocol):
    """One published version of a library; read only."""

    @property
    def version(self) -> int:
        """The storage's own number of it."""
        ...

    @property
    def record(self) -> dict[str, Any]:
        """What the passages were made with: format, model, metric."""
        ...

    @property
    def source(self) -> dict[str, Any]:
        """The Delta table they mirror: table, version, columns, counts. Empty before the first sync."""
        ...

    @property
    def rows(self) -> int:
        """How many passages it holds."""
        ...

    @property
    def schema(self) -> pa.Schema:
        """The columns, as `passage_schema` gives them."""
        ...

    def held(self) -> AbstractContextManager[Snapshot]:
        """A version that stays as it is for the length of a `with` block: this one, or the one that replaced it."""
        ...

    def digests(self) -> Iterator[pa.RecordBatch]:
        """Yields `row_id`, `ordinal`, `text_hash`, `row_hash` and the storage's `address` of every passage."""
        ...

    def passages(self, addresses: list[int]) -> pa.Table:
        """Returns `row_id`, `ordinal`, `overlap`, `text` and `vector` of the passages at these addresses."""
        ...

    def nearest(
        self, vector: NDArray[np.float32], where: Mapping[str, object] | None, limit: int
    ) -> list[dict[str, Any]]:
        """Returns the passages nearest to a vector `(dim,)` by cosine, in any order.

        A passage has its `id`, `row_id`, `ordinal`, `text`, `key`, `metadata` and `vector`.
        """
        ...

    def matching(self, words: str, where: Mapping[str, object] | None, limit: int) -> list[dict[str, Any]]:
        """Returns the passages that words fit best, in any order; likewise, with what orders them as `_score`."""
        ...

    def texts(self, stretches: Iterable[tuple[str, int, int]]) -> Iterable[tuple[str, int, int | None, str]]:
        """Returns row, ordinal, overlap and text of the passages of stretches: of a row, from an ordinal to another."""
        ...


class Draft(Protocol):
    """The next version of a library, while it is written; nobody else sees it before it is published.

    Its text names the library in messages.
    """

    def write(self, passages: pa.RecordBatchReader, *, anew: bool) -> None:
        """Adds passages, in place of all others where `anew` is set."""
        ...

    def delete(self, addresses: NDArray[np.uint64]) -> None:
        """Takes out passages that the version before has at these addresses."""
        ...

    def count(self) -> int:
        """Returns how many passages it holds."""
        ...

    def index(self) -> None:
        """Makes the indexes that it should have and has not."""
        ...

    def publish(self, source: dict[str, Any], *, anew: bool, keep: int, since: float) -> None:
        """Shows it to readers.

        Args:
            source: The Delta table that it mirrors.
            anew: Whether all of it was written.
            keep: How many published versions stay readable, this one included.
            since: When its writing began, in seconds of the system's clock.
        """
        ...


class Storage(Protocol):
    """Where the versions of one library are. Its text names it in messages."""

    path: str
    name: str
    # Past this share of the passages, writing the table anew costs less than changing it; None where it never does.
    rewrite: float | None
    # How many published versions stay readable where nobody says.
    keep: int
    # The most that can.
    keep_most: int | None

    @property
    def journal(self) -> Path | None:
        """Where a running sync writes its vectors down; None for nowhere."""
        ...

    def current(self, last: Snapshot | None) -> Snapshot | None:
        """Returns the published version, `last` itself where it still is that; None where nothing was published."""
        ...

    def kept(self) -> list[tuple[Snapshot, bool]]:
        """Returns the versions that can be read, oldest first, and whether each is the published one."""
        ...

    def size(self) -> int | None:
        """Returns the bytes of all that it keeps, indexes included; None where nobody knows."""
        ...

    def writing(self) -> AbstractContextManager[Callable[[], None]]:
        """Keeps other writers out; gives what raises where that failed."""
        ...

    def begin(self, published: Snapshot | None, schema: pa.Schema) -> Draft:
        """Returns a draft that is equal to what is published; what an interrupted sync left is undone."""
        ...

    def undo(self) -> None:
        """Throws the draft away."""
        ...


def passage_schema(embedder: Embedder, key: pa.DataType, metadata: pa.DataType | None) -> pa.Schema:
    """Returns the schema of a table of passages."""
    fields: list[pa.Field[Any]] = [
        pa.field("id", pa.string(), nullable=False),
        pa.field("row_id", pa.string(), nullable=False),
        pa.field("ordinal", pa.int32(), nullable=False),
        # How many characters it has in common with the passage before; of less than 0, so many are between them. Null
        # in the first of a row, and in those of a library that was made before there was this column.
        pa.field("overlap", pa.int32()),
        pa.field("text", pa.string(), nullable=False),
        pa.field("text_hash", pa.binary(16), nullable=False),
        pa.field("row_hash", pa.binary(16), nullable=False),
        # Structs keep the source's own column names, whatever they are, apart from ours.
        pa.field("key", key, nullable=False),
        *([] if metadata is None else [pa.field("metadata", metadata, nullable=False)]),
        pa.field("vector", pa.list_(pa.field("item", pa.float32()), embedder.dim), nullable=False),
    ]
    record = {"format": FORMAT, "model": model_of(embedder), "metric": "cosine"}
    return pa.schema(fields, metadata={_RECORD: json.dumps(record).encode()})


def read_record(schema: pa.Schema) -> dict[str, Any]:
    """Returns what a library's schema says of its model; empty for a table that is no library."""
    raw = (schema.metadata or {}).get(_RECORD)
    return dict(json.loads(raw)) if raw else {}


def check_format(storage: object, record: dict[str, Any]) -> None:
    """Raises ValueError where a table is not a library, or one of a newer format."""
    if not record:
        raise ValueError(f"{storage} was not written by adventures; choose another table name")
    if record["format"] > FORMAT:
        raise ValueError(
            f"{storage} has format {record['format']}, this version reads up to {FORMAT}: update adventures"
        )


def model_of(embedder: Embedder) -> dict[str, Any]:
    """Returns what must be equal for two vectors to be comparable."""
    return {
        "name": embedder.name,
        "revision": embedder.revision,
        "dim": embedder.dim,
        "pooling": embedder.pooling,
        "prompts": dict(embedder.prompts),
        "max_tokens": embedder.max_tokens,
    }


def check_model(storage: object, record: dict[str, Any], embedder: Embedder) -> None:
    """Raises ValueError where a library's vectors were made by another model than `embedder`."""
    made, given = record["model"], model_of(embedder)
    same = all(made[key] == given[key] for key in ("name", "dim", "pooling", "prompts"))
    # An unknown revision is no evidence of a difference.
    if made["revision"] and given["revision"]:
        same = same and made["revision"] == given["revision"]
    if not same:
        raise ValueError(
            f"{storage} was embedded with {_spell(made)}, not with {_spell(given)}; open it with the first, or sync "
            "into another table"
        )


def _spell(model: dict[str, Any]) -> str:
    revision = f" at revision {model['revision']}" if model["revision"] else ""
    prompts = ", ".join(f"{kind} {prompt!r}" for kind, prompt in model["prompts"].items())
    facts = f"{model['dim']} dimensions, {model['pooling']} pooling, prompts {prompts or 'none'}"
    return f"{model['name']}{revision} ({facts})"
