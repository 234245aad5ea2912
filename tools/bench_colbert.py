"""Times `ColbertIndex` against next-plaid and fast-plaid (`make bench-colbert`): the same vectors, a process each.

The vectors are the last hidden states of all-MiniLM-L6-v2, turned to 96 dimensions by a fixed orthogonal matrix and
scaled to length 1: of 1,500 documents of BEIR's NFCorpus (at most 180 tokens each), and of the first 32 tokens of 200
others, which are the queries. The interpreter given as --theirs, which has torch and transformers, makes them once.
`rate` is of all queries in one batch on all threads, the best of three; `single` of one after the other, each on all
threads; recall is the share of the ten best by exact MaxSim in f32 that are found. `delete` is of 1,000 documents, the
best of three: ours is on the disk then, `durable` is until next-plaid's is, too. Figures are the median of the rounds.

    python tools/bench_colbert.py --theirs PYTHON [--next-plaid PROGRAM] [--fast-plaid] [--data nfcorpus.zip] [--seed N]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

CACHE = Path.home() / ".cache" / "adventures"
DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "beir-nfcorpus" / "nfcorpus.zip"
UNITS = {
    "build": "s",
    "bytes": "bytes/token",
    "rate": "q/s",
    "single": "q/s",
    "delete": "s",
    "durable": "s",
    "peak": "MiB",
}
DOCUMENTS, QUERIES, DIM, TOKENS, K = 1500, 200, 96, 32, 10


def make(data: Path, model: Path, out: Path) -> None:
    """Writes the vectors; runs where torch is."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, encoder = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model).eval()
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((encoder.config.hidden_size, DIM)))[0]

    def encode(texts: list[str], longest: int) -> list[Any]:
        found: list[Any] = [None] * len(texts)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for start in range(0, len(order), 16):
            some = order[start : start + 16]
            batch = tokenizer(
                [texts[i] for i in some], truncation=True, max_length=longest, padding=True, return_tensors="pt"
            )
            with torch.no_grad():
                rows = encoder(**batch).last_hidden_state.numpy() @ turn.astype(np.float32)
            rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
            for row, mask, i in zip(rows, batch["attention_mask"], some, strict=True):
                found[i] = row[: int(mask.sum())]
        return found

    def documents() -> list[Any]:
        return encode([f"{row['title']} {row['text']}".strip() for row in rows[:DOCUMENTS]], 180)

    def queries() -> list[Any]:
        others = encode([row["text"] for row in rows[DOCUMENTS : DOCUMENTS + 2 * QUERIES]], TOKENS)
        return [one for one in others if len(one) == TOKENS][:QUERIES]

    def judged() -> list[Any]:
        names = {row["_id"]: str(i) for i, row in enumerate(rows[:DOCUMENTS])}
        judgements: dict[str, dict[str, int]] = {}
        for split in ("dev", "test"):
            for line in lines(f"qrels/{split}.tsv")[1:]:
                query, document, grade = line.split()
                if document in names:
                    judgements.setdefault(query, {})[names[document]] = int(grade)
        asked = [row for row in map(json.loads, lines("queries.jsonl")) if row["_id"] in judgements]
        (out / "judgements.json").write_text(json.dumps([judgements[row["_id"]] for row in asked]))
        return encode([row["text"] for row in asked], TOKENS)

    with zipfile.ZipFile(data) as archive:

        def lines(name: str) -> list[str]:
            return archive.read(f"nfcorpus/{name}").decode().splitlines()

        rows = [json.loads(line) for line in lines("corpus.jsonl")]
        made = {made.__name__: made for made in (documents, queries, judged)}
        parts = {name: make() for name, make in made.items() if not (out / f"{name}.ends").exists()}
    for name, arrays in parts.items():
        np.concatenate(arrays).astype("<f4").tofile(out / f"{name}.f32")
        np.cumsum([len(one) for one in arrays]).astype("<u8").tofile(out / f"{name}.ends")


def ragged(path: Path, name: str) -> list[Any]:
    flat = np.fromfile(path / f"{name}.f32", "<f4").reshape(-1, DIM)
    return np.split(flat, np.fromfile(path / f"{name}.ends", "<u8")[:-1].astype(int))


def exact(path: Path) -> dict[str, Any]:
    """Exact MaxSim by torch: how fast, and the best."""
    import torch

    documents, queries = ragged(path, "documents"), ragged(path, "queries")
    flat = torch.from_numpy(np.concatenate(documents))
    own = torch.repeat_interleave(torch.tensor([len(one) for one in documents]))

    def search(query: Any) -> list[int]:
        products = flat @ torch.from_numpy(query).T
        best = torch.full((len(documents), len(query)), -torch.inf)
        best.scatter_reduce_(0, own[:, None].expand_as(products), products, "amax")
        return best.sum(1).topk(K).indices.tolist()

    start = time.perf_counter()
    hits = [search(query) for query in queries]
    rate = len(queries) / (time.perf_counter() - start)
    return {"rate": rate, "hits": hits, "judged": [search(query) for query in ragged(path, "judged")]}


def ours(path: Path, nbits: int, seed: int) -> dict[str, Any]:
    import adventures as adv

    documents, queries = ragged(path, "documents"), ragged(path, "queries")
    where = path / f"ours-{nbits}"
    shutil.rmtree(where, ignore_errors=True)
    names = [str(i) for i in range(len(documents))]
    start = time.perf_counter()
    index = adv.ColbertIndex.create(where, vectors=documents, ids=names, nbits=nbits, seed=seed)
    build = time.perf_counter() - start
    size = sum(file.stat().st_size for file in where.iterdir()) / index.info()["tokens"]
    rates = []
    for _ in range(3):
        start = time.perf_counter()
        found = index.search_batch(queries, K)
        rates.append(len(queries) / (time.perf_counter() - start))
    single = timed(lambda query: index.search(query, K), queries)
    judged = [[int(hit.id) for hit in one] for one in index.search_batch(ragged(path, "judged"), K)]
    delete = deletion(where, adv.ColbertIndex.open, names[:1000])
    hits = [[int(hit.id) for hit in one] for one in found]
    figures = {"build": build, "bytes": size, "rate": max(rates), "single": single}
    return {**figures, "delete": delete, "durable": delete, "hits": hits, "judged": judged}


def fast_plaid(path: Path, nbits: int) -> dict[str, Any]:
    """The same by fast-plaid on the CPU, with its defaults; runs where torch is."""
    import torch
    from fast_plaid.search import FastPlaid

    documents = [torch.from_numpy(one) for one in ragged(path, "documents")]
    queries, judged = ([torch.from_numpy(one) for one in ragged(path, name)] for name in ("queries", "judged"))
    where = path / f"fast-plaid-{nbits}"
    shutil.rmtree(where, ignore_errors=True)
    start = time.perf_counter()
    index = FastPlaid(str(where), device="cpu")
    index.create(documents_embeddings=documents, nbits=nbits)
    build = time.perf_counter() - start
    size = sum(file.stat().st_size for file in where.rglob("*") if file.is_file()) / sum(map(len, documents))

    def search(some: list[Any]) -> list[list[int]]:
        found = index.search(queries_embeddings=some, top_k=K, show_progress=False)
        return [[document for document, _ in one] for one in found]

    start = time.perf_counter()
    hits = search(queries)
    rate = len(queries) / (time.perf_counter() - start)
    single = timed(lambda query: search([query]), queries)
    figures = {"build": build, "bytes": size, "rate": rate, "single": single, "hits": hits, "judged": search(judged)}
    return {**figures, "delete": deletion(where, lambda copy: FastPlaid(str(copy), device="cpu"), list(range(1000)))}


def deletion(folder: Path, opened: Callable[[Path], Any], gone: list[Any]) -> float:
    """How long an index takes to delete some documents, the best of three copies that are on the disk before."""
    copy, seconds = folder.with_name(f"{folder.name}-copy"), []
    for _ in range(3):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        os.sync()
        index = opened(copy)
        start = time.perf_counter()
        index.delete(gone)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def timed(search: Callable[[Any], object], queries: list[Any]) -> list[float]:
    """How long each of some queries takes, one after the other."""
    seconds = []
    for query in queries:
        start = time.perf_counter()
        search(query)
        seconds.append(time.perf_counter() - start)
    return seconds


def child(command: list[str]) -> dict[str, Any]:
    """Runs a process and returns its line of figures, with the most memory that it had."""
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, stdout=out)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{command[0]} failed")
        out.seek(0)
        figures = json.loads(out.read().splitlines()[-1])
    if "single" in figures:
        figures["single"] = 1 / statistics.mean(figures["single"])
    return {**figures, "peak": usage.ru_maxrss / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--theirs", default=sys.executable)
    parser.add_argument("--next-plaid")
    parser.add_argument("--fast-plaid", action="store_true", help="that interpreter has fast-plaid, too")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vectors", type=Path, default=CACHE / "bench" / "colbert")
    parser.add_argument("--seed", type=int, default=42, help="of our index: centroids begin elsewhere")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part == "make":
        return make(args.data, CACHE / "models" / "all-minilm-l6-v2", args.vectors)
    if args.part is not None:
        engine, _, nbits = args.part.rpartition("-")
        if engine == "ours":
            return print(json.dumps(ours(args.vectors, int(nbits), args.seed)))
        return print(json.dumps(fast_plaid(args.vectors, int(nbits)) if engine else exact(args.vectors)))
    self = ["tools/bench_colbert.py", "--data", str(args.data), "--vectors", str(args.vectors)]
    self += ["--seed", str(args.seed), "--part"]
    args.vectors.mkdir(parents=True, exist_ok=True)
    if not (args.vectors / "judged.ends").exists():
        subprocess.run([args.theirs, *self, "make"], check=True)
    engines = {"torch, exact": [args.theirs, *self, "torch"], "ours, exact": [sys.executable, *self, "ours-32"]}
    for nbits in (4, 2):
        engines[f"ours, {nbits} bits"] = [sys.executable, *self, f"ours-{nbits}"]
        if args.next_plaid:
            engines[f"next-plaid, {nbits} bits"] = [args.next_plaid, str(args.vectors), str(DIM), str(nbits), str(K)]
        if args.fast_plaid:
            engines[f"fast-plaid, {nbits} bits"] = [args.theirs, *self, f"fast-plaid-{nbits}"]
    rounds = [{name: child(command) for name, command in engines.items()} for _ in range(args.rounds)]
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    print(f"{cpu.split(':')[-1].strip() or platform.machine()}, {os.cpu_count()} threads, {args.rounds} rounds")
    # The interpreters of the peers do not have it.
    from adventures.evaluate import mean, measure

    judgements = json.loads((args.vectors / "judgements.json").read_text())
    right = [set(one) for one in rounds[0]["torch, exact"]["hits"]]
    for name in engines:
        row = [f"{name:20}"]
        for figure, unit in UNITS.items():
            values = [one[name][figure] for one in rounds if figure in one[name]]
            row.append(f"{figure} {statistics.median(values):9.3f} {unit}" if values else "")
        hits = rounds[0][name]["hits"]
        found = statistics.mean(len(best & set(one)) / K for best, one in zip(right, hits, strict=True))
        if "judged" in rounds[0][name]:
            found_of = zip(rounds[0][name]["judged"], judgements, strict=True)
            ndcg = mean([measure([str(i) for i in hits], own) for hits, own in found_of]).ndcg
            row.append(f"nDCG@{K} of {len(judgements)} judged queries {ndcg:.4f}")
        print("  ".join(row), f" recall@{K} {found:.4f}")
    peers = [(f"ours, {n} bits", f"{peer}, {n} bits") for peer in ("next-plaid", "fast-plaid") for n in (4, 2)]
    for a, b in [*peers, ("ours, exact", "torch, exact")]:
        if a in engines and b in engines:
            both = [figure for figure in UNITS if figure in rounds[0][a] and figure in rounds[0][b]]
            ratios = {figure: statistics.median([one[a][figure] / one[b][figure] for one in rounds]) for figure in both}
            print(f"{a} over {b}: " + ", ".join(f"{name} {ratio:.3g}x" for name, ratio in ratios.items()))
    return None


if __name__ == "__main__":
    main()
