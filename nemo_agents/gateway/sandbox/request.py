"""Requests to the sandbox, checked the way OpenAI's API checks them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from nemo_agents.gateway.sandbox.script import Script, ScriptError

__all__ = [
    "BadRequest",
    "ChatRequest",
    "EmbeddingRequest",
    "Tool",
    "read_chat",
    "read_embedding",
    "read_object",
    "text_of",
]


class BadRequest(Exception):  # noqa: N818 - named for the status it becomes
    """A request that OpenAI's API would answer with 400."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        self.message = message
        self.param = param
        super().__init__(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """One function that the model may call."""

    name: str
    description: str
    schema: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """A chat completion as asked. `digest` is of the whole body: ids and choices of words derive from it.

    `tool_choice` is `none`, `auto`, `required` or, with `forced_tool`, `function`.
    """

    digest: str
    model: str
    messages: list[dict[str, Any]] = field(repr=False)
    script: Script
    tools: tuple[Tool, ...]
    raw_tools: Any = field(repr=False)
    tool_choice: str
    forced_tool: str | None
    parallel: bool | None
    response_format: dict[str, Any] | None
    stop: tuple[str, ...]
    n: int
    max_tokens: int | None
    stream: bool
    include_usage: bool

    @property
    def short_model(self) -> str:
        """The model's name without the provider in front of it."""
        return self.model.rpartition("/")[2]

    @property
    def last_user_index(self) -> int:
        """Where the last user message is; -1 when there is none."""
        roles = [message["role"] for message in self.messages]
        return len(roles) - 1 - roles[::-1].index("user") if "user" in roles else -1

    @property
    def last_user_text(self) -> str:
        """What the user said last."""
        index = self.last_user_index
        return text_of(self.messages[index].get("content")) if index >= 0 else ""

    @property
    def system_text(self) -> str:
        """What system and developer messages say."""
        return "\n".join(text_of(m.get("content")) for m in self.messages if m["role"] in {"system", "developer"})


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingRequest:
    """Embeddings as asked: texts, or lists of token numbers."""

    digest: str
    model: str
    inputs: tuple[str | tuple[int, ...], ...] = field(repr=False)
    dimensions: int | None
    base64: bool
    script: Script


_ROLES: Final = ("system", "developer", "user", "assistant", "tool", "function")
_N_MAX: Final = 8
_STOPS_MAX: Final = 4
_INPUTS_MAX: Final = 2048
_DIMENSIONS_MAX: Final = 4096


def text_of(content: Any) -> str:
    """Return the text of a message's content: the string itself, or its text parts joined."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = [part.get("text", part.get("refusal")) for part in content if isinstance(part, dict)]
    return "\n".join(part for part in parts if isinstance(part, str))


def read_object(body: bytes) -> dict[str, Any]:
    """Decode a body that must be a JSON object. Raises BadRequest."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadRequest("We could not parse the JSON body of your request.") from error
    if not isinstance(value, dict):
        raise BadRequest("The body of the request must be a JSON object.")
    return value


def read_chat(body: dict[str, Any], raw: bytes) -> ChatRequest:
    """Check a body of `/chat/completions`. Raises BadRequest."""
    tools = _tools(body.get("tools"))
    choice, forced = _tool_choice(body.get("tool_choice"), tools)
    options = _optional(body, "stream_options", dict) or {}
    response_format = _optional(body, "response_format", dict)
    if response_format is not None:
        _check_response_format(response_format)
    for name, (low, high) in {"temperature": (0, 2), "top_p": (0, 1)}.items():
        value = body.get(name)
        if value is not None and (not _is_number(value) or not low <= value <= high):
            raise BadRequest(f"Invalid value for '{name}': expected a number between {low} and {high}.", param=name)
    return ChatRequest(
        digest=hashlib.sha256(raw).hexdigest(),
        model=_model(body),
        messages=_messages(body.get("messages")),
        script=_script(body),
        tools=tools,
        raw_tools=body.get("tools"),
        tool_choice=choice,
        forced_tool=forced,
        parallel=_optional(body, "parallel_tool_calls", bool),
        response_format=response_format,
        stop=_stop(body.get("stop")),
        n=_whole(body, "n", most=_N_MAX) or 1,
        max_tokens=_whole(body, "max_completion_tokens") or _whole(body, "max_tokens"),
        stream=_optional(body, "stream", bool) or False,
        include_usage=options.get("include_usage") is True,
    )


def read_embedding(body: dict[str, Any], raw: bytes) -> EmbeddingRequest:
    """Check a body of `/embeddings`. Raises BadRequest."""
    encoding = body.get("encoding_format")
    if encoding not in {None, "float", "base64"}:
        raise BadRequest("Invalid 'encoding_format': use float or base64.", param="encoding_format")
    return EmbeddingRequest(
        digest=hashlib.sha256(raw).hexdigest(),
        model=_model(body),
        inputs=_inputs(body.get("input")),
        dimensions=_whole(body, "dimensions", most=_DIMENSIONS_MAX),
        base64=encoding == "base64",
        script=_script(body),
    )


def _model(body: dict[str, Any]) -> str:
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise BadRequest("you must provide a model parameter", param="model")
    return model


def _script(body: dict[str, Any]) -> Script:
    if body.get("nemo_sandbox") is None:
        return Script()
    try:
        return Script.parse(body["nemo_sandbox"])
    except ScriptError as error:
        raise BadRequest(f"nemo_sandbox: {error}", param="nemo_sandbox") from error


def _messages(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise BadRequest("Missing required parameter: 'messages', an array of objects.", param="messages")
    if not value:
        raise BadRequest("Invalid 'messages': empty array. Expected at least one message.", param="messages")
    for index, message in enumerate(value):
        _check_message(message, f"messages[{index}]")
    return value


def _check_message(message: Any, where: str) -> None:
    if not isinstance(message, dict):
        raise BadRequest(f"Invalid type for '{where}': expected an object.", param=where)
    role = message.get("role")
    if role not in _ROLES:
        raise BadRequest(f"Invalid value for '{where}.role': use one of {', '.join(_ROLES)}.", param=f"{where}.role")
    content = message.get("content")
    if content is None:
        if role != "assistant":
            raise BadRequest(f"Invalid value for '{where}.content': expected text.", param=f"{where}.content")
    elif isinstance(content, list):
        for number, part in enumerate(content):
            if not isinstance(part, dict) or not isinstance(part.get("type"), str):
                at = f"{where}.content[{number}]"
                raise BadRequest(f"Invalid type for '{at}': expected an object with a type.", param=at)
            if part["type"] == "text" and not isinstance(part.get("text"), str):
                at = f"{where}.content[{number}].text"
                raise BadRequest(f"Invalid type for '{at}': expected text.", param=at)
    elif not isinstance(content, str):
        raise BadRequest(f"Invalid type for '{where}.content': expected text or parts.", param=f"{where}.content")
    if role == "tool" and not isinstance(message.get("tool_call_id"), str):
        raise BadRequest(f"Missing parameter '{where}.tool_call_id'.", param=f"{where}.tool_call_id")
    _check_calls(message.get("tool_calls"), f"{where}.tool_calls")


def _check_calls(calls: Any, where: str) -> None:
    if calls is None:
        return
    good = isinstance(calls, list) and all(
        isinstance(call, dict) and isinstance(call.get("id"), str) and isinstance(call.get("function", {}), dict)
        for call in calls
    )
    if not good:
        raise BadRequest(f"Invalid type for '{where}': expected an array of calls with an id.", param=where)


def _tools(value: Any) -> tuple[Tool, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise BadRequest("Invalid type for 'tools': expected an array of objects.", param="tools")
    tools = []
    for index, tool in enumerate(value):
        if not isinstance(tool, dict) or not isinstance(tool.get("type"), str):
            raise BadRequest(f"Missing required parameter: 'tools[{index}].type'.", param=f"tools[{index}].type")
        if tool["type"] != "function":
            continue  # tools of other kinds are accepted and never called
        function = tool.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            at = f"tools[{index}].function.name"
            raise BadRequest(f"Missing required parameter: '{at}'.", param=at)
        schema = function.get("parameters") or {}
        if not isinstance(schema, dict):
            at = f"tools[{index}].function.parameters"
            raise BadRequest(f"Invalid type for '{at}': expected an object.", param=at)
        description = function.get("description")
        tools.append(
            Tool(
                name=function["name"],
                description=description if isinstance(description, str) else "",
                schema=schema,
            )
        )
    return tuple(tools)


def _tool_choice(value: Any, tools: tuple[Tool, ...]) -> tuple[str, str | None]:
    if value is None:
        return "auto", None
    if value in ("none", "auto", "required"):
        if value == "required" and not tools:
            raise BadRequest("Invalid value for 'tool_choice': no tools are given.", param="tool_choice")
        return str(value), None
    function = value.get("function") if isinstance(value, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or name not in {tool.name for tool in tools}:
        raise BadRequest(
            "Invalid value for 'tool_choice': use none, auto, required, or a function that is among 'tools'.",
            param="tool_choice",
        )
    return "function", name


def _check_response_format(value: dict[str, Any]) -> None:
    kind = value.get("type")
    if kind not in {"text", "json_object", "json_schema"}:
        raise BadRequest("Invalid 'response_format.type'.", param="response_format.type")
    inner = value.get("json_schema")
    if kind == "json_schema" and not (isinstance(inner, dict) and isinstance(inner.get("schema", {}), dict)):
        raise BadRequest("Missing 'response_format.json_schema'.", param="response_format.json_schema")


def _stop(value: Any) -> tuple[str, ...]:
    stops = (value,) if isinstance(value, str) else () if value is None else value
    good = isinstance(stops, list | tuple) and len(stops) <= _STOPS_MAX and all(isinstance(s, str) for s in stops)
    if not good:
        raise BadRequest(f"Invalid 'stop': use text or up to {_STOPS_MAX} texts.", param="stop")
    return tuple(stop for stop in stops if stop)


def _inputs(value: Any) -> tuple[str | tuple[int, ...], ...]:
    items = [value] if isinstance(value, str) or _is_tokens(value) else value
    if not isinstance(items, list) or not 1 <= len(items) <= _INPUTS_MAX:
        raise BadRequest(f"Invalid 'input': use text, tokens, or 1 to {_INPUTS_MAX} of either.", param="input")
    inputs: list[str | tuple[int, ...]] = []
    for item in items:
        if isinstance(item, str) and item:
            inputs.append(item)
        elif _is_tokens(item):
            inputs.append(tuple(item))
        else:
            raise BadRequest("Invalid 'input': every input must be text or tokens, and not empty.", param="input")
    return tuple(inputs)


def _is_tokens(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in value)
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(body: dict[str, Any], name: str, *, most: int | None = None) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1 or (most is not None and value > most):
        bound = "of at least 1" if most is None else f"from 1 to {most}"
        raise BadRequest(f"Invalid '{name}': use a whole number {bound}.", param=name)
    return value


def _optional(body: dict[str, Any], name: str, kind: type[Any]) -> Any:
    value = body.get(name)
    if value is not None and not isinstance(value, kind):
        raise BadRequest(f"Invalid type for '{name}': expected {kind.__name__}.", param=name)
    return value
