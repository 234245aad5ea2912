"""`adventures eval answers`: what answers name, cite and rest on."""

from __future__ import annotations

import json
import tempfile
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adventures.cli import options
from adventures.cli.program import put_json, put_table, say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from adventures.answers import AnswerScores, Reply


@click.command()
@click.argument("questions", required=False)
@options.library("The library that QUESTIONS judges.", required=False)
@click.option("-o", "--output", metavar="FILE", help="Write each answer as a line of JSON, for RAGAS too.")
@options.k
@options.hybrid
@options.expand
@options.min_similarity
@click.option("--system", metavar="TEXT", help="Who answers, and how: the system text.")
@options.embedder
@options.generator
@options.device
@options.threads
@options.quantize
@options.as_json
@click.pass_context
def answers(
    ctx: click.Context,
    *,
    questions: str | None,
    place: options.Place | None,
    output: str | None,
    k: int,
    hybrid: bool,
    expand: int,
    min_similarity: float | None,
    system: str | None,
    embedder_spec: str | None,
    generator_spec: str,
    device: str,
    threads: int | None,
    quantize: options.Quantize | None,
    as_json: bool,
) -> None:
    """Ask judged questions, and look at what the answers name, cite and rest on. No model judges.

    QUESTIONS has a JSON object on each line: user_input, the question; rows, the ids of the rows
    that answer it, none where no row does; and, where it is known, reference, a good answer, and
    names, a word that a right answer has in it. Without QUESTIONS, the demo's are asked.

      adventures eval answers
      adventures eval answers questions.jsonl -l ./lib -g gemma-3-1b-it -o answers.jsonl

    The lines of --output have the fields of RAGAS' samples: EvaluationDataset.from_jsonl reads them.
    """
    from adventures import Chat, Library
    from adventures import demo as shop
    from adventures.answers import examine, summarise
    from adventures.questions import Questions, read_questions

    if (questions is None) != (place is None):
        raise click.UsageError("QUESTIONS judges rows of a library: give both, or neither for the demo")
    quiet = ctx.find_root().params["quiet"]
    asked = Questions.demo() if questions is None else read_questions(questions)
    generator = options.open_generator(generator_spec, device=device, threads=threads, quantize=quantize)
    replies: list[Reply] = []
    with tempfile.TemporaryDirectory() as folder, _lines_to(output) as write:
        if place is None:
            shop.write_table(Path(folder) / "table")
            embedder = options.open_embedder(embedder_spec or options.EMBEDDER, device=device, threads=threads)
            library = Library.open(Path(folder) / "library", embedder=embedder)
            library.sync(Path(folder) / "table", id="scenario", text=shop.TEXT, progress=False)
        else:
            library = options.open_library(place, embedder_spec, device=device, threads=threads)
            options.say_missing(library, (row for question in asked.questions for row in question.rows))
        chat = Chat(
            library,
            generator,
            system=system or (shop.SHOPKEEPER if questions is None else None),
            k=k,
            hybrid=hybrid,
            expand=expand,
            min_similarity=min_similarity,
        )
        items = [row.item for row in shop.rows()] if questions is None else []
        with options.bar(len(asked.questions), "answers", quiet=quiet) as advance:
            for reply in examine(chat, asked.questions, items=items):
                replies.append(reply)
                write(reply.record())
                advance(1)
    for reply in () if quiet else replies:
        if reply.named is False and reply.question.rows:
            say(f"not named: {reply.question.names}: {reply.question.text} → {' '.join(reply.text.split())}")
    scores = summarise(replies)
    put_json(asdict(scores)) if as_json else put_table(_rows(scores))


def _rows(scores: AnswerScores) -> list[tuple[str, str]]:
    shares = (
        ("names what it should", scores.named, f" of {scores.questions} questions"),
        ("and nothing else", scores.alone, ""),
        ("cites a right row", scores.cited, ""),
        ("citations that are right", scores.precision, ""),
        ("right row retrieved", scores.retrieved, ""),
        ("refused in error", scores.refused, ""),
        ("refused rightly", scores.off_topic_refused, f" of {scores.off_topic} questions without an answer"),
    )
    return [
        *((name, f"{share:.1%}{of}") for name, share, of in shares if share is not None),
        *([] if scores.support is None else [("support", f"{scores.support:.3f}")]),
        ("unknown citations", str(scores.unknown)),
        ("time", f"{scores.seconds:.2f} s an answer"),
    ]


@contextmanager
def _lines_to(output: str | None) -> Iterator[Callable[[dict[str, Any]], object]]:
    """Yields what writes a record as a line of JSON to a file, at once, so that a stopped run leaves what it had."""
    with nullcontext() if output is None else Path(output).open("w", encoding="utf-8") as file:
        yield lambda record: print(json.dumps(record, ensure_ascii=False), file=file, flush=True) if file else None
