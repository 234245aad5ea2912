"""A fantasy outfitter's stock: the table, the questions and the voice of `adventures demo`.

Every row names a scenario and the one item that the shop would sell for it. The questions are what customers say, in
other words than the rows use, each with the row that answers it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from os import PathLike

    import pyarrow as pa

__all__ = ["ASK", "SHOPKEEPER", "TEXT", "Question", "Row", "off_topic", "questions", "rows", "write_table"]

TEXT = "For {scenario} you should use {advice}"
"""Template of a row's text, as `Library.sync(text=…)` takes it."""

SHOPKEEPER = (
    "You keep an outfitter's shop for adventurers. Recommend the item that the passage names, "
    "say in one sentence why it helps, and do not make anything up."
)
"""System text that gives the chat its shopkeeper."""

ASK = (
    "How do I get past a dragon that is sleeping on its gold?",
    "There is a werewolf in the family. What do I do at full moon?",
    "I can't fall asleep because I lie there worrying. What helps?",
)
"""The three questions that `adventures demo` asks."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the stock book: a scenario and the item to take there.

    Attributes:
        scenario: What the customer is facing; unique in the table.
        advice: Names the item and says why or how, in one or two sentences.
        item: The item's name, exactly as `advice` writes it; unique in the table.
        category: Shelf, such as `weapon`, `potion` or `light`.
        price: In gold pieces.
        region: Where the item is made.
    """

    scenario: str
    advice: str
    item: str
    category: str
    price: int
    region: str

    @property
    def text(self) -> str:
        """The row as one sentence, made by `TEXT`."""
        return TEXT.format(scenario=self.scenario, advice=self.advice)


@dataclass(frozen=True, slots=True)
class Question:
    """A customer's question with the `scenario` of the row that answers it, and that row's `item`."""

    question: str
    scenario: str
    item: str


def rows() -> list[Row]:
    """The stock, in the order of the file."""
    return [Row(**record) for record in _records("library.jsonl")]


def questions() -> list[Question]:
    """The held-out questions that the stock answers."""
    return [Question(**record) for record in _records("questions.jsonl")]


def off_topic() -> list[str]:
    """Questions that nothing in the stock answers."""
    return [record["question"] for record in _records("offtopic.jsonl")]


def write_table(path: str | PathLike[str]) -> int:
    """Write the stock as a Delta table, and return the version that holds it.

    A table that already holds exactly these rows is left alone; one that holds an older stock gets a new version.

    Args:
        path: Directory of the table, made where it is missing.

    Raises:
        ValueError: `path` holds a Delta table with other columns, which is somebody's data.
    """
    import polars as pl
    from deltalake import DeltaTable, write_deltalake

    location = Path(path)
    stock = _arrow()
    if DeltaTable.is_deltatable(str(location)):
        table = DeltaTable(str(location))
        columns = [field.name for field in table.schema().fields]
        if columns != stock.column_names:
            raise ValueError(
                f"{location} is a Delta table of other data, with the columns {columns}; choose another path"
            )
        if pl.DataFrame(table.to_pyarrow_table()).sort("scenario").equals(pl.DataFrame(stock).sort("scenario")):
            return table.version()
    write_deltalake(str(location), stock, mode="overwrite", name="fantasy-library", description="Gear for adventurers")
    return DeltaTable(str(location)).version()


def _arrow() -> pa.Table:
    import pyarrow as pa

    schema = pa.schema(
        [
            pa.field(name, pa.int64() if name == "price" else pa.string(), nullable=False)
            for name in ("scenario", "advice", "item", "category", "price", "region")
        ]
    )
    return pa.Table.from_pylist(_records("library.jsonl"), schema=schema)


def _records(name: str) -> list[dict[str, Any]]:
    text = (resources.files(__name__) / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
