"""The command line, `adventures`: one module for each group of commands."""

from __future__ import annotations

import io
import sys

import click

from adventures.cli import answers, demo, embed, evaluation, index, libraries, models, serve
from adventures.cli.program import Program, keep_examples, set_up


@click.group(
    "adventures", cls=Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.option("-q", "--quiet", is_flag=True, help="No progress and no warnings on stderr.")
@click.option(
    "--debug", is_flag=True, envvar="ADVENTURES_DEBUG", show_envvar=True, help="Show where an error comes from."
)
@click.version_option(package_name="adventures", message="%(prog)s %(version)s")
@click.pass_context
def app(ctx: click.Context, *, quiet: bool, debug: bool) -> None:
    """Ask questions of your Delta tables, and get answers that cite their rows.

    Everything runs on this machine: the table's rows are embedded into a library (a LanceDB
    folder), a question finds the nearest rows, and a language model answers from them.

      adventures demo                                     see it work, on a made-up shop
      adventures sync --delta ./table --library ./lib --id sku --text '{name}: {about}'
                                                          from a Delta table to a library
      adventures search -l ./lib 'waterproof boots'       the nearest passages
      adventures ask -l ./lib 'What keeps feet dry?'      an answer with its sources
      adventures chat -l ./lib                            a conversation
      adventures serve -l ./lib                           the same for a team, over HTTP

    Answers and data go to stdout, everything else to stderr. Exit codes: 0 done, 1 failed,
    2 used wrongly. A file name or question of - is read from stdin.
    """
    set_up(ctx, quiet=quiet)
    del debug  # read by Program.invoke


for command in (
    demo.demo,
    models.models,
    embed.embed,
    libraries.sync,
    libraries.search,
    libraries.library,
    index.index,
    answers.ask,
    answers.chat,
    evaluation.evaluate,
    serve.serve,
):
    app.add_command(command)
keep_examples(app)


def main() -> None:
    """Runs the program and ends the process with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        # Data is UTF-8 in any locale, as it is in files; what is no text (bytes of a file name) is shown escaped.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    app(prog_name="adventures")
