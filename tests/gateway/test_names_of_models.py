"""A model by each of its names, and a group that is named like a model: what is allowed, and what is counted."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from faulty_provider import FaultyProvider
from gateway_bench import Bench, bench_for, gateway_at, refused

from nemo_agents.testing import LocalGateway

# A bare name means the provider that is known for it; the sandbox stands in for that one here.
BARE, FULL = "gpt-4o", "openai/gpt-4o"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, shared_provider: FaultyProvider) -> Iterator[LocalGateway]:
    with gateway_at(tmp_path_factory.mktemp("names") / "home", shared_provider, sandbox="on") as made:
        yield made


@pytest.fixture
def bench(gateway: LocalGateway, shared_provider: FaultyProvider) -> Iterator[Bench]:
    with bench_for(gateway, shared_provider) as ready:
        yield ready


def declare_group(bench: Bench) -> None:
    """Name a group of the test's fleet like the model."""
    said = {"model_name": BARE, "litellm_params": {"model": "faulty/ok"}, "model_info": {"team_id": bench.fleet}}
    bench.ok("POST", "/model/new", said)


def served(answer: httpx.Response) -> str:
    """Where an answer comes from: the group leads to `faulty`, the model to `sandbox`."""
    assert answer.status_code == 200, answer.text
    return answer.headers["x-nemo-provider"]


@pytest.mark.parametrize(("listed", "asked"), [(BARE, FULL), (FULL, BARE)])
def test_both_names_of_a_model_are_allowed_by_either(bench: Bench, listed: str, asked: str) -> None:
    assert served(bench.chat(bench.key(models=(listed,)), asked)) == "sandbox"


def test_who_may_ask_for_a_group_may_not_ask_for_the_model_of_its_name(bench: Bench) -> None:
    declare_group(bench)
    key = bench.key(models=(BARE,))
    assert served(bench.chat(key, BARE)) == "faulty"
    refused(bench.chat(key, FULL), 403, "model_not_allowed", scope="role")


def test_who_may_ask_for_a_model_may_not_ask_for_the_group_of_its_name(bench: Bench) -> None:
    declare_group(bench)
    key = bench.key(models=(FULL,))
    refused(bench.chat(key, BARE), 403, "model_not_allowed", scope="role")
    assert served(bench.chat(key, FULL)) == "sandbox"


@pytest.mark.parametrize(("listed", "other"), [(BARE, FULL), (FULL, BARE)])
def test_the_fleet_s_list_means_the_same(bench: Bench, listed: str, other: str) -> None:
    declare_group(bench)
    bench.ok("POST", "/team/new", {"team_id": bench.fleet, "models": [listed]})
    key = bench.key(models=(BARE, FULL))
    assert served(bench.chat(key, listed)) == ("faulty" if listed == BARE else "sandbox")
    refused(bench.chat(key, other), 403, "model_not_allowed", scope="fleet")


@pytest.mark.parametrize("limited", [BARE, FULL])
def test_a_limit_of_a_model_counts_for_each_of_its_names(bench: Bench, limited: str) -> None:
    key = bench.key(models=(BARE, FULL), model_rpm_limit={limited: 2})
    assert [bench.chat(key, name).status_code for name in (BARE, FULL)] == [200, 200]
    for name in (BARE, FULL):
        refused(bench.chat(key, name), 429, "rate_limit_exceeded", limit="rpm", scope="model")


def test_a_limit_of_a_group_does_not_count_for_the_model_of_its_name(bench: Bench) -> None:
    declare_group(bench)
    key = bench.key(models=(BARE, FULL), model_rpm_limit={BARE: 1})
    assert [bench.chat(key, name).status_code for name in (BARE, FULL, FULL)] == [200, 200, 200]
    refused(bench.chat(key, BARE), 429, "rate_limit_exceeded", limit="rpm", scope="model")
