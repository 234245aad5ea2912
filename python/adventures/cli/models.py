"""`adventures models`: the catalogue, and pulling from it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, get_args

import click

from adventures.cli import options
from adventures.cli.program import put, put_json, put_table
from adventures.models import Kind, Model, cache_folder, list_models, pull, show
from adventures.models.cache import manifest
from adventures.models.pull import Source, model_folder

if TYPE_CHECKING:
    from collections.abc import Sequence


@click.group()
def models() -> None:
    """The models that are known to work: list, show, pull.

    Wherever a model is asked for, a catalogue name, a hub id (owner/name, owner/name@revision,
    owner/name:file.gguf), a directory or a .gguf file will do. What is not on this machine yet is
    fetched when it is first used; `pull` does so ahead of time.
    """


@models.command("list")
@click.option("--kind", type=click.Choice(get_args(Kind)), help="Only these.")
@options.as_json
def list_command(*, kind: Kind | None, as_json: bool) -> None:
    """List the catalogue.

    adventures models list
    adventures models list --kind generator --json | jq -r .name
    """
    entries = list_models(kind)
    if as_json:
        for model in entries:
            put_json(_described(model))
        return
    rows = [
        (
            model.name,
            model.kind,
            _megabytes(_size(model)),
            "here" if _is_here(model) else "",
            model.license.split(" (")[0],
        )
        for model in entries
    ]
    put_table([("NAME", "KIND", "SIZE", "PULLED", "LICENCE"), *rows])


@models.command("show")
@click.argument("name")
@options.as_json
def show_command(*, name: str, as_json: bool) -> None:
    """Show what the catalogue says about a model, and where its files are.

    adventures models show smollm2-135m-instruct
    """
    model = show(name)
    if as_json:
        put_json(_described(model))
        return
    put(f"{model.name}: {model.kind}. {model.notes}".rstrip())
    put_table(
        [
            ("hub", f"{model.repository}{f':{model.file}' if model.file else ''}"),
            ("revision", model.revision if model.revision != "main" else "main (whatever the hub holds there today)"),
            ("package", ", ".join(wheel.requirement for wheel in model.wheels) or "none"),
            (
                "licence",
                model.license + (", to be accepted at the hub, which then asks for a token" if model.gated else ""),
            ),
            ("size", _megabytes(_size(model)) or "not known before it is pulled"),
            ("pulled", str(_path(model)) if _is_here(model) else f"no: adventures models pull {model.name}"),
            *((f"sha256 of {file}", sha256) for file, sha256 in model.sha256.items()),
            *((f"profile: {key}", _spelled(value)) for key, value in model.profile.items()),
        ]
    )


@models.command("pull")
@click.argument("names", nargs=-1, required=True, metavar="NAME…")
@click.option(
    "--source",
    type=click.Choice(get_args(Source)),
    default="auto",
    show_default=True,
    help="Where from: the hub; the Python package index, where a package carries the model; or whichever works.",
)
@click.option("--revision", help="A hub commit, tag or branch in place of the catalogue's.")
@click.pass_context
def pull_command(ctx: click.Context, *, names: Sequence[str], source: Source, revision: str | None) -> None:
    """Bring models to this machine, and print where they are.

    A model that is already here is checked against its sha256, and fetched anew if it is damaged.
    For a gated model, accept its licence on its hub page, then set HF_TOKEN or run `hf auth login`.

      adventures models pull all-minilm-l6-v2 smollm2-135m-instruct
      adventures models pull intfloat/e5-small-v2
    """
    for name in names:
        put(
            str(
                pull(
                    name, revision=revision, source=source, progress=False if ctx.find_root().params["quiet"] else None
                )
            )
        )


def _spelled(value: object) -> str:
    """Returns an entry of a profile as TOML writes it; of worked examples only how many, for they are pages."""
    return f"{len(value)} worked turns (--json prints them)" if isinstance(value, list) else json.dumps(value)


def _path(model: Model) -> str:
    folder = model_folder(model)
    return str(folder / model.file if model.file else folder)


def _is_here(model: Model) -> bool:
    return manifest(model_folder(model)) is not None


def _described(model: Model) -> dict[str, object]:
    return {**asdict(model), "path": _path(model) if _is_here(model) else None, "cache": str(cache_folder())}


def _size(model: Model) -> int | None:
    """Returns a model's bytes: those on the disk, or what the catalogue says."""
    record = manifest(model_folder(model))
    return sum(record["files"].values()) if record else model.size


def _megabytes(size: int | None) -> str:
    return f"{size / 1e6:,.0f} MB" if size else ""
