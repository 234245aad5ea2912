"""Mixed requests to a running service, for a while: does it grow?

    python tools/soak.py --seconds 3600

Prints a line a minute and fails where memory grows by more than 1 MiB an hour after the first ten minutes, where a
response is 5xx, or where files or threads are left over. Clients leave in the middle (10 %) and send nonsense (5 %).
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import numpy as np

import adventures as adv
import load
from adventures import demo
from serving import Server

if TYPE_CHECKING:
    from collections.abc import Sequence

CLIENTS = 6
MIB = 1 << 20


def a_request(chance: random.Random) -> tuple[bytes, str]:
    """Returns a request of a mix like that of a team, and what becomes of it."""
    question = chance.choice(demo.questions()).question
    kind = chance.random()
    fate = chance.choices(("read", "leave", "nonsense"), (85, 10, 5))[0]
    if fate == "nonsense":
        return load.request(
            "/v1/chat/completions", {"model": "default", "messages": chance.choice(["", 1, None])}
        ), fate
    if kind < 0.5:
        body = {
            "model": "default",
            "messages": [{"role": "user", "content": question}],
            "stream": chance.random() < 0.8,
        }
        return load.request("/v1/chat/completions", {**body, "max_tokens": chance.randint(1, 60)}), fate
    if kind < 0.7:
        return load.request("/v1/search", {"query": question, "k": 5, "hybrid": chance.random() < 0.5}), fate
    if kind < 0.9:
        texts = [row.text for row in chance.sample(demo.rows(), chance.randint(1, 16))]
        return load.request("/v1/embeddings", {"model": "default", "input": texts}), fate
    return load.request("/v1/completions", {"model": "default", "prompt": question, "max_tokens": 12}), fate


async def client(server: Server, chance: random.Random, end: float, seen: dict[int, int]) -> None:
    while time.monotonic() < end:
        data, fate = a_request(chance)
        if fate == "leave":
            how = chance.choice(("close", "half", "reset"))
            await load.leave(server.address, data, after=chance.uniform(0, 0.5), how=how)
        else:
            outcome = await load.read(server.address, data)
            seen[outcome.status] = seen.get(outcome.status, 0) + 1


def descriptors(server: Server) -> tuple[int, int]:
    """How many files are open, and how many threads there are."""
    process = Path(f"/proc/{server.process.pid}")
    return len(list((process / "fd").iterdir())), len(list((process / "task").iterdir()))


async def soak(server: Server, seconds: float, seed: int) -> tuple[dict[int, int], list[tuple[float, int]]]:
    """Returns how many responses had which status, and how much memory was in use when."""
    chance, begun = random.Random(seed), time.monotonic()
    seen: dict[int, int] = {}
    clients = [
        asyncio.create_task(client(server, random.Random(chance.random()), begun + seconds, seen))
        for _ in range(CLIENTS)
    ]
    memory: list[tuple[float, int]] = []
    while not all(task.done() for task in clients):
        await asyncio.sleep(min(10, seconds / 12))
        memory.append((time.monotonic() - begun, server.memory()))
        if len(memory) % 6 == 0:
            print(
                f"{memory[-1][0]:6.0f} s  {memory[-1][1] / MIB:7.1f} MiB  {sum(seen.values()):7,} responses", flush=True
            )
    await asyncio.gather(*clients)
    return seen, memory


def slope(memory: Sequence[tuple[float, int]], after: float) -> float:
    """Returns by how many bytes an hour memory grew, by a line through what was measured `after` so many seconds."""
    late = [point for point in memory if point[0] >= after]
    times, sizes = np.array(late).T
    return float(np.polyfit(times, sizes, 1)[0] * 3600)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    print(f"seed {options.seed}")
    with tempfile.TemporaryDirectory() as folder:
        demo.write_table(f"{folder}/delta")
        library = adv.Library.open(f"{folder}/library", embedder=adv.Embedder("all-minilm-l6-v2"))
        library.sync(f"{folder}/delta", id="scenario", text=demo.TEXT, progress=False)
        with Server("--library", library.path, "--log", "warn,adventures_server::http::run=info") as server:
            seen, memory = asyncio.run(soak(server, options.seconds, options.seed))
            time.sleep(6)
            files, threads = descriptors(server)
            growth = slope(memory, min(600, options.seconds / 3))
            print(f"responses by status: {dict(sorted(seen.items()))}")
            print(f"memory grows by {growth / MIB:+.1f} MiB an hour; {files} files and {threads} threads at the end")
            problems = [status for status in seen if status >= 500 or status == 0]
            if options.seconds >= 3600 and growth > MIB:
                problems.append(-1)
            if server.stop() != 0 or problems:
                sys.exit(f"failed: {problems}")


if __name__ == "__main__":
    main()
