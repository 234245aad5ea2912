"""What all commands share: how errors end, and what goes to stdout and stderr."""

from __future__ import annotations

import inspect
import json
import logging
import math
import os
import re
import sys
import textwrap
import warnings
from typing import TYPE_CHECKING, Any, Literal, TextIO

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

# Control characters, which could make a terminal do things when a retrieved text or a model holds them.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Failure(click.ClickException):
    """A command that failed for a reason that the user can act on."""

    def show(self, file: Any = None) -> None:  # noqa: ARG002 (click's signature)
        """Prints the message to stderr, as one line."""
        say(f"error: {' '.join(self.message.split())}")


class Program(click.Group):
    """The command line: errors in one line, commands in the order they are written.

    Exit code 0: done; 1: failed, with `error: …` on stderr; 2: used wrongly; 130: Ctrl-C. A reader of stdout that goes
    away, like `head`, is no failure.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the commands' names, in the order of their definition."""
        del ctx
        return list(self.commands)

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Runs the program; in standalone mode it ends the process with the exit code."""
        run: Any = super().main
        if not standalone_mode:
            return run(*args, standalone_mode=False, **extra)
        try:
            code = run(*args, standalone_mode=False, **extra)
        except click.Abort:
            sys.exit(130)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs a command, and turns what it raises into a `Failure`."""
        try:
            result = super().invoke(ctx)
            if sys.stdout:
                sys.stdout.flush()
        except (click.exceptions.Exit, click.Abort, click.ClickException):
            raise
        except BrokenPipeError:
            # The interpreter flushes stdout once more at its end, which must not fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            ctx.exit(0)
        except Exception as error:
            if ctx.params.get("debug"):
                raise
            raise Failure(_message(error)) from error
        return result


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        place = f": {os.fsdecode(error.filename)}" if error.filename else ""
        return f"{error.strerror.lower()}{place}"
    if isinstance(error, KeyError) and len(error.args) == 1:
        return str(error.args[0])
    if isinstance(error, TypeError | AttributeError | NameError | AssertionError):
        return f"{type(error).__name__}: {error}; this is a bug (--debug shows where)"
    return str(error) or type(error).__name__


def keep_examples(command: click.Command) -> None:
    """Marks the examples in the help of a command, and of the commands below it, as not to be wrapped."""
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    for index, paragraph in enumerate(paragraphs):
        if paragraph.lstrip().startswith("adventures "):
            paragraphs[index] = "\b\n" + textwrap.indent(textwrap.dedent(paragraph), "  ")
    command.help = "\n\n".join(paragraphs)
    for below in command.commands.values() if isinstance(command, click.Group) else ():
        keep_examples(below)


def set_up(ctx: click.Context, *, quiet: bool) -> None:
    """Sends log lines and warnings to stderr, for as long as the command runs."""
    log = logging.getLogger("adventures")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    level, show = log.level, warnings.showwarning
    log.addHandler(handler)
    log.setLevel(logging.WARNING if quiet else logging.INFO)

    def show_line(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        # Warnings of libraries are for their developers; ours are for the user.
        if category.__module__.startswith("adventures") and not quiet:
            say(f"warning: {message}")

    warnings.showwarning = show_line

    def restore() -> None:
        log.removeHandler(handler)
        log.setLevel(level)
        warnings.showwarning = show

    ctx.call_on_close(restore)


def open_stream(name: Literal["stdin", "stdout"]) -> TextIO:
    """Returns a standard stream.

    Raises:
        ValueError: The process was started without it.
    """
    stream: TextIO | None = getattr(sys, name)
    if stream is None:
        raise ValueError(f"{name} is closed")
    return stream


def say(text: str) -> None:
    """Prints a line to stderr; to a terminal without control characters."""
    click.echo(_shown(text, sys.stderr), err=True)


def put(text: str, *, end: str = "\n") -> None:
    """Prints data to stdout at once; to a terminal without control characters."""
    stdout = open_stream("stdout")
    stdout.write(_shown(text, stdout) + end)
    stdout.flush()


def _shown(text: str, stream: TextIO | None) -> str:
    return _CONTROL.sub("\ufffd", text) if stream and stream.isatty() else text


def put_json(value: object) -> None:
    """Prints a value to stdout as one line of JSON; a number that is not finite is null, bytes are hexadecimal."""
    put(json.dumps(_jsonable(value), ensure_ascii=False, default=str))


def _jsonable(value: object) -> object:
    match value:
        case float() if not math.isfinite(value):
            return None
        case bytes():
            return value.hex()
        case dict():
            return {key: _jsonable(item) for key, item in value.items()}
        case list() | tuple():
            return [_jsonable(item) for item in value]
    return value


def put_table(rows: Sequence[Sequence[str]]) -> None:
    """Prints rows to stdout in columns as wide as they need to be."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        put("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def read_stdin() -> str:
    """Returns all of stdin as text."""
    data = open_stream("stdin").buffer.read()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"stdin is not UTF-8: {error}") from error


def argument_or_stdin(text: str) -> str:
    """Returns an argument, or all of stdin where it is `-`."""
    return read_stdin().strip() if text == "-" else text
