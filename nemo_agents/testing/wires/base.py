"""What every wire needs: what a request cost, and how an event is written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from nemo_agents.testing.replies import Asked, Reply

__all__ = ["CREATED", "Bill", "Body", "bill_of", "data_event", "dumps", "halves", "named_event", "words_of"]

Body = dict[str, Any]
CREATED: Final = 1_760_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """What one request cost, in tokens; the parts of the input are disjoint."""

    plain: int
    cached: int
    written: int
    written_1h: int
    output: int
    reasoning: int

    @property
    def input(self) -> int:
        """All of the input."""
        return self.plain + self.cached + self.written + self.written_1h


def words_of(value: Any) -> int:
    """Count the words of every text in a value: how long it is in this provider's tokens."""
    if isinstance(value, str):
        return len(value.split())
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(map(words_of, parts))


def bill_of(asked: Asked, conversation: Any, replies: list[Reply]) -> Bill:
    """Return what a request cost: the words of the conversation and of the replies."""
    return Bill(
        plain=words_of(conversation),
        cached=asked.cached,
        written=asked.written,
        written_1h=asked.written_1h,
        output=sum(reply.tokens for reply in replies),
        reasoning=sum(reply.reasoning_tokens for reply in replies),
    )


def dumps(value: Any) -> bytes:
    """Return compact JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def halves(text: str) -> tuple[str, str]:
    """Return a text as the two pieces in which it is streamed."""
    return text[: len(text) // 2], text[len(text) // 2 :]


def data_event(value: Body) -> bytes:
    """Return a server-sent event without a name."""
    return b"data: " + dumps(value) + b"\n\n"


def named_event(value: Body) -> bytes:
    """Return a server-sent event with its type as its name."""
    return b"event: " + str(value["type"]).encode() + b"\ndata: " + dumps(value) + b"\n\n"
