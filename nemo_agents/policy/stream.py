"""What a streamed answer says, gathered while it passes: text, tool calls, usage, finish reason, error.

Wire format: OpenAI Chat Completions chunks (`choices[].delta`), usage in a last chunk with empty `choices`.
"""

from __future__ import annotations

from typing import Any

__all__ = ["StreamTally", "answer_of"]


class StreamTally:
    """Gathers one stream. `hide_usage`: the gateway asked for usage and the client did not."""

    def __init__(self, *, hide_usage: bool) -> None:
        self._hide_usage = hide_usage
        self._messages: dict[int, dict[str, Any]] = {}
        self.usage: object = None
        self.model: str | None = None
        self.finish_reason: str | None = None
        self.error: str | None = None
        self.visible = False

    def see(self, chunk: object) -> bool:
        """Take in one decoded chunk; say whether the client gets to see it."""
        if not isinstance(chunk, dict):
            return True
        if chunk.get("error") is not None:
            self.error = _error_text(chunk["error"])
            return True
        if isinstance(chunk.get("model"), str):
            self.model = chunk["model"]
        choices = chunk.get("choices")
        usage = chunk.get("usage")
        if usage is not None:
            self.usage = usage
            if not choices and self._hide_usage:
                return False
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict):
                self._see_choice(choice)
        return True

    def _see_choice(self, choice: dict[str, Any]) -> None:
        index = choice.get("index")
        message = self._messages.setdefault(index if isinstance(index, int) else 0, {"role": "assistant"})
        delta = choice.get("delta")
        if isinstance(delta, dict):
            for key in ("content", "refusal", "reasoning", "reasoning_content"):
                if isinstance(delta.get(key), str):
                    message[key] = (message.get(key) or "") + delta[key]
                    self.visible = self.visible or bool(delta[key])
            for part in delta.get("tool_calls") or ():
                if isinstance(part, dict):
                    self._see_tool_call(message, part)
        if isinstance(choice.get("finish_reason"), str):
            self.finish_reason = choice["finish_reason"]

    def _see_tool_call(self, message: dict[str, Any], part: dict[str, Any]) -> None:
        calls: list[dict[str, Any]] = message.setdefault("tool_calls", [])
        index = part.get("index", 0)
        if not isinstance(index, int) or not 0 <= index < 512:
            return
        while len(calls) <= index:
            calls.append({"type": "function", "function": {"name": "", "arguments": ""}})
        call, function = calls[index], part.get("function")
        if isinstance(part.get("id"), str):
            call["id"] = part["id"]
        if isinstance(function, dict):
            for key in ("name", "arguments"):
                if isinstance(function.get(key), str):
                    call["function"][key] += function[key]
        self.visible = True

    @property
    def answer(self) -> object:
        """The answer so far: one message, or a list of them when several were asked for; None without any."""
        messages = [self._messages[index] for index in sorted(self._messages)]
        return messages[0] if len(messages) == 1 else (messages or None)


def answer_of(body: dict[str, Any]) -> tuple[object, str | None]:
    """Return the answer message (or messages) and the finish reason of a plain answer."""
    choices = body.get("choices")
    found = [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []
    if not found:
        return None, None
    messages = [choice.get("message", choice.get("text")) for choice in found]
    reason = found[0].get("finish_reason")
    return (messages[0] if len(messages) == 1 else messages), (reason if isinstance(reason, str) else None)


def _error_text(error: object) -> str:
    if isinstance(error, dict):
        return str(error.get("message") or error.get("code") or "error")[:500]
    return str(error)[:500]
