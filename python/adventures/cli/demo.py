"""`adventures demo`: the whole way, on a made-up shop."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

import click

from adventures.cli import options
from adventures.cli.answers import stream
from adventures.cli.libraries import summary
from adventures.cli.program import put, say


@click.command()
@click.option("--data", default="data", show_default=True, metavar="DIR", help="Where the table and the library go.")
@options.generator
@options.device
@options.threads
@click.pass_context
def demo(ctx: click.Context, *, data: str, generator_spec: str, device: str, threads: int | None) -> None:
    """See it work: a Delta table of a made-up shop, a library, three questions.

    Writes the table to DIR/fantasy-library and the library to DIR/library, and fetches the two
    small models (190 MB) the first time. A second run does again only what has to be done again.

      adventures demo
      adventures ask --library data/library 'How do I cross a river of lava?'
    """
    from adventures import Chat, Library
    from adventures import demo as shop

    start = time.perf_counter()
    Path(data).mkdir(parents=True, exist_ok=True)
    table, place = Path(data) / "fantasy-library", Path(data) / "library"
    version = shop.write_table(table)
    say(f"Delta table: {table}, version {version}, {len(shop.rows())} rows")

    embedder = options.open_embedder(options.EMBEDDER, device=device, threads=threads)
    generator = options.open_generator(generator_spec, device=device, threads=threads)
    say(f"models: {embedder.name} ({embedder.dim} dimensions), {generator.name} ({generator.architecture})")

    library = Library.open(place, embedder=embedder)
    report = library.sync(
        table, id="scenario", text=shop.TEXT, progress=False if ctx.find_root().params["quiet"] else None
    )
    say(f"library: {place}, {summary(report)}")

    chat = Chat(library, generator, system=shop.SHOPKEEPER)
    for question in shop.ASK:
        put(f"\n> {question}")
        chat.reset()
        asked = time.perf_counter()
        with chat.ask(question) as answer:
            stream(answer)
        say(f"    {time.perf_counter() - asked:.1f} s")
    say(f"\nDone in {time.perf_counter() - start:.1f} s. Ask your own:")
    say(f"    {_program()} ask --library {place} 'your question'")


def _program() -> str:
    """Returns how a shell calls this program: `make demo` installs it where no shell looks."""
    beside = Path(sys.executable).with_name("adventures")
    if shutil.which("adventures") or not beside.exists():
        return "adventures"
    return os.path.relpath(beside)
