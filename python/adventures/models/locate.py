"""From a spec to files: what `Embedder(spec)` and `Generator(spec)` open."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adventures.models import hub
from adventures.models.cache import expand, manifest, offline
from adventures.models.catalogue import Kind, Model, find, list_models, show
from adventures.models.pull import model_folder, other_revision, pull


@dataclass(frozen=True, slots=True)
class Located:
    """A model on this machine.

    Attributes:
        path: Its directory or `.gguf` file; of an adapter, those of the model that it was trained on.
        name: The catalogue name, the hub id, or the base name of the directory or file; `model+adapter` where an
            adapter was asked for beside a model.
        revision: What tells these weights from others of the same name: the first digits of their sha256, a hub commit,
            or `local-…`, computed from the files of a directory. Where several make a model, their revisions are joined
            by `+`: of what was asked for, of what that is based on, of the adapter beside it.
        profile: How the catalogue says to use it; empty for a model that the catalogue does not know.
        adapters: Directories of LoRA adapters, in the order in which they are merged into the weights.
    """

    path: Path
    name: str
    revision: str
    profile: dict[str, Any] = field(default_factory=dict)
    adapters: tuple[Path, ...] = ()


def locate(
    spec: str | os.PathLike[str],
    *,
    revision: str | None = None,
    kind: Kind | None = None,
    adapter: str | os.PathLike[str] | None = None,
) -> Located:
    """Finds a model on this machine, and fetches it first where it has to.

    A spec is, in this order:

    1. a directory with a `config.json` or an `adapter_config.json`, a directory with one `.gguf` file, or such a file;
    2. a catalogue name (`adventures models list`), which is looked for in the cache;
    3. a hub id: `owner/name`, `owner/name@revision`, `owner/name:file.gguf`. It is looked for in the hub's cache
       (`HF_HUB_CACHE`, `HF_HOME`), which other programs share.

    Names and hub ids that are not on this machine are downloaded, as `adventures models pull` does, with progress on
    stderr. Those that are, are used without asking the network: a newer commit comes with `adventures models pull`.
    With `HF_HUB_OFFLINE=1` or `ADVENTURES_OFFLINE=1` nothing is downloaded.

    A directory or file whose base name the catalogue knows gets that entry's profile.

    An adapter, as PEFT saves it, is located with the model that its `adapter_config.json` names: a path, absolute or
    from the adapter's directory, or a hub id. `model+adapter` is a model and an adapter beside it.

    Args:
        spec: The model.
        revision: A hub commit, tag or branch.
        kind: What the model is opened as; a catalogue model of another kind is an error.
        adapter: An adapter to merge into the model, named as a model is; what it was trained on is not looked at.

    Raises:
        FileNotFoundError: There is no such path, or the model is not on this machine and the environment says to stay
            offline.
        LookupError: The catalogue has no such name, or the hub no such model.
        PermissionError: The hub asks for a token, or for an account that has accepted the licence.
        ConnectionError: The model is not on this machine and no source can be reached.
        ValueError: The model is of another kind, the directory holds no model, a path is given a revision, or that is
            not the name of one.
    """
    if adapter is None and isinstance(spec, str) and "+" in spec and "\0" not in spec and not _is_model(expand(spec)):
        spec, _, adapter = spec.partition("+")
    if adapter is None:
        return _locate(spec, revision, kind)
    # What writes may embed with an adapter.
    found, beside = _locate(spec, revision, None), _locate(adapter, None, None, bare=True)
    if not beside.adapters:
        raise ValueError(f"{adapter} is no adapter: it has no adapter_config.json")
    return replace(
        found,
        name=f"{found.name}+{beside.name}",
        revision=_joined(found.revision, beside.revision),
        adapters=(*found.adapters, *beside.adapters),
    )


def _joined(*revisions: str) -> str:
    """Returns one revision of several; empty where one is not known, as all would be taken to be equal to it."""
    return "+".join(revisions) if all(revisions) else ""


def _locate(spec: str | os.PathLike[str], revision: str | None, kind: Kind | None, *, bare: bool = False) -> Located:
    """Finds a model; of a `bare` adapter the adapter alone."""
    text = os.fspath(spec) if isinstance(spec, (str, os.PathLike)) else None
    if not isinstance(text, str):
        raise TypeError(f"a model is named by a string or a path, not by {type(spec).__name__}")
    if not text or "\0" in text:
        raise ValueError(f"a model is a catalogue name, a hub id, a directory or a .gguf file, not {text!r}")
    hub.check_revision(revision)
    path = expand(text)
    if _is_model(path):
        return _based(_at_path(path, revision), bare=bare)
    if not isinstance(spec, str) or _is_path_like(text):
        raise _no_model_at(path)
    if (hub_id := hub.parse(text, revision)) and not (hub_id.file and Path(text).parent.is_dir()):
        return _based(_from_hub(hub_id, kind), bare=bare)
    if "/" in text:
        raise FileNotFoundError(f"no model {text!r}: there is no such path, and a hub id is written owner/name")
    return _based(_from_catalogue(text, revision, kind), bare=bare)


def _based(found: Located, *, bare: bool = False) -> Located:
    """Returns a model as it is, and an adapter with the model that it was trained on, unless it is to be `bare`."""
    file = found.path / "adapter_config.json"
    if not file.is_file():
        return found
    if bare:
        return replace(found, adapters=(found.path,))
    try:
        config = json.loads(file.read_bytes())
        base, revision = config["base_model_name_or_path"], config.get("revision")
    except (ValueError, KeyError, TypeError, AttributeError):
        base, revision = None, None
    if not (isinstance(base, str) and base and "\0" not in base and isinstance(revision, str | None)):
        raise ValueError(f'{file} names no model in "base_model_name_or_path"')
    path = Path(os.path.normpath(found.path / expand(base)))
    if _is_model(path):
        if path.resolve() == found.path.resolve() or (path / "adapter_config.json").is_file():
            raise ValueError(f"{found.path} is an adapter of {path}, which is an adapter too; name the model itself")
        # A revision is that of the hub's repository which the path may once have been.
        model = _at_path(path, None)
    elif hub_id := hub.parse(base, revision or None):
        model = _from_hub(hub_id, None)
    else:
        raise FileNotFoundError(f"{file} names the model {base!r}: there is no such path, and it is no hub id")
    if (model.path / "adapter_config.json").is_file():
        raise ValueError(f"{found.path} is an adapter of {base}, which is an adapter too; name the model itself")
    return replace(found, path=model.path, revision=_joined(found.revision, model.revision), adapters=(found.path,))


def _is_path_like(text: str) -> bool:
    bare_file = "/" not in text and text.lower().endswith(".gguf")
    return bare_file or Path(text).is_absolute() or re.match(r"(\.{1,2}|~[^/]*)(/|$)", text) is not None


def _is_model(path: Path) -> bool:
    if path.is_file():
        return path.suffix.lower() == ".gguf"
    if any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
        return True
    return path.is_dir() and len(_ggufs(path)) == 1


def _ggufs(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if path.suffix.lower() == ".gguf")


def _no_model_at(path: Path) -> Exception:
    if not path.exists():
        return FileNotFoundError(f"no model at {path}: there is no such file or directory")
    if path.is_file():
        return ValueError(f"{path} is no model: a model is a directory or a .gguf file")
    if several := _ggufs(path):
        return ValueError(f"{path} holds several models: name one of {', '.join(gguf.name for gguf in several)}")
    return ValueError(f"{path} holds no model: it has neither a config.json nor a .gguf file")


def _at_path(path: Path, revision: str | None) -> Located:
    if revision:
        raise ValueError(f"a revision ({revision!r}) belongs to a hub id or a catalogue name; {path} is a path")
    path = path.absolute()
    if path.is_dir() and not any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
        path = _ggufs(path)[0]
    record = manifest(path if path.is_dir() else path.parent)
    if record:
        return Located(path, record["name"], record["revision"], _profile(find(record["name"])))
    # …/models--owner--name/snapshots/commit is how the hub's cache calls owner/name.
    snapshot = re.search(r"/models--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})(?:/|$)", path.as_posix())
    if snapshot:
        owner, base, commit = snapshot.groups()
        file = path.name if path.is_file() else ""
        return Located(path, f"{owner}/{base}", commit, _profile(find(file or base, f"{owner}/{base}")))
    return Located(path, path.name, _local_revision(path), _profile(find(path.name)))


def _from_hub(hub_id: hub.HubId, kind: Kind | None) -> Located:
    file = (hub_id.file or "").split("/")[-1]
    model = find(file or hub_id.repository.split("/")[-1], hub_id.repository)
    _check_kind(str(hub_id), model, kind)
    path = hub.cached(hub_id)
    if path is None:
        path = _fetch(str(hub_id), str(hub_id), "the hub's cache")
    commit = re.search(r"/snapshots/([0-9a-f]{40})(?:/|$)", path.as_posix())
    name = f"{hub_id.repository}:{hub_id.file}" if hub_id.file else hub_id.repository
    return Located(path, name, commit[1] if commit else "", _profile(model))


def _from_catalogue(name: str, revision: str | None, kind: Kind | None) -> Located:
    model = show(name)
    _check_kind(name, model, kind)
    other = other_revision(model, revision)
    folder = model_folder(model, other)
    record = manifest(folder)
    if record is None:
        _fetch(model, f"{model.name} --revision {other}" if other else model.name, str(folder.parent), revision=other)
        record = manifest(folder) or {}
    return Located(
        folder / model.file if model.file else folder, model.name, record.get("revision", ""), _profile(model)
    )


def _fetch(model: Model | str, arguments: str, place: str, *, revision: str | None = None) -> Path:
    """Pulls a model that is not in its place; an error says which command does that later."""
    command = f"adventures models pull {arguments}"
    name = model if isinstance(model, str) else model.name
    if offline():
        raise FileNotFoundError(
            f"{name} is not on this machine (looked in {place}) and HF_HUB_OFFLINE or ADVENTURES_OFFLINE forbids the "
            f"network; where there is one, run: {command}"
        )
    try:
        return pull(model, revision=revision)
    except ConnectionError as error:
        raise ConnectionError(f"{error}; where there is a network, run: {command}") from error


def _check_kind(name: str, model: Model | None, kind: Kind | None) -> None:
    if model and kind and model.kind != kind:
        names = ", ".join(other.name for other in list_models(kind)[:3])
        those = f"; of that kind there are {names}, …" if names else ""
        raise ValueError(f"{name} is not {_with_article(kind)} but {_with_article(model.kind)}{those}")


def _with_article(kind: str) -> str:
    return f"{'an' if kind == 'embedder' else 'a'} {kind}"


def _profile(model: Model | None) -> dict[str, Any]:
    return dict(model.profile) if model else {}


def _local_revision(path: Path) -> str:
    """Returns a name for the weights at a path that changes when they are trained further.

    Reading gigabytes to hash them would take longer than loading them does, so 64 blocks spread over each file stand
    for the rest: every step of training changes nearly every weight.
    """
    block, blocks = 4096, 64
    described = ("config.json", "tokenizer.json", "adapter_config.json", "llm2vec_config.json")
    files = [path] if path.is_file() else sorted([*path.glob("*.safetensors"), *(path / name for name in described)])
    hasher = hashlib.sha256()
    for file in files:
        if not file.is_file():
            continue
        size = file.stat().st_size
        hasher.update(f"{file.name} {size}\n".encode() if path.is_dir() else f"{size}\n".encode())
        with file.open("rb") as source:
            for index in range(blocks):
                source.seek(max(size - block, 0) * index // (blocks - 1))
                hasher.update(source.read(block))
    return f"local-{hasher.hexdigest()[:12]}"
