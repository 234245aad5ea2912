"""`ColbertIndex`: documents as a vector for each token, compressed on disk, found by late interaction."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol, Self

from adventures._adventures import IndexWriter, MultiVectorIndex

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from os import PathLike

    import numpy as np
    from numpy.typing import NDArray

    from adventures._adventures import IndexInfo

    Progress = Callable[[str, int, int], object]

# Documents that are embedded and handed over together.
BATCH = 256


class Model(Protocol):
    """What makes token vectors of texts."""

    @property
    def dim(self) -> int:
        """Of the vectors."""

    def embed_documents(self, texts: list[str], /) -> Sequence[NDArray[np.float32]]:
        """Returns `(tokens, dim)` of each text."""

    def embed_query(self, text: str, /) -> NDArray[np.float32]:
        """Returns `(tokens, dim)`."""


@dataclass(frozen=True, slots=True)
class IndexHit:
    """A document that a search found."""

    id: str
    text: str | None
    #: The sum, over the query's tokens, of the largest product with a token of the document.
    score: float
    #: 1 is the best.
    rank: int
    metadata: dict[str, Any] | None


class ColbertIndex:
    """A directory of documents, each a vector for each of its tokens; make one with `create` or `open`.

    A token is the nearest of some centroids and what it lacks to it, in `nbits` bits a dimension; an index of few
    tokens keeps its vectors as they are. A search looks up candidates by the centroids nearest to the query's tokens
    and scores them by MaxSim; of few tokens it scores all.

    Files never change once written: a change writes new ones, then replaces the manifest in one step, so a crash leaves
    the last commit. One process writes at a time, others raise `BusyError`; any number read, each the commit it has
    opened (`refresh`). All methods may be called from several threads.
    """

    def __init__(self, index: MultiVectorIndex, model: Model | None = None) -> None:
        self._index = index
        self._model = model
        if model is not None:
            _check(index.info(), model)

    @classmethod
    def create(
        cls,
        path: str | PathLike[str],
        documents: Iterable[str] | None = None,
        *,
        vectors: Iterable[NDArray[np.float32]] | None = None,
        ids: Iterable[str] | None = None,
        metadata: Iterable[Mapping[str, Any] | None] | None = None,
        model: Model | None = None,
        nbits: int = 4,
        seed: int = 42,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Makes an index at `path`, a directory that is empty or not there.

        Arguments:
            path: Where.
            documents: Texts. Without `vectors`, the model makes those.
            vectors: `(tokens, dim)` of each document, float32; rows of length 1, as ColBERT's are. They are read as
                they come: an iterator needs no room for all.
            ids: One for each document, not empty, all different; made up where they are not given.
            metadata: What JSON can hold, one for each document.
            model: What makes vectors of texts, here and in later calls. The index keeps its name, revision and lengths
                (`info`), and `open` refuses another.
            nbits: 1, 2 (two and a half, to be exact) or 4 bits a dimension; 32 keeps the vectors as they are.
            seed: The same vectors and seed give the same index.
            threads: How many to use; all where it is `None`.
            progress: Is told `(stage, done, total)`; `total` is 0 where it is not known.

        Raises:
            ValueError: Something is there already, or an argument is not as above.
            BusyError: Another one is making it.
        """
        index, writer = MultiVectorIndex.create(
            path,
            dim=None if model is None else model.dim,
            nbits=nbits,
            seed=seed,
            threads=threads,
            model=None if model is None else json.dumps(_described(model)),
        )
        self = cls(index, model)
        if documents is None and vectors is None:
            documents = []
        self._fill(writer, documents, vectors, ids, metadata, progress)
        return self

    @classmethod
    def open(cls, path: str | PathLike[str], model: Model | None = None, *, threads: int | None = None) -> Self:
        """Opens the last commit of an index.

        Its files are memory-mapped, so that processes share them, and read when they are used; `verify` reads them all.

        Raises:
            FileNotFoundError: There is none.
            ValueError: It is broken, of another version, or made with another model.
        """
        return cls(MultiVectorIndex.open(path, threads=threads), model)

    def add(
        self,
        documents: Iterable[str] | None = None,
        *,
        vectors: Iterable[NDArray[np.float32]] | None = None,
        ids: Iterable[str] | None = None,
        metadata: Iterable[Mapping[str, Any] | None] | None = None,
        progress: Progress | None = None,
    ) -> list[str]:
        """Adds documents in one commit and returns their ids; fails where an id is there already.

        Arguments are as in `create`.
        """
        return self._fill(self._index.writer(), documents, vectors, ids, metadata, progress)

    def upsert(
        self,
        documents: Iterable[str] | None = None,
        *,
        ids: Iterable[str],
        vectors: Iterable[NDArray[np.float32]] | None = None,
        metadata: Iterable[Mapping[str, Any] | None] | None = None,
        without: Iterable[str] = (),
        progress: Progress | None = None,
    ) -> list[str]:
        """Adds documents in one commit, in the place of those that have their ids, and returns their ids.

        Arguments are as in `create`; documents whose ids are in `without` leave in the same commit.

        Raises:
            ValueError: An id of `without` is not in the index; then nothing changes.
        """
        if isinstance(without, str):
            raise TypeError(f"without={without!r}: expected an iterable of str, not str")
        writer = self._index.writer(upsert=True)
        return self._fill(writer, documents, vectors, ids, metadata, progress, without)

    def delete(self, ids: Iterable[str]) -> int:
        """Deletes documents in one commit and returns how many; `compact` gives their room back.

        Raises:
            ValueError: An id is not in the index; then none is deleted.
        """
        if isinstance(ids, str):
            raise TypeError(f"ids={ids!r}: expected an iterable of str, not str")
        writer = self._index.writer()
        try:
            gone = _delete(writer, ids)
            writer.commit()
        finally:
            writer.abandon()
        return gone

    def compact(self) -> None:
        """Gives the room of deleted documents back, and merges small files."""
        self._index.writer().compact()

    def verify(self) -> None:
        """Reads all files.

        Raises:
            ValueError: One is not what was written.
        """
        self._index.verify()

    def refresh(self) -> bool:
        """Reads what other processes have committed; returns whether there is any."""
        return self._index.refresh()

    def search(
        self,
        query: str | NDArray[np.float32],
        k: int = 10,
        ids: Iterable[str] | None = None,
        *,
        probes: int | None = None,
        candidates: int | None = None,
        exhaustive: bool = False,
    ) -> list[IndexHit]:
        """Returns the `k` documents nearest to a query, the best first.

        Arguments:
            query: A text for the model, or `(tokens, dim)` vectors, float32.
            k: How many at most.
            ids: Of these documents only.
            probes: The centroids nearest to each token whose documents are looked at; where it is `None`, 32 of an
                index of up to 6,400 documents, and more as the root of what it has beyond: 126 of 100,000.
            candidates: The documents that are scored; where it is `None`, the largest of 512, 16 `k`, and those that
                have 40,000 tokens.
            exhaustive: Whether to score all.

        Raises:
            ValueError: An id is not in the index, or an argument is not as above.
        """
        return self.search_batch([query], k, ids, probes=probes, candidates=candidates, exhaustive=exhaustive)[0]

    def search_batch(
        self,
        queries: Iterable[str | NDArray[np.float32]],
        k: int = 10,
        ids: Iterable[str] | None = None,
        *,
        probes: int | None = None,
        candidates: int | None = None,
        exhaustive: bool = False,
    ) -> list[list[IndexHit]]:
        """Returns what `search` returns, of each query; side by side on all threads."""
        if isinstance(queries, str):
            raise TypeError(f"queries={queries!r}: expected an iterable of queries, not str")
        vectors = [self._embedder().embed_query(query) if isinstance(query, str) else query for query in queries]
        found = self._index.search(vectors, k=k, ids=ids, probes=probes, candidates=candidates, exhaustive=exhaustive)
        return [
            [
                IndexHit(name, text, score, rank, None if metadata is None else json.loads(metadata))
                for rank, (name, text, score, metadata) in enumerate(hits, 1)
            ]
            for hits in found
        ]

    def ids(self) -> list[str]:
        """Returns the ids of all documents."""
        return self._index.ids()

    def info(self) -> IndexInfo:
        """Returns what the index is made of: documents, tokens, bytes and more."""
        return self._index.info()

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, name: object) -> bool:
        return name in self._index

    def __repr__(self) -> str:
        info = self.info()
        return f"ColbertIndex({str(info['path'])!r}, documents={info['documents']}, nbits={info['nbits']})"

    def _embedder(self) -> Model:
        if self._model is None:
            raise ValueError("texts need a model: give one to create or open, or give vectors")
        return self._model

    def _fill(
        self,
        writer: IndexWriter,
        documents: Iterable[str] | None,
        vectors: Iterable[NDArray[np.float32]] | None,
        ids: Iterable[str] | None,
        metadata: Iterable[Mapping[str, Any] | None] | None,
        progress: Progress | None,
        without: Iterable[str] = (),
    ) -> list[str]:
        try:
            names: list[str] = []
            _delete(writer, without)
            for batch in _batches(documents=documents, vectors=vectors, ids=ids, metadata=metadata):
                texts, found, own, about = batch
                if found is None:
                    found = list(self._embedder().embed_documents(texts or []))
                if own is None:
                    own = [str(uuid.uuid4()) for _ in found]
                json_of = None if about is None else [None if one is None else _json(one) for one in about]
                writer.push(own, found, texts=texts, metadata=json_of)
                names += own
                if progress is not None:
                    progress("read", len(names), 0)
            writer.commit(progress)
        finally:
            writer.abandon()
        return names


def _delete(writer: IndexWriter, ids: Iterable[str]) -> int:
    gone = list(ids)
    unknown = writer.delete_all(gone)
    if unknown is not None:
        raise ValueError(f"id {unknown!r} is not in the index")
    return len(set(gone))


_Batch = tuple[list[str] | None, list[Any] | None, list[str] | None, list[Any] | None]


def _batches(**columns: Iterable[Any] | None) -> Iterator[_Batch]:
    """Some documents at a time; fails where a column is shorter or longer than another."""
    for name, column in columns.items():
        if isinstance(column, str):
            raise TypeError(f"{name}={column!r}: expected an iterable, not str")
    if columns["documents"] is None and columns["vectors"] is None:
        raise ValueError("neither documents nor vectors are given")
    iterators = {name: iter(column) for name, column in columns.items() if column is not None}
    while True:
        rows = {name: list(islice(column, BATCH)) for name, column in iterators.items()}
        lengths = {name: len(column) for name, column in rows.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns of different lengths: {lengths} where the shortest ends")
        if not any(lengths.values()):
            return
        yield rows.get("documents"), rows.get("vectors"), rows.get("ids"), rows.get("metadata")


def _described(model: Model) -> dict[str, Any]:
    """What an index keeps of the model that it is made with: those of these that the model tells."""
    told = {name: getattr(model, name, None) for name in ("name", "revision", "dim", "query_maxlen", "doc_maxlen")}
    return {name: value for name, value in told.items() if isinstance(value, (str, int)) and value != ""}


def _check(info: IndexInfo, model: Model) -> None:
    """Fails where an index was made with another model; one that was given vectors does not know."""
    if info["dim"] not in (0, model.dim):
        raise ValueError(f"{info['path']}: the index has {info['dim']} dimensions, the model {model.dim}")
    if info["model"] is None:
        return
    made, own = json.loads(info["model"]), _described(model)
    # How products are rounded is no other model; a directory that was moved is none either.
    revisions = [str(one["revision"]).partition("+")[0] for one in (made, own) if "revision" in one]
    names = [str(one["name"]).rpartition("/")[2] for one in (made, own) if "name" in one]
    differ = [pair for pair in (revisions, names) if len(pair) == 2 and all(pair)]
    if differ and len(set(differ[0])) > 1:
        raise ValueError(
            f"{info['path']}: the index was made with {made.get('name')!r} {made.get('revision', '')!r}, "
            f"not with {own.get('name')!r} {own.get('revision', '')!r}"
        )


def _json(metadata: Mapping[str, Any]) -> str:
    try:
        return json.dumps(dict(metadata), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata={metadata!r}: not JSON: {error}") from error
