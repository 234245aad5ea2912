"""Times embedding of many texts, and of two processes at once (`make bench-embed-scale`).

The texts are titles of BEIR's NFCorpus with a number behind them, so that no two are equal. Each line is a process of
its own, which reads them through `encode_stream`: how many tokens a second, of how many the first line has, and its
peak memory. Then two processes embed at once, against one; and texts that are longer than the model reads.

    python tools/bench_embed_scale.py [--data nfcorpus.zip] [--model all-minilm-l6-v2] [--precision auto]
        [--counts 1000,10000,100000,1000000] [--together 50000]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "beir-nfcorpus" / "nfcorpus.zip"


def main() -> None:
    """Prints a line for each number of texts, and one for two processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--model", default="all-minilm-l6-v2")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--counts", default="1000,10000,100000,1000000")
    parser.add_argument("--together", type=int, default=50_000)
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--long", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        embed(arguments.data, arguments.model, arguments.precision, arguments.child, long=arguments.long)
        return
    rates = []
    for count in map(int, arguments.counts.split(",")):
        (line,) = run(arguments, [count])
        rates.append(line["tokens"] / line["seconds"])
        ratio = f" ({rates[-1] / rates[0]:.2f})"
        print(f"{count:>9,} texts      {rates[-1]:>8,.0f} tokens/s{ratio}  peak {line['peak']:,} MB", flush=True)
    (alone,) = run(arguments, [arguments.together])
    both = run(arguments, [arguments.together] * 2)
    one = alone["tokens"] / alone["seconds"]
    two = sum(line["tokens"] for line in both) / max(line["seconds"] for line in both)
    print(f"one process          {one:>8,.0f} tokens/s; two at once {two:,.0f} together ({two / one:.2f})")
    (line,) = run(arguments, [2_000], long=True)
    rate = line["tokens"] / line["seconds"]
    print(f"    2,000 long texts {rate:>8,.0f} tokens/s         peak {line['peak']:,} MB")


def run(arguments: argparse.Namespace, counts: list[int], *, long: bool = False) -> list[dict[str, float]]:
    """Returns what processes say that embed so many texts each, all from the same moment on."""
    options = ["--data", str(arguments.data), "--model", arguments.model, "--precision", arguments.precision]
    options += ["--long"] if long else []
    command = [sys.executable, __file__, *options, "--child"]
    children = [
        subprocess.Popen([*command, str(count)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for count in counts
    ]
    for child in children:
        if child.stdout is None or child.stdout.readline() != "ready\n":
            sys.exit("a process that embeds did not start")
    for child in children:
        child.stdin.write("go\n")  # type: ignore[union-attr]
        child.stdin.flush()  # type: ignore[union-attr]
    return [json.loads(child.communicate()[0]) for child in children]


def embed(data: Path, model: str, precision: str, count: int, *, long: bool) -> None:
    """Embeds `count` texts, once it is told to, and prints how long that took."""
    import adventures

    with zipfile.ZipFile(data) as archive:
        name = next(name for name in archive.namelist() if name.endswith("corpus.jsonl"))
        rows = [json.loads(line) for line in archive.read(name).splitlines()]
    embedder = adventures.Embedder(model, precision=precision)
    embedder.encode([rows[0]["title"]])

    def texts() -> Iterator[str]:
        for i in range(count):
            row = rows[i % len(rows)]
            yield f"{i} {row['text']} {row['text']}" if long else f"{row['title']} {i}"

    print("ready", flush=True)
    sys.stdin.readline()
    begun = time.perf_counter()
    tokens = sum(int(found.tokens.sum()) for found in embedder.encode_stream(texts()))
    seconds = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000
    print(json.dumps({"tokens": tokens, "seconds": seconds, "peak": peak}))


if __name__ == "__main__":
    main()
