"""Streams of text under asyncio."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adventures._adventures import Generation

# A token takes several milliseconds. Looking this often, a reader that is cancelled while it waits loses no text,
# which a reader in a thread would.
_PERIOD = 0.002


async def next_piece(generation: Generation) -> str:
    """Returns the next piece of an answer.

    Raises:
        StopAsyncIteration: The answer is over.
    """
    while (piece := generation._poll()) is not None:
        if piece:
            return piece
        await asyncio.sleep(_PERIOD)
    raise StopAsyncIteration
