"""Measures against trec_eval's own code, data sets good and bad, and the search over them."""

from __future__ import annotations

import json
import random
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import pytrec_eval

from adventures.dataset import Dataset
from adventures.evaluate import Measures, evaluate, mean, measure

if TYPE_CHECKING:
    from collections.abc import Sequence

    import adventures as adv

NFCORPUS = Path(__file__).parents[1] / ".." / "shared" / "data" / "beir-nfcorpus" / "nfcorpus.zip"


@dataclass
class Vectors:
    """An embedder that looks vectors up; those of a text that it does not know are zero."""

    table: dict[str, Sequence[float]]
    name: str = "table"

    def encode(self, texts: Sequence[str], kind: str) -> Any:
        width = len(next(iter(self.table.values())))
        rows = [self.table.get(text, [0.0] * width) for text in texts]
        return _Encoded(np.array(rows, dtype=np.float32), [])


@dataclass
class _Encoded:
    vectors: np.ndarray
    truncated: list[int]


def rank(scores: dict[str, float]) -> list[str]:
    """Returns document ids in trec_eval's order, by another way than `evaluate` takes."""
    # trec_eval keeps scores as C floats, so what differs in double precision only is a tie to it.
    return sorted(sorted(scores, reverse=True), key=lambda document: -float(np.float32(scores[document])))


class TestMeasures:
    @pytest.mark.parametrize("seed", range(20))
    def test_equal_to_trec_eval(self, seed: int) -> None:
        """Random runs with many ties, grades from -1 to 3, unjudged documents and queries without a relevant one."""
        chance = random.Random(seed)
        documents = [f"d{number}" for number in range(60)] + ["é", "漢", "Z", "a b", "😀"]
        qrels = {
            f"q{number}": {document: chance.choice([-1, 0, 0, 1, 2, 3]) for document in chance.sample(documents, 25)}
            for number in range(25)
        }
        qrels["nothing"] = dict.fromkeys(documents[:5], 0)
        run = {
            query: {
                # Steps of 1e-9 differ in double precision and are ties in single precision, which trec_eval uses.
                document: chance.choice([0.1, 0.25, 0.5, chance.random()]) + chance.choice([0, 1e-9])
                for document in chance.sample(documents, chance.randint(1, len(documents)))
            }
            for query in qrels
        }
        names = {"ndcg_cut.10", "map", "recip_rank", "recall.1,5,10,100"}
        expected = pytrec_eval.RelevanceEvaluator(qrels, names).evaluate(run)
        for query, judged in qrels.items():
            result = measure(rank(run[query]), judged)
            trec = expected[query]
            assert result.ndcg == pytest.approx(trec["ndcg_cut_10"], abs=1e-9)
            assert result.map == pytest.approx(trec["map"], abs=1e-9)
            assert result.mrr == pytest.approx(trec["recip_rank"], abs=1e-9)
            for k in (1, 5, 10, 100):
                assert result.recall[k] == pytest.approx(trec[f"recall_{k}"], abs=1e-9)

    def test_gain_is_linear(self) -> None:
        # 3/log2(2) + 0 + 1/log2(4) over 3/log2(2) + 2/log2(3) + 1/log2(4); 2^grade - 1 would give 0.75.
        assert measure(["a", "x", "c"], {"a": 3, "b": 2, "c": 1}).ndcg == pytest.approx(3.5 / 4.761859507)

    def test_mean_of_nothing_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="nothing to average"):
            mean([])


def write(folder: Path, **files: str) -> Path:
    """Writes a small data set, with some of its files replaced."""
    content = {
        "corpus": '{"_id": "d1", "title": "Rope", "text": "for cliffs"}\n{"_id": "d2", "title": "", "text": "a lamp"}',
        "queries": '{"_id": "q1", "text": "climbing"}\n{"_id": "q2", "text": "light"}\n{"_id": "q3", "text": "else"}\n',
        "qrels": "query-id\tcorpus-id\tscore\nq1\td1\t2\nq2\td2\t1\n",
        **files,
    }
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    (folder / "corpus.jsonl").write_text(content["corpus"], encoding="utf-8")
    (folder / "queries.jsonl").write_text(content["queries"], encoding="utf-8")
    (folder / "qrels" / "test.tsv").write_text(content["qrels"], encoding="utf-8")
    return folder


class TestDataset:
    @pytest.mark.parametrize("packing", ["folder", "zip", "zip with a folder", "zip with other folders"])
    def test_reads_every_packing(self, tmp_path: Path, packing: str) -> None:
        path = write(tmp_path / "shop")
        if packing != "folder":
            prefix = "" if packing == "zip" else "shop/"
            with zipfile.ZipFile(tmp_path / "shop.zip", "w", zipfile.ZIP_DEFLATED) as archive:
                for file in path.rglob("*"):
                    archive.write(file, prefix + file.relative_to(path).as_posix())
                if packing == "zip with other folders":
                    archive.writestr("__MACOSX/shop/corpus.jsonl", "not this")
                    archive.writestr("../../evil.txt", "e")
            before = sorted(tmp_path.rglob("*"))
            data = Dataset.read(tmp_path / "shop.zip")
            assert sorted(tmp_path.rglob("*")) == before
        else:
            data = Dataset.read(path)
        assert data == Dataset(
            name="shop",
            documents={"d1": "Rope for cliffs", "d2": "a lamp"},
            queries={"q1": "climbing", "q2": "light"},
            judgements={"q1": {"d1": 2}, "q2": {"d2": 1}},
        )

    def test_a_byte_order_mark_blank_lines_and_windows_ends(self, tmp_path: Path) -> None:
        path = write(
            tmp_path, qrels="\ufeffq1\td1\t1\r\n\r\nq2\td2\t1\r\n", corpus='\ufeff{"_id": "d1", "text": "x"}\r\n\n'
        )
        data = Dataset.read(path)
        assert data.judgements == {"q1": {"d1": 1}, "q2": {"d2": 1}}
        assert data.documents == {"d1": "x"}

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            ({"corpus": '{"_id": "d1", "text": "x"}\n{"_id": "d2"\n'}, r"corpus\.jsonl, line 2: not JSON"),
            ({"corpus": "[1]\n"}, r"corpus\.jsonl, line 1: not an object with the strings `_id` and `text`: \[1\]"),
            ({"corpus": '{"_id": 1, "text": "x"}\n'}, r"corpus\.jsonl, line 1: not an object with"),
            ({"corpus": '{"_id": "d1"}\n'}, r"corpus\.jsonl, line 1: not an object with"),
            ({"corpus": '{"_id": "d1", "text": "\\ud800"}\n'}, r"corpus\.jsonl, line 1: not valid Unicode: \{\"_id\""),
            ({"queries": '{"_id": "q\\udfff", "text": "x"}\n'}, r"queries\.jsonl, line 1: not valid Unicode"),
            ({"corpus": '{"_id": "d1", "text": "x"}\n' * 2}, r"corpus\.jsonl, line 2: the id 'd1' comes twice"),
            ({"corpus": "[" * 100_000}, r"corpus\.jsonl, line 1: not JSON"),
            ({"queries": '{"_id": "q1", "text": "x"}\n'}, r"test\.tsv judges query 'q2', which .*queries\.jsonl lacks"),
            ({"qrels": "query-id\tcorpus-id\tscore\nq1\td1\n"}, r"test\.tsv, line 2: 2 columns, not 3 with tabs"),
            (
                {"qrels": "query-id\tcorpus-id\tscore\nq1\td1\thigh\n"},
                r"line 2: the score must be a whole number, not 'high'",
            ),
            ({"qrels": "q1\td1\t1.5\nq2\td2\t1\n"}, r"line 1: the score must be a whole number, not '1\.5'"),
            ({"qrels": "q1\td1\t1\nq1\td1\t2\n"}, r"line 2: 'q1' and 'd1' are judged twice, differently"),
            ({"qrels": "query-id\tcorpus-id\tscore\n"}, r"test\.tsv has no judgements"),
        ],
    )
    def test_bad_lines_are_named(self, tmp_path: Path, files: dict[str, str], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Dataset.read(write(tmp_path, **files))

    def test_what_is_not_utf8(self, tmp_path: Path) -> None:
        path = write(tmp_path)
        (path / "corpus.jsonl").write_bytes(b'{"_id": "d1", "text": "x"}\n{"_id": "d2", "text": "\xff"}\n')
        with pytest.raises(ValueError, match=r"corpus\.jsonl, line 2: not UTF-8"):
            Dataset.read(path)

    def test_missing_files_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"no data set at .*nowhere"):
            Dataset.read(tmp_path / "nowhere")
        with pytest.raises(FileNotFoundError, match=r"no .*corpus\.jsonl: a BEIR data set has"):
            Dataset.read(tmp_path)
        path = write(tmp_path / "shop")
        with pytest.raises(FileNotFoundError, match=r"no .*train\.tsv: the splits are test"):
            Dataset.read(path, split="train")

    def test_a_broken_zip(self, tmp_path: Path) -> None:
        path = tmp_path / "x.zip"
        path.write_bytes(b"not a zip")
        with pytest.raises(ValueError, match=r"x\.zip is neither a folder nor a zip"):
            Dataset.read(path)
        folder = write(tmp_path / "shop")
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for file in folder.rglob("*.*"):
                archive.write(file, file.relative_to(folder).as_posix())
        data = bytearray(path.read_bytes())
        at = data.index(b"for cliffs")
        data[at : at + 3] = b"XXX"
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"x\.zip:corpus\.jsonl cannot be read: Bad CRC-32"):
            Dataset.read(path)

    @pytest.mark.parametrize(
        ("method", "header"), [(zipfile.ZIP_DEFLATED, 0), (zipfile.ZIP_BZIP2, 9), (zipfile.ZIP_LZMA, 9)]
    )
    def test_a_damaged_file_in_a_zip(self, tmp_path: Path, method: int, header: int) -> None:
        folder = write(tmp_path / "shop")
        path = tmp_path / "x.zip"
        with zipfile.ZipFile(path, "w", method) as archive:
            for file in folder.rglob("*.*"):
                archive.write(file, file.relative_to(folder).as_posix())
            entry = archive.getinfo("corpus.jsonl")
        data = bytearray(path.read_bytes())
        start = entry.header_offset + 30 + len("corpus.jsonl")
        data[start + header : start + entry.compress_size] = b"\xff" * (entry.compress_size - header)
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"x\.zip:corpus\.jsonl cannot be read: "):
            Dataset.read(path)

    def test_the_demo(self) -> None:
        data = Dataset.demo()
        assert len(data.documents) >= 300
        assert len(data.queries) == 60
        assert all(set(grades) <= set(data.documents) for grades in data.judgements.values())


class TestEvaluate:
    def data(self, **changes: Any) -> Dataset:
        given: dict[str, Any] = {
            "name": "shop",
            "documents": {"d1": "rope", "d2": "lamp", "d3": "boots"},
            "queries": {"q1": "climb", "q2": "light"},
            "judgements": {"q1": {"d1": 2, "d3": 1}, "q2": {"d2": 1}},
        }
        return Dataset(**{**given, **changes})

    vectors = Vectors(
        {"rope": [1, 0], "lamp": [0, 1], "boots": [0.8, 0.6], "climb": [1, 0], "light": [0.6, 0.8], "self": [0.6, 0.8]}
    )

    @pytest.mark.parametrize("chunk", [1, 2, 3, 100])
    def test_ranks_exactly(self, chunk: int) -> None:
        seen: list[int] = []
        scores = evaluate(self.data(), self.vectors, chunk=chunk, progress=seen.append)
        # q1: rope, boots, lamp. q2: boots (0.96) before lamp (0.8).
        assert scores.mean == Measures(
            ndcg=pytest.approx((1 + 1 / np.log2(3)) / 2),
            map=pytest.approx((1 + 1 / 2) / 2),
            mrr=pytest.approx((1 + 1 / 2) / 2),
            recall={1: 0.25, 5: 1.0, 10: 1.0, 100: 1.0},
        )
        assert (scores.queries, scores.documents, scores.missing, scores.unanswerable) == (2, 3, 0, 0)
        assert sum(seen) == 3

    @pytest.mark.parametrize("chunk", [1, 3, 7, 64])
    def test_ties_are_trec_evals_in_any_chunking(self, chunk: int) -> None:
        documents = {f"d{number:02}": "same" for number in range(30)}
        data = Dataset("ties", documents, {"q": "query"}, {"q": {"d29": 1, "d20": 1, "d00": 1}})
        scores = evaluate(data, Vectors({"same": [1.0], "query": [1.0]}), chunk=chunk, depth=12)
        expected = measure(rank(dict.fromkeys(documents, 1.0))[:12], data.judgements["q"])
        assert scores.mean == expected
        assert scores.mean.recall[10] == pytest.approx(2 / 3)

    def test_a_document_with_the_querys_id(self) -> None:
        data = Dataset("own", {"q": "self", "d2": "lamp"}, {"q": "light"}, {"q": {"d2": 1}})
        assert evaluate(data, self.vectors, depth=1).mean.mrr == 1.0
        assert evaluate(data, self.vectors, ignore_same_id=False).mean.mrr == 0.5

    def test_what_is_left_out_is_counted(self) -> None:
        judgements = {"q1": {"d1": 1, "gone": 1}, "q2": {"d2": 0}}
        scores = evaluate(self.data(judgements=judgements), self.vectors)
        assert (scores.queries, scores.unanswerable, scores.missing) == (1, 1, 1)
        assert scores.mean.recall[100] == 0.5

    @pytest.mark.parametrize(
        ("changes", "options", "message"),
        [
            ({"documents": {}}, {}, "0 documents and 2 queries"),
            ({"judgements": {"q1": {"d1": 0}}}, {}, "3 documents and 0 queries to answer"),
            ({}, {"depth": 0}, "depth must be at least 1, not 0"),
            ({}, {"chunk": -1}, "chunk must be at least 1, not -1"),
        ],
    )
    def test_bad_arguments(self, changes: dict[str, Any], options: dict[str, int], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            evaluate(self.data(**changes), self.vectors, **options)

    def test_the_demo_finds_its_rows(self, minilm: adv.Embedder) -> None:
        scores = evaluate(Dataset.demo(), minilm)
        assert scores.mean.recall[5] >= 0.95
        assert scores.truncated == 0

    @pytest.mark.skipif(not NFCORPUS.exists(), reason=f"{NFCORPUS} is not here")
    @pytest.mark.timeout(1800)  # 800,000 tokens: three minutes on two quiet cores
    def test_nfcorpus_scores_as_with_sentence_transformers(self, minilm: adv.Embedder) -> None:
        data = Dataset.read(NFCORPUS)
        assert (len(data.documents), len(data.queries)) == (3633, 323)
        assert sum(map(len, data.judgements.values())) == 12334
        expected = json.loads((Path(__file__).parent / "goldens" / "nfcorpus.json").read_text())
        assert evaluate(data, minilm).mean.ndcg == pytest.approx(expected["ndcg@10"], abs=0.001)
