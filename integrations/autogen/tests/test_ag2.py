"""AG2 1.x: configurations, and what its middleware tells."""

from __future__ import annotations

import pytest
from nemo_agents_autogen import ag2_config, tracer
from shapes import needs

from nemo_agents.errors import DeclarationError

needs("ag2")

import ag2  # noqa: E402 - skipped before


def lookup(city: str) -> str:
    """Tell the weather of a city."""
    raise LookupError(f"no such city: {city}")


def test_a_configuration_holds_no_key(world):
    config = ag2_config(world.fleet["researcher"], temperature=0.5)
    assert world.fleet["researcher"].key.reveal() not in repr(config)
    assert (config.temperature, config.max_retries, config.model) == (0.5, 0, "gpt-4o-mini")


@pytest.mark.parametrize("option", ["api_key", "http_client", "temprature"])
def test_options_that_cannot_be_meant(world, option):
    with pytest.raises(DeclarationError, match=option):
        ag2_config(world.fleet["researcher"], **{option: "sk-secret"})


async def test_a_tool_that_fails_is_a_failed_span_of_a_turn_that_goes_on(world):
    world.provider.call_tool("lookup", {"city": "Atlantis"}).say("There is none.")
    async with world.fleet.run("tool") as run, run.step("work", role="researcher"):
        agent = tracer().agent(ag2.Agent("guide", config=ag2_config(world.fleet["researcher"]), tools=[lookup]))
        assert (await agent.ask("What is the weather in Atlantis?")).body == "There is none."
    spans = {span.name: span for span in world.told(run).spans}
    assert (spans["guide"].state, spans["guide"].output) == ("ok", "There is none.")
    assert spans["lookup"].state == "failed"
    assert "no such city: Atlantis" in spans["lookup"].error
    assert spans["lookup"].parent_id == spans["guide"].span_id
