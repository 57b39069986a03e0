"""Checks on a request's body that several wires share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from nemo_agents.errors import Code
from nemo_agents.policy.refusal import Refusal

__all__ = ["bad", "check_list", "check_messages", "check_stream", "foreign_tools", "function_name", "nested_too_deep"]

TOOLS_MAX: Final = 512
MESSAGES_MAX: Final = 10_000
DEPTH_MAX: Final = 200
_BOOL_OR_NULL = (bool, type(None))


def bad(message: str, param: str | None = None) -> Refusal:
    """Return a 400 about one parameter."""
    return Refusal(status=400, code=Code.INVALID_REQUEST, message=message, param=param)


def check_messages(body: Mapping[str, Any]) -> Refusal | None:
    """Refuse `messages` that are no list of objects with a role, are none at all, or more than can be meant."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        return bad("`messages` must be a list of at least one message.", "messages")
    if len(messages) > MESSAGES_MAX:
        return bad(f"`messages` holds more than {MESSAGES_MAX}.", "messages")
    if not all(isinstance(message, dict) and isinstance(message.get("role"), str) for message in messages):
        return bad("Each of `messages` must be an object with a `role`.", "messages")
    return None


def nested_too_deep(body: object, raw: bytes) -> bool:
    """Say whether decoded JSON is nested deeper than anything that is read here recursively can take.

    Looked at level by level, and not at all where there are fewer brackets than levels would need.
    """
    if raw.count(b"[") + raw.count(b"{") <= DEPTH_MAX:
        return False
    level: list[Any] = [body]
    for _ in range(DEPTH_MAX):
        following: list[Any] = []
        for item in level:
            inner = item.values() if isinstance(item, dict) else item
            following += [value for value in inner if isinstance(value, (dict, list))]
        if not following:
            return False
        level = following
    return True


def check_stream(body: Mapping[str, Any]) -> Refusal | None:
    """Refuse a `stream` that is neither true nor false, and options of it that are no object."""
    if not isinstance(body.get("stream"), _BOOL_OR_NULL):
        return bad("`stream` must be true or false.", "stream")
    options = body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        return bad("`stream_options` must be an object.", "stream_options")
    return None


def check_list(body: Mapping[str, Any], name: str, *, most: int = TOOLS_MAX) -> Refusal | None:
    """Refuse what is no list, or a longer one than can be meant; absent is fine."""
    value = body.get(name)
    if value is not None and (not isinstance(value, list) or len(value) > most):
        return bad(f"`{name}` must be a list of at most {most}.", name)
    return None


def foreign_tools(body: Mapping[str, Any], *fields: str) -> list[str | None]:
    """Return the names of the functions in fields of other wires than the body's, None for what is no function.

    A translation carries over what it does not know, and a provider may read what its wire does not have: whoever may
    offer no tool may not offer it there either.
    """
    names: list[str | None] = []
    for field in fields:
        offered = body.get(field)
        if isinstance(offered, list):
            names += [function_name(each) for each in offered]
        elif offered is not None:
            names.append(None)
    return names


def function_name(function: object) -> str | None:
    """Return the name of a function that a request declares; None for what is no such thing."""
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None
