"""The interface of the project's first prototype, kept for its users."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adventures._adventures import Embedder

if TYPE_CHECKING:
    from collections.abc import Sequence


class Adventures:
    """Embeds texts with one model and returns plain lists.

    Args:
        model: What `Embedder` takes: a catalogue name, a hub id or a path.
    """

    def __init__(self, model: str = "all-minilm-l6-v2") -> None:
        self._embedder = Embedder(model)

    def embeddings(self, texts: Sequence[str]) -> list[list[float]]:
        """Returns the unit vector of each text."""
        rows: list[list[float]] = self._embedder.embed(texts).tolist()
        return rows
