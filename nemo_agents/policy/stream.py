"""What a streamed answer says, gathered while it passes: text, tool calls, usage, finish reason, error.

Wire format: OpenAI Chat Completions chunks (`choices[].delta`), usage in a last chunk with empty `choices`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

__all__ = ["StreamTally", "answer_of"]


_TEXTS: Final = ("content", "refusal", "reasoning", "reasoning_content")
_TOOL_CALLS_MAX: Final = 512
_TOKEN_CHARACTERS_MAX: Final = 128
"""The longest token of the vocabularies in use (o200k and Llama 3: 128 blanks)."""


@dataclass(slots=True)
class _ToolCall:
    """One tool call so far. Pieces of text stay apart until the end: joining each to the last is quadratic."""

    id: str | None = None
    name: list[str] = field(default_factory=list)
    arguments: list[str] = field(default_factory=list)

    def whole(self) -> dict[str, Any]:
        function = {"name": "".join(self.name), "arguments": "".join(self.arguments)}
        call = {"type": "function", "function": function}
        return call if self.id is None else {"id": self.id, **call}


@dataclass(slots=True)
class _Message:
    """One answer so far, in pieces."""

    texts: dict[str, list[str]] = field(default_factory=dict)
    tool_calls: list[_ToolCall] = field(default_factory=list)

    def whole(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant"}
        message |= {key: "".join(pieces) for key, pieces in self.texts.items()}
        if self.tool_calls:
            message["tool_calls"] = [call.whole() for call in self.tool_calls]
        return message


class StreamTally:
    """Gathers one stream. `hide_usage`: the gateway asked for usage and the client did not."""

    def __init__(self, *, hide_usage: bool) -> None:
        self._hide_usage = hide_usage
        self._messages: dict[int, _Message] = {}
        self.usage: object = None
        self.service_tier: object = None
        self.tokens_seen = 0  # at least: a piece of text is a token or more, for providers stream whole ones
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
        choices = chunk.get("choices")
        usage = chunk.get("usage")
        if usage is not None:
            self.usage, self.service_tier = usage, chunk.get("service_tier")
            if not choices and self._hide_usage:
                return False
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict):
                self._see_choice(choice)
        return True

    def _see_choice(self, choice: dict[str, Any]) -> None:
        index = choice.get("index")
        if not isinstance(index, int):
            index = 0
        message = self._messages.get(index)
        if message is None:
            message = self._messages[index] = _Message()
        delta = choice.get("delta")
        if isinstance(delta, dict):
            for key in _TEXTS:
                piece = delta.get(key)
                if isinstance(piece, str):
                    message.texts.setdefault(key, []).append(piece)
                    if piece:
                        self.visible = True
                        self.tokens_seen += -(-len(piece) // _TOKEN_CHARACTERS_MAX)
            for part in delta.get("tool_calls") or ():
                if isinstance(part, dict):
                    self._see_tool_call(message, part)
        if isinstance(choice.get("finish_reason"), str):
            self.finish_reason = choice["finish_reason"]

    def _see_tool_call(self, message: _Message, part: dict[str, Any]) -> None:
        index = part.get("index", 0)
        if not isinstance(index, int) or not 0 <= index < _TOOL_CALLS_MAX:
            return
        while len(message.tool_calls) <= index:
            message.tool_calls.append(_ToolCall())
        call, function = message.tool_calls[index], part.get("function")
        if isinstance(part.get("id"), str):
            call.id = part["id"]
        if isinstance(function, dict):
            if isinstance(function.get("name"), str):
                call.name.append(function["name"])
            if isinstance(function.get("arguments"), str):
                call.arguments.append(function["arguments"])
                self.tokens_seen += -(-len(function["arguments"]) // _TOKEN_CHARACTERS_MAX)
        self.visible = True

    @property
    def answer(self) -> object:
        """The answer so far: one message, or a list of them when several were asked for; None without any."""
        messages = [self._messages[index].whole() for index in sorted(self._messages)]
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
