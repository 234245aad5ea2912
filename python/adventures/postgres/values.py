"""Keys and metadata as jsonb: written, read back as what they were, and compared with."""

from __future__ import annotations

import json
import math
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from adventures.columns import is_json
from adventures.filters import Spelling

if TYPE_CHECKING:
    from collections.abc import Callable


def written(column: pa.StructArray) -> list[str]:
    """Returns each row of a struct as a JSON object: numbers exact, times in ISO 8601, bytes in hexadecimal."""
    kind = column.type
    fields = [kind.field(at) for at in range(kind.num_fields)]
    cells = []
    for at, field in enumerate(fields):
        name, spell = json.dumps(field.name), _writer(field)
        values = column.field(at).to_pylist()
        cells.append([f"{name}:{'null' if value is None else spell(value)}" for value in values])
    return ["{" + ",".join(row) + "}" for row in zip(*cells, strict=True)] if cells else ["{}"] * len(column)


def _writer(field: pa.Field[Any]) -> Callable[[Any], str]:
    return str if is_json(field) else _spell


def _spell(value: Any) -> str:
    match value:
        case bool() | str():
            return json.dumps(value)
        case int():
            return str(value)
        case float():
            return repr(value) if math.isfinite(value) else f'"{value}"'
        case Decimal():
            return f"{value:f}"
        case bytes():
            return f'"{value.hex()}"'
        case list():
            return "[" + ",".join("null" if one is None else _spell(one) for one in value) + "]"
        case datetime() if value.tzinfo is not None:
            return f'"{value.astimezone(UTC).isoformat()}"'
    return f'"{value.isoformat()}"'


def read(value: dict[str, Any], kind: pa.DataType | None) -> dict[str, Any]:
    """Returns a JSON object, numbers in it as `Decimal`, as the struct that it was written from."""
    if kind is None:
        return {}
    fields = [kind.field(at) for at in range(kind.num_fields)]
    return {
        field.name: _plain(value[field.name]) if is_json(field) else _read(value[field.name], field.type)
        for field in fields
    }


def loads(data: str | bytes) -> Any:
    """Parses JSON, with fractions as `Decimal`."""
    return json.loads(data, parse_float=Decimal)


def _read(value: Any, kind: pa.DataType) -> Any:
    types = pa.types
    if value is None:
        return None
    if types.is_list(kind):
        return [_read(one, kind.value_type) for one in value]
    if types.is_floating(kind):
        return float(value)
    if types.is_decimal(kind):
        return Decimal(value).quantize(Decimal(1).scaleb(-kind.scale))
    if types.is_binary(kind):
        return bytes.fromhex(value)
    if isinstance(kind, pa.TimestampType):
        # Back through Arrow, which gives a time the zone that its type names.
        return pa.scalar(datetime.fromisoformat(value), kind).as_py()
    if types.is_date(kind):
        return date.fromisoformat(value)
    return time.fromisoformat(value) if types.is_time(kind) else value


def _plain(value: Any) -> Any:
    """A nested value with its fractions as `float`, as `json.loads` has them."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list) else value


class PostgresSpelling(Spelling):
    """How Postgres is given a condition: names and values as parameters, never in the SQL."""

    def __init__(self) -> None:
        self.parameters: dict[str, Any] = {}

    def path(self, struct: str, column: pa.Field[Any]) -> str:
        """Returns the expression of a column of a struct, in the type that it has."""
        if is_json(column):
            raise ValueError(f"where cannot compare the column {column.name!r}: it is nested")
        name = self._parameter(column.name)
        if pa.types.is_list(column.type):
            return f"NULLIF({struct} -> {name}::text, 'null'::jsonb)"
        kind = _type(column.type)
        # Not the database's collation: LanceDB compares texts byte by byte, too.
        return f'({struct} ->> {name}::text) COLLATE "C"' if kind == "text" else f"({struct} ->> {name}::text)::{kind}"

    def value(self, kind: pa.DataType, value: Any) -> str:
        """Returns a place for a value."""
        if isinstance(value, datetime) and isinstance(kind, pa.TimestampType) and kind.tz is not None:
            value = value.replace(tzinfo=UTC)
        if isinstance(value, float) and kind.bit_width == 32:
            with np.errstate(over="ignore"):
                value = float(np.float32(value))
        return f"{self._parameter(value)}::{_type(kind)}"

    def has(self, path: str, kind: pa.DataType, value: Any) -> str:
        """Returns the condition that a list column has a value."""
        if isinstance(value, datetime) and isinstance(kind, pa.TimestampType) and kind.tz is not None:
            value = value.replace(tzinfo=UTC)
        return f"{path} @> {self._parameter(f'[{_spell(value)}]')}::jsonb"

    def _parameter(self, value: Any) -> str:
        name = f"where{len(self.parameters)}"
        self.parameters[name] = value
        return f"%({name})s"


def _type(kind: pa.DataType) -> str:
    types = pa.types
    if types.is_boolean(kind):
        return "boolean"
    if types.is_integer(kind) or types.is_decimal(kind):
        return "numeric"
    if types.is_floating(kind):
        return "real" if kind.bit_width == 32 else "double precision"
    if isinstance(kind, pa.TimestampType):
        return "timestamp" if kind.tz is None else "timestamptz"
    return "date" if types.is_date(kind) else "text"
