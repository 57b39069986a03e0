"""How a fault that comes again and again is logged: so that it is seen, and does not flood the log."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import structlog

__all__ = ["Complaints", "Outage"]

_EVERY_S: Final = 1.0


class Complaints:
    """One kind of error in the log: the first is logged, then at most one a second, with how many it stands for."""

    def __init__(self, log: structlog.typing.FilteringBoundLogger, event: str) -> None:
        self._log = log
        self._event = event
        self._count = 0
        self._told_s: float | None = None

    def add(self, *, clock_s: Callable[[], float] = time.monotonic, **facts: Any) -> None:
        """Log one more error, unless another was logged within the last second. `clock_s` never goes back."""
        self._count += 1
        now_s = clock_s()
        if self._told_s is not None and now_s - self._told_s < _EVERY_S:
            return
        self._log.error(self._event, count=self._count, **facts)
        self._count, self._told_s = 0, now_s


class Outage:
    """Whether a background task is without its store: logged once when it begins, and once when it is over."""

    def __init__(self, log: structlog.typing.FilteringBoundLogger, event: str) -> None:
        self._log = log
        self._event = event
        self._lasts = False

    def met(self, error: Exception) -> None:
        """Log that the task could not do its work, if it could before."""
        if not self._lasts:
            self._log.warning(self._event, error=str(error))
        self._lasts = True

    def over(self) -> None:
        """Note that the task did its work, and log it after an outage."""
        if self._lasts:
            self._log.info(f"over: {self._event}")
        self._lasts = False
