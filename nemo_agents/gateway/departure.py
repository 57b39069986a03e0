"""Whether the client is still there, and how long its call may go on without it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

__all__ = ["Departure", "Receive"]

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

_LOOK_AFTER_S = 1.0


class Departure:
    """Watches one client. A call whose client left goes on for `drain_s`, because its answer may still tell its cost.

    Nobody is watched in a call's first second: most calls are over by then, and a task for each has its price.
    """

    def __init__(self, receive: Receive, drain_s: float) -> None:
        self._receive = receive
        self.drain_s = drain_s  # as the provider that is asked now has it
        self._left = asyncio.Event()
        self._deadline: asyncio.Timeout | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(_LOOK_AFTER_S, self.watch)

    @property
    def gone(self) -> bool:
        """Whether nobody reads any more: the client left, or stopped reading."""
        return self._left.is_set()

    def watch(self) -> None:
        """Watch from now on."""
        if self._watcher is None and not self.gone:
            self._watcher = asyncio.create_task(self._wait())

    def leave(self) -> None:
        """Count the client as gone; what goes on for it has `drain_s` from now."""
        if not self.gone:
            self._left.set()
            if self._deadline is not None:
                self._deadline.reschedule(asyncio.get_running_loop().time() + self.drain_s)

    @asynccontextmanager
    async def patience(self) -> AsyncIterator[None]:
        """Run a part of the call. Raises TimeoutError when it still runs `drain_s` after the client left."""
        async with asyncio.timeout(self.drain_s if self.gone else None) as deadline:
            self._deadline = deadline
            try:
                yield
            finally:
                self._deadline = None

    async def pause(self, seconds: float) -> None:
        """Wait; raise TimeoutError as soon as there is nobody left to wait for."""
        self.watch()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._left.wait(), seconds)
        if self.gone:
            raise TimeoutError

    def close(self) -> None:
        """Watch no longer."""
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.leave()
