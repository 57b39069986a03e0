"""The reference: the openai package alone as a framework, with the smallest agent that can use a tool."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any, get_type_hints

from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from nemo_agents.adapters import model_of
from nemo_agents.testing.conformance import Adapter, Where
from nemo_agents.trace.member import Member
from nemo_agents.trace.run import current_run

_JSON = {str: "string", int: "integer", float: "number", bool: "boolean"}


class Model:
    """A client of a role, with the model that it asks."""

    def __init__(self, client: OpenAI, model: str) -> None:
        self.client = client
        self.model = model


def asked(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


class OpenAIUnderTest(Adapter):
    name = framework = "openai"
    shapes = frozenset({"sync", "async", "stream", "tools", "structured", "threads", "spans"})

    def client(self, member: Member, run: Where) -> OpenAI:
        return member.openai(run=run)

    def async_client(self, member: Member, run: Where) -> AsyncOpenAI:
        return member.async_openai(run=run)

    def model(self, member: Member, *, run: Where = None, model: str | None = None) -> Model:  # type: ignore[override]
        return Model(self.client(member, run), model_of(member, model))

    def ask(self, member: Member, text: str, *, run: Where = None) -> str:
        made = self.model(member, run=run)
        answer = made.client.chat.completions.create(model=made.model, messages=asked(text))
        return answer.choices[0].message.content or ""

    async def ask_async(self, member: Member, text: str, *, run: Where = None) -> str:
        client = self.async_client(member, run)
        answer = await client.chat.completions.create(model=model_of(member, None), messages=asked(text))
        return answer.choices[0].message.content or ""

    def stream(self, member: Member, text: str, *, run: Where = None) -> str:
        made = self.model(member, run=run)
        pieces = made.client.chat.completions.create(
            model=made.model, messages=asked(text), stream=True, stream_options={"include_usage": True}
        )
        return "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)

    def structured(self, member: Member, text: str, schema: type[BaseModel], *, run: Where = None) -> BaseModel | None:
        made = self.model(member, run=run)
        answer = made.client.chat.completions.parse(model=made.model, messages=asked(text), response_format=schema)
        return answer.choices[0].message.parsed

    def in_thread(self, member: Member, text: str, *, run: Where) -> str:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(int).result()  # the thread was there before the run was known to it
            return pool.submit(self.ask, member, text, run=run).result()

    def use_tool(self, member: Member, text: str, tool: Callable[..., Any], *, run: Where = None) -> str:
        loop = self._loop if run is None else run.bind(self._loop)
        return loop(self.model(member, run=run), text, tool)

    def _loop(self, made: Model, text: str, tool: Callable[..., Any]) -> str:
        told, messages = current_run(), asked(text)
        offered: list[Any] = [{"type": "function", "function": _declared(tool)}]
        with told.span("agent", "agent", input=text) if told else nullcontext() as agent:
            while True:
                answer = made.client.chat.completions.create(model=made.model, messages=messages, tools=offered)
                message = answer.choices[0].message
                messages.append(message.model_dump(exclude_none=True))
                if not message.tool_calls:
                    if agent:
                        agent.output = message.content
                    return message.content or ""
                for call in message.tool_calls:
                    given = call.function.arguments
                    with told.span("tool", call.function.name, input=given) if told else nullcontext() as span:
                        result = str(tool(**json.loads(given)))
                        if span:
                            span.output = result
                    messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
                if told:
                    told.partial(messages)


def _declared(tool: Callable[..., Any]) -> dict[str, Any]:
    hints = get_type_hints(tool)
    fields = {name: {"type": _JSON[hints[name]]} for name in inspect.signature(tool).parameters}
    parameters = {"type": "object", "properties": fields, "required": list(fields)}
    return {"name": tool.__name__, "description": inspect.getdoc(tool), "parameters": parameters}
