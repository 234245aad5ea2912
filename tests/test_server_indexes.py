"""The service's ColBERT indexes: made, filled and searched by clients."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import adventures as adv
import tiny_colbert
from serving import Reply, Server

if TYPE_CHECKING:
    from collections.abc import Iterator

WORDS = ["dragon", "rope", "night", "potion", "ice", "cave", "map"]
# 10,000 with SERVER_FUZZ=full.
FULL = os.environ.get("SERVER_FUZZ") == "full"
NAMES = 10_000 if FULL else 200


def texts(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, 5)) for _ in range(count)]


def documents(count: int, first: int = 0, seed: int = 0) -> list[dict[str, Any]]:
    return [
        {"id": f"d{i}", "text": text, "metadata": {"n": i, "of": ["a", None, 1.5]}}
        for i, text in enumerate(texts(count, seed), first)
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_colbert.colbert(tmp_path_factory.mktemp("colbert") / "model", "stanford")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served") / "indexes"


def serve(root: Path, model: Path, **more: Any) -> Server:
    return Server("--indexes", root, "--colbert", model, "--generator", "none", **more)


@pytest.fixture(scope="module")
def server(root: Path, model: Path) -> Iterator[Server]:
    with serve(root, model) as server:
        yield server


def ended(server: Server, accepted: Reply) -> dict[str, Any]:
    """The job, once it has ended."""
    assert accepted.status == 202, accepted.body
    end = time.monotonic() + 60
    while (job := server.get(f"/jobs/{accepted.json()['job']['id']}").json())["status"] in {"waiting", "running"}:
        assert time.monotonic() < end, job
        time.sleep(0.01)
    return dict(job)


def done(server: Server, accepted: Reply) -> dict[str, Any]:
    job = ended(server, accepted)
    assert job["status"] == "done", job
    return job


def create(server: Server, name: str, some: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return done(server, server.post("/create_index", {"index_name": name, "documents": some, **more}))


def query(server: Server, name: str, text: str, **more: Any) -> list[dict[str, Any]]:
    reply = server.post(f"/query?index_name={name}", {"text": text, **more})
    assert reply.status == 200, reply.body
    return list(reply.json()["answer"])


class TestIndex:
    def test_made_and_searched(self, server: Server, root: Path, model: Path) -> None:
        some = documents(40)
        accepted = server.post("/create_index", {"index_name": "shop", "documents": some})
        body = accepted.json()
        assert (accepted.status, body["documents"]) == (202, 40)
        assert Path(body["index_path"]) == root.resolve() / "shop"
        assert body["job"]["id"] in body["message"]
        job = done(server, accepted)
        assert (job["kind"], job["documents"], job["done"], job["truncated"]) == ("create", 40, 40, [])
        # What Python finds in the same files.
        index = adv.ColbertIndex.open(root / "shop", adv.ColBERT(model))
        for text in texts(5, seed=9):
            found = query(server, "shop", text, k=7)
            wanted = index.search(text, 7)
            assert [hit["document_id"] for hit in found] == [hit.id for hit in wanted]
            assert [hit["rank"] for hit in found] == list(range(1, 8))
            for hit, want in zip(found, wanted, strict=True):
                assert list(hit) == ["content", "score", "rank", "document_id", "metadata"]
                assert (hit["content"], hit["metadata"]) == (want.text, want.metadata)
                assert hit["score"] == pytest.approx(want.score, abs=1e-4)
        assert len(query(server, "shop", "a dragon")) == 10
        some_of_them = [hit["document_id"] for hit in query(server, "shop", "a dragon", k=5)][1::2]
        found = query(server, "shop", "a dragon", document_ids=some_of_them)
        assert [hit["document_id"] for hit in found] == some_of_them

    def test_listed_and_described(self, server: Server, model: Path) -> None:
        create(server, "listed", documents(5), nbits=2)
        listed = server.get("/indexes").json()
        assert (listed["model"], listed["broken"]) == (model.name, {})
        assert listed["max_tokens"] == adv.ColBERT(model).doc_maxlen
        described = server.get("/indexes/listed").json()
        assert described in listed["indexes"]
        assert (described["index_name"], described["documents"], described["nbits"]) == ("listed", 5, 2)
        assert described["dim"] == tiny_colbert.DIM

    def test_changed(self, server: Server) -> None:
        create(server, "changed", documents(10))
        done(server, server.post("/indexes/changed/documents", {"documents": documents(5, first=10, seed=1)}))
        assert server.get("/indexes/changed").json()["documents"] == 15
        new = {"id": "d3", "text": "a lantern and a map"}
        done(server, server.post("/indexes/changed/documents", {"documents": [new], "upsert": True}))
        hit = query(server, "changed", "a lantern and a map", k=1)[0]
        assert (hit["document_id"], hit["content"], hit["metadata"]) == ("d3", "a lantern and a map", None)
        done(server, server.post("/indexes/changed/delete", {"document_ids": ["d3", "d4"]}))
        assert server.get("/indexes/changed").json()["documents"] == 13
        found = query(server, "changed", "a lantern and a map", k=100)
        assert len(found) == 13
        assert not {"d3", "d4"} & {hit["document_id"] for hit in found}

    def test_deleted(self, server: Server, root: Path) -> None:
        create(server, "gone", documents(3))
        done(server, server.call("DELETE", "/indexes/gone"))
        assert server.get("/indexes/gone").status == 404
        assert server.post("/query?index_name=gone", {"text": "a"}).status == 404
        assert not (root / "gone").exists()
        create(server, "gone", documents(2))
        assert server.get("/indexes/gone").json()["documents"] == 2
        assert sorted(path.name for path in root.iterdir() if path.name.startswith(".")) == []

    def test_what_was_cut_is_told(self, server: Server) -> None:
        some = [{"id": "short", "text": "a rope"}, {"id": "long", "text": "a rope " * 200}]
        assert create(server, "cut", some)["truncated"] == ["long"]
        reply = server.post("/query?index_name=cut", {"text": "a rope " * 20}).json()
        assert reply["truncated"] is True
        assert server.post("/query?index_name=cut", {"text": "a rope"}).json()["truncated"] is False

    def test_other_processes_change_it(self, server: Server, root: Path, model: Path) -> None:
        create(server, "shared", documents(5))
        index = adv.ColbertIndex.open(root / "shared", adv.ColBERT(model))
        index.add(["a troll by the river"], ids=["new"])
        assert query(server, "shared", "a troll by the river", k=1)[0]["document_id"] == "new"
        done(server, server.post("/indexes/shared/delete", {"document_ids": ["new"]}))
        assert index.refresh()
        assert "new" not in index
        adv.ColbertIndex.create(root / "theirs", ["a cave"], ids=["c"], model=adv.ColBERT(model))
        assert query(server, "theirs", "a cave")[0]["document_id"] == "c"

    def test_none_of_no_documents(self, server: Server) -> None:
        create(server, "empty", [])
        assert query(server, "empty", "a rope") == []
        done(server, server.post("/indexes/empty/documents", {"documents": documents(1)}))
        assert len(query(server, "empty", "a rope")) == 1


class TestProblems:
    @pytest.mark.parametrize(
        ("path", "body", "status", "says"),
        [
            ("/create_index", {"index_name": "x"}, 400, "documents"),
            ("/create_index", {"index_name": "x", "documents": [{"id": "a"}]}, 400, "text"),
            ("/create_index", {"index_name": "x", "documents": [{"id": "", "text": "a"}]}, 400, "documents[0].id"),
            ("/create_index", {"index_name": "x", "documents": [{"id": "a" * 1025, "text": "a"}]}, 400, "1025 bytes"),
            ("/create_index", {"index_name": "x", "documents": [{"id": "a", "text": " "}]}, 400, "text is empty"),
            (
                "/create_index",
                {"index_name": "x", "documents": [{"id": "a", "text": "a"}] * 2},
                400,
                "'a' is given twice",
            ),
            (
                "/create_index",
                {"index_name": "x", "documents": [], "nbits": 3},
                400,
                "nbits must be 1, 2, 4 or 32, not 3",
            ),
            ("/create_index", {"index_name": "x", "documents": [], "colour": 3}, 400, "colour"),
            (
                "/create_index",
                {"index_name": "x", "documents": [{"id": "a", "text": "a", "metadata": [1]}]},
                400,
                "expected a map",
            ),
            ("/create_index", {"index_name": "kept", "documents": []}, 409, "'kept' already"),
            ("/query", {"text": "a"}, 400, "index_name"),
            ("/query?index_name=none", {"text": "a"}, 404, "there is no index 'none'"),
            ("/query?index_name=kept", {"text": " "}, 400, "text is empty"),
            ("/query?index_name=kept", {"text": "a", "k": 0}, 400, "k must be from 1 to 100, not 0"),
            ("/query?index_name=kept", {"text": "a", "k": 101}, 400, "not 101"),
            ("/query?index_name=kept", {"text": "a" * 100_000}, 400, "100000 bytes"),
            ("/query?index_name=kept", {"text": "a", "document_ids": ["other"]}, 400, "id 'other' is not in the index"),
            ("/query?index_name=kept&k=3", {"text": "a"}, 400, "k"),
            ("/indexes/none/documents", {"documents": [{"id": "a", "text": "a"}]}, 404, "no index 'none'"),
            ("/indexes/kept/documents", {"documents": []}, 400, "documents is empty"),
            ("/indexes/kept/delete", {"document_ids": []}, 400, "document_ids is empty"),
            ("/indexes/none/delete", {"document_ids": ["a"]}, 404, "no index 'none'"),
        ],
    )
    def test_named(self, server: Server, path: str, body: object, status: int, says: str) -> None:
        if server.get("/indexes/kept").status == 404:
            create(server, "kept", documents(2))
        reply = server.post(path, body)
        assert reply.status == status, reply.body
        assert says.replace("'", '"') in reply.json()["error"]["message"].replace("'", '"')
        assert server.get("/indexes/x").status == 404

    def test_jobs_that_fail_change_nothing(self, server: Server) -> None:
        create(server, "whole", documents(4))
        twice = server.post("/indexes/whole/documents", {"documents": documents(6)})
        job = ended(server, twice)
        assert job["status"] == "failed"
        assert '"d0" is in the index already' in job["error"]
        missing = ended(server, server.post("/indexes/whole/delete", {"document_ids": ["d1", "other"]}))
        assert missing["status"] == "failed"
        assert '"other" is not in the index' in missing["error"]
        assert server.get("/indexes/whole").json()["documents"] == 4

    def test_another_writer(self, server: Server, root: Path, model: Path) -> None:
        create(server, "locked", documents(2))
        index = adv.ColbertIndex.open(root / "locked", adv.ColBERT(model))
        held = index._index.writer()
        try:
            job = ended(server, server.post("/indexes/locked/delete", {"document_ids": ["d1"]}))
            assert job["status"] == "failed"
            assert "writ" in job["error"]
        finally:
            held.abandon()
        done(server, server.post("/indexes/locked/delete", {"document_ids": ["d1"]}))

    @pytest.mark.parametrize(
        ("what", "opened"),
        [
            ("manifest", True),
            ("checksum", True),
            ("manifest", False),
            ("checksum", False),
            # What is open is read from memory.
            ("cut", False),
            ("gone", False),
        ],
    )
    def test_that_an_index_is_broken_is_the_service_s_fault(
        self, server: Server, root: Path, model: Path, what: str, opened: bool
    ) -> None:
        name = f"broken-{what}-{opened}".lower()
        if opened:
            create(server, name, documents(2))
        else:
            made = [(document["id"], document["text"]) for document in documents(2)]
            ids, written = zip(*made, strict=True)
            adv.ColbertIndex.create(root / name, list(written), ids=list(ids), model=adv.ColBERT(model))
        manifest = root / name / "manifest.json"
        segment = next(file for file in (root / name).iterdir() if file.name.startswith("segment"))
        if what in ("manifest", "checksum"):
            manifest.write_text("{}" if what == "manifest" else manifest.read_text().replace("dim", "dum"))
        elif what == "cut":
            segment.write_bytes(segment.read_bytes()[:-1])
        else:
            segment.unlink()
        try:
            message = f'the index "{name}" cannot be read: its files are not as they were written'
            assert server.get("/indexes").json()["broken"][name].startswith(message)
            for reply in (server.get(f"/indexes/{name}"), server.post(f"/query?index_name={name}", {"text": "a"})):
                error = reply.json()["error"]
                assert (reply.status, error["type"], error["code"]) == (500, "server_error", "internal_error")
                assert error["message"].startswith(message)
                assert str(root) not in error["message"]
            job = ended(server, server.post(f"/indexes/{name}/delete", {"document_ids": ["d1"]}))
            assert (job["status"], str(root) in job["error"]) == ("failed", False)
            assert any(str(root) in line for line in server.log if "cannot be read" in line)
            assert server.get("/ready").status == 200
        finally:
            shutil.rmtree(root / name)
        assert server.get(f"/indexes/{name}").status == 404

    def test_another_model_is_refused(self, server: Server, root: Path, model: Path, tmp_path: Path) -> None:
        create(server, "ours", documents(2))
        made = adv.ColbertIndex.open(root / "ours", adv.ColBERT(model)).info()["model"]
        assert made is not None
        assert json.loads(made)["name"].rpartition("/")[2] == model.name
        assert json.loads(made)["doc_maxlen"] == adv.ColBERT(model).doc_maxlen
        other = tiny_colbert.colbert(tmp_path / "another", "pylate")
        adv.ColbertIndex.create(root / "of-another", ["a rope"], model=adv.ColBERT(other))
        reply = server.post("/query?index_name=of-another", {"text": "a rope"})
        assert reply.status == 400
        assert "another" in reply.json()["error"]["message"]

    def test_links_lead_nowhere(self, server: Server, root: Path, tmp_path: Path, model: Path) -> None:
        adv.ColbertIndex.create(tmp_path / "secret", ["a secret"], model=adv.ColBERT(model))
        (root / "link").symlink_to(tmp_path / "secret")
        try:
            assert server.post("/query?index_name=link", {"text": "a"}).status == 404
            assert "link" not in [index["index_name"] for index in server.get("/indexes").json()["indexes"]]
        finally:
            (root / "link").unlink()

    def test_counted_and_named(self, server: Server, model: Path) -> None:
        assert server.get("/info").json()["colbert"] == model.name
        assert server.metric("index_jobs") == 0

    def test_no_job(self, server: Server) -> None:
        assert server.get("/jobs/none").status == 404

    def test_without_a_folder(self, tmp_path: Path) -> None:
        with Server("--generator", "none") as plain:
            for method, path in [
                ("GET", "/indexes"),
                ("GET", "/jobs"),
                ("GET", "/indexes/a"),
                ("DELETE", "/indexes/a"),
            ]:
                reply = plain.call(method, path)
                assert (reply.status, "--indexes" in reply.json()["error"]["message"]) == (404, True)
            assert plain.post("/create_index", {"index_name": "a", "documents": []}).status == 404


def tree(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if ".part" not in path.name)


PARTS = ["..", ".", "/", "\\", "a", "Z", "0", "-", "_", "~", "%2e", "%00", "\n", " ", "é", ":", "con", "nul", "∕"]
HOSTILE = st.lists(st.sampled_from(PARTS), max_size=6).map("".join) | st.text(max_size=80)


@pytest.mark.timeout(7200 if FULL else 300)
def test_no_name_leads_out_of_the_folder(server: Server, root: Path) -> None:
    outside = root.parent
    before = [path for path in tree(outside) if not path.startswith("indexes/")]
    seen: set[int] = set()

    @given(name=HOSTILE.filter(lambda name: name not in {"a", "0"}))
    @settings(max_examples=NAMES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def check(name: str) -> None:
        reply = server.post("/create_index", {"index_name": name, "documents": []})
        seen.add(reply.status)
        assert reply.status in {202, 400, 409, 429}, reply.body
        if reply.status == 202:
            job = done(server, reply)
            assert (root / job["index_name"]).is_dir()
            assert (root / job["index_name"]).resolve().parent == root.resolve()
            done(server, server.call("DELETE", f"/indexes/{job['index_name']}"))

    check()
    assert {202, 400} <= seen
    assert [path for path in tree(outside) if not path.startswith("indexes/")] == before


class TestTogether:
    def test_changes_of_an_index_are_made_in_turn(self, server: Server) -> None:
        for name in ("one", "two"):
            create(server, name, [])

        def add(i: int) -> dict[str, Any]:
            name = "one" if i % 2 else "two"
            return ended(server, server.post(f"/indexes/{name}/documents", {"documents": documents(3, first=3 * i)}))

        with ThreadPoolExecutor(12) as threads:
            jobs = list(threads.map(add, range(24)))
        assert [job["status"] for job in jobs] == ["done"] * 24
        for name, mine in (("one", 1), ("two", 0)):
            found = {hit["document_id"] for hit in query(server, name, "a dragon", k=100)}
            assert found == {f"d{3 * i + j}" for i in range(24) if i % 2 == mine for j in range(3)}

    def test_what_is_asked_for_early_waits(self, server: Server) -> None:
        made = server.post("/create_index", {"index_name": "early", "documents": documents(200)})
        added = server.post("/indexes/early/documents", {"documents": documents(5, first=200)})
        again = server.post("/create_index", {"index_name": "early", "documents": []})
        dropped = server.call("DELETE", "/indexes/early")
        late = server.post("/indexes/early/documents", {"documents": documents(5)})
        assert (again.status, late.status) == (409, 404)
        assert [done(server, accepted)["kind"] for accepted in (made, added, dropped)] == ["create", "add", "drop"]
        assert server.get("/indexes/early").status == 404

    @pytest.mark.alone
    def test_questions_are_answered_while_an_index_is_made(self, server: Server) -> None:
        create(server, "asked", documents(20))
        made = server.post("/create_index", {"index_name": "large", "documents": documents(4_000)})
        took = []
        while server.get(f"/jobs/{made.json()['job']['id']}").json()["status"] in {"waiting", "running"}:
            began = time.perf_counter()
            assert len(query(server, "asked", "a dragon")) == 10
            took.append(time.perf_counter() - began)
        done(server, made)
        assert len(took) >= 3
        assert float(np.median(took)) < 1.0

    def test_more_than_may_wait_come_back_later(self, server: Server) -> None:
        create(server, "busy", [])
        first = server.post("/create_index", {"index_name": "first", "documents": documents(3_000)})
        replies = [
            server.post("/indexes/first/documents", {"documents": documents(1, first=5_000 + i)}) for i in range(80)
        ]
        refused = [reply for reply in replies if reply.status == 429]
        assert refused
        assert all(int(reply.headers["Retry-After"]) >= 1 for reply in refused)
        done(server, first)
        for reply in replies:
            if reply.status == 202:
                done(server, reply)
        accepted = sum(reply.status == 202 for reply in replies)
        assert server.get("/indexes/first").json()["documents"] == 3_000 + accepted


class TestEnd:
    def test_running_changes_may_end(self, tmp_path: Path, model: Path) -> None:
        with serve(tmp_path / "i", model) as server:
            server.post("/create_index", {"index_name": "made", "documents": documents(300)})
            assert server.stop(signal.SIGTERM) == 0
        with serve(tmp_path / "i", model) as server:
            assert server.get("/indexes/made").json()["documents"] == 300

    @pytest.mark.alone
    @pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
    def test_cut_changes_leave_the_last_commit(self, tmp_path: Path, model: Path, how: signal.Signals) -> None:
        with serve(tmp_path / "i", model, env={"ADVENTURES_GRACE": "1"}) as server:
            create(server, "kept", documents(10))
            big = documents(20_000, first=100)
            adding = server.post("/indexes/kept/documents", {"documents": big})
            making = server.post("/create_index", {"index_name": "cut", "documents": big})
            assert (adding.status, making.status) == (202, 202)
            time.sleep(0.3)
            began = time.monotonic()
            assert server.stop(how) == (0 if how is signal.SIGTERM else -9)
            assert time.monotonic() - began < 6
        with serve(tmp_path / "i", model) as server:
            assert server.get("/indexes/kept").json()["documents"] in {10, 20_010}
            done(server, server.post("/indexes/kept/documents", {"documents": documents(1, first=50_000)}))
            if server.get("/indexes/cut").status == 404:
                create(server, "cut", documents(3))
            assert len(query(server, "cut", "a rope", k=3)) == 3


def test_readers_of_a_changing_index_see_whole_commits(server: Server) -> None:
    # Each commit replaces all five: an answer of two generations would be half of one.
    create(server, "versions", [{"id": str(i), "text": "a rope", "metadata": {"v": 0}} for i in range(5)])
    halt = threading.Event()
    torn: list[set[int]] = []

    def read() -> None:
        while not halt.is_set():
            versions = {hit["metadata"]["v"] for hit in query(server, "versions", "a rope")}
            if len(versions) != 1:
                torn.append(versions)

    with ThreadPoolExecutor(4) as threads:
        readers = [threads.submit(read) for _ in range(4)]
        try:
            for v in range(1, 21):
                some = [{"id": str(i), "text": "a rope", "metadata": {"v": v}} for i in range(5)]
                done(server, server.post("/indexes/versions/documents", {"documents": some, "upsert": True}))
        finally:
            halt.set()
        for reader in readers:
            reader.result()
    assert torn == []
