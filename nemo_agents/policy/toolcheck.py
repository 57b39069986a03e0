"""Which tools an answer calls, and whether its role may have them: whole answers and streams, in each wire.

A request is refused for the tools that it offers (`admission.check_tools`). A model can call others all the same: it
was told of them in an earlier turn or by what it read, it makes a name up, or its provider runs tools of its own. So
the answer is read as well, where the role has a list. Whatever in it may be a call and names no tool of the list is
none of the role's: an item or block of an unknown type, too. Calls that a provider runs itself (`web_search_call`,
`mcp_call`, `server_tool_use`) have no name of the role's, and are refused by their type, as they are when a request
offers them.

Wire formats: OpenAI API reference, "Chat Completions, streaming", "Responses, streaming events"; Anthropic's API
reference, "Streaming messages". A tool's name may come in pieces, and its arguments before it is whole.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

from nemo_agents.errors import Code
from nemo_agents.policy.keys import Grant
from nemo_agents.policy.refusal import Refusal
from nemo_agents.policy.wires.base import WireName

__all__ = ["ToolGate", "call_refusal", "called_beyond", "tool_gate"]

HELD_MAX_BYTES: Final = 1 << 20
"""How much of a stream may wait for the name of a tool."""

_NAME_SHOWN_MAX: Final = 64
_CLIENTS_CALLS: Final = ("function", "custom")
_FUNCTION_CALL: Final = -1  # in place of an index: the one call that a message of before `tool_calls` has
_RESPONSES_SAYS: Final = frozenset(
    {"compaction", "custom_tool_call_output", "function_call_output", "message", "reasoning"}
)
_RESPONSES_INPUTS: Final = frozenset({"function_call_arguments", "custom_tool_call_input"})
_MESSAGES_SAYS: Final = frozenset({"compaction", "redacted_thinking", "text", "thinking"})


def tool_gate(wire: WireName, tools: Collection[str] | None) -> ToolGate | None:
    """Return what a stream of this wire passes for a role with these tools; None where there is nothing to look for.

    `tools` None: the role may have any.
    """
    watch = None if tools is None else _WATCHES.get(wire)
    return None if watch is None or tools is None else ToolGate(watch(frozenset(tools)))


def called_beyond(wire: WireName, answer: Mapping[str, Any], tools: Collection[str]) -> str | None:
    """Return the first call in a whole answer of a tool that is not in `tools`: its name, or its type."""
    if wire not in _WATCHES:
        return None
    watch = _WATCHES[wire](frozenset(tools))
    field = _FIELD_OF_EVENT[wire]
    watch.see(answer if field is None else {field: answer})
    watch.end()
    return watch.forbidden


def call_refusal(called: str, grant: Grant) -> Refusal:
    """Return what the client is told in place of an answer that calls this tool."""
    declared = ", ".join(grant.tools or ()) or "none"
    tool = f"the tool {called[:_NAME_SHOWN_MAX]!r}" if called else "a tool without a name"
    return Refusal(
        status=403,
        code=Code.TOOL_NOT_ALLOWED,
        message=(
            f"The model called {tool}, which role {grant.role or grant.alias} may not use; it declares: {declared}. "
            "The call was not passed on."
        ),
        scope="role",
        limit="tools",
    )


class ToolGate:
    """Lets the events of a stream through, as they came, for as long as they call no other tools than a role's.

    From the event on whose call has no whole name yet, everything waits; behind a forbidden call nothing passes.
    `forbidden` is that call, once there is one.
    """

    def __init__(self, watch: _Watch) -> None:
        self._watch = watch
        self._waiting: list[tuple[bytes, object]] = []
        self._size = 0
        self.forbidden: str | None = None

    @property
    def closed(self) -> bool:
        """Whether something is held back, for now or for good."""
        return self.forbidden is not None or bool(self._waiting)

    def let(self, raw: bytes, chunk: object, *, size: int) -> list[tuple[bytes, object]]:
        """Take an event, `raw` as the client would get it and `chunk` its data; return those that may go out now.

        `size` is how many bytes it came in.
        """
        if self.forbidden is not None:
            return []
        self._waiting.append((raw, chunk))
        self._size += size
        if not self._watch.see(chunk):
            self.forbidden = self._watch.forbidden
            if self.forbidden is None and self._size > HELD_MAX_BYTES:
                self.forbidden = ""
            return []
        passed, self._waiting, self._size = self._waiting, [], 0
        return passed

    def end(self) -> None:
        """Take in that the stream has ended as it should: what waits for a name has waited in vain."""
        if self.forbidden is None:
            self._watch.end()
            self.forbidden = self._watch.forbidden


class _Call:
    """One call in the making."""

    __slots__ = ("id", "name")

    def __init__(self) -> None:
        self.id: str | None = None
        self.name = ""


class _Names:
    """The names of a stream's calls, in pieces, against the list of a role."""

    def __init__(self, tools: frozenset[str]) -> None:
        self._tools = tools
        self._calls: dict[tuple[int, int], _Call] = {}
        self._open: set[tuple[int, int]] = set()
        self.forbidden: str | None = None

    @property
    def whole(self) -> bool:
        """Whether every call has a name, and each is on the list."""
        return self.forbidden is None and not self._open

    def forbid(self, name: object) -> None:
        """Note a call of a tool that no list can hold."""
        if self.forbidden is None:
            self.forbidden = name if isinstance(name, str) else ""

    def name(self, name: object) -> None:
        """Take in a name that comes in one piece."""
        if not isinstance(name, str) or name not in self._tools:
            self.forbid(name)

    def settle(self, where: tuple[int, int]) -> None:
        """Take in that the call at a place has got its name, whole."""
        self._open.discard(where)

    def piece(self, where: tuple[int, int], call_id: object, piece: object) -> None:
        """Take in a piece of the call at a place: its name goes on, or another call begins, which another id says."""
        call = self._calls.get(where)
        given = call_id if isinstance(call_id, str) and call_id else None
        if call is None or (given and call.id and given != call.id):
            if where in self._open and call is not None:
                self.forbid(call.name)
            call = self._calls[where] = _Call()
        call.id = call.id or given
        if piece is not None and not isinstance(piece, str):
            self.forbid(piece)
            return
        call.name += piece or ""
        if call.name in self._tools:
            self._open.discard(where)
        elif not call.name or any(tool.startswith(call.name) for tool in self._tools):
            self._open.add(where)
        else:
            self.forbid(call.name)

    def end(self) -> None:
        """Take in that no piece follows."""
        for where in sorted(self._open)[:1]:
            self.forbid(self._calls[where].name)


class _Watch:
    """What the watches of all wires share."""

    def __init__(self, tools: frozenset[str]) -> None:
        self._names = _Names(tools)

    @property
    def forbidden(self) -> str | None:
        """The first call of a tool that is not on the list: its name, as far as it is known, or its type."""
        return self._names.forbidden

    def see(self, chunk: object) -> bool:
        """Take in an event's data; say whether all so far may go out: nothing forbidden, every name whole."""
        if self._names.forbidden is None and isinstance(chunk, dict):
            self._read(chunk)
        return self._names.whole

    def end(self) -> None:
        """Take in the end of the stream: a call that has no name of the list by now gets none."""
        self._names.end()

    def _read(self, chunk: Mapping[str, Any]) -> None:
        raise NotImplementedError


class _ChatWatch(_Watch):
    """Reads chat completions: `tool_calls`, and the one `function_call` that there was before them."""

    def _read(self, chunk: Mapping[str, Any]) -> None:
        for position, choice in _dicts(chunk.get("choices")):
            at = _index(choice.get("index"), position)
            delta, message = choice.get("delta"), choice.get("message")
            if isinstance(delta, dict):
                self._read_delta(at, delta)
            if isinstance(message, dict):  # a whole answer
                self._read_message(message)

    def _read_delta(self, at: int, delta: Mapping[str, Any]) -> None:
        for position, part in _dicts(delta.get("tool_calls")):
            where = at, _index(part.get("index"), position)
            for name in self._names_in(part):
                self._names.piece(where, part.get("id"), name)
        call = delta.get("function_call")
        if isinstance(call, dict):
            self._names.piece((at, _FUNCTION_CALL), None, call.get("name"))

    def _read_message(self, message: Mapping[str, Any]) -> None:
        for _, call in _dicts(message.get("tool_calls")):
            for name in self._names_in(call):
                self._names.name(name)
        legacy = message.get("function_call")
        if isinstance(legacy, dict):
            self._names.name(legacy.get("name"))

    def _names_in(self, call: Mapping[str, Any]) -> list[object]:
        """Return the names that a call, or a piece of one, gives; of another type than the client's it is refused."""
        kind = call.get("type")
        if kind and kind not in _CLIENTS_CALLS:
            self._names.forbid(kind)
        told = [call[kind] for kind in _CLIENTS_CALLS if isinstance(call.get(kind), dict)]
        return [each.get("name") for each in told] or [None]


class _ResponsesWatch(_Watch):
    """Reads responses: their items, and the steps of calls."""

    def __init__(self, tools: frozenset[str]) -> None:
        super().__init__(tools)
        self._named: set[int] = set()

    def _read(self, chunk: Mapping[str, Any]) -> None:
        kind, index = chunk.get("type"), _index(chunk.get("output_index"), 0)
        item, response = chunk.get("item"), chunk.get("response")
        if isinstance(item, dict):
            self._read_item(index, item)
        for position, each in _dicts(response.get("output") if isinstance(response, dict) else None):
            self._read_item(position, each)
        if not isinstance(kind, str) or not kind.startswith("response."):
            return
        step = kind.split(".")[1]
        if step in _RESPONSES_INPUTS:
            self._read_call(index, chunk.get("name"))
        elif "_call" in step or step.startswith("mcp_"):
            self._names.forbid(step)

    def _read_item(self, index: int, item: Mapping[str, Any]) -> None:
        kind = item.get("type")
        if kind in ("function_call", "custom_tool_call"):
            self._read_call(index, item.get("name"))
        elif not isinstance(kind, str) or kind not in _RESPONSES_SAYS:
            self._names.forbid(kind)

    def _read_call(self, index: int, name: object) -> None:
        """Take in that the item at an index is a call; some tell its name only with the end of it."""
        if name:
            self._names.name(name)
            self._names.settle((0, index))
            self._named.add(index)
        elif index not in self._named:
            self._names.piece((0, index), None, None)


class _MessagesWatch(_Watch):
    """Reads messages: their blocks. A block has its name from its start."""

    def __init__(self, tools: frozenset[str]) -> None:
        super().__init__(tools)
        self._begun: set[int] = set()

    def _read(self, chunk: Mapping[str, Any]) -> None:
        message, started, index = chunk.get("message"), chunk.get("content_block"), _index(chunk.get("index"), 0)
        for _, block in _dicts(message.get("content") if isinstance(message, dict) else None):
            self._read_block(block)
        if isinstance(started, dict):
            self._read_block(started)
            self._begun.add(index)
        delta = chunk.get("delta")
        if isinstance(delta, dict) and delta.get("type") == "input_json_delta" and index not in self._begun:
            self._names.forbid(None)

    def _read_block(self, block: Mapping[str, Any]) -> None:
        kind = block.get("type")
        if kind == "tool_use":
            self._names.name(block.get("name"))
        elif not isinstance(kind, str) or kind not in _MESSAGES_SAYS:
            self._names.forbid(kind)


def _dicts(value: object) -> Iterator[tuple[int, dict[str, Any]]]:
    for position, each in enumerate(value if isinstance(value, list) else ()):
        if isinstance(each, dict):
            yield position, each


def _index(given: object, otherwise: int) -> int:
    return given if isinstance(given, int) else otherwise


_WATCHES: Final[Mapping[WireName, type[_Watch]]] = {
    "chat": _ChatWatch,
    "responses": _ResponsesWatch,
    "messages": _MessagesWatch,
}
"""Text completions and embeddings call nothing."""

_FIELD_OF_EVENT: Final[Mapping[WireName, str | None]] = {"chat": None, "responses": "response", "messages": "message"}
"""Where a stream's event has what a plain answer is; a chat completion looks like one of its chunks."""
