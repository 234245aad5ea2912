"""The hub: ids, what the local hub cache holds, and downloads from it."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from adventures.models.cache import offline

if TYPE_CHECKING:
    from collections.abc import Iterator

# What makes a model, whatever else is in its repository. Pickled weights (.bin, .pt) run code when they are read, so
# they are never fetched.
DIRECTORY_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "[0-9]_*/config.json",
    "[0-9]_*/model.safetensors",
    "adapter_config.json",
    "adapter_model.safetensors",
    "llm2vec_config.json",
    "artifact.metadata",
)
# What changes how an adapter is used, where its repository has it.
ADAPTER_EXTRAS = ("tokenizer.json", "config.json", "llm2vec_config.json")

_SEGMENT = r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9_])?"
_HUB_ID = re.compile(
    rf"(?P<repository>{_SEGMENT}/{_SEGMENT})(?:@(?P<revision>[\w.-]+(?:/[\w.-]+)*?))?(?:[:/](?P<file>[\w./-]+\.gguf))?",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class HubId:
    """A hub repository, at a revision, and perhaps one file of it."""

    repository: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        """Returns the id as a spec."""
        at = f"@{self.revision}" if self.revision not in (None, "main") else ""
        return f"{self.repository}{at}" + (f":{self.file}" if self.file else "")


def parse(spec: str, revision: str | None = None) -> HubId | None:
    """Returns the hub id that a spec writes, or `None` where it does not look like one.

    Forms: `owner/name`, `owner/name@revision`, and with a GGUF file `owner/name:file.gguf`,
    `owner/name@revision:file.gguf` or `owner/name/file.gguf`.

    Raises:
        ValueError: `revision` is not the one in the spec.
    """
    match = _HUB_ID.fullmatch(spec)
    if match is None or ".." in spec or match["repository"].lower().endswith(".gguf"):
        return None
    if revision and match["revision"] not in (None, revision):
        raise ValueError(f"{match['repository']} is asked for at two revisions: {match['revision']!r} and {revision!r}")
    return HubId(match["repository"], match["revision"] or revision, match["file"])


def check_revision(revision: str | None) -> None:
    """Raises ValueError where a revision cannot be the name of a commit, tag or branch: git allows no blanks in these.

    Without the check it would become part of an address and of a folder's name.
    """
    if revision is not None and not isinstance(revision, str):
        raise TypeError(f"a revision is a string, not {type(revision).__name__}")
    if revision is not None and not (revision and revision.isprintable() and " " not in revision):
        raise ValueError(f"a revision is a commit, tag or branch, not {revision!r}")


def cached(hub_id: HubId) -> Path | None:
    """Returns the file or directory of a model in the local hub cache, or `None` where a part is missing.

    Nothing is asked of the network. A directory counts once its configuration, tokenizer and every weights file are
    there, and once it is known whether it describes a pooling: other programs cache a part of a repository only,
    and a pooling that is missing would be guessed. So does an adapter, once its two files are there and it is known
    what else it has.
    """
    from huggingface_hub import try_to_load_from_cache

    def found(name: str) -> Path | None:
        path = try_to_load_from_cache(hub_id.repository, name, revision=hub_id.revision)
        return Path(path) if isinstance(path, str) else None

    if hub_id.file:
        return found(hub_id.file)
    if (adapter := found("adapter_config.json")) and found("adapter_model.safetensors"):
        known = (try_to_load_from_cache(hub_id.repository, name, revision=hub_id.revision) for name in ADAPTER_EXTRAS)
        return adapter.parent if all(extra is not None for extra in known) else None
    config = found("config.json")
    if config is None or not has_weights(config.parent) or not found("tokenizer.json"):
        return None
    modules = try_to_load_from_cache(hub_id.repository, "modules.json", revision=hub_id.revision)
    if modules is None:
        return None
    if isinstance(modules, str):
        try:
            parts = [
                module["path"]
                for module in json.loads(Path(modules).read_bytes())
                if module["type"].endswith("Pooling")
            ]
        except (ValueError, KeyError, TypeError):
            parts = []  # whoever loads it says what is wrong with it
        if not all((config.parent / part / "config.json").is_file() for part in parts):
            return None
    return config.parent


def has_weights(directory: Path) -> bool:
    """Whether a directory holds all its safetensors files: the one, or each that the index names."""
    if (directory / "model.safetensors").is_file():
        return True
    try:
        shards = json.loads((directory / "model.safetensors.index.json").read_bytes())["weight_map"].values()
        return all((directory / shard).is_file() for shard in set(shards))
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return False


def download(hub_id: HubId, *, progress: bool, into: Path | None = None) -> tuple[Path, str]:
    """Fetches a model's files.

    A dropped connection is picked up where it broke, and files that an earlier attempt finished are kept.

    Args:
        hub_id: The model.
        progress: Whether to draw bars on stderr.
        into: A folder for plain copies; `None` for the hub cache, which other programs share.

    Returns:
        The file or directory, and the commit.

    Raises:
        LookupError: There is no such repository, revision or file, or no weights that can be read safely.
        PermissionError: The repository asks for a token, or for an account that has accepted its licence.
        ConnectionError: The hub cannot be reached, or the environment says to stay offline.
        OSError: Anything else that the hub answered.
    """
    from huggingface_hub import HfApi, snapshot_download

    with _errors(hub_id), _bars(progress):
        info = HfApi(library_name="adventures").model_info(hub_id.repository, revision=hub_id.revision, timeout=10)
        if info.sha is None:
            raise OSError(f"the hub names no commit for {hub_id}")
        names = _choose(hub_id, [sibling.rfilename for sibling in info.siblings or []])
        # The hub's cache learns from the name that was asked for which commit it stands for; a folder of our own has to
        # hold the commit that the names were listed of.
        revision = info.sha if into else hub_id.revision
        patterns = [_literal(name) for name in names]
        folder = Path(snapshot_download(hub_id.repository, revision=revision, allow_patterns=patterns, local_dir=into))
        # With a folder of its own, the client answers a lost connection with what is already there.
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise ConnectionError(f"the download of {hub_id} stopped before {missing[0]}: run it again to resume")
        if into is None:
            _remember(hub_id, names)
    return (folder / hub_id.file if hub_id.file else folder), info.sha


def _choose(hub_id: HubId, names: list[str]) -> list[str]:
    """Returns which of a repository's files to fetch."""
    ggufs = [name for name in names if name.lower().endswith(".gguf")]
    if hub_id.file:
        if hub_id.file not in names:
            held = f"it has {', '.join(ggufs)}" if ggufs else "it has no GGUF file"
            raise LookupError(f"no file {hub_id.file} in {hub_id.repository}: {held}")
        return [hub_id.file]
    wanted = [name for name in names if any(fnmatchcase(name, pattern) for pattern in DIRECTORY_FILES)]
    if any(name.endswith(".safetensors") for name in wanted):
        return wanted
    if ggufs:
        raise LookupError(
            f"{hub_id.repository} holds GGUF files: name one, as {hub_id.repository}:{ggufs[0]} (of {', '.join(ggufs)})"
        )
    raise LookupError(
        f"{hub_id.repository} has no safetensors or GGUF weights; pickled weights (.bin, .pt) are not loaded"
    )


def _literal(name: str) -> str:
    """Returns the pattern that matches this name alone."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _remember(hub_id: HubId, names: list[str]) -> None:
    """Lets the hub cache know which files that a model may do without a repository lacks."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    if hub_id.file:
        return
    optional = ADAPTER_EXTRAS if "adapter_config.json" in names else ("modules.json",)
    for name in optional:
        if name not in names:
            with suppress(EntryNotFoundError):
                hf_hub_download(hub_id.repository, name, revision=hub_id.revision)


@contextmanager
def _bars(progress: bool) -> Iterator[None]:
    """Sets the hub client's progress bars for the block, and puts them back."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    change = not (progress or are_progress_bars_disabled())
    if change:
        disable_progress_bars()
    try:
        yield
    finally:
        if change:
            enable_progress_bars()


@contextmanager
def _errors(hub_id: HubId) -> Iterator[None]:
    """Turns the hub client's errors into the built-in ones that `download` names."""
    if offline():
        raise ConnectionError(f"the environment says to stay offline (HF_HUB_OFFLINE), so {hub_id} is not fetched")
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{hub_id.repository}"
    token = "give a token in HF_TOKEN or with `hf auth login`"  # noqa: S105 (a sentence, not a token)
    try:
        yield
    except errors.GatedRepoError as error:
        raise PermissionError(f"{hub_id.repository} is gated: accept its licence at {page}, then {token}") from error
    except errors.RevisionNotFoundError as error:
        raise LookupError(f"no revision {hub_id.revision!r} of {hub_id.repository} at {page}") from error
    except errors.RepositoryNotFoundError as error:
        raise LookupError(f"no model {hub_id.repository} at {page}; if it is private, {token}") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403):
            raise PermissionError(f"the hub refuses {hub_id} (HTTP {status}): {token}; its page: {page}") from error
        raise OSError(f"the hub answers HTTP {status} for {hub_id}: {_first_line(error)}") from error
    except (LookupError, ConnectionError, PermissionError):
        raise
    except errors.LocalEntryNotFoundError as error:
        raise ConnectionError(f"cannot reach the hub for {hub_id}: {_first_line(error.__cause__ or error)}") from error
    except (OSError, ValueError):
        raise
    except Exception as error:  # the client lets its HTTP library's errors through, and changed the library once
        raise ConnectionError(f"cannot reach the hub for {hub_id}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"^\[Errno -?\d+\] ", "", lines[0]).lower()
