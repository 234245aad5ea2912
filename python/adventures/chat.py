"""Chat: a question, what the library holds on it, and a streamed answer that cites it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Self

from adventures.citations import CitationFilter
from adventures.models.catalogue import find
from adventures.prompt import Profile, Turn, build

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

    from adventures._adventures import Generation, GenerationStats, Generator, TokenLogprob
    from adventures.library import Hit, Library

NOT_FOUND = "The library holds nothing on that."
"""The answer to a question that nothing in the library is about."""

_ANAPHORA = re.compile(r"\b(it|its|it's|this|these|those|them|they|their|he|him|his|she|her)\b", re.IGNORECASE)
# Words that point back in a short question, and do something else in a longer one.
_MAYBE = re.compile(r"\b(that|one|ones|there|same|instead|else|another)\b", re.IGNORECASE)
_CONTINUES = re.compile(
    r"\s*(and|or|but|why|how come|what about|how about|what if|what else|which of|really|tell me more)\b",
    re.IGNORECASE,
)
# On the demo's questions, each followed by 15 such questions, the two together find the right row first in 86 of 100
# cases; the second alone finds it by chance.
_SHORT = 9
_SHORTER = 6


class Chat:
    """A conversation with a library.

    One conversation has one `Chat`, used from one thread at a time; library and generator may be shared.

    Args:
        library: Where passages come from.
        generator: The model that writes.
        system: Who answers, and how; replaces the generator's persona, not the rule to cite.
        k: How many passages are searched for each question.
        hybrid: Whether full-text search takes part.
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
        min_similarity: float | None = None,
        **options: Any,
    ) -> None:
        if not hasattr(library, "search"):
            raise TypeError(f"library must be a Library, not {type(library).__name__}: open it with Library.open")
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ValueError(f"k must be a whole number from 1 on, not {k!r}")
        if min_similarity is not None:
            if isinstance(min_similarity, bool) or not isinstance(min_similarity, (int, float)):
                raise TypeError(f"min_similarity must be a number, not {type(min_similarity).__name__}")
            if not -1 <= min_similarity <= 1:
                raise ValueError(f"min_similarity must be from -1 to 1, not {min_similarity!r}")
        if isinstance(generator, str):
            raise TypeError(f"generator must be a Generator, not the name {generator!r}: give Generator({generator!r})")
        if not hasattr(generator, "generate"):
            raise TypeError(f"generator must be a Generator, not {type(generator).__name__}")
        if options.get("schema") is not None:
            raise ValueError("schema: an answer that cites its sources is text; for JSON use Generator.generate")
        length = options.get("max_tokens")
        if length is not None and (isinstance(length, bool) or not isinstance(length, int)):
            raise TypeError(f"max_tokens must be a whole number, not {length!r}")
        self.library = library
        self.generator = generator
        self.system = system
        self.k = k
        self.hybrid = hybrid
        self.min_similarity = _threshold(library) if min_similarity is None else min_similarity
        self.options = options
        self._profile = Profile.of(generator)
        self._turns: list[Turn] = []
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
        prompt = build(
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
            when_done=lambda text: self._turns.append(Turn(question, text)),
        )

    def reset(self) -> None:
        """Forgets the conversation."""
        self._turns.clear()
        self._topic = ""

    def _search(self, question: str, where: Mapping[str, object] | None) -> list[Hit]:
        """The hits of a question; of one that leans on the question before, together with that."""
        # What is no question leans on nothing: the library refuses it.
        if self._topic and isinstance(question, str) and question.strip() and _leans(question):
            return self.library.search(f"{self._topic} {question}", self.k, hybrid=self.hybrid, where=where)
        hits = self.library.search(question, self.k, hybrid=self.hybrid, where=where)
        self._topic = question
        return hits


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
        self._filter = CitationFilter(len(sources))
        self._always_cites = always_cites
        self._when_done = when_done
        self._written: list[str] = []
        self._cited: list[int] = []
        self._pieces = self._write() if generation is not None else iter([NOT_FOUND])

    @property
    def found(self) -> bool:
        """Whether the library holds something on the question."""
        return bool(self.sources)

    @property
    def citations(self) -> list[int]:
        """The numbers cited so far, in the order of their first mention; all of them after the end."""
        return list(self._cited)

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
            text = self._filter.feed(piece)
            self._cited = self._filter.cited
            if text:
                yield text
        text = self._filter.finish()
        if self._always_cites and not self._cited:
            text += " [1]"
            self._cited = [1]
        if text:
            yield text
        self._finish()

    def _finish(self) -> None:
        done, self._when_done = self._when_done, None
        if done is not None and self._written:
            done("".join(self._written))


def _leans(question: str) -> bool:
    """Whether a question is understood only after the one before it."""
    words = question.split()
    if any(word[:1].isupper() and not re.match(r"I\b", word) for word in words[1:]):
        return False  # It names somebody or something.
    if len(words) <= 3 or (len(words) <= _SHORTER and _MAYBE.search(question)):
        return True
    return len(words) <= _SHORT and bool(_ANAPHORA.search(question) or _CONTINUES.match(question))


def _threshold(library: Library) -> float:
    if library.embedder is None:
        raise ValueError(f"cannot chat with {library!r} without a model; open it with embedder=")
    entry = find(library.embedder.name)
    stated = entry.profile.get("min_similarity") if entry is not None else None
    return -1.0 if stated is None else float(stated)
