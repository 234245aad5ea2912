"""What is left of a library after a power cut, put together again.

A process that is killed tears nothing: LanceDB's commits are whole or not there. A machine that loses its power can
leave files of any length. What was published was put on the disk first, so at most what came after it is torn.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adventures._adventures import AdventuresError
from adventures.snapshot import read_source
from adventures.store import TAG

if TYPE_CHECKING:
    from pathlib import Path

    from lancedb.table import Table

    from adventures.store import Store

# What a manifest ends with: https://lance.org/format/
_MAGIC = b"LANC"
_ERRORS = (OSError, RuntimeError, ValueError)


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What a repair found and did.

    Attributes:
        version: The version of the Delta table that the library mirrors now.
        passages: How many passages it holds, all of which were read.
        moved: Torn files that were moved out of the way, with where they are now.
        rolled_back: Whether an older version is published than before, for the newest could not be read.
        rebuilt: Indexes that were made anew.
    """

    version: int
    passages: int
    moved: dict[str, str]
    rolled_back: bool
    rebuilt: list[str]


def repair(store: Store) -> RepairReport:
    """Makes a library readable again. The caller holds the writer's lock.

    Raises:
        AdventuresError: No version of it can be read.
        FileNotFoundError: There is none.
    """
    folder = store.folder
    if folder is None:
        raise ValueError(f"cannot repair {store}: an object store tears no files")
    if not folder.is_dir():
        raise FileNotFoundError(f"no library at {store.path}: {folder.name} does not exist")
    aside = folder.parent / f"{folder.name}.torn-{time.strftime('%Y%m%d-%H%M%S')}"
    moved = {str(file): str(_move(file, folder, aside)) for file in _torn(folder)}
    candidates = _candidates(folder)
    wanted = _tagged(folder, TAG)
    for version in candidates:
        table = _readable(store, version)
        if table is None:
            continue
        rolled_back = wanted is not None and version != wanted
        rebuilt = _publish(store, version)
        snapshot = store.snapshot()
        if snapshot is None:
            raise AdventuresError(f"cannot repair {store}: version {version} was published and is not there")
        return RepairReport(snapshot.source["version"], snapshot.rows, moved, rolled_back, rebuilt)
    raise AdventuresError(
        f"cannot repair {store}: none of its {len(candidates)} published versions can be read; move {folder} away and"
        " sync anew"
    )


def _torn(folder: Path) -> list[Path]:
    """Manifests and tags that no reader can make sense of."""
    torn = [file for file in sorted((folder / "_versions").glob("*.manifest")) if not _is_manifest(file)]
    hint = folder / "_versions" / "latest_version_hint.json"
    if hint.exists() and (torn or _version_of(hint) is None):
        torn.append(hint)
    torn += [file for file in sorted((folder / "_refs" / "tags").glob("*.json")) if _version_of(file) is None]
    return torn


def _is_manifest(file: Path) -> bool:
    data = file.read_bytes()
    return data.endswith(_MAGIC) and len(data) > 16


def _version_of(tag: Path) -> int | None:
    try:
        return int(json.loads(tag.read_bytes())["version"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _move(file: Path, folder: Path, aside: Path) -> Path:
    place = aside / file.relative_to(folder)
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(file, place)
    return place


def _tagged(folder: Path, name: str) -> int | None:
    return _version_of(folder / "_refs" / "tags" / f"{name}.json")


def _candidates(folder: Path) -> list[int]:
    """LanceDB's numbers of the versions that were published: that of the tag first, then the newest."""
    tags = {file.stem: _version_of(file) for file in (folder / "_refs" / "tags").glob(f"{TAG}*.json")}
    kept = sorted((version for name, version in tags.items() if version is not None and name != TAG), reverse=True)
    published = tags.get(TAG)
    return kept if published is None else [published, *(version for version in kept if version != published)]


def _readable(store: Store, version: int) -> Table | None:
    """The table at a version, all of whose passages were read; None where that fails."""
    try:
        table = store.open()
        if table is None:
            return None
        table.checkout(version)
        count = 0
        batches: Any = table.search().limit(None).to_batches()
        for batch in batches:
            batch.validate(full=True)
            count += batch.num_rows
        # A sync records what it mirrors last, so a version that says so is whole.
        whole = count == table.count_rows() and bool(read_source(table.schema))
    except _ERRORS:
        return None
    return table if whole else None


def _publish(store: Store, version: int) -> list[str]:
    """Makes a version the newest, with indexes that can be read, and shows it to readers; returns indexes made anew."""
    started = time.time()
    table = store.open()
    if table is None:
        raise AdventuresError(f"cannot repair {store}: it is gone")
    table.checkout(version)
    broken = [index for index in table.list_indices() if not _searchable(table, index)]
    table = store.open() or table
    if table.version != version:
        table.restore(version)
    for index in broken:
        table.drop_index(index.name)
    store.index(table)
    store.mark(table, since=started)
    return [index.name for index in broken]


def _searchable(table: Table, index: Any) -> bool:
    search: Any = table.search
    try:
        if "row_id" in index.columns:
            return table.count_rows("row_id >= ''") == table.count_rows()
        if "vector" in index.columns:
            size = table.schema.field("vector").type.list_size
            query = search([1.0] * size, vector_column_name="vector", query_type="vector").nprobes(10**6)
        else:
            first = search().select(["text"]).limit(1).to_arrow().column("text").to_pylist()
            query = search(first[0] if first else "text", query_type="fts")
        query.limit(10).to_arrow()
    except _ERRORS:
        return False
    return True
