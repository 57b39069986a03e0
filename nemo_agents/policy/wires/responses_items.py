"""The items of a response while they are written: what each holds so far, and the events that tell of it.

Source: OpenAI API reference, "Responses, streaming events". Of every item the stream says, in this order: that it is
added, what each of its parts holds, piece by piece and then whole, and that it is done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

__all__ = ["CallItem", "Emit", "TextItem"]

_ID_PREFIXES: Final = {"message": "msg", "reasoning": "rs", "function": "fc", "custom": "ctc"}
_CALL_TYPES: Final = {"function": "function_call", "custom": "custom_tool_call"}
_CALL_EVENTS: Final = {
    "function": "response.function_call_arguments",
    "custom": "response.custom_tool_call_input",
}


Emit = Callable[..., None]
"""Takes an event: its type, and its fields by name."""


@dataclass(slots=True)
class _Part:
    """A part of an item's content, in pieces: joining each to the last is quadratic."""

    kind: str
    pieces: list[str] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The field that holds its text."""
        return "refusal" if self.kind == "refusal" else "text"

    def whole(self) -> dict[str, Any]:
        part: dict[str, Any] = {"type": self.kind, self.name: "".join(self.pieces)}
        if self.kind == "output_text":
            part |= {"annotations": [], "logprobs": list(self.logprobs)}
        return part


class TextItem:
    """A message of the assistant, or the reasoning before one: parts of text, of which the last is being written."""

    def __init__(self, kind: str, response: str, index: int) -> None:
        self.kind = kind
        self._id = f"{_ID_PREFIXES[kind]}_{response}_{index}"
        self._index = index
        self._parts: list[_Part] = []
        self._status = "in_progress"

    def say(self, emit: Emit, kind: str, piece: str, logprobs: Sequence[Any]) -> None:
        """Add a piece to the part of that kind that is being written, or begin one."""
        if not self._parts:
            emit("response.output_item.added", output_index=self._index, item=self.whole())
        if not self._parts or self._parts[-1].kind != kind:
            self._close_part(emit)
            self._parts.append(_Part(kind))
            emit("response.content_part.added", **self._where(), part=self._parts[-1].whole())
        part = self._parts[-1]
        part.pieces.append(piece)
        part.logprobs += logprobs
        said = {"logprobs": list(logprobs)} if kind == "output_text" else {}
        emit(f"response.{kind}.delta", **self._where(), delta=piece, **said)

    def turn(self, emit: Emit) -> None:
        """Close it, because another item begins."""
        self.close(emit, "completed")

    def close(self, emit: Emit, status: str) -> None:
        """Tell what it holds, unless that has been told."""
        if self._status != "in_progress":
            return
        self._close_part(emit)
        self._status = status
        emit("response.output_item.done", output_index=self._index, item=self.whole())

    def whole(self) -> dict[str, Any]:
        """Return the item as it is now."""
        item: dict[str, Any] = {"id": self._id, "type": self.kind, "status": self._status}
        if self.kind == "reasoning":
            item["summary"] = []
        else:
            item["role"] = "assistant"
        item["content"] = [part.whole() for part in self._parts]
        return item

    def _close_part(self, emit: Emit) -> None:
        if self._parts:
            part = self._parts[-1].whole()
            kind, name = part["type"], self._parts[-1].name
            said = {"logprobs": part["logprobs"]} if kind == "output_text" else {}
            emit(f"response.{kind}.done", **self._where(), **{name: part[name]}, **said)
            emit("response.content_part.done", **self._where(), part=part)

    def _where(self) -> dict[str, Any]:
        return {"item_id": self._id, "output_index": self._index, "content_index": len(self._parts) - 1}


class CallItem:
    """A call of a tool of the client's.

    It is told of when the tool's name must be whole: with the first of its arguments, or at the end.
    """

    def __init__(self, kind: str, response: str, index: int) -> None:
        self._kind = kind
        self._id = f"{_ID_PREFIXES[kind]}_{response}_{index}"
        self._call_id: str | None = None
        self._unnamed = f"call_{response}_{index}"
        self._index = index
        self._names: list[str] = []
        self._pieces: list[str] = []
        self._told = False
        self._status = "in_progress"

    def names_another(self, call_id: object) -> bool:
        """Say whether an id is another call's."""
        return isinstance(call_id, str) and bool(call_id) and self._call_id not in (None, call_id)

    def identify(self, call_id: object, taken: set[str]) -> None:
        """Take an id, the first that is given; one that another call has becomes a new one, which clients insist on."""
        if self._call_id is None and not self._told and isinstance(call_id, str) and call_id:
            self._call_id = call_id if call_id not in taken else self._unnamed
            taken.add(self._call_id)

    def add_name(self, piece: str) -> None:
        """Add to the tool's name; once that has been told it stays."""
        if not self._told:
            self._names.append(piece)

    def say(self, emit: Emit, piece: str) -> None:
        """Add to what the tool is called with. Behind a whole object nothing can follow that would mean anything."""
        if self._status != "in_progress":
            return
        self._tell(emit)
        self._pieces.append(piece)
        emit(f"{_CALL_EVENTS[self._kind]}.delta", item_id=self._id, output_index=self._index, delta=piece)

    def turn(self, emit: Emit) -> None:
        """Close it if it is whole, because another item begins.

        OpenAI's calls follow one another. Where calls are written side by side, one that is not whole goes on.
        """
        self._tell(emit)
        if self._status == "in_progress" and _is_object("".join(self._pieces)):
            self.close(emit, "completed")

    def close(self, emit: Emit, status: str) -> None:
        """Tell what it holds, unless that has been told."""
        if self._status != "in_progress":
            return
        self._tell(emit)
        self._status = status
        item, name = self.whole(), self._field
        emit(f"{_CALL_EVENTS[self._kind]}.done", item_id=self._id, output_index=self._index, **{name: item[name]})
        emit("response.output_item.done", output_index=self._index, item=item)

    def whole(self) -> dict[str, Any]:
        """Return the item as it is now."""
        return {
            "id": self._id,
            "type": _CALL_TYPES[self._kind],
            "status": self._status,
            "call_id": self._call_id or self._unnamed,
            "name": "".join(self._names),
            self._field: "".join(self._pieces),
        }

    @property
    def _field(self) -> str:
        return "input" if self._kind == "custom" else "arguments"

    def _tell(self, emit: Emit) -> None:
        if not self._told:
            self._told = True
            emit("response.output_item.added", output_index=self._index, item=self.whole())


def _is_object(text: str) -> bool:
    if not text.lstrip().startswith("{"):
        return False
    try:
        msgspec.json.decode(text, type=dict)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True
