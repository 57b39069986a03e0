"""AG2 Classic and pyautogen 0.2: configurations, chats, and agents that tell of themselves."""

from __future__ import annotations

import copy

import pytest
from nemo_agents_autogen import llm_config, tracer
from nemo_agents_autogen.classic import price_of
from shapes import needs

from nemo_agents import AgentRole
from nemo_agents.errors import DeclarationError

needs("classic")

import autogen  # noqa: E402 - skipped before


def user():
    return autogen.UserProxyAgent("user", human_input_mode="NEVER", code_execution_config=False)


def test_the_published_snippet_as_it_is(world):
    """`config_list` with model, key and address of the role, and no adapter: the call is the role's."""
    researcher = world.fleet["researcher"]
    assistant = autogen.AssistantAgent(
        name="researcher",
        llm_config={
            "config_list": [
                {"model": "gpt-4o-mini", "api_key": researcher.key.reveal(), "base_url": researcher.base_url}
            ],
            "cache_seed": None,
        },
    )
    world.provider.say("six times seven")
    chat = user().initiate_chat(assistant, message="How much is 42?", max_turns=1, silent=True)
    assert chat.chat_history[-1]["content"] == "six times seven"
    assert world.provider.requests[-1].body["model"] == "gpt-4o-mini"


def test_a_configuration_survives_copies_and_holds_no_key(world):
    config = llm_config(world.fleet["researcher"], temperature=0.5)
    assert world.fleet["researcher"].key.reveal() not in repr(config)
    entry = copy.deepcopy(config)["config_list"][0]
    assert entry["http_client"] is config["config_list"][0]["http_client"]
    assert (config["cache_seed"], entry["max_retries"], entry["temperature"]) == (None, 0, 0.5)


def test_the_price_is_the_gateways(world):
    """$1 and $2 per million, as AutoGen has it; and its own sum agrees with the gateway's."""
    config = llm_config(world.fleet["researcher"])
    assert config["config_list"][0]["price"] == [0.001, 0.002]
    assert price_of(None, 1) is None
    assistant = autogen.AssistantAgent("researcher", llm_config=config)
    with world.fleet.run("price") as run:
        user().initiate_chat(assistant, message="hello", max_turns=1, silent=True)
    summed = assistant.get_total_usage()["total_cost"]
    assert summed == pytest.approx(run.cost_nanos / 1e9)


def test_options_of_the_connection_belong_to_the_role(world):
    with pytest.raises(DeclarationError, match="base_url"):
        llm_config(world.fleet["researcher"], base_url="http://127.0.0.1:1/v1")


def test_a_role_alone_takes_its_key_from_the_environment(world, monkeypatch):
    monkeypatch.setenv("NEMO_KEY_RESEARCHER", world.fleet["researcher"].key.reveal())
    monkeypatch.setenv("NEMO_GATEWAY_URL", world.gateway.url)
    config = llm_config(AgentRole("researcher", models=["gpt-4o-mini"]))
    world.provider.say("here")
    chat = user().initiate_chat(
        autogen.AssistantAgent("researcher", llm_config=config), message="hello", max_turns=1, silent=True
    )
    assert chat.chat_history[-1]["content"] == "here"


def test_a_repeated_run_asks_again(world):
    """Nothing is answered from a cache on disk, so that each run has its calls."""
    assistant = autogen.AssistantAgent("researcher", llm_config=llm_config(world.fleet["researcher"]))
    for _ in range(2):
        user().initiate_chat(assistant, message="hello", max_turns=1, silent=True)
    assert len(world.provider.requests) == 2


def test_a_group_chat_of_two_roles(world):
    agents = [
        autogen.AssistantAgent(name, llm_config=llm_config(world.fleet[name])) for name in ("researcher", "writer")
    ]
    group = autogen.GroupChat([*agents], messages=[], max_round=3, speaker_selection_method="round_robin")
    with world.fleet.run("group") as run, run.step("crew"):
        trace = tracer()
        for agent in agents:
            trace.agent(agent)
        manager = autogen.GroupChatManager(group)
        agents[1].initiate_chat(manager, message="Begin.", silent=True)
    told = world.told(run)
    assert sorted({call.role for call in told.calls}) == ["researcher", "writer"]
    by_id = {span.span_id: span.name for span in told.spans}
    assert [by_id[call.parent_span] for call in told.calls] == [call.role for call in told.calls]


async def test_an_asynchronous_chat_is_in_the_current_step(world):
    """The framework's thread has lost the context; a traced agent's has it, whatever was current when it was made."""
    assistant = tracer().agent(autogen.AssistantAgent("researcher", llm_config=llm_config(world.fleet["researcher"])))
    async with world.fleet.run("async") as run, run.step("chat"):
        await user().a_initiate_chat(assistant, message="hello", max_turns=1, silent=True)
    assert [(call.step, call.role) for call in world.told(run).calls] == [("chat", "researcher")]
