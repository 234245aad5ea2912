"""The service's ways to find passages in a library: with their neighbours, and by the vectors of their tokens."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from deltalake import write_deltalake

import adventures as adv
import tiny_colbert
from serving import Server

if TYPE_CHECKING:
    from collections.abc import Iterator

PLACES = ["cave", "harbour", "tower", "bridge", "market", "forest"]
THINGS = ["a rope", "an old lamp", "the red dragon", "a potion of night", "two boots of ice", "a map of the river"]
QUESTIONS = ["who keeps the lamp in the tower?", "a dragon at the bridge", "boots"]
NOTHING = ["--generator", "none"]


def story(seed: int) -> str:
    chance = random.Random(seed)
    lines = [f"In the {chance.choice(PLACES)} number {n} lies {chance.choice(THINGS)}." for n in range(40)]
    return " ".join(lines) + (" 龍は夜に眠る。" * 20 if seed % 3 == 0 else "")


def table(count: int, start: int = 0) -> pa.Table:
    names = [f"it's #{n}" for n in range(start, start + count)]
    texts = [story(n) for n in range(start, start + count)]
    return pa.table({"id": names, "text": texts, "shelf": [n % 3 for n in range(start, start + count)]})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_colbert.colbert(tmp_path_factory.mktemp("colbert") / "tiny", "stanford")


def synced(path: Path, minilm: adv.Embedder, colbert: adv.ColBERT | None, rows: pa.Table, **more: Any) -> adv.Library:
    write_deltalake(path / "delta", rows, mode="overwrite")
    library = adv.Library.open(path / "library", embedder=minilm, colbert=colbert)
    library.sync(path / "delta", id="id", text="{text}", max_tokens=32, overlap=8, **more)
    return library


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory, minilm: adv.Embedder, model: Path) -> adv.Library:
    return synced(tmp_path_factory.mktemp("library"), minilm, adv.ColBERT(model), table(9))


@pytest.fixture(scope="module")
def server(library: adv.Library) -> Iterator[Server]:
    with Server("--library", library.path, "--max-tokens", "8") as server:
        yield server


def search(server: Server, query: str, k: int = 7, **how: Any) -> list[dict[str, Any]]:
    reply = server.post("/v1/search", {"query": query, "k": k, **how})
    assert reply.status == 200, reply.body
    hits: list[dict[str, Any]] = reply.json()["hits"]
    return hits


def check(hits: list[dict[str, Any]], expected: list[adv.Hit]) -> None:
    assert [hit["id"] for hit in hits] == [hit.id for hit in expected]
    for hit, wanted in zip(hits, expected, strict=True):
        assert hit["text"] == wanted.text
        assert tuple(hit["passages"]) == wanted.passages
        assert (hit["metadata"], hit["source"]["row"]) == (wanted.metadata, wanted.source.row)
        assert hit["score"] == pytest.approx(wanted.score, abs=1e-4)
        assert hit["similarity"] == pytest.approx(wanted.similarity, abs=1e-5)


class TestSearch:
    @pytest.mark.parametrize("where", [None, {"shelf": 1}, {"shelf": {"lt": 2}}, {"shelf": 7}], ids=str)
    @pytest.mark.parametrize("expand", [0, 1, 3, 100])
    @pytest.mark.parametrize("hybrid", [False, True])
    @pytest.mark.parametrize("retrieval", ["dense", "colbert"])
    def test_finds_what_the_library_finds(
        self, server: Server, library: adv.Library, retrieval: Any, hybrid: bool, expand: int, where: Any
    ) -> None:
        how: dict[str, Any] = {"retrieval": retrieval, "hybrid": hybrid, "expand": expand, "where": where}
        for question in QUESTIONS:
            for k in (1, 20):
                check(search(server, question, k, **how), library.search(question, k, **how))

    def test_hits_that_meet_are_one(self, server: Server) -> None:
        plain, wide = (search(server, "a rope in the cave", 30, expand=expand) for expand in (0, 2))
        assert len(wide) < len(plain)
        assert {len(hit["passages"]) for hit in plain} == {1}
        assert max(len(hit["passages"]) for hit in wide) > 5

    @pytest.mark.parametrize(
        "how",
        [
            {"expand": -1},
            {"expand": 101},
            {"expand": 1.5},
            {"expand": "1"},
            {"retrieval": "sparse"},
            {"retrieval": "Colbert"},
            {"retrieval": True},
        ],
        ids=str,
    )
    def test_what_is_refused(self, server: Server, how: dict[str, Any]) -> None:
        reply = server.post("/v1/search", {"query": "a rope", **how})
        assert (reply.status, reply.json()["error"]["type"]) == (400, "invalid_request_error")
        chat = {"model": "default", "messages": [{"role": "user", "content": "a rope"}], "retrieval": how}
        assert server.post("/v1/chat/completions", chat).status == 400

    def test_info(self, server: Server) -> None:
        told = server.get("/info").json()["library"]
        assert (told["retrieval"], told["expand"], told["colbert"]) == ("dense", 0, "tiny")


def test_of_equals_the_lower_ids_come(tmp_path: Path, minilm: adv.Embedder) -> None:
    names = [f"r{n * 7919 % 90:02}" for n in range(90)]
    texts = pa.table({"id": ["z", *names], "text": ["a red rope", *["a red lamp"] * 90]})
    library = synced(tmp_path, minilm, None, texts)
    with Server("--library", library.path, *NOTHING) as server:
        lamps = [f"r{n:02}#0" for n in range(4)]
        for question, expected in (("a red lamp", lamps), ("a red rope", ["z#0", *lamps[:3]])):
            hits = search(server, question, 4)
            check(hits, library.search(question, 4))
            assert [hit["id"] for hit in hits] == expected


class TestChat:
    @pytest.mark.parametrize(
        "how", [{"expand": 1}, {"retrieval": "colbert"}, {"retrieval": "colbert", "expand": 2}], ids=str
    )
    def test_the_answer_is_that_of_the_library(
        self, server: Server, library: adv.Library, smollm2: adv.Generator, how: dict[str, Any]
    ) -> None:
        chat = adv.Chat(library, smollm2, k=2, max_tokens=8, min_similarity=0.0, **how)
        for question in QUESTIONS[:2]:
            chat.reset()
            expected = chat.ask(question)
            text = expected.text()
            messages = [{"role": "user", "content": question}]
            retrieval = {"k": 2, "min_similarity": 0.0, **how}
            body = {"model": "default", "messages": messages, "retrieval": retrieval}
            told = server.post("/v1/chat/completions", body).json()
            assert told["choices"][0]["message"]["content"] == text
            check(told["sources"], expected.sources)


class TestSettings:
    def test_by_flag_variable_and_file(self, library: adv.Library, tmp_path: Path) -> None:
        expected = library.search(QUESTIONS[0], 3, retrieval="colbert", expand=1)
        config = tmp_path / "config.toml"
        config.write_text('retrieval = "colbert"\nexpand = 1\ngenerator = "none"\n')
        variables = {"ADVENTURES_RETRIEVAL": "colbert", "ADVENTURES_EXPAND": "1", "ADVENTURES_GENERATOR": "none"}
        for arguments, env in (
            (["--retrieval", "colbert", "--expand", "1", *NOTHING], {}),
            ([], variables),
            (["--config", config], {}),
        ):
            with Server("--library", library.path, *arguments, env=env) as server:
                check(search(server, QUESTIONS[0], 3), expected)
                plain = search(server, QUESTIONS[0], 3, retrieval="dense", expand=0)
                check(plain, library.search(QUESTIONS[0], 3))
                told = server.get("/info").json()["library"]
                assert (told["retrieval"], told["expand"]) == ("colbert", 1)

    def test_one_model_for_library_and_indexes(self, library: adv.Library, model: Path, tmp_path: Path) -> None:
        arguments = ["--indexes", tmp_path / "indexes", "--colbert", model]
        with Server("--library", library.path, *arguments, *NOTHING) as server:
            told = server.get("/info").json()
            assert (told["colbert"], told["library"]["colbert"]) == ("tiny", "tiny")
            check(search(server, "boots", retrieval="colbert"), library.search("boots", 7, retrieval="colbert"))

    def test_a_model_for_the_library_and_another_for_indexes(self, library: adv.Library, tmp_path: Path) -> None:
        other = tiny_colbert.colbert(tmp_path / "other", "pylate")
        arguments = ["--indexes", tmp_path / "indexes", "--colbert", other]
        with Server("--library", library.path, *arguments, *NOTHING) as server:
            told = server.get("/info").json()
            assert (told["colbert"], told["library"]["colbert"]) == ("other", "tiny")
            check(search(server, "boots", retrieval="colbert"), library.search("boots", 7, retrieval="colbert"))


class TestTokenVectors:
    def test_each_version_has_its_own(self, tmp_path: Path, minilm: adv.Embedder, model: Path) -> None:
        colbert = adv.ColBERT(model)
        library = synced(tmp_path, minilm, colbert, table(3))
        with Server("--library", library.path, *NOTHING) as server:
            for start in (0, 1, 2, 3):
                if start:
                    synced(tmp_path, minilm, colbert, table(3, start), keep=1)
                wanted = library.search("a rope", 7, retrieval="colbert")
                end = time.monotonic() + 20
                while server.get("/info").json()["library"]["delta_version"] != wanted[0].source.version:
                    assert time.monotonic() < end
                    time.sleep(0.05)
                check(search(server, "a rope", retrieval="colbert"), wanted)
            assert len(list((Path(library.path) / "passages.colbert").iterdir())) == 1

    def test_a_library_without(self, tmp_path: Path, minilm: adv.Embedder, model: Path) -> None:
        library = synced(tmp_path, minilm, None, table(2))
        for arguments in ([], ["--colbert", model]):
            with Server("--library", library.path, *arguments, *NOTHING) as server:
                reply = server.post("/v1/search", {"query": "a rope", "retrieval": "colbert"})
                assert reply.status == 400
                assert "the library has no token vectors" in reply.json()["error"]["message"]
                assert search(server, "a rope")
                assert server.get("/info").json()["library"]["colbert"] is None
        with Server("--library", library.path, "--retrieval", "colbert", *NOTHING, ready=False) as server:
            assert server.process.wait(30) != 0
            assert "has no token vectors" in "".join(server.log)

    def test_a_model_that_is_gone(self, tmp_path: Path, minilm: adv.Embedder, model: Path) -> None:
        moved = tmp_path / "elsewhere" / "tiny"
        shutil.copytree(model, tmp_path / "tiny")
        library = synced(tmp_path, minilm, adv.ColBERT(tmp_path / "tiny"), table(2))
        wanted = library.search("a rope", 7, retrieval="colbert")
        moved.parent.mkdir()
        (tmp_path / "tiny").rename(moved)
        with Server("--library", library.path, *NOTHING) as server:
            reply = server.post("/v1/search", {"query": "a rope", "retrieval": "colbert"})
            assert (reply.status, "--colbert" in reply.json()["error"]["message"]) == (400, True)
            assert search(server, "a rope")
            assert any("--colbert" in line and '"WARN"' in line for line in server.log)
        with Server("--library", library.path, "--colbert", moved, *NOTHING) as server:
            check(search(server, "a rope", retrieval="colbert"), wanted)
        with Server("--library", library.path, "--retrieval", "colbert", *NOTHING, ready=False) as server:
            assert server.process.wait(30) != 0

    def test_another_model_is_refused(self, tmp_path: Path, library: adv.Library) -> None:
        other = tiny_colbert.colbert(tmp_path / "other", "pylate")
        with Server("--library", library.path, "--colbert", other, *NOTHING, ready=False) as server:
            assert server.process.wait(30) != 0
            assert "token vectors were made by tiny" in "".join(server.log)

    def test_that_they_are_damaged_is_the_service_s_fault(
        self, tmp_path: Path, minilm: adv.Embedder, model: Path
    ) -> None:
        library = synced(tmp_path, minilm, adv.ColBERT(model), table(2))
        (manifest,) = (Path(library.path) / "passages.colbert").glob("*/manifest.json")
        manifest.write_text("{}")
        with Server("--library", library.path, *NOTHING) as server:
            reply = server.post("/v1/search", {"query": "a rope", "retrieval": "colbert"})
            error = reply.json()["error"]
            assert (reply.status, error["type"]) == (500, "server_error")
            assert error["message"].startswith("the library's token vectors cannot be read: the next sync")
            assert "/" not in error["message"]
            assert any(json.loads(line).get("folder") == str(manifest.parent) for line in server.log)
            assert search(server, "a rope")
