"""What a chat completion, or a chunk of one, holds: read for those who tell it in another wire."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["first_choice", "texts_of", "tool_calls_of"]


def first_choice(chat: Mapping[str, Any]) -> dict[str, Any]:
    """Return the first of a completion's or a chunk's choices; an empty object without any."""
    choices = chat.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict) and choice.get("index") in (None, 0):
            return choice
    return {}


def texts_of(said: Mapping[str, Any]) -> tuple[str, str]:
    """Return the thoughts and the text of a message or a delta; a refusal is text, and comes last.

    Thoughts are `reasoning_content` (DeepSeek, vLLM) or `reasoning` (OpenRouter, newer vLLM); some send both.
    """
    thoughts = said.get("reasoning_content") or said.get("reasoning")
    return thoughts if isinstance(thoughts, str) else "", _text(said.get("content")) + _text(said.get("refusal"))


def _text(content: object) -> str:
    """Return a content's text; some providers (Mistral) write it as a list of parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else ()
    return "".join([part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)])


def tool_calls_of(said: Mapping[str, Any]) -> Iterator[tuple[str | None, str, str]]:
    """Yield id, name and arguments of each function that a message calls."""
    calls = said.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            call_id, name, arguments = call.get("id"), function.get("name"), function.get("arguments")
            yield (
                call_id if isinstance(call_id, str) and call_id else None,
                name if isinstance(name, str) else "",
                arguments if isinstance(arguments, str) else "",
            )
