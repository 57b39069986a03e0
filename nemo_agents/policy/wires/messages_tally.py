"""What a stream of Anthropic's Messages says: blocks, usage, stop reason, error, its end.

Wire format (Anthropic's API reference, "Streaming messages"): `message_start` with the usage of the input, for each
block `content_block_start`, `content_block_delta`s and `content_block_stop`, then `message_delta` with the stop reason
and cumulative usage, and `message_stop`; `ping` and `error` anywhere. The type of an event is also in its data.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from nemo_agents.policy.usage import Usage, usage_from_anthropic

__all__ = ["MessagesTally"]

_TOKEN_CHARACTERS_MAX: Final = 128
"""The longest token of the vocabularies in use."""
_PIECES: Final = {
    "text_delta": "text",
    "thinking_delta": "thinking",
    "input_json_delta": "partial_json",
    "signature_delta": "signature",
}


@dataclass(slots=True)
class _Block:
    """One content block so far. Pieces of text stay apart until the end: joining each to the last is quadratic."""

    start: dict[str, Any]
    pieces: dict[str, list[str]] = field(default_factory=dict)
    citations: list[Any] = field(default_factory=list)

    def whole(self) -> dict[str, Any]:
        block = dict(self.start)
        for name, pieces in self.pieces.items():
            text = "".join(pieces)
            if name == "partial_json":
                block["input"] = _json(text)
            else:
                before = block.get(name)
                block[name] = before + text if isinstance(before, str) else text
        if self.citations:
            block["citations"] = self.citations
        return block


class MessagesTally:
    """Gathers one stream; see `Tally`."""

    def __init__(self) -> None:
        self._blocks: dict[int, _Block] = {}
        self._usage: dict[str, Any] = {}
        self._usage_final = False
        self._stopped = False
        self._counted = 0  # tokens, by the pieces that have passed
        self.tokens_seen = 0
        self.visible = False
        self.error: str | None = None
        self.finish_reason: str | None = None

    def see(self, chunk: object) -> bool:
        """Take in the data of one event; the client gets to see every one."""
        if isinstance(chunk, dict):
            match chunk.get("type"):
                case "content_block_delta":
                    self._see_delta(chunk.get("index"), chunk.get("delta"))
                case "content_block_start":
                    self._see_start(chunk.get("index"), chunk.get("content_block"))
                case "message_start":
                    message = chunk.get("message")
                    self._see_usage(message.get("usage") if isinstance(message, dict) else None)
                case "message_delta":
                    self._see_end(chunk)
                case "message_stop":
                    self._stopped = True
                case "error":
                    self.error = _error_text(chunk.get("error"))
        return True

    def done(self) -> None:
        """Take in `[DONE]`, which this wire does not have: those who send it all the same mean `message_stop`."""
        self._stopped = True

    @property
    def said_done(self) -> bool:
        """Whether `message_stop` has come."""
        return self._stopped

    @property
    def finished(self) -> bool:
        """Whether the message has been given a reason to stop."""
        return self._stopped or self.finish_reason is not None

    @property
    def ended(self) -> bool:
        """Whether the stream has said that it is over."""
        return self.error is None and self.finished

    @property
    def told(self) -> Usage | None:
        """What it has said to have used so far: what `message_start` said, as `message_delta` has corrected it."""
        return usage_from_anthropic(self._usage)

    @property
    def usage(self) -> Usage | None:
        """The usage of the whole message; None before it has ended."""
        return self.told if self.ended and self._usage_final else None

    @property
    def answer(self) -> object:
        """The message so far; None without any content."""
        if not self._blocks:
            return None
        return {"role": "assistant", "content": [self._blocks[index].whole() for index in sorted(self._blocks)]}

    def _see_start(self, index: object, block: object) -> None:
        if not isinstance(index, int) or not isinstance(block, dict):
            return
        self._blocks[index] = _Block(start=block)
        self._count("".join([block[name] for name in ("text", "thinking") if isinstance(block.get(name), str)]))
        if block.get("type") not in ("text", "thinking"):
            self.visible = True

    def _see_delta(self, index: object, delta: object) -> None:
        if not isinstance(index, int) or not isinstance(delta, dict):
            return
        block = self._blocks.get(index)
        if block is None:
            block = self._blocks[index] = _Block(start={})
        kind = delta.get("type")
        name = _PIECES.get(kind) if isinstance(kind, str) else None
        piece = delta.get(name) if name is not None else None
        if name is not None and isinstance(piece, str):
            block.pieces.setdefault(name, []).append(piece)
            if name != "signature":  # which is no output of the model's
                self._count(piece)
        elif kind == "citations_delta":
            block.citations.append(delta.get("citation"))

    def _see_end(self, chunk: dict[str, Any]) -> None:
        delta, usage = chunk.get("delta"), chunk.get("usage")
        reason = delta.get("stop_reason") if isinstance(delta, dict) else None
        if isinstance(reason, str) and reason:
            self.finish_reason = reason
        if isinstance(usage, dict) and usage.get("output_tokens") is not None:
            self._usage_final = True
        self._see_usage(usage)

    def _see_usage(self, usage: object) -> None:
        if not isinstance(usage, dict):
            return
        self._usage |= {name: value for name, value in usage.items() if value is not None}
        written = usage.get("output_tokens")
        if type(written) is int:
            self.tokens_seen = max(self.tokens_seen, written)

    def _count(self, piece: str) -> None:
        if piece:
            self.visible = True
            self._counted += -(-len(piece) // _TOKEN_CHARACTERS_MAX)
            self.tokens_seen = max(self.tokens_seen, self._counted)


def _json(text: str) -> object:
    """Return what a tool was called with; as text where it broke off or is no JSON, and nothing for a bare call."""
    try:
        return msgspec.json.decode(text) if text else {}
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return text


def _error_text(error: object) -> str:
    if isinstance(error, dict):
        return str(error.get("message") or error.get("type") or "error")[:500]
    return str(error)[:500]
