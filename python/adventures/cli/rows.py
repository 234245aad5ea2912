"""Documents from files: JSON lines, CSV, Parquet, Delta tables, and what comes on stdin."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adventures.cli.program import open_stream

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

FORMATS = ("jsonl", "csv", "parquet", "delta")
_ENDINGS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".parquet": "parquet"}
_TEMPLATE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
# Rows of a table that are in memory as Python objects at once.
_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Document:
    """A row as an index takes it."""

    id: str
    text: str
    metadata: dict[str, Any] | None


@dataclass(slots=True)
class Fields:
    """Which columns of a row are what, and which rows were left out.

    Attributes:
        id: The column that names a row.
        text: A template of columns in braces, or a column.
        metadata: The columns to keep; all that are neither of the others where it is None.
        skipped: How many rows were left out, by reason.
    """

    id: str
    text: str
    metadata: tuple[str, ...] | None
    skipped: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        if "{" not in self.text and "}" not in self.text:
            self.text = f"{{{self.text}}}"
        for match in _TEMPLATE.finditer(self.text):
            if match.group(1) is None and len(match.group()) == 1:
                place = f"a lone {match.group()!r} at {match.start()}; write it twice for a plain brace"
                raise click.BadParameter(f"{self.text!r} has {place}", param_hint="--text")
        if not self._used:
            raise click.BadParameter(f"{self.text!r} names no column, as '{{column}}' does", param_hint="--text")

    @property
    def _used(self) -> list[str]:
        return [match.group(1) for match in _TEMPLATE.finditer(self.text) if match.group(1) is not None]

    def document(self, row: dict[str, Any], place: str) -> Document | None:
        """Returns what a row says; None where its id or text is null, or its text blank.

        Raises:
            ValueError: It lacks a column.
        """
        used = self._used
        for name in (self.id, *used, *(self.metadata or ())):
            if name not in row:
                raise ValueError(f"{place}: no column {name!r}; there are {', '.join(map(repr, row)) or 'none'}")
        if row[self.id] is None or row[self.id] == "":
            self.skipped["null id" if row[self.id] is None else "empty id"] += 1
            return None
        if any(row[name] is None for name in used):
            self.skipped["null text"] += 1
            return None
        text = _TEMPLATE.sub(lambda match: _filled(match, row), self.text)
        if not text.strip():
            self.skipped["empty text"] += 1
            return None
        names = (
            [name for name in row if name != self.id and name not in used] if self.metadata is None else self.metadata
        )
        metadata = {name: _plain(row[name]) for name in names}
        return Document(_spell(row[self.id]), text, metadata or None)


def documents(places: Sequence[str], form: str | None, fields: Fields) -> Iterator[Document]:
    """Yields the documents of files, folders and stdin, in their order; only some rows are in memory.

    Args:
        places: Files, Delta tables, or `-` for stdin; of none, stdin.
        form: One of `FORMATS`; by default what an ending or a folder says, and JSON lines of stdin.
        fields: Which columns are what.

    Raises:
        ValueError: A file is not what it should be; the message names the line.
    """
    for place in places or ["-"]:
        for where, row in _rows(place, form or _form(place)):
            document = fields.document(row, where)
            if document is not None:
                yield document


def _form(place: str) -> str:
    if place == "-":
        return "jsonl"
    if "://" in place or Path(place).is_dir():
        return "delta"
    ending = Path(place).suffix.lower()
    if ending not in _ENDINGS:
        known = ", ".join(_ENDINGS)
        raise ValueError(f"{place}: {ending or 'no'} ending is none of {known}; --format says what it is")
    return _ENDINGS[ending]


def _rows(place: str, form: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if form == "delta":
        yield from _delta(place)
    elif form == "parquet":
        yield from _parquet(place)
    elif place == "-":
        stream = open_stream("stdin").buffer
        yield from (_csv if form == "csv" else _jsonl)("stdin", stream)
    else:
        with Path(place).open("rb") as file:
            yield from (_csv if form == "csv" else _jsonl)(place, file)


def _lines(name: str, file: Iterable[bytes]) -> Iterator[str]:
    for number, line in enumerate(file, start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{name}, line {number}: not UTF-8: {error}") from error


def _jsonl(name: str, file: Iterable[bytes]) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(_lines(name, file), start=1):
        if not line.strip():
            continue
        place = f"{name}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{place}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{place}: {line.strip()[:40]!r} is no JSON object")  # noqa: TRY004 (of a file, not of ours)
        yield place, row


def _csv(name: str, file: Iterable[bytes]) -> Iterator[tuple[str, dict[str, Any]]]:
    # Values stay texts: of 007 a number would be another id.
    reader = csv.reader(_lines(name, file), strict=True)
    try:
        header = next(reader, None)
        if header is None:
            raise ValueError(f"{name}: empty; its first line names the columns")
        if len(set(header)) < len(header):
            raise ValueError(f"{name}, line 1: a column is named twice: {', '.join(header)}")
        for values in reader:
            if not values:
                continue
            place = f"{name}, line {reader.line_num}"
            if len(values) != len(header):
                raise ValueError(f"{place}: {len(values)} values for {len(header)} columns")
            yield place, dict(zip(header, values, strict=True))
    except csv.Error as error:
        raise ValueError(f"{name}, line {reader.line_num}: not CSV: {error}") from error


def _parquet(place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = "stdin" if place == "-" else place
    # Its index is at its end, so a stream has to be whole.
    source: Any = io.BytesIO(open_stream("stdin").buffer.read()) if place == "-" else Path(place)
    if place != "-" and not Path(place).exists():
        raise FileNotFoundError(2, "no such file or directory", place)
    try:
        with pq.ParquetFile(source) as file:
            number = 0
            for batch in file.iter_batches(_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{name}, row {number}", row
    except pa.ArrowException as error:
        raise ValueError(f"{name}: not Parquet: {error}") from error


def _delta(place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow as pa

    from adventures.delta import open_table

    if place == "-":
        raise ValueError("a Delta table is a folder or a URI; stdin is neither")
    table = open_table(place)
    number = 0
    for batch in pa.RecordBatchReader.from_stream(table.scan()):
        for start in range(0, batch.num_rows, _ROWS):
            for row in batch.slice(start, _ROWS).to_pylist(maps_as_pydicts="strict"):
                number += 1
                yield f"{place}, row {number}", row


def _filled(match: re.Match[str], row: dict[str, Any]) -> str:
    return match.group()[0] if match.group(1) is None else _spell(row[match.group(1)])


def _spell(value: Any) -> str:
    """A value as text: what JSON would write, without the quotes of a text."""
    if isinstance(value, str):
        return value
    plain = _plain(value)
    return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)


def _plain(value: Any) -> Any:
    """A value as JSON holds it: no infinity, dates in ISO 8601, bytes in hex."""
    match value:
        case bytes():
            return value.hex()
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
        case list():
            return [_plain(item) for item in value]
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
