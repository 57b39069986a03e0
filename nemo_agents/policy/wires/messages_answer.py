"""A chat completion, whole or streamed, told as a message of Anthropic's API.

Blocks come in the order in which models write: thoughts, text, calls of tools. The id is the chat's, with the prefix
that Anthropic's ids have; ids of calls stay as they are, since results are sent back by them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec

from nemo_agents.policy.usage import usage_from_openai
from nemo_agents.policy.wires.chat_answer import first_choice, texts_of, tool_calls_of

__all__ = ["MessageStream", "message_of"]

_STOP_REASONS: Final = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
_NOT_JSON: Final = (msgspec.DecodeError, UnicodeError, RecursionError)


def message_of(chat: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
    """Return a chat completion as a message.

    Arguments that are no JSON object are given as `{"INVALID_JSON": …}`, the form that Anthropic recommends for input
    that cannot be parsed. Where the completion does not say what it used, the counts that a message must have are 0.
    """
    choice = first_choice(chat)
    said = choice.get("message")
    said = said if isinstance(said, dict) else {}
    thoughts, text = texts_of(said)
    content: list[dict[str, Any]] = []
    if thoughts:
        content.append({"type": "thinking", "thinking": thoughts, "signature": ""})
    if text:
        content.append({"type": "text", "text": text})
    message_id = _message_id(chat)
    for n, (call_id, name, arguments) in enumerate(tool_calls_of(said)):
        content.append({**_tool_use(call_id, name, message_id, n), "input": _input(arguments)})
    reason, sequence = _stop(choice, body, called=any(block["type"] == "tool_use" for block in content))
    return {
        **_head(chat, body),
        "content": content,
        "stop_reason": reason,
        "stop_sequence": sequence,
        "usage": _usage(chat.get("usage")),
    }


def _head(chat: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
    model = chat.get("model")
    return {
        "id": _message_id(chat),
        "type": "message",
        "role": "assistant",
        "model": model if isinstance(model, str) and model else body.get("model"),
    }


def _message_id(chat: Mapping[str, Any]) -> str:
    given = chat.get("id")
    return "msg_" + (given.removeprefix("chatcmpl-") if isinstance(given, str) else "")


def _tool_use(call_id: str | None, name: str, message_id: str, n: int) -> dict[str, Any]:
    return {"type": "tool_use", "id": call_id or f"toolu_{message_id.removeprefix('msg_')}_{n}", "name": name}


def _input(arguments: str) -> dict[str, Any]:
    if not arguments.strip():
        return {}
    given = _object(arguments)
    return {"INVALID_JSON": arguments} if given is None else given


def _object(text: str) -> dict[str, Any] | None:
    try:
        given = msgspec.json.decode(text)
    except _NOT_JSON:
        return None
    return given if isinstance(given, dict) else None


def _stop(choice: Mapping[str, Any], body: Mapping[str, Any], *, called: bool) -> tuple[str, str | None]:
    """Return why the answer ended, and the stop sequence that ended it, which only some providers name (vLLM)."""
    given, sequence, sequences = choice.get("finish_reason"), choice.get("stop_reason"), body.get("stop_sequences")
    reason = _STOP_REASONS.get(given, "end_turn") if isinstance(given, str) else "end_turn"
    if reason == "end_turn" and called:  # some say `stop` when they call a tool
        return "tool_use", None
    if reason == "end_turn" and isinstance(sequence, str) and isinstance(sequences, list) and sequence in sequences:
        return "stop_sequence", sequence
    return reason, None


def _usage(usage: object) -> dict[str, Any]:
    """Return the usage on Anthropic's axes, whose groups of input are disjoint."""
    used = usage_from_openai(usage)
    if used is None:
        return {"input_tokens": 0, "output_tokens": 0}
    told: dict[str, Any] = {
        "input_tokens": used.input_tokens - used.cached_tokens - used.cache_write_tokens,
        "cache_creation_input_tokens": used.cache_write_tokens,
        "cache_read_input_tokens": used.cached_tokens,
        "output_tokens": used.output_tokens,
    }
    if used.reasoning_tokens:
        told["output_tokens_details"] = {"thinking_tokens": used.reasoning_tokens}
    return told


@dataclass(slots=True)
class _Call:
    """One call of a tool: what has come of it, and how much of that has been told."""

    id: str | None = None
    name: str = ""
    arguments: list[str] = field(default_factory=list)
    told: int = 0
    begun: bool = False
    looked_at: int = 0

    def complete(self) -> bool:
        """Say whether the arguments are a whole object; they are looked at once for each piece that may end one."""
        if self.looked_at == len(self.arguments) or not self.arguments[-1].rstrip().endswith("}"):
            return False
        self.looked_at = len(self.arguments)
        return _object("".join(self.arguments)) is not None


class MessageStream:
    """The chunks of one chat completion, told as the events of a message; see `StreamTranslation`.

    A message's blocks come one after the other. So of several calls whose pieces come mixed, one is told as it comes
    and the others are kept until it is complete; and text that comes after calls have begun is told behind them.
    """

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._body = body
        self._head: dict[str, Any] | None = None
        self._index = -1  # of the newest block
        self._open: Literal["thinking", "text", "tool_use"] | None = None
        self._calls: dict[int, _Call] = {}  # by the index that newer pieces come with
        self._waiting: list[_Call] = []  # not wholly told; the first is being told
        self._called = 0  # blocks of calls so far
        self._late: list[tuple[Literal["thinking", "text"], str]] = []
        self._usage: object = None
        self._choice: dict[str, Any] = {}
        self._failed = False
        self._out = bytearray()

    def feed(self, chunk: object) -> bytes:
        """Return the events that one chunk amounts to."""
        if not isinstance(chunk, dict) or self._failed:
            return b""
        if chunk.get("error") is not None:
            self._failed = True
            self._say("error", error=_error(chunk["error"]))
            return self._told()
        if chunk.get("usage") is not None:
            self._usage = chunk["usage"]
        choice = first_choice(chunk)
        if choice:
            self._begin(chunk)
            self._choice |= {name: choice[name] for name in ("finish_reason", "stop_reason") if choice.get(name)}
            delta = choice.get("delta")
            if isinstance(delta, dict):
                self._feed(delta)
        return self._told()

    def end(self) -> bytes:
        """Return the end of the message: what was kept, the reason to stop, the usage."""
        if self._failed:
            return b""
        self._begin({})
        for call in self._waiting:
            self._tell(call)
        self._waiting.clear()
        for kind, piece in self._late:
            self._write(kind, piece)
        self._close()
        reason, sequence = _stop(self._choice, self._body, called=self._called > 0)
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        self._say("message_delta", delta=delta, usage=_usage(self._usage))
        self._say("message_stop")
        return self._told()

    def _feed(self, delta: Mapping[str, Any]) -> None:
        thoughts, text = texts_of(delta)
        kinds: tuple[tuple[Literal["thinking", "text"], str], ...] = (("thinking", thoughts), ("text", text))
        for kind, piece in kinds:
            if piece and (self._waiting or self._called):
                self._late.append((kind, piece))
            elif piece:
                self._write(kind, piece)
        calls = delta.get("tool_calls")
        for part in calls if isinstance(calls, list) else ():
            if isinstance(part, dict):
                self._take(part)
        self._advance()

    # --- calls of tools -----------------------------------------------------------------------------------------
    def _take(self, part: Mapping[str, Any]) -> None:
        """Add a piece to its call. One with another id begins a new call, even at an index that was used before."""
        index, function = part.get("index", 0), part.get("function")
        if not isinstance(index, int):
            return
        call_id = part.get("id") if isinstance(part.get("id"), str) else None
        call = self._calls.get(index)
        if call is None or (call_id and call.id and call.id != call_id):
            call = self._calls[index] = _Call()
            self._waiting.append(call)
        call.id = call.id or call_id
        if isinstance(function, dict):
            if isinstance(function.get("name"), str) and not call.begun:
                call.name += function["name"]
            if isinstance(function.get("arguments"), str) and function["arguments"]:
                call.arguments.append(function["arguments"])

    def _advance(self) -> None:
        """Tell what has come of the first call that waits, and go on to the next when it is complete."""
        while self._waiting:
            call = self._waiting[0]
            if call.arguments:
                self._tell(call)
            if len(self._waiting) == 1 or not call.complete():
                return
            self._waiting.pop(0)

    def _tell(self, call: _Call) -> None:
        if not call.begun:
            call.begun = True
            assert self._head is not None
            self._start("tool_use", {**_tool_use(call.id, call.name, self._head["id"], self._called), "input": {}})
            self._called += 1
        piece = "".join(call.arguments[call.told :])
        call.told = len(call.arguments)
        if piece:
            self._say("content_block_delta", delta={"type": "input_json_delta", "partial_json": piece}, index=True)

    # --- events -------------------------------------------------------------------------------------------------
    def _begin(self, chunk: Mapping[str, Any]) -> None:
        if self._head is None:
            self._head = _head(chunk, self._body)
            # What was used is known at the end: `message_delta` corrects these.
            unknown = {"input_tokens": 0, "output_tokens": 0}
            message = {**self._head, "content": [], "stop_reason": None, "stop_sequence": None, "usage": unknown}
            self._say("message_start", message=message)

    def _write(self, kind: Literal["thinking", "text"], piece: str) -> None:
        if self._open != kind:
            self._start(kind, {"type": kind, kind: "", **({"signature": ""} if kind == "thinking" else {})})
        self._say("content_block_delta", delta={"type": f"{kind}_delta", kind: piece}, index=True)

    def _start(self, kind: Literal["thinking", "text", "tool_use"], block: dict[str, Any]) -> None:
        self._close()
        self._open, self._index = kind, self._index + 1
        self._say("content_block_start", content_block=block, index=True)

    def _close(self) -> None:
        if self._open is not None:
            self._say("content_block_stop", index=True)
            self._open = None

    def _say(self, kind: str, *, index: bool = False, **fields: Any) -> None:
        where = {"index": self._index} if index else {}
        data = msgspec.json.encode({"type": kind, **where, **fields})
        self._out += b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"

    def _told(self) -> bytes:
        out = bytes(self._out)
        self._out.clear()
        return out


def _error(error: object) -> dict[str, Any]:
    message = error.get("message") if isinstance(error, dict) else error
    return {"type": "api_error", "message": str(message or "The provider's stream failed.")}
