"""Plain LanceDB code with our embedding function and our reranker."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from lancedb.embeddings import EmbeddingFunctionConfig, get_registry
from lancedb.index import FTS
from lancedb.pydantic import LanceModel, Vector

import adventures as adv
import tiny
import tiny_colbert
from adventures.lancedb import AdventuresEmbeddings, AdventuresReranker

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = ["the dragon sleeps at night", "a rope to climb", "a red potion at night", "boots for wet feet", "a lamp"]
PREFIXES = {"query_prefix": "ask: ", "passage_prefix": "read: "}


@pytest.fixture
def table(tmp_path: Path) -> Any:
    """A table that plain LanceDB code makes, embedded by its registry."""
    function = get_registry().get("adventures").create(name="all-minilm-l6-v2", **PREFIXES)

    class Row(LanceModel):
        text: str = function.SourceField()
        vector: Vector(function.ndims()) = function.VectorField()  # type: ignore[valid-type]
        number: int

    table = lancedb.connect(tmp_path / "db").create_table("rows", schema=Row)
    table.add([{"text": text, "number": number} for number, text in enumerate(TEXTS)])
    return table


@pytest.fixture(scope="module")
def embedder() -> adv.Embedder:
    return adv.Embedder("all-minilm-l6-v2", query_prefix="ask: ", passage_prefix="read: ")


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> adv.Reranker:
    return adv.Reranker(tiny.cross_encoder(tmp_path_factory.mktemp("reranker") / "model", seed=6))


class TestEmbeddings:
    def test_rows_are_passages_and_questions_are_queries(self, table: Any, embedder: adv.Embedder) -> None:
        rows = table.to_arrow().to_pylist()
        assert np.array_equal(np.float32([row["vector"] for row in rows]), embedder.embed(TEXTS))
        found = table.search("something to drink").distance_type("cosine").limit(5).to_list()
        query = embedder.embed(["something to drink"], "query")[0]
        want = embedder.embed(TEXTS) @ query
        assert [row["number"] for row in found] == np.argsort(-want).tolist()
        assert [1 - row["_distance"] for row in found] == pytest.approx(sorted(want.tolist(), reverse=True), abs=1e-5)
        assert not np.allclose(query, embedder.embed(["something to drink"])[0], atol=1e-3)

    def test_another_process_reads_and_adds(self, table: Any, tmp_path: Path, embedder: adv.Embedder) -> None:
        code = f"""
import adventures.lancedb, json, lancedb
table = lancedb.connect({str(tmp_path / "db")!r}).open_table("rows")
table.add([{{"text": "a new lamp", "number": 9}}])
print(json.dumps([row["number"] for row in table.search("light").distance_type("cosine").limit(6).to_list()]))
print(json.dumps(table.embedding_functions["vector"].function.safe_model_dump()))
"""
        lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        found, options = map(json.loads, lines.splitlines())
        texts = [*TEXTS, "a new lamp"]
        order = np.argsort(-(embedder.embed(texts) @ embedder.embed(["light"], "query")[0])).tolist()
        assert found == [[0, 1, 2, 3, 4, 9][at] for at in order]
        assert options == {"name": "all-minilm-l6-v2", **PREFIXES, "made_with": embedder.revision}

    def test_another_models_table_is_refused(self, tmp_path: Path) -> None:
        model = tiny.bert(tmp_path / "model", seed=1)
        function = AdventuresEmbeddings.create(name=str(model))
        config = EmbeddingFunctionConfig(source_column="text", vector_column="vector", function=function)
        db = lancedb.connect(tmp_path / "db")
        db.create_table("rows", pa.table({"text": ["the dragon"]}), embedding_functions=[config])
        code = f"""
import adventures.lancedb, lancedb
lancedb.connect({str(tmp_path / "db")!r}).open_table("rows").search("x").to_list()
"""
        command = [sys.executable, "-c", code]
        assert subprocess.run(command, capture_output=True, check=False).returncode == 0
        tiny.bert(model, seed=2)
        failed = subprocess.run(command, capture_output=True, text=True, check=False)
        assert failed.returncode == 1
        assert "ValueError: the table was embedded with" in failed.stderr
        assert "its vectors cannot be compared" in failed.stderr

    def test_nulls_and_every_kind_of_column(self, embedder: adv.Embedder) -> None:
        function = AdventuresEmbeddings.create(name="all-minilm-l6-v2", **PREFIXES)
        want = embedder.embed(TEXTS)
        for column in (
            TEXTS,
            pa.array(TEXTS),
            pa.chunked_array([TEXTS[:2], TEXTS[2:]]),
            pa.array(TEXTS).cast("large_string"),
        ):
            assert np.array_equal(np.stack(function.compute_source_embeddings(column)), want)
        assert function.compute_source_embeddings(pa.array([None, "a lamp"], pa.string()))[0] is None
        assert np.array_equal(function.compute_source_embeddings([None, "a lamp"])[1], want[4])
        assert function.compute_source_embeddings([]) == []
        assert np.array_equal(function.generate_embeddings(["a lamp"])[0], want[4])

    def test_a_bad_option_fails_at_once(self) -> None:
        with pytest.raises(LookupError, match="no model 'nope' in the catalogue"):
            AdventuresEmbeddings.create(name="nope").ndims()
        with pytest.raises(ValueError, match="precision"):
            AdventuresEmbeddings.create(precision="int4")


class TestReranker:
    def test_vector_text_and_hybrid_searches(self, table: Any, reranker: adv.Reranker) -> None:
        table.create_index("text", config=FTS())
        ours = AdventuresReranker(reranker)
        scores = dict(zip(TEXTS, reranker.scores("a dragon at night", TEXTS).tolist(), strict=True))
        for search in (
            table.search("a dragon at night", query_type="vector").limit(4),
            table.search("a dragon at night", query_type="fts").limit(4),
            table.search("a dragon at night", query_type="hybrid").limit(4),
        ):
            found = search.rerank(reranker=ours).to_list()
            assert len(found) >= 2
            shown = [row["_relevance_score"] for row in found]
            assert shown == pytest.approx([scores[row["text"]] for row in found], abs=1e-6)
            assert shown == sorted(shown, reverse=True)
            assert not {"_distance", "_score"} & set(found[0])

    def test_all_scores(self, table: Any, reranker: adv.Reranker) -> None:
        table.create_index("text", config=FTS())
        every = AdventuresReranker(reranker, return_score="all")
        found = table.search("a dragon at night", query_type="hybrid").limit(5).rerank(every).to_list()
        assert {"_distance", "_score", "_relevance_score"} <= set(found[0])
        assert [row["_relevance_score"] for row in found] == sorted(
            (row["_relevance_score"] for row in found), reverse=True
        )
        assert "_distance" in table.search("x").limit(2).rerank(every, "x").to_list()[0]

    def test_nothing_found(self, table: Any, reranker: adv.Reranker) -> None:
        table.create_index("text", config=FTS())
        search = table.search("a dragon", query_type="hybrid").where("number > 99", prefilter=True)
        assert search.rerank(AdventuresReranker(reranker)).to_list() == []

    def test_colbert_and_names(self, table: Any, tmp_path: Path) -> None:
        path = tiny_colbert.colbert(tmp_path / "colbert", "stanford")
        col = adv.ColBERT(path)
        for given in (AdventuresReranker(col), AdventuresReranker(str(path), model_type="colbert")):
            found = table.search("a rope", query_type="vector").limit(5).rerank(given).to_list()
            want = col.rank("a rope", TEXTS)
            assert [row["text"] for row in found] == [ranked.text for ranked in want]
        assert str(AdventuresReranker(col)) == "AdventuresReranker(colbert)"

    def test_what_does_not_fit(self, table: Any, reranker: adv.Reranker) -> None:
        with pytest.raises(ValueError, match="column='body' is not in the results; they have 'text', 'vector'"):
            table.search("x").rerank(AdventuresReranker(reranker, column="body"), "x").to_list()
        with pytest.raises(TypeError, match=r"must have a method scores\(query, docs\); int has none"):
            AdventuresReranker(3)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="threads: of a model that is opened already"):
            AdventuresReranker(reranker, threads=1)
        nulls = pa.table({"text": [None, "x"], "_distance": [0.1, 0.2]})
        with pytest.raises(ValueError, match="1 of 2 results have no text"):
            AdventuresReranker(reranker).rerank_vector("x", nulls)
