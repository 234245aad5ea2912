"""The service: its routes, against the library and the models themselves."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from deltalake import write_deltalake

import adventures as adv
import load
import tiny
import tiny_colbert
from adventures import demo
from serving import KEY, Server, program, text_of

if TYPE_CHECKING:
    from collections.abc import Iterator

QUESTION = "How do I get past a dragon that is sleeping on its gold?"


@pytest.fixture(scope="module")
def server(stock: adv.Library) -> Iterator[Server]:
    with Server("--library", stock.path, "--title", "Outfitter", "--system", demo.SHOPKEEPER) as server:
        yield server


@pytest.fixture(scope="module")
def plain() -> Iterator[Server]:
    """A service without a library."""
    with Server() as server:
        yield server


@pytest.fixture(scope="module", params=["cross-encoder", "colbert"])
def reranker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reranker") / "tiny"
    return (
        tiny.cross_encoder(path, seed=6) if request.param == "cross-encoder" else tiny_colbert.colbert(path, "stanford")
    )


@pytest.fixture(scope="module")
def scorer(reranker: Path) -> adv.Reranker | adv.ColBERT:
    return adv.ColBERT(reranker) if (reranker / "artifact.metadata").exists() else adv.Reranker(reranker)


@pytest.fixture(scope="module")
def reranking(stock: adv.Library, reranker: Path) -> Iterator[Server]:
    with Server("--library", stock.path, "--reranker", reranker, "--min-similarity", "-1") as server:
        yield server


def ask(question: str, **more: object) -> dict[str, Any]:
    return {"model": "default", "messages": [{"role": "user", "content": question}], **more}


class TestStatus:
    def test_health_ready_info(self, server: Server, stock: adv.Library) -> None:
        assert server.get("/health").json() == {"status": "ok"}
        assert server.get("/ready").status == 200
        info = server.get("/info").json()
        assert info["embedder"] == {"name": "all-minilm-l6-v2", "dim": 384, "max_tokens": 256}
        assert info["generator"]["name"] == "smollm2-135m-instruct"
        assert info["library"]["passages"] == len(demo.rows())
        assert set(info["library"]["columns"]) == {"scenario", "item", "category", "price", "region"}
        assert info["library"]["min_similarity"] == pytest.approx(0.32)
        assert info["page"]["title"] == "Outfitter"

    def test_root_is_what_is_asked_for(self, server: Server) -> None:
        assert server.get("/", Accept="text/html").body.startswith(b"<!doctype html>")
        assert server.get("/", Accept="application/json").json() == {"status": "ok"}
        assert server.get("/", Accept="*/*").body == b"adventures is running\n"

    def test_models(self, server: Server) -> None:
        assert [model["id"] for model in server.get("/v1/models").json()["data"]] == [
            "smollm2-135m-instruct",
            "all-minilm-l6-v2",
        ]
        assert server.get("/v1/models/smollm2-135m-instruct").json()["id"] == "smollm2-135m-instruct"
        missing = server.get("/v1/models/gpt-4o")
        assert missing.status == 404
        assert missing.json()["error"]["code"] == "model_not_found"

    def test_metrics_count(self, server: Server) -> None:
        before = server.metric("generated_tokens_total")
        server.post("/v1/chat/completions", ask(QUESTION, max_tokens=5))
        assert server.metric("generated_tokens_total") == before + 5
        assert server.metric("slots_in_use") == 0
        assert server.metric("library_passages") == len(demo.rows())

    def test_head_says_what_get_would(self, server: Server) -> None:
        for path in ("/", "/ready", "/page/app.js", "/page/none.js", "/v1/models", "/v1/models/none"):
            head, get = server.call("HEAD", path), server.get(path)
            assert (head.status, head.headers["Content-Length"]) == (get.status, get.headers["Content-Length"]), path
            assert head.body == b""

    def test_a_path_that_is_none(self, server: Server) -> None:
        assert server.get("/v2").status == 404
        assert server.get("/v1/search").status == 405


class TestChat:
    def test_the_answer_is_that_of_the_library(
        self, server: Server, stock: adv.Library, smollm2: adv.Generator
    ) -> None:
        chat = adv.Chat(stock, smollm2, system=demo.SHOPKEEPER)
        for question in [*demo.ASK, *(q.question for q in demo.questions()[:6]), *demo.off_topic()[:2]]:
            chat.reset()
            expected = chat.ask(question)
            text = expected.text()
            body = server.post("/v1/chat/completions", ask(question)).json()
            assert body["choices"][0]["message"]["content"] == text
            assert [source["id"] for source in body["sources"]] == [hit.id for hit in expected.sources]
            assert body["citations"] == expected.citations
            assert text_of(server.events("/v1/chat/completions", ask(question, stream=True))) == text

    def test_a_conversation_is_that_of_the_library(
        self, server: Server, stock: adv.Library, smollm2: adv.Generator
    ) -> None:
        chat = adv.Chat(stock, smollm2, system=demo.SHOPKEEPER)
        messages: list[dict[str, str]] = []
        for question in (QUESTION, "And what does it cost?", "What do I need to climb an icy cliff?", "why?"):
            expected = chat.ask(question).text()
            messages.append({"role": "user", "content": question})
            body = server.post("/v1/chat/completions", {"model": "default", "messages": messages}).json()
            assert body["choices"][0]["message"]["content"] == expected, question
            messages.append({"role": "assistant", "content": expected})

    def test_sources_come_first_and_say_where_they_are_from(self, server: Server) -> None:
        events = list(server.events("/v1/chat/completions", ask(QUESTION, stream=True)))
        assert events[-1] == "[DONE]"
        first = events[0]
        assert isinstance(first, dict)
        source = first["sources"][0]
        assert source["metadata"]["item"] == "Slippers of Sainted Burglary"
        assert source["source"]["row"] == {"scenario": "a dragon asleep on top of the treasure"}
        assert source["source"]["version"] == 0
        assert 0.5 < source["similarity"] <= 1
        last = events[-2]
        assert isinstance(last, dict)
        assert last["choices"][0]["finish_reason"] == "stop"
        assert last["citations"] == [1]

    def test_what_the_library_does_not_know(self, server: Server) -> None:
        body = server.post("/v1/chat/completions", ask(demo.off_topic()[0])).json()
        assert body["choices"][0]["message"]["content"] == "The library holds nothing on that."
        assert body["sources"] == []
        assert body["usage"]["total_tokens"] == 0

    def test_a_question_that_is_too_long_to_be_looked_for(self, server: Server) -> None:
        long = QUESTION + " It sleeps deeply." * 100
        for question, truncated in ((QUESTION, False), (long, True)):
            assert server.post("/v1/search", {"query": question}).json()["truncated"] is truncated
            body = server.post("/v1/chat/completions", ask(question, max_tokens=1)).json()
            assert body["truncated"] is truncated
            first = next(server.events("/v1/chat/completions", ask(question, max_tokens=1, stream=True)))
            assert isinstance(first, dict)
            assert first["truncated"] is truncated

    def test_without_retrieval_it_is_the_model(self, server: Server, smollm2: adv.Generator) -> None:
        expected = smollm2.generate(
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a colour."}], max_tokens=12
        ).text()
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a colour."}]
        body = {"model": "smollm2-135m-instruct", "messages": messages, "retrieval": False, "max_tokens": 12}
        assert server.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"] == expected

    def test_a_filter_decides_which_passages_may_answer(self, server: Server) -> None:
        body = ask(QUESTION, retrieval={"where": {"category": "potion"}, "min_similarity": -1, "k": 3})
        sources = server.post("/v1/chat/completions", body).json()["sources"]
        assert {source["metadata"]["category"] for source in sources} == {"potion"}

    def test_json_that_fulfils_a_schema(self, server: Server) -> None:
        schema = {
            "type": "object",
            "properties": {"n": {"type": "integer"}},
            "required": ["n"],
            "additionalProperties": False,
        }
        shape = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
        body = server.post(
            "/v1/chat/completions", ask("A number?", retrieval=False, response_format=shape, max_tokens=40)
        )
        assert set(json.loads(body.json()["choices"][0]["message"]["content"])) == {"n"}

    @pytest.mark.parametrize(
        ("change", "param"),
        [
            ({"messages": []}, "messages"),
            (
                {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
                "messages[0].content",
            ),
            ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
            ({"n": 2}, "n"),
            ({"max_tokens": 0}, "max_tokens"),
            ({"stop": [""]}, "stop"),
            ({"stop": ["x"] * 17}, "stop"),
            ({"logit_bias": {"one": 1}}, "logit_bias"),
            ({"logit_bias": {"1": 101}}, "logit_bias"),
            ({"top_logprobs": 2}, "top_logprobs"),
            ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
            ({"retrieval": {"k": 0}}, "k"),
            ({"retrieval": {"k": 101}}, "k"),
            ({"retrieval": {"min_similarity": 2}}, "min_similarity"),
            ({"response_format": {"type": "json_object"}}, "response_format"),
            ({"retrieval": False, "response_format": {"type": "xml"}}, "response_format"),
        ],
    )
    def test_what_is_refused_by_name(self, server: Server, change: dict[str, Any], param: str) -> None:
        reply = server.post("/v1/chat/completions", ask("hello") | change)
        assert reply.status == 400
        assert reply.json()["error"]["param"] == param

    @pytest.mark.parametrize(
        "change",
        [
            {"temperature": -1},
            {"temperature": "hot"},
            {"top_p": 0},
            {"frequency_penalty": 3},
            {"tools": []},
            {"colour": "red"},
            {"messages": "hello"},
            {"messages": [{"role": "assistant", "content": "x"}]},
            {"messages": [{"role": "user", "content": " "}]},
            {"retrieval": {"where": {"colour": "red"}}},
            {"retrieval": {"where": {"price": {"lt": "ten"}}}},
            {"retrieval": {"nearest": 3}},
            {"max_tokens": -1},
            {"seed": 1.5},
        ],
    )
    def test_what_is_refused(self, server: Server, change: dict[str, Any]) -> None:
        reply = server.post("/v1/chat/completions", ask("hello") | change)
        assert reply.status == 400, reply.body
        assert reply.json()["error"]["message"]
        assert server.post("/v1/chat/completions", ask(QUESTION, max_tokens=1)).status == 200

    def test_too_long_is_refused_before_it_is_read(self, server: Server) -> None:
        begun = time.perf_counter()
        reply = server.post("/v1/chat/completions", ask("A" * 2_000_000))
        assert reply.status == 400
        assert time.perf_counter() - begun < 1
        reply = server.post("/v1/chat/completions", ask("word " * 9_000, retrieval=False))
        assert reply.status == 400
        assert "tokens" in reply.json()["error"]["message"]

    def test_of_a_service_without_a_library(self, plain: Server, smollm2: adv.Generator) -> None:
        expected = smollm2.generate("Name a colour.", max_tokens=8).text()
        body = plain.post("/v1/chat/completions", ask("Name a colour.", max_tokens=8)).json()
        assert body["choices"][0]["message"]["content"] == expected
        assert plain.post("/v1/chat/completions", ask("x", retrieval=True)).json()["error"]["param"] == "retrieval"
        assert plain.post("/v1/search", {"query": "x"}).status == 404


class TestCompletions:
    def test_continues_as_the_model_does(self, plain: Server, smollm2: adv.Generator) -> None:
        expected = smollm2.complete("Once upon a time", max_tokens=20).text()
        body = {"model": "default", "prompt": "Once upon a time", "max_tokens": 20}
        reply = plain.post("/v1/completions", body).json()
        assert reply["choices"][0]["text"] == expected
        assert reply["choices"][0]["finish_reason"] == "length"
        assert reply["usage"]["completion_tokens"] == 20
        events = list(
            plain.events("/v1/completions", {**body, "stream": True, "stream_options": {"include_usage": True}})
        )
        assert "".join(event["choices"][0]["text"] for event in events[:-2]) == expected
        assert events[-2]["usage"]["completion_tokens"] == 20
        assert events[-1] == "[DONE]"

    def test_logprobs(self, plain: Server) -> None:
        body = {"model": "default", "prompt": "One, two,", "max_tokens": 4, "logprobs": 2}
        logprobs = plain.post("/v1/completions", body).json()["choices"][0]["logprobs"]
        assert len(logprobs["tokens"]) == 4
        assert logprobs["text_offset"][0] == 0
        assert all(len(top) == 2 for top in logprobs["top_logprobs"])
        assert all(value <= 0 for value in logprobs["token_logprobs"])

    @pytest.mark.parametrize(
        "change",
        [{"prompt": []}, {"prompt": ["a", "b"]}, {"prompt": [1, 2]}, {"echo": True}, {"best_of": 2}, {"logprobs": 21}],
    )
    def test_what_is_refused(self, plain: Server, change: dict[str, Any]) -> None:
        assert plain.post("/v1/completions", {"model": "default", "prompt": "x"} | change).status == 400


class TestEmbeddings:
    def test_vectors_are_those_of_the_library(self, server: Server, minilm: adv.Embedder) -> None:
        texts = [row.text for row in demo.rows()[:40]]
        expected = minilm.embed(texts)
        body = {"model": "all-minilm-l6-v2", "input": texts}
        reply = server.post("/v1/embeddings", body).json()
        found = np.array([item["embedding"] for item in reply["data"]], np.float32)
        assert np.abs(found - expected).max() < 1e-6
        packed = server.post("/v1/embeddings", {**body, "encoding_format": "base64"}).json()
        vectors = [np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in packed["data"]]
        assert np.abs(np.array(vectors) - expected).max() < 1e-6
        assert reply["usage"]["prompt_tokens"] == int(minilm.encode(texts).tokens.sum())
        seed = server.post("/embed", {"text_list": texts}).json()
        assert np.abs(np.array(seed, np.float32) - expected).max() < 1e-6
        assert server.post("/embeddings", body).json()["data"] == reply["data"]

    def test_a_long_text_is_cut_and_said_to_be(self, server: Server) -> None:
        reply = server.post("/v1/embeddings", {"model": "default", "input": ["short", "word " * 5000]}).json()
        assert reply["truncated"] == [1]

    @pytest.mark.parametrize(
        "change",
        [
            {"input": []},
            {"input": [""]},
            {"input": [1]},
            {"input": ["x"] * 2049},
            {"dimensions": 3},
            {"encoding_format": "hex"},
        ],
    )
    def test_what_is_refused(self, server: Server, change: dict[str, Any]) -> None:
        assert server.post("/v1/embeddings", {"model": "default", "input": "x"} | change).status == 400
        assert server.post("/v1/embeddings", {"model": "ada", "input": "x"}).status == 404


class TestSearch:
    @pytest.mark.parametrize("hybrid", [False, True])
    @pytest.mark.parametrize(
        "where",
        [
            None,
            {"category": "potion"},
            {"category": ["potion", "light"]},
            {"price": {"lt": 20, "gte": 5}},
            {"price": {"ne": 12}},
            {"price": {"ne": [12, None]}},
            {"region": {"in": ["Ember Waste", "no'such\"region"]}},
            {"scenario": "a dragon asleep on top of the treasure"},
            {"category": []},
            {"region": None},
        ],
    )
    def test_finds_what_the_library_finds(
        self, server: Server, stock: adv.Library, where: dict[str, Any] | None, hybrid: bool
    ) -> None:
        for question in demo.questions()[:3]:
            expected = stock.search(question.question, 7, hybrid=hybrid, where=where)
            body = {"query": question.question, "k": 7, "hybrid": hybrid, "where": where}
            hits = server.post("/v1/search", body).json()["hits"]
            assert [hit["id"] for hit in hits] == [hit.id for hit in expected]
            for hit, wanted in zip(hits, expected, strict=True):
                assert (hit["text"], hit["metadata"]) == (wanted.text, wanted.metadata)
                assert hit["source"]["row"] == wanted.source.row
                assert hit["score"] == pytest.approx(wanted.score, abs=1e-5)
                assert hit["similarity"] == pytest.approx(wanted.similarity, abs=1e-5)

    @pytest.mark.parametrize(
        "body",
        [
            {},
            {"query": ""},
            {"query": "x", "k": 0},
            {"query": "x", "k": 1.5},
            {"query": "x", "where": "price < 20"},
            {"query": "x", "where": {"price": {"like": 1}}},
            {"query": "x", "where": {"price": {}}},
            {"query": "x", "where": {"price": 1.5}},
            {"query": "x", "where": {"price": 2**70}},
            {"query": "x", "where": {"category": 1}},
            {"query": "x", "where": {"category": "a\0b"}},
            {"query": "x", "where": {"category": {"gt": None}}},
            {"query": "x", "where": {"category": {"contains": "x"}}},
            {"query": "x", "where": {"vector": 1}},
        ],
    )
    def test_what_is_refused(self, server: Server, body: dict[str, Any]) -> None:
        assert server.post("/v1/search", body).status == 400

    def test_rerank(self, server: Server, minilm: adv.Embedder) -> None:
        documents = [row.text for row in demo.rows()[:30]]
        query = "something against the cold"
        scores = minilm.embed(documents) @ minilm.embed([query], kind="query")[0]
        body = {"query": query, "documents": documents, "top_n": 5, "return_documents": True}
        results = server.post("/v1/rerank", body).json()["results"]
        assert [result["index"] for result in results] == np.argsort(-scores)[:5].tolist()
        assert results[0]["document"]["text"] == documents[results[0]["index"]]
        assert server.post("/v1/rerank", {"query": "x", "documents": []}).status == 400


class TestReranker:
    """A service with a reranker: in searches, in chats, and on its own."""

    @pytest.mark.filterwarnings("ignore::adventures.TruncationWarning")
    @pytest.mark.parametrize("hybrid", [False, True])
    def test_finds_what_the_library_finds(
        self, reranking: Server, stock: adv.Library, scorer: adv.Reranker | adv.ColBERT, hybrid: bool
    ) -> None:
        for question in demo.questions()[:3]:
            expected = stock.search(question.question, 4, hybrid=hybrid, rerank=scorer)
            body = {"query": question.question, "k": 4, "hybrid": hybrid}
            hits = reranking.post("/v1/search", body).json()["hits"]
            assert [hit["id"] for hit in hits] == [hit.id for hit in expected]
            assert [hit["score"] for hit in hits] == pytest.approx([hit.score for hit in expected], abs=1e-5)
            chat = reranking.post(
                "/v1/chat/completions", ask(question.question, max_tokens=1, retrieval={"hybrid": hybrid})
            )
            sources = [hit["id"] for hit in chat.json()["sources"]]
            assert sources == [hit.id for hit in expected][: len(sources)]
            assert sources
            plain = reranking.post("/v1/search", {**body, "rerank": False}).json()["hits"]
            assert [hit["id"] for hit in plain] == [hit.id for hit in stock.search(question.question, 4, hybrid=hybrid)]

    @pytest.mark.filterwarnings("ignore::adventures.TruncationWarning")
    def test_documents_of_a_request(self, reranking: Server, scorer: adv.Reranker | adv.ColBERT) -> None:
        documents = [row.text for row in demo.rows()[:70]] + ["a rope " * 900]
        query = "something against the cold"
        scores = scorer.scores(query, documents)
        body = reranking.post("/v1/rerank", {"query": query, "documents": documents, "top_n": 5}).json()
        assert [result["index"] for result in body["results"]] == np.argsort(-scores, kind="stable")[:5].tolist()
        found = [result["relevance_score"] for result in body["results"]]
        assert found == pytest.approx(np.sort(scores)[::-1][:5].tolist(), abs=1e-5)
        assert body["model"] == reranking.get("/info").json()["reranker"] == "tiny"
        assert 70 in body["truncated"]
        by_embedder = {"model": "all-minilm-l6-v2", "query": query, "documents": documents[:3]}
        assert reranking.post("/v1/rerank", by_embedder).json()["model"] == "all-minilm-l6-v2"
        assert reranking.post("/v1/rerank", {**by_embedder, "model": "x"}).status == 404

    def test_who_goes_away_is_no_burden(self, reranking: Server) -> None:
        documents = ["a rope of silk, and another one. " * 60] * 2048
        data = load.request("/v1/rerank", {"query": "rope", "documents": documents})

        async def leave() -> None:
            await asyncio.gather(*(load.leave(reranking.address, data, after=0.5, how="close") for _ in range(8)))

        asyncio.run(leave())
        began = time.perf_counter()
        assert reranking.post("/v1/rerank", {"query": "rope", "documents": ["a"]}).status == 200
        assert time.perf_counter() - began < 5

    @pytest.mark.filterwarnings("ignore::adventures.TruncationWarning")
    def test_passages_that_it_does_not_read_whole_are_named(
        self, reranker: Path, minilm: adv.Embedder, tmp_path: Path
    ) -> None:
        rows = {"id": ["long", "short"], "text": ["a rope and a dragon " * 40, "a rope"]}
        write_deltalake(tmp_path / "table", pa.table(rows))
        library = adv.Library.open(tmp_path / "library", embedder=minilm)
        library.sync(tmp_path / "table", id="id", text="{text}", progress=False)
        with Server("--library", library.path, "--reranker", reranker, "--generator", "none") as server:
            body = server.post("/v1/search", {"query": "a rope"}).json()
            assert {hit["id"] for hit in body["hits"]} == {"long#0", "short#0"}
            assert body["cut"] == ["long#0"]
            assert server.post("/v1/search", {"query": "a rope", "rerank": False}).json()["cut"] == []

    def test_none_is_there(self, plain: Server) -> None:
        assert plain.get("/info").json()["reranker"] is None

    def test_a_model_that_is_none(self, tmp_path: Path) -> None:
        path = tiny.bert(tmp_path / "bert", seed=1)
        finished = subprocess.run(
            [program(), "--port", "0", "--generator", "none", "--reranker", path],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert finished.returncode == 1
        assert "the reranker bert" in finished.stderr
        assert "have no classifier" in finished.stderr


class TestPrototype:
    def test_chat_streams_text(self, server: Server, stock: adv.Library, smollm2: adv.Generator) -> None:
        expected = adv.Chat(stock, smollm2, system=demo.SHOPKEEPER).ask(QUESTION).text()
        assert "".join(map(str, server.events("/chat", {"prompt": QUESTION}))) == expected
        assert server.post("/chat", {"prompt": ""}).status == 400


class TestSpans:
    """How long each part of a request took, where somebody asks for it."""

    def test_each_part_tells_its_time(self, stock: adv.Library) -> None:
        with Server("--library", stock.path, "--log", "info,adventures_server=debug") as server:
            for streamed in (False, True):
                seen = len(server.log)
                reply = server.post("/v1/chat/completions", ask(QUESTION, stream=streamed, max_tokens=4))
                id_ = reply.headers["x-request-id"]
                parts = self.closed(server, seen, id_)
                assert parts.keys() == {"embed", "search", "prompt", "generate", "request"}
                assert parts["generate"]["generated"] == 4
                assert parts["generate"]["prompt"] > parts["generate"]["cached"] >= 0
                assert parts["search"]["k"] == 4
            assert QUESTION[:20] not in "".join(server.log)

    def test_nobody_is_told_unasked(self, server: Server) -> None:
        server.post("/v1/search", {"query": "a rope"})
        assert '"close"' not in "".join(server.log)

    def closed(self, server: Server, seen: int, id_: str) -> dict[str, dict[str, Any]]:
        """The parts of a request in the order in which they ended."""
        end = time.monotonic() + 10
        while True:
            parts: dict[str, dict[str, Any]] = {}
            for line in map(json.loads, server.log[seen:]):
                if line.get("message") != "close" or id_ not in [s.get("id") for s in [*line["spans"], line["span"]]]:
                    continue
                assert line["time.busy"]
                parts[line["span"]["name"]] = line["span"]
            if {"request", "generate"} <= parts.keys():
                return parts
            assert time.monotonic() < end, server.log[seen:]
            time.sleep(0.05)


class TestLive:
    def test_a_new_version_is_served_without_a_dropped_request(self, tmp_path: Path, minilm: adv.Embedder) -> None:
        import polars as pl

        rows = [{"id": i, "text": f"item {i} of the shelf"} for i in range(40)]
        pl.DataFrame(rows).write_delta(tmp_path / "delta")
        library = adv.Library.open(tmp_path / "library", embedder=minilm)
        library.sync(tmp_path / "delta", id="id", text="{text}")
        with Server("--library", tmp_path / "library", "--generator", "none") as server:
            assert server.get("/info").json()["library"]["delta_version"] == 0
            more = pl.DataFrame([{"id": 99, "text": "a trumpet of the northern wind"}])
            more.write_delta(tmp_path / "delta", mode="append")
            library.sync(tmp_path / "delta", id="id", text="{text}")
            end = time.monotonic() + 10
            found = False
            while not found and time.monotonic() < end:
                reply = server.post("/v1/search", {"query": "trumpet", "k": 1})
                assert reply.status == 200
                found = reply.json()["hits"][0]["source"]["row"] == {"id": 99}
            assert found
            assert server.get("/info").json()["library"]["delta_version"] == 1
            assert server.metric("library_passages") == 41
            assert server.post("/v1/chat/completions", ask("x")).status == 404

    @pytest.mark.parametrize(
        "how", [{"precision": "int8"}, {"dim": 128, "query_prefix": "query: "}, {"normalize": False}]
    )
    def test_the_model_is_used_as_the_library_was_made(self, tmp_path: Path, how: dict[str, Any]) -> None:
        import polars as pl

        rows = [{"id": i, "text": f"{what} of the shelf"} for i, what in enumerate(("rope", "lamp", "boots"))]
        pl.DataFrame(rows).write_delta(tmp_path / "delta")
        library = adv.Library.open(tmp_path / "library", embedder=adv.Embedder("all-minilm-l6-v2", **how))
        library.sync(tmp_path / "delta", id="id", text="{text}")
        with Server("--library", tmp_path / "library", "--generator", "none") as server:
            hits = server.post("/v1/search", {"query": "a light", "k": 3}).json()["hits"]
        expected = library.search("a light", 3)
        assert [hit["id"] for hit in hits] == [hit.id for hit in expected]
        similarities = [hit.similarity for hit in expected]
        assert [hit["similarity"] for hit in hits] == pytest.approx(similarities, abs=1e-5)
        if "precision" in how:
            finished = subprocess.run(
                [program(), "--port", "0", "--library", tmp_path / "library", "--precision", "f32"],
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert finished.returncode == 1
            assert "+int8" in finished.stderr

    def test_another_model_is_refused(self, tmp_path: Path, stock: adv.Library) -> None:
        finished = subprocess.run(
            [program(), "--port", "0", "--library", stock.path, "--embedder", str(tmp_path)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert finished.returncode == 1
        assert str(tmp_path) in finished.stderr


class TestStart:
    def run(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program(), "--port", "0", *arguments], capture_output=True, text=True, timeout=60, env={"PATH": "", **env}
        )

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--host", "0.0.0.0"], "there is no key"),
            (["--host", "::"], "there is no key"),
            (["--host", "0.0.0.0", "--api-key", "short"], "16 or more"),
            (["--slots", "0"], "slots 0: expected 1 to 64"),
            (["--k", "1000"], "k 1000"),
            (["--table", "../x"], "table name"),
            (["--min-similarity", "2"], "min-similarity 2"),
            (["--cors-origin", "*"], "cors-origin"),
            (["--deadline", "0"], "deadline 0"),
            (["--context", "many"], "many"),
            (["--precision", "f31"], "f31"),
            (["--quantize", "q3"], "q3"),
            (["--colour", "red"], "--colour"),
            (["--library", "s3://shop/library", "--storage-option", "secret"], "storage-option 1: expected NAME=VALUE"),
            (["--storage-option", "aws_region=x"], "storage-option aws_region: there is no library"),
            (["--config", "/no/such/file"], "/no/such/file"),
            (["--api-key-file", "/no/such/file"], "/no/such/file"),
        ],
    )
    def test_used_wrongly(self, arguments: list[str], message: str) -> None:
        finished = self.run(*arguments)
        assert finished.returncode == 2
        assert message in finished.stderr
        assert "Traceback" not in finished.stderr
        assert "panicked" not in finished.stderr

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--generator", "no-such-model"], 'no model "no-such-model" in the catalogue'),
            (["--generator", "/no/such/dir"], "/no/such/dir"),
            (["--generator", "gemma-2b-it"], "adventures models pull gemma-2b-it"),
            (["--generator", "owner/name"], "adventures models pull owner/name"),
            (["--library", "/no/such/library"], "no library at /no/such/library"),
            (["--library", "postgresql://me:secret@host/shop"], "the library postgresql://…: the service reads"),
            (["--library", "s3://me:secret@host/shop"], "the library s3://…: credentials come from the environment"),
            (
                ["--library", "s3://shop/library", "--storage-option", "colour=secret"],
                "storage-option colour: s3 has no such setting",
            ),
            (
                ["--library", "/tmp", "--storage-option", "aws_region=secret"],
                "the library /tmp is not on an object store",
            ),
        ],
    )
    def test_what_is_not_there(self, arguments: list[str], message: str) -> None:
        finished = self.run(*arguments, HOME=str(Path.home()))
        assert finished.returncode == 1
        assert message in finished.stderr
        assert "secret" not in finished.stderr

    def test_settings_of_a_file_of_variables_and_of_flags(self, tmp_path: Path) -> None:
        config = tmp_path / "config.toml"
        config.write_text('title = "from the file"\ngreeting = "from the file"\nk = 7\nslots = 3\nexample = ["one"]\n')
        env = {"ADVENTURES_CONFIG": str(config), "ADVENTURES_GREETING": "from a variable", "ADVENTURES_K": "8"}
        with Server("--k", "9", env=env) as server:
            info = server.get("/info").json()
            assert info["page"] == {"title": "from the file", "greeting": "from a variable", "examples": ["one"]}
            assert info["generator"]["slots"] == 3
        with Server(env={"ADVENTURES_EXAMPLE": "one, or two?\nthree?"}) as server:
            assert server.get("/info").json()["page"]["examples"] == ["one, or two?", "three?"]
        config.write_text("colour = 1\n")
        finished = self.run("--config", str(config))
        assert finished.returncode == 2
        assert "colour" in finished.stderr

    def test_starts_at_once_and_is_ready_soon(self, stock: adv.Library) -> None:
        began = time.perf_counter()
        with Server("--library", stock.path, ready=False) as server:
            assert server.get("/health").status == 200
            alive = time.perf_counter() - began
            loading = server.get("/ready")
            if loading.status == 503:
                assert loading.headers["Retry-After"] == "1"
                assert loading.json()["error"]["code"] == "loading"
                assert server.post("/v1/search", {"query": "x"}).status == 503
            server.wait_ready()
            ready = time.perf_counter() - began
        # The figures are 0.1 s and 1.5 s; a busy machine takes longer.
        assert alive < 2
        assert ready < 15
        print(f"health after {alive:.3f} s, ready after {ready:.3f} s")

    def test_probe(self, plain: Server) -> None:
        port = str(plain.address[1])
        assert subprocess.run([program(), "--port", port, "--probe"], timeout=10).returncode == 0
        assert subprocess.run([program(), "--port", "1", "--probe"], capture_output=True, timeout=10).returncode == 1
        assert KEY not in "".join(plain.log)
