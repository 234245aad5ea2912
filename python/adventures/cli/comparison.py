"""`adventures eval compare`: settings of retrieval over judged questions."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from adventures.cli import options
from adventures.cli.program import put_json, put_table, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adventures.comparison import Outcome
    from adventures.dataset import Dataset
    from adventures.spans import SpanSet


@click.command()
@click.argument("dataset")
@click.argument("settings", nargs=-1)
@click.option("--settings", "file", metavar="FILE", help="Take settings from the [[setting]] tables of a TOML file.")
@click.option("--split", default="test", show_default=True, help="Which judgements: qrels/SPLIT.tsv.")
@options.library("Search this library, whose rows DATASET judges, as it is.", required=False)
@click.option(
    "-k", type=click.IntRange(1, 1_000_000), default=20, show_default=True, metavar="N", help="Passages to ask for."
)
@click.option(
    "--budget",
    type=click.IntRange(min=1),
    default=4000,
    show_default=True,
    metavar="N",
    help="How many characters of the passages count, where characters are judged.",
)
@click.option("--plot", "picture", metavar="FILE", help="Draw quality against cost: a .png or a .html file.")
@options.embedder
@options.device
@options.threads
@options.as_json
@click.pass_context
def compare(
    ctx: click.Context,
    *,
    dataset: str,
    settings: Sequence[str],
    file: str | None,
    split: str,
    place: options.Place | None,
    k: int,
    budget: int,
    picture: str | None,
    embedder_spec: str | None,
    device: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Compare ways to cut, to embed and to search, by quality, time and size.

    A setting is dense or hybrid, with any of rerank=MODEL, mmr=X, expand=N, k=N, embedder=MODEL,
    max_tokens=N and overlap=N after commas. The first is what the others are measured against; the
    interval beside a difference holds it in 95 of 100 samples of the questions.

    DATASET is a folder or a zip in BEIR's format; demo, for the demo's stock; a file of your own
    questions (see `adventures eval answers`) with the --library that they are about; or a folder in
    the format of Chroma's chunking evaluation, where characters are judged and not documents.

      adventures eval compare nfcorpus.zip dense hybrid dense,mmr=0.7 --plot nfcorpus.html
      adventures eval compare questions.jsonl -l ./lib dense hybrid,rerank=ms-marco-minilm-l6-v2
      adventures eval compare chunking-eval dense,max_tokens=256 dense,max_tokens=128 --json
    """
    from adventures import plot
    from adventures.comparison import Models
    from adventures.comparison import compare as run
    from adventures.settings import Setting, check_names, read_settings

    chosen = [*(read_settings(file) if file else ()), *(Setting.parse(text) for text in settings)]
    check_names(chosen)
    if picture:
        plot.check(picture)
    data = _read(dataset, split, place)
    models = Models(embedder_spec or options.EMBEDDER, device=device, threads=threads)
    library = None
    if place:
        library = options.open_library(place, embedder_spec, device=device, threads=threads)
        options.say_missing(library, (row for grades in getattr(data, "judgements", {}).values() for row in grades))
    quiet = ctx.find_root().params["quiet"]
    outcomes: list[Outcome] = []
    with options.bar(len(data.queries) * len(chosen), "searches", quiet=quiet) as advance:
        for outcome in run(data, chosen, models, library=library, k=k, budget=budget, progress=advance):
            outcomes.append(outcome)
            if as_json:
                put_json(asdict(outcome))
    table = rows(outcomes)
    if not as_json:
        put_table(table)
    if picture:
        plot.save(outcomes, picture, title=f"{data.name}: {outcomes[0].queries:,} questions", table=table)
        say(f"drawn: {picture}")


def rows(outcomes: Sequence[Outcome]) -> list[tuple[str, ...]]:
    """Returns a comparison as rows of cells, the heading first."""
    names = list(outcomes[0].measures)
    heading = ("setting", *names, f"Δ {names[0]}", "95 %", "p50 ms", "p99 ms", "passages", "MB")
    return [heading, *(_row(outcome) for outcome in outcomes)]


def _row(outcome: Outcome) -> tuple[str, ...]:
    change = outcome.difference
    return (
        outcome.setting.name,
        *(f"{value:.4f}" for value in outcome.measures.values()),
        "" if change is None else f"{change.mean:+.4f}",
        "" if change is None else f"{change.low:+.4f} to {change.high:+.4f}",
        f"{outcome.p50:.1f}",
        f"{outcome.p99:.1f}",
        f"{outcome.passages:,}",
        "" if outcome.megabytes is None else f"{outcome.megabytes:.1f}",
    )


def _read(dataset: str, split: str, place: options.Place | None) -> Dataset | SpanSet:
    from adventures.dataset import Dataset
    from adventures.questions import read_questions
    from adventures.spans import SpanSet

    if dataset.endswith(".jsonl"):
        if place is None:
            raise click.UsageError(f"{dataset} judges rows of a library: name it with --library")
        return read_questions(dataset).dataset()
    if dataset == "demo":
        return Dataset.demo()
    return SpanSet.read(dataset) if SpanSet.found_at(dataset) else Dataset.read(dataset, split=split)
