"""A library's passages as a vector for each token: a `ColbertIndex` beside the table, in step with what is published.

Each published version has a folder of its own, which its record names, so that the one tag that shows readers a new
version shows them its token vectors too. What did not change is in both: files of an index are never written again, and
the new folder has them by hard links.
"""

from __future__ import annotations

import os
import shutil
import uuid
from contextlib import suppress
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adventures._adventures import AdventuresError
from adventures.census import Stock, find
from adventures.index import ColbertIndex
from adventures.reader import Reader
from adventures.snapshot import LanceSnapshot
from adventures.store import LanceDraft, Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from adventures._adventures import ColBERT
    from adventures.storage import Draft, Snapshot, Storage

# Passages that are read from the table, and embedded, at once.
_PASSAGES = 256
# Past this share of deleted passages, an index is compacted.
_DELETED = 0.25
_LOCK = "write.lock"
_MANIFEST = "manifest.json"
# What a version's record has of its index: what made it, and where it is.
MADE, PLACE = "colbert", "colbert_at"


class Late:
    """Keeps token vectors in step with a library's table.

    Attributes:
        read: Passages whose token vectors were made.
        truncated: Those of them that were longer than the model reads.
    """

    def __init__(self, store: Storage, model: ColBERT, nbits: int | None = None) -> None:
        self._store = store
        self._model = model
        self._nbits = nbits
        self._made: Path | None = None
        self.read = 0
        self.truncated = 0

    def described(self, published: Snapshot | None) -> dict[str, Any]:
        """Returns what must be equal for an index to be of use as it is."""
        made = None if published is None else published.source.get(MADE)
        nbits = self._nbits or (made["nbits"] if made else 4)
        return {**model_of(self._model), "nbits": nbits}

    def is_there(self, published: Snapshot) -> bool:
        """Whether the index of a version is where its record says."""
        folder = folder_of(self._store, published)
        return folder is not None and (folder / _MANIFEST).exists()

    def bring(
        self, published: Snapshot | None, draft: Draft, described: dict[str, Any], progress: Callable[..., Any]
    ) -> dict[str, str]:
        """Makes the index of a version that was written and is not published yet; returns where it is.

        Args:
            published: The version before.
            draft: The version.
            described: What `described` said.
            progress: Is told how many passages there are to do, and gives what is told of some that are done.
        """
        assert isinstance(draft, LanceDraft)
        written = draft.snapshot()
        before = self._before(published, described)
        old = Stock.of(published if before else None)
        new = Stock.of(written)
        at = find(old.ids, new.ids)
        same = at >= 0
        same[same] = old.texts[at[same]] == new.texts[same]
        kept = np.zeros(len(old), bool)
        kept[at[same]] = True
        addresses = np.sort(new.addresses_of(np.flatnonzero(~same)))
        gone = old.addresses_of(np.flatnonzero(~kept))
        if before is not None and not len(addresses) and not len(gone):
            return {"folder": before.name, "path": str(Path(self._model.path).absolute())}
        root = root_of(self._store)
        made = root / uuid.uuid4().hex
        root.mkdir(exist_ok=True)
        self._made = made
        reader = Reader(self._model)
        with progress(len(addresses)) as told:
            ids, vectors = _columns(_read(written, addresses), reader, told)
            if before is None:
                ColbertIndex.create(made, vectors=vectors, ids=ids, model=reader, nbits=described["nbits"])
            else:
                _link(before, made)
                index = ColbertIndex.open(made, reader)
                leaving = [id_ for some in _read(published, gone, ["id"]) for (id_,) in some]
                index.upsert(vectors=vectors, ids=ids, without=leaving)
                info = index.info()
                if info["deleted"] > _DELETED * info["documents"]:
                    index.compact()
        _sync(root)
        self.read, self.truncated = reader.read, reader.truncated
        return {"folder": made.name, "path": str(Path(self._model.path).absolute())}

    def _before(self, published: Snapshot | None, described: dict[str, Any]) -> Path | None:
        """The index to begin with; None where there is none that can be used."""
        if published is None or published.source.get(MADE) != described:
            return None
        folder = folder_of(self._store, published)
        try:
            # Its files are checked as they are opened.
            whole = folder is not None and len(ColbertIndex.open(folder)) == published.rows
        except (OSError, ValueError, AdventuresError):
            whole = False
        return folder if whole else None

    def undo(self) -> None:
        """Deletes what `bring` made."""
        if self._made is not None:
            shutil.rmtree(self._made, ignore_errors=True)


def model_of(model: ColBERT) -> dict[str, Any]:
    """Returns what must be equal for token vectors to be comparable."""
    return {"name": model.name, "revision": model.revision, "dim": model.dim, "doc_maxlen": model.doc_maxlen}


def root_of(store: Storage) -> Path:
    """Returns where the token vectors of all versions are."""
    return Path(store.path) / f"{store.name}.colbert"


def folder_of(store: Storage, snapshot: Snapshot) -> Path | None:
    """Returns where the token vectors of a version are; None where it has none."""
    place = snapshot.source.get(PLACE)
    return None if place is None else root_of(store) / place["folder"]


def open_index(store: Storage, snapshot: Snapshot, model: ColBERT) -> ColbertIndex:
    """Opens the token vectors of a version that has some.

    Raises:
        AdventuresError: They are damaged.
        FileNotFoundError: They are gone, as those of a version are that is kept no more.
        ValueError: Another model made them.
    """
    made, folder = snapshot.source[MADE], folder_of(store, snapshot)
    assert folder is not None
    given = model_of(model)
    # How much of a document is read is the index's, and an unknown revision is no evidence of a difference.
    names = [name for name in ("name", "dim", "revision") if name != "revision" or (made[name] and given[name])]
    if any(made[name] != given[name] for name in names):
        spelled = [f"{one['name']} {one['revision']} ({one['dim']} dimensions)" for one in (made, given)]
        raise ValueError(f"the token vectors of {store} were made by {spelled[0]}, not by {spelled[1]}")
    if not (folder / _MANIFEST).exists():
        raise FileNotFoundError(f"no token vectors at {folder}")
    try:
        return ColbertIndex.open(folder, model, threads=model.threads)
    except (OSError, ValueError) as error:
        raise AdventuresError(
            f"the token vectors of {store} are damaged: {error}; delete {folder}, and the next sync makes them anew"
        ) from error


def clean(storage: Storage) -> None:
    """Deletes token vectors that no version has, be they of versions that went or of syncs that died."""
    if not isinstance(storage, Store) or "://" in storage.path or not root_of(storage).exists():
        return
    store, root = storage, root_of(storage)
    table = store.open()
    versions = [] if table is None else [*store.kept_versions(table), store.published_version(table)]
    used = set()
    for version in {version for version in versions if version is not None}:
        snapshot = store.snapshot(version)
        folder = None if snapshot is None else folder_of(store, snapshot)
        used.add(folder)
    for folder in root.iterdir():
        if folder not in used:
            shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        root.rmdir()


def _read(snapshot: Snapshot | None, addresses: NDArray[np.uint64], columns: list[str] | None = None) -> Iterator[Any]:
    """Some passages at a time: a tuple of their columns for each, by default id and text."""
    if snapshot is None:
        return
    assert isinstance(snapshot, LanceSnapshot)
    names = columns or ["id", "text"]
    for start in range(0, len(addresses), _PASSAGES):
        query = snapshot.table.take_row_ids(addresses[start : start + _PASSAGES].tolist())
        table: Any = query.select(names).to_arrow()
        yield list(zip(*(table.column(name).to_pylist() for name in names), strict=True))


def _columns(
    batches: Iterable[list[tuple[str, str]]], reader: Reader, told: Callable[[int], object]
) -> tuple[Iterator[str], Iterator[NDArray[np.float32]]]:
    """Ids and token vectors, each to be read some at a time."""

    def passages() -> Iterator[tuple[str, NDArray[np.float32]]]:
        for batch in batches:
            vectors = reader.embed_documents([text for _, text in batch])
            yield from zip((id_ for id_, _ in batch), vectors, strict=True)
            told(len(batch))

    first, second = tee(passages())
    return (id_ for id_, _ in first), (vectors for _, vectors in second)


def _link(source: Path, target: Path) -> None:
    """Makes a folder of the same files; none of them is ever written to."""
    target.mkdir()
    for file in source.iterdir():
        # A lock is held on the file, by whatever name it is opened.
        if file.name == _LOCK:
            continue
        try:
            os.link(file, target / file.name)
        except OSError:
            shutil.copyfile(file, target / file.name)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
