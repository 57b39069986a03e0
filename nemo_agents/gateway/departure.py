"""Whether the client is still there, and how long its call may go on without it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, MutableMapping
from types import TracebackType
from typing import Any, Final, Self

__all__ = ["Departure", "Lookout", "Receive"]

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

_LOOK_AFTER_S: Final = 1.0


class Lookout:
    """Has the clients of long calls watched: one timer for all of them, which runs while there is any call.

    Nobody is watched in a call's first second: most calls are over by then, and a task for each has its price.
    """

    def __init__(self) -> None:
        self._new: set[Departure] = set()  # came since the last look
        self._known: set[Departure] = set()  # came before it
        self._timer: asyncio.TimerHandle | None = None

    def add(self, client: Departure) -> None:
        """Have a client watched once its call has gone on for a second or two."""
        self._new.add(client)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_AFTER_S, self._look)

    def discard(self, client: Departure) -> None:
        """Leave a client alone, whose call is over or which is watched already."""
        self._new.discard(client)
        self._known.discard(client)

    def _look(self) -> None:
        due, self._known, self._new = self._known, self._new, set()
        for client in due:
            client.watch()
        again = bool(self._known)
        self._timer = asyncio.get_running_loop().call_later(_LOOK_AFTER_S, self._look) if again else None


class Departure:
    """Watches one client. A call whose client left goes on for `drain_s`, because its answer may still tell its cost.

    `task` is the one that serves the call. As a context it is the patience with one part of the call: `TimeoutError`
    is raised for what still runs inside `drain_s` after the client left. That is `asyncio.timeout`, but for the price:
    nothing is set up until a client leaves.
    """

    __slots__ = (
        "_cancels_before",
        "_in_part",
        "_left",
        "_lookout",
        "_out_of_patience",
        "_receive",
        "_task",
        "_timer",
        "_watcher",
        "drain_s",
        "gone",
    )

    def __init__(self, receive: Receive, drain_s: float, *, task: asyncio.Task[Any], lookout: Lookout) -> None:
        self._receive = receive
        self.drain_s = drain_s  # as the provider that is asked now has it
        self.gone = False  # nobody reads any more: the client left, or stopped reading
        self._task = task
        self._lookout = lookout
        self._left: asyncio.Event | None = None  # set with `gone`, where somebody waits for it
        self._watcher: asyncio.Task[None] | None = None
        self._in_part = False
        self._cancels_before = 0
        self._timer: asyncio.TimerHandle | None = None  # of the part, once the client has left
        self._out_of_patience = False
        lookout.add(self)

    def watch(self) -> None:
        """Watch from now on."""
        if self._watcher is None and not self.gone:
            self._lookout.discard(self)
            self._watcher = asyncio.create_task(self._wait())

    def leave(self) -> None:
        """Count the client as gone; what goes on for it has `drain_s` from now."""
        if self.gone:
            return
        self.gone = True
        if self._left is not None:
            self._left.set()
        if self._in_part:
            self._wait_no_longer_than_drain_s()

    def __enter__(self) -> Self:
        """Begin a part of the call."""
        self._in_part = True
        self._cancels_before = self._task.cancelling()
        if self.gone:
            self._wait_no_longer_than_drain_s()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the part; raise TimeoutError where it was this that cancelled it."""
        self._in_part = False
        if self._timer is None:
            return
        self._timer.cancel()
        self._timer = None
        if self._out_of_patience:
            self._out_of_patience = False
            # Whoever else cancels the task meanwhile means it, as with `asyncio.timeout`.
            if self._task.uncancel() <= self._cancels_before and kind is asyncio.CancelledError:
                raise TimeoutError from error

    async def pause(self, seconds: float) -> None:
        """Wait; raise TimeoutError as soon as there is nobody left to wait for."""
        self.watch()
        if not self.gone:
            self._left = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._left.wait(), seconds)
        if self.gone:
            raise TimeoutError

    def close(self) -> None:
        """Watch no longer."""
        self._lookout.discard(self)
        if self._watcher is not None:
            self._watcher.cancel()

    def _wait_no_longer_than_drain_s(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self.drain_s, self._give_up)

    def _give_up(self) -> None:
        self._out_of_patience = True
        self._task.cancel()

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.leave()
