"""The folder that pulled models live in, and how one gets there whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger("adventures")

MANIFEST = "adventures.json"


def cache_folder() -> Path:
    """Returns the cache: `$ADVENTURES_CACHE`, else `$XDG_CACHE_HOME/adventures`, else `~/.cache/adventures`.

    Models are in `models/<name>` below it.
    """
    if own := os.environ.get("ADVENTURES_CACHE"):
        return expand(own).absolute()
    # The XDG rules say that a relative path is to be ignored.
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (xdg if xdg.is_absolute() else Path.home() / ".cache") / "adventures"


def expand(path: str) -> Path:
    """Returns a path with `~` and `~user` replaced; as it is where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def offline() -> bool:
    """Whether the environment forbids the network: `HF_HUB_OFFLINE` or `ADVENTURES_OFFLINE` is set and not 0."""
    settings = (os.environ.get(name, "") for name in ("ADVENTURES_OFFLINE", "HF_HUB_OFFLINE"))
    return any(setting.strip().lower() not in ("", "0", "false", "no", "off") for setting in settings)


def digest(path: Path) -> str:
    """Returns the sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest(folder: Path) -> dict[str, Any] | None:
    """Returns what was written down about a pulled model, or `None` where the folder does not hold all of one."""
    try:
        record = json.loads((folder / MANIFEST).read_bytes())
        whole = all((folder / name).stat().st_size == size for name, size in record["files"].items())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    return record if whole else None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a model's folder, among all processes of this machine, while the block runs."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    # The lock file stays: removing it would let a third process lock a new file beside the old one.
    with (folder.parent / f".{folder.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another process that is pulling %s", folder.name)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def part_folder(folder: Path) -> Path:
    """Returns the sibling in which a model is put together; the same one each time, so that a download can resume."""
    return folder.parent / f".{folder.name}.part"


def publish(part: Path, folder: Path, record: dict[str, Any]) -> None:
    """Turns a finished part folder into the model's folder, in one rename.

    Args:
        part: What was put together.
        folder: Where it belongs; what is there now is replaced.
        record: The manifest to write, less its `files`.
    """
    paths = sorted(path for path in part.rglob("*") if path.is_file())
    files = {path.relative_to(part).as_posix(): path.stat().st_size for path in paths}
    manifest_path = part / MANIFEST
    manifest_path.write_text(json.dumps({**record, "files": files}, indent=1) + "\n", encoding="utf-8")
    # A rename may reach the disk before the bytes do: after a power cut a file would be there, and empty.
    for path in [*paths, manifest_path, *(path for path in part.rglob("*") if path.is_dir()), part]:
        _fsync(path)
    old = folder.parent / f".{folder.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    _fsync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
