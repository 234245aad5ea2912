"""`adventures embed`: texts to vectors."""

from __future__ import annotations

import errno
import json
import os
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

import click

from adventures.cli import options
from adventures.cli.program import open_stream, read_stdin, say

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np

    from adventures import Embedder

# Texts embedded at a time: enough to fill the model's batches, few enough to see results at once.
_BATCH = 256


@click.command()
@click.argument("files", nargs=-1, metavar="[FILE…]")
@options.model
@click.option(
    "--kind",
    type=click.Choice(["passage", "query"]),
    default="passage",
    show_default=True,
    help="What the texts are: models made for search embed questions and passages differently.",
)
@click.option("--whole", is_flag=True, help="Each file is one text, not one text a line.")
@click.option("-o", "--output", metavar="FILE", help="Where to write; stdout by default.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["jsonl", "npy"]),
    help='jsonl: a line {"text": …, "vector": […]} for each text; npy: one float32 matrix. By default what the ending '
    "of --output says, else jsonl.",
)
@options.device
@options.threads
@options.quantize
@options.precision
def embed(
    *,
    files: Sequence[str],
    embedder_spec: str,
    kind: Literal["passage", "query"],
    whole: bool,
    output: str | None,
    form: str | None,
    device: str,
    threads: int | None,
    quantize: options.Quantize | None,
    precision: options.Precision,
) -> None:
    """Embed texts: the lines of files or of stdin.

    adventures embed -o gear.npy gear.txt
    adventures embed --kind query -e e5-small-v2 questions.txt > questions.jsonl
    adventures embed --whole chapters/*.md --format npy > chapters.npy
    """
    form = form or ("npy" if output and output.endswith(".npy") else "jsonl")
    if form == "npy" and output is None and open_stream("stdout").isatty():
        raise click.UsageError("a matrix is not for a terminal: give --output FILE, or pipe it on")
    texts = _whole(files) if whole else _lines(files)
    embedder = options.open_embedder(
        embedder_spec, device=device, threads=threads, quantize=quantize, precision=precision
    )
    with _opened(output) as file:
        if form == "npy":
            _write_npy(file, embedder, texts, kind)
        else:
            _write_jsonl(file, embedder, texts, kind)


def _write_jsonl(file: IO[bytes], embedder: Embedder, texts: Iterator[str], kind: Literal["passage", "query"]) -> None:
    for batch, vectors in _embedded(embedder, texts, kind):
        for text, vector in zip(batch, vectors, strict=True):
            # Nine digits tell any two float32 apart; Python's own spelling of the float64 would be twice as long.
            numbers = ", ".join(f"{number:.9g}" for number in vector)
            file.write(f'{{"text": {json.dumps(text, ensure_ascii=False)}, "vector": [{numbers}]}}\n'.encode())
        file.flush()


def _write_npy(file: IO[bytes], embedder: Embedder, texts: Iterator[str], kind: Literal["passage", "query"]) -> None:
    import numpy as np

    blocks = [vectors for _, vectors in _embedded(embedder, texts, kind)]
    np.save(file, np.concatenate(blocks) if blocks else np.empty((0, embedder.dim), dtype=np.float32))


def _embedded(
    embedder: Embedder, texts: Iterator[str], kind: Literal["passage", "query"]
) -> Iterator[tuple[list[str], np.ndarray]]:
    truncated = 0
    while batch := list(islice(texts, _BATCH)):
        encoded = embedder.encode(batch, kind)
        truncated += len(encoded.truncated)
        yield batch, encoded.vectors
    if truncated:
        say(f"warning: {truncated} texts were cut to the {embedder.max_tokens} tokens that {embedder.name} reads")


def _lines(files: Sequence[str]) -> Iterator[str]:
    for name in files or ["-"]:
        if name == "-":
            yield from _split(read_stdin())
            continue
        with Path(name).open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    yield line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    raise ValueError(f"{name}, line {number}: not UTF-8: {error}") from error


def _split(text: str) -> list[str]:
    # Not splitlines: it also breaks at characters that are part of a text, such as U+2028.
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines[:-1] if lines[-1] == "" else lines


def _whole(files: Sequence[str]) -> Iterator[str]:
    for name in files or ["-"]:
        if name == "-":
            yield read_stdin()
            continue
        try:
            yield Path(name).read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{name} is not UTF-8: {error}") from error


@contextmanager
def _opened(output: str | None) -> Iterator[IO[bytes]]:
    """Opens stdout, or a file that appears under its name only when all is written."""
    if output in (None, "-"):
        yield open_stream("stdout").buffer
        return
    target = Path(output)
    if target.exists() and not target.is_file():  # a device or a pipe
        with target.open("wb") as file:
            yield file
        return
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(target.parent))
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            yield file
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
