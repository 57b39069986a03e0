"""LangChain's values as plain data for spans: what a reader wants to see of messages, documents and states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from langchain_core.documents import Document
from langchain_core.messages import BaseMessage
from langchain_core.outputs import Generation, LLMResult
from langchain_core.prompt_values import PromptValue
from pydantic import BaseModel

__all__ = ["plain", "request_id_of"]

_DEPTH_MAX: Final = 8  # a state may hold itself
_ITEMS_MAX: Final = 500  # far more than the 32 KB of a span hold

REQUEST_ID: Final = "x-nemo-request-id"


def plain(value: object, depth: int = 0) -> Any:
    """Return a value as JSON-able data: a message as role, content and tool calls, a document as its text."""
    if value is None or isinstance(value, (str, int, float, bool)):
        return str(value) if isinstance(value, str) else value  # LangChain's texts are a subclass with methods
    if depth >= _DEPTH_MAX:
        return "…"
    match value:
        case BaseMessage():
            return _message(value, depth)
        case Document():
            return value.page_content
        case PromptValue():
            return plain(value.to_messages(), depth)
        case BaseModel():
            fields = type(value).model_fields
            return {name: plain(getattr(value, name, None), depth + 1) for name in fields}
        case Mapping():
            return {str(key): plain(item, depth + 1) for key, item in list(value.items())[:_ITEMS_MAX]}
        case list() | tuple() | set() | frozenset():
            return [plain(item, depth + 1) for item in list(value)[:_ITEMS_MAX]]
        case _:
            return str(value)


def request_id_of(source: LLMResult | BaseException) -> str | None:
    """Return the gateway's id of the request behind a model's answer or error; None where it is not known.

    The answer has it in `response_metadata["headers"]`, as `include_response_headers=True` puts it there.
    """
    if isinstance(source, BaseException):
        found: Any = getattr(source, "request_id", None)
        return found if isinstance(found, str) else None
    for generation in (generation for several in source.generations for generation in several):
        headers = _headers(generation)
        if isinstance(headers, Mapping) and isinstance(headers.get(REQUEST_ID), str):
            return str(headers[REQUEST_ID])
    return None


def _headers(generation: object) -> object:
    message = getattr(generation, "message", None)
    if isinstance(message, BaseMessage) and "headers" in message.response_metadata:
        return message.response_metadata["headers"]
    info = generation.generation_info if isinstance(generation, Generation) else None
    return (info or {}).get("headers")


def _message(message: BaseMessage, depth: int) -> dict[str, Any]:
    out: dict[str, Any] = {"role": message.type, "content": plain(message.content, depth + 1)}
    if message.name:
        out["name"] = message.name
    calls = getattr(message, "tool_calls", None)
    if calls:
        out["tool_calls"] = [
            {"name": call.get("name"), "arguments": plain(call.get("args"), depth + 2)} for call in calls
        ]
    return out
