"""`adventures eval calibrate`: from which similarity on a library has an answer."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adventures.cli import options
from adventures.cli.program import put_json, put_table

if TYPE_CHECKING:
    from adventures import Library
    from adventures.calibration import Calibration
    from adventures.questions import Questions


@click.command()
@click.argument("questions", required=False)
@options.library("The library; by default one of the data set's documents.", required=False)
@click.option(
    "--off-topic",
    metavar="FILE",
    help="Questions that the library has no answer to: a text with one on each line, or what QUESTIONS may be.",
)
@click.option(
    "--recall",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="X",
    help="The share of the questions with an answer that must be answered; by default, what tells the two best apart.",
)
@click.option("--split", default="test", show_default=True, help="Which judgements: qrels/SPLIT.tsv.")
@options.k
@options.hybrid
@options.embedder
@options.device
@options.threads
@options.as_json
@click.pass_context
def calibrate(
    ctx: click.Context,
    *,
    questions: str | None,
    place: options.Place | None,
    off_topic: str | None,
    recall: float | None,
    split: str,
    k: int,
    hybrid: bool,
    embedder_spec: str | None,
    device: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Fit the similarity below which the answer is that the library holds nothing.

    QUESTIONS is a file of judged questions (see `adventures eval answers`), of which those without
    rows have no answer, or a data set in BEIR's format; without it, the demo's are used. Questions
    of another field will do for --off-topic; your own users' are better. What comes out is for
    --min-similarity of `adventures ask`, and for Chat(min_similarity=…).

      adventures eval calibrate questions.jsonl -l ./lib
      adventures eval calibrate nfcorpus.zip --off-topic trivia.txt --recall 0.95
      adventures ask -l ./lib --min-similarity 0.42 'What keeps feet dry?'
    """
    from adventures.calibration import best_similarities
    from adventures.calibration import calibrate as fit

    quiet = ctx.find_root().params["quiet"]
    with tempfile.TemporaryDirectory() as folder:
        judged, library = _open(
            questions, place, Path(folder), split=split, spec=embedder_spec, device=device, threads=threads
        )
        right = [question.text for question in judged.questions if question.rows]
        wrong = [question.text for question in judged.questions if not question.rows]
        if off_topic:
            wrong += options.texts_of(off_topic)
        with options.bar(len(right) + len(wrong), "questions", quiet=quiet) as advance:
            found = [
                best_similarities(library, texts, k=k, hybrid=hybrid, progress=advance) for texts in (right, wrong)
            ]
    result = fit(*found, recall=recall)
    put_json(asdict(result)) if as_json else put_table(_rows(result))


def _open(
    questions: str | None,
    place: options.Place | None,
    folder: Path,
    *,
    split: str,
    spec: str | None,
    device: str,
    threads: int | None,
) -> tuple[Questions, Library]:
    """The judged questions and the library that they are about."""
    from adventures.comparison import library_of
    from adventures.questions import Questions, judged

    if questions and questions.endswith(".jsonl") and not place:
        raise click.UsageError(f"{questions} judges rows of a library: name it with --library")
    given = None if questions is None else judged(questions, split)
    if place:
        return given or Questions.demo(), options.open_library(place, spec, device=device, threads=threads)
    from adventures.dataset import Dataset

    data = Dataset.read(questions, split=split) if questions else Dataset.demo()
    embedder = options.open_embedder(spec or options.EMBEDDER, device=device, threads=threads)
    return given or Questions.demo(), library_of(data.documents, folder, embedder)


def _rows(result: Calibration) -> list[tuple[str, str, str]]:
    fitted, held_out = result.fitted, result.held_out
    return [
        ("--min-similarity", f"{result.min_similarity:.3f}", ""),
        ("", "fitted", "held out"),
        ("precision", f"{fitted.precision:.3f}", f"{held_out.precision:.3f}"),
        ("recall", f"{fitted.recall:.3f}", f"{held_out.recall:.3f}"),
        ("refused rightly", f"{fitted.refused:.3f}", f"{held_out.refused:.3f}"),
        ("AUC", f"{result.auc:.3f}", ""),
        ("questions", f"{result.answerable:,} with an answer, {result.unanswerable:,} without", ""),
    ]
