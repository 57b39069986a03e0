"""What the sandbox answers to a chat request, decided as a value: no clock, no network."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final

from nemo_agents.gateway.sandbox import prose
from nemo_agents.gateway.sandbox.request import ChatRequest, Tool, text_of
from nemo_agents.gateway.sandbox.schema import example
from nemo_agents.gateway.sandbox.script import Script, ScriptedCall
from nemo_agents.gateway.sandbox.tokens import count, count_prompt, dump, take

__all__ = ["Choice", "Reply", "decide"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One of the `n` answers: text, or tool calls."""

    text: str | None
    calls: tuple[ScriptedCall, ...] = ()
    finish_reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The whole answer; `usage` is None when the script leaves it out."""

    choices: tuple[Choice, ...]
    usage: dict[str, Any] | None


_WORD: Final = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|[0-9]+")
_ASKS_FOR_TOOL: Final = re.compile(
    r"\b(?:use|call|invoke|run)\b[^.\n]{0,40}\btools?\b|\b(?:search|fetch|look up|browse)\b", re.IGNORECASE
)
# Words that are in every tool's name or description, and so point to none.
_GENERIC: Final = frozenset(
    "a about an and any are as at be by call can do execute fetch for from function get given in input into is it its "  # noqa: SIM905 - words read best as words
    "make must of on or output perform return returns run set should so some that the them these this those to tool "
    "tools use used useful using value what when where which who will with you your".split()
)
_NAMED_KEY: Final = re.compile(r"[\"'`]([A-Za-z_][\w-]{0,40})[\"'`]")
_LISTED_KEYS: Final = re.compile(r"\b(?:keys?|fields?)\b:? ([a-z_]\w{0,40}(?:(?:, and |, | and )[a-z_]\w{0,40}){0,10})")
_KEYS_MAX: Final = 20


def decide(request: ChatRequest, script: Script) -> Reply:
    """Return the answer to a request under a script."""
    choices = tuple(_choice(request, script, index) for index in range(request.n))
    return Reply(choices=choices, usage=_usage(request, script, choices))


def _choice(request: ChatRequest, script: Script, index: int) -> Choice:
    calls = _scripted_calls(request, script)
    if calls is None and script.text is None and script.output_tokens is None:
        calls = _calls(request)
    if calls:
        kept = _fit(calls, request.max_tokens)
        reason = "tool_calls" if kept == calls else "length"
        return Choice(text=None, calls=kept, finish_reason=script.finish_reason or reason)
    text, reason = _limited(_text(request, script, index), request)
    return Choice(text=text, finish_reason=script.finish_reason or reason)


def _limited(text: str, request: ChatRequest) -> tuple[str, str]:
    """Cut the text at the first stop sequence, then at the token limit."""
    places = [place for stop in request.stop if (place := text.find(stop)) >= 0]
    if places:
        text = text[: min(places)]
    if request.max_tokens is not None and count(text) > request.max_tokens:
        return take(text, request.max_tokens), "length"
    return text, "stop"


def _fit(calls: tuple[ScriptedCall, ...], max_tokens: int | None) -> tuple[ScriptedCall, ...]:
    """Keep what fits the limit, the last call's arguments cut off, as a real model's would be."""
    if max_tokens is None:
        return calls
    kept, left = [], max_tokens
    for call in calls:
        left -= count(call.name)
        if left <= 0:
            break
        arguments = take(call.arguments, left)
        kept.append(ScriptedCall(name=call.name, arguments=arguments))
        left -= count(arguments)
        if arguments != call.arguments:
            break
    return tuple(kept)


def _usage(request: ChatRequest, script: Script, choices: tuple[Choice, ...]) -> dict[str, Any] | None:
    if script.usage == "missing":
        return None
    prompt = count_prompt(request.messages, request.raw_tools)
    completion = sum(
        count(choice.text or "") + sum(count(call.name) + count(call.arguments) for call in choice.calls)
        for choice in choices
    )
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": min(script.cached_tokens or 0, prompt), "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
    return {**usage, **script.usage} if isinstance(script.usage, dict) else usage


# --- text ---------------------------------------------------------------------------------------------------------


def _text(request: ChatRequest, script: Script, index: int) -> str:
    if script.text is not None:
        return script.text
    mark = f"[sandbox {request.short_model}] "
    asked = request.last_user_text
    digest = request.digest if index == 0 else f"{int(request.digest[:8], 16) + index & 0xFFFFFFFF:08x}"
    if script.output_tokens is not None:
        return prose.sized(mark + prose.answer(asked, request.system_text, digest), script.output_tokens)
    wanted = request.response_format or {}
    if wanted.get("type") == "json_schema":
        return dump(example(wanted["json_schema"].get("schema") or {"type": "object"}, asked))
    if wanted.get("type") == "json_object":
        return dump(dict.fromkeys(_keys(f"{request.system_text}\n{asked}"), " ".join(asked.split())[:200]))
    if results := _results(request):
        return mark + prose.summary(results, asked)
    return mark + prose.answer(asked, request.system_text, digest)


def _keys(prompt: str) -> list[str]:
    """Return the keys that a prompt names for its JSON object: quoted words, or a list behind "keys"."""
    quoted = _NAMED_KEY.findall(prompt)
    listed = [key for match in _LISTED_KEYS.finditer(prompt) for key in re.split(r", and |, | and ", match[1])]
    return list(dict.fromkeys(quoted or listed))[:_KEYS_MAX] or ["answer"]


def _results(request: ChatRequest) -> list[tuple[str, str]]:
    """Return (tool, result) for the tool results since the user last spoke."""
    names = {
        call.get("id"): (call.get("function") or {}).get("name")
        for message in request.messages
        for call in message.get("tool_calls") or ()
    }
    return [
        (str(names.get(message.get("tool_call_id")) or message.get("name") or "The tool"), text_of(message["content"]))
        for message in request.messages[request.last_user_index + 1 :]
        if message["role"] in {"tool", "function"}
    ]


# --- tool calls ---------------------------------------------------------------------------------------------------


def _scripted_calls(request: ChatRequest, script: Script) -> tuple[ScriptedCall, ...] | None:
    calls = script.tool_calls
    return calls[:1] if calls and request.parallel is False else calls


def _calls(request: ChatRequest) -> tuple[ScriptedCall, ...]:
    asked = request.last_user_text
    return tuple(ScriptedCall(name=tool.name, arguments=_arguments(tool, asked)) for tool in _chosen(request, asked))


def _chosen(request: ChatRequest, asked: str) -> list[Tool]:
    if not request.tools or request.tool_choice == "none":
        return []
    if request.tool_choice == "function":
        return [tool for tool in request.tools if tool.name == request.forced_tool][:1]
    if request.tool_choice == "required":
        fresh = [tool for tool in request.tools if tool.name not in _called(request)] or list(request.tools)
        return _matching(fresh, asked, several=request.parallel is True) or fresh[:1]
    if _results(request):
        return []
    matching = _matching(list(request.tools), asked, several=request.parallel is True)
    return matching or (list(request.tools[:1]) if _ASKS_FOR_TOOL.search(asked) else [])


def _called(request: ChatRequest) -> set[str]:
    return {
        str((call.get("function") or {}).get("name"))
        for message in request.messages[request.last_user_index + 1 :]
        for call in message.get("tool_calls") or ()
    }


def _matching(tools: list[Tool], asked: str, *, several: bool) -> list[Tool]:
    """Return the tools that the user's words point to: every one that is named if `several`, else the first."""
    named = [tool for tool in tools if re.search(rf"\b{re.escape(tool.name)}\b", asked)]
    if named:
        return named if several else named[:1]
    said = _words(asked)
    for tool in tools:
        name, description = _words(tool.name), _words(tool.description)
        if name & said or len(description & said) >= min(2, max(len(description), 1)):
            return [tool]
    return []


def _words(text: str) -> set[str]:
    return {word for match in _WORD.finditer(text) if len(word := match[0].lower()) > 1} - _GENERIC


def _arguments(tool: Tool, asked: str) -> str:
    """Fill the arguments by schema; what the user wrote as `tool(1, "a")` is taken at its word."""
    values = example(tool.schema, asked) if tool.schema else {}
    spelled = re.search(rf"\b{re.escape(tool.name)}\(([^()]{{1,200}})\)", asked)
    if spelled and isinstance(values, dict):
        try:
            given = json.loads(f"[{spelled[1]}]")
        except ValueError:
            given = []
        for name, value in zip(values, given, strict=False):
            if type(value) is type(values[name]):
                values[name] = value
    return dump(values)
