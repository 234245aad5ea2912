"""Citations in streamed text: those of passages that were given pass, all others vanish."""

from __future__ import annotations

import re

_OPEN = "[【［"
_CLOSE = "]】］"
_WORD = r"(?:(?:passage|source|document|doc|reference|ref)s?\.?\s*)"
_NUMBER = rf"{_WORD}?[\^#]?\s*\d+"
_LINK = r"\s*(?:[,;&/]|and|[-–—‑])\s*"
_GROUP = re.compile(rf"\s*{_NUMBER}(?:{_LINK}{_NUMBER})*\s*", re.IGNORECASE)
_RANGE = re.compile(r"(\d+)\s*[-–—‑]\s*(\d+)")
# A bracket that is still open after so much text is no citation; it must not stop the stream.
_LONGEST = 60


class CitationFilter:
    """Passes a text on piece by piece, holding back what may become a citation until it is clear what it is.

    `[1]`, `[^1]`, `[1, 2]`, `[1-3]`, `[Passage 1]` and the same in other brackets come out as `[1]` or `[1][2]`;
    numbers that were not given are left out, with the blanks before them. Other brackets are text like any other.
    However the text is cut into pieces, what comes out is the same.

    Args:
        count: How many passages were given; they are numbered from 1.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._held = ""
        self._begun = False
        # What came out since a bracket was opened; none where none is open.
        self._inside: str | None = None
        self._cited: list[int] = []

    @property
    def cited(self) -> list[int]:
        """The numbers that were cited so far, in the order of their first mention."""
        return list(self._cited)

    def feed(self, piece: str) -> str:
        """Returns the text that is decided now."""
        return "".join(self._step(character) for character in piece)

    def finish(self) -> str:
        """Returns what is left at the end of the text: nothing of a citation that was cut off, no blanks."""
        held, self._held = self._held.rstrip(), ""
        at = _bracket(held)
        if at >= 0 and (not held[at + 1 :].strip() or re.search(r"\d", held[at:])):
            held = held[:at].rstrip()
        return self._emit(held)

    def _step(self, character: str) -> str:
        at = _bracket(self._held)
        if at < 0:
            if character in _OPEN or character.isspace():
                # Blanks wait too: they go with a citation that goes.
                self._held += character
                return ""
            return self._release(character)
        if character in _OPEN:
            # An unclosed "[9" before it is half a citation, and goes.
            if _GROUP.fullmatch(self._held[at + 1 :]):
                self._held = self._held[:at] + character
                return ""
            out = self._release("")
            self._held = character
            return out
        if character in _CLOSE:
            return self._close(at, character)
        self._held += character
        if len(self._held) - at > _LONGEST:
            return self._release("")
        return ""

    def _close(self, at: int, character: str) -> str:
        inside = self._held[at + 1 :]
        if not _GROUP.fullmatch(inside):
            return self._release(character)
        numbers = [number for number in _numbers(inside, self._count) if 1 <= number <= self._count]
        if not numbers:
            return self._drop(at)
        blanks, self._held = self._held[:at], ""
        self._cited += [number for number in dict.fromkeys(numbers) if number not in self._cited]
        text = self._emit(blanks) + "".join(f"[{number}]" for number in dict.fromkeys(numbers))
        self._begun, self._inside = True, None
        return text

    def _drop(self, at: int) -> str:
        # A line end is more than a blank before a number, and stays.
        self._held = self._held[:at] if "\n" in self._held[:at] else ""
        return ""

    def _release(self, character: str) -> str:
        held, self._held = self._held, ""
        return self._emit(held + character)

    def _emit(self, text: str) -> str:
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        return "".join(character for character in text if self._passes(character))

    def _passes(self, character: str) -> bool:
        """Where a citation went from inside a bracket, as in "[[9]9]", what is left must not become one."""
        if character in _OPEN:
            self._inside = ""
        elif character in _CLOSE:
            if self._inside is not None and _GROUP.fullmatch(self._inside):
                return False
            self._inside = None
        elif self._inside is not None:
            self._inside = self._inside + character if len(self._inside) < _LONGEST else None
        return True


def _bracket(held: str) -> int:
    return next((at for at, character in enumerate(held) if character in _OPEN), -1)


def _numbers(inside: str, count: int) -> list[int]:
    """The numbers of a group, ranges spelt out as far as they can matter."""

    def spell(match: re.Match[str]) -> str:
        first, last = int(match.group(1)[:9]), int(match.group(2)[:9])
        return ",".join(map(str, range(first, min(last, count) + 1)))

    return [int(number[:9]) for number in re.findall(r"\d+", _RANGE.sub(spell, inside))]
