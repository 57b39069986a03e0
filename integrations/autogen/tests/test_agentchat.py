"""AutoGen 0.7: model clients, teams, and agents that tell of themselves."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
from nemo_agents_autogen import chat_model, run_task, tracer
from shapes import needs

from nemo_agents.errors import BudgetExceeded, DeclarationError
from nemo_agents.trace import context

needs("agentchat")

from autogen_agentchat.agents import AssistantAgent  # noqa: E402 - skipped before
from autogen_agentchat.messages import ToolCallExecutionEvent  # noqa: E402 - skipped before
from autogen_agentchat.teams import RoundRobinGroupChat  # noqa: E402 - skipped before
from autogen_core.models import ChatCompletionClient, SystemMessage, UserMessage  # noqa: E402 - skipped before

HELLO = [UserMessage(content="hello", source="user")]


def lookup(city: str) -> str:
    """Tell the weather of a city."""
    return f"9 degrees in {city}"


async def test_a_dump_has_names_only_and_loads_from_the_environment(world, monkeypatch):
    member = world.fleet["researcher"]
    dumped = chat_model(member, temperature=0.5).dump_component()
    assert dumped.config == {"role": "researcher", "model": "gpt-4o-mini", "options": {"temperature": 0.5}}
    monkeypatch.setenv("NEMO_KEY_RESEARCHER", member.key.reveal())
    monkeypatch.setenv("NEMO_GATEWAY_URL", world.gateway.url)
    loaded = ChatCompletionClient.load_component(json.loads(dumped.model_dump_json()))
    world.provider.say("as before")
    assert (await loaded.create(HELLO)).content == "as before"
    assert world.provider.requests[-1].body["temperature"] == 0.5


def test_a_copy_is_the_client_and_a_pickle_is_refused(world):
    client = chat_model(world.fleet["researcher"])
    assert copy.deepcopy(client) is client
    with pytest.raises(TypeError, match="dump_component"):
        pickle.dumps(client)


@pytest.mark.parametrize("option", ["api_key", "base_url", "http_client", "default_headers", "temprature"])
def test_options_that_cannot_be_meant(world, option):
    with pytest.raises(DeclarationError, match=option):
        chat_model(world.fleet["researcher"], **{option: "sk-secret"})
    assert world.provider.requests == []


async def test_a_stream_has_its_usage_and_a_plain_call_no_stream_options(world):
    client = chat_model(world.fleet["researcher"])
    last = [item async for item in client.create_stream(HELLO)][-1]
    assert last.usage.completion_tokens > 0
    await client.create(HELLO)
    streamed, plain = (received.body for received in world.provider.requests)
    assert streamed["stream_options"]["include_usage"] is True
    assert "stream_options" not in plain


def test_tokens_are_estimated_on_the_safe_side_without_a_network(world):
    client = chat_model(world.fleet["researcher"])
    text = "The quick brown fox jumps over the lazy dog. " * 20  # 200 tokens of any tokenizer, about
    counted = client.count_tokens([SystemMessage(content=text)])
    assert 200 < counted < 400
    assert client.count_tokens([SystemMessage(content=text)], tools=[{"name": "a", "description": "b"}]) > counted
    assert client.remaining_tokens(HELLO) > client.remaining_tokens([SystemMessage(content=text)])


async def test_a_team_of_two_roles(world):
    """Each agent speaks with its own role's key; spans, calls and messages are where they belong."""
    async with world.fleet.run("team") as run, run.step("crew"):
        trace = tracer()
        team = RoundRobinGroupChat(
            [
                trace.agent(AssistantAgent(name, chat_model(world.fleet[name]), tools=tools))
                for name, tools in (("researcher", [lookup]), ("writer", None))
            ],
            max_turns=2,
        )
        result = await run_task(team, "What is the weather in Paris?")
    assert [message.source for message in result.messages if not isinstance(message, ToolCallExecutionEvent)][-1] == (
        "writer"
    )
    told = world.told(run)
    assert [call.role for call in told.calls] == ["researcher", "writer"]
    spans = {span.name: span for span in told.spans}
    assert set(spans) == {"researcher", "lookup", "writer"}
    assert spans["lookup"].parent_id == spans["researcher"].span_id
    assert [call.parent_span for call in told.calls] == [spans["researcher"].span_id, spans["writer"].span_id]


async def test_a_team_that_meets_its_budget(world):
    """`run_task` raises what AutoGen turned into text; the run keeps the messages; the plain call stops it too."""
    agents = [AssistantAgent("writer", chat_model(world.fleet["writer"], max_tokens=2000))]
    async with world.fleet.run("spent", budget="$0.0001", on_stop="return") as run:
        with pytest.raises(BudgetExceeded) as caught:
            await run_task(RoundRobinGroupChat(agents, max_turns=1), "Write.")
        raise caught.value
    assert (run.state, run.stopped_by.kind) == ("stopped", "budget")
    assert len(world.told(run).calls) == 1
    async with world.fleet.run("spent", budget="$0.0001") as run:
        await RoundRobinGroupChat(agents, max_turns=1).run(task="Write.")
    assert (run.state, run.stopped_by.kind) == ("stopped", "budget")


async def test_a_traced_agent_stands_for_the_agent(world):
    """It is dumped as the agent, has what the agent has, and outside of any run it tells nothing."""
    agent = AssistantAgent("writer", chat_model(world.fleet["writer"]))
    traced = tracer().agent(agent)
    assert traced.dump_component() == agent.dump_component()
    assert traced.produced_message_types == agent.produced_message_types
    assert traced.model_context is agent.model_context
    world.provider.say("fine")
    assert (await traced.run(task="Write.")).messages[-1].to_text() == "fine"
    with pytest.raises(DeclarationError, match="no agent"):
        tracer().agent("writer")


async def test_who_reads_a_stream_is_not_in_the_agents_span(world):
    async with world.fleet.run("read") as run:
        traced = tracer().agent(AssistantAgent("writer", chat_model(world.fleet["writer"])))
        async for _ in traced.run_stream(task="Write."):
            assert context.here() is run
