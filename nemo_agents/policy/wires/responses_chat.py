"""Responses told as Chat Completions and back: how the models of providers that speak only chat answer `/v1/responses`.

A conversation that is kept at the provider, and tools that it runs itself, have no words in Chat Completions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from nemo_agents.policy.wires.base import StreamTranslation, Translation, UntranslatableError
from nemo_agents.policy.wires.responses_answer import Retelling, answer_of_chat
from nemo_agents.policy.wires.responses_messages import messages_of

__all__ = ["RESPONSES_AS_CHAT"]

_CURE: Final = "Leave it out, or ask for a model whose provider serves the Responses API."
_STORED: Final[Mapping[str, str]] = {
    "previous_response_id": "an earlier response, which this model's provider does not keep: send its items in `input`",
    "conversation": "a conversation, which this model's provider does not keep: send its items in `input`",
    "prompt": "a prompt that is stored at another provider: send its text in `instructions` and `input`",
}
_NOT_IN_CHAT: Final = frozenset(
    {
        "background",
        "background_options",
        "context_management",
        "image",
        "include",
        "input",
        "instructions",
        "max_output_tokens",  # the cap on the answer is written into the chat request for every provider
        "max_tool_calls",  # counts the provider's own tools alone
        "reasoning",
        "store",  # means another thing there
        "stream_options",
        "text",
        "top_logprobs",
        "truncation",
        *_STORED,
    }
)
"""What chat has other fields for, or what says nothing about the answer of a provider that keeps none."""
_LOGPROBS: Final = "message.output_text.logprobs"
_CLIENT_TOOLS: Final = ("function", "custom")


class _ResponsesAsChat:
    """See `Translation`."""

    def request(self, body: Mapping[str, Any]) -> dict[str, Any]:
        _check(body)
        chat = {name: value for name, value in body.items() if name not in _NOT_IN_CHAT}
        chat["messages"] = messages_of(body.get("instructions"), body.get("input"))
        _add_tools(chat, body)
        _add_text(chat, body.get("text"))
        _add_reasoning(chat, body.get("reasoning"))
        _add_logprobs(chat, body)
        return chat

    def answer(self, chat: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
        return answer_of_chat(chat, body)

    def stream(self, body: Mapping[str, Any]) -> StreamTranslation:
        return Retelling(body)


def _check(body: Mapping[str, Any]) -> None:
    for name, what in _STORED.items():
        if body.get(name) is not None:
            raise UntranslatableError(f"`{name}` refers to {what}.", param=name)
    if body.get("n") not in (None, 1):
        raise UntranslatableError("`n` must be 1: a response is one answer.", param="n")
    if body.get("audio") is not None or body.get("modalities") not in (None, ["text"]):
        param = "audio" if body.get("audio") is not None else "modalities"
        raise UntranslatableError(f"`{param}`: a response of this model is text alone. {_CURE}", param=param)


def _add_tools(chat: dict[str, Any], body: Mapping[str, Any]) -> None:
    """Add the tools, and how they may be used; to chat, the latter without the former is an error."""
    given, choice = body.get("tools") or [], body.get("tool_choice")
    tools = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(given)]
    for name in ("tools", "tool_choice", "parallel_tool_calls"):
        chat.pop(name, None)
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        tools, choice = _allowed(tools, choice), choice.get("mode", "auto")
    elif isinstance(choice, dict):
        choice = _chosen(choice, "tool_choice")
    if not tools:
        return
    chat["tools"] = tools
    if choice is not None:
        chat["tool_choice"] = choice
    if body.get("parallel_tool_calls") is not None:
        chat["parallel_tool_calls"] = body["parallel_tool_calls"]


def _tool(tool: Any, where: str) -> dict[str, Any]:
    kind = tool.get("type", "function") if isinstance(tool, dict) else None
    if kind not in _CLIENT_TOOLS:
        raise UntranslatableError(
            f"`{where}`: this model's provider has no tool of type {kind!r}. {_CURE}", param=where
        )
    fields = ("name", "description", "parameters", "strict") if kind == "function" else ("name", "description")
    told = {name: tool[name] for name in fields if tool.get(name) is not None}
    form = tool.get("format")
    if kind == "custom" and isinstance(form, dict):
        inner = {name: value for name, value in form.items() if name != "type"}
        told["format"] = {"type": "grammar", "grammar": inner} if form.get("type") == "grammar" else form
    return {"type": kind, kind: told}


def _chosen(choice: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a tool that is named flatly as chat names it."""
    kind = choice.get("type")
    if kind not in _CLIENT_TOOLS:
        raise UntranslatableError(
            f"`{where}`: this model's provider has no tool of type {kind!r}. {_CURE}", param=where
        )
    return {"type": kind, kind: {"name": choice.get("name")}}


def _allowed(tools: list[dict[str, Any]], choice: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return those of the tools that may be used: few providers know the field that says so, and all know `tools`."""
    listed = choice.get("tools")
    where = "tool_choice.tools"
    allowed = [_chosen(one, where) for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    keys = [(one["type"], one[one["type"]]["name"]) for one in allowed]
    return [tool for tool in tools if (tool["type"], tool[tool["type"]].get("name")) in keys]


def _add_text(chat: dict[str, Any], text: object) -> None:
    """Add how the answer is to be written: the schema that it must fit, and how long-winded it may be."""
    if not isinstance(text, dict):
        return
    if text.get("verbosity") is not None:
        chat["verbosity"] = text["verbosity"]
    form = text.get("format")
    match form.get("type") if isinstance(form, dict) else "text":
        case "text":
            pass
        case "json_schema":
            assert isinstance(form, dict)
            named = {name: value for name, value in form.items() if name != "type" and value is not None}
            chat["response_format"] = {"type": "json_schema", "json_schema": named}
        case "json_object":
            chat["response_format"] = {"type": "json_object"}
        case kind:
            raise UntranslatableError(
                f"`text.format`: this model's provider does not know the format {kind!r}. {_CURE}", param="text.format"
            )


def _add_reasoning(chat: dict[str, Any], reasoning: object) -> None:
    if isinstance(reasoning, dict) and reasoning.get("effort") is not None:
        chat["reasoning_effort"] = reasoning["effort"]


def _add_logprobs(chat: dict[str, Any], body: Mapping[str, Any]) -> None:
    include, most = body.get("include"), body.get("top_logprobs")
    if most or (isinstance(include, list) and _LOGPROBS in include):
        chat["logprobs"] = True
        if most:
            chat["top_logprobs"] = most


RESPONSES_AS_CHAT: Final[Translation] = _ResponsesAsChat()
"""Agents' SDKs of OpenAI, and any model."""
