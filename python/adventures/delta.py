"""Delta tables as a stream of rows: a key, a text and metadata."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from adventures.columns import check_id_type, row_ids, stored, stored_field

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from os import PathLike

    from numpy.typing import NDArray

# Rows that are enough to work on at once.
_BATCH = 1024
# What the digest of a Polars expression begins with; that of a template is itself.
_EXPRESSION = "polars:"
_SQL_TEXT = re.compile(r"""'[^']*'|"[^"]*"|`[^`]*`|--[^\n]*|/\*.*?\*/""", re.DOTALL)
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_TEMPLATE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


@dataclass(frozen=True, slots=True)
class RowBatch:
    """A slice of a Delta table, row for row.

    Attributes:
        ids: The row's key as one string; None where an id column is null.
        texts: The row's text; None where a column it is made of is null.
        key: The id columns, typed.
        metadata: The metadata columns, typed; None where none are kept.
        values: Everything a reader of the library can see of the row besides its text, for hashing.
    """

    ids: list[str | None]
    texts: list[str | None]
    key: pa.StructArray
    metadata: pa.StructArray | None
    values: list[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of some rows.

    Attributes:
        ids: Each key as `RowBatch.ids` spells it.
        values: For each id column, the values that occur in it.
    """

    ids: frozenset[str]
    values: tuple[pa.Array[Any], ...]


def open_table(
    delta: str | PathLike[str] | DeltaTable,
    *,
    version: int | None = None,
    storage_options: Mapping[str, str] | None = None,
) -> DeltaTable:
    """Returns a Delta table pinned to one version, the newest where none is named.

    Raises:
        FileNotFoundError: Nothing is at that path.
        OSError: Its store cannot be reached.
        TypeError: It is neither, or a storage option is no string.
        ValueError: What is there is no Delta table, or has no such version.
    """
    if version is not None and (isinstance(version, bool) or not isinstance(version, int) or not 0 <= version < 2**63):
        raise ValueError(f"version must be a number from 0 on, not {version!r}")
    check_options(storage_options)
    options = dict(storage_options) if storage_options else None
    if isinstance(delta, DeltaTable):
        uri = delta.table_uri
        version = delta.version() if version is None else version
        options = options or delta._storage_options
    elif not isinstance(delta, (str, os.PathLike)):
        raise TypeError(f"delta must be a path, a URI or a DeltaTable, not {type(delta).__name__}")
    else:
        uri = os.fspath(delta)
        if not uri or "\0" in uri:
            raise ValueError(f"delta must be a path, a URI or a DeltaTable, not {uri!r}")
        if "://" not in uri:
            uri = os.path.expanduser(uri)  # noqa: PTH111 (as it was written but for its beginning)
            _check_folder(Path(uri))
    what = f"cannot open the Delta table {uri}" + ("" if version is None else f" at version {version}")
    try:
        return DeltaTable(uri, version=version, storage_options=options)
    except TableNotFoundError as error:
        raise FileNotFoundError(f"no Delta table at {uri}: {error}") from error
    except DeltaError as error:
        newest = _newest(uri, options) if version else None
        if newest is not None and version is not None and version > newest:
            raise ValueError(f"{what}: its newest version is {newest}") from error
        raise ValueError(f"{what}: {error}") from error
    except OSError as error:
        # Of a bucket that does not exist, or that these credentials do not open: in colours, on several lines.
        told = " ".join(_COLOUR.sub("", str(error)).split())
        raise type(error)(f"{what}: {told}") from error


def _newest(uri: str, options: dict[str, str] | None) -> int | None:
    """The newest version of a table; None where even that cannot be opened."""
    try:
        return DeltaTable(uri, storage_options=options).version()
    except (DeltaError, OSError):
        return None


def check_options(storage_options: Mapping[str, str] | None) -> None:
    """Raises TypeError or ValueError where options of an object store are not strings."""
    # Messages leave the values out: they may be secrets.
    for name, value in (storage_options or {}).items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(
                f"storage_options must map strings to strings; it maps {name!r} to a {type(value).__name__}"
            )
        try:
            (name + value).encode()
        except UnicodeEncodeError:
            raise ValueError(f"the storage option {name!r} is not valid Unicode") from None


def _check_folder(path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(f"no Delta table at {path}: the path does not exist")
    if not (path / "_delta_log").is_dir():
        raise ValueError(f"{path} is not a Delta table: it has no _delta_log folder")


class Scannable(Protocol):
    """Rows that are read as those of a table are."""

    @property
    def table_uri(self) -> str:
        """The table."""
        ...

    def scan(self, columns: list[str], predicate: str | None) -> pa.RecordBatchReader:
        """Returns some columns of the rows that fulfil a predicate."""
        ...


@dataclass(frozen=True, slots=True)
class RowSource:
    """The rows of one version of a Delta table, with what to read from them.

    Build it with `RowSource.of`, which checks every column name and type.
    """

    table: DeltaTable
    id: tuple[str, ...]
    text: pl.Expr
    metadata: tuple[str, ...]
    where: str | None
    text_digest: str | None
    _targets: dict[str, pa.Field[Any]] = field(repr=False)
    _columns: tuple[str, ...] = field(repr=False)
    _keys: Keys | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        table: DeltaTable,
        *,
        id: str | Sequence[str],  # noqa: A002 - the word the whole API uses
        text: str | pl.Expr,
        metadata: Sequence[str] | None = None,
        where: str | None = None,
    ) -> RowSource:
        """Returns the source of rows for these columns.

        Args:
            table: An opened table.
            id: The column, or columns, that together name a row.
            text: A template such as `"For {scenario} use {advice}"` (`{{` is a brace), or a Polars expression.
            metadata: Columns to keep beside the text. None keeps all that are neither in `id` nor in `text`.
            where: A SQL predicate over the table's columns; other rows are not read.

        Raises:
            TypeError: An argument is of another type.
            ValueError: A column that the table does not have, or of a type that cannot be used.
        """
        schema = pa.schema(cast("Any", table.schema().to_arrow()))
        ids = (id,) if isinstance(id, str) else _names(id, "id")
        if not ids:
            raise ValueError("id names no column")
        if len(set(ids)) < len(ids):
            raise ValueError(f"id names a column twice: {', '.join(ids)}")
        _check_columns(ids, schema, "id")
        expression, used = _text_expression(text, schema)
        if metadata is None:
            kept = tuple(name for name in schema.names if name not in ids and name not in used)
        elif isinstance(metadata, str):
            raise ValueError(f"metadata must be a list of columns, not the string {metadata!r}")
        else:
            kept = tuple(dict.fromkeys(_names(metadata, "metadata")))
            _check_columns(kept, schema, "metadata")
        if where is not None:
            _check_predicate(where)
        targets = {name: stored_field(schema.field(name)) for name in {*ids, *kept}}
        for name in ids:
            check_id_type(schema.field(name))
        columns = tuple(name for name in schema.names if name in {*ids, *kept, *used})
        return cls(table, ids, expression, kept, where, _text_digest(text), targets, columns)

    @property
    def key_type(self) -> pa.DataType:
        """The type of `RowBatch.key`."""
        return pa.struct([self._targets[name] for name in self.id])

    @property
    def metadata_type(self) -> pa.DataType | None:
        """The type of `RowBatch.metadata`; None where no metadata is kept."""
        return pa.struct([self._targets[name] for name in self.metadata]) if self.metadata else None

    @property
    def columns(self) -> dict[str, str]:
        """The types of all columns of the table, by name."""
        return {column.name: str(column.type) for column in pa.schema(cast("Any", self.table.schema().to_arrow()))}

    @property
    def of_template(self) -> bool:
        """Whether a template makes the texts, which are the same each time then."""
        return self.text_digest is not None and not self.text_digest.startswith(_EXPRESSION)

    @property
    def used(self) -> tuple[str, ...]:
        """The columns that are read."""
        return self._columns

    def only(self, keys: Keys) -> RowSource:
        """Returns the source of the rows with these keys."""
        return replace(self, _keys=keys)

    def of_part(self, part: Scannable | None) -> RowSource:
        """Returns the same of a part of the table, or of none: what can be sent to another machine."""
        return replace(self, table=cast("DeltaTable", part))

    def at(self, version: int) -> RowSource:
        """Returns the same rows of another version.

        Raises:
            ValueError: The table has no such version any more.
        """
        return replace(self, table=open_table(self.table, version=version))

    def keys_of(self, batch: pa.RecordBatch) -> tuple[list[str | None], list[pa.Array[Any]]]:
        """Returns the keys of rows that have the id columns: as strings, and column for column."""
        columns = [stored(batch.column(name), self._targets[name]) for name in self.id]
        return row_ids(pl.DataFrame(pa.table(columns, names=list(self.id))), self.id), columns

    def key_batches(self) -> Iterator[pa.RecordBatch]:
        """Yields the id columns of all rows, keys or no keys."""
        for batch in self._scan(self.id):
            yield batch.select(list(self.id))

    def batches(self) -> Iterator[RowBatch]:
        """Yields the table's rows in no particular order; a second call reads the same rows again.

        Raises:
            ValueError: The predicate or the text expression fails on this table.
        """
        yield from map(self._rows, _joined(self._limited(self._scan(self._columns))))

    def _limited(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        keys = self._keys
        if keys is None:
            yield from batches
            return
        for batch in batches:
            # Values of each column by themselves first, which is fast; what is left is few, and compared whole.
            found = np.full(batch.num_rows, True)
            for name, values in zip(self.id, keys.values, strict=True):
                if not pa.types.is_floating(values.type):
                    column = stored(batch.column(name), self._targets[name])
                    found &= pc.is_in(column, value_set=values).to_numpy(zero_copy_only=False)
            some = _taken(batch, np.flatnonzero(found))
            if some is not None:
                ids, _ = self.keys_of(some)
                some = _taken(some, np.flatnonzero([row_id in keys.ids for row_id in ids]))
            if some is not None:
                yield some

    def _scan(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        # delta-rs parses one expression and ignores what follows, so of "a = 1 an b = 2" only the half would count. The
        # line end keeps the bracket out of a comment.
        predicate = None if self.where is None else f"({self.where}\n)"
        try:
            stream = pa.RecordBatchReader.from_stream(self.table.scan(columns=list(columns), predicate=predicate))
            # Without the metadata of column mapping, which Polars warns about.
            schema = pa.schema([pa.field(f.name, f.type) for f in stream.schema])
            for batch in stream:
                yield pa.RecordBatch.from_arrays(batch.columns, schema=schema)
        except BaseException as error:
            # delta-rs panics at a subquery, which comes as an exception that is no Exception.
            if not isinstance(error, (DeltaError, pa.ArrowException)) and type(error).__name__ != "PanicException":
                raise
            limit = "" if self.where is None else f" where {self.where!r}"
            # Of a reader in Python, a traceback follows.
            told = str(error).partition(" Detail: Python exception:")[0]
            raise ValueError(f"cannot read the Delta table {self.table.table_uri}{limit}: {told}") from error

    def _rows(self, batch: pa.RecordBatch) -> RowBatch:
        frame = pl.DataFrame(pa.Table.from_batches([batch]))
        # A column of the key may be metadata too.
        names = list(dict.fromkeys([*self.id, *self.metadata]))
        try:
            return RowBatch(
                ids=row_ids(frame, self.id),
                texts=_texts(frame, self.text),
                key=self._struct(batch, self.id),
                metadata=self._struct(batch, self.metadata) if self.metadata else None,
                # Not select(), to which a column named "*" is all of them, and "^a.*$" a pattern.
                values=frame[names].rows(),
            )
        except (OverflowError, ValueError):
            _check_times(frame, names, self.id)
            raise

    def _struct(self, batch: pa.RecordBatch, names: Sequence[str]) -> pa.StructArray:
        fields = [self._targets[name] for name in names]
        return pa.StructArray.from_arrays([stored(batch.column(f.name), f) for f in fields], fields=fields)


def _check_times(frame: pl.DataFrame, names: Sequence[str], key: Sequence[str]) -> None:
    """Raises a ValueError that names a date or time which Python has not: of the years 1 to 9999 alone."""
    for name in names:
        for number in range(len(frame)):
            row = frame[number : number + 1]
            try:
                row[name].to_list()
            except (OverflowError, ValueError) as error:
                where = "its row" if name in key else f"row {row_ids(row, key)[0]!r}"
                value = row[name].to_physical().to_list()[0]
                raise ValueError(
                    f"column {name!r} has a date or time outside the years 1 to 9999 in {where}: {value} ({error})"
                ) from error


def _check_predicate(where: str) -> None:
    if not isinstance(where, str):
        raise TypeError(f"where must be a SQL predicate, a string, not {type(where).__name__}")
    # One bracket too many would close ours, and hide what comes after it from the parser.
    depth = 0
    for mark in _SQL_TEXT.sub("", where):
        depth += (mark == "(") - (mark == ")")
        if depth < 0:
            raise ValueError(f"where has a bracket that closes nothing: {where!r}")


def _names(names: Sequence[str], role: str) -> tuple[str, ...]:
    try:
        return tuple(names)
    except TypeError:
        raise TypeError(f"{role} must be a list of columns, not {type(names).__name__}") from None


def _check_columns(names: Sequence[str], schema: pa.Schema, role: str) -> None:
    for name in names:
        if name not in schema.names:
            raise ValueError(f"{role} names the column {name!r}, which the table does not have; {_available(schema)}")


def _available(schema: pa.Schema) -> str:
    return "its columns are " + ", ".join(map(repr, schema.names)) if schema.names else "it has no columns"


def _text_expression(text: str | pl.Expr, schema: pa.Schema) -> tuple[pl.Expr, set[str]]:
    if isinstance(text, str):
        return _template(text, schema)
    if not isinstance(text, pl.Expr):
        raise TypeError(f"text must be a template or a Polars expression, not {type(text).__name__}")
    empty = pl.DataFrame(schema.empty_table().cast(pa.schema([pa.field(f.name, f.type) for f in schema])))
    try:
        result = empty.select(text)
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"text cannot be computed from this table: {error}; {_available(schema)}") from error
    if result.width != 1 or result.dtypes[0] != pl.String:
        found = ", ".join(f"{name}: {dtype}" for name, dtype in result.schema.items())
        raise ValueError(f"text must be one expression of strings, this one gives {found}")
    # Wildcards and selectors only say what they read once they meet a schema, so they read everything.
    names = set(text.meta.root_names())
    return text, names if names and names <= set(schema.names) else set(schema.names)


def _template(template: str, schema: pa.Schema) -> tuple[pl.Expr, set[str]]:
    parts: list[pl.Expr] = []
    used: list[str] = []
    end = 0
    for match in _TEMPLATE.finditer(template):
        parts.append(pl.lit(template[end : match.start()]))
        end = match.end()
        if match.group() in ("{{", "}}"):
            parts.append(pl.lit(match.group()[0]))
        elif match.group(1) is None:
            raise ValueError(f"text has a lone {match.group()!r} at {match.start()}; write it twice for a plain brace")
        else:
            used.append(match.group(1))
            parts.append(pl.col(f"^{re.escape(match.group(1))}$").cast(pl.String))
    parts.append(pl.lit(template[end:]))
    if not used:
        raise ValueError(f"text {template!r} names no column; write it as '{{column}}'; {_available(schema)}")
    _check_columns(used, schema, "text")
    for name in used:
        if pa.types.is_nested(schema.field(name).type) or pa.types.is_binary(schema.field(name).type):
            kind = schema.field(name).type
            raise ValueError(f"text cannot hold the column {name!r} of type {kind}; use a Polars expression for it")
    return pl.concat_str(parts), set(used)


def _text_digest(text: str | pl.Expr) -> str | None:
    if isinstance(text, str):
        return text
    try:
        return _EXPRESSION + hashlib.blake2b(text.meta.serialize(), digest_size=16).hexdigest()
    except pl.exceptions.PolarsError:
        # A Python function inside: whether it still does the same cannot be known.
        return None


def _texts(frame: pl.DataFrame, text: pl.Expr) -> list[str | None]:
    try:
        column = frame.select(text).to_series()
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"text cannot be computed: {error}") from error
    if len(column) != frame.height:
        raise ValueError(f"text must give one string per row; it gave {len(column)} for {frame.height} rows")
    return column.to_list()


def _taken(batch: pa.RecordBatch, rows: NDArray[np.int64]) -> pa.RecordBatch | None:
    """Some rows of a batch, without what is in memory for the others; None for no rows."""
    if not len(rows):
        return None
    # Arrow takes no rows out of columns of views, and joins them with all that any of them points to.
    some = pa.Table.from_batches([batch.slice(row, 1) for row in rows.tolist()]).combine_chunks().to_batches()[0]
    types = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
    return some.cast(pa.schema([pa.field(f.name, types.get(f.type, f.type)) for f in some.schema]))


def _joined(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The batches, small ones put together: a table of many small files comes as batches of a row each."""
    waiting: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        waiting.append(batch)
        count += batch.num_rows
        if count >= _BATCH:
            yield from pa.Table.from_batches(waiting).combine_chunks().to_batches()
            waiting, count = [], 0
    if count:
        yield from pa.Table.from_batches(waiting).combine_chunks().to_batches()
