"""Errors of every wire, and the table of wires by path."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from nemo_agents.testing.replies import Asked, Reply
from nemo_agents.testing.wires import chat, messages, reading, responses
from nemo_agents.testing.wires.base import Bill, Body, data_event, named_event

__all__ = ["SHAPES", "Shape", "anthropic_error", "openai_error"]


def openai_error(status: int, message: str) -> Body:
    """Return an error as OpenAI writes it."""
    kind = "rate_limit_error" if status == 429 else "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def anthropic_error(status: int, message: str) -> Body:
    """Return an error as Anthropic writes it."""
    kinds = {429: "rate_limit_error", 529: "overloaded_error", 401: "authentication_error"}
    kind = kinds.get(status, "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_shapes"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How one wire is read and written."""

    read: Callable[[Body, str], tuple[Asked, Any]]
    plain: Callable[[Body, list[Reply], Bill], Body]
    events: Callable[[Body, list[Reply], Bill], Iterator[bytes]]
    error: Callable[[int, str], Body] = openai_error
    stream_error: Callable[[Body], bytes] = data_event


SHAPES: Final[Mapping[str, Shape]] = {
    "/v1/chat/completions": Shape(read=reading.read_chat, plain=chat.plain_chat, events=chat.chat_events),
    "/v1/completions": Shape(
        read=reading.read_completions, plain=chat.plain_completions, events=chat.completions_events
    ),
    "/v1/responses": Shape(
        read=reading.read_responses,
        plain=responses.plain_responses,
        events=responses.responses_events,
        stream_error=lambda body: named_event({"type": "error", "sequence_number": 99, **body}),  # nested, as it comes
    ),
    "/v1/messages": Shape(
        read=reading.read_messages,
        plain=messages.plain_messages,
        events=messages.messages_events,
        error=anthropic_error,
        stream_error=named_event,
    ),
}
