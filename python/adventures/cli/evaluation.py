"""`adventures eval`: how good retrieval and answers are."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from adventures.cli import calibration, comparison, options, replies
from adventures.cli.program import put_json, put_table

if TYPE_CHECKING:
    from adventures.evaluate import Scores

_HELP = ("-h", "--help")


class _Evaluation(click.Group):
    """A group whose command `retrieval` may be left out."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Puts the name in where it is left out."""
        if not args or (args[0] not in self.commands and args[0] not in _HELP):
            args = ["retrieval", *args]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the commands' names, in the order of their definition."""
        del ctx
        return list(self.commands)


@click.group("eval", cls=_Evaluation)
def evaluate() -> None:
    """Measure retrieval and answers, and compare ways to get them.

    Without the name of a command, it is retrieval.

    adventures eval
    adventures eval nfcorpus.zip
    adventures eval compare nfcorpus.zip dense hybrid
    adventures eval calibrate questions.jsonl -l ./lib
    adventures eval answers questions.jsonl -l ./lib
    """


@evaluate.command()
@click.argument("dataset", required=False)
@click.option("--split", default="test", show_default=True, help="Which judgements: qrels/SPLIT.tsv.")
@options.model
@options.device
@options.threads
@options.quantize
@options.precision
@options.as_json
@click.pass_context
def retrieval(
    ctx: click.Context,
    *,
    dataset: str | None,
    split: str,
    embedder_spec: str,
    device: str,
    threads: int | None,
    quantize: options.Quantize | None,
    precision: options.Precision,
    as_json: bool,
) -> None:
    """Measure how well an embedder finds what people judged relevant.

    DATASET is a folder or a zip in BEIR's format (corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv);
    without it, the demo's stock and held-out questions are used. Search is exact, and the measures
    are trec_eval's, so that figures compare with published ones.

      adventures eval retrieval
      adventures eval retrieval nfcorpus.zip -e e5-small-v2 --json
    """
    from adventures.dataset import Dataset
    from adventures.evaluate import evaluate as run

    data = Dataset.read(dataset, split=split) if dataset else Dataset.demo()
    embedder = options.open_embedder(
        embedder_spec, device=device, threads=threads, quantize=quantize, precision=precision
    )
    quiet = ctx.find_root().params["quiet"]
    with options.bar(len(data.documents), "documents", quiet=quiet) as advance:
        result = run(data, embedder, chunk=1024, progress=advance)
    put_json(asdict(result)) if as_json else put_table(_rows(result))


evaluate.add_command(comparison.compare)
evaluate.add_command(calibration.calibrate)
evaluate.add_command(replies.answers)


def _rows(scores: Scores) -> list[tuple[str, str]]:
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
