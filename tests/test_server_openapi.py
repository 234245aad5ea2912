"""The service against its own description: requests made from it, thousands of them."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

import adventures as adv
import tiny_colbert
from serving import Server

if TYPE_CHECKING:
    from collections.abc import Iterator

# For each route; 5,000 with SERVER_FUZZ=full.
FULL = os.environ.get("SERVER_FUZZ") == "full"
EXAMPLES = 5_000 if FULL else 60
MODELS = ["default", "smollm2-135m-instruct", "all-minilm-l6-v2"]


INDEXES = ["shop", "x", "none"]


@pytest.fixture(scope="module")
def server(stock: adv.Library, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    path = tmp_path_factory.mktemp("indexes")
    colbert = tiny_colbert.colbert(path / "model", "stanford")
    adv.ColbertIndex.create(path / "root" / "shop", ["a rope", "a dragon"], ids=["1", "2"], model=adv.ColBERT(colbert))
    indexes = ["--indexes", path / "root", "--colbert", colbert]
    with Server("--library", stock.path, *indexes, "--max-tokens", "2", "--queue", "1000") as server:
        yield server


@pytest.mark.timeout(8 * 3600 if FULL else 300)
def test_no_request_breaks_the_service(server: Server) -> None:
    described = server.get("/openapi.json").json() | {"servers": [{"url": server.url}]}
    operations = [found.ok() for found in schemathesis.openapi.from_dict(described).get_all_operations()]
    assert len(operations) == 27
    for operation in operations:
        seen = Counter[int]()

        @given(case=operation.as_strategy())
        @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
        def check(case: schemathesis.Case) -> None:
            if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
                # Most would fail on the name of the model alone.
                case.body["model"] = MODELS[len(case.body["model"]) % 3]
            for place in (case.body, case.path_parameters, case.query):
                if isinstance(place, dict) and isinstance(place.get("index_name"), str):
                    # The one that there is stays.
                    known = INDEXES[operation.method == "delete" :]  # noqa: B023
                    place["index_name"] = known[len(place["index_name"]) % len(known)]
            response = case.call(base_url=server.url, timeout=60)
            seen[response.status_code] += 1  # noqa: B023 (it is called before the next round)
            assert response.status_code in {200, 202, 400, 404, 409, 413, 415, 429}, response.text
            if response.status_code >= 400:
                assert response.json()["error"]["message"]

        check()
        print(operation.label, dict(seen))


def test_it_is_still_there(server: Server) -> None:
    assert server.get("/ready").status == 200
    assert server.process.poll() is None
