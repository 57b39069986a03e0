"""What the scripted provider answers, whatever the wire: a request on one set of axes, and the reply it makes sensible.

Nothing here is random, and nothing knows JSON of a wire: `wires` reads requests into `Asked` and writes `Reply`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import Any, Literal

TEXT = "The answer is forty two and nothing else needs to be said about it today"
THOUGHT = "Let me think: six times seven"
SIGNATURE = "c2lnbmVkIGJ5IHRoZSBwcm92aWRlcg=="
_QUOTED = re.compile(r"['\"“]([^'\"”]+)['\"”]")
_NAMES = re.compile(r"(?<![.!?] )(?<!^)\b[A-Z][a-z]+(?: [A-Z][a-z]+)*")
_NUMBER = re.compile(r"-?\d+")

Finish = Literal["stop", "length", "tools"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function that a request offers."""

    name: str
    schema: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request. `choice` is `auto`, `none`, `any` or the name of a tool; `cap` is in words, for one answer."""

    behaviour: str
    text: str
    tools: tuple[Tool, ...] = ()
    choice: str = "auto"
    schema: dict[str, Any] | None = None
    results: tuple[str, ...] = ()
    cap: int | None = None
    stops: tuple[str, ...] = ()
    answers: int = 1
    cached: int = 0
    written: int = 0
    written_1h: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A function that the model wants called."""

    id: str
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One answer."""

    text: str = ""
    thought: str = ""
    calls: tuple[Call, ...] = ()
    finish: Finish = "stop"

    @property
    def pieces(self) -> list[str]:
        """The text as it is streamed: word by word."""
        return re.findall(r"\s*\S+|\s+$", self.text)

    @property
    def reasoning_tokens(self) -> int:
        """The words of the thought."""
        return len(self.thought.split())

    @property
    def tokens(self) -> int:
        """Words of thought and text, and three for each call."""
        return self.reasoning_tokens + len(self.text.split()) + 3 * len(self.calls)


def reply_to(asked: Asked) -> Reply:
    """Return what a helpful model says: it calls what it is offered, speaks of results, fits schemas, obeys its cap."""
    if asked.tools and asked.choice != "none" and not asked.results:
        return Reply(calls=_calls(asked), finish="tools")
    thought = THOUGHT if asked.behaviour == "thinker" else ""
    if asked.schema is not None:
        return Reply(thought=thought, text=compact(value_for(asked.schema, asked.text)))
    said = f"The tool says: {'; '.join(asked.results)}" if asked.results else TEXT
    reply = Reply(thought=thought, text=said)
    for stop in asked.stops:
        if stop in reply.text:
            reply = replace(reply, text=reply.text.partition(stop)[0])
    room = None if asked.cap is None else max(0, asked.cap - reply.reasoning_tokens)
    if room is not None and len(reply.text.split()) > room:
        reply = replace(reply, text="".join(reply.pieces[:room]), finish="length")
    return reply


def quoted(text: str) -> list[str]:
    """Return what stands in quotation marks."""
    return _QUOTED.findall(text)


def compact(value: Any) -> str:
    """Return JSON as models write it."""
    return json.dumps(value, ensure_ascii=False)


def _calls(asked: Asked) -> tuple[Call, ...]:
    named = [tool for tool in asked.tools if tool.name == asked.choice]
    mentioned = [tool for tool in asked.tools if tool.name in asked.text]
    first = (named or mentioned or list(asked.tools))[0]
    called = [first]
    if asked.behaviour == "parallel":
        called = list(asked.tools) if len(asked.tools) > 1 else [first, first]
    return tuple(
        Call(id=f"call_{number}", name=tool.name, arguments=value_for(tool.schema, asked.text))
        for number, tool in enumerate(called, start=1)
    )


def value_for(schema: dict[str, Any], text: str) -> Any:
    """Return a value that fits a JSON schema, out of the numbers, quotations and names in a text where it has them."""
    numbers = iter([int(number) for number in _NUMBER.findall(text)])
    words = iter([*quoted(text), *_NAMES.findall(text)])
    defs = {**schema.get("$defs", {}), **schema.get("definitions", {})}

    def fit(part: dict[str, Any]) -> Any:
        if "$ref" in part:
            return fit(defs[part["$ref"].rsplit("/", 1)[-1]])
        if "const" in part:
            return part["const"]
        if part.get("enum"):
            return next((option for option in part["enum"] if str(option) in text), part["enum"][0])
        for several in ("anyOf", "oneOf", "allOf"):
            if part.get(several):
                return fit(part[several][0])
        kind = part.get("type", "object")
        kind = kind[0] if isinstance(kind, list) else kind
        match kind:
            case "object":
                return {name: fit(each) for name, each in (part.get("properties") or {}).items()}
            case "array":
                return [fit(part.get("items") or {"type": "string"})]
            case "integer" | "number":
                return next(numbers, 1)
            case "boolean":
                return True
            case "null":
                return None
            case _:
                return next(words, "something")

    return fit(schema)
