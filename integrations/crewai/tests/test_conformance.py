"""CrewAI passes what every adapter passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from crewai import Agent, Crew, Task
from crewai.tools import tool as crewai_tool
from nemo_agents_crewai import chat_model, tracer
from pydantic import BaseModel

from nemo_agents.testing.conformance import Adapter, ConformanceSuite, Where
from nemo_agents.trace.member import Member
from nemo_agents.trace.run import Run


class CrewAIUnderTest(Adapter):
    name: ClassVar = "CrewAI"
    framework: ClassVar = "crewai"
    shapes: ClassVar = frozenset({"sync", "async", "stream", "tools", "structured", "threads", "spans"})

    def model(self, member: Member, *, run: Where = None, **options: Any) -> object:
        return chat_model(member, run=run, **options)

    def ask(self, member: Member, text: str, *, run: Where = None) -> str:
        return _agent(member, run).kickoff(text).raw

    async def ask_async(self, member: Member, text: str, *, run: Where = None) -> str:
        answer = await _crew(member, text, run).akickoff()
        return answer.raw

    def stream(self, member: Member, text: str, *, run: Where = None) -> str:
        pieces = _crew(member, text, run, stream=True).kickoff()
        return "".join(piece.content for piece in pieces)

    def use_tool(self, member: Member, text: str, tool: Callable[..., Any], *, run: Where = None) -> str:
        return _crew(member, text, run, tools=[crewai_tool(tool.__name__)(tool)]).kickoff().raw

    def structured(self, member: Member, text: str, schema: type[BaseModel], *, run: Where = None) -> BaseModel:
        return _crew(member, text, run, schema=schema).kickoff().pydantic

    def in_thread(self, member: Member, text: str, *, run: Where) -> str:
        return _crew(member, text, run, async_execution=True).kickoff().raw


def _agent(member: Member, run: Where, *, stream: bool = False, tools: list[Any] | None = None) -> Agent:
    tracer(run if isinstance(run, Run) else None)
    llm = chat_model(member, run=run, stream=stream)
    return Agent(role="Helper", goal="Answer", backstory="You answer.", llm=llm, tools=tools or [])


def _crew(
    member: Member,
    text: str,
    run: Where,
    *,
    stream: bool = False,
    tools: list[Any] | None = None,
    schema: type[BaseModel] | None = None,
    async_execution: bool = False,
) -> Crew:
    agent = _agent(member, run, stream=stream, tools=tools)
    task = Task(
        description=text,
        expected_output="An answer.",
        agent=agent,
        output_pydantic=schema,
        async_execution=async_execution,
    )
    return Crew(agents=[agent], tasks=[task], stream=stream)


class TestCrewAI(ConformanceSuite):
    adapter = CrewAIUnderTest()
