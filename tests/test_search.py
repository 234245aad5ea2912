"""Search in a library: order, filters built from values, full-text queries that look like syntax."""

from __future__ import annotations

import datetime as dt
import decimal
import math
from typing import TYPE_CHECKING, Any

import lance
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from deltalake import write_deltalake
from hypothesis import given, settings
from hypothesis import strategies as st

from adventures import demo
from adventures.filters import condition
from adventures.library import Library
from adventures.search import fused
from words import WordEmbedder

if TYPE_CHECKING:
    from pathlib import Path

    import adventures as adv

NAMES = [
    "red",
    "Red",
    "it's",
    "'; DROP TABLE passages; --",
    "' OR '1'='1",
    '"',
    "\\",
    "%",
    "_",
    "ключ",
    "剣",
    "",
    "null",
    "`",
]


def rows() -> list[dict[str, Any]]:
    return [
        {
            "id": n,
            "text": f"item {n} of the shelf",
            "name": NAMES[n % len(NAMES)] if n % 9 else None,
            "count": n * 7 % 40 - 10 if n % 8 else None,
            "price": n / 4 if n % 7 else None,
            "day": dt.date(2024, 1, 1 + n % 28),
            "at": dt.datetime(2024, 1, 1 + n % 28, n % 24, tzinfo=dt.UTC),
            "cost": decimal.Decimal(n).scaleb(-2),
            "flag": bool(n % 2),
            "tags": [NAMES[n % 5], "all"],
            "odd `name` 'x'": n,
        }
        for n in range(60)
    ]


def goods() -> pa.Table:
    frame = pa.Table.from_pylist(rows()).cast(
        pa.schema([
            ("id", pa.int64()), ("text", pa.string()), ("name", pa.string()), ("count", pa.int32()),
            ("price", pa.float64()), ("day", pa.date32()), ("at", pa.timestamp("us", "UTC")),
            ("cost", pa.decimal128(10, 2)), ("flag", pa.bool_()), ("tags", pa.list_(pa.string())),
            ("odd `name` 'x'", pa.int64()),
        ])
    )  # fmt: skip
    # Column mapping is what lets Delta have such names; LanceDB's side is what is tested here.
    return frame.rename_columns([name if name.isidentifier() else "odd" for name in frame.column_names])


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Library:
    path = tmp_path_factory.mktemp("shelf")
    write_deltalake(path / "d", goods())
    library = Library.open(path / "l", embedder=WordEmbedder(dim=4096))
    library.sync(path / "d", id="id", text="{text}")
    return library


def found(library: Library, where: Any) -> set[int]:
    return {hit.source.row["id"] for hit in library.search("item of the shelf", k=1000, where=where)}


COMPARE = {
    "eq": lambda a, b: a == b,
    "gt": lambda a, b: a is not None and a > b,
    "gte": lambda a, b: a is not None and a >= b,
    "lt": lambda a, b: a is not None and a < b,
    "lte": lambda a, b: a is not None and a <= b,
    "ne": lambda a, b: a != b,
}
VALUES = {
    "name": st.sampled_from(NAMES) | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8),
    "count": st.integers(-20, 40),
    "price": st.floats(-1, 20) | st.integers(-1, 20),
    "day": st.dates(dt.date(2023, 12, 25), dt.date(2024, 2, 5)),
    "at": st.datetimes(dt.datetime(2023, 12, 25), dt.datetime(2024, 2, 5), timezones=st.just(dt.UTC)),
    "cost": st.decimals(-1, 10**12, places=2) | st.decimals(0, 1, places=4) | st.integers(-1, 1),
}


class TestFilters:
    @settings(max_examples=300, deadline=None)
    @given(st.data())
    def test_any_value_against_plain_python(self, shelf: Library, data: st.DataObject) -> None:
        column = data.draw(st.sampled_from(sorted(VALUES)))
        operator = data.draw(st.sampled_from(sorted(COMPARE)))
        value = data.draw(VALUES[column])
        expected = {row["id"] for row in rows() if COMPARE[operator](row[column], value)}
        assert found(shelf, {column: {operator: value}}) == expected

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.sampled_from([*NAMES, None]), max_size=4), st.lists(st.integers(-20, 40), max_size=4))
    def test_lists_are_any_of(self, shelf: Library, names: list[str | None], counts: list[int]) -> None:
        expected = {row["id"] for row in rows() if row["name"] in names and row["count"] in counts}
        assert found(shelf, {"name": names, "count": {"in": counts}}) == expected

    @pytest.mark.parametrize(
        ("where", "keep"),
        [
            (None, lambda row: True),
            ({}, lambda row: True),
            ({"name": None}, lambda row: row["name"] is None),
            ({"name": {"ne": None}}, lambda row: row["name"] is not None),
            ({"name": {"ne": "red"}}, lambda row: row["name"] != "red"),
            ({"name": {"ne": ["red", "it's"]}}, lambda row: row["name"] not in ("red", "it's")),
            ({"name": {"ne": ["red", None]}}, lambda row: row["name"] not in ("red", None)),
            ({"count": {"ne": []}}, lambda row: True),
            ({"flag": True}, lambda row: row["flag"]),
            ({"flag": [False]}, lambda row: not row["flag"]),
            ({"price": {"gte": 2, "lt": 5}}, lambda row: row["price"] is not None and 2 <= row["price"] < 5),
            ({"tags": {"contains": "it's"}}, lambda row: "it's" in row["tags"]),
            ({"id": 7}, lambda row: row["id"] == 7),
            ({"id": {"in": []}}, lambda row: False),
            ({"id": 7.0}, lambda row: row["id"] == 7),
            ({"cost": [decimal.Decimal("0.0701"), decimal.Decimal("0.07"), 10**9]}, lambda row: row["id"] == 7),
            ({"day": "2024-01-05"}, lambda row: row["day"] == dt.date(2024, 1, 5)),
            ({"day": ["2024-01-05", dt.date(2024, 1, 6)]}, lambda row: row["day"].day in (5, 6)),
            ({"at": {"lt": "2024-01-05T01:00+01:00"}}, lambda row: row["at"].day < 5),
            ({"price": np.float64(2.5).item()}, lambda row: row["price"] == 2.5),
        ],
    )
    def test_forms(self, shelf: Library, where: Any, keep: Any) -> None:
        assert found(shelf, where) == {row["id"] for row in rows() if keep(row)}

    @pytest.mark.parametrize(
        ("where", "message"),
        [
            ({"nmae": "x"}, "where names the column 'nmae', which the library does not keep; it keeps 'name'"),
            ({"vector": 1}, "names the column 'vector'"),
            ({"text": "x"}, "names the column 'text'"),
            ({"name = '' OR 1=1 --": "x"}, "names the column"),
            ({"metadata.name": "x"}, "names the column"),
            ({1: "x"}, "names the column 1"),
            ({"name": 1}, "compares the column 'name' of type string with 1, a int"),
            ({"name": b"x"}, "of type string with b'x', a bytes"),
            ({"name": "a\0b"}, r"null character in the value for 'name': 'a\\x00b'"),
            ({"name": "a\ud800"}, r"a value for the column 'name' that is not valid Unicode: 'a\\ud800'"),
            ({"name": ["red", "\udcff"]}, r"the column 'name' that is not valid Unicode: '\\udcff'"),
            ({"tags": {"contains": "\ud800"}}, "the column 'tags' that is not valid Unicode"),
            ({"count": "1"}, "of type int32 with '1', a str"),
            ({"count": True}, "of type int32 with True, a bool"),
            ({"count": 1.5}, "not a whole number"),
            ({"count": 2**40}, "which it cannot hold"),
            ({"count": math.nan}, "not a finite number"),
            ({"price": math.inf}, "not a finite number"),
            ({"price": 10**400}, "of type double with 10+, which it cannot hold"),
            ({"count": 10**400}, "of type int32 with 10+, which it cannot hold"),
            ({"cost": 10**400}, "of type decimal.* with 10+, which has too many digits"),
            ({"cost": decimal.Decimal("1e-37")}, "too many digits"),
            ({"cost": decimal.Decimal("-1e999999")}, "too many digits"),
            ({"at": dt.datetime.min.replace(tzinfo=dt.timezone(dt.timedelta(hours=1)))}, "UTC has no year for"),
            ({"flag": 1}, "of type bool with 1"),
            ({"day": dt.datetime(2024, 1, 1)}, "of type date32"),
            ({"at": dt.datetime(2024, 1, 1)}, "only one has a time zone"),
            ({"at": "2024-01-01"}, "of type timestamp.*only one has a time zone"),
            ({"at": "yesterday"}, "of type timestamp.* with 'yesterday', a str"),
            ({"day": "2024-01-01T00:00"}, "of type date32.* with '2024-01-01T00:00', a str"),
            ({"name": {}}, "has no operator"),
            ({"name": {"like": "x"}}, "has the operator 'like' for 'name'"),
            ({"name": {"gt": None}}, "only eq and ne can"),
            ({"name": {"in": "red"}}, "needs a list after 'in'"),
            ({"name": {"contains": "x"}}, "uses 'contains' on the column 'name' of type string"),
            ({"tags": "all"}, "of type list"),
            ({"name": [["red"]]}, "of type string with"),
        ],
    )
    def test_what_does_not_fit(self, shelf: Library, where: Any, message: str) -> None:
        for hybrid in (False, True):
            with pytest.raises(ValueError, match=message):
                shelf.search("item", where=where, hybrid=hybrid)

    def test_what_is_no_mapping(self, shelf: Library) -> None:
        with pytest.raises(TypeError, match="where must map columns to values, not be str"):
            shelf.search("item", where="name = 'red'")  # type: ignore[arg-type]

    def test_column_names_are_quoted(self) -> None:
        schema = pa.schema([("metadata", pa.struct([("odd `name` 'x'", pa.int64())]))])
        assert condition({"odd `name` 'x'": 1}, schema) == "(metadata.`odd ``name`` 'x'` = 1)"


class TestSearch:
    @pytest.mark.parametrize("hybrid", [False, True])
    def test_order_and_number(self, shelf: Library, hybrid: bool) -> None:
        every = shelf.search("item 7 of the shelf", k=1000, hybrid=hybrid)
        assert len(every) == 60 == len({hit.id for hit in every})
        assert [hit.score for hit in every] == sorted((hit.score for hit in every), reverse=True)
        assert every[0].source.row == {"id": 7}
        assert every[0].similarity == pytest.approx(1)
        for k in (1, 3, 10):
            fewer = shelf.search("item 7 of the shelf", k=k, hybrid=hybrid)
            assert fewer == shelf.search("item 7 of the shelf", k=k, hybrid=hybrid)
            assert (len(fewer), fewer[0].id) == (k, "7#0")
            assert hybrid or fewer == every[:k]

    def test_dense_is_exact(self, shelf: Library) -> None:
        words = WordEmbedder(dim=4096)
        query = words.embed(["item 13 of a shelf"])[0]
        vectors = words.embed([row["text"] for row in rows()])
        expected = sorted(
            zip((vectors @ query).tolist(), (f"{row['id']}#0" for row in rows()), strict=True), reverse=True
        )
        hits = shelf.search("item 13 of a shelf", k=60)
        assert [hit.score for hit in hits] == pytest.approx([score for score, _ in expected])
        assert all(hit.score == hit.similarity for hit in hits)

    def test_a_hit_says_where_it_is_from(self, shelf: Library) -> None:
        hit = shelf.search("item 8 of the shelf", k=1)[0]
        row = rows()[8]
        assert (hit.id, hit.text) == ("8#0", row["text"])
        assert hit.source.table.endswith("/d/")
        assert (hit.source.version, hit.source.row) == (0, {"id": 8})
        assert hit.metadata == {
            ("odd" if "odd" in name else name): row[name] for name in row if name not in ("id", "text")
        }

    def test_nested_metadata_comes_back_nested(self, tmp_path: Path) -> None:
        write_deltalake(tmp_path / "d", pa.table({"id": [1], "text": ["x"], "deep": [{"a": [1, {"b": None}["b"]]}]}))
        library = Library.open(tmp_path / "l", embedder=WordEmbedder())
        library.sync(tmp_path / "d", id="id", text="{text}")
        assert library.search("x")[0].metadata == {"deep": {"a": [1, None]}}

    @pytest.mark.parametrize(
        "query",
        [
            '"', "'", '"unclosed phrase', "AND", "OR NOT", "item AND (", "+item -shelf", "text:item", "item~2^5", "*",
            "?:*", "(((", "\\", "item\0shelf", "ключ 剣 🗝", "a" * 5000, "the of and", "--; DROP TABLE", "{}",
            "[1 TO 2]", "\n\t.", "item " * 3000,
        ],
    )  # fmt: skip
    @pytest.mark.filterwarnings("ignore:the query is longer")
    def test_queries_that_look_like_syntax(self, shelf: Library, query: str) -> None:
        assert len(shelf.search(query, k=5, hybrid=True)) == 5
        assert len(shelf.search(query, k=5)) == 5

    @pytest.mark.parametrize("query", ["", " \n"])
    def test_an_empty_query(self, shelf: Library, query: str) -> None:
        with pytest.raises(ValueError, match="the query is empty"):
            shelf.search(query)

    @pytest.mark.parametrize("k", [0, -1, True, 2.5, "3", None])
    def test_a_bad_k(self, shelf: Library, k: Any) -> None:
        with pytest.raises(ValueError, match="k must be a whole number from 1 on"):
            shelf.search("item", k=k)

    def test_a_query_that_is_no_text(self, shelf: Library) -> None:
        with pytest.raises(TypeError, match="the query must be a string, not list"):
            shelf.search(["item"])  # type: ignore[arg-type]

    def test_words_find_what_vectors_miss(self, tmp_path: Path) -> None:
        """A rare name counts in full text, whatever the vector says."""
        texts = [f"the merchant sells plain goods number {n}" for n in range(80)]
        texts[41] = "Zorblax " + " ".join(f"unrelated{n}" for n in range(40))
        write_deltalake(tmp_path / "d", pa.table({"id": range(80), "text": texts}))
        library = Library.open(tmp_path / "l", embedder=WordEmbedder())
        library.sync(tmp_path / "d", id="id", text="{text}")
        assert 41 not in {hit.source.row["id"] for hit in library.search("goods Zorblax", k=20)}
        assert 41 in {hit.source.row["id"] for hit in library.search("Zorblax", k=2, hybrid=True)}

    def test_an_index_from_the_size_where_it_pays(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("adventures.store.INDEX_FROM", 4000)
        monkeypatch.setattr("adventures.store.NAMES_FROM", 4000)
        texts = [" ".join(f"w{n * m % 997}" for m in range(1, 12)) for n in range(1, 6001)]
        write_deltalake(
            tmp_path / "d", pa.table({"id": range(6000), "text": texts, "half": [n % 2 for n in range(6000)]})
        )
        library = Library.open(tmp_path / "l", embedder=WordEmbedder(dim=64))
        library.sync(tmp_path / "d", id="id", text="{text}")
        kinds = {column: index.index_type for index in library.table.list_indices() for column in index.columns}
        assert kinds == {"text": "FTS", "vector": "IvfSq", "row_id": "BTree"}
        # Upkeep has left the partitions small.
        lance_table = lance.dataset(f"{library.path}/passages.lance", version=library.table.version)
        assert lance_table.stats.index_stats("vector_idx")["indices"][0]["num_partitions"] > 3
        vectors = library.embedder.embed(texts)
        right = 0
        for n in range(0, 6000, 100):
            query = texts[n] + " w1"
            tenth = np.sort(vectors @ library.embedder.embed([query])[0])[-10]
            # Some texts are equal: which of them comes tenth does not matter.
            right += sum(hit.score >= tenth - 1e-6 for hit in library.search(query, k=10))
            assert all(hit.metadata["half"] == 1 for hit in library.search(query, where={"half": 1}))
        assert right / 600 >= 0.95


@pytest.mark.parametrize(("hybrid", "recall"), [(False, 0.95), (True, 0.95)])
def test_the_demo_is_found(stock: Library, hybrid: bool, recall: float) -> None:
    """Recall on the held-out questions, with the real model, through LanceDB."""
    found = [
        question.scenario in {hit.source.row["scenario"] for hit in stock.search(question.question, 5, hybrid=hybrid)}
        for question in demo.questions()
    ]
    assert sum(found) / len(found) >= recall
    assert set(stock.search("a rope", k=1)[0].metadata) == {"item", "category", "price", "region"}


def test_long_texts_with_the_real_model(minilm: adv.Embedder, tmp_path: Path) -> None:
    chapters = [f"Chapter {n}. " + " ".join(row.text for row in demo.rows()[n::40]) for n in range(40)]
    write_deltalake(tmp_path / "d", pl.DataFrame({"n": range(40), "body": chapters}).to_arrow())
    library = Library.open(tmp_path / "l", embedder=minilm)
    report = library.sync(tmp_path / "d", id="n", text="{body}", max_tokens=128, overlap=16)
    assert report.truncated == 0
    assert report.passages > 80
    texts = library.table.search().select(["text"]).limit(None).to_arrow().column("text").to_pylist()
    assert max(minilm.count_tokens(texts)) <= 128
    chapter = {row.scenario: n % 40 for n, row in enumerate(demo.rows())}
    right = [
        chapter[question.scenario] in {hit.source.row["n"] for hit in library.search(question.question, k=5)}
        for question in demo.questions()
    ]
    assert sum(right) / len(right) >= 0.7


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Library:
    place = tmp_path_factory.mktemp("words")
    texts = {
        "ja": "赤い龍は夜に眠る。",
        "zh": "我们在北京大学学习中文",
        "th": "ชาวประมงจับปลา",
        "fr": "Un café noir",
        "hash": f"commit {'0123456789abcdef' * 4} of what they have",
        "hat": "It is a hat",
        "war": "A warrior runs",
    }
    write_deltalake(place / "d", pa.table({"id": list(texts), "text": list(texts.values())}))
    library = Library.open(place / "l", embedder=WordEmbedder())
    library.sync(place / "d", id="id", text="{text}")
    return library


class TestWords:
    @pytest.mark.parametrize(
        ("question", "expected"),
        [
            ("眠る龍", "ja"),
            ("北京", "zh"),
            ("ปลา", "th"),
            ("cafe", "fr"),
            ("0123456789abcdef" * 4, "hash"),
            ("a hat", "hat"),
            ("running the warriors'", "war"),
        ],
    )
    def test_words_of_any_language_are_found(self, words: Library, question: str, expected: str) -> None:
        snapshot = words._current()
        assert snapshot
        assert [row["row_id"] for row in snapshot.matching(question, None, 5)] == [expected]

    def test_words_of_questions_are_none(self, words: Library) -> None:
        snapshot = words._current()
        assert snapshot
        assert snapshot.matching("what is it that they have had", None, 5) == []


class TestEquals:
    """Passages that are equally near come in the order of their ids, however many they are."""

    @pytest.mark.parametrize("count", [3, 40, 500])
    def test_the_lower_ids_come(self, tmp_path: Path, count: int) -> None:
        names = [f"r{n * 7919 % count:04}" for n in range(count)]
        texts = ["red rope", *["red lamp"] * count, "blue boots"]
        write_deltalake(tmp_path / "d", pa.table({"id": ["z", *names, "a"], "text": texts}))
        library = Library.open(tmp_path / "library", embedder=WordEmbedder(dim=384, keep=False))
        library.sync(tmp_path / "d", id="id", text="{text}")
        for k in (1, 2, 3):
            hits = library.search("red lamp", k=k)
            assert [hit.id for hit in hits] == [f"r{n:04}#0" for n in range(k)]
            assert len({hit.score for hit in hits}) == 1
        assert [hit.id for hit in library.search("red rope", k=3)] == ["z#0", "r0000#0", "r0001#0"]


class TestFused:
    """A hybrid search's score, on legs written out."""

    def test_both_halves_count(self) -> None:
        near = [("a", 0.9), ("b", 0.5), ("c", 0.3)]
        scores = fused(near, [("b", 0.5, 4.0), ("d", 0.2, 2.0)])
        assert scores == pytest.approx({"a": 0.5, "b": 0.5 / 3 + 0.5, "c": 0.0, "d": 0.25})

    def test_cosines_in_a_narrow_band_count_as_much(self) -> None:
        words = [("b", 0.5, 4.0), ("d", 0.2, 2.0)]
        wide = fused([("a", 0.9), ("b", 0.5), ("c", 0.3)], words)
        narrow = fused([("a", 0.89), ("b", 0.85), ("c", 0.83)], [("b", 0.85, 40.0), ("d", 0.82, 20.0)])
        assert narrow == pytest.approx(wide)

    def test_a_match_that_the_other_leg_missed_keeps_its_similarity(self) -> None:
        # An approximate index may not find what is near.
        assert fused([("a", 0.9), ("c", 0.3)], [("d", 0.6, 2.0)])["d"] == pytest.approx(0.75)

    def test_legs_of_one_and_of_none(self) -> None:
        assert fused([], []) == {}
        assert fused([("a", 0.4)], []) == {"a": 0.5}
        assert fused([("a", 0.4)], [("a", 0.4, 3.0)]) == {"a": 1.0}
        assert fused([("a", 0.4)], [("a", 0.4, 0.0)]) == {"a": 0.5}
        assert fused([("a", 0.4), ("b", 0.4)], []) == {"a": 0.5, "b": 0.5}

    def test_a_deeper_look_changes_no_score(self) -> None:
        near, matching = [("a", 0.8), ("b", 0.6), ("c", 0.4)], [("c", 0.4, 3.0), ("b", 0.6, 1.5)]
        deeper = fused([*near, ("d", 0.3), ("e", -0.9)], matching, band=3)
        assert deeper == fused(near, matching) | {"d": 0.0, "e": 0.0}


class TestMmr:
    @pytest.fixture
    def library(self, tmp_path: Path) -> Library:
        texts = ["warm wool cloak"] * 5 + ["warm wool boots", "warm fur cloak", "cold iron bell"]
        write_deltalake(tmp_path / "d", pa.table({"id": [f"r{n}" for n in range(8)], "text": texts}))
        library = Library.open(tmp_path / "library", embedder=WordEmbedder())
        library.sync(tmp_path / "d", id="id", text="{text}")
        return library

    @pytest.mark.parametrize("hybrid", [False, True])
    def test_what_says_the_same_comes_once(self, library: Library, *, hybrid: bool) -> None:
        plain = library.search("warm cloak of wool", k=4, hybrid=hybrid)
        assert {hit.text for hit in plain} == {"warm wool cloak"}
        various = library.search("warm cloak of wool", k=3, hybrid=hybrid, mmr=0.3)
        assert various[0] == plain[0]
        assert len({hit.text for hit in various}) == 3
        assert library.search("warm cloak of wool", k=4, hybrid=hybrid, mmr=1.0) == plain
        assert len(library.search("warm cloak of wool", k=100, hybrid=hybrid, mmr=0.3)) == 8

    @pytest.mark.parametrize("hybrid", [False, True])
    @pytest.mark.parametrize("copies", ["equal", "near"])
    def test_copies_without_number_do_not_hide_the_rest(self, tmp_path: Path, copies: str, *, hybrid: bool) -> None:
        word = "wool " * 30
        texts = [f"{word}{n if copies == 'near' else ''}" for n in range(700)] + ["wool cloak", "fur boots of wool"]
        write_deltalake(tmp_path / "d", pa.table({"id": [f"r{n}" for n in range(702)], "text": texts}))
        library = Library.open(tmp_path / "library", embedder=WordEmbedder(dim=256, keep=False))
        library.sync(tmp_path / "d", id="id", text="{text}")
        found = library.search("wool", k=3, hybrid=hybrid, mmr=0.3)
        assert {"wool cloak", "fur boots of wool"} < {hit.text for hit in found}
        assert found[0].text.startswith(word)
        # Where nothing else is left, they come after all.
        last = [hit.text for hit in library.search("wool", k=6, hybrid=hybrid, mmr=0.3)[3:]]
        assert len(last) == 3
        assert all(text.startswith(word) for text in last)

    @pytest.mark.parametrize("mmr", [-0.1, 1.1, True, "0.5", float("nan")])
    def test_bad_numbers(self, library: Library, mmr: Any) -> None:
        with pytest.raises(ValueError, match="mmr must be from 0 to 1, not "):
            library.search("cloak", mmr=mmr)
