"""Replicas of the service over one library: each follows what is published, and no request is lost on the way."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from deltalake import write_deltalake

import adventures as adv
from object_store import Place
from serving import Server

if TYPE_CHECKING:
    from pathlib import Path


def rows(version: int) -> pa.Table:
    return pa.table({"id": range(200), "text": [f"Edition {version} of lantern number {n}" for n in range(200)]})


@pytest.fixture(params=["a folder", "an object store"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return request.getfixturevalue("bucket") if request.param == "an object store" else Place(str(tmp_path))


def test_both_follow_and_nothing_is_dropped(tmp_path: Path, place: Place, minilm: adv.Embedder) -> None:
    write_deltalake(tmp_path / "d", rows(0))
    library = adv.Library.open(f"{place.uri}/l", embedder=minilm, storage_options=place.options)
    library.sync(tmp_path / "d", id="id", text="{text}")
    with (
        Server("--library", library.path, *place.flags) as one,
        Server("--library", library.path, env=place.variables) as other,
    ):
        replicas = (one, other)
        answers: list[tuple[int, int, Any]] = []
        done = threading.Event()

        def ask(first: int) -> None:
            # What a balancer does that knows nothing: the next request goes to the next replica.
            number = first
            while not done.is_set():
                number += 1
                at = number % 2
                reply = replicas[at].post("/v1/search", {"query": "a lantern", "k": 4})
                answers.append((at, reply.status, reply.json()))

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        try:
            write_deltalake(tmp_path / "d", rows(1), mode="overwrite")
            report = library.sync(tmp_path / "d", id="id", text="{text}")
            assert report.updated == 200
            published = time.monotonic()
            while {newest(answers, at) for at in (0, 1)} != {1}:
                assert time.monotonic() - published < 60, "a replica does not follow"
                time.sleep(0.05)
        finally:
            done.set()
            for thread in threads:
                thread.join()
    assert {status for _, status, _ in answers} == {200}
    for at in (0, 1):
        seen = [versions(answer) for replica, _, answer in answers if replica == at]
        # One answer is of one version, and says so.
        assert all(len(of_texts) == 1 and of_texts == of_sources for of_texts, of_sources in seen)
        assert {min(of_texts) for of_texts, _ in seen} == {0, 1}


def versions(answer: Any) -> tuple[set[int], set[int]]:
    hits = answer["hits"]
    return {int(hit["text"].split()[1]) for hit in hits}, {hit["source"]["version"] for hit in hits}


def newest(answers: list[tuple[int, int, Any]], at: int) -> int:
    of_replica = [answer for replica, _, answer in list(answers) if replica == at]
    return max(versions(of_replica[-1])[0]) if of_replica else -1
