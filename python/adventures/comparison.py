"""Settings of retrieval compared: quality over judged questions, time, size, and how sure the differences are."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import pyarrow as pa
from deltalake import write_deltalake

from adventures._adventures import Embedder, Reranker
from adventures.evaluate import measure
from adventures.library import Library
from adventures.settings import check_names
from adventures.spans import SpanSet, covered, places

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from adventures.dataset import Dataset
    from adventures.library import Hit
    from adventures.settings import Setting

# Enough that the ends of an interval stay the same to the third digit.
_DRAWS = 10_000
_Model = TypeVar("_Model", Embedder, Reranker)


@dataclass(frozen=True, slots=True)
class Difference:
    """The mean difference of two settings over the same queries, and the interval that holds it in 95 of 100 samples.

    Of samples of the queries as many as there are, drawn with replacement (the paired bootstrap; Efron and Tibshirani
    1993, Sakai 2006).
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a setting.

    Attributes:
        setting: The setting.
        measures: Name → mean over the queries; the first is the one that differences are of.
        difference: To the first setting of the comparison; None for that.
        queries: How many queries there were.
        passages: How many passages the library has.
        megabytes: What it takes on the disk, indexes included; None on an object store.
        p50: Median milliseconds of a search, the embedding of the question included.
        p99: Milliseconds within which 99 of 100 searches were done.
    """

    setting: Setting
    measures: dict[str, float]
    difference: Difference | None
    queries: int
    passages: int
    megabytes: float | None
    p50: float
    p99: float


class Models:
    """Opens models by name, each once.

    Args:
        default: The embedding model of settings that name none, or its name.
        options: How to open models: `device` and `threads`.
    """

    def __init__(self, default: Embedder | str, **options: Any) -> None:
        self._default = default
        self._options = options
        self._opened: dict[tuple[type, str], Any] = {}

    def embedder(self, name: str | None) -> Embedder:
        """Returns the embedding model of a name; the default for None."""
        wanted = self._default if name is None else name
        return self._open(Embedder, wanted) if isinstance(wanted, str) else wanted

    def reranker(self, name: str) -> Reranker:
        """Returns the reranker of a name."""
        return self._open(Reranker, name)

    def _open(self, kind: type[_Model], name: str) -> _Model:
        if (kind, name) not in self._opened:
            self._opened[kind, name] = kind(name, **self._options)
        return cast("_Model", self._opened[kind, name])


def compare(
    data: Dataset | SpanSet,
    settings: Sequence[Setting],
    models: Models,
    *,
    library: Library | None = None,
    k: int = 20,
    budget: int = 4000,
    progress: Callable[[int], object] | None = None,
) -> Iterator[Outcome]:
    """Makes the libraries that the settings need, searches them for every query, and yields what came of each setting.

    Rows of a `Dataset` are ranked by their best passage among `k`, and measured by nDCG@10, recall and MRR. Of a
    `SpanSet`, it is counted which share of the characters that answer is in the first `budget` characters of what was
    found: passages of any length compete for the same room in a prompt.

    Args:
        data: Judged queries.
        settings: What to compare; the first is what the others are measured against.
        models: Where models come from.
        library: A library of the rows that are judged, to be searched as it is; by default, libraries of the documents
            are made in a temporary folder.
        k: How many passages are asked for where a setting does not say.
        budget: How many characters of the passages count, best first; about four make a token.
        progress: Called with 1 after each search.

    Raises:
        ValueError: There is nothing to compare, two settings have one name, or one needs another library than is given.
    """
    check_names(list(settings))
    for setting in settings if library is not None else ():
        if any(value is not None for value in setting.library):
            raise ValueError(f"the setting {setting.name!r} needs a library of its own, but one was given")
    queries = _answerable(data)
    baseline: NDArray[np.float64] | None = None
    with ExitStack() as stack:
        made: dict[Any, Library] = {}
        for setting in settings:
            if library is not None:
                made[setting.library] = library
            elif setting.library not in made:
                folder = Path(stack.enter_context(TemporaryDirectory(prefix="adventures-")))
                made[setting.library] = library_of(
                    data.documents,
                    folder,
                    models.embedder(setting.embedder),
                    max_tokens=setting.max_tokens,
                    overlap=setting.overlap,
                )
            searched = made[setting.library]
            judge = _Judge(data, searched, budget)
            reranker = models.reranker(setting.rerank) if setting.rerank else None
            find = partial(
                searched.search,
                k=setting.k or k,
                hybrid=setting.hybrid,
                rerank=reranker,
                mmr=setting.mmr,
                expand=setting.expand,
            )
            find(data.queries[queries[0]])  # the first search opens files
            results, seconds = [], []
            for query in queries:
                start = time.perf_counter()
                hits = find(data.queries[query])
                seconds.append(time.perf_counter() - start)
                results.append(judge(query, hits))
                if progress:
                    progress(1)
            names = list(results[0])
            table = np.array([[each[name] for name in names] for each in results])
            difference = None if baseline is None else paired(table[:, 0], baseline)
            baseline = table[:, 0] if baseline is None else baseline
            yield Outcome(
                setting=setting,
                measures=dict(zip(names, table.mean(axis=0).tolist(), strict=True)),
                difference=difference,
                queries=len(queries),
                passages=len(searched),
                megabytes=None if (size := searched.size()) is None else size / 1e6,
                p50=1e3 * float(np.quantile(seconds, 0.5)),
                p99=1e3 * float(np.quantile(seconds, 0.99)),
            )


def paired(values: NDArray[np.float64], baseline: NDArray[np.float64]) -> Difference:
    """Returns the difference of two settings' measures of the same queries, each `(queries,)`."""
    differences = values - baseline
    chance = np.random.default_rng(0)
    means = np.array([chance.choice(differences, len(differences)).mean() for _ in range(_DRAWS)])
    low, high = np.quantile(means, (0.025, 0.975)).tolist()
    return Difference(float(differences.mean()), low, high)


def _answerable(data: Dataset | SpanSet) -> list[str]:
    if isinstance(data, SpanSet):
        return [query for query, spans in data.spans.items() if spans]
    found = [query for query, grades in data.judgements.items() if max(grades.values(), default=0) > 0]
    if not found:
        raise ValueError(f"{data.name} has no query with a relevant document")
    return found


def library_of(
    documents: Mapping[str, str],
    folder: Path,
    embedder: Embedder,
    *,
    max_tokens: int | None = None,
    overlap: int | None = None,
) -> Library:
    """Returns a library of documents, made in a folder; their ids are the rows'."""
    columns = {"id": pa.array(documents, pa.string()), "text": pa.array(documents.values(), pa.string())}
    write_deltalake(folder / "table", pa.table(columns))
    library = Library.open(folder / "library", embedder=embedder)
    library.sync(folder / "table", id="id", text="{text}", max_tokens=max_tokens, overlap=overlap, progress=False)
    return library


class _Judge:
    """Measures of what a search found."""

    def __init__(self, data: Dataset | SpanSet, library: Library, budget: int) -> None:
        self._data = data
        self._budget = budget
        self._places = _places(data, library) if isinstance(data, SpanSet) else {}

    def __call__(self, query: str, hits: Sequence[Hit]) -> Mapping[str, float]:
        rows = [hit.id.rpartition("#")[0] for hit in hits]
        if isinstance(self._data, SpanSet):
            found = [
                (row, self._places[row][hit.passages[0]][0], self._places[row][hit.passages[-1]][1])
                for row, hit in zip(rows, hits, strict=True)
            ]
            shares = covered(self._data.spans[query], found, budget=self._budget)
            return {f"{name}@{self._budget}": share for name, share in shares.items()}
        # In some sets a query is one of the documents, which BEIR leaves out.
        same = query in self._data.documents
        ranking = [row for row in dict.fromkeys(rows) if not (same and row == query)]
        measures = measure(ranking, self._data.judgements[query], recall_at=(1, 5, 10))
        recall = {f"recall@{at}": share for at, share in measures.recall.items()}
        return {"nDCG@10": measures.ndcg, **recall, "MRR": measures.mrr}


def _places(data: SpanSet, library: Library) -> dict[str, list[tuple[int, int]]]:
    pieces: dict[str, dict[int, str]] = {}
    for row in library.table.search().select(["row_id", "ordinal", "text"]).limit(None).to_arrow().to_pylist():
        pieces.setdefault(row["row_id"], {})[row["ordinal"]] = row["text"]
    return {
        name: places([texts[ordinal] for ordinal in sorted(texts)], data.documents[name])
        for name, texts in pieces.items()
    }
