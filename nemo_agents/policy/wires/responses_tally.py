"""What a stream of the Responses API has said so far.

Source: OpenAI API reference, "Responses, streaming events". Beyond the reference, the stream of a slow answer holds
`{"type": "keepalive"}` now and then, and vLLM calls a part of its reasoning `response.reasoning_part`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from nemo_agents.policy.usage import Usage, usage_from_openai
from nemo_agents.policy.wires.responses_events import TERMINAL, error_text

__all__ = ["ResponsesTally", "end_reason"]

_TOKEN_CHARACTERS_MAX: Final = 128
"""The longest token of the vocabularies in use (o200k and Llama 3: 128 blanks)."""

_SHOWS_NOTHING: Final = frozenset(
    {
        "response.created",
        "response.queued",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.reasoning_part.added",
        "response.reasoning_summary_part.added",
        "response.failed",
    }
)
"""What comes before the first piece of an answer, or instead of it."""
_CALLS: Final = ("function_call", "custom_tool_call")
_IN_CONTENT: Final[Mapping[str, tuple[str, str]]] = {
    "response.output_text.delta": ("output_text", "text"),
    "response.refusal.delta": ("refusal", "refusal"),
    "response.reasoning_text.delta": ("reasoning_text", "text"),
}
"""Deltas of a part of an item's content: the type of the part, and its field."""
_IN_ITEM: Final[Mapping[str, str]] = {
    "response.function_call_arguments.delta": "arguments",
    "response.custom_tool_call_input.delta": "input",
    "response.mcp_call_arguments.delta": "arguments",
    "response.code_interpreter_call_code.delta": "code",
}
"""Deltas of a field of an item."""
_SUMMARY: Final = "response.reasoning_summary_text.delta"
_TRANSCRIPT: Final = "response.audio.transcript.delta"
_KEPT: Final = frozenset({*_IN_CONTENT, *_IN_ITEM, _SUMMARY})


def end_reason(response: Mapping[str, Any]) -> str | None:
    """Return why a response ended: the reason why it is incomplete, else its status."""
    details, status = response.get("incomplete_details"), response.get("status")
    reason = details.get("reason") if isinstance(details, dict) else None
    if isinstance(reason, str):
        return reason
    return status if isinstance(status, str) else None


@dataclass(slots=True)
class _Item:
    """One item of the output so far. Pieces of text stay apart until the end: joining each to the last is quadratic."""

    began: dict[str, Any] = field(default_factory=dict)
    done: dict[str, Any] | None = None
    content: dict[int, tuple[str, str, list[str]]] = field(default_factory=dict)
    summary: dict[int, list[str]] = field(default_factory=dict)
    fields: dict[str, list[str]] = field(default_factory=dict)

    def take(self, kind: str, event: Mapping[str, Any], piece: str) -> None:
        if kind == _SUMMARY:
            self.summary.setdefault(_index(event, "summary_index"), []).append(piece)
        elif kind in _IN_ITEM:
            self.fields.setdefault(_IN_ITEM[kind], []).append(piece)
        elif kind in _IN_CONTENT:
            part, name = _IN_CONTENT[kind]
            self.content.setdefault(_index(event, "content_index"), (part, name, []))[2].append(piece)

    def whole(self) -> dict[str, Any]:
        if self.done is not None:
            return self.done
        item = dict(self.began)
        if self.content:
            parts = [self.content[index] for index in sorted(self.content)]
            item["content"] = [{"type": part, name: "".join(pieces)} for part, name, pieces in parts]
        if self.summary:
            texts = ["".join(self.summary[index]) for index in sorted(self.summary)]
            item["summary"] = [{"type": "summary_text", "text": text} for text in texts]
        return item | {name: "".join(pieces) for name, pieces in self.fields.items()}


class ResponsesTally:
    """Gathers one stream. See `Tally`."""

    def __init__(self) -> None:
        self._items: dict[int, _Item] = {}
        self._last: Mapping[str, Any] | None = None  # the response in the terminal event
        self._complete = False  # by a terminal event that says no error
        self._usage: object = None  # so far
        self._service_tier: object = None
        self.tokens_seen = 0  # at least: a piece of text is a token or more, for providers stream whole ones
        self.visible = False
        self.error: str | None = None
        self.finish_reason: str | None = None

    def see(self, chunk: object) -> bool:
        """Take in one decoded event; the client gets to see all of them."""
        if not isinstance(chunk, dict):
            return True
        kind = chunk.get("type")
        if kind == "error" or (chunk.get("error") is not None):
            self.error = error_text(chunk)
            return True
        if not isinstance(kind, str) or not kind.startswith("response."):
            return True
        response = chunk.get("response")
        if isinstance(response, dict):
            self._see_response(kind, response)
        elif kind.endswith(".delta"):
            self._see_delta(kind, chunk)
        else:
            self._see_step(kind, chunk)
        return True

    def done(self) -> None:
        """Take in `[DONE]`, which says nothing here: only a terminal event ends a stream."""

    @property
    def said_done(self) -> bool:
        """Whether the terminal event has come."""
        return self._last is not None

    @property
    def finished(self) -> bool:
        """Whether the response is over, complete or cut by its cap."""
        return self._complete

    @property
    def ended(self) -> bool:
        """Whether the stream has said that it is over. One that stops without having said so was broken off."""
        return self._complete and self.error is None

    @property
    def told(self) -> Usage | None:
        """What it has said to have used so far."""
        return usage_from_openai(self._usage, service_tier=self._service_tier)

    @property
    def usage(self) -> Usage | None:
        """The usage of the whole answer, which only a terminal event tells."""
        if not self.ended or self._last is None or self._last.get("usage") is None:
            return None
        return self.told

    @property
    def answer(self) -> object:
        """The items of the output so far; None without any."""
        output = self._last.get("output") if self._last is not None else None
        if isinstance(output, list) and output:
            return output
        return [self._items[index].whole() for index in sorted(self._items)] or None

    def _see_response(self, kind: str, response: Mapping[str, Any]) -> None:
        if response.get("usage") is not None:
            self._usage, self._service_tier = response["usage"], response.get("service_tier")
        if kind not in TERMINAL:
            return
        self._last = response
        self.finish_reason = end_reason(response)
        if kind == "response.failed":
            self.error = error_text(response.get("error") or "The response failed, and does not say why.")
        else:
            self._complete = True
            self.visible = True

    def _see_delta(self, kind: str, event: Mapping[str, Any]) -> None:
        piece = event.get("delta")
        if not isinstance(piece, str):
            self.visible = True  # not text: something of the answer all the same
            return
        if not piece:
            return
        self.visible = True
        if kind in _KEPT or kind == _TRANSCRIPT:
            self.tokens_seen += -(-len(piece) // _TOKEN_CHARACTERS_MAX)
        if kind in _KEPT:
            self._item(event).take(kind, event, piece)

    def _see_step(self, kind: str, event: Mapping[str, Any]) -> None:
        item = event.get("item")
        if isinstance(item, dict):
            ours = self._item(event)
            if kind == "response.output_item.done":
                ours.done = item
            else:
                ours.began = item
            if item.get("type") in _CALLS:  # its name alone is something to act on
                self.visible = True
        if kind not in _SHOWS_NOTHING:
            self.visible = True

    def _item(self, event: Mapping[str, Any]) -> _Item:
        return self._items.setdefault(_index(event, "output_index"), _Item())


def _index(event: Mapping[str, Any], name: str) -> int:
    index = event.get(name)
    return index if isinstance(index, int) else 0
