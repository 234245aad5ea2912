"""Compare ways to fuse the two legs of a hybrid search, on halves of the questions that they were not chosen by.

python tools/fusion.py nfcorpus.zip

For each family the parameter is chosen by nDCG@10 on one half of the questions and measured on the other, both ways.
The library is that of `adventures eval compare`; the legs are 50 passages deep, as in `Library.search`.
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import adventures as adv
from adventures import search
from adventures.comparison import library_of, paired
from adventures.dataset import Dataset
from adventures.evaluate import measure

Leg = Sequence[tuple[str, float, float]]
Fuse = Callable[[Leg, Leg], Mapping[str, float]]


def rrf(k: float) -> Fuse:
    """Reciprocal rank fusion (Cormack, Clarke, Büttcher 2009)."""

    def fuse(near: Leg, matching: Leg) -> Mapping[str, float]:
        scores: dict[str, float] = {}
        for leg in (near, matching):
            for rank, (id_, _, _) in enumerate(leg, start=1):
                scores[id_] = scores.get(id_, 0.0) + 1 / (k + rank)
        return scores

    return fuse


def weighted(share: float) -> Fuse:
    """Each leg's scores from 0 (its last) to 1 (its first), weighted; 0 where a passage is in one leg only."""

    def fuse(near: Leg, matching: Leg) -> Mapping[str, float]:
        scores: dict[str, float] = {}
        for leg, column, weight in ((near, 1, 1 - share), (matching, 2, share)):
            values = [hit[column] for hit in leg] or [0.0]
            low, spread = min(values), (max(values) - min(values)) or 1.0
            for hit in leg:
                scores[hit[0]] = scores.get(hit[0], 0.0) + weight * (hit[column] - low) / spread
        return scores

    return fuse


def ours(share: float) -> Fuse:
    """What `Library.search` does at 0.5: true similarities for both legs, words by the best of them."""

    def fuse(near: Leg, matching: Leg) -> Mapping[str, float]:
        return search.fused([hit[:2] for hit in near], matching, meaning=1 - share)

    return fuse


def cosine(share: float) -> Fuse:
    """Cosines as they are, words by the best of them: what fits depends on the model."""

    def fuse(near: Leg, matching: Leg) -> Mapping[str, float]:
        best = max((hit[2] for hit in matching), default=1.0) or 1.0
        scores = {id_: (1 - share) * similarity for id_, similarity, _ in (*near, *matching)}
        for id_, _, score in matching:
            scores[id_] += share * score / best
        return scores

    return fuse


FAMILIES: dict[str, dict[float, Fuse]] = {
    "reciprocal ranks, k": {k: rrf(k) for k in (1, 5, 10, 20, 40, 60)},
    "scores of each leg, weight of the words": {share: weighted(share) for share in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)},
    "ours, weight of the words": {share: ours(share) for share in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)},
    "plain cosine, weight of the words": {share: cosine(share) for share in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)},
}


def legs(library: adv.Library, query: str) -> tuple[Leg, Leg]:
    """The nearest passages and those that match the words."""
    snapshot = library._current()
    assert snapshot is not None
    asked = search.Query(query, library.embedder.embed([query], kind="query")[0])
    near = search._nearest(snapshot, asked, search.depth(10))
    matching = search._matching(snapshot, asked, search.depth(10))
    return [(row["id"], row["similarity"], 0.0) for row in near], [
        (row["id"], row["similarity"], row["_score"]) for row in matching
    ]


def ndcg(data: Dataset, found: Mapping[str, tuple[Leg, Leg]], fuse: Fuse) -> NDArray[np.float64]:
    """nDCG@10 of each query, rows in the order of their best passage."""
    values = []
    for query, (near, matching) in found.items():
        scores = fuse(near, matching)
        ranking = sorted(scores, key=lambda id_: (-scores[id_], id_))
        rows = list(dict.fromkeys(id_.rpartition("#")[0] for id_ in ranking))
        values.append(measure(rows, data.judgements[query]).ndcg)
    return np.array(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", help="a folder or a zip in BEIR's format; demo for the demo's")
    parser.add_argument("--embedder", default="all-minilm-l6-v2")
    parser.add_argument("--library", help="where the library is, or will be kept")
    options = parser.parse_args()
    data = Dataset.demo() if options.dataset == "demo" else Dataset.read(options.dataset)
    embedder = adv.Embedder(options.embedder)
    queries = [query for query, grades in data.judgements.items() if max(grades.values()) > 0]
    with tempfile.TemporaryDirectory() as folder:
        if options.library and Path(options.library).exists():
            library = adv.Library.open(options.library, embedder=embedder)
        else:
            library = library_of(data.documents, Path(options.library or folder), embedder)
        found = {query: legs(library, data.queries[query]) for query in queries}
    dense = ndcg(data, found, lambda near, _: {id_: similarity for id_, similarity, _ in near})
    words = ndcg(data, found, lambda _, matching: {id_: score for id_, _, score in matching})
    print(f"{len(queries)} questions; dense {dense.mean():.4f}, words {words.mean():.4f}")
    halves = np.array_split(np.random.default_rng(0).permutation(len(queries)), 2)
    for name, members in FAMILIES.items():
        values = {parameter: ndcg(data, found, fuse) for parameter, fuse in members.items()}
        print(f"\n{name}: " + ", ".join(f"{parameter} {value.mean():.4f}" for parameter, value in values.items()))
        held_out = []
        for fitted, measured in (halves, halves[::-1]):
            best = max(values, key=lambda parameter: values[parameter][fitted].mean())
            held_out.append(values[best][measured])
            print(f"  chosen {best}: {values[best][measured].mean():.4f} on the other half")
        order = np.argsort(np.concatenate([halves[1], halves[0]]))
        unseen = np.concatenate(held_out)[order]
        change = paired(unseen, dense)
        print(f"  held out {unseen.mean():.4f}, to dense {change.mean:+.4f} [{change.low:+.4f}, {change.high:+.4f}]")


if __name__ == "__main__":
    main()
