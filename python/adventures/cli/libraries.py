"""`adventures sync`, `search` and `library`: a library made, looked into, and looked after."""

from __future__ import annotations

import textwrap
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Literal, cast

import click

import adventures as adv
from adventures.cli import options
from adventures.cli.program import argument_or_stdin, put, put_json, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adventures import Hit, SyncReport

# The longest line on where a passage is from: metadata may hold whole documents.
_CREDIT = 160


@click.command()
@click.option("--delta", required=True, metavar="PATH", help="The Delta table: a folder or a URI.")
@options.library()
@click.option(
    "--id", "id_columns", required=True, multiple=True, metavar="COLUMN", help="What names a row; may repeat."
)
@click.option(
    "--text",
    required=True,
    metavar="TEMPLATE",
    help="What to embed: text with columns in braces, '{name}: {description}'.",
)
@click.option(
    "--metadata",
    multiple=True,
    metavar="COLUMN",
    help="A column to keep, for --where and for the sources of an answer; may repeat. By default all.",
)
@click.option("--version", type=click.IntRange(min=0), metavar="N", help="The table's version; by default the newest.")
@click.option("--rows", metavar="SQL", help="Take only the rows that fulfil this: \"price < 20 AND region = 'North'\".")
@click.option("--max-tokens", type=int, metavar="N", help="The longest passage; by default what the model reads.")
@click.option(
    "--overlap",
    type=int,
    metavar="N",
    help="Tokens that neighbouring passages of a long text share; by default 32, or a quarter of --max-tokens.",
)
@click.option(
    "--keep",
    type=click.IntRange(min=1),
    metavar="N",
    help="Versions that stay readable; by default 2. Postgres has the newest only.",
)
@click.option("--follow-types", is_flag=True, help="Take columns that changed their type as they are now.")
@click.option("--dry-run", is_flag=True, help="Write nothing, only say what would change.")
@options.colbert
@click.option("--nbits", type=click.Choice(["1", "2", "4", "32"]), help="Bits of a dimension of a token; 4 by default.")
@click.option("--drop-colbert", is_flag=True, help="Do without the token vectors that the library has.")
@click.option(
    "--runner",
    type=click.Choice(["daft", "ray"]),
    help="Who embeds: Daft in this process, or Daft on a Ray cluster (RAY_ADDRESS, or one started here). By default "
    "this process without Daft.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Workers of --runner ray; by default what there is room for.",
)
@options.embedder
@options.device
@options.threads
@options.quantize
@options.library_precision
@options.as_json
@click.pass_context
def sync(
    ctx: click.Context,
    *,
    delta: str,
    place: options.Place,
    id_columns: Sequence[str],
    text: str,
    metadata: Sequence[str],
    version: int | None,
    rows: str | None,
    max_tokens: int | None,
    overlap: int | None,
    keep: int | None,
    follow_types: bool,
    dry_run: bool,
    colbert_spec: str | None,
    nbits: str | None,
    drop_colbert: bool,
    runner: str | None,
    workers: int | None,
    embedder_spec: str | None,
    device: str,
    threads: int | None,
    quantize: options.Quantize | None,
    precision: options.Precision | None,
    as_json: bool,
) -> None:
    """Make a library equal to a Delta table.

    The first sync embeds every row. Later ones embed what is new or changed and drop what left the
    table; a version that the library has already costs nothing. Where the table has a change data
    feed, only the rows that it names are read. When a sync fails, the library stays as it was, and
    the next one takes over what was embedded.

      adventures sync --delta ./products --library ./lib --id sku --text '{name}: {description}'
      adventures sync --delta s3://bucket/t --library ./lib --id a --id b --text '{body}' --json
      adventures sync --delta ./products --library ./lib --id sku --text '{name}' --colbert ./colbert
      adventures sync --delta ./products --library postgresql://me@host/shop --id sku --text '{name}'
    """
    if drop_colbert and (colbert_spec or nbits):
        raise click.UsageError(
            "--drop-colbert with --colbert or --nbits: it is not clear whether to keep token vectors"
        )
    if workers is not None and runner != "ray":
        raise click.UsageError("--workers is of --runner ray")
    settings = place.storage_options if "://" in delta else None
    if settings and place.path.startswith(("postgresql://", "postgres://")):
        place = replace(place, storage_options={})
    model: options.Computing = {
        "device": device,
        "threads": threads,
        "quantize": quantize,
        "precision": precision,
        "new": True,
    }
    opened = options.open_library(place, embedder_spec, **model, colbert=colbert_spec, late=not drop_colbert)
    by = None
    if runner is not None:
        # Not above: Daft is an extra.
        from adventures.distributed import DaftRunner

        load = options.library_model(place, embedder_spec, **model)
        by = DaftRunner(load, engine="ray" if runner == "ray" else "native", workers=workers, cpus=threads or 1)
    report = opened.sync(
        delta,
        id=list(id_columns),
        text=text,
        metadata=list(metadata) or None,
        version=version,
        storage_options=settings or None,
        where=rows,
        max_tokens=max_tokens,
        overlap=overlap,
        keep=keep,
        follow_types=follow_types,
        dry_run=dry_run,
        nbits=cast("Literal[1, 2, 4, 32] | None", int(nbits) if nbits else None),
        drop_colbert=drop_colbert,
        progress=False if ctx.find_root().params["quiet"] else None,
        runner=by,
    )
    if as_json:
        put_json(asdict(report))
    else:
        put(summary(report))
    if report.new_columns or report.lost_columns:
        new, lost = (", ".join(names) or "none" for names in (report.new_columns, report.lost_columns))
        say(f"columns of the table since the last sync: new {new}, gone {lost}")
    if report.colbert_truncated:
        say(f"warning: {report.colbert_truncated:,} passages are longer than the ColBERT model reads, and were cut")
    for skip in report.skipped:
        say(f"skipped {skip.count:,} rows: {skip.reason} ({', '.join(skip.examples)})")


def summary(report: SyncReport) -> str:
    """Returns a sync's report as a sentence."""
    if not report.changed:
        return f"version {report.version}: nothing to do, {report.written:,} rows as before"
    changes = {
        "added": report.added,
        "updated": report.updated,
        "deleted": report.deleted,
        "unchanged": report.unchanged,
    }
    what = ", ".join(f"{count:,} {name}" for name, count in changes.items() if count) or "no rows"
    if report.dry_run:
        return f"version {report.version}: {what}; a dry run, nothing was written"
    rate = f", {report.tokens / report.seconds:,.0f} tokens/s" if report.tokens and report.seconds else ""
    resumed = f", {report.resumed:,} of them from the sync that was interrupted" if report.resumed else ""
    late = f", {report.colbert:,} of them token by token" if report.colbert else ""
    return (
        f"version {report.version}: {what}; {report.passages:,} passages{resumed}{late} in {report.seconds:.1f} s{rate}"
    )


@click.group()
def library() -> None:
    """Look after libraries: what they keep, and repairs.

    adventures library versions -l ./lib
    adventures library repair -l ./lib
    """


@library.command()
@options.library()
@options.as_json
def versions(*, place: options.Place, as_json: bool) -> None:
    """List the versions of the Delta table that can be read, oldest first.

    adventures library versions -l ./lib
    """
    for version in options.existing(place).versions():
        if as_json:
            put_json(asdict(version))
        else:
            now = ", published" if version.published else ""
            put(f"version {version.version}: {version.passages:,} passages{now}")


@library.command()
@options.library()
@options.as_json
def repair(*, place: options.Place, as_json: bool) -> None:
    """Make a library readable again after a power cut.

    Torn files are moved aside, all passages are read, broken indexes are made anew. Where the
    published version is lost, the one before it is published; the next sync brings the rest.

      adventures library repair -l ./lib
    """
    report = adv.Library.repair(place.path, table=place.table)
    if as_json:
        put_json(asdict(report))
    else:
        back = ", an older one than was published" if report.rolled_back else ""
        put(f"version {report.version}: {report.passages:,} passages can be read{back}")
    for file, now in report.moved.items():
        say(f"moved {file} to {now}")
    for index in report.rebuilt:
        say(f"made the index {index} anew")


@click.command()
@click.argument("query")
@options.library()
@options.k
@options.hybrid
@options.retrieval
@options.rerank
@options.mmr
@options.expand
@options.where
@options.embedder
@options.colbert
@options.device
@options.threads
@options.quantize
@options.as_json
def search(
    *,
    query: str,
    place: options.Place,
    k: int,
    hybrid: bool,
    retrieval: Literal["dense", "colbert"],
    reranker_spec: str | None,
    mmr: float | None,
    expand: int,
    conditions: Sequence[str],
    embedder_spec: str | None,
    colbert_spec: str | None,
    device: str,
    threads: int | None,
    quantize: options.Quantize | None,
    as_json: bool,
) -> None:
    """Find the passages nearest to a question, best first.

    adventures search -l ./lib 'something against the cold'
    adventures search -l ./lib --hybrid 'boots of the winter stag' -k 1
    adventures search -l ./lib --rerank ms-marco-minilm-l6-v2 'a warm cloak'
    adventures search -l ./lib --expand 1 --mmr 0.7 'how the war ended'
    adventures search -l ./lib 'a warm cloak' --where 'price<20' --where region=North --json
    """
    if reranker_spec and mmr is not None:
        raise click.UsageError("--rerank and --mmr each choose an order: give one of them")
    where = options.parse_where(conditions)
    opened = options.open_library(
        place,
        embedder_spec,
        device=device,
        threads=threads,
        quantize=quantize,
        colbert=colbert_spec,
        late=retrieval == "colbert",
    )
    reranker = options.open_reranker(reranker_spec, device=device, threads=threads) if reranker_spec else None
    question = argument_or_stdin(query)
    hits = opened.search(
        question, k, hybrid=hybrid, retrieval=retrieval, where=where, rerank=reranker, mmr=mmr, expand=expand
    )
    scored = reranker is not None or retrieval == "colbert"
    for number, hit in enumerate(hits, start=1):
        if as_json:
            put_json(asdict(hit))
        else:
            put(source_line(number, hit, score=hit.score if scored else None))
    if not hits:
        say("nothing found")


def source_line(number: int, hit: Hit, *, score: float | None = None) -> str:
    """Returns a hit as a numbered line: how similar it is, or a reranker's score, which row it is, and its text."""
    row = ", ".join(str(value) for value in hit.source.row.values())
    return f"[{number}] {hit.similarity if score is None else score:.2f}  {row}: {' '.join(hit.text.split())}"


def credit_line(number: int, hit: Hit) -> str:
    """Returns where a cited passage is from, as an indented line: how similar it is, its row and its metadata."""
    row = ", ".join(str(value) for value in hit.source.row.values())
    facts = "; ".join(f"{name} {value}" for name, value in hit.metadata.items() if value is not None)
    line = f"{row} ({facts})" if facts else row
    return f"    [{number}] {hit.similarity:.2f}  {textwrap.shorten(line, _CREDIT, placeholder=' …')}"
