"""What the gateway tells about a model to whoever may use it, and what adapters make of it."""

from __future__ import annotations

import pytest

from nemo_agents import AgentRole, Deployment, Fleet, ModelGroup, adapters
from nemo_agents.adapters import ModelFacts
from nemo_agents.testing import running_gateway


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    group = [Deployment("openai/gpt-4o-mini", context_tokens=1_000), "anthropic/claude-3-5-sonnet-20241022"]
    declared = Fleet(
        "crew",
        models=[ModelGroup("fast", group), ModelGroup("odd", ["openai/gpt-4o-mini", "openai/of-tomorrow"])],
        roles=[AgentRole("any", models=["gpt-4o-mini", "fast", "odd"])],
    )
    with running_gateway(tmp_path_factory.mktemp("facts")) as gateway:
        yield gateway.provision(declared)


def test_a_model_has_its_size_and_prices(fleet):
    facts = adapters.model_facts(fleet["any"], "gpt-4o-mini")
    assert facts == ModelFacts(
        context_tokens=128_000,
        vision=True,
        input_nanos_per_million=150_000_000,
        output_nanos_per_million=600_000_000,
    )


def test_a_group_has_what_holds_for_all_of_it(fleet):
    facts = adapters.model_facts(fleet["any"], "fast")
    assert (facts.context_tokens, facts.vision) == (1_000, False)
    assert (facts.input_nanos_per_million, facts.output_nanos_per_million) == (3_000_000_000, 15_000_000_000)


def test_what_is_not_known_of_one_deployment_is_not_said_of_the_group(fleet):
    assert adapters.model_facts(fleet["any"], "odd") == ModelFacts()


def test_a_model_that_the_role_may_not_use_has_no_facts(fleet):
    assert adapters.model_facts(fleet["any"], "gpt-4o") == ModelFacts(vision=True)
