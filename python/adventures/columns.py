"""Columns of a source table: as keys, as metadata, and as the types a library keeps."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_JSON = {b"adventures.json": b"1"}


def check_id_type(column: pa.Field[Any]) -> None:
    """Raises ValueError where a column cannot name a row."""
    if pa.types.is_nested(column.type):
        raise ValueError(f"id cannot be the column {column.name!r} of type {column.type}; use scalar columns")


def row_ids(frame: pl.DataFrame, names: Sequence[str]) -> list[str | None]:
    """Returns each row's key as one string; None where one of its columns is null.

    One column gives its value: a string itself, a number in decimals, a date or time in ISO 8601, bytes in hex. Several
    give a JSON array of these.
    """
    columns = [_as_text(frame.get_column(name)) for name in names]
    if len(columns) == 1:
        return columns[0]
    rows = zip(*columns, strict=True)
    return [None if None in row else json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows]


def _as_text(column: pl.Series) -> list[str | None]:
    dtype = column.dtype
    if dtype == pl.String:
        return column.to_list()
    if dtype.is_integer() or dtype.is_decimal():
        return column.cast(pl.String).to_list()
    spell: Callable[[Any], str]
    if dtype == pl.Boolean:
        spell = _spell_bool
    elif dtype == pl.Binary:
        spell = bytes.hex
    elif dtype.is_float():
        spell = repr
    else:
        spell = _spell_time
    return [None if value is None else spell(value) for value in column.to_list()]


def _spell_bool(value: bool) -> str:
    return "true" if value else "false"


def _spell_time(value: Any) -> str:
    return str(value.isoformat())


def _stored_type(kind: pa.DataType) -> pa.DataType | None:
    """The type a column has in the library; None where it is kept as JSON."""
    types = pa.types
    if types.is_dictionary(kind):
        return _stored_type(kind.value_type)
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind) or types.is_null(kind):
        return pa.string()
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind):
        return pa.binary()
    if types.is_list(kind) or types.is_large_list(kind):
        value = None if types.is_nested(kind.value_type) else _stored_type(kind.value_type)
        return pa.list_(value) if value is not None else None
    return None if types.is_nested(kind) else kind


def stored_field(column: pa.Field[Any]) -> pa.Field[Any]:
    """Returns the field that keeps a column: scalars and lists of them as they are, what is nested deeper as JSON."""
    kind = _stored_type(column.type)
    return pa.field(column.name, pa.string(), metadata=_JSON) if kind is None else pa.field(column.name, kind)


def is_json(column: pa.Field[Any]) -> bool:
    """Whether a stored metadata column holds the JSON of a nested value."""
    return (column.metadata or {}).get(b"adventures.json") == b"1"


def stored(column: pa.Array[Any], target: pa.Field[Any]) -> pa.Array[Any]:
    """Returns the column in the type of `stored_field`."""
    if not is_json(target):
        return column.cast(target.type)
    try:
        values = column.to_pylist(maps_as_pydicts="strict")
    except KeyError as error:
        raise ValueError(f"column {target.name!r} has a map with two values for one key: {_doubled(column)}") from error
    return pa.array([None if value is None else _to_json(value) for value in values], pa.string())


def _doubled(column: pa.Array[Any]) -> str:
    """The first value of a column in which a map has a key twice, as far as it fits a message."""
    for value in column:
        try:
            value.as_py(maps_as_pydicts="strict")
        except KeyError:
            return f"{value.as_py()!s:.200}"
    return ""


def _to_json(value: Any) -> str:
    return json.dumps(_finite(value), ensure_ascii=False, default=_spelled, sort_keys=True)


def _spelled(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def _finite(value: Any) -> Any:
    # JSON has no NaN and no infinity; a filter or a page that reads them back must not meet either.
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value
