"""AG2 1.x passes the suite of every adapter."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from nemo_agents_autogen import ag2_config, tracer
from pydantic import BaseModel
from shapes import needs

from nemo_agents.testing.conformance import Adapter, ConformanceSuite

needs("ag2")

import ag2  # noqa: E402 - skipped before
from ag2.events import ModelMessageChunk  # noqa: E402 - skipped before


class Ag2UnderTest(Adapter):
    name = framework = "ag2"
    shapes = frozenset({"async", "stream", "tools", "structured", "threads", "spans"})

    def model(self, member: Any, *, run: Any = None, **options: Any) -> object:
        return ag2_config(member, run=run, **options)

    async def ask_async(self, member: Any, text: str, *, run: Any = None) -> str:
        return str((await self._agent(member, run).ask(text)).body)

    async def stream(self, member: Any, text: str, *, run: Any = None) -> str:
        pieces: list[str] = []

        async def seen(event: ModelMessageChunk) -> None:
            pieces.append(event.content)

        agent = ag2.Agent("assistant", config=ag2_config(member, run=run, streaming=True))
        async with agent.run(text) as turn:
            turn.stream.where(ModelMessageChunk).subscribe(seen)
            await turn.result()
        return "".join(pieces)

    async def use_tool(self, member: Any, text: str, tool: Callable[..., Any], *, run: Any = None) -> str:
        agent = tracer(run).agent(self._agent(member, run, tools=[tool]))
        return str((await agent.ask(text)).body)

    async def structured(self, member: Any, text: str, schema: type[BaseModel], *, run: Any = None) -> Any:
        reply = await self._agent(member, run, response_schema=schema).ask(text)
        return await reply.content()

    def in_thread(self, member: Any, text: str, *, run: Any) -> str:
        """An event loop on a thread that was there before the run: contexts are not handed on to it."""
        with ThreadPoolExecutor(1) as pool:
            agent = self._agent(member, run)
            return str(pool.submit(lambda: asyncio.run(agent.ask(text))).result(60).body)

    def _agent(self, member: Any, run: Any, **options: Any) -> Any:
        return ag2.Agent("assistant", config=ag2_config(member, run=run), **options)


class TestAg2(ConformanceSuite):
    adapter = Ag2UnderTest()
