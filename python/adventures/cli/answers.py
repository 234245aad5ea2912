"""`adventures ask` and `adventures chat`: answers with their sources."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

import click

from adventures.cli import options
from adventures.cli.libraries import credit_line, source_line
from adventures.cli.program import argument_or_stdin, open_stream, put, put_json, say

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from adventures import Answer, Chat

_HELP = """\
/sources   the passages behind the last answer
/reset     forget the conversation
/quit      leave (or Ctrl-D); Ctrl-C stops an answer"""

_chat_options = options.every(
    options.library(),
    options.generator,
    options.k,
    options.hybrid,
    options.retrieval,
    options.colbert,
    options.expand,
    options.min_similarity,
    options.where,
    click.option("--system", metavar="TEXT", help="Who answers, and how: the system text."),
    click.option(
        "--max-tokens",
        type=click.IntRange(1, 1_000_000),
        default=512,
        show_default=True,
        metavar="N",
        help="The longest answer.",
    ),
    click.option(
        "--temperature",
        type=click.FloatRange(min=0),
        default=0.0,
        show_default=True,
        metavar="X",
        help="How freely words are chosen; with 0 the same question has the same answer.",
    ),
    click.option(
        "--seed", type=click.IntRange(0, 2**64 - 1), metavar="N", help="Makes an answer with a temperature repeatable."
    ),
    options.embedder,
    options.device,
    options.threads,
    options.quantize,
)


@click.command()
@click.argument("question")
@_chat_options
@options.as_json
def ask(*, question: str, conditions: Sequence[str], as_json: bool, **settings: Any) -> None:
    """Answer a question from a library, as it is written.

    The answer goes to stdout, its numbered sources to stderr. Where the library has nothing on the
    question, the answer says so.

      adventures ask -l ./lib 'What do I need to climb an icy cliff?'
      adventures ask -l ./lib -g gemma-3-1b-it --json 'What keeps feet dry?' | jq .sources
    """
    where = options.parse_where(conditions)
    chat = open_chat(**settings)
    with chat.ask(argument_or_stdin(question), where=where) as answer:
        if as_json:
            put_json(
                {
                    "question": answer.question,
                    "answer": answer.text(),
                    "found": answer.found,
                    "citations": answer.citations,
                    "sources": [asdict(hit) for hit in answer.sources],
                    "dropped": answer.dropped,
                    "stats": _stats(answer),
                }
            )
        else:
            stream(answer)


@click.command()
@_chat_options
def chat(*, conditions: Sequence[str], **settings: Any) -> None:
    """Talk with a library: questions that may refer to earlier ones.

      adventures chat -l ./lib
      adventures chat -l ./lib --system 'You are a grumpy shopkeeper.'

    In the conversation, /sources shows the passages behind the last answer, /reset forgets what was
    said, /quit or Ctrl-D leaves, and Ctrl-C stops an answer.
    """
    where = options.parse_where(conditions)
    conversation = open_chat(**settings)
    converse(conversation, lambda question: conversation.ask(question, where=where))


def open_chat(
    *,
    place: options.Place,
    generator_spec: str,
    embedder_spec: str | None,
    k: int,
    hybrid: bool,
    retrieval: Literal["dense", "colbert"],
    colbert_spec: str | None,
    expand: int,
    min_similarity: float | None,
    system: str | None,
    max_tokens: int,
    temperature: float,
    seed: int | None,
    device: str,
    threads: int | None,
    quantize: options.Quantize | None,
) -> Chat:
    """Opens a library and a generator, and returns the chat over them."""
    from adventures import Chat

    opened = options.open_library(
        place,
        embedder_spec,
        device=device,
        threads=threads,
        colbert=colbert_spec,
        late=retrieval == "colbert",
    )
    generator = options.open_generator(generator_spec, device=device, threads=threads, quantize=quantize)
    return Chat(
        opened,
        generator,
        system=system,
        k=k,
        hybrid=hybrid,
        retrieval=retrieval,
        expand=expand,
        min_similarity=min_similarity,
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
    )


def _stats(answer: Answer) -> dict[str, object] | None:
    """Returns what the generation took; `None` where no model ran."""
    names = ("prompt_tokens", "cached_tokens", "generated_tokens", "prompt_seconds", "seconds", "finish_reason")
    return {name: getattr(answer.stats, name) for name in names} if answer.stats else None


def stream(answer: Answer) -> None:
    """Prints an answer as it is written, then on stderr where each source that it cites is from."""
    for piece in answer:
        put(piece, end="")
    put("")
    for number in answer.citations:
        say(credit_line(number, answer.sources[number - 1]))
    if answer.dropped:
        say(f"{answer.dropped} passages did not fit into the model's context")


def converse(chat: Chat, ask: Callable[[str], Answer]) -> None:
    """Reads questions and commands from stdin until it ends, and answers them."""
    at_terminal = open_stream("stdin").isatty() and open_stream("stdout").isatty()
    if at_terminal:
        import readline  # noqa: F401 (gives input() line editing and its history)

        say("Ask a question, or /help.")
    answer: Answer | None = None
    while True:
        try:
            line = input("> " if at_terminal else "").strip()
        except EOFError:
            return
        match line:
            case "":
                continue
            case "/quit" | "/exit":
                return
            case "/reset":
                chat.reset()
                answer = None
            case "/sources":
                for number, hit in enumerate(answer.sources if answer else (), start=1):
                    put(source_line(number, hit))
            case "/help":
                say(_HELP)
            case _ if line.startswith("/"):
                say(f"no command {line.split()[0]}; there are\n{_HELP}")
            case _:
                try:
                    answer = ask(line)
                except ValueError as error:
                    if not at_terminal:
                        raise
                    # A question that is too long is no reason to lose the conversation.
                    say(f"error: {error}")
                    continue
                try:
                    stream(answer)
                except KeyboardInterrupt:
                    answer.close()
                    say(" (stopped)")
