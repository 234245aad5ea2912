"""Settings of retrieval, as `adventures eval compare` takes them: from words, or from a TOML file."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adventures import neighbours

if TYPE_CHECKING:
    import os

_WAYS = {"dense": False, "hybrid": True}


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to make a library and to search it.

    Attributes:
        name: What it is called in a report.
        hybrid: Whether full-text search takes part.
        rerank: The reranker; none by default.
        mmr: As in `Library.search`.
        expand: As in `Library.search`.
        k: How many passages are asked for; None for what the comparison says.
        embedder: The embedding model; None for that of the comparison.
        max_tokens: The longest passage; None for what the model reads.
        overlap: What neighbouring passages share; None for the default of `Library.sync`.
    """

    name: str
    hybrid: bool = False
    rerank: str | None = None
    mmr: float | None = None
    expand: int = 0
    k: int | None = None
    embedder: str | None = None
    max_tokens: int | None = None
    overlap: int | None = None

    @property
    def library(self) -> tuple[str | None, int | None, int | None]:
        """What two settings that search the same library have in common."""
        return self.embedder, self.max_tokens, self.overlap

    @classmethod
    def parse(cls, text: str) -> Setting:
        """Reads a setting such as `hybrid,rerank=NAME,max_tokens=128`; its text is its name.

        Raises:
            ValueError: It begins with neither `dense` nor `hybrid`; there is no such key; a value does not fit.
        """
        way, *rest = (part.strip() for part in text.split(","))
        if way not in _WAYS:
            raise ValueError(f"the setting {text!r} must begin with dense or hybrid, not {way!r}")
        given: dict[str, Any] = {"hybrid": _WAYS[way]}
        for part in rest:
            key, equals, value = part.partition("=")
            if not equals or key in given:
                raise ValueError(f"the setting {text!r} must have KEY=VALUE once for each key, not {part!r}")
            given[key] = _number(value)
        return _checked(text, given)


def read_settings(path: str | os.PathLike[str]) -> list[Setting]:
    """Reads the `[[setting]]` tables of a TOML file: the keys of `Setting`, with a name of your own or none.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not TOML, has no settings, or one of them does not fit.
    """
    try:
        document = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML: {error}") from error
    tables = document.get("setting")
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise ValueError(f"{path} has no [[setting]]")
    settings = []
    for number, table in enumerate(tables, start=1):
        name = table.pop("name", None)
        if name is not None and not isinstance(name, str):
            raise ValueError(f"{path}: the name of setting {number} must be a string, not {name!r}")
        setting = _checked(name or f"setting {number} of {path}", table)
        settings.append(setting if name else replace(setting, name=_spelled(setting)))
    return settings


def check_names(settings: list[Setting]) -> None:
    """Raises ValueError where there are none, or two of one name."""
    if not settings:
        raise ValueError("there is no setting to compare; dense and hybrid are two")
    names = [setting.name for setting in settings]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two settings have the name {name!r}")


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _spelled(setting: Setting) -> str:
    given = [f"{key}={getattr(setting, key)}" for key in _KINDS if getattr(setting, key) not in (None, 0)]
    return ",".join(["hybrid" if setting.hybrid else "dense", *given])


_KINDS: dict[str, tuple[type, ...]] = {
    "rerank": (str,),
    "mmr": (int, float),
    "expand": (int,),
    "k": (int,),
    "embedder": (str,),
    "max_tokens": (int,),
    "overlap": (int,),
}


def _checked(name: str, given: dict[str, Any]) -> Setting:
    known = [field.name for field in fields(Setting) if field.name != "name"]
    for key, value in given.items():
        if key not in known:
            raise ValueError(f"the setting {name!r} has no key {key!r}; there are {', '.join(known)}")
        kinds = _KINDS.get(key, (bool,))
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise ValueError(f"the setting {name!r} needs {wanted} for {key}, not {value!r}")
    setting = Setting(name, **given)
    if setting.mmr is not None and not 0 <= setting.mmr <= 1:
        raise ValueError(f"the setting {name!r} needs from 0 to 1 for mmr, not {setting.mmr!r}")
    if setting.mmr is not None and setting.rerank is not None:
        raise ValueError(f"the setting {name!r} has rerank and mmr, which each choose an order: give one of them")
    if setting.k is not None and setting.k < 1:
        raise ValueError(f"the setting {name!r} needs 1 or more for k, not {setting.k}")
    try:
        neighbours.check(setting.expand)
    except ValueError as error:
        raise ValueError(f"the setting {name!r}: {error}") from error
    return setting
