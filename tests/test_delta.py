"""Reading Delta tables: what other writers made, what is missing, and how rows become keys and texts."""

from __future__ import annotations

import datetime as dt
import decimal
import math
import re
import shutil
from pathlib import Path
from typing import Any

import deltalake
import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from adventures.columns import is_json
from adventures.delta import RowSource, open_table

SHARED = Path(__file__).parents[1] / ".." / "shared" / "data" / "delta-tables"

shared = pytest.mark.skipif(not SHARED.exists(), reason=f"{SHARED} is not here")


def rows(table: Any, **columns: Any) -> dict[str | None, str | None]:
    source = RowSource.of(open_table(table), **columns)
    found: dict[str | None, str | None] = {}
    for batch in source.batches():
        assert len(batch.ids) == len(batch.texts) == len(batch.key) == len(batch.values)
        for row_id, text in zip(batch.ids, batch.texts, strict=True):
            assert row_id not in found
            found[row_id] = text
    return found


def first(table: Any, **columns: Any) -> Any:
    return next(RowSource.of(open_table(table), **columns).batches())


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    path = tmp_path / "shop"
    write_deltalake(
        path,
        pa.table(
            {
                "id": pa.array([1, 2, 3], pa.int64()),
                "scenario": ["an icy cliff", "a dark cave", None],
                "advice": ["boots", "a lamp", "luck"],
                "price": [12.5, 3.0, None],
            }
        ),
    )
    return path


def test_a_table_at_home(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(shop.parent))
    assert open_table("~/shop").table_uri == open_table(shop).table_uri
    with pytest.raises(FileNotFoundError, match=r"no Delta table at .*/none"):
        open_table("~/none")


@shared
def test_deletion_vectors_are_applied() -> None:
    assert set(rows(SHARED / "table-with-dv-small", id="value", text="{value}")) == {str(n) for n in range(1, 9)}


@shared
def test_column_mapping_gives_logical_names() -> None:
    found = rows(SHARED / "table_with_column_mapping", id="Super Name", text="{Super Name} at {Company Very Short}")
    assert found["Timothy Lamb"] == "Timothy Lamb at BME"
    assert len(found) == 5


@shared
def test_change_data_files_are_not_rows() -> None:
    found = rows(SHARED / "cdf-table", id="id", text="{name} was born {birthday}")
    truth = DeltaTable(SHARED / "cdf-table").to_pyarrow_table().to_pylist()
    assert found == {str(row["id"]): f"{row['name']} was born {row['birthday']}" for row in truth}


@shared
@pytest.mark.parametrize("version", range(5))
def test_every_version_reads_as_deltalake_reads_it(version: int) -> None:
    path = SHARED / "simple_table"
    truth = {str(n) for n in DeltaTable(path, version=version).to_pyarrow_table().column("id").to_pylist()}
    assert set(rows(open_table(path, version=version), id="id", text="{id}")) == truth


def test_a_template_joins_columns(shop: Path) -> None:
    assert rows(shop, id="id", text="For {scenario} use {advice} {{{id}}}") == {
        "1": "For an icy cliff use boots {1}",
        "2": "For a dark cave use a lamp {2}",
        "3": None,
    }


def test_a_polars_expression_makes_the_text(shop: Path) -> None:
    text = pl.col("scenario").fill_null("anything").str.to_uppercase() + ": " + pl.col("advice")
    assert rows(shop, id="id", text=text)["3"] == "ANYTHING: luck"


def test_a_column_of_the_key_may_be_metadata_too(shop: Path) -> None:
    batch = first(shop, id="id", text="{advice}", metadata=["id", "price"])
    assert batch.metadata.to_pylist()[0]["id"] == batch.key.to_pylist()[0]["id"]


@pytest.mark.parametrize(
    ("column", "key", "where"),
    [
        (pa.array([0, 4_000_000], pa.date32()), "id", "row 'far'"),
        (pa.array([0, 2**60], pa.timestamp("us")), "when", "its row"),
    ],
)
def test_a_date_that_python_has_not_is_named(tmp_path: Path, column: pa.Array[Any], key: str, where: str) -> None:
    write_deltalake(tmp_path / "far", pa.table({"id": ["near", "far"], "text": ["a", "b"], "when": column}))
    with pytest.raises(ValueError, match=f"column 'when' has a date or time outside the years 1 to 9999 in {where}: "):
        rows(tmp_path / "far", id=key, text="{text}")


def test_metadata_defaults_to_all_other_columns(shop: Path) -> None:
    batch = first(shop, id="id", text="{scenario}")
    assert batch.metadata.type.names == ["advice", "price"]
    assert batch.metadata[0].as_py() == {"advice": "boots", "price": 12.5}
    assert first(shop, id="id", text="{scenario}", metadata=[]).metadata is None


def test_column_names_that_look_like_patterns(tmp_path: Path) -> None:
    columns = {"id": [1], "*": ["star"], "^i.*$": ["caret"], "a.b": ["dot"], "Ünï 日": ["wide"]}
    write_deltalake(tmp_path / "t", pa.table(columns))
    batch = first(tmp_path / "t", id="id", text="{*} {^i.*$} {a.b} {Ünï 日}", metadata=["^i.*$", "*"])
    assert (batch.ids, batch.texts) == (["1"], ["star caret dot wide"])
    assert batch.values == [(1, "caret", "star")]
    assert batch.metadata.to_pylist() == [{"^i.*$": "caret", "*": "star"}]


def test_a_predicate_leaves_rows_out(shop: Path) -> None:
    assert set(rows(shop, id="id", text="{advice}")) == {"1", "2", "3"}
    source = RowSource.of(open_table(shop), id="id", text="{advice}", where="price > 5")
    assert [batch.ids for batch in source.batches()] == [["1"]]


def test_many_small_files_come_as_few_batches(tmp_path: Path) -> None:
    for n in range(30):
        write_deltalake(tmp_path, pa.table({"id": [n], "text": [f"t{n}"]}), mode="append")
    batches = list(RowSource.of(open_table(tmp_path), id="id", text="{text}").batches())
    assert len(batches) == 1
    assert sorted(map(int, batches[0].ids)) == list(range(30))


def test_uri_and_opened_table(shop: Path) -> None:
    assert rows(shop.as_uri(), id="id", text="{advice}") == rows(DeltaTable(shop), id="id", text="{advice}")
    write_deltalake(shop, pa.table({"id": pa.array([4], pa.int64())}), mode="append", schema_mode="merge")
    old = DeltaTable(shop, version=0)
    assert open_table(old).version() == 0
    assert open_table(old, version=1).version() == 1
    assert old.version() == 0


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ("s", ["a", "ü#'\"`;\n", ""], ["a", "ü#'\"`;\n", ""]),
        ("i", pa.array([-1, 0, 2**62], pa.int64()), ["-1", "0", str(2**62)]),
        ("b", [True, False, None], ["true", "false", None]),
        ("f", [0.1, -0.0, 1e300], ["0.1", "-0.0", "1e+300"]),
        ("d", [dt.date(2024, 2, 29), None, dt.date(1, 1, 1)], ["2024-02-29", None, "0001-01-01"]),
        (
            "t",
            pa.array([dt.datetime(2024, 1, 2, 3, 4, 5, 6, dt.UTC)] * 3, pa.timestamp("us", "UTC")),
            ["2024-01-02T03:04:05.000006+00:00"] * 3,
        ),
        ("n", pa.array([decimal.Decimal("1.50")] * 3, pa.decimal128(10, 2)), ["1.50"] * 3),
        ("x", [b"\x00\xff", b"", b"a"], ["00ff", "", "61"]),
    ],
)
def test_any_scalar_is_a_key(tmp_path: Path, column: str, values: Any, expected: list[str | None]) -> None:
    write_deltalake(tmp_path, pa.table({column: values, "text": ["t"] * 3}))
    assert first(tmp_path, id=column, text="{text}").ids == expected


def test_composite_keys_do_not_collide(tmp_path: Path) -> None:
    write_deltalake(tmp_path, pa.table({"a": ["x", "x,y", 'x"', None], "b": ["y,z", "z", "", "z"], "t": ["."] * 4}))
    batch = first(tmp_path, id=["a", "b"], text="{t}")
    assert batch.ids == ['["x","y,z"]', '["x,y","z"]', '["x\\"",""]', None]
    assert batch.key[1].as_py() == {"a": "x,y", "b": "z"}


def test_metadata_keeps_its_types(tmp_path: Path) -> None:
    table = pa.table(
        {
            "id": [1],
            "text": ["t"],
            "flag": [True],
            "small": pa.array([7], pa.int8()),
            "real": pa.array([0.5], pa.float32()),
            "day": [dt.date(2024, 1, 1)],
            "at": pa.array([dt.datetime(2024, 1, 1, tzinfo=dt.UTC)], pa.timestamp("us", "UTC")),
            "cost": pa.array([decimal.Decimal("1.25")], pa.decimal128(8, 2)),
            "tags": [["a", "b"]],
            "raw": [b"\x00"],
            "nested": [{"x": 1, "y": {"z": [1, None]}, "n": math.nan}],
            "map": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int32())),
            "lists": [[[1], [2]]],
        }
    )
    write_deltalake(tmp_path, table)
    batch = first(tmp_path, id="id", text="{text}")
    kind = batch.metadata.type
    row = batch.metadata[0].as_py()
    for name in ["flag", "small", "real", "day", "at", "cost", "tags", "raw"]:
        assert row[name] == table.column(name)[0].as_py()
        assert not is_json(kind.field(name))
    assert kind.field("small").type == pa.int8()
    assert row["nested"] == '{"n": null, "x": 1, "y": {"z": [1, null]}}'
    assert row["map"] == '{"k": 1}'
    assert row["lists"] == "[[1], [2]]"
    assert is_json(kind.field("nested"))


def test_schema_evolution_and_rewrites(tmp_path: Path) -> None:
    path = tmp_path / "t"
    write_deltalake(path, pa.table({"id": list(range(10)), "text": [f"t{n}" for n in range(10)]}), partition_by=["id"])
    write_deltalake(path, pa.table({"id": [10], "text": ["t10"], "extra": ["e"]}), mode="append", schema_mode="merge")
    table = DeltaTable(path)
    table.update(predicate="id = 1", updates={"text": "'changed'"})
    table.delete("id = 2")
    table.merge(pa.table({"id": [3, 30], "text": ["m3", "m30"]}), "s.id = t.id", "s", "t").when_matched_update(
        {"text": "s.text"}
    ).when_not_matched_insert({"id": "s.id", "text": "s.text"}).execute()
    before = rows(path, id="id", text="{text}")
    assert before == {str(n): f"t{n}" for n in [0, 4, 5, 6, 7, 8, 9, 10]} | {"1": "changed", "3": "m3", "30": "m30"}
    table.optimize.compact()
    table.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    assert rows(path, id="id", text="{text}") == before
    write_deltalake(path, pa.table({"id": [1], "text": ["only"], "extra": ["e"]}), mode="overwrite")
    assert rows(path, id="id", text="{text}") == {"1": "only"}
    DeltaTable(path).restore(0, ignore_missing_files=True)


def test_an_empty_table_has_no_batches(tmp_path: Path) -> None:
    DeltaTable.create(tmp_path, pa.schema([("id", pa.int64()), ("text", pa.string())]))
    assert rows(tmp_path, id="id", text="{text}") == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"id": "ID"}, r"id names the column 'ID', which the table does not have; its columns are 'id', 'scenario'"),
        ({"id": []}, "id names no column"),
        ({"id": ["id", "id"]}, "id names a column twice"),
        ({"text": "{missing}"}, "text names the column 'missing'"),
        ({"text": "advice"}, r"names no column; write it as '\{column\}'"),
        ({"text": ""}, "names no column"),
        ({"text": "{advice"}, r"lone '\{' at 0"),
        ({"text": "{advice}}"}, r"lone '\}' at 8"),
        ({"text": "{id.__class__}"}, "text names the column 'id.__class__'"),
        ({"text": "{}"}, "text names the column ''"),
        ({"text": pl.col("missing")}, "cannot be computed from this table"),
        ({"text": pl.col("price")}, "one expression of strings, this one gives price: Float64"),
        ({"text": pl.col("advice", "scenario")}, "one expression of strings"),
        ({"metadata": ["missing"]}, "metadata names the column 'missing'"),
        ({"metadata": "advice"}, "metadata must be a list of columns"),
    ],
)
def test_columns_that_do_not_fit(shop: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RowSource.of(open_table(shop), **{"id": "id", "text": "{advice}", **arguments})


def test_text_that_is_no_text(shop: Path) -> None:
    with pytest.raises(TypeError, match="must be a template or a Polars expression, not int"):
        RowSource.of(open_table(shop), id="id", text=3)  # type: ignore[arg-type]


def test_an_expression_that_loses_rows(shop: Path) -> None:
    with pytest.raises(ValueError, match="one string per row"):
        rows(shop, id="id", text=pl.col("advice").head(2))


@pytest.mark.parametrize(
    "predicate",
    [
        "missing = 1",
        "id = =",
        "",
        "; DROP TABLE x",
        "id = 1; DROP TABLE x",
        "id = 1 AN price > 2",
        "id = 1 id = 2",
        "id = 1\0",
        "id = (SELECT max(id) FROM shop)",
        "id = 'one'",
    ],
)
def test_a_bad_predicate(shop: Path, predicate: str) -> None:
    with pytest.raises(ValueError, match=f"cannot read the Delta table .* where {re.escape(repr(predicate))}: "):
        list(RowSource.of(open_table(shop), id="id", text="{advice}", where=predicate).batches())


@pytest.mark.parametrize(
    "predicate", ["id = 1)", "id = 1) AN price > 2 OR (id = 2", ")", "advice = ':)' OR id = 1) AND ("]
)
def test_a_predicate_that_closes_what_it_did_not_open(shop: Path, predicate: str) -> None:
    with pytest.raises(ValueError, match=f"a bracket that closes nothing: {re.escape(repr(predicate))}"):
        RowSource.of(open_table(shop), id="id", text="{advice}", where=predicate)


@pytest.mark.parametrize(
    "predicate",
    [
        "id = 1 -- the first :)",
        "id = 1 OR id = 1",
        "(id = 1)",
        "id /* the key) */ = 1",
        "advice <> ':)' AND id = 1",
        "advice <> 'it''s :)' AND (id IN (1))",
    ],
)
def test_a_predicate_is_all_that_is_written(shop: Path, predicate: str) -> None:
    assert rows(shop, id="id", text="{advice}", where=predicate) == {"1": "boots"}


def test_nested_columns_are_neither_key_nor_text(tmp_path: Path) -> None:
    write_deltalake(tmp_path, pa.table({"id": [1], "tags": [["a"]]}))
    with pytest.raises(ValueError, match="id cannot be the column 'tags' of type list"):
        RowSource.of(open_table(tmp_path), id="tags", text="{id}")
    with pytest.raises(ValueError, match="text cannot hold the column 'tags'"):
        RowSource.of(open_table(tmp_path), id="id", text="{tags}")


def test_paths_that_are_no_table(tmp_path: Path, shop: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"no Delta table at {re.escape(str(tmp_path / 'no'))}"):
        open_table(tmp_path / "no")
    with pytest.raises(ValueError, match="is not a Delta table: it has no _delta_log"):
        open_table(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_table((tmp_path / "no").as_uri())
    with pytest.raises(ValueError, match="at version 9"):
        open_table(shop, version=9)
    for version in (-1, True, "1", 2**70):
        with pytest.raises(ValueError, match="version must be a number from 0 on"):
            open_table(shop, version=version)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="no Delta table at ftp://host/table"):
        open_table("ftp://host/table")


def test_a_broken_log_and_a_missing_file(shop: Path) -> None:
    broken = shop.parent / "broken"
    shutil.copytree(shop, broken)
    (broken / "_delta_log" / f"{0:020}.json").write_text("{not json")
    with pytest.raises(ValueError, match="cannot open the Delta table"):
        open_table(broken)
    for file in shop.glob("*.parquet"):
        file.unlink()
    with pytest.raises(ValueError, match="cannot read the Delta table"):
        rows(shop, id="id", text="{advice}")


def test_deltalake_reads_what_the_source_reads(shop: Path) -> None:
    query = deltalake.QueryBuilder().register("shop", DeltaTable(shop)).execute("select id, advice from shop")
    truth = pa.RecordBatchReader.from_stream(query).read_all().to_pylist()
    assert rows(shop, id="id", text="{advice}") == {str(row["id"]): row["advice"] for row in truth}


def test_a_version_that_is_not_there_yet(tmp_path: Path) -> None:
    write_deltalake(tmp_path / "d", pa.table({"id": [1]}))
    with pytest.raises(ValueError, match=r"at version 7: its newest version is 0$"):
        open_table(tmp_path / "d", version=7)


def test_a_map_with_two_values_for_one_key(tmp_path: Path) -> None:
    kind = pa.map_(pa.string(), pa.int32())
    maps = pa.array([[("a", 1)], [("b", 2), ("b", 3)]], kind)
    write_deltalake(tmp_path / "d", pa.table({"id": [1, 2], "text": ["x", "y"], "extra": maps}))
    source = RowSource.of(open_table(tmp_path / "d"), id="id", text="{text}")
    with pytest.raises(
        ValueError, match=r"column 'extra' has a map with two values for one key: \[\('b', 2\), \('b', 3\)\]"
    ):
        list(source.batches())


def test_bytes_within_are_hex(tmp_path: Path) -> None:
    deep = pa.array([{"raw": b"\x00\xff"}], pa.struct([("raw", pa.binary())]))
    write_deltalake(tmp_path / "d", pa.table({"id": [1], "text": ["x"], "deep": deep}))
    [rows] = RowSource.of(open_table(tmp_path / "d"), id="id", text="{text}").batches()
    assert rows.metadata is not None
    assert rows.metadata.field("deep").to_pylist() == ['{"raw": "00ff"}']
