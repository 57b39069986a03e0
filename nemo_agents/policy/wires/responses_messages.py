"""The input of a response, told as the messages of a chat completion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from nemo_agents.policy.wires.base import UntranslatableError

__all__ = ["messages_of"]

_CURE: Final = "Leave it out, or ask for a model whose provider serves the Responses API."
_ROLES: Final = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
"""Few providers but OpenAI know `developer`, and all know `system`."""
_TEXT_PARTS: Final = ("input_text", "output_text", "text")
_CALLS: Final = {"function_call": ("function", "arguments"), "custom_tool_call": ("custom", "input")}
"""Items that are calls of tools: what chat calls their type, and the field that holds what the tool is called with."""
_OUTPUTS: Final = ("function_call_output", "custom_tool_call_output")


def messages_of(instructions: object, given: object) -> list[dict[str, Any]]:
    """Return the messages that the instructions and the input of a response amount to.

    Raises UntranslatableError for what chat has no words for: references to items and files that are kept elsewhere,
    calls of a provider's own tools, and media in the output of a tool.
    """
    messages: list[dict[str, Any]] = []
    if instructions not in (None, ""):
        messages.append({"role": "system", "content": _text(instructions, "instructions")})
    if isinstance(given, str):
        messages.append({"role": "user", "content": given})
    elif isinstance(given, list):
        for index, item in enumerate(given):
            _add(messages, item, f"input[{index}]")
    if not messages:
        raise UntranslatableError("`input` holds no message.", param="input")
    return messages


def _add(messages: list[dict[str, Any]], item: Any, where: str) -> None:
    kind = _kind(item)
    if kind == "message":
        _add_message(messages, item, where)
    elif kind in _CALLS:
        _add_call(messages, item, *_CALLS[kind])
    elif kind in _OUTPUTS:
        if not isinstance(item.get("call_id"), str):
            raise UntranslatableError(f"`{where}.call_id` must name the call.", param=f"{where}.call_id")
        output = _text(item.get("output"), f"{where}.output")
        messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": output})
    elif kind != "reasoning":  # which only the model that wrote it can make anything of
        raise UntranslatableError(
            f"`{where}`: this model's provider knows no item of type {kind!r}. {_CURE}", param=where
        )


def _kind(item: Any) -> str:
    """Return the type of an item; a message need not say that it is one, nor a reference."""
    if not isinstance(item, dict):
        return type(item).__name__
    kind = item.get("type")
    if kind is None:
        return "message" if "role" in item else "item_reference"
    return str(kind)


def _add_message(messages: list[dict[str, Any]], item: Mapping[str, Any], where: str) -> None:
    said = item.get("role")
    role = _ROLES.get(said) if isinstance(said, str) else None
    if role is None:
        raise UntranslatableError(
            f"`{where}.role`: this model's provider knows no role {said!r}.", param=f"{where}.role"
        )
    content = item.get("content")
    if role == "user":
        messages.append({"role": role, "content": _content(content, f"{where}.content")})
        return
    text = _text(content, f"{where}.content")
    last = messages[-1] if messages else {}
    if role == "assistant" and "tool_calls" in last:  # what answers calls must follow them at once
        last["content"] = text if last["content"] is None else f"{last['content']}\n{text}"
    else:
        messages.append({"role": role, "content": text})


def _add_call(messages: list[dict[str, Any]], item: Mapping[str, Any], kind: str, field: str) -> None:
    """Add a call to the message that it belongs to: what an assistant says in one turn is one message in chat."""
    call = {
        "id": item.get("call_id"),
        "type": kind,
        kind: {"name": item.get("name"), field: item.get(field)},
    }
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
    messages[-1].setdefault("tool_calls", []).append(call)


def _text(content: Any, where: str) -> str:
    """Return content that can be nothing but text."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    texts = []
    for index, part in enumerate(_parts(content, where)):
        text = _text_of(part)
        if text is None:
            raise _unknown(part, f"{where}[{index}]")
        texts.append(text)
    return "\n".join(texts)


def _content(content: Any, where: str) -> Any:
    """Return a user's content: a text, or parts."""
    if isinstance(content, str):
        return content
    parts = [_part(part, f"{where}[{index}]") for index, part in enumerate(_parts(content, where))]
    return parts[0]["text"] if len(parts) == 1 and parts[0].keys() == {"type", "text"} else parts


def _parts(content: Any, where: str) -> list[Any]:
    if not isinstance(content, list):
        raise UntranslatableError(f"`{where}` must be a text or a list of parts.", param=where)
    return content


def _part(part: Any, where: str) -> dict[str, Any]:
    text = _text_of(part)
    if text is not None:
        return {**part, "type": "text", "text": text}
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "input_audio":
        return dict(part)
    if kind == "input_image" and isinstance(part.get("image_url"), str):
        image = {"url": part["image_url"]}
        if part.get("detail") is not None:
            image["detail"] = part["detail"]
        return {"type": "image_url", "image_url": image}
    raise _unknown(part, where)


def _text_of(part: Any) -> str | None:
    if not isinstance(part, dict):
        return None
    kind = part.get("type")
    text = part.get("refusal") if kind == "refusal" else part.get("text") if kind in _TEXT_PARTS else None
    return text if isinstance(text, str) else None


def _unknown(part: Any, where: str) -> UntranslatableError:
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    what = f"takes no {kind!r} here" if kind != "input_image" else "takes an image here by its `image_url` alone"
    return UntranslatableError(f"`{where}`: this model's provider {what}. {_CURE}", param=where)
