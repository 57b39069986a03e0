"""An event loop in which time passes only when nothing else can: hours of waiting cost nothing."""

from __future__ import annotations

import asyncio
from typing import Any


class StuckError(AssertionError):
    """Somebody waits for what will never come."""


class VirtualLoop(asyncio.BaseEventLoop):
    """One thread, no sockets. Whoever is ready runs in order; when nobody is, the clock jumps to the next timer."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._selector = self  # the loop asks it how long to wait, and it does not wait
        self._clock_resolution = 1e-9
        self.set_exception_handler(self._note)
        self.unhandled: list[str] = []

    def _note(self, _loop: Any, context: dict[str, Any]) -> None:
        self.unhandled.append(f"{context.get('message')}: {context.get('exception')!r}")

    def time(self) -> float:
        return self._now

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise StuckError("nobody is ready, and no timer runs")
        if timeout > 0:
            self._now = max(self._now, self._scheduled[0].when())  # type: ignore[attr-defined]
        return []

    def _process_events(self, _events: list[Any]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody sleeps who would have to be woken."""
