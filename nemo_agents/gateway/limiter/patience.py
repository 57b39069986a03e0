"""How long a silent server is waited for: by looks at it, not by the clock alone.

On a busy event loop a second passes between two looks at a socket, and an answer that came at once is a second old when
it is read. A clock then blames the server for that. So the second is taken in parts, each of which begins when the one
before has ended: the loop looks at its sockets between any two of them, and only a server that was silent in all of
them has not answered. On a loop that keeps up that is a second; on one that does not, as long as it takes to look.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

__all__ = ["LOOKS", "Patience"]

LOOKS: Final = 5


class Patience:
    """The patience with one server. One exchange with it at a time."""

    def __init__(self, silence_s: float) -> None:
        self._part_s = silence_s / LOOKS
        self._silent = 0  # parts
        self._next: asyncio.TimerHandle | None = None

    def heard(self) -> None:
        """Begin anew: the server has said something."""
        self._silent = 0

    @asynccontextmanager
    async def lasting(self) -> AsyncIterator[None]:
        """Raise TimeoutError for what runs inside when the server was silent for so long."""
        self._silent = 0
        async with asyncio.timeout(None) as limit:
            self._look_later(limit)
            try:
                yield
            finally:
                assert self._next is not None
                self._next.cancel()

    def _look_later(self, limit: asyncio.Timeout) -> None:
        self._next = asyncio.get_running_loop().call_later(self._part_s, self._look, limit)

    def _look(self, limit: asyncio.Timeout) -> None:
        self._silent += 1
        if self._silent < LOOKS:
            self._look_later(limit)
        else:
            limit.reschedule(0.0)
