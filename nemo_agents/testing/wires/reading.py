"""Requests of every wire, read into `Asked` and what of them is counted as input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nemo_agents.testing.replies import Asked, Tool, quoted
from nemo_agents.testing.wires.base import Body

__all__ = ["read_chat", "read_completions", "read_messages", "read_responses", "text_of"]


def text_of(content: Any) -> str:
    """Return the text of a content, whichever wire's parts it is made of."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else ()
    return " ".join(text_of(part.get("text") or part.get("content")) for part in parts if isinstance(part, dict))


def _last_user_text(messages: list[Body]) -> str:
    texts = [text_of(each.get("content")) for each in messages if each.get("role") == "user"]
    return next((text for text in reversed(texts) if text), "")


def _results(messages: list[Body], is_result: Callable[[Body], bool], field: str = "content") -> tuple[str, ...]:
    """Return the results of tools that stand at the very end."""
    found: list[str] = []
    for message in reversed(messages):
        if not is_result(message):
            break
        found.append(text_of(message.get(field)))
    return tuple(reversed(found))


def _choice(choice: Any) -> str:
    if isinstance(choice, dict):
        inner = choice.get("function") or choice.get("custom") or choice
        return str(inner.get("name") or choice.get("type") or "auto")
    return "any" if choice == "required" else str(choice or "auto")


def _schema(form: Body, text: str) -> Body | None:
    """Return what an answer must fit; for JSON of any form, that is an object with what the text names in quotes."""
    if form.get("type") == "json_object":
        return {"type": "object", "properties": {name: {"type": "string"} for name in quoted(text)}}
    schema: Body | None = form.get("schema")
    return schema


def _cache_of(behaviour: str) -> dict[str, Any]:
    return {"cached": 4, "written": 3} if behaviour == "thinker" else {}


def read_chat(body: Body, behaviour: str) -> tuple[Asked, Any]:
    """Read a request of Chat Completions; the second value is what its input is counted by."""
    messages = body["messages"]
    form = body.get("response_format") or {}
    stops, text = body.get("stop") or [], _last_user_text(messages)
    asked = Asked(
        behaviour=behaviour,
        text=text,
        tools=tuple(
            Tool(name=tool["function"]["name"], schema=tool["function"].get("parameters") or {"type": "object"})
            for tool in body.get("tools") or ()
            if tool.get("type") == "function"
        ),
        choice=_choice(body.get("tool_choice")),
        schema=_schema(form.get("json_schema") or form, text),
        results=_results(messages, lambda each: each.get("role") == "tool"),
        cap=body.get("max_completion_tokens") or body.get("max_tokens"),
        stops=(stops,) if isinstance(stops, str) else tuple(stops),
        answers=body.get("n") or 1,
        **_cache_of(behaviour),
    )
    return asked, messages


def read_responses(body: Body, behaviour: str) -> tuple[Asked, Any]:
    """Read a request of Responses; the second value is what its input is counted by."""
    given = body.get("input") or ""
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    form, text = (body.get("text") or {}).get("format") or {}, _last_user_text(items)
    asked = Asked(
        behaviour=behaviour,
        text=text,
        tools=tuple(
            Tool(name=tool["name"], schema=tool.get("parameters") or {"type": "object"})
            for tool in body.get("tools") or ()
            if tool.get("type") == "function"
        ),
        choice=_choice(body.get("tool_choice")),
        schema=_schema(form, text),
        results=_results(items, lambda each: each.get("type") == "function_call_output", "output"),
        cap=body.get("max_output_tokens"),
        **_cache_of(behaviour),
    )
    return asked, [body.get("instructions"), items]


def read_messages(body: Body, behaviour: str) -> tuple[Asked, Any]:
    """Read a request of Messages; the second value is what its input is counted by."""
    messages = body["messages"]
    last = messages[-1].get("content")
    blocks = last if isinstance(last, list) else []
    form = (body.get("output_config") or {}).get("format") or {}
    cache = {"written_1h": 2, **_cache_of(behaviour)} if behaviour == "thinker" else {}
    asked = Asked(
        behaviour=behaviour,
        text=_last_user_text(messages),
        tools=tuple(
            Tool(name=tool["name"], schema=tool["input_schema"]) for tool in body.get("tools") or () if "name" in tool
        ),
        choice=_choice(body.get("tool_choice")),
        schema=form.get("schema"),
        results=tuple(text_of(block.get("content")) for block in blocks if block.get("type") == "tool_result"),
        cap=body["max_tokens"],
        stops=tuple(body.get("stop_sequences") or ()),
        **cache,
    )
    return asked, [body.get("system"), messages]


def read_completions(body: Body, behaviour: str) -> tuple[Asked, Any]:
    """Read a request of Completions; the second value is what its input is counted by."""
    prompt, stops = body.get("prompt"), body.get("stop") or []
    asked = Asked(
        behaviour=behaviour,
        text=prompt if isinstance(prompt, str) else "",
        cap=body.get("max_tokens"),
        stops=(stops,) if isinstance(stops, str) else tuple(stops),
        answers=body.get("n") or 1,
    )
    return asked, prompt
