"""The suite that every adapter passes, over both of ADK's models."""

from __future__ import annotations

import threading
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
from adk import events_of, in_a_thread, said_by
from google.adk.agents import LlmAgent
from google.adk.agents.run_config import RunConfig, StreamingMode
from nemo_agents_google_adk import chat_model, lite_llm, tracer
from pydantic import BaseModel

from nemo_agents.testing.conformance import Adapter, ConformanceSuite, Where
from nemo_agents.trace.member import Member

SSE = RunConfig(streaming_mode=StreamingMode.SSE)


class NativeUnderTest(Adapter):
    name = "google-adk"
    framework = "google-adk"
    shapes = frozenset({"async", "stream", "tools", "structured", "threads", "spans"})

    def model(self, member: Member, *, run: Where = None, **options: Any) -> Any:
        return chat_model(member, run=run, **options)

    async def ask_async(self, member: Member, text: str, *, run: Where = None) -> str:
        return await said_by(self.agent(member, run), text, plugins=[tracer(run)])

    async def stream(self, member: Member, text: str, *, run: Where = None) -> str:
        pieces = [
            part.text or ""
            async for event in events_of(self.agent(member, run), text, plugins=[tracer(run)], run_config=SSE)
            if event.partial and event.content
            for part in event.content.parts or []
        ]
        return "".join(pieces)

    async def use_tool(self, member: Member, text: str, tool: Callable[..., Any], *, run: Where = None) -> str:
        return await said_by(self.agent(member, run, tools=[tool]), text, plugins=[tracer(run)])

    async def structured(self, member: Member, text: str, schema: type[BaseModel], *, run: Where = None) -> BaseModel:
        agent = self.agent(member, run, output_schema=schema)
        return schema.model_validate_json(await said_by(agent, text, plugins=[tracer(run)]))

    def in_thread(self, member: Member, text: str, *, run: Where) -> str:
        agent, plugin, said = self.agent(member, run), tracer(run), []
        worker = threading.Thread(target=lambda: said.append(in_a_thread(agent, text, plugins=[plugin])))
        worker.start()
        worker.join(60)
        return said[0]

    def agent(self, member: Member, run: Where, **options: Any) -> LlmAgent:
        return LlmAgent(name="researcher", model=self.model(member, run=run), instruction="Be brief.", **options)


class LiteUnderTest(NativeUnderTest):
    name = "google-adk LiteLlm"

    def model(self, member: Member, *, run: Where = None, **options: Any) -> Any:
        return lite_llm(member, run=run, **options)


class TestNative(ConformanceSuite):
    adapter = NativeUnderTest()


@pytest.mark.skipif(find_spec("litellm") is None, reason="LiteLlm needs litellm, which is not in this environment")
class TestLite(ConformanceSuite):
    adapter = LiteUnderTest()
