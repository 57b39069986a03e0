"""What a streamed answer says, gathered while it passes: text, tool calls, usage, finish reason, error, its end.

Wire format: OpenAI Chat Completions chunks (`choices[].delta`), usage in a last chunk with empty `choices`, and then
`[DONE]`. Some providers tell the usage so far in every chunk (vLLM's `continuous_usage_stats`, xAI, Gemini), or in the
one with the finish reason (Mistral), and some leave out `[DONE]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from nemo_agents.policy.usage import Usage, usage_from_openai

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
    function_call: _ToolCall | None = None  # what there was before them

    def whole(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant"}
        message |= {key: "".join(pieces) for key, pieces in self.texts.items()}
        if self.tool_calls:
            message["tool_calls"] = [call.whole() for call in self.tool_calls]
        if self.function_call is not None:
            message["function_call"] = self.function_call.whole()["function"]
        return message


class StreamTally:
    """Gathers one stream of so many `answers`. `hide_usage`: the gateway asked for usage and the client did not."""

    def __init__(self, *, hide_usage: bool, answers: int = 1) -> None:
        self._hide_usage = hide_usage
        self._answers = answers
        self._messages: dict[int, _Message] = {}
        self._going: set[int] = set()  # choices that have begun and not finished
        self._finished: set[int] = set()
        self._done = False
        self._usage_newest = False  # no choice has said anything since
        self._usage_closes = False  # it came when every choice had finished, or in a chunk of its own
        self._usage: object = None  # so far
        self._service_tier: object = None
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
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict):
                self._see_choice(choice)
        if usage is None:
            return True
        self._usage, self._service_tier = usage, chunk.get("service_tier")
        self._usage_newest = True
        self._usage_closes = self.finished or (not choices and bool(self._messages))
        return bool(choices) or not self._hide_usage

    def done(self) -> None:
        """Take in `[DONE]`."""
        self._done = True

    @property
    def said_done(self) -> bool:
        """Whether `[DONE]` has come: nothing of the answer can follow, whatever becomes of the connection."""
        return self._done

    @property
    def finished(self) -> bool:
        """Whether every answer that was asked for has finished, and none that has begun goes on."""
        return not self._going and len(self._finished) >= self._answers

    @property
    def ended(self) -> bool:
        """Whether the stream has said that it is over. One that stops without having said so was broken off."""
        if self.error is not None:
            return False
        return self._done or self.finished or (self._usage_newest and self._usage_closes)

    @property
    def told(self) -> Usage | None:
        """What it has said to have used so far."""
        return usage_from_openai(self._usage, service_tier=self._service_tier)

    @property
    def usage(self) -> Usage | None:
        """The usage of the whole answer; None while what was told may be of a part of it alone."""
        if not self.ended or not self._usage_newest:
            return None
        return self.told if self._done or self._usage_closes else None

    def _see_choice(self, choice: dict[str, Any]) -> None:
        index = choice.get("index")
        if not isinstance(index, int):
            index = 0
        message = self._messages.get(index)
        if message is None:
            message = self._messages[index] = _Message()
        says = False
        delta = choice.get("delta")
        if isinstance(delta, dict):
            for key in _TEXTS:
                piece = delta.get(key)
                if isinstance(piece, str):
                    message.texts.setdefault(key, []).append(piece)
                    if piece:
                        says = self.visible = True
                        self.tokens_seen += -(-len(piece) // _TOKEN_CHARACTERS_MAX)
            for part in delta.get("tool_calls") or ():
                if isinstance(part, dict):
                    says = True
                    self._see_tool_call(message, part)
            if isinstance(delta.get("function_call"), dict):
                says = True
                message.function_call = message.function_call or _ToolCall()
                self._see_function(message.function_call, delta["function_call"])
        if says:
            self._usage_newest = False
        self._see_finish(index, choice.get("finish_reason"), says=says)

    def _see_finish(self, index: int, reason: object, *, says: bool) -> None:
        """Note whether a choice has finished: an empty reason is none, and a choice that goes on has not."""
        if isinstance(reason, str) and reason:
            self.finish_reason = reason
            self._going.discard(index)
            self._finished.add(index)
        elif says or index not in self._finished:
            self._finished.discard(index)
            self._going.add(index)

    def _see_tool_call(self, message: _Message, part: dict[str, Any]) -> None:
        index = part.get("index", 0)
        if not isinstance(index, int) or not 0 <= index < _TOOL_CALLS_MAX:
            return
        while len(message.tool_calls) <= index:
            message.tool_calls.append(_ToolCall())
        call = message.tool_calls[index]
        if isinstance(part.get("id"), str):
            call.id = part["id"]
        self._see_function(call, part.get("function"))

    def _see_function(self, call: _ToolCall, function: object) -> None:
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


def answer_of(body: Mapping[str, Any]) -> tuple[object, str | None]:
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
