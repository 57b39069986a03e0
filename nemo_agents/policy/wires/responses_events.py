"""Events of the Responses API's stream: `event: <type>`, the data as JSON with the same type in it.

Source: OpenAI API reference, "Responses, streaming events". Nothing follows the terminal event, not even `[DONE]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

__all__ = ["INCOMPLETE_REASONS", "TERMINAL", "error_event", "error_text", "sse"]

TERMINAL: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})
INCOMPLETE_REASONS: Final[Mapping[str, str]] = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""Why a response is incomplete, by the finish reason of a chat completion; with any other it is complete."""
_ERROR_CHARACTERS_MAX: Final = 500


def sse(event: Mapping[str, Any]) -> bytes:
    """Return one event as it goes over the wire."""
    return b"event: %b\ndata: %b\n\n" % (str(event["type"]).encode(), msgspec.json.encode(event))


def error_event(error: Mapping[str, Any], *, sequence_number: int = 0) -> dict[str, Any]:
    """Return the event that says what went wrong: `code`, `message` and `param` in it, as the reference has it.

    They stand in `error` once more: OpenAI's clients raise an event of a stream when it has such a field, and hand on
    one without it as if it were any other (`openai/_streaming.py`).
    """
    return {
        "type": "error",
        "sequence_number": sequence_number,
        "code": error.get("code"),
        "message": error.get("message") or error_text(error),
        "param": error.get("param"),
        "error": error,
    }


def error_text(error: object) -> str:
    """Return what an error says, in a few words."""
    if isinstance(error, dict):
        inner = error.get("error")
        if error.get("message") is None and inner is not None:
            return error_text(inner)
        error = error.get("message") or error.get("code") or "error"
    return str(error)[:_ERROR_CHARACTERS_MAX]
