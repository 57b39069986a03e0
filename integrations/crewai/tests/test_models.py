"""What `chat_model`, `embedder` and `check_crew` give, and what they refuse."""

from __future__ import annotations

import json
import logging
from copy import copy, deepcopy

import pytest
from crewai import LLM, Agent, Crew, Task
from crewai.llms.providers.openai.completion import OpenAICompletion
from nemo_agents_crewai import FRAMEWORK, chat_model, check_crew, embedder, refusals
from nemo_agents_crewai.embedding import config as embedder_config
from worlds import World

from nemo_agents import AgentRole, BudgetExceeded, GuardrailBlocked
from nemo_agents.adapters import ModelFacts
from nemo_agents.errors import DeclarationError, ErrorFacts, RunEnded


def test_it_is_the_class_that_crewai_gives_for_openai(world: World) -> None:
    assert isinstance(chat_model(world.fleet["researcher"]), OpenAICompletion)
    assert isinstance(LLM(model="gpt-4o-mini", api_key="k"), OpenAICompletion)


def test_a_key_of_openai_in_the_environment_is_not_taken(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-user")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    member = world.fleet["researcher"]
    model = chat_model(member)
    shown = repr(model) + json.dumps(model.model_dump(), default=repr) + repr(model.to_config_dict())
    assert "sk-of-the-user" not in shown
    assert member.key.reveal() not in shown
    assert model.call("hello")


def test_a_role_alone_finds_its_key_in_the_environment(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEMO_KEY_RESEARCHER", world.fleet["researcher"].key.reveal())
    monkeypatch.setenv("NEMO_GATEWAY_URL", world.gateway.url)
    world.provider.say("forty-two")
    assert chat_model(AgentRole("researcher", models=["gpt-4o-mini"])).call("how much?") == "forty-two"


@pytest.mark.parametrize("make", [copy, deepcopy, lambda model: model.model_copy()])
def test_a_copy_is_of_the_same_role(world: World, make) -> None:
    copied = make(chat_model(world.fleet["writer"]))
    with world.fleet.run("copied") as run:
        copied.call("hello")
    assert [call.role for call in world.told(run).calls] == ["writer"]


@pytest.mark.parametrize("option", ["api_key", "base_url", "interceptor", "client_params", "provider"])
def test_what_would_lead_past_the_gateway_is_refused(world: World, option: str) -> None:
    with pytest.raises(DeclarationError, match=option) as caught:
        chat_model(world.fleet["writer"], **{option: "sk-something"})
    assert "sk-something" not in str(caught.value)


def test_options_reach_the_model(world: World) -> None:
    chat_model(world.fleet["writer"], temperature=0.5, max_tokens=77, top_p=0.9).call("hello")
    body = world.provider.requests[-1].body
    assert (body["temperature"], body["top_p"]) == (0.5, 0.9)
    assert 77 in (body.get("max_tokens"), body.get("max_completion_tokens"))
    assert "seat" not in body
    assert "custom_openai" not in body


def test_a_window_that_the_gateway_knows_is_used_and_else_crewais_own(world: World) -> None:
    model = chat_model(world.fleet["writer"])
    assert model.get_context_window_size() == OpenAICompletion.get_context_window_size(model)
    model._facts = ModelFacts(context_tokens=100_000, function_calling=False, vision=True)
    assert model.get_context_window_size() == 85_000
    assert (model.supports_function_calling(), model.supports_multimodal()) == (False, True)


def test_a_run_that_is_over_is_told_before_anything_is_sent(world: World) -> None:
    with world.fleet.run("over") as run:
        model = chat_model(world.fleet["writer"])
    sent = len(world.provider.requests)
    with pytest.raises(RunEnded, match=run.id):
        model.call("hello")
    assert len(world.provider.requests) == sent


def test_a_refusal_keeps_its_kind_its_facts_and_its_cause() -> None:
    cause = ValueError("what openai said")
    error = BudgetExceeded("spent", facts=ErrorFacts(status=402, code="budget_exhausted", run_id="r1"))
    error.__cause__ = cause
    told = refusals.final(error, None)
    assert isinstance(told, BudgetExceeded)
    assert not isinstance(told, GuardrailBlocked)
    assert (str(told), told.status, told.code, told.run_id) == ("spent", 402, "budget_exhausted", "r1")
    assert refusals.final(told, None) is told


def test_an_agents_retries_are_taken_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under releases of crewAI that have no exception for a deliberate stop."""
    monkeypatch.setattr(refusals, "_ABORTED", None)
    agent = Agent(role="a", goal="b", backstory="c", llm=LLM(model="gpt-4o-mini", api_key="k"), max_retry_limit=5)
    error = BudgetExceeded("spent", facts=ErrorFacts(status=402))
    assert refusals.final(error, agent) is error
    assert agent.max_retry_limit == 0
    refusals.final(error, agent)
    refusals.give_back_retries(agent)
    assert agent.max_retry_limit == 5
    refusals.give_back_retries(agent)
    assert agent.max_retry_limit == 5


def test_memory_embeds_as_the_role(world: World) -> None:
    from crewai.rag.embeddings.factory import build_embedder

    with world.fleet.run("memory") as run, run.step("remember", role="embedder"):
        vectors = build_embedder(embedder(world.fleet["embedder"]))(["tides", "winds"])
    assert len(vectors) == 2
    assert len(vectors[0]) > 1
    assert [(call.role, call.step, call.endpoint) for call in world.told(run).calls] == [
        ("embedder", "remember", "/v1/embeddings")
    ]
    assert world.fleet["embedder"].key.reveal() not in repr(
        embedder_config(world.fleet["embedder"], "text-embedding-3-small", None)
    )


def test_a_crew_that_would_leave_the_gateway_is_told_where(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-user")
    mine = Agent(role="Mine", goal="b", backstory="c", llm=chat_model(world.fleet["writer"]))
    stray = Agent(role="Stray", goal="b", backstory="c", llm=LLM(model="gpt-4o-mini", api_key="k"))
    task = Task(description="d", expected_output="e", agent=mine)
    check_crew(Crew(agents=[mine], tasks=[task]))
    with pytest.raises(DeclarationError) as caught:
        check_crew(Crew(agents=[mine, stray], tasks=[task], planning=True, memory=True))
    for place in ("planning_llm", "embedder", "llm of the agent Stray"):
        assert place in str(caught.value)
    assert "Mine" not in str(caught.value)


def test_what_crewai_logs_has_no_key(world: World, caplog: pytest.LogCaptureFixture) -> None:
    member = world.fleet["writer"]
    world.provider.fail(500)
    with caplog.at_level(logging.DEBUG), pytest.raises(Exception, match="500"):
        chat_model(member, max_retries=0).call("hello")
    assert member.key.reveal() not in caplog.text


def test_the_range_is_the_one_that_the_package_requires() -> None:
    import tomllib
    from pathlib import Path

    declared = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {f"{name}{wanted}" for name, wanted in FRAMEWORK.items()} <= set(declared)
