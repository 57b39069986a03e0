"""Time-outs from one coarse timer for all waits, instead of one timer per request."""

from __future__ import annotations

import asyncio
from typing import Any, Final, TypeVar

__all__ = ["Deadlines"]

TICK_S: Final = 0.025

T = TypeVar("T")


class Deadlines:
    """Puts TimeoutError into futures that are still pending at their deadline, at most one tick late.

    The timer runs only while something is waited for.
    """

    __slots__ = ("_timer", "_watched")

    def __init__(self) -> None:
        self._watched: dict[asyncio.Future[Any], float] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def wait(self, future: asyncio.Future[T], timeout_s: float) -> T:
        """Wait for `future`; raises TimeoutError after `timeout_s`. Cancelled, it cancels the future too."""
        loop = future.get_loop()
        self._watched[future] = loop.time() + timeout_s
        if self._timer is None:
            self._timer = loop.call_later(TICK_S, self._tick, loop)
        try:
            return await future
        finally:
            del self._watched[future]

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for future, at in self._watched.items():
            if at <= now and not future.done():
                future.set_exception(TimeoutError())
        self._timer = loop.call_later(TICK_S, self._tick, loop) if self._watched else None
