"""Crews as people write them: several roles, tools, structure, streams, flows, and an end in the middle."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from crewai import LLM, Agent, Crew, Process, Task
from crewai.events import crewai_event_bus
from crewai.flow.flow import Flow, listen, start
from crewai.tools import tool
from nemo_agents_crewai import chat_model, tracer
from pydantic import BaseModel
from worlds import World

from nemo_agents import BudgetExceeded, RunStopped
from nemo_agents.trace.member import Member


class Verdict(BaseModel):
    """What the writer thinks."""

    score: int
    reason: str


@tool("web_search")
def web_search(query: str) -> str:
    """Search the web for pages about a topic."""
    return f"two pages about {query}"


def agent(member: Member, *, tools: list[Any] | None = None, **options: Any) -> Agent:
    return Agent(
        role=member.name.title(),
        goal="Do the task",
        backstory="You work in a crew.",
        llm=chat_model(member, **options),
        tools=tools or [],
    )


def task(name: str, who: Agent, **options: Any) -> Task:
    return Task(name=name, description=f"Do the {name} of {{topic}}.", expected_output="A text.", agent=who, **options)


def two_roles(world: World, **of_writer: Any) -> Crew:
    """A researcher with a tool and a writer, one task each."""
    researcher = agent(world.fleet["researcher"], tools=[web_search])
    writer = agent(world.fleet["writer"], **of_writer)
    return Crew(name="pair", agents=[researcher, writer], tasks=[task("research", researcher), task("writing", writer)])


def test_each_agent_speaks_as_its_role_and_the_run_has_the_tree(world: World) -> None:
    tracer()
    with world.fleet.run("crew") as run:
        two_roles(world).kickoff(inputs={"topic": "tides"})
        crewai_event_bus.flush()
    detail = world.told(run)
    assert [(call.role, call.model_asked) for call in detail.calls] == [
        ("researcher", "gpt-4o-mini"),
        ("researcher", "gpt-4o-mini"),
        ("writer", "a-writers-model"),
    ]
    spans = {(span.kind, span.name): span for span in detail.spans}
    assert len(spans) == len(detail.spans), [(span.kind, span.name) for span in detail.spans]
    crew, research = spans["chain", "pair"], spans["task", "research"]
    researcher, writer = spans["agent", "Researcher"], spans["agent", "Writer"]
    search = spans["tool", "web_search"]
    assert research.parent_id == spans["task", "writing"].parent_id == crew.span_id
    assert (researcher.parent_id, writer.parent_id) == (research.span_id, spans["task", "writing"].span_id)
    assert search.parent_id == researcher.span_id
    assert "two pages about" in (search.output or "")
    assert (researcher.role, writer.role) == ("researcher", "writer")
    assert [call.parent_span for call in detail.calls] == [researcher.span_id, researcher.span_id, writer.span_id]
    assert {span.state for span in detail.spans} == {"ok"}


def test_a_task_with_a_form_gives_a_value_of_it(world: World) -> None:
    writer = agent(world.fleet["writer"])
    crew = Crew(agents=[writer], tasks=[task("review", writer, output_pydantic=Verdict)])
    with world.fleet.run("form") as run:
        output = crew.kickoff(inputs={"topic": "tides"})
    assert isinstance(output.pydantic, Verdict)
    assert {call.role for call in world.told(run).calls} == {"writer"}


def test_a_crew_streams_through_the_gateway(world: World) -> None:
    writer = agent(world.fleet["writer"], stream=True)
    crew = Crew(agents=[writer], tasks=[task("review", writer)], stream=True)
    world.provider.say("the sea rises and falls")
    with world.fleet.run("stream") as run, run.step("write", role="writer"):
        text = "".join(chunk.content for chunk in crew.kickoff(inputs={"topic": "tides"}))
    assert "the sea rises and falls" in text
    assert [(call.step, call.stream) for call in world.told(run).calls] == [("write", True)]


@pytest.mark.parametrize("how", ["kickoff_async", "akickoff"])
def test_both_ways_of_waiting_stay_in_their_run(world: World, how: str) -> None:
    async def one(number: int) -> Any:
        async with world.fleet.run(f"run {number}") as run, run.step(f"step {number}"):
            await getattr(two_roles(world), how)(inputs={"topic": f"topic {number}"})
        return run

    async def both() -> list[Any]:
        return await asyncio.gather(one(1), one(2))

    for number, run in enumerate(asyncio.run(both()), start=1):
        calls = world.told(run).calls
        assert len(calls) == 3
        assert {call.step for call in calls} == {f"step {number}"}


def test_one_crew_after_another_event_loop_works_again(world: World) -> None:
    crew = two_roles(world)
    with world.fleet.run("loops") as run:
        for _ in range(2):
            asyncio.run(crew.akickoff(inputs={"topic": "tides"}))
    assert [call.state for call in world.told(run).calls] == ["ok"] * 6


def test_copies_for_each_input_keep_the_role(world: World) -> None:
    crew = two_roles(world)
    with world.fleet.run("each") as run:
        crew.kickoff_for_each(inputs=[{"topic": "tides"}, {"topic": "winds"}])
    assert [call.role for call in world.told(run).calls] == ["researcher", "researcher", "writer"] * 2


def test_a_flow_and_the_agents_in_it_are_of_the_run(world: World) -> None:
    class Work(Flow[dict]):
        @start()
        def research(self) -> str:
            return agent(world.fleet["researcher"]).kickoff("What are tides?").raw

        @listen(research)
        def write(self, facts: str) -> str:
            return agent(world.fleet["writer"]).kickoff(f"Write about {facts}").raw

    tracer()
    with world.fleet.run("flow") as run:
        Work().kickoff()
        crewai_event_bus.flush()
    detail = world.told(run)
    assert [call.role for call in detail.calls] == ["researcher", "writer"]
    spans = {span.name: span for span in detail.spans}
    assert {"Work", "research", "write", "Researcher", "Writer"} <= spans.keys()
    assert spans["research"].parent_id == spans["Work"].span_id
    assert [call.parent_span for call in detail.calls] == [spans["Researcher"].span_id, spans["Writer"].span_id]


def test_a_budget_in_the_middle_keeps_the_tasks_that_are_done(world: World) -> None:
    tracer()
    with world.fleet.run("spent", budget="$0.004") as run:
        two_roles(world, max_tokens=4000).kickoff(inputs={"topic": "tides"})
        crewai_event_bus.flush()
    assert run.state == "stopped"
    assert run.stopped_by is not None
    assert run.stopped_by.kind == "budget"
    assert [output.name for output in run.result] == ["research"]
    crewai_event_bus.flush()
    detail = world.told(run)
    assert [call.status for call in detail.calls] == [200, 200, 402]
    failed = [(span.kind, span.name) for span in detail.spans if span.state == "failed"]
    assert sorted(failed) == [("agent", "Writer"), ("chain", "pair"), ("task", "writing")]


def test_the_error_is_ours_and_the_agent_is_as_before(world: World) -> None:
    crew = two_roles(world, max_tokens=4000)
    limits = [member.max_retry_limit for member in crew.agents]
    with (
        pytest.raises(BudgetExceeded, match=r"budget") as caught,
        world.fleet.run("spent", budget="$0.004", on_stop="raise") as run,
    ):
        crew.kickoff(inputs={"topic": "tides"})
    assert caught.value.status == 402
    assert caught.value.run_id == run.id
    with world.fleet.run("again"):
        crew.kickoff(inputs={"topic": "tides"})
    assert [member.max_retry_limit for member in crew.agents] == limits


def test_a_manager_is_stopped_with_the_coworker_it_asked(world: World) -> None:
    """A stop that reaches a coworker is not told to the manager's model as what a tool said."""
    manager = agent(world.fleet["writer"])
    helper = agent(world.fleet["researcher"])
    crew = Crew(
        agents=[helper],
        tasks=[Task(description="Have someone find out about tides.", expected_output="A text.")],
        manager_agent=manager,
        process=Process.hierarchical,
    )
    world.provider.call_tool(
        "delegate_work_to_coworker", {"task": "find out", "context": "tides", "coworker": "Researcher"}
    )
    with pytest.raises(RunStopped), world.fleet.run("managed", max_calls=1, on_stop="raise") as run:
        crew.kickoff()
    assert run.stopped_by is not None
    assert run.stopped_by.kind == "max_calls"


def test_the_llm_that_crewai_documents_works_as_it_is(world: World) -> None:
    member = world.fleet["researcher"]
    llm = LLM(model="gpt-4o-mini", api_key=member.key.reveal(), base_url=member.base_url)
    worker = Agent(role="Helper", goal="Answer", backstory="You answer.", llm=llm)
    world.provider.say("forty-two")
    assert "forty-two" in worker.kickoff("How much is six times seven?").raw
