"""What the data plane needs of a cache of answers: one protocol, kept in memory by one process or in Redis by many.

A cache is never needed: one that is down, full or late has nothing, and takes nothing.
"""

from __future__ import annotations

from typing import Final, Protocol

from msgspec import Struct

__all__ = ["OVERHEAD_BYTES", "AnswerCache", "CachedAnswer"]

OVERHEAD_BYTES: Final = 512
"""What an answer takes beside its bytes, about: so that many small ones do not take many times what is allowed."""


class CachedAnswer(Struct, frozen=True, kw_only=True, array_like=True):
    """An answer as the client got it, and what the request log says of it.

    `body` is the JSON, or every event of the stream. `answer` is the JSON of what the log keeps of it, None where the
    log keeps nothing. `cost_nanos` is what it cost when a provider gave it, None where that is not known.
    """

    content_type: str
    body: bytes
    status: int = 200
    model_served: str | None = None
    finish_reason: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_nanos: int | None = None
    answer: bytes | None = None

    @property
    def stream(self) -> bool:
        """Whether it is a stream of events."""
        return self.content_type.startswith("text/event-stream")

    @property
    def size_bytes(self) -> int:
        """About how much memory it takes."""
        return len(self.body) + len(self.answer or b"") + OVERHEAD_BYTES


class AnswerCache(Protocol):
    """Answers by key (see `policy.caching`). Nothing here raises but CancelledError."""

    async def get(self, key: bytes) -> CachedAnswer | None:
        """Return the answer that is kept under a key; None when there is none that is good now."""

    def put(self, key: bytes, answer: CachedAnswer, ttl_s: int) -> None:
        """Keep an answer for some seconds, if there is room for it; nobody waits for that."""

    @property
    def kept(self) -> tuple[int, int] | None:
        """How many answers this process keeps, and their bytes; None where they are kept elsewhere."""

    async def close(self) -> None:
        """Let go of connections."""
