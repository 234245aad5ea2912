"""Times exact MaxSim against torch, turn by turn in one run (`make bench-maxsim`).

The documents are as many as those of NFCorpus, 3,633 of some 73 tokens, with random unit vectors of 96 numbers; queries
have 32 tokens and are scored one at a time. torch multiplies all tokens with the query and takes the largest of each
document by `segment_reduce`, or by `max` over documents padded to the same length: the faster of the two counts.

    python tools/bench_maxsim.py --theirs path/to/python-with-torch
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

DIM, QUERY, DOCUMENTS, TOKENS = 96, 32, 3633, 264_537

THEIRS = """
import json, sys, time
import numpy as np, torch
folder, threads = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(threads)
load = lambda name: torch.from_numpy(np.load(f"{folder}/{name}.npy"))
flat, offsets, queries = load("flat"), load("offsets"), load("queries")
lengths = offsets.diff()
padded = torch.nn.utils.rnn.pad_sequence(flat.split(lengths.tolist()), batch_first=True)
beyond = (torch.arange(padded.shape[1])[None] >= lengths[:, None])[..., None]

def ragged(q):
    return torch.segment_reduce(flat @ q.T, "max", lengths=lengths, unsafe=True).sum(1)

def whole(q):
    return (padded @ q.T).masked_fill_(beyond, -torch.inf).max(1).values.sum(1)

ways = {"segment_reduce": ragged, "padded": whole}
print("ready", flush=True)
for line in sys.stdin:
    way, count = line.split()
    with torch.no_grad():
        start = time.perf_counter()
        for q in queries[: int(count)]:
            scores = ways[way](q)
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "scores": scores.tolist()}), flush=True)
"""


def main() -> None:
    """Prints queries per second and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--theirs", required=True, help="an interpreter with torch")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--queries", type=int, default=20, help="queries in a turn")
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()

    import adventures as adv

    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    import tiny_colbert

    random = np.random.default_rng(0)
    lengths = random.gamma(6.0, size=DOCUMENTS)
    lengths = np.maximum(np.floor(lengths / lengths.sum() * TOKENS).astype(np.int64), 3)
    lengths[: TOKENS - lengths.sum()] += 1
    offsets = np.concatenate([[0], np.cumsum(lengths)])

    def unit(*shape: int) -> np.ndarray:
        rows = random.standard_normal((*shape, DIM), dtype=np.float32)
        return rows / np.linalg.norm(rows, axis=-1, keepdims=True)

    flat, queries = unit(int(offsets[-1])), unit(arguments.queries, QUERY)
    with tempfile.TemporaryDirectory() as folder:
        for name, value in (("flat", flat), ("offsets", offsets), ("queries", queries)):
            np.save(Path(folder) / f"{name}.npy", value)
        model = tiny_colbert.colbert(Path(folder) / "model", "stanford", dim=DIM)
        col = adv.ColBERT(model, threads=arguments.threads)
        command = [arguments.theirs, "-c", THEIRS, folder, str(arguments.threads)]
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert worker.stdout
        assert worker.stdin
        assert worker.stdout.readline() == "ready\n"
        times: dict[str, list[float]] = {}
        for turn in range(arguments.turns + 1):
            for way in ("ours, one at a time", "ours, together", "segment_reduce", "padded"):
                if way == "ours, one at a time":
                    start = time.perf_counter()
                    ours = [col.maxsim(q, (flat, offsets)) for q in queries][-1]
                    seconds = time.perf_counter() - start
                elif way == "ours, together":
                    start = time.perf_counter()
                    col.maxsim(queries, (flat, offsets))
                    seconds = time.perf_counter() - start
                else:
                    print(way, arguments.queries, file=worker.stdin, flush=True)
                    answer = json.loads(worker.stdout.readline())
                    seconds = answer["seconds"]
                    assert np.abs(np.array(answer["scores"]) - ours).max() < 1e-4
                if turn:  # the first warms up
                    times.setdefault(way, []).append(seconds / arguments.queries)
        worker.stdin.close()
        worker.wait()
    theirs = np.minimum(times["segment_reduce"], times["padded"])
    print(f"{len(lengths)} documents, {offsets[-1]} tokens of {DIM}; queries of {QUERY}; {arguments.threads} threads")
    for way, seconds in times.items():
        ratios = theirs / seconds
        rate, giga = 1 / np.median(seconds), 2 * offsets[-1] * DIM * QUERY / np.median(seconds) / 1e9
        ratio = f"{np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f}) times the faster of torch's"
        print(f"{way:20} {rate:7.1f} queries/s {giga:6.0f} GFLOPS, {ratio}")


if __name__ == "__main__":
    main()
