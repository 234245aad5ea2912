"""Conditions on a library's columns, built from values: what a value holds is never read as SQL."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa

_COMPARISONS = {"eq": "=", "ne": "<>", "gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
# What a Python string can hold and UTF-8 cannot: half of a UTF-16 pair, or a byte of an argument that was no text.
_SURROGATE = re.compile("[\ud800-\udfff]")
# The most that Arrow's widest common decimal holds.
_DECIMAL_DIGITS = 38
_OPERATORS = (*_COMPARISONS, "in", "contains")


class Spelling:
    """How LanceDB writes the parts of a condition. Values are checked and of the column's type."""

    def path(self, struct: str, column: pa.Field[Any]) -> str:
        """Returns the expression of a column of a struct."""
        quoted = column.name.replace("`", "``")
        return f"{struct}.`{quoted}`"

    def value(self, kind: pa.DataType, value: Any) -> str:
        """Returns the expression of a value: bool, str, int, float, Decimal, date or datetime, naive in UTC."""
        match value:
            case bool():
                return "true" if value else "false"
            case str():
                return "'" + value.replace("'", "''") + "'"
            case int():
                return str(value)
            case float():
                return f"CAST('{value!r}' AS {'FLOAT' if kind.bit_width == 32 else 'DOUBLE'})"
            case Decimal():
                whole, fraction = _digits(value)
                # A type of its own: in the column's, 1.499 would become 1.50, and equal to that.
                return f"CAST('{value:f}' AS DECIMAL({whole + fraction}, {fraction}))"
            case datetime():
                return f"timestamp '{value.isoformat(sep=' ')}'"
        return f"date '{value.isoformat()}'"

    def has(self, path: str, kind: pa.DataType, value: Any) -> str:
        """Returns the condition that a list column of values of `kind` has a value."""
        return f"array_has({path}, {self.value(kind, value)})"


def condition(where: Mapping[str, object] | None, schema: pa.Schema, spelling: Spelling | None = None) -> str | None:
    """Returns the SQL of a filter, all of whose entries must hold; None where there is none.

    An entry is `column: value` (equal), `column: [values]` (any of them), `column: None` (null), or
    `column: {operator: value, …}` with the operators eq, ne (of a list: none of them), gt, gte, lt, lte, in, and
    contains (of a list column). Columns are those of the source table that the library keeps: key and metadata. A date
    or time may be a text in ISO 8601, which is how JSON and command lines spell it. LanceDB's SQL, where no other
    `spelling` is given.

    Raises:
        TypeError: The filter is no mapping.
        ValueError: A column or operator that does not exist, or a value that is not of the column's type.
    """
    if where is None:
        return None
    if not isinstance(where, Mapping):
        raise TypeError(f"where must map columns to values, not be {type(where).__name__}")
    columns = _columns(schema)
    spelling = spelling or Spelling()
    parts = []
    for name, wanted in where.items():
        if name not in columns:
            known = ", ".join(map(repr, columns)) or "none"
            raise ValueError(f"where names the column {name!r}, which the library does not keep; it keeps {known}")
        struct, column = columns[name]
        parts.append(_Column(column.name, column.type, spelling.path(struct, column), spelling).entry(wanted))
    return " AND ".join(f"({part})" for part in parts) or None


def check_unicode(text: str, what: str) -> None:
    """Raises ValueError where a string cannot be UTF-8, which is all that Arrow, LanceDB and the models read.

    Args:
        text: The string.
        what: The beginning of the message: what it is.
    """
    if _SURROGATE.search(text):
        raise ValueError(f"{what} is not valid Unicode: {text!r}")


def _columns(schema: pa.Schema) -> dict[str, tuple[str, pa.Field[Any]]]:
    found: dict[str, tuple[str, pa.Field[Any]]] = {}
    # Where a column is both, key and metadata hold the same.
    for struct in ("metadata", "key"):
        if struct in schema.names:
            kind = schema.field(struct).type
            found |= {kind.field(at).name: (struct, kind.field(at)) for at in range(kind.num_fields)}
    return found


@dataclass(frozen=True, slots=True)
class _Column:
    """A column that a filter names, and the conditions on it."""

    name: str
    kind: pa.DataType
    path: str
    spelling: Spelling

    def entry(self, wanted: object) -> str:
        if isinstance(wanted, Mapping):
            if not wanted:
                raise ValueError(f"where has no operator for the column {self.name!r}")
            return " AND ".join(self._operation(operator, value) for operator, value in wanted.items())
        if isinstance(wanted, (list, tuple, set, frozenset)):
            return self._any_of(list(wanted))
        return self._operation("eq", wanted)

    def _operation(self, operator: object, value: object) -> str:
        if operator not in _OPERATORS:
            raise ValueError(
                f"where has the operator {operator!r} for {self.name!r}; there are {', '.join(_OPERATORS)}"
            )
        if operator == "in":
            if not isinstance(value, (list, tuple, set, frozenset)):
                raise ValueError(f"where needs a list after 'in' for the column {self.name!r}, not {value!r}")
            return self._any_of(list(value))
        if operator == "contains":
            if not pa.types.is_list(self.kind):
                raise ValueError(f"where uses 'contains' on the column {self.name!r} of type {self.kind}, not a list")
            of = self.kind.value_type
            return self.spelling.has(self.path, of, _checked(self.name, of, value))
        if operator == "ne" and isinstance(value, (list, tuple, set, frozenset)):
            return " AND ".join(self._compared("ne", one) for one in value) or "true"
        return self._compared(str(operator), value)

    def _compared(self, operator: str, value: object) -> str:
        if value is None:
            if operator not in ("eq", "ne"):
                raise ValueError(f"where compares the column {self.name!r} with null; only eq and ne can")
            return f"{self.path} IS NULL" if operator == "eq" else f"{self.path} IS NOT NULL"
        comparison = f"{self.path} {_COMPARISONS[operator]} {self._value(value)}"
        # In SQL a null is not unequal to anything either; people mean "all but these".
        return f"({comparison} OR {self.path} IS NULL)" if operator == "ne" else comparison

    def _any_of(self, values: list[object]) -> str:
        literals = [self._value(value) for value in values if value is not None]
        parts = [f"{self.path} IN ({', '.join(literals)})"] if literals else []
        if len(literals) < len(values):
            parts.append(f"{self.path} IS NULL")
        # Any of nothing is nothing.
        return f"({' OR '.join(parts)})" if parts else "false"

    def _value(self, value: object) -> str:
        return self.spelling.value(self.kind, _checked(self.name, self.kind, value))


def _checked(name: str, kind: pa.DataType, value: object) -> bool | str | float | Decimal | date:
    """A value as one of the column's type."""
    types = pa.types
    if types.is_boolean(kind) and isinstance(value, bool):
        return value
    if types.is_string(kind) and isinstance(value, str):
        if "\0" in value:
            raise ValueError(f"where has a null character in the value for {name!r}: {value!r}")
        check_unicode(value, f"where has a value for the column {name!r} that")
        return value
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        number = _number(name, kind, value)
        if number is not None:
            return number
    if isinstance(value, str):
        value = _moment(kind, value)
    if isinstance(kind, pa.TimestampType) and isinstance(value, datetime):
        return _timestamp(name, kind, value)
    if types.is_date(kind) and isinstance(value, date) and not isinstance(value, datetime):
        return value
    raise ValueError(f"where compares the column {name!r} of type {kind} with {value!r}, a {type(value).__name__}")


def _number(name: str, kind: pa.DataType, value: float | Decimal) -> float | Decimal | None:
    # isfinite looks at a float: of what is more than one can be, it makes an overflow or infinity.
    if not (value.is_finite() if isinstance(value, Decimal) else isinstance(value, int) or math.isfinite(value)):
        raise ValueError(f"where compares the column {name!r} with {value}, which is not a finite number")
    if pa.types.is_integer(kind):
        bits = kind.bit_width - (1 if pa.types.is_signed_integer(kind) else 0)
        low = -(2**bits) if pa.types.is_signed_integer(kind) else 0
        if not low <= value < 2**bits:
            raise ValueError(f"where compares the column {name!r} of type {kind} with {value!r}, which it cannot hold")
        if value != int(value):
            raise ValueError(f"where compares the column {name!r} of type {kind} with {value!r}, not a whole number")
        return int(value)
    if pa.types.is_floating(kind):
        if not -sys.float_info.max <= value <= sys.float_info.max:
            raise ValueError(f"where compares the column {name!r} of type {kind} with {value!r}, which it cannot hold")
        return float(value)
    if pa.types.is_decimal(kind):
        exact = value if isinstance(value, Decimal) else Decimal(str(value))
        whole, fraction = _digits(exact)
        # The two are compared in a type that holds both.
        if max(whole, kind.precision - kind.scale) + max(fraction, kind.scale) > _DECIMAL_DIGITS:
            raise ValueError(
                f"where compares the column {name!r} of type {kind} with {value!r}, which has too many digits"
            )
        return exact
    return None


def _digits(value: Decimal) -> tuple[int, int]:
    """The digits that a number has before the point, at least one, and after it."""
    exponent = value.as_tuple().exponent
    return max(value.adjusted() + 1, 1), max(-exponent, 0) if isinstance(exponent, int) else 0


def _moment(kind: pa.DataType, text: str) -> date | str:
    """What a text in ISO 8601 says, for a column of dates or times; else the text."""
    try:
        if pa.types.is_date(kind):
            return date.fromisoformat(text)
        return datetime.fromisoformat(text) if pa.types.is_timestamp(kind) else text
    except ValueError:
        return text


def _timestamp(name: str, kind: pa.TimestampType[Any, Any], value: datetime) -> datetime:
    if (kind.tz is None) != (value.tzinfo is None):
        raise ValueError(f"where compares the column {name!r} of type {kind} with {value!r}: only one has a time zone")
    try:
        return value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value
    except OverflowError:
        raise ValueError(f"where compares the column {name!r} with {value!r}, which UTC has no year for") from None
