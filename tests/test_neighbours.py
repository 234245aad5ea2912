"""Passages with their neighbours: texts joined as they were, in any kind of search, at any version."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from hypothesis import given, settings
from hypothesis import strategies as st

from adventures.library import Library
from adventures.neighbours import expanded
from adventures.store import Store
from words import WordEmbedder

if TYPE_CHECKING:
    from collections.abc import Sequence

    import adventures as adv

CORPORA = Path(__file__).parents[1] / ".." / "shared" / "data" / "chunking-eval" / "corpora"
WORDS = [f"w{n}" for n in range(40)]


def squeezed(text: str) -> str:
    return "".join(text.split())


def synced(place: Path, texts: dict[str, str], *, overlap: int = 2, version: str = "d") -> Library:
    names = list(texts)
    rows = {"id": names, "text": list(texts.values()), "kind": [name[0] for name in names]}
    write_deltalake(place / version, pa.table(rows), mode="overwrite")
    library = Library.open(place / "l", embedder=WordEmbedder(dim=512))
    library.sync(place / version, id="id", text="{text}", max_tokens=8, overlap=overlap, keep=4)
    return library


@pytest.fixture
def book(tmp_path: Path) -> Library:
    """Two rows of 40 words each, in passages of 8 that share 2, and one of a single passage."""
    return synced(tmp_path, {"it's": " ".join(WORDS), "b": " ".join(reversed(WORDS)), "c": "w20 alone"})


def synced_passages(library: Library, name: str) -> dict[int, adv.Hit]:
    hits = library.search("w1", k=50, where={"id": name})
    return {hit.passages[0]: hit for hit in hits}


class Longest:
    """A reranker that likes long texts."""

    def scores(self, query: str, docs: Sequence[str]) -> Any:
        return np.array([len(doc) for doc in docs], np.float64)


class TestExpand:
    def test_a_hit_takes_its_neighbours_in(self, book: Library) -> None:
        plain = book.search("w20 w21 w22", k=1, where={"id": "it's"})[0]
        assert (plain.id, plain.passages) == ("it's#3", (3,))
        wide = book.search("w20 w21 w22", k=1, where={"id": "it's"}, expand=1)[0]
        assert wide.passages == (2, 3, 4)
        assert wide.text.split() == WORDS[12:32]
        assert (wide.id, wide.score, wide.similarity, wide.source) == (
            plain.id,
            plain.score,
            plain.similarity,
            plain.source,
        )
        assert wide.metadata == {"kind": "i"}

    def test_a_row_ends_where_it_ends(self, book: Library) -> None:
        first = book.search("w0 w1", k=1, where={"id": "it's"}, expand=1)[0]
        assert (first.passages, first.text.split()) == ((0, 1), WORDS[:14])
        whole = book.search("w0 w1", k=1, where={"id": "it's"}, expand=100)[0]
        assert whole.text.split() == WORDS
        assert whole.passages == tuple(range(len(whole.passages)))
        assert book.search("alone", k=1, expand=3)[0].text == "w20 alone"

    def test_none_is_as_before(self, book: Library) -> None:
        assert book.search("w20", k=5, expand=0) == book.search("w20", k=5)

    @pytest.mark.parametrize(
        "way", [{}, {"hybrid": True}, {"rerank": Longest()}, {"mmr": 0.5}], ids=["dense", "hybrid", "reranked", "mmr"]
    )
    def test_hits_of_a_row_that_meet_are_one(self, book: Library, way: dict[str, Any]) -> None:
        plain = book.search("w20 w21 w5", k=8, **way)
        wide = book.search("w20 w21 w5", k=8, expand=1, **way)
        assert len(wide) < len(plain)
        covered: list[tuple[str, int]] = []
        for hit in wide:
            name = hit.source.row["id"]
            assert list(hit.passages) == list(range(hit.passages[0], hit.passages[-1] + 1))
            covered += [(name, ordinal) for ordinal in hit.passages]
            # Between two hits of a row lies a passage at least.
            others = {
                at for other in wide if other is not hit and other.source.row["id"] == name for at in other.passages
            }
            assert not others & {hit.passages[0] - 1, hit.passages[-1] + 1}
        assert len(covered) == len(set(covered))
        found = [(hit.source.row["id"], hit.passages[0]) for hit in plain]
        assert set(found) <= set(covered)
        places = [found.index((hit.source.row["id"], int(hit.id.rpartition("#")[2]))) for hit in wide]
        assert places == sorted(places)
        for hit in wide:
            best = next(one for one in plain if one.id == hit.id)
            assert (hit.score, hit.similarity) == (best.score, best.similarity)

    def test_what_meets_late_is_in_the_place_of_the_best(self, book: Library) -> None:
        # The first and the third meet after the second came, and the last meets both.
        row = synced_passages(book, "it's")
        hits = [row[at] for at in (0, 6, 2, 4)]
        snapshot = book._current()
        assert snapshot
        (one,) = expanded(snapshot, hits, 1)
        assert (one.id, one.passages) == ("it's#0", tuple(range(7)))

    def test_an_old_version_has_its_own_neighbours(self, tmp_path: Path) -> None:
        synced(tmp_path, {"a": " ".join(WORDS)})
        library = synced(tmp_path, {"a": " ".join(WORDS[:20]).upper()})
        assert library.search("w10", k=1, expand=50)[0].text.split() == [word.upper() for word in WORDS[:20]]
        old = Library.open(tmp_path / "l", embedder=library.embedder, version=0)
        hit = old.search("w10", k=1, expand=50)[0]
        assert (hit.text.split(), hit.source.version) == (WORDS, 0)
        assert DeltaTable(tmp_path / "d").version() == 1

    def test_filters_hold_for_neighbours_too(self, book: Library) -> None:
        hits = book.search("w20", k=20, expand=2, where={"kind": "b"})
        assert {hit.source.row["id"] for hit in hits} == {"b"}

    @pytest.mark.parametrize(
        "name", ["a'); DROP TABLE passages; --", "#1", "a#b#0", 'x"y', "日本", "a\0b", "a\\'b", " "]
    )
    def test_rows_of_any_name(self, tmp_path: Path, name: str) -> None:
        library = synced(tmp_path, {name: " ".join(WORDS), "b": "other words"})
        assert library.search("w20", k=1, expand=100)[0].text.split() == WORDS

    @pytest.mark.parametrize("expand", [-1, 101, 10**9, True, 1.5, "1", None])
    def test_bad_numbers(self, book: Library, expand: Any) -> None:
        with pytest.raises(ValueError, match="expand must be a whole number from 0 to 100, not "):
            book.search("w1", expand=expand)

    @settings(max_examples=40, deadline=None)
    @given(st.integers(0, 4), st.integers(0, 3), st.lists(st.integers(0, 3), min_size=1, max_size=60))
    def test_texts_that_repeat_themselves(
        self, tmp_path_factory: pytest.TempPathFactory, overlap: int, expand: int, letters: list[int]
    ) -> None:
        """A hit's text is the words of its passages, each of them once."""
        text = " ".join("abcd"[letter] for letter in letters)
        library = synced(tmp_path_factory.mktemp("l"), {"r": text}, overlap=overlap)
        spans = library.embedder.split_spans([text], max_tokens=8, overlap=overlap)[0]
        hits = library.search(text[:15] + " a", k=3, expand=expand)
        assert hits
        for hit in hits:
            assert hit.text.split() == text[spans[hit.passages[0]][0] : spans[hit.passages[-1]][1]].split()


@dataclass
class Cutting(WordEmbedder):
    """Cuts texts as a real model does."""

    model: Any = None

    def count_tokens(self, texts: list[str], kind: str = "passage") -> list[int]:
        return self.model.count_tokens(texts)

    def split_spans(
        self, texts: list[str], *, max_tokens: int | None = None, overlap: int = 0
    ) -> list[list[tuple[int, int]]]:
        return self.model.split_spans(texts, max_tokens=max_tokens, overlap=overlap)


class TestJoin:
    @pytest.mark.parametrize(
        ("text", "overlap"),
        [
            ("na " * 500 + "batman", 16),
            ("ha.ha-" * 300, 8),
            ("龍は眠る。夜に龍は眠る。" * 60, 8),
            (("x" * 90 + " ") * 20, 0),
            ("ไม่มีช่องว่าง " * 60, 16),
            ("🐉🐉 e\u0301e\u0301 " * 200, 4),
            ("| a | b |\n" * 300, 16),
        ],
    )
    def test_texts_that_repeat_themselves_come_back_whole(
        self, tmp_path: Path, minilm: adv.Embedder, text: str, overlap: int
    ) -> None:
        library = self.cut(tmp_path, minilm, {"r": text}, 32, overlap)
        assert len(library) > 3
        hit = library.search("na", k=1, expand=100)[0]
        end = minilm.split_spans([text], max_tokens=32, overlap=overlap)[0][hit.passages[-1]][1]
        begin = minilm.split_spans([text], max_tokens=32, overlap=overlap)[0][hit.passages[0]][0]
        assert squeezed(hit.text) == squeezed(text[begin:end])

    @pytest.mark.skipif(not CORPORA.exists(), reason=f"{CORPORA} is not here")
    @pytest.mark.parametrize(("window", "overlap"), [(256, 32), (64, 16), (128, 0)])
    def test_real_texts_come_back_whole(self, tmp_path: Path, minilm: adv.Embedder, window: int, overlap: int) -> None:
        texts = {path.name: path.read_text(encoding="utf-8")[:25_000] for path in sorted(CORPORA.glob("*.md"))}
        library = self.cut(tmp_path, minilm, texts, window, overlap)
        for name, text in texts.items():
            found: dict[int, str] = {}
            for hit in library.search("the", k=10_000, where={"id": name}, expand=100):
                found |= {hit.passages[0]: hit.text}
            assert squeezed("".join(found[at] for at in sorted(found))) == squeezed(text), name

    def test_a_library_from_before_follows_on(self, tmp_path: Path) -> None:
        """Of passages that were written when nobody kept what they share, all is there, some of it twice."""
        cut: dict[str, Any] = {"id": "id", "text": "{text}", "max_tokens": 8, "overlap": 2}
        write_deltalake(tmp_path / "d", pa.table({"id": ["a", "b"], "text": [" ".join(WORDS), "one two"]}))
        embedder = WordEmbedder(dim=64)
        Library.open(tmp_path / "l", embedder=embedder).sync(tmp_path / "d", **cut)
        store = Store(str(tmp_path / "l"), "passages")
        table = store.open()
        assert table
        table.drop_columns(["overlap"])
        store.mark(table, since=0.0, keep=1)

        library = Library.open(tmp_path / "l", embedder=embedder)
        twice = library.search("w20", k=1, expand=100)[0].text.split()
        assert set(twice) == set(WORDS)
        assert len(twice) > len(WORDS)
        assert not library.sync(tmp_path / "d", **cut).changed
        write_deltalake(tmp_path / "d", pa.table({"id": ["c"], "text": [" ".join(WORDS).upper()]}), mode="append")
        embedder.embedded.clear()
        report = library.sync(tmp_path / "d", **cut)
        assert (report.added, report.unchanged) == (1, 2)
        assert all(text.isupper() for text in embedder.embedded)
        texts = {hit.source.row["id"]: hit.text.split() for hit in library.search("w20", k=20, expand=100)}
        assert texts == {"a": twice, "b": ["one", "two"], "c": [word.upper() for word in WORDS]}

    def cut(self, place: Path, model: adv.Embedder, texts: dict[str, str], window: int, overlap: int) -> Library:
        write_deltalake(place / "d", pa.table({"id": list(texts), "text": list(texts.values())}))
        library = Library.open(place / "l", embedder=Cutting(dim=32, max_tokens=256, keep=False, model=model))
        library.sync(place / "d", id="id", text="{text}", max_tokens=window, overlap=overlap)
        return library
