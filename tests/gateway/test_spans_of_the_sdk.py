"""What the SDK tells about agents and tools, as the gateway keeps it and gives it back with the run."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from nemo_agents import AgentRole, Fleet, RunStopped
from nemo_agents.admin import keys, observe
from nemo_agents.testing import running_gateway

ASK = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    with running_gateway(tmp_path_factory.mktemp("spans")) as running:
        yield running


@pytest.fixture
def fleet(gateway):
    return gateway.provision(Fleet("crew", roles=[AgentRole("researcher", models=["gpt-4o-mini"])]))


def detail(gateway, run):
    with gateway.admin() as client:
        return client.run(observe.run(run.id))


@pytest.mark.parametrize("run_id", [None, "nightly-7"])
def test_agents_tools_and_their_calls_make_one_tree(gateway, fleet, run_id):
    with fleet.run("r", run_id=run_id) as run, run.step("research", "researcher") as step:
        with run.span("agent", "crew", input="find it") as agent:
            step.openai().chat.completions.create(**ASK)
            with run.span("tool", "search", input={"q": "x"}) as tool:
                tool.output = "found"
        linked = step.openai().chat.completions.with_raw_response.create(**ASK)
        run.spans.link(linked.headers["x-nemo-request-id"], agent.id)
    assert (run.spans.dropped, run.spans.send_error) == (0, None)
    told = detail(gateway, run)
    spans = {span.name: span for span in told.spans}
    assert set(spans) == {"crew", "search"}
    assert (spans["crew"].kind, spans["crew"].step, spans["crew"].role) == ("agent", "research", "researcher")
    assert (spans["search"].kind, spans["search"].parent_id) == ("tool", agent.id)
    assert {span.state for span in told.spans} == {"ok"}
    assert [call.parent_span for call in told.calls] == [agent.id, agent.id]
    assert [step.step for step in told.steps] == ["research"]


async def test_an_async_run_is_told_as_well(gateway, fleet):
    async with fleet.run("r") as run, run.step("s", "researcher") as step, run.span("task", "t") as span:
        await step.async_openai().chat.completions.create(**ASK)
    told = detail(gateway, run)
    assert [(each.span_id, each.kind) for each in told.spans] == [(span.id, "task")]
    assert [call.parent_span for call in told.calls] == [span.id]


def test_a_span_that_fails_is_a_failed_one(gateway, fleet):
    run = fleet.run("r")

    def fail():
        with run, run.span("tool", "t"):
            raise ValueError("bad")

    with pytest.raises(ValueError, match="bad"):
        fail()
    (span,) = detail(gateway, run).spans
    assert (span.state, span.error) == ("failed", "ValueError: bad")


def test_a_run_stopped_by_hand_ends_with_what_there_is(gateway, fleet):
    """The stop reaches an agent in a framework's own thread, which knows its run by where its client was made."""
    with ThreadPoolExecutor(1) as framework, fleet.run("r") as run, run.step("s", "researcher"):
        client = fleet["researcher"].openai()
        framework.submit(client.chat.completions.create, **ASK).result()
        run.partial("so far")
        with gateway.admin() as admin:
            admin.run(observe.stop(run.id))
        stopped = framework.submit(client.chat.completions.create, **ASK).exception()
    assert isinstance(stopped, RunStopped)
    assert (run.state, run.stopped_by.kind, run.result) == ("stopped", "stopped", {"s": "so far"})
    assert [call.code for call in detail(gateway, run).calls] == [None, "run_stopped"]


async def test_a_run_is_told_to_its_end_though_a_key_was_revoked_in_its_middle(gateway):
    """Any role's key may tell about a run; the first that is still good does."""
    roles = [AgentRole(name, models=["gpt-4o-mini"]) for name in ("first", "second")]
    fleet = gateway.provision(Fleet("duo", roles=roles))
    with fleet.run("r") as run, run.step("s", "second") as step, run.span("task", "t"):
        step.openai().chat.completions.create(**ASK)
        with gateway.admin() as client:
            rows = client.run(keys.every(team_id="duo", key_alias="duo/first"))
            client.run(keys.delete([row.token for row in rows]))
    assert (run.report_error, run.spans.dropped, run.state) == (None, 0, "ok")
    assert [(each.name, each.state) for each in detail(gateway, run).spans] == [("t", "ok")]
    async with fleet.run("r") as run, run.step("s", "second") as step:
        await step.async_openai().chat.completions.create(**ASK)
    assert (run.report_error, run.state) == (None, "ok")
    assert (await run.awhy()).state == "ok"


@pytest.mark.parametrize(("roles", "shown"), [(["first"], "first"), (["first", "second"], None)])
def test_a_step_has_the_role_of_its_calls_if_they_have_one(gateway, roles, shown):
    declared = Fleet("two", roles=[AgentRole(name, models=["gpt-4o-mini"]) for name in ("first", "second")])
    fleet = gateway.provision(declared)
    with fleet.run("r") as run, run.step("crew"):
        for role in roles:
            fleet[role].openai().chat.completions.create(**ASK)
    assert [step.role for step in detail(gateway, run).steps] == [shown]
