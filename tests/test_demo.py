"""The demo's stock, its questions and the table made of them."""

import re
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
from deltalake import DeltaTable, write_deltalake

from adventures import demo


def words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def test_stock_is_large_and_names_each_item_once():
    rows = demo.rows()
    assert len(rows) >= 320
    for column in ("scenario", "item", "advice"):
        values = [getattr(row, column).casefold() for row in rows]
        assert [value for value, count in Counter(values).items() if count > 1] == []


def test_every_row_reads_as_one_sentence():
    for row in demo.rows():
        for value in (row.scenario, row.advice, row.item, row.category, row.region):
            assert value == " ".join(value.split()) != "", row
        assert row.item in row.advice, row
        assert row.item[0].isupper(), row
        assert 3 <= len(words(row.scenario)) <= 15, row
        assert 12 <= len(words(row.advice)) <= 50, row
        assert row.advice.endswith("."), row
        assert not row.scenario.endswith((".", "?", ",", " you")), row
        assert 1 <= row.price <= 1000, row
        assert row.text == f"For {row.scenario} you should use {row.advice}"


def test_no_item_is_named_in_another_row():
    rows = demo.rows()
    assert [
        (row.item, other.item) for row in rows for other in rows if row is not other and other.item in row.text
    ] == []


def test_shelves_and_regions_are_all_filled():
    rows = demo.rows()
    categories = Counter(row.category for row in rows)
    assert set(categories) == {
        "armour", "charm", "clothing", "food", "light", "potion", "scroll", "tool", "travel", "weapon",
    }  # fmt: skip
    assert min(categories.values()) >= 15
    regions = Counter(row.region for row in rows)
    assert len(regions) == 12
    assert min(regions.values()) >= 10


def test_questions_point_at_rows():
    stock = {row.scenario: row for row in demo.rows()}
    questions = demo.questions()
    assert len(questions) == 60
    assert len({question.item for question in questions}) == 60
    assert len({question.question for question in questions}) == 60
    for question in questions:
        assert stock[question.scenario].item == question.item
    assert {stock[question.scenario].category for question in questions} == {row.category for row in stock.values()}


def test_questions_are_not_copies_of_their_rows():
    for question in demo.questions():
        asked, stocked = words(question.question), words(question.scenario)
        assert question.item.casefold() not in question.question.casefold()
        runs = {tuple(stocked[i : i + 4]) for i in range(len(stocked) - 3)}
        copied = [run for i in range(len(asked) - 3) if (run := tuple(asked[i : i + 4])) in runs]
        assert copied == [], question.question


def test_demo_questions_and_off_topic_questions_are_not_among_the_held_out_ones():
    held_out = {question.question for question in demo.questions()}
    assert len(demo.ASK) == 3
    assert len(set(demo.off_topic())) == 20
    assert held_out.isdisjoint(demo.ASK)
    assert held_out.isdisjoint(demo.off_topic())


def test_table_holds_the_stock_with_its_types(tmp_path: Path):
    path = tmp_path / "shop"
    assert demo.write_table(path) == 0
    table = pl.read_delta(str(path))
    assert table.schema == {
        "scenario": pl.String, "advice": pl.String, "item": pl.String,
        "category": pl.String, "price": pl.Int64, "region": pl.String,
    }  # fmt: skip
    assert table.null_count().row(0) == (0,) * 6
    assert sorted(table["item"]) == sorted(row.item for row in demo.rows())


def test_writing_again_adds_no_version_unless_rows_differ(tmp_path: Path):
    path = tmp_path / "shop"
    assert demo.write_table(path) == 0
    assert demo.write_table(path) == 0
    DeltaTable(str(path)).delete("price > 100")
    assert demo.write_table(path) == 2
    assert pl.read_delta(str(path)).height == len(demo.rows())


def test_another_table_is_not_overwritten(tmp_path: Path):
    path = str(tmp_path / "ledger")
    write_deltalake(path, pl.DataFrame({"account": ["a"], "balance": [1]}).to_arrow())
    with pytest.raises(ValueError, match=r"ledger is a Delta table of other data, with the columns \['account'"):
        demo.write_table(path)
    assert pl.read_delta(path).to_dicts() == [{"account": "a", "balance": 1}]
