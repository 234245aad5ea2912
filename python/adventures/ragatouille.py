"""RAGatouille's interface (https://github.com/AnswerDotAI/RAGatouille) for what needs no index: rerank, encode, search.

What that package gets wrong is not kept: ranks begin with 1 (with 0 where asked), `k` may be more than there are
documents, a list of one query has a list of one result, and nothing is printed or waited for.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from adventures._adventures import ColBERT, TruncationWarning

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from numpy.typing import NDArray

# How many tokens a word has, and the longest document without an index, of 512 tokens.
TOKENS_PER_WORD = 1.35
LONGEST = 508


class RAGPretrainedModel:
    """A ColBERT model that reranks texts, and searches those that were encoded.

    Attributes:
        model: The model itself.
    """

    def __init__(self, model: ColBERT) -> None:
        self.model = model
        self._vectors: NDArray[np.float32] = np.zeros((0, model.dim), np.float32)
        self._offsets: NDArray[np.int64] = np.zeros(1, np.int64)
        self._documents: list[str] = []
        self._metadatas: list[dict[str, Any] | None] = []

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | PathLike[str], n_gpu: int = -1, verbose: int = 1
    ) -> RAGPretrainedModel:
        """Loads a model as `ColBERT` does.

        Args:
            pretrained_model_name_or_path: A Hugging Face id or a directory.
            n_gpu: At most how many accelerators are used; it runs on the CPU, so more than 0 is refused.
            verbose: For RAGatouille's callers; nothing is printed.

        Raises:
            NotImplementedError: `n_gpu` asks for an accelerator.
        """
        del verbose
        if n_gpu > 0:
            raise NotImplementedError(f"n_gpu={n_gpu}: this build runs on the CPU")
        return cls(ColBERT(pretrained_model_name_or_path))

    @overload
    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        k: int = 10,
        zero_index_ranks: bool = False,
        bsize: int | str = "auto",
    ) -> list[dict[str, Any]]: ...
    @overload
    def rerank(
        self,
        query: list[str],
        documents: Sequence[str],
        k: int = 10,
        zero_index_ranks: bool = False,
        bsize: int | str = "auto",
    ) -> list[list[dict[str, Any]]]: ...
    def rerank(
        self,
        query: str | list[str],
        documents: Sequence[str],
        k: int = 10,
        zero_index_ranks: bool = False,
        bsize: int | str = "auto",
    ) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
        """Returns the `k` documents that fit a query best, as dicts with content, score, rank and result_index.

        A query of many words has as many tokens as it needs; documents are read up to 508 tokens.

        Args:
            query: One, or a list of them, which gives a list of results.
            documents: The texts.
            k: How many of them to return.
            zero_index_ranks: Whether ranks begin with 0.
            bsize: For RAGatouille's callers; nothing is padded, so there is no size to choose.

        Warns:
            TruncationWarning: Some texts were cut.
        """
        del bsize
        documents = list(documents)
        encoded = self._encode(documents, None)
        return self._search(query, documents, encoded, k, None, first=0 if zero_index_ranks else 1)

    def encode(
        self,
        documents: Sequence[str],
        bsize: int | str = "auto",
        document_metadatas: Sequence[dict[str, Any]] | None = None,
        verbose: bool = True,
        max_document_length: int | str = "auto",
    ) -> None:
        """Keeps the vectors of texts in memory, beside those that were encoded before, for `search_encoded_docs`.

        Args:
            documents: The texts.
            bsize: For RAGatouille's callers; nothing is padded, so there is no size to choose.
            document_metadatas: What comes back with each.
            verbose: For RAGatouille's callers; nothing is printed.
            max_document_length: How many tokens of a text are read; 508 by default.

        Raises:
            ValueError: `document_metadatas` are not as many as the documents.

        Warns:
            TruncationWarning: Some texts were cut.
        """
        del bsize, verbose
        documents = list(documents)
        if document_metadatas is not None and len(document_metadatas) != len(documents):
            raise ValueError(
                f"document_metadatas must be as many as the documents: {len(document_metadatas)} for {len(documents)}"
            )
        vectors, offsets = self._encode(
            documents, None if isinstance(max_document_length, str) else max_document_length
        )
        self._vectors = np.concatenate([self._vectors, vectors])
        self._offsets = np.concatenate([self._offsets, offsets[1:] + self._offsets[-1]])
        self._documents = [*self._documents, *documents]
        more = document_metadatas if document_metadatas is not None else [None] * len(documents)
        self._metadatas = [*self._metadatas, *more]

    @overload
    def search_encoded_docs(self, query: str, k: int = 10, bsize: int = 32) -> list[dict[str, Any]]: ...
    @overload
    def search_encoded_docs(self, query: list[str], k: int = 10, bsize: int = 32) -> list[list[dict[str, Any]]]: ...
    def search_encoded_docs(
        self, query: str | list[str], k: int = 10, bsize: int = 32
    ) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
        """Returns the `k` encoded documents that fit a query best, as `rerank` does.

        Those that were encoded with metadata have it as document_metadata.

        Raises:
            ValueError: Nothing is encoded.
        """
        del bsize
        if not self._documents:
            raise ValueError("no documents are encoded; encode() some first")
        encoded = (self._vectors, self._offsets)
        return self._search(query, self._documents, encoded, k, self._metadatas, first=1)

    def clear_encoded_docs(self, force: bool = False) -> None:
        """Forgets what was encoded, at once; `force` is for RAGatouille's callers, where it saves ten seconds."""
        del force
        self._vectors, self._offsets = self._vectors[:0], self._offsets[:1]
        self._documents, self._metadatas = [], []

    def _encode(self, documents: list[str], maxlen: int | None) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        maxlen = min(LONGEST, self.model.max_tokens) if maxlen is None else maxlen
        found = self.model.encode_documents(documents, doc_maxlen=maxlen)
        if found.truncated:
            message = (
                f"{len(found.truncated)} of {len(documents)} documents were longer than {maxlen} tokens and were cut"
            )
            warnings.warn(message, TruncationWarning, stacklevel=3)
        return found.vectors, found.offsets

    def _search(
        self,
        query: str | list[str],
        documents: list[str],
        encoded: tuple[NDArray[np.float32], NDArray[np.int64]],
        k: int,
        metadatas: list[dict[str, Any] | None] | None,
        *,
        first: int,
    ) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
        if k < 0:
            raise ValueError(f"k must not be negative, not {k}")
        found = []
        for one in [query] if isinstance(query, str) else query:
            words = math.floor(len(one.split()) * TOKENS_PER_WORD)
            maxlen = min(max(self.model.query_maxlen, words), self.model.max_tokens)
            scores = self.model.maxsim(self.model.embed_query(one, query_maxlen=maxlen), encoded)
            results = []
            for rank, i in enumerate(np.argsort(-scores, kind="stable")[:k].tolist(), start=first):
                result = {"content": documents[i], "score": float(scores[i]), "rank": rank, "result_index": i}
                if metadatas is not None and metadatas[i] is not None:
                    result["document_metadata"] = metadatas[i]
                results.append(result)
            found.append(results)
        return found[0] if isinstance(query, str) else found
