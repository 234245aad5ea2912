"""Options that several commands take, and what they open."""

from __future__ import annotations

import functools
import json
import re
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast

import click

from adventures.cli.program import say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from adventures import ColBERT, Embedder, Generator, Library, Reranker

    Quantize = Literal["q8_0", "q4_k"]
    Precision = Literal["auto", "f32", "bf16x2", "bf16", "int8"]

EMBEDDER = "all-minilm-l6-v2"
GENERATOR = "smollm2-135m-instruct"

_CONDITION = re.compile(r"(?P<column>.+?)(?P<operator><=|>=|!=|=|<|>)(?P<value>.*)", re.DOTALL)
_OPERATORS = {"=": "eq", "!=": "ne", "<": "lt", "<=": "lte", ">": "gt", ">=": "gte"}

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
device = click.option(
    "--device", default="auto", show_default=True, metavar="DEVICE", help="Where to compute: auto, cpu or cuda:N."
)
threads = click.option(
    "--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads; by default all there are."
)
quantize = click.option(
    "--quantize",
    type=click.Choice(["q8_0", "q4_k"]),
    help="Round the model's weights as it is loaded: 8.5 or 4.5 bits each. For decoders in safetensors.",
)
_PRECISIONS = click.Choice(["auto", "f32", "bf16x2", "bf16", "int8"])
precision = click.option(
    "--precision",
    type=_PRECISIONS,
    default="f32",
    show_default=True,
    help="What an encoder's products are rounded to: vectors change a little, the time by a half or more. auto is the "
    "fastest on this CPU.",
)
library_precision = click.option(
    "--precision",
    type=_PRECISIONS,
    help="What an encoder's products are rounded to: vectors change a little, the time by a half or more. auto is the "
    "fastest on this CPU. By default what the library was made with, f32 for a new one.",
)
embedder = click.option(
    "-e",
    "--embedder",
    "embedder_spec",
    metavar="MODEL",
    help="The embedding model: a catalogue name, a hub id or a directory; MODEL+ADAPTER adds a LoRA "
    f"adapter. By default the library's own, and {EMBEDDER} for a new library.",
)
model = click.option(
    "-e",
    "--embedder",
    "embedder_spec",
    metavar="MODEL",
    default=EMBEDDER,
    show_default=True,
    help="The embedding model: a catalogue name, a hub id or a directory; MODEL+ADAPTER adds a LoRA adapter.",
)
generator = click.option(
    "-g",
    "--generator",
    "generator_spec",
    metavar="MODEL",
    default=GENERATOR,
    show_default=True,
    help="The model that answers: a catalogue name, a hub id, a directory or a .gguf file; MODEL+ADAPTER adds "
    "a LoRA adapter.",
)
k = click.option(
    "-k",
    type=click.IntRange(1, 1_000_000),
    default=4,
    show_default=True,
    metavar="N",
    help="How many passages to retrieve.",
)
hybrid = click.option("--hybrid", is_flag=True, help="Fuse with full-text search: better where exact names matter.")
expand = click.option(
    "--expand",
    type=click.IntRange(0, 100),
    default=0,
    show_default=True,
    metavar="N",
    help="Take in so many passages before and after a passage that was found, of the same row.",
)
mmr = click.option(
    "--mmr",
    type=click.FloatRange(0, 1),
    metavar="X",
    help="How much relevance counts against being unlike the passages before: 1 is the plain order; with 0.5 hardly "
    "any two say the same.",
)
min_similarity = click.option(
    "--min-similarity",
    type=click.FloatRange(-1, 1),
    metavar="X",
    help="The similarity below which a passage is not about the question; by default what the catalogue says of the "
    "embedding model. `adventures eval calibrate` finds it for a library.",
)
rerank = click.option(
    "-r",
    "--rerank",
    "reranker_spec",
    metavar="MODEL",
    help="Show more passages, 5 times as many and 50 at least, to this cross-encoder, and take what it finds best: a "
    "catalogue name, a hub id or a directory.",
)
colbert = click.option(
    "--colbert",
    "colbert_spec",
    metavar="MODEL",
    help="The ColBERT model of the library's token vectors: a hub id or a directory. By default the library's own.",
)
retrieval = click.option(
    "--retrieval",
    type=click.Choice(["dense", "colbert"]),
    default="dense",
    show_default=True,
    help="What finds passages: a vector of each, or a vector of each token, which a sync with --colbert makes.",
)
where = click.option(
    "-w",
    "--where",
    "conditions",
    multiple=True,
    metavar="CONDITION",
    help="Keep only passages whose row fulfils this: COLUMN=VALUE, or !=, <, <=, >, >=. Repeat it for more. A value is "
    'read as JSON where it is (12, true, null, ["a", "b"]), as text where it is not; a date is 2024-01-31. Of a column '
    'of lists: COLUMN={"contains": "a"}.',
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a library is.

    Attributes:
        path: Its folder or URI.
        table: The name of its table.
        storage_options: Settings of the object store that it is on.
    """

    path: str
    table: str = "passages"
    storage_options: dict[str, str] = field(default_factory=dict, repr=False)

    def open(self, **how: Any) -> Library:
        """Opens it, as `Library.open` does."""
        from adventures import Library

        return Library.open(self.path, table=self.table, storage_options=self.storage_options or None, **how)


class _StorageOption(click.ParamType[tuple[str, str]]):
    """NAME=VALUE. Of the variable, a comma stands between two where a name follows it, as the service reads it."""

    name = "NAME=VALUE"

    def split_envvar_value(self, rv: str) -> Sequence[str]:
        return re.split(r",(?=[A-Za-z0-9_]+=)", rv)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        name, equals, given = str(value).partition("=")
        if not equals or not name:
            # What it is may be a secret.
            self.fail("expected NAME=VALUE", param, ctx)
        return name, given


def library(help: str = "", *, required: bool = True) -> Callable[[Any], Any]:  # noqa: A002 (click's word)
    """Returns the decorator that adds the options of a library, which give the command a `Place` as `place`.

    Args:
        help: What `--library` is; by default any.
        required: Whether it must be given; else `place` may be None.
    """
    path = click.option(
        "-l",
        "--library",
        "library_path",
        metavar="PATH",
        required=required,
        envvar="ADVENTURES_LIBRARY" if required else None,
        show_envvar=required,
        help=help or "The library: a folder, s3://, gs:// or az://, or postgresql://… of a database with pgvector.",
    )
    table = click.option(
        "--table",
        metavar="NAME",
        envvar="ADVENTURES_TABLE" if required else None,
        help="The library's table, of several at one place; by default passages.",
    )
    settings = click.option(
        "--storage-option",
        "storage_options",
        type=_StorageOption(),
        multiple=True,
        envvar="ADVENTURES_STORAGE_OPTION" if required else None,
        help="A setting of the object store that the library is on, of a sync also the Delta table, such as "
        "aws_region=eu-west-1; may repeat.",
    )

    def add(command: Any) -> Any:
        @functools.wraps(command)
        def placed(
            *given: Any,
            library_path: str | None,
            table: str | None,
            storage_options: Sequence[tuple[str, str]],
            **named: Any,
        ) -> Any:
            if library_path is None and (table or storage_options):
                raise click.UsageError("--table and --storage-option are of a library: name it with --library")
            place = library_path and Place(library_path, table or "passages", dict(storage_options))
            return command(*given, place=place, **named)

        return path(table(settings(placed)))

    return add


def every(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Returns the decorator that adds several options, in this order."""

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


@contextmanager
def bar(total: int, unit: str, *, quiet: bool) -> Iterator[Callable[[int], object]]:
    """Yields what moves a progress bar on, which a terminal shows."""
    from tqdm import tqdm

    with tqdm(total=total, unit=f" {unit}", disable=quiet or not sys.stderr.isatty(), leave=False) as shown:
        yield shown.update


def texts_of(path: str) -> list[str]:
    """Returns the questions of a file, whatever its kind: judged or one on each line; or of a data set.

    Raises:
        ValueError: There is none.
    """
    from adventures.questions import judged

    if path.endswith((".jsonl", ".zip")) or Path(path).is_dir():
        return [question.text for question in judged(path).questions]
    texts = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines()]
    if not any(texts):
        raise ValueError(f"{path} has no questions")
    return [text for text in texts if text]


def parse_where(conditions: Sequence[str]) -> dict[str, Any] | None:
    """Returns the filter that `--where` options write; `None` where there are none.

    Raises:
        click.BadParameter: One is not a condition.
    """
    filters: dict[str, Any] = {}
    for condition in conditions:
        match = _CONDITION.fullmatch(condition)
        if match is None:
            raise click.BadParameter(f"{condition!r} is not COLUMN=VALUE", param_hint="--where")
        try:
            value = json.loads(match["value"], parse_constant=_no_constant)
        except ValueError:
            value = match["value"].strip()
        operator = "in" if isinstance(value, list) and match["operator"] == "=" else _OPERATORS[match["operator"]]
        column = match["column"].strip()
        given = filters.setdefault(column, {})
        for name, wanted in (value if operator == "eq" and isinstance(value, dict) else {operator: value}).items():
            if name == "ne" and name in given:
                given[name] = [*_listed(given[name]), *_listed(wanted)]
            elif name in given:
                either = f'; for either, {column}=["a", "b"]' if name == "eq" else ""
                raise click.BadParameter(f"{column}{match['operator']} comes twice{either}", param_hint="--where")
            else:
                given[name] = wanted
    return filters or None


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _no_constant(name: str) -> None:
    """Refuses NaN and Infinity, which only Python takes for JSON."""
    raise ValueError(name)


class Computing(TypedDict):
    """How a library's model is to compute: what `library_model` and `open_library` both take."""

    device: str
    threads: int | None
    quantize: Quantize | None
    precision: Precision | None
    new: bool


def library_model(
    place: Place,
    spec: str | None,
    *,
    device: str,
    threads: int | None,
    quantize: Quantize | None = None,
    precision: Precision | None = None,
    new: bool = False,
) -> Callable[[], Embedder]:
    """Returns what opens the model named, or the one that a library was made with.

    Args:
        place: The library.
        spec: The embedding model; `None` for the library's own.
        device: Where to compute.
        threads: How many threads compute.
        quantize: What the model's weights are rounded to; `None` for what they were, in the library's own.
        precision: What its products are rounded to, likewise.
        new: Whether the library may be missing.
    """
    metadata = _metadata(place, new=new)
    return _model(metadata, spec, device=device, threads=threads, quantize=quantize, precision=precision)


def open_library(
    place: Place,
    spec: str | None,
    *,
    device: str,
    threads: int | None,
    quantize: Quantize | None = None,
    precision: Precision | None = None,
    new: bool = False,
    colbert: str | None = None,
    late: bool = False,
) -> Library:
    """Opens a library with the model named, or the one that it was made with; the arguments of `library_model`.

    Args:
        place: The library.
        spec: The embedding model; `None` for the library's own.
        device: Where to compute.
        threads: How many threads compute.
        quantize: What the model's weights are rounded to.
        precision: What its products are rounded to.
        new: Whether the library may be missing, and is then made.
        colbert: The model of token vectors.
        late: Whether the model of the token vectors that the library has is opened, where none is named.
    """
    metadata = _metadata(place, new=new)
    tokens = _open_colbert(metadata.get("source", {}), colbert, threads) if colbert or late else None
    try:
        model = _model(metadata, spec, device=device, threads=threads, quantize=quantize, precision=precision)()
    except LookupError as error:
        if spec:
            raise
        raise LookupError(
            f"the library's model is not found by its name ({error}); name its path with --embedder"
        ) from error
    return place.open(embedder=model, colbert=tokens)


def existing(place: Place) -> Library:
    """Opens a library that is there, without a model.

    Raises:
        FileNotFoundError: There is none.
    """
    try:
        return place.open()
    except FileNotFoundError:
        which = "" if place.table == "passages" else f" (table {place.table!r})"
        raise FileNotFoundError(f"no library at {place.path}{which}; `adventures sync` makes one") from None


def _metadata(place: Place, *, new: bool) -> dict[str, Any]:
    """What a library says of itself; nothing of one that is not there yet."""
    try:
        return existing(place).metadata
    except FileNotFoundError:
        if not new:
            raise
        return {}


def _model(
    metadata: dict[str, Any],
    spec: str | None,
    *,
    device: str,
    threads: int | None,
    quantize: Quantize | None,
    precision: Precision | None,
) -> Callable[[], Embedder]:
    from adventures import Embedder

    if spec:
        return partial(Embedder, spec, device=device, threads=threads, quantize=quantize, precision=precision or "f32")
    made_with = metadata.get("model", {})
    name = made_with.get("name", EMBEDDER)
    commits = made_with.get("revision", "").split("+")
    if commits[-1] in ("q8_0", "q4_k"):
        rounded = cast("Quantize", commits.pop())
        quantize = quantize or rounded
    elif commits[-1] in ("bf16x2", "bf16", "int8"):
        rounded_to = cast("Precision", commits.pop())
        precision = precision or rounded_to
    model_name, _, adapter = name.partition("+")
    # A hub id has moved on since, perhaps; the library needs the commit that it was made with.
    commit = commits[0] or None if "/" in model_name else None
    if "/" in adapter and len(commits) > 1:
        name = f"{name}@{commits[-1]}"
    return partial(
        Embedder, name, revision=commit, device=device, threads=threads, quantize=quantize, precision=precision or "f32"
    )


def _open_colbert(source: dict[str, Any], spec: str | None, threads: int | None) -> ColBERT | None:
    """Opens the model of token vectors: the one named, or that of those which a library has; None of none."""
    from adventures import ColBERT

    if spec:
        return ColBERT(spec, threads=threads)
    made = source.get("colbert")
    if made is None:
        return None
    length, revision = made["doc_maxlen"], made["revision"].split("+")[0]
    if "/" in made["name"]:
        return ColBERT(made["name"], revision=revision or None, doc_maxlen=length, threads=threads)
    path = source["colbert_at"]["path"]
    try:
        return ColBERT(path, doc_maxlen=length, threads=threads)
    except FileNotFoundError as error:
        raise LookupError(
            f"the library's ColBERT model {made['name']!r} is not at {path}; name its path with --colbert"
        ) from error


def say_missing(library: Library, rows: Iterable[str]) -> None:
    """Says which of the rows that questions are judged by a library has not: what it cannot find counts as missed."""
    missing = library.missing(rows)
    if missing:
        some = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        say(f"warning: the library has no {some}: {len(missing):,} of the judged rows, which count as not found")


def open_embedder(
    spec: str,
    *,
    device: str,
    threads: int | None,
    quantize: Quantize | None = None,
    precision: Precision = "f32",
) -> Embedder:
    """Opens an embedding model."""
    from adventures import Embedder

    return Embedder(spec, device=device, threads=threads, quantize=quantize, precision=precision)


def open_generator(spec: str, *, device: str, threads: int | None, quantize: Quantize | None = None) -> Generator:
    """Opens a model that answers."""
    from adventures import Generator

    return Generator(spec, device=device, threads=threads, quantize=quantize)


def open_reranker(spec: str, *, device: str, threads: int | None) -> Reranker:
    """Opens a cross-encoder."""
    from adventures import Reranker

    return Reranker(spec, device=device, threads=threads)
