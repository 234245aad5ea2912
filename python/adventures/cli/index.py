"""`adventures index`: documents as a vector for each token, made, changed and searched."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adventures.cli import options, rows
from adventures.cli.program import argument_or_stdin, put, put_json, put_table, read_stdin, say
from adventures.cli.record import (
    Record,
    by_document,
    columns_of,
    open_index,
    open_model,
    owner_of,
    pieces_of,
    reader_of,
    spec_of,
    unlike,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from adventures import ColbertIndex
    from adventures.reader import Reader

_place = click.argument("index", metavar="INDEX")
_model = click.option(
    "-m",
    "--model",
    metavar="MODEL",
    help="The ColBERT model: a hub id or a directory. By default the one that the index was made with.",
)
_files = options.every(
    click.argument("files", nargs=-1, metavar="[FILE…]"),
    click.option(
        "--format",
        "form",
        type=click.Choice(rows.FORMATS),
        help="What the files are; by default what their endings say, Delta for a folder, and JSON lines for stdin.",
    ),
    click.option("--id", "id_column", metavar="COLUMN", help="What names a document; by default id."),
    click.option("--text", metavar="TEMPLATE", help="A column, or text with columns in braces; by default text."),
    click.option(
        "--metadata", multiple=True, metavar="COLUMN", help="A column to keep; may repeat. By default all others."
    ),
)


@click.group()
def index() -> None:
    """Find documents token by token, with ColBERT: indexes of their own, without a library.

    adventures index create ./tokens docs.jsonl --model answerdotai/answerai-colbert-small-v1
    adventures index search ./tokens 'a red planet'
    """


@index.command()
@_place
@_files
@click.option("-m", "--model", required=True, metavar="MODEL", help="The ColBERT model: a hub id or a directory.")
@click.option(
    "--nbits",
    type=click.Choice(["1", "2", "4", "32"]),
    default="4",
    show_default=True,
    help="Bits of a dimension; 32 keeps vectors as they are.",
)
@click.option("--split", is_flag=True, help="Split documents that are longer than the model reads; else they are cut.")
@click.option(
    "--max-length", type=click.IntRange(8), metavar="N", help="Tokens read of a document; by default the model's own."
)
@options.threads
@options.as_json
@click.pass_context
def create(
    ctx: click.Context,
    *,
    index: str,
    files: Sequence[str],
    form: str | None,
    id_column: str | None,
    text: str | None,
    metadata: Sequence[str],
    model: str,
    nbits: str,
    split: bool,
    max_length: int | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Make an index of documents.

    They are lines of JSON, CSV, Parquet or a Delta table; without FILE, or of -, JSON lines of stdin.

      adventures index create ./tokens docs.jsonl -m answerdotai/answerai-colbert-small-v1
      adventures index create ./tokens ./products --id sku --text '{name}: {about}' -m ./colbert
      zcat docs.jsonl.gz | adventures index create ./tokens --nbits 2 -m ./colbert
    """
    from adventures import ColbertIndex

    # What there is to say against the place comes before a model is loaded.
    if Path(index).exists() and (not Path(index).is_dir() or Record.read(index) is not None):
        raise ValueError(f"{index}: there is something already; `adventures index add` adds to an index")
    fields = rows.Fields(id_column or "id", text or "text", tuple(metadata) or None)
    late = open_model(model, "", threads)
    length = late.doc_maxlen if max_length is None else max_length
    if length > late.max_tokens:
        raise ValueError(f"--max-length {length}: {late.name} reads up to {late.max_tokens} tokens")
    columns = (fields.id, fields.text, fields.metadata)
    record = Record(spec_of(late), late.name, late.revision, length, split, *columns)
    reader = reader_of(late, record)
    documents = rows.documents(files, form, fields)
    with _progress(quiet=ctx.find_root().params["quiet"]) as told:
        ids, texts, kept = columns_of(pieces_of(documents, reader, record))
        made = ColbertIndex.create(
            index, texts, ids=ids, metadata=kept, model=reader, nbits=int(nbits), threads=threads, progress=told
        )
    record.write(index)
    _report(made, reader, fields, len(made), as_json=as_json)


@index.command()
@_place
@_files
@_model
@click.option("--replace", is_flag=True, help="Take the place of documents with the same ids; else that is an error.")
@options.threads
@options.as_json
@click.pass_context
def add(
    ctx: click.Context,
    *,
    index: str,
    files: Sequence[str],
    form: str | None,
    id_column: str | None,
    text: str | None,
    metadata: Sequence[str],
    model: str | None,
    replace: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Add documents to an index, in one commit.

    Columns, length and splitting are those that the index was made with, where no option says else.

      adventures index add ./tokens more.jsonl
      adventures index add ./tokens changed.csv --replace
    """
    opened, reader, record = open_index(index, model, threads)
    fields = rows.Fields(id_column or record.id, text or record.text, tuple(metadata) or record.metadata)
    documents = rows.documents(files, form, fields)
    with _progress(quiet=ctx.find_root().params["quiet"]) as told:
        if not replace:
            known = by_document(opened, record) if record.split else None
            ids, texts, kept = columns_of(pieces_of(unlike(documents, known), reader, record))
            added = opened.add(texts, ids=ids, metadata=kept, progress=told)
        else:
            # Of documents in pieces, there may be fewer now, so what is replaced has to be known before.
            pieces = list(pieces_of(documents, reader, record))
            known = by_document(opened, record)
            replaced = {piece for owner in {owner for owner, _ in pieces} for piece in known.get(owner, ())}
            ids, texts, kept = columns_of(iter(pieces))
            added = opened.upsert(texts, ids=ids, metadata=kept, without=replaced, progress=told)
    _report(opened, reader, fields, len(added), as_json=as_json)


@index.command()
@_place
@click.argument("ids", nargs=-1, required=True, metavar="ID…")
@click.option("--compact", is_flag=True, help="Give their room back at once.")
@options.as_json
def delete(*, index: str, ids: Sequence[str], compact: bool, as_json: bool) -> None:
    """Delete documents from an index, in one commit; an id of - reads ids from stdin, one a line.

    adventures index delete ./tokens sku-7 sku-9
    adventures index delete ./tokens --compact - < gone.txt
    """
    from adventures import ColbertIndex

    record = Record.read(index)
    opened = ColbertIndex.open(index)
    known = by_document(opened, record)
    gone: dict[str, list[str]] = {}
    for name in ids:
        for one in read_stdin().splitlines() if name == "-" else [name]:
            if one not in known:
                raise ValueError(f"no document {one!r} in {index}")
            gone[one] = known[one]
    opened.delete([piece for pieces in gone.values() for piece in pieces])
    if compact:
        opened.compact()
    if as_json:
        put_json({"deleted": len(gone), "documents": len(known) - len(gone)})
    else:
        put(f"{len(gone):,} documents deleted, {len(known) - len(gone):,} left")


@index.command()
@_place
@click.argument("query")
@options.k
@click.option("--only", multiple=True, metavar="ID", help="Look at this document only; may repeat.")
@click.option("--exhaustive", is_flag=True, help="Score all documents, not only those whose centroids are near.")
@_model
@options.threads
@options.as_json
def search(
    *,
    index: str,
    query: str,
    k: int,
    only: Sequence[str],
    exhaustive: bool,
    model: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Find the documents that fit a question best, token by token.

    adventures index search ./tokens 'a red planet' -k 10
    adventures index search ./tokens 'a red planet' --only mars --only venus --json
    """
    question = argument_or_stdin(query)
    if not question.strip():
        raise ValueError("the query is empty")
    opened, _, record = open_index(index, model, threads)
    ids: list[str] | None = None
    if only:
        known = by_document(opened, record)
        for name in only:
            if name not in known:
                raise ValueError(f"no document {name!r} in {index}")
        ids = [piece for name in only for piece in known[name]]
    hits = opened.search(question, k, ids, exhaustive=exhaustive)
    for hit in hits:
        if as_json:
            put_json(asdict(hit) | {"document": owner_of(hit.id, record)})
        else:
            put(f"[{hit.rank}] {hit.score:.2f}  {hit.id}: {' '.join((hit.text or '').split())}")
    if not hits:
        say("nothing found")


@index.command()
@_place
@options.as_json
def info(*, index: str, as_json: bool) -> None:
    """Say what an index is made of.

    adventures index info ./tokens
    """
    from adventures import ColbertIndex

    record = Record.read(index)
    opened = ColbertIndex.open(index)
    found: dict[str, Any] = {**opened.info(), "path": index, "passages": len(opened)}
    found["documents"] = len(by_document(opened, record))
    if record is not None:
        found |= {"model": record.name, "doc_maxlen": record.doc_maxlen, "split": record.split}
    if as_json:
        put_json(found)
        return
    put_table([(name, f"{value:,}" if type(value) is int else str(value)) for name, value in found.items()])


def _report(opened: ColbertIndex, reader: Reader, fields: rows.Fields, added: int, *, as_json: bool) -> None:
    info = opened.info()
    if as_json:
        skipped = [{"reason": reason, "count": count} for reason, count in sorted(fields.skipped.items())]
        put_json(
            {"added": added, "passages": len(opened), "tokens": info["tokens"], "bytes": info["bytes"]}
            | {"truncated": reader.truncated, "skipped": skipped}
        )
    else:
        put(f"{added:,} passages added; {len(opened):,} with {info['tokens']:,} tokens in {info['bytes']:,} bytes")
    if reader.truncated:
        say(f"warning: {reader.truncated:,} texts were cut to {reader.doc_maxlen} tokens; --split splits them")
    for reason, count in sorted(fields.skipped.items()):
        say(f"skipped {count:,} rows: {reason}")


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[str, int, int], object] | None]:
    """What shows on a terminal how far an index is: a bar for each stage."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    bars: dict[str, tqdm[Any]] = {}
    units = {"read": " passages", "train": " tokens", "compress": " tokens"}

    def told(stage: str, done: int, total: int) -> None:
        if stage not in bars:
            for bar in bars.values():
                bar.close()
            bars[stage] = tqdm(
                total=total or None,
                desc=stage,
                unit=units.get(stage, ""),
                unit_scale=True,
                dynamic_ncols=True,
                leave=False,
            )
        bars[stage].update(done - bars[stage].n)

    try:
        yield told
    finally:
        for bar in bars.values():
            bar.close()
