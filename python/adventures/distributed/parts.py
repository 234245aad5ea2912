"""A Delta table in parts, each read by itself: deletion vectors, partitions, column mapping, columns that came later.

delta-rs reads a table whole, and Daft neither deletion vectors nor the string views that delta-rs writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.fs as pa_fs
import pyarrow.parquet as pq
from deltalake.fs import DeltaStorageHandler

from adventures._adventures import AdventuresError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from deltalake import DeltaTable
    from numpy.typing import NDArray

_PHYSICAL = b"delta.columnMapping.physicalName"
_PARTITION = "partition."


@dataclass(frozen=True, slots=True)
class Stretch:
    """Rows of a file, from `start` up to `stop`, or to its end.

    Attributes:
        path: The file, as the table's log has it.
        start: The first row.
        stop: The row after the last one; None for the end.
        partition: The values of the partition columns.
        kept: Which rows of the file are not deleted, as bits; None for all. Rows beyond them are kept.
    """

    path: str
    start: int
    stop: int | None
    partition: dict[str, Any]
    kept: NDArray[np.uint8] | None


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of one version of a Delta table, which a `RowSource` reads as if they were all.

    Attributes:
        table_uri: The table.
        options: Its credentials and settings.
        schema: Its columns.
        stretches: Where the rows are.
    """

    table_uri: str
    options: dict[str, str] | None
    schema: pa.Schema
    stretches: tuple[Stretch, ...]

    def scan(self, columns: list[str], predicate: str | None) -> pa.RecordBatchReader:
        """Returns some columns of the rows that fulfil a predicate, in the order of the files."""
        wanted = list(self.schema.names) if predicate is not None else columns
        batches = chain.from_iterable(self._read(stretch, wanted) for stretch in self.stretches)
        if predicate is not None:
            batches = chain(_fulfilling(batches, predicate, columns))
        schema = pa.schema([pa.field(name, self.schema.field(name).type) for name in columns])
        return pa.RecordBatchReader.from_batches(schema, batches)

    def _read(self, stretch: Stretch, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        system = pa_fs.PyFileSystem(DeltaStorageHandler(self.table_uri, self.options))
        with system.open_input_file(stretch.path) as opened, pq.ParquetFile(opened) as file:
            physical = {name: _physical(self.schema.field(name)) for name in columns if name not in stretch.partition}
            there = [name for name in physical.values() if name in file.schema_arrow.names]
            kept = None if stretch.kept is None else np.unpackbits(stretch.kept).view(bool)
            at = 0
            for number in range(file.num_row_groups):
                count = file.metadata.row_group(number).num_rows
                first, last = max(stretch.start, at), at + count
                last = last if stretch.stop is None else min(stretch.stop, last)
                if first < last:
                    start = at
                    for batch in file.iter_batches(row_groups=[number], columns=there, use_threads=False):
                        rows = np.arange(start, start + batch.num_rows)
                        start += batch.num_rows
                        here = (rows >= first) & (rows < last)
                        if kept is not None:
                            here &= (rows >= len(kept)) | kept[np.minimum(rows, len(kept) - 1)]
                        if here.any():
                            # Converted first: Arrow takes no rows out of columns of views.
                            whole = self._as_the_table_has_it(batch, physical, stretch.partition, columns)
                            yield whole if here.all() else whole.filter(pa.array(here))
                at += count

    def _as_the_table_has_it(
        self,
        batch: pa.RecordBatch,
        physical: dict[str, str],
        partition: dict[str, Any],
        columns: Sequence[str],
    ) -> pa.RecordBatch:
        arrays = []
        count = batch.num_rows
        for name in columns:
            kind = self.schema.field(name).type
            if name in partition:
                arrays.append(pa.repeat(pa.scalar(partition[name], kind), count))
            elif physical[name] in batch.schema.names:
                # Times of old writers are finer than a table's; delta-rs cuts them, too.
                arrays.append(batch.column(physical[name]).cast(kind, safe=not pa.types.is_timestamp(kind)))
            else:
                arrays.append(pa.nulls(count, kind))
        return pa.RecordBatch.from_arrays(arrays, names=list(columns))


def parts_of(table: DeltaTable, rows: int) -> list[Part]:
    """Returns a table in parts of about `rows` rows.

    Raises:
        AdventuresError: Deletion vectors and files do not fit together.
        NotImplementedError: A column is nested, and columns are mapped.
    """
    schema = _schema(table)
    mapped = table.metadata().configuration.get("delta.columnMapping.mode", "none") != "none"
    for field in schema if mapped else []:
        if pa.types.is_nested(field.type):
            raise NotImplementedError(
                f"the column {field.name!r} is nested in a table with column mapping: sync it on one machine"
            )
    parts: list[Part] = []
    waiting: list[Stretch] = []
    count = 0
    for stretch, length in _stretches(table, schema, rows):
        if waiting and count + length > rows:
            parts.append(Part(table.table_uri, table._storage_options, schema, tuple(waiting)))
            waiting, count = [], 0
        waiting.append(stretch)
        count += length
    if waiting:
        parts.append(Part(table.table_uri, table._storage_options, schema, tuple(waiting)))
    return parts


def _stretches(table: DeltaTable, schema: pa.Schema, rows: int) -> Iterator[tuple[Stretch, int]]:
    """The files of a table, long ones in stretches, with how many rows each has, deleted ones included."""
    deleted = {row["filepath"]: row["selection_vector"] for row in _rows(table.deletion_vectors())}
    found = 0
    # The order of the log is that of its checkpoint and its commits; a sync reads the parts twice.
    for action in sorted(_rows(table.get_add_actions(flatten=True)), key=lambda action: str(action["path"])):
        path = unquote(action["path"])
        uris = {table.table_uri.rstrip("/") + "/" + name for name in (action["path"], path)}
        vector = next((deleted[uri] for uri in uris if uri in deleted), None)
        found += vector is not None
        kept = None if vector is None else _bits(vector)
        partition = {
            field.name: action[_PARTITION + field.name] for field in schema if _PARTITION + field.name in action
        }
        length = action.get("num_records")
        if length is None:
            # How long it is only its footer says; more cannot be known before it is read.
            yield Stretch(path, 0, None, partition, kept), rows
            continue
        for start in range(0, length, rows):
            stop = min(start + rows, length)
            yield Stretch(path, start, stop, partition, kept), stop - start
    if found != len(deleted):
        raise AdventuresError(
            f"the Delta table {table.table_uri} has deletion vectors of {len(deleted)} files, and {found} of them were"
            " found"
        )


def _bits(kept: Sequence[bool]) -> NDArray[np.uint8]:
    # Packed, they are as many as fill a byte; those that are not there are kept.
    whole = np.ones(-(-len(kept) // 8) * 8, bool)
    whole[: len(kept)] = kept
    return np.packbits(whole)


def _schema(table: DeltaTable) -> pa.Schema:
    arrow: Any = table.schema().to_arrow()
    return pa.schema(arrow)


def _rows(stream: Any) -> list[dict[str, Any]]:
    return pa.table(stream).to_pylist()


def _physical(field: pa.Field[Any]) -> str:
    name = (field.metadata or {}).get(_PHYSICAL)
    return field.name if name is None else name.decode()


def _fulfilling(batches: Iterator[pa.RecordBatch], predicate: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Some columns of the rows that fulfil a predicate, by the engine that delta-rs has within."""
    from datafusion import SessionConfig, SessionContext

    config = SessionConfig().set("datafusion.sql_parser.enable_ident_normalization", "false")
    quoted = ", ".join('"' + name.replace('"', '""') + '"' for name in columns)
    for batch in batches:
        context = SessionContext(config)
        context.register_record_batches("rows", [[batch]])
        try:
            found = context.sql(f"SELECT {quoted} FROM rows WHERE {predicate}").collect()  # noqa: S608 (as delta-rs)
        except Exception as error:
            raise ValueError(f"the predicate fails: {error}") from error
        for one in found:
            yield one.cast(pa.schema([pa.field(f.name, batch.schema.field(f.name).type) for f in one.schema]))
