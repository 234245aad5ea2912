"""`adventures eval`: how good retrieval and answers are."""

from __future__ import annotations

import json
import sys
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
    from adventures.dataset import Dataset
    from adventures.evaluate import Scores


@click.command("eval")
@click.argument("dataset", required=False)
@click.option("--split", default="test", show_default=True, help="Which judgements: qrels/SPLIT.tsv.")
@click.option(
    "--answers", is_flag=True, help="Ask the demo's held-out questions, and look at what the answers name and cite."
)
@click.option("-o", "--output", metavar="FILE", help="With --answers: write each answer as a line of JSON.")
@options.model
@options.generator
@options.device
@options.threads
@options.quantize
@options.as_json
@click.pass_context
def evaluate(
    ctx: click.Context,
    *,
    dataset: str | None,
    split: str,
    answers: bool,
    output: str | None,
    embedder_spec: str,
    generator_spec: str,
    device: str,
    threads: int | None,
    quantize: options.Quantize | None,
    as_json: bool,
) -> None:
    """Measure retrieval, and with --answers the demo's answers.

    DATASET is a folder or a zip in BEIR's format (corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv);
    without it, the demo's stock and held-out questions are used. Search is exact, and the measures
    are trec_eval's, so that figures compare with published ones.

      adventures eval
      adventures eval nfcorpus.zip -e e5-small-v2 --json
      adventures eval --answers -o answers.jsonl
    """
    if answers and dataset:
        raise click.UsageError("--answers is for the demo's questions: leave DATASET out")
    if output and not answers:
        raise click.UsageError("--output is for --answers")
    quiet = ctx.find_root().params["quiet"]
    if answers:
        scores = _answers(
            embedder_spec, generator_spec, output, device=device, threads=threads, quantize=quantize, quiet=quiet
        )
        put_json(asdict(scores)) if as_json else put_table(_answer_rows(scores))
        return
    from adventures.dataset import Dataset

    data = Dataset.read(dataset, split=split) if dataset else Dataset.demo()
    result = _retrieval(data, embedder_spec, device=device, threads=threads, quantize=quantize, quiet=quiet)
    put_json(asdict(result)) if as_json else put_table(_retrieval_rows(result))


def _retrieval(
    data: Dataset, spec: str, *, device: str, threads: int | None, quantize: options.Quantize | None, quiet: bool
) -> Scores:
    from adventures.evaluate import evaluate

    embedder = options.open_embedder(spec, device=device, threads=threads, quantize=quantize)
    with _bar(len(data.documents), "documents", quiet=quiet) as advance:
        return evaluate(data, embedder, chunk=1024, progress=advance)


def _answers(
    embedder_spec: str,
    generator_spec: str,
    output: str | None,
    *,
    device: str,
    threads: int | None,
    quantize: options.Quantize | None,
    quiet: bool,
) -> AnswerScores:
    from adventures import Chat, Library
    from adventures import demo as shop
    from adventures.answers import examine, summarise

    embedder = options.open_embedder(embedder_spec, device=device, threads=threads)
    generator = options.open_generator(generator_spec, device=device, threads=threads, quantize=quantize)
    questions, stray = shop.questions(), shop.off_topic()
    replies: list[Reply] = []
    with tempfile.TemporaryDirectory() as folder, _lines_to(output) as write:
        shop.write_table(Path(folder) / "table")
        library = Library.open(Path(folder) / "library", embedder=embedder)
        library.sync(Path(folder) / "table", id="scenario", text=shop.TEXT, progress=False)
        chat = Chat(library, generator, system=shop.SHOPKEEPER)
        with _bar(len(questions) + len(stray), "answers", quiet=quiet) as advance:
            for reply in examine(chat, questions, stray, [row.item for row in shop.rows()]):
                replies.append(reply)
                write(asdict(reply))
                advance(1)
    for reply in replies:
        if reply.item and not reply.named and not quiet:
            say(f"not named: {reply.item}: {reply.question} → {' '.join(reply.text.split())}")
    return summarise(replies)


def _retrieval_rows(scores: Scores) -> list[tuple[str, str]]:
    rows = [
        ("nDCG@10", f"{scores.mean.ndcg:.4f}"),
        *((f"recall@{k}", f"{share:.4f}") for k, share in scores.mean.recall.items()),
        ("MRR", f"{scores.mean.mrr:.4f}"),
        (f"MAP@{scores.depth}", f"{scores.mean.map:.4f}"),
        ("model", scores.model),
        ("data", f"{scores.dataset}: {scores.queries:,} queries, {scores.documents:,} documents"),
        ("time", f"{scores.seconds:.1f} s"),
    ]
    if scores.unanswerable:
        rows.append(("left out", f"{scores.unanswerable:,} queries without a relevant document"))
    if scores.missing:
        rows.append(("missing", f"{scores.missing:,} relevant documents that the data set lacks, counted as not found"))
    if scores.truncated:
        rows.append(("cut", f"{scores.truncated:,} documents longer than the model reads"))
    return rows


def _answer_rows(scores: AnswerScores) -> list[tuple[str, str]]:
    return [
        ("names the right item", f"{scores.named:.1%} of {scores.questions}"),
        ("and no other item", f"{scores.alone:.1%}"),
        ("cites the right row", f"{scores.cited:.1%}"),
        ("right row retrieved", f"{scores.retrieved:.1%}"),
        ("refused in error", f"{scores.refused:.1%}"),
        ("refused rightly", f"{scores.off_topic_refused:.1%} of {scores.off_topic} off-topic questions"),
        ("unknown citations", str(scores.unknown)),
        ("time", f"{scores.seconds:.2f} s an answer"),
    ]


@contextmanager
def _bar(total: int, unit: str, *, quiet: bool) -> Iterator[Callable[[int], object]]:
    from tqdm import tqdm

    with tqdm(total=total, unit=f" {unit}", disable=quiet or not sys.stderr.isatty(), leave=False) as bar:
        yield bar.update


@contextmanager
def _lines_to(output: str | None) -> Iterator[Callable[[dict[str, Any]], object]]:
    """Yields what writes a record as a line of JSON to a file, at once, so that a stopped run leaves what it had."""
    with nullcontext() if output is None else Path(output).open("w", encoding="utf-8") as file:
        yield lambda record: print(json.dumps(record, ensure_ascii=False), file=file, flush=True) if file else None
