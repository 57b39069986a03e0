"""AutoGen 0.7 passes the suite of every adapter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nemo_agents_autogen import chat_model, run_task, tracer
from pydantic import BaseModel
from shapes import needs

from nemo_agents.testing.conformance import Adapter, ConformanceSuite

needs("agentchat")

from autogen_agentchat.agents import AssistantAgent  # noqa: E402 - skipped before
from autogen_agentchat.conditions import MaxMessageTermination  # noqa: E402 - skipped before
from autogen_agentchat.messages import ModelClientStreamingChunkEvent, StructuredMessage  # noqa: E402 - skipped before
from autogen_agentchat.teams import RoundRobinGroupChat  # noqa: E402 - skipped before
from autogen_core import SingleThreadedAgentRuntime  # noqa: E402 - skipped before


class AgentChatUnderTest(Adapter):
    name = "autogen-agentchat"
    framework = "autogen-agentchat"
    shapes = frozenset({"async", "stream", "tools", "structured", "threads", "spans"})

    def model(self, member: Any, *, run: Any = None, **options: Any) -> object:
        return chat_model(member, run=run, **options)

    async def ask_async(self, member: Any, text: str, *, run: Any = None) -> str:
        result = await self._agent(member, run).run(task=text)
        return result.messages[-1].to_text()

    async def stream(self, member: Any, text: str, *, run: Any = None) -> str:
        agent = self._agent(member, run, model_client_stream=True)
        items = [item async for item in agent.run_stream(task=text)]
        return "".join(item.content for item in items if isinstance(item, ModelClientStreamingChunkEvent))

    async def use_tool(self, member: Any, text: str, tool: Callable[..., Any], *, run: Any = None) -> str:
        trace = tracer(run)
        agent = trace.agent(self._agent(member, run, tools=[tool], reflect_on_tool_use=True))
        return (await run_task(agent, text)).messages[-1].to_text()

    async def structured(self, member: Any, text: str, schema: type[BaseModel], *, run: Any = None) -> BaseModel:
        agent = self._agent(member, run, output_content_type=schema)
        message = (await agent.run(task=text)).messages[-1]
        assert isinstance(message, StructuredMessage)
        return message.content

    async def in_thread(self, member: Any, text: str, *, run: Any) -> str:
        """A team on a runtime that was started before the run was current."""
        from nemo_agents.trace import context

        with context.inside(None):  # type: ignore[arg-type] # as before any run
            runtime = SingleThreadedAgentRuntime()
            runtime.start()
            team = RoundRobinGroupChat(
                [self._agent(member, run)], runtime=runtime, termination_condition=MaxMessageTermination(2)
            )
        result = await run_task(team, text)
        await runtime.stop_when_idle()
        return result.messages[-1].to_text()

    def _agent(self, member: Any, run: Any, **options: Any) -> Any:
        return AssistantAgent("assistant", model_client=chat_model(member, run=run), **options)


class TestAgentChat(ConformanceSuite):
    adapter = AgentChatUnderTest()


class TeamUnderTest(AgentChatUnderTest):
    """The same agents in a team, where exceptions become text."""

    name = "autogen-agentchat teams"
    shapes = frozenset({"async", "tools", "spans"})

    async def ask_async(self, member: Any, text: str, *, run: Any = None) -> str:
        team = RoundRobinGroupChat([self._agent(member, run)], termination_condition=MaxMessageTermination(2))
        return (await run_task(team, text)).messages[-1].to_text()

    async def use_tool(self, member: Any, text: str, tool: Callable[..., Any], *, run: Any = None) -> str:
        agent = tracer(run).agent(self._agent(member, run, tools=[tool], reflect_on_tool_use=True))
        team = RoundRobinGroupChat([agent], max_turns=1)
        return (await run_task(team, text)).messages[-1].to_text()


class TestTeam(ConformanceSuite):
    adapter = TeamUnderTest()
