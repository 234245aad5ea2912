"""RAGatouille's interface (https://github.com/AnswerDotAI/RAGatouille): indexes, and rerank and search without one.

What that package gets wrong is not kept: ranks begin with 1 (with 0 where asked), `k` may be more than there are
documents, a list of one query has a list of one result, documents keep their ids when others are deleted, and nothing
is printed or waited for.
"""

from __future__ import annotations

import json
import re
import shutil
import uuid
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from adventures._adventures import ColBERT, TruncationWarning
from adventures.collection import RECORD, Passages, by_document, document_of, record_of
from adventures.index import ColbertIndex
from adventures.reader import LongQueries

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from numpy.typing import NDArray

    from adventures.collection import Change
    from adventures.langchain import RAGCompressor, RAGRetriever

# The longest document without an index, of 512 tokens.
LONGEST = 508


INDEX_ROOT = ".ragatouille/"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
# As many passages are kept in 4 bits a number, more in 2.
_FEW = 10_000


class RAGPretrainedModel:
    """A ColBERT model with an index of documents; without one it reranks texts, and searches those that were encoded.

    Attributes:
        model: The model itself.
        index_path: The folder of the index that was made or opened last; None before.
    """

    def __init__(self, model: ColBERT, index_root: str | PathLike[str] | None = None) -> None:
        self.model = model
        self.index_path: str | None = None
        self._root = Path(INDEX_ROOT if index_root is None else index_root)
        self._index: ColbertIndex | None = None
        self._max_document_length = 256
        self._passages: dict[str, list[str]] | None = None
        self._vectors: NDArray[np.float32] = np.zeros((0, model.dim), np.float32)
        self._offsets: NDArray[np.int64] = np.zeros(1, np.int64)
        self._documents: list[str] = []
        self._metadatas: list[dict[str, Any] | None] = []

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike[str],
        n_gpu: int = -1,
        verbose: int = 1,
        index_root: str | PathLike[str] | None = None,
    ) -> RAGPretrainedModel:
        """Loads a model as `ColBERT` does.

        Args:
            pretrained_model_name_or_path: A Hugging Face id or a directory.
            n_gpu: At most how many accelerators are used; it runs on the CPU, so more than 0 is refused.
            verbose: For RAGatouille's callers; nothing is printed.
            index_root: Below which folder indexes are made; `.ragatouille/` by default.

        Raises:
            NotImplementedError: `n_gpu` asks for an accelerator.
        """
        del verbose
        if n_gpu > 0:
            raise NotImplementedError(f"n_gpu={n_gpu}: this build runs on the CPU")
        return cls(ColBERT(pretrained_model_name_or_path), index_root)

    @classmethod
    def from_index(cls, index_path: str | PathLike[str], n_gpu: int = -1, verbose: int = 1) -> RAGPretrainedModel:
        """Opens an index that `index` has made, and its model.

        Args:
            index_path: What `index` returned.
            n_gpu: As of `from_pretrained`.
            verbose: For RAGatouille's callers; nothing is printed.

        Raises:
            FileNotFoundError: There is no index, or its model is not where it was.
        """
        path = Path(index_path)
        record = record_of(path)
        rag = cls.from_pretrained(record["model"], n_gpu, verbose, path.parent.parent.parent)
        rag._open(path, record)
        return rag

    def index(
        self,
        collection: Sequence[str],
        document_ids: Sequence[str] | None = None,
        document_metadatas: Sequence[dict[str, Any]] | None = None,
        index_name: str | None = None,
        overwrite_index: bool = True,
        max_document_length: int = 256,
        split_documents: bool = True,
        document_splitter_fn: Change | None = None,
        preprocessing_fn: Change | list[Change] | None = None,
        bsize: int = 32,
        use_faiss: bool = False,
    ) -> str:
        """Makes an index of documents, and returns its folder; what was there before is replaced when it is whole.

        Args:
            collection: The documents.
            document_ids: What they are called, different and not empty; made up by default.
            document_metadatas: What comes back with each.
            index_name: Of the folder: letters, digits, `_`, `-` and `.`; by default after the model.
            overwrite_index: Whether it may take the place of another.
            max_document_length: The longest passage in tokens.
            split_documents: Whether longer documents are split; they are cut otherwise, with a warning.
            document_splitter_fn: Splits in place of ours: is given documents, their ids and `chunk_size`, and returns
                `{"document_id", "content"}` of each passage.
            preprocessing_fn: Is given these passages and the ids, and returns others; of several each in its turn.
            bsize: For RAGatouille's callers, as `use_faiss` is.
            use_faiss: Nothing is padded, and there is one k-means.

        Raises:
            ValueError: An argument is not as above; there is an index of this name, and it is not to be replaced.
        """
        del bsize, use_faiss
        name = f"{re.sub('[^A-Za-z0-9]+', '-', self.model.name).strip('-')}-index" if index_name is None else index_name
        if not _NAME.fullmatch(name):
            raise ValueError(f"index_name {name!r}: expected letters, digits, '_', '-' and '.', 100 at most")
        path = self._root / "colbert" / "indexes" / name
        if path.exists() and not overwrite_index:
            raise ValueError(f"there is an index at {path} already: overwrite_index=True replaces it")
        if path.exists() and not (path / RECORD).exists():
            raise ValueError(f"what is at {path} is no index; it is left alone")
        self._max_document_length = min(max_document_length, self.model.max_tokens)
        passages = self._cut(collection, document_ids, split_documents, document_splitter_fn, preprocessing_fn)
        metadatas = by_document(passages.documents, document_metadatas, "document_metadatas")
        path.parent.mkdir(parents=True, exist_ok=True)
        made = path.with_name(f".{name}.{uuid.uuid4().hex}")
        made.mkdir()
        try:
            ColbertIndex.create(
                made / "index",
                passages.texts,
                ids=passages.ids,
                metadata=[metadatas.get(document) for document in passages.owners],
                model=LongQueries(self.model, self._max_document_length),
                nbits=4 if len(passages.texts) < _FEW else 2,
            )
            record = {"model": self.model.path, "max_document_length": self._max_document_length}
            (made / RECORD).write_text(json.dumps(record), "utf-8")
            if path.exists():
                old = path.with_name(f".{name}.{uuid.uuid4().hex}.old")
                path.rename(old)
                made.rename(path)
                shutil.rmtree(old)
            else:
                made.rename(path)
        finally:
            shutil.rmtree(made, ignore_errors=True)
        self._open(path, record)
        return str(path)

    def add_to_index(
        self,
        new_collection: Sequence[str],
        new_document_ids: Sequence[str] | None = None,
        new_document_metadatas: Sequence[dict[str, Any]] | None = None,
        index_name: str | None = None,
        split_documents: bool = True,
        document_splitter_fn: Change | None = None,
        preprocessing_fn: Change | list[Change] | None = None,
        bsize: int = 32,
        use_faiss: bool = False,
    ) -> None:
        """Adds documents to the index, in one commit; arguments are those of `index`.

        Raises:
            ValueError: A document of this id is there already; then none is added.
        """
        del bsize, use_faiss
        index = self._opened(index_name)
        passages = self._cut(new_collection, new_document_ids, split_documents, document_splitter_fn, preprocessing_fn)
        metadatas = by_document(passages.documents, new_document_metadatas, "new_document_metadatas")
        known = self._known()
        for document in passages.documents:
            if document in known:
                raise ValueError(f"the document {document!r} is in the index already; delete_from_index takes it out")
        about = [metadatas.get(document) for document in passages.owners]
        index.add(passages.texts, ids=passages.ids, metadata=about)
        self._passages = None

    def delete_from_index(self, document_ids: str | Sequence[str], index_name: str | None = None) -> None:
        """Deletes documents from the index, in one commit.

        Raises:
            ValueError: The index has no document of an id; then none is deleted.
        """
        index = self._opened(index_name)
        index.delete(self._passages_of([document_ids] if isinstance(document_ids, str) else document_ids))
        self._passages = None

    @overload
    def search(
        self,
        query: str,
        index_name: str | None = None,
        k: int = 10,
        force_fast: bool = False,
        zero_index_ranks: bool = False,
        doc_ids: Sequence[str] | None = None,
    ) -> list[dict[str, Any]]: ...
    @overload
    def search(
        self,
        query: list[str],
        index_name: str | None = None,
        k: int = 10,
        force_fast: bool = False,
        zero_index_ranks: bool = False,
        doc_ids: Sequence[str] | None = None,
    ) -> list[list[dict[str, Any]]]: ...
    def search(
        self,
        query: str | list[str],
        index_name: str | None = None,
        k: int = 10,
        force_fast: bool = False,
        zero_index_ranks: bool = False,
        doc_ids: Sequence[str] | None = None,
    ) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
        """Returns the `k` passages of the index that fit a query best.

        They are dicts with content, score, rank, document_id, passage_id (the document's id, `#` and a number, which
        stay what they are) and, where the document has some, document_metadata.

        Args:
            query: One, or a list of them, which gives a list of results.
            index_name: Another index than the one that was made or opened last.
            k: How many passages.
            force_fast: Whether to look at fewer of them.
            zero_index_ranks: Whether ranks begin with 0.
            doc_ids: Of these documents only.

        Raises:
            ValueError: There is no index; it has no document of an id.
        """
        index = self._opened(index_name)
        if index.refresh():
            self._passages = None
        ids = None if doc_ids is None else self._passages_of(doc_ids)
        queries = [query] if isinstance(query, str) else query
        first = 0 if zero_index_ranks else 1
        found = []
        for hits in index.search_batch(queries, k, ids, probes=8 if force_fast else None):
            results = []
            for hit in hits:
                result: dict[str, Any] = {"content": hit.text, "score": hit.score, "rank": hit.rank - 1 + first}
                result |= {"document_id": document_of(hit.id), "passage_id": hit.id}
                if hit.metadata is not None:
                    result["document_metadata"] = hit.metadata
                results.append(result)
            found.append(results)
        return found[0] if isinstance(query, str) else found

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

    def as_langchain_retriever(self, **kwargs: Any) -> RAGRetriever:
        """Returns `search` as LangChain's retriever, with these arguments; needs `adventures[langchain]`."""
        from adventures.langchain import RAGRetriever

        return RAGRetriever(model=self, kwargs=kwargs)

    def as_langchain_document_compressor(self, k: int = 5) -> RAGCompressor:
        """Returns `rerank` as LangChain's document compressor, which leaves `k`; needs `adventures[langchain]`."""
        from adventures.langchain import RAGCompressor

        return RAGCompressor(model=self, k=k)

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
            scores = self.model.maxsim(LongQueries(self.model).embed_query(one), encoded)
            results = []
            for rank, i in enumerate(np.argsort(-scores, kind="stable")[:k].tolist(), start=first):
                result = {"content": documents[i], "score": float(scores[i]), "rank": rank, "result_index": i}
                if metadatas is not None and metadatas[i] is not None:
                    result["document_metadata"] = metadatas[i]
                results.append(result)
            found.append(results)
        return found[0] if isinstance(query, str) else found

    def _open(self, path: Path, record: dict[str, Any]) -> None:
        self._max_document_length = record["max_document_length"]
        self._index = ColbertIndex.open(path / "index", LongQueries(self.model, self._max_document_length))
        self._passages = None
        self.index_path = str(path)

    def _opened(self, name: str | None) -> ColbertIndex:
        """The index of a name, or the one that is open."""
        if name is not None and (self.index_path is None or Path(self.index_path).name != name):
            path = self._root / "colbert" / "indexes" / name
            if not _NAME.fullmatch(name) or not (path / RECORD).exists():
                raise ValueError(f"no index {name!r} below {self._root}: `index` makes one")
            self._open(path, record_of(path))
        if self._index is None:
            raise ValueError("there is no index: `index` makes one, `from_index` opens one")
        return self._index

    def _known(self) -> dict[str, list[str]]:
        """The passages of each document."""
        assert self._index is not None
        if self._passages is None:
            self._passages = {}
            for id_ in self._index.ids():
                self._passages.setdefault(document_of(id_), []).append(id_)
        return self._passages

    def _passages_of(self, documents: Sequence[str]) -> list[str]:
        known = self._known()
        for document in documents:
            if document not in known:
                raise ValueError(f"the index has no document {document!r}")
        return [id_ for document in dict.fromkeys(documents) for id_ in known[document]]

    def _cut(
        self,
        collection: Sequence[str],
        document_ids: Sequence[str] | None,
        split_documents: bool,
        split: Change | None,
        change: Change | list[Change] | None,
    ) -> Passages:
        def ours(texts: list[str], ids: list[str], chunk_size: int) -> list[dict[str, Any]]:
            # As much overlap as RAGatouille's splitter has.
            cut = self.model.split(texts, doc_maxlen=chunk_size, overlap=min(chunk_size // 4, 64))
            return [{"document_id": id_, "content": piece} for id_, own in zip(ids, cut, strict=True) for piece in own]

        changes = change if isinstance(change, list) else [] if change is None else [change]
        splitter = (split or ours) if split_documents else None
        return Passages.of(collection, document_ids, splitter, changes, chunk_size=self._max_document_length)
