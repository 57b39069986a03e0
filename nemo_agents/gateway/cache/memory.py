"""Answers in the memory of one process: what was not used for longest goes first."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from nemo_agents.gateway.cache.base import CachedAnswer

__all__ = ["MemoryCache"]


class MemoryCache:
    """At most `max_bytes` of answers; `clock_s` never goes back."""

    def __init__(self, max_bytes: int, *, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes = max_bytes
        self._clock_s = clock_s
        self._bytes = 0
        self._kept: OrderedDict[bytes, tuple[CachedAnswer, float]] = OrderedDict()  # least recently used first

    async def get(self, key: bytes) -> CachedAnswer | None:
        """Return the answer that is kept under a key; None when there is none that is good now."""
        found = self._kept.get(key)
        if found is None:
            return None
        answer, until_s = found
        if self._clock_s() >= until_s:
            self._drop(key)
            return None
        self._kept.move_to_end(key)
        return answer

    def put(self, key: bytes, answer: CachedAnswer, ttl_s: int) -> None:
        """Keep an answer for some seconds; one that is larger than everything together is not kept."""
        if key in self._kept:
            self._drop(key)
        if answer.size_bytes > self._max_bytes or ttl_s <= 0:
            return
        while self._bytes + answer.size_bytes > self._max_bytes:
            self._drop(next(iter(self._kept)))
        self._kept[key] = (answer, self._clock_s() + ttl_s)
        self._bytes += answer.size_bytes

    @property
    def kept(self) -> tuple[int, int]:
        """How many answers are kept, and their bytes; those whose time is over are, until they are asked for."""
        return len(self._kept), self._bytes

    async def close(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self._bytes = 0

    def _drop(self, key: bytes) -> None:
        answer, _ = self._kept.pop(key)
        self._bytes -= answer.size_bytes
