"""What a call said, as a list of messages with text in them, whichever wire it came over.

The gateway keeps prompts and answers as the JSON of their wire: chat messages, Anthropic content blocks,
Responses items, inputs of embeddings. Nothing is interpreted: no Markdown, no images, no links. Text stays text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from nemo_agents.admin import wire
from nemo_agents.viewer.text import pretty_json, shorten

__all__ = ["Block", "Content", "Message", "content_of"]

_PREVIEW: Final = 120
_TEXT_TYPES: Final = frozenset({"text", "input_text", "output_text", "refusal", "summary_text", "reasoning_text"})
_CALL_TYPES: Final = frozenset({"tool_use", "function_call", "custom_tool_call", "server_tool_use"})
_RESULT_TYPES: Final = frozenset({"tool_result", "function_call_output", "custom_tool_call_output"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A piece of a message. `left_out` is how many characters of `body` are not shown."""

    kind: Literal["text", "json", "tool_call", "tool_result"]
    body: str
    title: str = ""
    left_out: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message: who speaks, and the blocks in order. `note` is a name or the id of an answered tool call."""

    role: str
    blocks: tuple[Block, ...]
    note: str = ""

    @property
    def preview(self) -> str:
        """The beginning of the message on one line."""
        return shorten(" ".join(block.title or block.body for block in self.blocks), _PREVIEW)


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """A call's prompt, parameters, tools and answer. The first `repeated` messages were in the call before."""

    prompt: tuple[Message, ...]
    repeated: int
    params: tuple[tuple[str, str], ...]
    tools: tuple[Block, ...]
    answer: tuple[Message, ...]


def content_of(
    content: wire.CallContent, *, previous: wire.CallContent | None = None, most_chars: int | None = None
) -> Content:
    """Arrange a call's content for reading.

    `previous` is the content of the call before it in its step; `most_chars` cuts each text.
    """
    tools = content.params.get("tools")
    listed = tools if isinstance(tools, list) else []
    return Content(
        prompt=tuple(_message(each, "input", most_chars) for each in content.prompt),
        repeated=_repeated(content.prompt, previous.prompt if previous is not None else ()),
        params=tuple(
            (key, _cut_text(value if isinstance(value, str) else _inline(value), most_chars))
            for key, value in content.params.items()
            if key != "tools" or not listed
        ),
        tools=tuple(_tool(each, most_chars) for each in listed),
        answer=_answer(content.answer, most_chars),
    )


def _repeated(prompt: Sequence[Any], before: Sequence[Any]) -> int:
    """Count the messages at the start that are the same; the last message always stays in sight."""
    same = 0
    for ours, theirs in zip(prompt, before, strict=False):
        if ours != theirs:
            break
        same += 1
    return min(same, max(0, len(prompt) - 1))


def _answer(answer: Any, most: int | None) -> tuple[Message, ...]:
    if answer is None:
        return ()
    if isinstance(answer, list):
        if answer and all(isinstance(each, dict) and ("role" in each or "type" in each) for each in answer):
            return tuple(_message(each, "assistant", most) for each in answer)
        return (Message(role="answer", blocks=(_block("json", pretty_json(answer), most),)),)
    return (_message(answer, "assistant", most),)


def _message(value: Any, role: str, most: int | None) -> Message:
    if isinstance(value, str):
        return Message(role=role, blocks=(_block("text", value, most),))
    if not isinstance(value, dict):
        return Message(role=role, blocks=(_block("json", pretty_json(value), most),))
    kind = value.get("type")
    if "role" not in value and "content" not in value:
        return Message(role=_word(kind, role), blocks=(_part(value, most),))
    blocks = [
        _block("text", value[key], most, title="reasoning") for key in _REASONING if isinstance(value.get(key), str)
    ]
    blocks += _parts(value.get("content"), most)
    if isinstance(value.get("refusal"), str):
        blocks.append(_block("text", value["refusal"], most, title="refusal"))
    calls = value.get("tool_calls")
    if isinstance(calls, list):
        blocks += [_tool_call(each, most) for each in calls]
    if isinstance(value.get("function_call"), dict):
        blocks.append(_tool_call({"function": value["function_call"]}, most))
    note = next((value[key] for key in ("name", "tool_call_id") if isinstance(value.get(key), str)), "")
    return Message(role=_word(value.get("role"), role), blocks=tuple(blocks), note=note)


_REASONING: Final = ("reasoning_content", "reasoning")


def _parts(content: Any, most: int | None) -> list[Block]:
    if content is None or content == "":
        return []
    if isinstance(content, list):
        return [_part(each, most) for each in content]
    return [_part(content, most)]


def _part(part: Any, most: int | None) -> Block:
    if isinstance(part, str):
        return _block("text", part, most)
    if not isinstance(part, dict):
        return _block("json", pretty_json(part), most)
    kind = _word(part.get("type"), "")
    if kind in _TEXT_TYPES and isinstance(part.get("text", part.get("refusal")), str):
        return _block("text", part.get("text", part.get("refusal")), most, title="" if "text" in part else "refusal")
    if kind in _CALL_TYPES:
        arguments = part.get("input", part.get("arguments"))
        return _block("tool_call", _arguments(arguments), most, title=_word(part.get("name"), "tool"))
    if kind in _RESULT_TYPES:
        title = _word(part.get("tool_use_id", part.get("call_id")), "")
        return _block("tool_result", _result(part.get("content", part.get("output"))), most, title=title)
    return _block("json", pretty_json(part), most, title=kind)


def _result(result: Any) -> str:
    """Return what a tool gave back: its text, also where that comes in pieces of text, and JSON for all else."""
    if isinstance(result, str):
        return result
    pieces = result if isinstance(result, list) else []
    told = [each for each in pieces if isinstance(each, dict) and _word(each.get("type"), "") in _TEXT_TYPES]
    said = [each["text"] for each in told if isinstance(each.get("text"), str)]
    return "\n".join(said) if len(said) == len(pieces) > 0 else pretty_json(result)


def _tool_call(call: Any, most: int | None) -> Block:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return _block("json", pretty_json(call), most, title="tool call")
    return _block("tool_call", _arguments(function.get("arguments")), most, title=_word(function.get("name"), "tool"))


def _arguments(arguments: Any) -> str:
    """Indent a tool call's arguments; models write them as JSON text, and sometimes as broken JSON text."""
    if not isinstance(arguments, str):
        return pretty_json(arguments)
    try:
        return pretty_json(json.loads(arguments))
    except (ValueError, RecursionError):
        return arguments


def _tool(tool: Any, most: int | None) -> Block:
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return _block("json", pretty_json(tool), most, title=_word(name, "tool"))


def _inline(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return pretty_json(value)
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        return repr(value)


def _word(value: Any, default: str) -> str:
    return value if isinstance(value, str) and value else default


def _cut_text(text: str, most: int | None) -> str:
    return text if most is None or len(text) <= most else text[:most] + "\N{HORIZONTAL ELLIPSIS}"


def _block(
    kind: Literal["text", "json", "tool_call", "tool_result"], body: Any, most: int | None, title: str = ""
) -> Block:
    text = body if isinstance(body, str) else pretty_json(body)
    if most is None or len(text) <= most:
        return Block(kind=kind, body=text, title=title)
    return Block(kind=kind, body=text[:most], title=title, left_out=len(text) - most)
