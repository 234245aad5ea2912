"""What a worker does with a part of a table: it takes a census of it, or writes its passages where nobody sees them."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from lance.fragment import write_fragments
from tqdm import tqdm

from adventures._adventures import AdventuresError
from adventures.census import Census, Picker
from adventures.journal import Journal
from adventures.passages import Known, Writer
from adventures.storage import model_of
from adventures.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from adventures._adventures import Embedder
    from adventures.census import Difference, Digester, Stock
    from adventures.delta import RowSource
    from adventures.distributed.parts import Part
    from adventures.passages import Cut


@dataclass(frozen=True, slots=True)
class Counting:
    """Takes the census of parts."""

    source: RowSource
    digester: Digester
    texts: bool

    def start(self) -> None:
        """Loads nothing."""

    def do(self, part: Part) -> Census:
        """Returns the census of a part."""
        return Census.of(self.source.of_part(part), self.digester, texts=self.texts)


@dataclass(frozen=True, slots=True)
class Share:
    """What is to be written of a part: its rows, and what the library has of them."""

    part: Part
    census: Census
    stock: Stock
    difference: Difference


@dataclass(frozen=True, slots=True)
class Written:
    """What was written of a part: files that no version of the library has yet, as Lance's JSON."""

    fragments: list[str]
    rows: int
    passages: int
    tokens: int
    truncated: int


@dataclass(slots=True)
class Writing:
    """Writes the passages of parts.

    Attributes:
        load: Opens the model.
        model: What it must be, as `model_of` tells it.
        source: The rows, of any part.
        digester: What tells rows and texts apart.
        cut: How long texts become passages.
        schema: The columns of the library's table.
        uri: The table's folder.
        anew: Whether it replaces what the table has.
        library: Path, table and options of the library.
        version: LanceDB's number of the version that is published; None for none.
    """

    load: Callable[[], Embedder]
    model: dict[str, Any]
    source: RowSource
    digester: Digester
    cut: Cut
    schema: pa.Schema
    uri: str
    anew: bool
    library: tuple[str, str, dict[str, str]]
    version: int | None
    _embedder: Embedder | None = None

    def start(self) -> None:
        """Loads the model, once for each worker."""
        embedder = self.load()
        if model_of(embedder) != self.model:
            raise ValueError(
                f"the workers load another model than the library's: {model_of(embedder)}, not {self.model}"
            )
        self._embedder = embedder

    def do(self, share: Share) -> Written:
        """Returns what it wrote of a part."""
        if self._embedder is None:
            raise AdventuresError("the model was not loaded; this is a bug")
        published = None if self.version is None else Store(*self.library).snapshot(self.version)
        writer = Writer(
            self._embedder,
            self.source.of_part(share.part),
            self.cut,
            known=Known(published, share.stock, share.difference),
            schema=self.schema,
            journal=Journal(None),
        )
        picker = Picker(share.census, self.digester, np.full(len(share.census), True))
        with tqdm(disable=True) as bar:
            reader = pa.RecordBatchReader.from_batches(self.schema, writer.guarded(writer.batches(picker, bar)))
            try:
                fragments = write_fragments(
                    reader,
                    self.uri,
                    mode="overwrite" if self.anew else "append",
                    storage_options=self.library[2] or None,
                )
            except Exception as error:
                raise writer.work.error or AdventuresError(f"cannot write {self.uri}: {error}") from error
        work = writer.work
        made: Any = fragments
        return Written(
            fragments=[json.dumps(fragment.to_json()) for fragment in made],
            rows=len(share.census) - picker.left,
            passages=work.passages,
            tokens=work.tokens,
            truncated=work.truncated,
        )


def answer(job: Counting | Writing, task: bytes) -> bytes:
    """Returns what a job makes of a pickled task, or the error that it raises, pickled.

    An error of ours would come again however often Daft tried; what Daft itself raises is of machines, and may not.
    """
    try:
        done: object = job.do(pickle.loads(task))  # noqa: S301 (of the driver)
    except Exception as error:  # noqa: BLE001 (raised by the driver)
        done = error
    try:
        return pickle.dumps(done)
    except (pickle.PicklingError, TypeError, AttributeError):
        return pickle.dumps(AdventuresError(f"{type(done).__name__}: {done}"))
