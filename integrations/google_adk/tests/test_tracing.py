"""`tracer`: agents and tools as spans of the run, and what was said so far as its partial result."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import pytest
from adk import events_of, in_a_thread, said_by
from google.adk.agents import LlmAgent, ParallelAgent, SequentialAgent
from google.adk.agents.run_config import RunConfig, StreamingMode
from google.adk.tools import AgentTool
from nemo_agents_google_adk import chat_model, tracer

from nemo_agents import Fleet, current_run, current_step
from nemo_agents.admin.wire import RunDetail, SpanRow
from nemo_agents.errors import RunStopped
from nemo_agents.testing import ScriptedProvider
from nemo_agents.trace.context import here

Told = Callable[[str], RunDetail]

SSE = RunConfig(streaming_mode=StreamingMode.SSE)


def agent_of(fleet: Fleet, role: str = "researcher", name: str | None = None, **options: Any) -> LlmAgent:
    return LlmAgent(name=name or role, model=chat_model(fleet[role]), **options)


def weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"sunny in {city}"


def broken(city: str) -> str:
    """Tell the weather of a city, or fail."""
    raise LookupError(f"no weather for {city}")


def drawn(detail: RunDetail) -> list[tuple[str, str, str | None]]:
    """Kind, name and the name of the span above, for each span; None above is the run or a step."""
    names = {span.span_id: span.name for span in detail.spans}
    return [(span.kind, span.name, names.get(span.parent_id or "")) for span in detail.spans]


def named(detail: RunDetail, name: str) -> SpanRow:
    return next(span for span in detail.spans if span.name == name)


def test_agents_and_tools_are_drawn_and_calls_lie_under_their_agent(
    fleet: Fleet, provider: ScriptedProvider, told: Told
):
    provider.call_tool("weather", {"city": "Paris"}).say("It is sunny")
    with fleet.run("trip") as run, run.step("look", role="researcher"):
        asyncio.run(said_by(agent_of(fleet, tools=[weather]), "weather in 'Paris'?", plugins=[tracer()]))
    detail = told(run.id)
    assert drawn(detail) == [("agent", "researcher", None), ("tool", "weather", "researcher")]
    agent, tool = named(detail, "researcher"), named(detail, "weather")
    assert (agent.step, agent.role) == ("look", "researcher")
    assert (agent.input, agent.output) == ("weather in 'Paris'?", "It is sunny")
    assert (tool.state, tool.input) == ("ok", '{"city": "Paris"}')
    assert "sunny in Paris" in (tool.output or "")
    assert [call.parent_span for call in detail.calls] == [agent.span_id] * 2


def test_what_a_tool_calls_lies_under_the_tool(fleet: Fleet, provider: ScriptedProvider, told: Told):
    provider.call_tool("ask_again", {"question": "why?"}).say("because").say("done")

    async def ask_again(question: str) -> str:
        """Ask another model."""
        client = fleet["writer"].async_openai()
        asked = [{"role": "user", "content": question}]
        answer = await client.chat.completions.create(model="claude-3-5-sonnet-20241022", messages=asked)
        return answer.choices[0].message.content or ""

    with fleet.run("nested") as run:
        asyncio.run(said_by(agent_of(fleet, tools=[ask_again]), "ask", plugins=[tracer()]))
    detail = told(run.id)
    agent, tool = named(detail, "researcher"), named(detail, "ask_again")
    assert [call.parent_span for call in detail.calls] == [agent.span_id, tool.span_id, agent.span_id]


def test_sub_agents_lie_in_the_agent_that_leads_them(fleet: Fleet, told: Told):
    crew = SequentialAgent(name="crew", sub_agents=[agent_of(fleet, "researcher"), agent_of(fleet, "writer")])
    with fleet.run("crew") as run, run.step("work"):
        asyncio.run(said_by(crew, "go", plugins=[tracer()]))
    detail = told(run.id)
    assert drawn(detail) == [("chain", "crew", None), ("agent", "researcher", "crew"), ("agent", "writer", "crew")]
    assert [named(detail, name).role for name in ("researcher", "writer")] == ["researcher", "writer"]


def test_agents_in_parallel_keep_their_own_calls(fleet: Fleet, told: Told):
    crew = ParallelAgent(name="crew", sub_agents=[agent_of(fleet, name=f"agent_{n}") for n in range(4)])
    with fleet.run("parallel") as run:
        asyncio.run(said_by(crew, "go", plugins=[tracer()]))
    detail = told(run.id)
    agents = [span.span_id for span in detail.spans if span.kind == "agent"]
    assert len(agents) == 4
    assert sorted(call.parent_span or "" for call in detail.calls) == sorted(agents)


def test_an_agent_used_as_a_tool_lies_in_the_tool_and_what_it_said_is_kept(
    fleet: Fleet, provider: ScriptedProvider, told: Told
):
    provider.call_tool("writer", {"request": "write"}).say("written")
    lead = agent_of(fleet, tools=[AgentTool(agent=agent_of(fleet, "writer"))])
    with fleet.run("agent as tool", max_calls=2) as run, run.step("work") as step:
        asyncio.run(said_by(lead, "go", plugins=[tracer()]))
    assert sorted(drawn(told(run.id)), key=str) == [
        ("agent", "researcher", None),
        ("agent", "writer", "writer"),
        ("tool", "writer", "researcher"),
    ]
    assert step.result == [
        {"agent": "writer", "text": "written"},
        {"agent": "researcher", "tool": "writer", "result": {"result": "written"}},
    ]


def test_a_tool_that_fails_and_its_agent_are_failed_spans(fleet: Fleet, provider: ScriptedProvider, told: Told):
    provider.call_tool("broken", {"city": "Paris"})
    with pytest.raises(LookupError), fleet.run("failing") as run:
        asyncio.run(said_by(agent_of(fleet, tools=[broken]), "go", plugins=[tracer()]))
    detail = told(run.id)
    assert [(span.name, span.state) for span in detail.spans] == [("researcher", "failed"), ("broken", "failed")]
    assert "no weather for Paris" in (named(detail, "broken").error or "")


def test_a_run_that_is_stopped_keeps_what_was_said(fleet: Fleet, provider: ScriptedProvider):
    provider.say("facts")
    crew = SequentialAgent(name="crew", sub_agents=[agent_of(fleet, "researcher"), agent_of(fleet, "writer")])
    with fleet.run("capped", max_calls=1) as run, run.step("work") as step:
        asyncio.run(said_by(crew, "go", plugins=[tracer()]))
    assert (run.state, run.stopped_by.kind) == ("stopped", "max_calls")
    assert step.result == [{"agent": "researcher", "text": "facts"}]
    assert len(provider.requests) == 1


def test_what_tools_gave_is_kept_as_well(fleet: Fleet, provider: ScriptedProvider):
    provider.call_tool("weather", {"city": "Paris"})
    with fleet.run("capped", max_calls=1) as run:
        asyncio.run(said_by(agent_of(fleet, tools=[weather]), "go", plugins=[tracer()]))
    assert run.result == [{"agent": "researcher", "tool": "weather", "result": {"result": "sunny in Paris"}}]


def test_a_stream_that_its_reader_leaves_keeps_its_beginning_and_ends_its_spans(
    fleet: Fleet, provider: ScriptedProvider, told: Told
):
    provider.say("one two three four")

    async def first_word(agent: LlmAgent) -> None:
        async with aclosing(events_of(agent, "count", plugins=[tracer()], run_config=SSE)) as events:
            async for event in events:
                assert event.partial
                break
        raise RunStoppedByHand

    class RunStoppedByHand(Exception):  # noqa: N818 - leaves the run in the middle
        pass

    with pytest.raises(RunStoppedByHand), fleet.run("left") as run, run.step("count", role="researcher"):
        asyncio.run(first_word(agent_of(fleet)))
    (span,) = told(run.id).spans
    assert (span.name, span.output) == ("researcher", "one")


def test_the_code_that_reads_events_stays_where_it_is(fleet: Fleet, provider: ScriptedProvider):
    provider.call_tool("weather", {"city": "Paris"}).say("It is sunny")

    async def places() -> list[object]:
        agent = agent_of(fleet, tools=[weather])
        return [here() async for _ in events_of(agent, "go", plugins=[tracer()], run_config=SSE)]

    with fleet.run("reader") as run, run.step("read", role="researcher") as step:
        seen = asyncio.run(places())
        assert here() is step
        assert (current_run(), current_step()) == (run, step)
    assert len(seen) > 2
    assert set(map(id, seen)) == {id(step)}


def test_a_tracer_with_a_run_is_heard_in_a_thread_without_the_context(fleet: Fleet, told: Told):
    with fleet.run("outside") as run, run.step("ask", role="researcher") as step:
        agent, plugin = agent_of(fleet), tracer(step)
        worker = threading.Thread(target=in_a_thread, args=(agent, "hello"), kwargs={"plugins": [plugin]})
        worker.start()
        worker.join(30)
    detail = told(run.id)
    (span,) = detail.spans
    assert (span.name, span.step) == ("researcher", "ask")
    assert [call.parent_span for call in detail.calls] == [span.span_id]


def test_one_tracer_serves_parallel_runs_without_mixing_them(fleet: Fleet, told: Told):
    plugin, agent = tracer(), agent_of(fleet)

    async def one(number: int) -> str:
        async with fleet.run(f"run {number}") as run, run.step(f"step {number}", role="researcher"):
            await said_by(agent, f"question {number}", plugins=[plugin])
        return run.id

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*(one(number) for number in range(4)))

    for number, run_id in enumerate(asyncio.run(all_of_them())):
        assert [(span.step, span.input) for span in told(run_id).spans] == [(f"step {number}", f"question {number}")]


def test_a_tracer_outside_any_run_does_nothing(fleet: Fleet, provider: ScriptedProvider):
    provider.say("fine")
    assert asyncio.run(said_by(agent_of(fleet), "hello", plugins=[tracer()])) == "fine"


def test_a_fault_of_the_trace_never_reaches_an_agent(
    fleet: Fleet, provider: ScriptedProvider, caplog: pytest.LogCaptureFixture
):
    class Unreadable:
        run_id = "x"

        @property
        def over(self) -> bool:
            raise RuntimeError("a fault of the trace")

    provider.say("fine")
    assert asyncio.run(said_by(agent_of(fleet), "hello", plugins=[tracer(Unreadable())])) == "fine"
    assert "could not be noted" in caplog.text


def test_a_stop_by_the_cap_is_raised_as_itself(fleet: Fleet):
    with fleet.run("capped", max_calls=1, on_stop="return"):
        agent = agent_of(fleet)
        asyncio.run(said_by(agent, "one", plugins=[tracer()]))
        with pytest.raises(RunStopped):
            asyncio.run(said_by(agent, "two", plugins=[tracer()]))
