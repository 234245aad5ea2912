"""`adventures serve`: the chat service, with its models fetched first."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adventures.cli import options
from adventures.cli.program import say

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM = "adventures-server"
# What the program answers without a model.
_ANSWERED_AT_ONCE = frozenset({"--models", "--probe", "--version", "-V"})
_GREETING = "Welcome, traveller. What is standing between you and your adventure?"


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": True})
@click.option(
    "-l",
    "--library",
    "library_path",
    metavar="PATH",
    help="The library that `sync` wrote: a folder, s3://, gs:// or az://.",
)
@click.option("-e", "--embedder", "embedder_spec", metavar="MODEL", help="The model that embeds.")
@click.option("-g", "--generator", "generator_spec", metavar="MODEL", help="The model that writes, or none.")
@click.option("--demo", is_flag=True, help="Serve the made-up shop of `adventures demo`, from ./data.")
@click.argument("more", nargs=-1, type=click.UNPROCESSED, metavar="[OPTIONS OF THE SERVICE]...")
def serve(
    *,
    library_path: str | None,
    embedder_spec: str | None,
    generator_spec: str | None,
    demo: bool,
    more: Sequence[str],
) -> None:
    """Serve chat over HTTP: a page for people, OpenAI's API for programs.

    Fetches the models where they are not on this machine yet, then becomes the program
    adventures-server, which `pip install ./adventures-server` installs. Its own options,
    such as --port, --host or --api-key-file, may follow; `adventures-server --help` lists them.
    Variables and a file of --config count as they do there.

      adventures serve --demo
      adventures serve -l ./lib -g gemma-3-1b-it --port 9000
    """
    from adventures.models import locate

    program = _program()
    arguments = list(more)
    if demo:
        if library_path is not None:
            raise click.UsageError("--demo serves its own library; leave out --library")
        library_path, shown = _demo(embedder_spec)
        arguments = [*shown, *arguments]
    given = (("--library", library_path), ("--embedder", embedder_spec), ("--generator", generator_spec))
    arguments += [part for flag, value in given if value is not None for part in (flag, value)]
    if not _ANSWERED_AT_ONCE.intersection(arguments):
        # The program knows what its flags, variables and file come to; what it says against them is seen as it says it.
        told = subprocess.run([program, *arguments, "--models"], stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603
        if told.returncode != 0:
            sys.exit(told.returncode)
        for model in told.stdout.splitlines():
            locate(model)
    sys.stdout.flush()
    os.execv(program, [PROGRAM, *arguments])  # noqa: S606 (no shell: the arguments are a list)


def _program() -> str:
    """Returns where the service's program is: beside this Python, or where a shell looks."""
    beside = Path(sys.executable).with_name(PROGRAM)
    found = str(beside) if beside.is_file() else shutil.which(PROGRAM)
    if found is None:
        raise FileNotFoundError(f"{PROGRAM} is not installed; in a clone run: pip install ./adventures-server")
    return found


def _demo(embedder_spec: str | None) -> tuple[str, list[str]]:
    """Returns the shop's library, made where it has to be, and what the page says for the shopkeeper."""
    from adventures import Library
    from adventures import demo as shop

    place = Path("data")
    place.mkdir(exist_ok=True)
    shop.write_table(place / "fantasy-library")
    embedder = options.open_embedder(embedder_spec or options.EMBEDDER, device="auto", threads=None)
    library = Library.open(place / "library", embedder=embedder)
    library.sync(place / "fantasy-library", id="scenario", text=shop.TEXT, progress=False)
    say(f"library: {place / 'library'}")
    shown = ["--title", "The Adventurer's Outfitter", "--greeting", _GREETING, "--system", shop.SHOPKEEPER]
    for question in shop.ASK:
        shown += ["--example", question]
    return str(place / "library"), shown
