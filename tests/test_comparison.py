"""Settings compared: what they may be, what is measured, how sure a difference is, and the picture."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import adventures as adv
from adventures.cli import app
from adventures.comparison import Outcome, compare, library_of, paired
from adventures.dataset import Dataset
from adventures.questions import read_questions
from adventures.settings import Setting, read_settings
from adventures.spans import SpanSet, covered, places
from words import WordEmbedder

if TYPE_CHECKING:
    from collections.abc import Sequence

SHARED = Path(__file__).parents[1] / ".." / "shared" / "data"
NFCORPUS = SHARED / "beir-nfcorpus" / "nfcorpus.zip"
CHUNKING = SHARED / "chunking-eval"


class Models:
    """Models without weights: each counts how often it is opened."""

    def __init__(self) -> None:
        self.opened: list[str | None] = []

    def embedder(self, name: str | None, /) -> Any:
        self.opened.append(name)
        return WordEmbedder(name=name or "words", dim=1024)

    def reranker(self, name: str, /) -> Any:
        self.opened.append(name)
        return Backwards()


class Backwards:
    def scores(self, query: str, docs: Sequence[str], /) -> Any:
        return np.arange(len(docs), dtype=np.float64)


def shop() -> Dataset:
    documents = {f"d{n}": f"item {n} w{n} w{n * 7 % 50} of the shelf " + "and more " * (n % 5 * 6) for n in range(50)}
    queries = {f"q{n}": f"w{n} w{n * 7 % 50}" for n in range(12)}
    return Dataset("shop", documents, queries, {f"q{n}": {f"d{n}": 1} for n in range(12)})


class TestSetting:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("dense", {}),
            ("hybrid", {"hybrid": True}),
            ("hybrid,rerank=a/b@c,k=5", {"hybrid": True, "rerank": "a/b@c", "k": 5}),
            ("dense, mmr=0.7 ,expand=2", {"mmr": 0.7, "expand": 2}),
            ("dense,mmr=1", {"mmr": 1}),
            ("dense,embedder=e5,max_tokens=128,overlap=16", {"embedder": "e5", "max_tokens": 128, "overlap": 16}),
        ],
    )
    def test_from_words(self, text: str, expected: dict[str, Any]) -> None:
        assert Setting.parse(text) == Setting(text, **expected)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "must begin with dense or hybrid, not ''"),
            ("rrf", "must begin with dense or hybrid, not 'rrf'"),
            ("dense,hybrid", "KEY=VALUE once for each key, not 'hybrid'"),
            ("dense,k=1,k=2", "KEY=VALUE once for each key, not 'k=2'"),
            ("dense,colour=red", "has no key 'colour'; there are hybrid, rerank, mmr"),
            ("dense,mmr=2", "needs from 0 to 1 for mmr, not 2"),
            ("dense,mmr=much", "needs int or float for mmr, not 'much'"),
            ("dense,k=2.5", "needs int for k, not 2.5"),
            ("dense,k=0", "needs 1 or more for k, not 0"),
            ("dense,hybrid=1", "KEY=VALUE once for each key, not 'hybrid=1'"),
            ("dense,expand=101", "expand must be a whole number from 0 to 100, not 101"),
            ("dense,rerank=x,mmr=1", "each choose an order"),
        ],
    )
    def test_what_is_none(self, text: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Setting.parse(text)

    def test_from_a_file(self, tmp_path: Path) -> None:
        path = tmp_path / "settings.toml"
        path.write_text('[[setting]]\n[[setting]]\nname = "small"\nhybrid = true\nmax_tokens = 64\noverlap = 0\n')
        assert read_settings(path) == [Setting("dense"), Setting("small", hybrid=True, max_tokens=64, overlap=0)]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", r"settings\.toml has no \[\[setting\]\]"),
            ("setting = 3", r"has no \[\[setting\]\]"),
            ("[[setting", "is not TOML"),
            ("[[setting]]\nname = 3", "the name of setting 1 must be a string, not 3"),
            ("[[setting]]\nhybrid = 1", r"'setting 1 of .*settings\.toml' needs bool for hybrid, not 1"),
            ('[[setting]]\nname = "a"\nk = true', "'a' needs int for k, not True"),
        ],
    )
    def test_a_bad_file(self, tmp_path: Path, text: str, message: str) -> None:
        path = tmp_path / "settings.toml"
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_settings(path)


class TestCompare:
    def test_each_library_is_made_once(self) -> None:
        models = Models()
        texts = ["dense", "hybrid", "dense,max_tokens=8", "hybrid,max_tokens=8", "dense,embedder=other"]
        outcomes = list(compare(shop(), [Setting.parse(text) for text in texts], models, k=10))
        assert models.opened == [None, None, "other"]
        assert [outcome.setting.name for outcome in outcomes] == texts
        assert outcomes[0].passages == outcomes[1].passages == 50 < outcomes[2].passages == outcomes[3].passages
        assert outcomes[2].megabytes > outcomes[0].megabytes > 0
        assert all(0 < outcome.p50 <= outcome.p99 for outcome in outcomes)

    def test_measures_are_those_of_the_search(self, tmp_path: Path) -> None:
        data = shop()
        progress: list[int] = []
        settings = [Setting.parse("dense"), Setting.parse("dense,rerank=r")]
        plain, turned = compare(data, settings, Models(), k=10, progress=progress.append)
        assert sum(progress) == 2 * len(data.queries)
        library = library_of(data.documents, tmp_path, WordEmbedder(dim=1024))
        ranks = []
        for query, text in data.queries.items():
            rows = [hit.source.row["id"] for hit in library.search(text, k=10)]
            ranks.append(rows.index(f"d{query[1:]}") + 1 if f"d{query[1:]}" in rows else math.inf)
        assert plain.measures["MRR"] == pytest.approx(np.mean([1 / rank for rank in ranks]))
        assert plain.measures["recall@5"] == pytest.approx(np.mean([rank <= 5 for rank in ranks]))
        assert plain.difference is None
        assert turned.difference is not None
        assert turned.difference.mean == pytest.approx(turned.measures["nDCG@10"] - plain.measures["nDCG@10"])
        assert turned.difference.low <= turned.difference.mean <= turned.difference.high < 0

    def test_a_library_that_is_there(self, tmp_path: Path) -> None:
        data, models = shop(), Models()
        library = library_of(data.documents, tmp_path, WordEmbedder(dim=1024))
        [outcome] = compare(data, [Setting("dense")], models, library=library)
        assert (models.opened, outcome.measures["recall@10"]) == ([], 1.0)
        with pytest.raises(ValueError, match="'x' needs a library of its own, but one was given"):
            list(compare(data, [Setting("x", max_tokens=9)], models, library=library))

    def test_a_question_may_be_called_as_a_row_is(self, tmp_path: Path) -> None:
        texts = {str(number): f"lamp{number} of brass" for number in range(1, 8)}
        library = library_of(texts, tmp_path, WordEmbedder(dim=1024))
        lines = [json.dumps({"user_input": text, "rows": [row]}) for row, text in texts.items()]
        (path := tmp_path / "questions.jsonl").write_text("\n".join(lines))
        [outcome] = compare(read_questions(path).dataset(), [Setting("dense")], Models(), library=library)
        assert outcome.measures["MRR"] == 1.0

    def test_a_query_that_is_a_document_is_left_out(self) -> None:
        data = Dataset("own", {"a": "red lamp", "b": "red boots"}, {"a": "red lamp"}, {"a": {"b": 1}})
        [outcome] = compare(data, [Setting("dense")], Models())
        assert outcome.measures["MRR"] == 1.0

    @pytest.mark.parametrize(
        ("settings", "message"),
        [([], "there is no setting"), ([Setting("a"), Setting("a", k=3)], "two settings have the name 'a'")],
    )
    def test_nothing_to_compare(self, settings: list[Setting], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            list(compare(shop(), settings, Models()))

    def test_no_question_with_an_answer(self) -> None:
        with pytest.raises(ValueError, match="x has no query with a relevant document"):
            list(compare(Dataset("x", {"a": "b"}, {"q": "b"}, {"q": {"a": 0}}), [Setting("dense")], Models()))

    @pytest.mark.skipif(not NFCORPUS.exists(), reason=f"{NFCORPUS} is not here")
    @pytest.mark.timeout(1800)
    def test_hybrid_is_better_than_dense_on_nfcorpus(self) -> None:
        class Fast(Models):
            def embedder(self, name: str | None, /) -> Any:
                return adv.Embedder("all-minilm-l6-v2", precision="auto")

        dense, hybrid = compare(Dataset.read(NFCORPUS), [Setting("dense"), Setting("hybrid", hybrid=True)], Fast())
        assert (dense.queries, dense.passages) == (323, 7171)
        assert hybrid.difference is not None
        assert hybrid.difference.mean >= 0.01
        assert hybrid.difference.low > 0


class TestPaired:
    def test_as_another_program_has_it(self) -> None:
        chance = np.random.default_rng(1)
        first, second = chance.random(300), chance.random(300)
        difference = paired(second, first)
        sample = (second - first,)
        theirs = stats.bootstrap(sample, np.mean, n_resamples=10_000, method="percentile", rng=2).confidence_interval
        assert (difference.low, difference.high) == pytest.approx((theirs.low, theirs.high), abs=2e-3)
        assert difference.mean == pytest.approx(float((second - first).mean()))

    def test_the_same_is_no_difference(self) -> None:
        values = np.random.default_rng(0).random(50)
        assert paired(values, values) == paired(values + 1, values + 1)
        assert paired(values, values).low == paired(values, values).high == 0


def write_spans(root: Path, documents: dict[str, str], questions: list[tuple[str, str, str]]) -> Path:
    (root / "corpora").mkdir(parents=True)
    for name, text in documents.items():
        (root / "corpora" / f"{name}.md").write_text(text, encoding="utf-8")
    with (root / "questions_df.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "references", "corpus_id"])
        for question, found, name in questions:
            start = documents[name].index(found)
            reference = {"content": found, "start_index": start, "end_index": start + len(found)}
            writer.writerow([question, json.dumps([reference]), name])
    return root


class TestSpans:
    def test_shares(self) -> None:
        wanted = [("a", 10, 20), ("b", 0, 10)]
        assert covered(wanted, [("a", 0, 15), ("b", 100, 105)], budget=100) == {
            "recall": 0.25,
            "precision": 0.25,
            "IoU": 5 / 35,
        }
        assert covered(wanted, [("a", 0, 40)], budget=12)["recall"] == pytest.approx(2 / 20)
        twice = covered(wanted, [("a", 10, 20), ("a", 10, 20)], budget=100)
        assert twice == {"recall": 0.5, "precision": 0.5, "IoU": 10 / 30}
        assert covered(wanted, [], budget=5) == {"recall": 0.0, "precision": 0.0, "IoU": 0.0}

    def test_places(self) -> None:
        assert places(["one two", "two three", "four"], " one two three\n\n four ") == [(1, 8), (5, 14), (17, 21)]
        assert places(["ab ab", "ab ab"], "ab ab ab ab") == [(0, 5), (6, 11)]
        with pytest.raises(ValueError, match="'three' is not in the text where it should be"):
            places(["three", "one"], "one two three")
        with pytest.raises(ValueError, match="'four' is not in the text where it should be"):
            places(["one", "four"], "one two three")

    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.sampled_from("ab"), min_size=1, max_size=60), st.integers(2, 9), st.integers(0, 4))
    def test_places_in_texts_that_repeat_themselves(self, words: list[str], window: int, overlap: int) -> None:
        text = " ".join(words)
        pieces = WordEmbedder().split([text], max_tokens=window, overlap=min(overlap, window - 1))[0]
        found = places(pieces, text)
        assert [text[start:end] for start, end in found] == pieces
        starts = [start for start, _ in found]
        assert starts == sorted(set(starts))
        assert (found[0][0], found[-1][1]) == (0, len(text))

    def test_small_passages_leave_room_for_more(self, tmp_path: Path) -> None:
        tale = " ".join(f"knight{n} rides to mill{n} ." for n in range(200))
        questions = [(f"knight{n}", f"knight{n} rides to mill{n}", "tale") for n in range(5, 195, 10)]
        data = SpanSet.read(write_spans(tmp_path / "set", {"tale": tale, "other": "a lamp"}, questions))
        settings = [Setting.parse("dense,max_tokens=64"), Setting.parse("dense,max_tokens=10")]
        large, small = compare(data, settings, Models(), budget=400)
        assert list(small.measures) == ["recall@400", "precision@400", "IoU@400"]
        assert small.measures["IoU@400"] >= large.measures["IoU@400"]
        assert large.measures["recall@400"] > 0.5
        [wide] = compare(data, [Setting.parse("dense,max_tokens=10,expand=1,k=1")], Models(), budget=400)
        assert wide.measures["precision@400"] < 1
        assert wide.measures["recall@400"] > 0.8

    def test_on_the_command_line(self, tmp_path: Path) -> None:
        documents = {"tools": "A rope is for climbing. " * 40 + "A lamp gives light in caves. " * 40}
        root = write_spans(tmp_path / "set", documents, [("What gives light?", "A lamp gives light", "tools")])
        result = CliRunner().invoke(app, ["eval", "compare", str(root), "dense,max_tokens=64,k=2", "--json"])
        assert result.exit_code == 0, result.output
        outcome = json.loads(result.stdout)
        assert list(outcome["measures"]) == ["recall@4000", "precision@4000", "IoU@4000"]
        assert outcome["passages"] > 4

    @pytest.mark.parametrize(
        ("reference", "message"),
        [
            (
                {"content": "lamp", "start_index": 0, "end_index": 4},
                "question 1: .*characters 0 to 4 of a are not 'lamp'",
            ),
            ({"content": ""}, "question 1: not a question with references"),
        ],
    )
    def test_a_reference_that_is_not_there(self, tmp_path: Path, reference: dict[str, Any], message: str) -> None:
        root = write_spans(tmp_path / "set", {"a": "a lamp"}, [("?", "lamp", "a")])
        rows = [["question", "references", "corpus_id"], ["?", json.dumps([reference]), "a"]]
        with (root / "questions_df.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
        with pytest.raises(ValueError, match=message):
            SpanSet.read(root)

    def test_no_documents(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"no documents at .*corpora"):
            SpanSet.read(tmp_path)

    @pytest.mark.skipif(not CHUNKING.exists(), reason=f"{CHUNKING} is not here")
    def test_the_real_set(self, minilm: adv.Embedder) -> None:
        data = SpanSet.read(CHUNKING)
        assert (len(data.documents), len(data.queries), sum(map(len, data.spans.values()))) == (5, 472, 790)
        for name, text in data.documents.items():
            pieces = minilm.split([text], max_tokens=128, overlap=16)[0]
            found = places(pieces, text)
            assert all(text[start:end] == piece for piece, (start, end) in zip(pieces, found, strict=True)), name
            assert not text[found[-1][1] :].strip()


@pytest.fixture
def outcomes() -> list[Outcome]:
    settings = [Setting("dense"), Setting("hybrid <b>&", hybrid=True)]
    return list(compare(shop(), settings, Models()))


class TestPlot:
    table = (("setting", "nDCG@10"), ("dense", "0.5"), ("hybrid <b>&", "0.6"))

    def test_a_picture(self, outcomes: list[Outcome], tmp_path: Path) -> None:
        from adventures import plot

        plot.save(outcomes, tmp_path / "x.png", title="shop", table=self.table)
        assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
        drawn = plot.figure(outcomes)
        assert [axes.get_xlabel() for axes in drawn.axes] == ["milliseconds a search (median)", "megabytes on the disk"]
        spots = [tuple(each.get_offsets()[0]) for each in drawn.axes[0].collections if len(each.get_offsets())]
        assert (outcomes[0].p50, outcomes[0].measures["nDCG@10"]) == pytest.approx(spots[0])

    def test_a_page_needs_nothing_else(self, outcomes: list[Outcome], tmp_path: Path) -> None:
        from adventures import plot

        plot.save(outcomes, tmp_path / "x.html", title="a <shop>", table=self.table)
        page = (tmp_path / "x.html").read_text(encoding="utf-8")
        assert "<td>hybrid &lt;b&gt;&amp;</td>" in page
        assert "<h1>a &lt;shop&gt;</h1>" in page
        assert page.count("<svg") == 1
        assert "<script" not in page
        assert "src=" not in page

    @pytest.mark.parametrize(
        ("name", "error", "message"),
        [
            ("x.jpg", ValueError, r"ends in \.png or \.html, not to .*x\.jpg"),
            ("none/x.png", FileNotFoundError, "no folder .*none to write the plot to"),
        ],
    )
    def test_where_it_cannot_be(self, tmp_path: Path, name: str, error: type[Exception], message: str) -> None:
        from adventures import plot

        with pytest.raises(error, match=message):
            plot.check(tmp_path / name)

    def test_without_matplotlib(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from adventures import plot

        monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'adventures\[plot\]'"):
            plot.check(tmp_path / "x.png")
