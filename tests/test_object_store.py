"""A Delta table and its library on an object store: what is synced, followed and found there, over S3's protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from deltalake import DeltaTable, write_deltalake

from adventures.library import Library
from test_follow import COLUMNS, FEED
from test_library import contents, table
from words import WordEmbedder

if TYPE_CHECKING:
    from pathlib import Path

    from object_store import Place


def library(bucket: Place) -> Library:
    return Library.open(f"{bucket.uri}/library", embedder=WordEmbedder(), storage_options=bucket.options)


def test_a_table_is_followed(bucket: Place, tmp_path: Path) -> None:
    delta, options = f"{bucket.uri}/delta", bucket.options
    write_deltalake(delta, table(200), configuration=FEED, storage_options=options)
    shop = library(bucket)
    first = shop.sync(delta, **COLUMNS, storage_options=options)
    assert (first.added, first.method) == (200, "full")
    reader = library(bucket)
    before = contents(reader)

    write_deltalake(delta, table(20, start=200), mode="append", storage_options=options)
    changed = DeltaTable(delta, storage_options=options)
    changed.update(predicate="id % 50 = 0", updates={"text": "'a rope of silk'"})
    changed.delete("id % 40 = 1")
    planned = shop.sync(delta, **COLUMNS, storage_options=options, dry_run=True)
    assert contents(reader) == before
    second = shop.sync(delta, **COLUMNS, storage_options=options)
    assert (second.added, second.updated, second.deleted, second.method) == (19, 4, 5, "feed")
    assert (planned.added, planned.updated, planned.deleted) == (19, 4, 5)

    write_deltalake(tmp_path / "delta", changed.to_pyarrow_table())
    own = Library.open(tmp_path / "library", embedder=WordEmbedder())
    own.sync(tmp_path / "delta", **COLUMNS)
    assert contents(reader) == contents(own)
    found = reader.search("a rope of silk", k=5, hybrid=True)
    assert {hit.text for hit in found} == {"a rope of silk"}
    assert found[0].source.table.startswith(bucket.uri)


def test_what_cannot_be_reached_is_named(bucket: Place) -> None:
    with pytest.raises(FileNotFoundError, match=f"no Delta table at {bucket.uri}/nothing"):
        library(bucket).sync(f"{bucket.uri}/nothing", **COLUMNS, storage_options=bucket.options)
