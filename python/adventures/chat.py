"""Chat: a question, what the library holds on it, and a streamed answer that cites it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from adventures import neighbours
from adventures._adventures import NOT_FOUND, CitationFilter, Profile, Prompt, leans
from adventures.filters import check_unicode
from adventures.models.catalogue import find

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

    from adventures._adventures import Generation, GenerationStats, Generator, TokenLogprob
    from adventures.library import Hit, Library

__all__ = ["NOT_FOUND", "Answer", "Chat"]


class Chat:
    """A conversation with a library.

    One conversation has one `Chat`, used from one thread at a time; library and generator may be shared.

    Args:
        library: Where passages come from.
        generator: The model that writes.
        system: Who answers, and how; replaces the generator's persona, not the rule to cite.
        k: How many passages are searched for each question.
        hybrid: Whether full-text search takes part.
        retrieval: What finds passages, as in `Library.search`.
        expand: How many passages before and after it in its row the generator is given with each that was found.
        min_similarity: The cosine similarity below which a passage is not about the question. By default what the
            embedder's catalogue entry states, and no limit where it states none.
        options: How to generate: `max_tokens`, `temperature`, `top_p`, `seed`, … as `Generator.generate` takes them.
    """

    def __init__(
        self,
        library: Library,
        generator: Generator,
        *,
        system: str | None = None,
        k: int = 4,
        hybrid: bool = False,
        retrieval: Literal["dense", "colbert"] = "dense",
        expand: int = 0,
        min_similarity: float | None = None,
        **options: Any,
    ) -> None:
        if not hasattr(library, "search"):
            raise TypeError(f"library must be a Library, not {type(library).__name__}: open it with Library.open")
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ValueError(f"k must be a whole number from 1 on, not {k!r}")
        if retrieval not in ("dense", "colbert"):
            raise ValueError(f"retrieval must be 'dense' or 'colbert', not {retrieval!r}")
        neighbours.check(expand)
        if min_similarity is not None:
            if isinstance(min_similarity, bool) or not isinstance(min_similarity, (int, float)):
                raise TypeError(f"min_similarity must be a number, not {type(min_similarity).__name__}")
            if not -1 <= min_similarity <= 1:
                raise ValueError(f"min_similarity must be from -1 to 1, not {min_similarity!r}")
        if isinstance(generator, str):
            raise TypeError(f"generator must be a Generator, not the name {generator!r}: give Generator({generator!r})")
        if not hasattr(generator, "generate"):
            raise TypeError(f"generator must be a Generator, not {type(generator).__name__}")
        for shape in ("schema", "pattern", "choices"):
            if options.get(shape) is not None:
                raise ValueError(
                    f"{shape}: an answer that cites its sources is text; use Generator.generate for others"
                )
        length = options.get("max_tokens")
        if length is not None and (isinstance(length, bool) or not isinstance(length, int)):
            raise TypeError(f"max_tokens must be a whole number, not {length!r}")
        self.library = library
        self.generator = generator
        self.system = system
        self.k = k
        self.hybrid = hybrid
        self.retrieval = retrieval
        self.expand = expand
        self.min_similarity = _threshold(library) if min_similarity is None else min_similarity
        self.options = options
        self._profile = Profile.of(generator)
        self._turns: list[tuple[str, str]] = []
        self._topic = ""

    def ask(self, question: str, *, where: Mapping[str, object] | None = None) -> Answer:
        """Returns the answer to a question, which may refer to earlier ones; iterate it for the text.

        The sources are known at once. Where no passage is similar enough the answer is `NOT_FOUND`, and no model runs.

        Args:
            question: The question.
            where: Which passages may answer, as in `Library.search`.

        Raises:
            ValueError: The question is empty, or does not fit into the generator's context.
        """
        hits = self._search(question, where)
        relevant = [hit for hit in hits if hit.similarity >= self.min_similarity]
        if not relevant:
            return Answer(question, hits, [])
        prompt = Prompt.build(
            self.generator,
            self._profile,
            question=question,
            passages=[hit.text for hit in relevant],
            history=self._turns,
            system=self.system,
            reserve=self.options.get("max_tokens") or 512,
        )
        generation = self.generator.generate(prompt.messages, prefix=self._profile.prefix, **self.options)
        return Answer(
            question,
            hits,
            relevant[: prompt.passages],
            generation=generation,
            dropped=prompt.dropped,
            always_cites=self._profile.passages == 1,
            when_done=lambda text: self._turns.append((question, text)),
        )

    def reset(self) -> None:
        """Forgets the conversation."""
        self._turns.clear()
        self._topic = ""

    def _search(self, question: str, where: Mapping[str, object] | None) -> list[Hit]:
        """The hits of a question; of one that leans on the question before, together with that."""
        # What is no question leans on nothing: the library refuses it.
        if self._topic and isinstance(question, str) and question.strip():
            check_unicode(question, "the query")
            if leans(question):
                return self._find(f"{self._topic} {question}", where)
        hits = self._find(question, where)
        self._topic = question
        return hits

    def _find(self, query: str, where: Mapping[str, object] | None) -> list[Hit]:
        # What is like a library need not know of token vectors, nor of neighbours.
        how: dict[str, Any] = {} if self.retrieval == "dense" else {"retrieval": self.retrieval}
        if self.expand:
            how["expand"] = self.expand
        return self.library.search(query, self.k, hybrid=self.hybrid, where=where, **how)


class Answer:
    """An answer as it is written: iterate it for pieces of text, whose concatenation is `text()`.

    Only citations of `sources` are in it: `[1]` is `sources[0]`. Where the generator was given a single passage by its
    profile and cites nothing, `[1]` is added at the end, for there is nothing else that the answer could rest on.

    Attributes:
        question: What was asked.
        hits: What was retrieved, best first, similar enough or not.
        sources: The hits that the generator was given, in the order of their numbers; known before the first piece.
        dropped: How many relevant hits did not fit into the generator's context.
    """

    def __init__(
        self,
        question: str,
        hits: list[Hit],
        sources: list[Hit],
        *,
        generation: Generation | None = None,
        dropped: int = 0,
        always_cites: bool = False,
        when_done: Callable[[str], None] | None = None,
    ) -> None:
        self.question = question
        self.hits = hits
        self.sources = sources
        self.dropped = dropped
        self._generation = generation
        self._filter = CitationFilter(len(sources), always=always_cites)
        self._when_done = when_done
        self._written: list[str] = []
        self._pieces = self._write() if generation is not None else iter([NOT_FOUND])

    @property
    def found(self) -> bool:
        """Whether the library holds something on the question."""
        return bool(self.sources)

    @property
    def citations(self) -> list[int]:
        """The numbers cited so far, in the order of their first mention; all of them after the end."""
        return self._filter.cited

    @property
    def stats(self) -> GenerationStats | None:
        """What the generation took; None where no model ran."""
        return None if self._generation is None else self._generation.stats

    @property
    def logprobs(self) -> list[TokenLogprob] | None:
        """`Generation.logprobs`, of the text as the model wrote it; None where no model ran or nobody asked."""
        return None if self._generation is None else self._generation.logprobs

    def text(self) -> str:
        """Returns the whole answer; waits for what is not written yet."""
        for _ in self:
            pass
        return "".join(self._written)

    def close(self) -> None:
        """Stops the generation; what was written stays."""
        if self._generation is not None:
            self._generation.close()
        self._pieces = iter(())
        self._finish()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        piece = next(self._pieces)
        self._written.append(piece)
        return piece

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self) -> Iterator[str]:
        assert self._generation is not None
        for piece in self._generation:
            if text := self._filter.feed(piece):
                yield text
        if text := self._filter.finish():
            yield text
        self._finish()

    def _finish(self) -> None:
        done, self._when_done = self._when_done, None
        if done is not None and self._written:
            done("".join(self._written))


def _threshold(library: Library) -> float:
    if library.embedder is None:
        raise ValueError(f"cannot chat with {library!r} without a model; open it with embedder=")
    entry = find(library.embedder.name)
    stated = entry.profile.get("min_similarity") if entry is not None else None
    return -1.0 if stated is None else float(stated)
