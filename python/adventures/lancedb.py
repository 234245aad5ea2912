"""LanceDB's own interfaces, for plain LanceDB code: importing this registers `adventures` as an embedding function.

A table remembers its embedding function by name, so a process that opens one imports this module too.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import pyarrow as pa
from lancedb.embeddings import TextEmbeddingFunction, register
from lancedb.rerankers import Reranker as _Reranker

from adventures import ranking
from adventures._adventures import Embedder, Reranker

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from adventures.ranking import Scorer

__all__ = ["AdventuresEmbeddings", "AdventuresReranker"]

# What an embedder is opened with; the fields of the same names.
_OPTIONS = (
    "revision",
    "device",
    "threads",
    "max_tokens",
    "query_prefix",
    "passage_prefix",
    "adapter",
    "quantize",
    "precision",
    "dim",
    "normalize",
)


@lru_cache(maxsize=2)
def _opened(name: str, options: tuple[tuple[str, Any], ...]) -> Embedder:
    # LanceDB makes the function anew for each search of a table, and a model takes a tenth of a second to open.
    return Embedder(name, **dict(options))


@register("adventures")  # type: ignore[no-untyped-call]
class AdventuresEmbeddings(TextEmbeddingFunction):
    """An `Embedder` as LanceDB's embedding function: `get_registry().get("adventures").create(name=…)`.

    Rows are embedded as passages and questions as queries, each with its prefix. The table keeps the options, and which
    revision of the model made its vectors: opened with another, it refuses to add or search.

    Attributes:
        name: The model, as `Embedder` takes it, and so is all else.
        made_with: The revision that made the table's vectors; written by LanceDB, not by hand.
    """

    name: str = "all-minilm-l6-v2"
    revision: str | None = None
    device: str = "auto"
    threads: int | None = None
    max_tokens: int | None = None
    query_prefix: str | None = None
    passage_prefix: str | None = None
    adapter: str | None = None
    quantize: Literal["q8_0", "q4_k"] | None = None
    precision: Literal["f32", "bf16x2", "bf16", "int8", "auto"] = "f32"
    dim: int | None = None
    normalize: bool = True
    made_with: str = ""
    # What fails here fails again: nothing is asked of a network.
    max_retries: int = 0

    @property
    def embedder(self) -> Embedder:
        """The model.

        Raises:
            ValueError: It is another than the one that made the table's vectors.
        """
        embedder = _opened(self.name, tuple((option, getattr(self, option)) for option in _OPTIONS))
        if self.made_with and embedder.revision and embedder.revision != self.made_with:
            raise ValueError(
                f"the table was embedded with {self.name} at revision {self.made_with}, and {embedder.path} is at "
                f"{embedder.revision}; its vectors cannot be compared"
            )
        return embedder

    def ndims(self) -> int:
        """Returns the length of a vector."""
        return self.embedder.dim

    def compute_query_embeddings(self, query: str, *args: Any, **kwargs: Any) -> list[NDArray[np.float32] | None]:
        """Returns the vector of a question, or of several."""
        del args, kwargs
        return self._embed(self.sanitize_input(query), "query")

    def compute_source_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> list[NDArray[np.float32] | None]:
        """Returns a vector of each row's text; None where that is null."""
        del args, kwargs
        if isinstance(texts, (pa.Array, pa.ChunkedArray)) and not texts.null_count:
            vectors = self.embedder.embed_arrow(texts)
            return list(np.asarray(vectors.flatten()).reshape(len(texts), self.embedder.dim))
        return self._embed(self.sanitize_input(texts), "passage")

    def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> list[NDArray[np.float32] | None]:
        """Returns what `compute_source_embeddings` does."""
        del args, kwargs
        return self._embed(texts, "passage")

    def safe_model_dump(self) -> dict[str, Any]:
        """Returns what the table keeps."""
        given: dict[str, Any] = super().safe_model_dump()  # type: ignore[no-untyped-call]
        return {**given, "made_with": self.embedder.revision}

    def _embed(self, texts: Any, kind: Literal["query", "passage"]) -> list[NDArray[np.float32] | None]:
        there = [text for text in texts if text is not None]
        vectors = iter(self.embedder.embed(there, kind))
        return [None if text is None else next(vectors) for text in texts]


class AdventuresReranker(_Reranker):
    """A `Reranker`, or a `ColBERT`, as LanceDB's reranker, of vector, full-text and hybrid searches.

    Args:
        model: The model, what opens it, or anything with `scores(query, docs)`.
        column: Where the documents' text is.
        return_score: `"relevance"`, or `"all"` to keep the scores of the searches too.
        options: How a model that is named is opened, as `Reranker` has it.
    """

    def __init__(
        self,
        model: str | Scorer = "ms-marco-minilm-l6-v2",
        column: str = "text",
        return_score: Literal["relevance", "all"] = "relevance",
        **options: Any,
    ) -> None:
        super().__init__(return_score)
        if isinstance(model, str):
            self.model: Scorer = Reranker(model, **options)
        elif options:
            raise TypeError(f"{', '.join(options)}: of a model that is opened already")
        elif not callable(getattr(model, "scores", None)):
            raise TypeError(f"model must have a method scores(query, docs); {type(model).__name__} has none")
        else:
            self.model = model
        self.column = column

    def __str__(self) -> str:
        return f"AdventuresReranker({getattr(self.model, 'name', type(self.model).__name__)})"

    def rerank_hybrid(self, query: str, vector_results: pa.Table, fts_results: pa.Table) -> pa.Table:
        """Returns what both searches found, the best first."""
        merge = self._merge_and_keep_scores if self.score == "all" else self.merge_results
        return self._rerank(query, merge(vector_results, fts_results))

    def rerank_vector(self, query: str, vector_results: pa.Table) -> pa.Table:
        """Returns what a search of vectors found, the best first."""
        return self._rerank(query, vector_results)

    def rerank_fts(self, query: str, fts_results: pa.Table) -> pa.Table:
        """Returns what a full-text search found, the best first."""
        return self._rerank(query, fts_results)

    def _rerank(self, query: str, found: pa.Table) -> pa.Table:
        if not found.num_rows:
            return cast("pa.Table", self._keep_relevance_score(self._handle_empty_results(found)))
        if self.column not in found.column_names:
            columns = ", ".join(map(repr, found.column_names))
            raise ValueError(f"column={self.column!r} is not in the results; they have {columns}")
        texts = found.column(self.column)
        if texts.null_count:
            raise ValueError(f"column={self.column!r}: {texts.null_count} of {len(texts)} results have no text")
        order, scores = zip(*ranking.best(self.model, query, cast("list[str]", texts.to_pylist())), strict=True)
        ranked = found.take(order).append_column("_relevance_score", pa.array(scores, pa.float32()))
        return cast("pa.Table", self._keep_relevance_score(ranked))
