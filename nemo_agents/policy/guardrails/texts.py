"""Every text of a request that a model would read, visited in order and rewritten in a copy.

Understood: chat completions (`messages`, `tools`, `response_format`), embeddings and responses (`input`,
`instructions`), legacy completions (`prompt`, `suffix`) and Anthropic messages (`system`, content blocks). Labels that
a provider keeps beside the texts (`user`, `metadata`, `stop`) are visited too. What is unknown inside a message, an
item or a content part is visited as text; images, audio and other base64 data are not text.

Nothing that makes a request valid is rewritten: types, references, names of functions and of a schema's properties,
patterns and grammars stay as they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, Final

__all__ = ["Source", "TooDeepError", "Visit", "rewrite"]


class Source(StrEnum):
    """Who wrote a text."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"
    DEFINITION = "definition"  # descriptions of tools and schemas
    VALUE = "value"  # what a schema offers as a value: enum, const, default, examples
    FIXED = "fixed"  # must stay as it is: function names, patterns, grammars; `visit` may look, its answer is dropped
    INPUT = "input"  # embeddings input, completions prompt
    LABEL = "label"  # read by the provider and not by the model: user, metadata, stop


Visit = Callable[[str, Source], str]


class TooDeepError(ValueError):
    """A body nested deeper than anything that a client sends on purpose."""


_DEPTH_MAX: Final = 64
_ROLES: Final = {
    "system": Source.SYSTEM,
    "developer": Source.SYSTEM,
    "user": Source.USER,
    "assistant": Source.ASSISTANT,
    "model": Source.ASSISTANT,
    "tool": Source.TOOL,
    "function": Source.TOOL,
}
_BINARY_PARTS: Final = frozenset({"image_url", "image", "input_image", "input_audio", "video_url", "audio"})
_TOOL_USES: Final = ("tool_use", "server_tool_use", "mcp_tool_use")
_ENCRYPTED: Final = ("redacted_thinking", "reasoning.encrypted")  # Anthropic's, OpenRouter's
_NOT_TEXT: Final = frozenset(
    {
        "cache_control",
        "call_id",
        "detail",
        "encrypted_content",
        "file_data",
        "file_id",
        "id",
        "media_type",
        "name",
        "role",
        "signature",
        "status",
        "thought_signature",
        "tool_call_id",
        "tool_use_id",
        "type",
    }
)
# Inside tools and schemas. A string, or a list of them, that names something elsewhere:
_REFERENCES: Final = frozenset(
    {
        "$anchor",
        "$dynamicAnchor",
        "$dynamicRef",
        "$id",
        "$recursiveRef",
        "$ref",
        "$schema",
        "contentEncoding",
        "contentMediaType",
        "format",
        "propertyName",
        "propertyOrdering",
        "required",
        "server_url",
        "syntax",
        "ttl",
        "type",
    }
)
_FIXED: Final = frozenset({"definition", "name", "pattern"})  # `definition` is a grammar's
_VALUES: Final = frozenset({"const", "default", "enum", "example", "examples", "input_examples"})
# Objects whose keys are names of the client's own, and no keywords.
_BY_NAME: Final = frozenset(
    {
        "$defs",
        "definitions",
        "dependencies",
        "dependentRequired",
        "dependentSchemas",
        "patternProperties",
        "properties",
    }
)
_DATA_URL: Final = re.compile(r"data:[\w/+.;=-]{0,200};base64,[A-Za-z0-9+/=_\s-]*")


def rewrite(body: dict[str, Any], visit: Visit) -> dict[str, Any]:
    """Return the body with every text replaced by what `visit` gives; the same object when none changed.

    Raises TooDeepError for a body nested deeper than 64 levels, which no walk can promise to have read.
    """
    changes = {}
    for key, value in body.items():
        walk = _FIELDS.get(key)
        if walk is not None and (new := walk(value, visit)) is not value:
            changes[key] = new
    return {**body, **changes} if changes else body


def _messages(value: Any, visit: Visit) -> Any:
    if isinstance(value, str):
        return _text(value, visit, Source.USER)
    return _each(value, lambda item: _message(item, visit))


def _message(message: Any, visit: Visit) -> Any:
    if isinstance(message, str):
        return _text(message, visit, Source.INPUT)
    if not isinstance(message, dict):
        return message
    role = message.get("role")
    source = _ROLES.get(role, Source.USER) if isinstance(role, str) else Source.USER

    def one(key: str, value: Any) -> Any:
        match key:
            case "role":
                return value
            case "content" | "refusal" | "reasoning" | "reasoning_content" | "text":
                return _content(value, visit, source, 0)
            case "name" if isinstance(value, str):
                return _name(value, visit, source if isinstance(role, str) else Source.TOOL)
            case "output":  # a tool's result in the Responses API
                return _content(value, visit, Source.TOOL, 0)
            case "summary":
                return _content(value, visit, Source.ASSISTANT, 0)
            case "tool_calls":
                return _each(value, lambda call: _tool_call(call, visit))
            case "function_call":
                return _arguments_of(value, visit)
            case "arguments" | "input":  # a tool call as an item of the Responses API
                return _json_text(value, visit) if isinstance(value, str) else _json_value(value, visit, 0)
            case "tools":  # which an item of the Responses API offers
                return _definitions(value, visit)
            case "result" if message.get("type") == "image_generation_call":
                return value
            case _ if key in _NOT_TEXT:
                return value
            case _:  # of calls of a provider's own tools: what it searched for, ran, found
                return _content(value, visit, source if isinstance(role, str) else Source.TOOL, 0)

    return _each_field(message, one)


def _name(name: str, visit: Visit, source: Source) -> str:
    """Visit who speaks. A tool is called by its name, which stays; any other may not hold a label's brackets."""
    if source is Source.TOOL:
        visit(name, Source.FIXED)
        return name
    new = visit(name, source)
    return name if new == name else new.replace("<", "").replace(">", "")


def _tool_call(call: Any, visit: Visit) -> Any:
    if not isinstance(call, dict):
        return call

    def one(key: str, value: Any) -> Any:
        if key == "function":
            return _arguments_of(value, visit)
        if key == "custom" and isinstance(value, dict):
            return _each_field(value, lambda k, v: _content(v, visit, Source.ASSISTANT, 0) if k == "input" else v)
        return value

    return _each_field(call, one)


def _arguments_of(function: Any, visit: Visit) -> Any:
    if not isinstance(function, dict):
        return function
    return _each_field(
        function,
        lambda key, value: _json_text(value, visit) if key == "arguments" and isinstance(value, str) else value,
    )


def _json_text(text: str, visit: Visit) -> str:
    """Visit the strings, keys and numbers inside JSON text, so that what comes out is JSON again."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return _text(text, visit, Source.ASSISTANT)
    new = _json_value(value, visit, 0)
    return text if new is value else json.dumps(new, ensure_ascii=False)


def _json_value(value: Any, visit: Visit, depth: int) -> Any:
    _check_depth(depth)
    match value:
        case str():
            return _text(value, visit, Source.ASSISTANT)
        case bool() | None:
            return value
        case int() | float():  # a card number without quotes is still a card number
            plain = str(value)
            new = visit(plain, Source.ASSISTANT)
            return value if new == plain else new
        case list():
            return _each(value, lambda item: _json_value(item, visit, depth + 1))
        case dict():
            pairs = [
                (key, _text(key, visit, Source.ASSISTANT), item, _json_value(item, visit, depth + 1))
                for key, item in value.items()
            ]
            if all(old_key == key and old is new for old_key, key, old, new in pairs):
                return value
            return {key: new for _, key, _, new in pairs}
        case _:
            return value


def _content(value: Any, visit: Visit, source: Source, depth: int) -> Any:
    _check_depth(depth)
    if isinstance(value, str):
        return _text(value, visit, source)
    if isinstance(value, list):
        return _each(value, lambda item: _content(item, visit, source, depth + 1))
    if not isinstance(value, dict):
        return value
    kind = value.get("type")
    if kind == "base64" or (isinstance(kind, str) and kind in _BINARY_PARTS):
        return value
    inner = Source.TOOL if kind == "tool_result" else source

    def one(key: str, item: Any) -> Any:
        if key == "input" and kind in _TOOL_USES:  # an object of the tool's own: no name in it is a keyword
            return _json_value(item, visit, depth + 1)
        if key == "data" and kind in _ENCRYPTED:
            return item
        return item if key in _NOT_TEXT else _content(item, visit, inner, depth + 1)

    return _each_field(value, one)


def _definitions(value: Any, visit: Visit, depth: int = 0) -> Any:
    """Visit the strings of tools and schemas, known keywords or not; what would make them invalid stays."""
    _check_depth(depth)
    if isinstance(value, str):
        return _text(value, visit, Source.DEFINITION)
    if isinstance(value, list):
        return _each(value, lambda item: _definitions(item, visit, depth + 1))
    if not isinstance(value, dict):
        return value

    def one(key: str, item: Any) -> Any:
        if key in _REFERENCES and _only_strings(item):
            return item
        if key in _FIXED and isinstance(item, str):
            visit(item, Source.FIXED)
            return item
        if key in _VALUES:
            new = _strings(item, visit, Source.VALUE, depth + 1)
            return _without_twins(new) if key == "enum" and new is not item else new
        if key in _BY_NAME and isinstance(item, dict):
            return _each_field(item, named)
        return _definitions(item, visit, depth + 1)

    def named(_: str, item: Any) -> Any:
        is_list_of_names = isinstance(item, list) and _only_strings(item)
        return item if is_list_of_names else _definitions(item, visit, depth + 2)

    return _each_field(value, one)


def _without_twins(values: Any) -> Any:
    """Let one of equal strings stay: two spellings of an address get one label, and an enum has no value twice."""
    return list(dict.fromkeys(values)) if isinstance(values, list) and _only_strings(values) else values


def _only_strings(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))


def _strings(value: Any, visit: Visit, source: Source, depth: int = 0) -> Any:
    """Visit every string of a JSON value; keys and numbers stay."""
    _check_depth(depth)
    if isinstance(value, str):
        return _text(value, visit, source)
    if isinstance(value, list):
        return _each(value, lambda item: _strings(item, visit, source, depth + 1))
    if not isinstance(value, dict):
        return value
    return _each_field(value, lambda _, item: _strings(item, visit, source, depth + 1))


def _text(text: str, visit: Visit, source: Source) -> str:
    if text.startswith("data:") and _DATA_URL.fullmatch(text):
        return text
    new = visit(text, source)
    return text if new == text else new


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    """Map over a list; the same list when nothing changed, the value itself when it is no list."""
    if not isinstance(value, list):
        return value
    new = None
    for place, item in enumerate(value):
        changed = change(item)
        if changed is not item:
            new = new or value.copy()
            new[place] = changed
    return new or value


def _each_field(value: dict[str, Any], change: Callable[[str, Any], Any]) -> dict[str, Any]:
    """Map over an object; the same object when nothing changed."""
    new = None
    for key, item in value.items():
        changed = change(key, item)
        if changed is not item:
            new = new or value.copy()
            new[key] = changed
    return new or value


def _prompt(value: Any, visit: Visit) -> Any:
    """Visit a text to go on writing, or what is put into a prompt that is stored: there, no name is a keyword."""
    if not isinstance(value, dict):
        return _content(value, visit, Source.INPUT, 0)

    def filled(variables: dict[str, Any]) -> dict[str, Any]:
        return _each_field(variables, lambda _, item: _content(item, visit, Source.INPUT, 1))

    return _each_field(value, lambda key, item: filled(item) if key == "variables" and isinstance(item, dict) else item)


def _check_depth(depth: int) -> None:
    if depth > _DEPTH_MAX:
        raise TooDeepError(f"nested deeper than {_DEPTH_MAX} levels")


def _labels(value: Any, visit: Visit) -> Any:
    return _strings(value, visit, Source.LABEL)


def _as(source: Source) -> Callable[[Any, Visit], Any]:
    return lambda value, visit: _content(value, visit, source, 0)


_FIELDS: Final[Mapping[str, Callable[[Any, Visit], Any]]] = {
    "messages": _messages,
    "input": lambda value, visit: (
        _text(value, visit, Source.INPUT) if isinstance(value, str) else _messages(value, visit)
    ),
    "prompt": _prompt,
    "suffix": _as(Source.INPUT),
    "system": _as(Source.SYSTEM),
    "instructions": _as(Source.SYSTEM),
    "prediction": _as(Source.ASSISTANT),
    "tools": _definitions,
    "functions": _definitions,
    "response_format": _definitions,
    "output_config": _definitions,
    "output_format": _definitions,
    "text": _definitions,  # the format of a response
    "documents": _as(Source.TOOL),  # what vLLM and Cohere let a chat look up
    **dict.fromkeys(("user", "metadata", "stop", "stop_sequences", "safety_identifier", "prompt_cache_key"), _labels),
}
