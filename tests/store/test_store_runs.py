"""Runs, steps and the request log: states, sums, filters, pages, contents."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_values import HOUR_US, T0, a_call, an_attempt, attempt_end, call_end, refusal, role_scope, run_scope

from nemo_agents.admin.wire import RunReport, StepReport, StoppedBy
from nemo_agents.gateway.stores.base import FleetRecord, LogFilter
from nemo_agents.policy.budgets import BudgetRule, LoopRule, ModelLimit
from nemo_agents.policy.keys import Grant, KeySecret
from nemo_agents.policy.routing import Deployment, Options

RUN = "run-one"


async def do_call(store, *, outcome="ok", cost=10, code="budget_exhausted", status=402, limit="budget", **more):
    call, attempt = a_call(run_id=RUN, **more), an_attempt(100, run_scope(), role_scope())
    if outcome == "refused":
        store.log_refusal(call, refusal(call, code=code, status=status, limit=limit))
        return call
    await store.open_call(call, attempt)
    if outcome != "open":
        kind = "post" if outcome == "ok" else "expire"
        store.close_call(
            call_end(call, outcome, error=None if outcome == "ok" else "it broke"), attempt_end(attempt, kind, cost)
        )
    return call


async def the_run(store):
    return (await store.run(RUN, fleet="crew")).run


@pytest.mark.parametrize(
    ("outcomes", "state"),
    [
        (["ok"], "ok"),
        (["open"], "running"),
        (["ok", "open"], "running"),
        (["failed"], "failed"),
        (["failed", "ok"], "recovered"),
        (["refused", "ok"], "recovered"),
        (["ok", "refused"], "stopped"),
    ],
)
async def test_the_state_of_a_run_follows_from_its_last_call(store, outcomes, state):
    for outcome in outcomes:
        await do_call(store, outcome=outcome)
    run = await the_run(store)
    assert run.state == state
    assert run.errors == sum(o in ("failed", "refused") for o in outcomes)
    assert (run.ended_us is None) == (state == "running")
    assert (run.stopped_by is None) == (state != "stopped")
    assert [r.run_id for r in (await store.runs(LogFilter(state=state), before=None, limit=5)).runs] == [RUN]


@pytest.mark.parametrize(
    ("code", "status", "limit", "kind"),
    [
        ("budget_exhausted", 402, "budget", "budget"),
        ("budget_held", 402, "budget", "budget"),
        ("run_stopped", 403, "max_calls", "max_calls"),
        ("run_stopped", 403, "stopped", "stopped"),
        ("guardrail_blocked", 400, None, "guardrail"),
        ("model_not_allowed", 403, None, "access"),
        ("rate_limit_exceeded", 429, "rpm", None),
        ("invalid_request", 400, None, None),
    ],
)
async def test_what_stopped_a_run_is_said_and_a_rate_stops_none(store, code, status, limit, kind):
    call = await do_call(store, outcome="refused", code=code, status=status, limit=limit, step="plan")
    run = await the_run(store)
    assert (run.state, run.errors) == ("stopped" if kind else "failed", 1)
    if kind is None:
        assert run.stopped_by is None
    else:
        assert run.stopped_by == StoppedBy(
            kind=kind,
            code=code,
            scope="role",
            limit=limit,
            step="plan",
            request_id=call.request_id,
            message=f"refused: {code}",
        )


async def test_the_report_of_the_sdk_wins_at_the_end(store):
    await store.report_run(
        "crew",
        RUN,
        RunReport(
            name="question",
            started_us=T0 - 50,
            budget_nanos=500,
            steps=[StepReport(step="plan", role="orchestrator", started_us=T0 - 40)],
        ),
    )
    await do_call(store, step="write", parent_step="plan")
    run = await the_run(store)
    assert (run.state, run.name, run.started_us, run.ended_us, run.budget_nanos) == (
        "running",
        "question",
        T0 - 50,
        None,
        500,
    )
    await do_call(store, outcome="refused", step="write")
    stop = StoppedBy(kind="budget", code="budget_exhausted", scope="run", message="as the SDK saw it")
    await store.report_run(
        "crew",
        RUN,
        RunReport(
            name="question",
            state="failed",
            started_us=T0 - 50,
            ended_us=T0 + 9000,
            error="ValueError: no",
            stopped_by=stop,
            budget_nanos=900,
            steps=[
                StepReport(step="plan", role="orchestrator", state="ok", started_us=T0 - 40, ended_us=T0),
                StepReport(step="write", parent="plan", state="failed", started_us=T0, ended_us=T0 + 9, error="no"),
            ],
        ),
    )
    detail = await store.run(RUN, fleet="crew")
    run = detail.run
    assert (run.state, run.error, run.ended_us, run.stopped_by) == ("failed", "ValueError: no", T0 + 9000, stop)
    assert run.budget_nanos == 500  # a later report does not raise it
    assert [(s.seq, s.step, s.parent, s.role, s.state, s.calls, s.errors) for s in detail.steps] == [
        (1, "plan", None, "orchestrator", "ok", 0, 0),
        (2, "write", "plan", "writer", "failed", 2, 1),
    ]


async def test_a_run_that_ends_well_after_errors_has_recovered(store):
    await do_call(store, outcome="failed")
    await store.report_run("crew", RUN, RunReport(name="r", state="ok", started_us=T0, ended_us=T0 + 5))
    assert (await the_run(store)).state == "recovered"


async def test_a_run_that_falls_silent_is_lost_and_may_come_back(store):
    await store.report_run("crew", RUN, RunReport(name="r", started_us=T0))
    await store.sweep(T0 + HOUR_US)
    assert (await the_run(store)).state == "running"
    await store.sweep(T0 + 7 * HOUR_US)
    assert (await the_run(store)).state == "lost"
    await do_call(store, outcome="ok", started_us=T0 + 8 * HOUR_US)
    assert (await the_run(store)).state == "running"


async def test_a_run_stopped_by_hand_is_stopped(store):
    await do_call(store)
    assert await store.stop_run(None, RUN, T0 + 7)
    run = await the_run(store)
    assert (run.state, run.stopped_by.kind, run.stopped_by.code) == ("stopped", "stopped", "run_stopped")


async def cut_call(store, **more):
    """End a call as the gateway ends one that is in flight when its run is stopped by hand."""
    call, attempt = a_call(run_id=RUN, **more), an_attempt(100, run_scope(), role_scope())
    await store.open_call(call, attempt)
    assert await store.stop_run("crew", RUN, T0 + 7)
    end = call_end(call, "failed", status=403, code="run_stopped", error="This run was stopped.")
    store.close_call(end, attempt_end(attempt, "expire", 100))
    return call


async def test_a_stop_by_hand_names_the_call_that_it_cut_whatever_other_calls_come_to(store):
    cut = await cut_call(store, step="write")
    by = (await the_run(store)).stopped_by
    assert (by.kind, by.step, by.request_id) == ("stopped", "write", cut.request_id)
    assert [step.state for step in (await store.run(RUN, fleet="crew")).steps] == ["stopped"]
    for code, limit in (("run_stopped", "stopped"), ("rate_limit_exceeded", "rpm"), ("guardrail_blocked", None)):
        await do_call(store, outcome="refused", code=code, status=403, limit=limit)
        run = await the_run(store)
        assert (run.state, run.stopped_by) == ("stopped", by)


@pytest.mark.parametrize("outcome", ["ok", "failed"])
async def test_a_call_in_flight_that_ends_of_itself_does_not_undo_the_stop_by_hand(store, outcome):
    call, attempt = a_call(run_id=RUN), an_attempt(100, run_scope(), role_scope())
    await store.open_call(call, attempt)
    await store.stop_run("crew", RUN, T0 + 7)
    store.close_call(call_end(call, outcome), attempt_end(attempt, "post", 10))
    run = await the_run(store)
    assert (run.state, run.stopped_by.kind, run.stopped_by.request_id) == ("stopped", "stopped", None)


async def test_a_run_that_went_on_after_a_refusal_is_stopped_by_hand_when_it_is(store):
    """The SDK says that it runs, so the refusal that its last call met did not end it."""
    await store.report_run("crew", RUN, RunReport(name="r", started_us=T0))
    await do_call(store, outcome="refused")
    await store.stop_run("crew", RUN, T0 + 7)
    await store.report_run("crew", RUN, RunReport(name="r", state="stopped", started_us=T0, ended_us=T0 + 9))
    assert (await the_run(store)).stopped_by.kind == "stopped"


BUDGET = StoppedBy(kind="budget", code="budget_exhausted", scope="run", limit="budget")


@pytest.mark.parametrize("stopped_by", [None, BUDGET])
async def test_a_run_that_ends_well_was_stopped_by_nothing(store, stopped_by):
    """Whatever the last call met, and whatever an older SDK tells beside its `ok`."""
    await do_call(store, outcome="refused")
    told = RunReport(name="r", state="ok", started_us=T0, ended_us=T0 + 5, stopped_by=stopped_by)
    await store.report_run("crew", RUN, told)
    run = await the_run(store)
    assert (run.state, run.stopped_by) == ("recovered", None)
    (listed,) = (await store.runs(LogFilter(), before=None, limit=5)).runs
    assert listed.stopped_by is None


async def test_the_cause_of_an_earlier_report_ends_with_the_report_that_replaces_it(store):
    for state, stop in (("stopped", BUDGET), ("running", None), ("failed", None)):
        await store.report_run("crew", RUN, RunReport(name="r", state=state, started_us=T0, stopped_by=stop))
        run = await the_run(store)
        assert (run.state, run.stopped_by) == (state, stop)


async def test_a_report_with_an_unknown_state_is_refused(store):
    with pytest.raises(ValueError, match="sleeping"):
        await store.report_run("crew", RUN, RunReport(name="r", state="sleeping", started_us=T0))


@pytest.mark.parametrize("at_us", [-5, 0, T0 // 1_000_000, T0 // 1_000, T0 + 25 * HOUR_US, T0 * 1_000, 9 * 10**18])
@pytest.mark.parametrize("field", ["started_us", "ended_us"])
@pytest.mark.parametrize("of", ["run", "step"])
async def test_a_report_with_a_time_that_cannot_be_meant_is_refused(store, of, field, at_us):
    """Another unit, or a clock far ahead: the run would stay at one end of every list."""
    times = {"started_us": T0, "ended_us": T0 + 5, field: at_us}
    if of == "run":
        told = RunReport(name="r", state="ok", **times)
    else:
        told = RunReport(name="r", started_us=T0, steps=[StepReport(step="plan", state="ok", **times)])
    with pytest.raises(ValueError, match=f"`{field}` of .*{of}.* is {at_us};"):
        await store.report_run("crew", RUN, told)
    assert await store.run(RUN, fleet="crew") is None


async def test_a_report_from_a_clock_in_another_time_zone_is_kept(store, clock):
    for started_us in (946_684_800_000_000, T0 + 24 * HOUR_US):
        told = RunReport(name="r", state="ok", started_us=started_us, ended_us=T0 + 24 * HOUR_US)
        await store.report_run("crew", RUN, told)
        assert (await the_run(store)).started_us == started_us
    clock.now_us -= 1
    with pytest.raises(ValueError, match="at most a day after"):
        await store.report_run("crew", RUN, told)


async def test_a_run_shows_its_calls_in_order_with_their_steps(store):
    first = await do_call(store, step="plan")
    second = await do_call(store, step="write", parent_step="plan", role="critic", model_asked="gpt-4o", cost=5)
    third = await do_call(store)
    detail = await store.run(RUN, fleet="crew")
    assert [(c.seq, c.request_id, c.step) for c in detail.calls] == [
        (1, first.request_id, "plan"),
        (2, second.request_id, "write"),
        (3, third.request_id, None),
    ]
    assert [(s.seq, s.step, s.parent, s.cost_nanos, s.state) for s in detail.steps] == [
        (1, "plan", None, 10, "ok"),
        (2, "write", "plan", 5, "ok"),
    ]
    assert detail.run.roles == ["writer", "critic"]
    assert detail.run.models == ["gpt-4o-mini", "gpt-4o"]
    assert (detail.run.calls, detail.run.input_tokens, detail.run.cost_nanos) == (3, 9, 25)
    assert detail.calls[0].attempt_rows[0].cost_nanos == 10


async def test_runs_are_found_by_id_unique_prefix_or_last(store):
    for run_id, at in (("abcdef-1", T0), ("abcdef-2", T0 + 1), ("uvwxyz-1", T0 - 1)):
        call = a_call(run_id=run_id, started_us=at)
        await store.open_call(call, an_attempt())
    single = a_call(started_us=T0 + 9)
    await store.open_call(single, an_attempt())

    async def found(text, fleet=None):
        detail = await store.run(text, fleet=fleet)
        return detail and detail.run.run_id

    assert await found("abcdef-1") == "abcdef-1"
    assert await found("abcdef") is None  # two have it
    assert await found("uvwxyz") == "uvwxyz-1"
    assert await found("uvwxy") is None  # too short
    assert await found("uvwxy_") is None  # no wildcard
    assert await found("last") == "abcdef-2"  # a call of its own is not a run to come back to
    assert await found("last", "other") is None
    assert await found("abcdef-1", "other") is None


async def test_lists_are_newest_first_and_page_without_gap_or_double(store):
    for number in range(25):
        call = a_call(f"r{number:02}", started_us=T0 + number // 3)
        await store.open_call(call, an_attempt())
    for read, ids in (
        (store.runs, lambda page: [r.run_id for r in page.runs]),
        (store.calls, lambda page: [c.request_id for c in page.calls]),
    ):
        seen, before = [], None
        while True:
            page = await read(LogFilter(), before=before, limit=10)
            seen += ids(page)
            before = page.next
            if before is None:
                break
        assert seen == [f"r{number:02}" for number in reversed(range(25))]
        for bad in ("nonsense", "", "MQ", "é", "LTEuMg.."):
            with pytest.raises(ValueError, match="before"):
                await read(LogFilter(), before=bad, limit=10)


async def test_lists_are_filtered(store):
    await do_call(store, role="critic", model_asked="gpt-4o", started_us=T0 + 5)
    other = a_call(fleet="other", role="writer", started_us=T0)
    store.log_refusal(other, refusal(other))

    async def both(**where):
        runs = await store.runs(LogFilter(**where), before=None, limit=9)
        calls = await store.calls(LogFilter(**where), before=None, limit=9)
        return [r.fleet for r in runs.runs], [c.fleet for c in calls.calls]

    assert await both() == (["crew", "other"], ["crew", "other"])
    for where, fleet in (
        ({"fleet": "crew"}, "crew"),
        ({"role": "critic"}, "crew"),
        ({"model": "gpt-4o"}, "crew"),
        ({"status": 402}, "other"),
        ({"code": "budget_exhausted"}, "other"),
        ({"run_id": RUN}, "crew"),
        ({"since_us": T0 + 1}, "crew"),
        ({"state": "ok"}, "crew"),
    ):
        assert await both(**where) == ([fleet], [fleet]), where
    assert await both(role="critic", status=402) == ([], [])


async def test_each_message_is_kept_once(store):
    history = [json.dumps({"role": "user", "content": f"message {n} " + "x" * 500}).encode() for n in range(20)]
    params = json.dumps({"temperature": 0}).encode()
    ids = []
    for length in range(1, 21):
        call, attempt = a_call(run_id=RUN, prompt=tuple(history[:length]), params=params), an_attempt()
        await store.open_call(call, attempt)
        store.close_call(call_end(call, answer=history[length % 20]), attempt_end(attempt))
        ids.append(call.request_id)
    plain = await do_call(store)
    contents = await store.contents([*ids, plain.request_id, "unknown"])
    assert set(contents) == set(ids)
    for length, request_id in enumerate(ids, start=1):
        content = contents[request_id]
        assert content.prompt == [json.loads(message) for message in history[:length]]
        assert content.params == {"temperature": 0}
        assert content.answer == json.loads(history[length % 20])
    count = await store._readers.read(
        lambda db: db.execute("SELECT count(*), sum(length(body)) FROM messages").fetchone()
    )
    assert count[0] == 21
    assert count[1] < 21 * 120


async def test_keys_fleets_and_deployments_come_back_as_they_were(store):
    secret = KeySecret(public_id="abcdefghij", digest=b"\x00\x01", created_us=1, expires_us=9)
    older = KeySecret(public_id="aaaaaaaaaa", digest=b"\x02", created_us=0, revoked_us=3)
    grant = Grant(
        grant_id="g1",
        alias="crew/writer",
        fleet="crew",
        role="writer",
        models=("a", "b"),
        rpm=3,
        max_parallel=2,
        model_limits=(ModelLimit(model="a", rpm=1), ModelLimit(model="b", tpm=5, max_parallel=1)),
        shadow=("rpm", "tpm"),
        budgets=(
            BudgetRule(amount_nanos=5, duration="1d", tz="Europe/Amsterdam", alert_at=(0.5, 0.8)),
            BudgetRule(amount_nanos=9, mode="shadow"),
        ),
        loop=LoopRule(repeats=3, within_s=5, mode="enforce"),
        request_nanos=7,
        tools=(),
        metadata={"team": "x", "n": [1]},
        blocked=True,
        created_us=1,
        updated_us=2,
        secrets=(older, secret),
    )
    bare = Grant(grant_id="g2", created_us=7, loop=None)
    for one in (grant, bare):
        await store.put_grant(one)
    assert await store.grants() == [grant, bare]
    await store.open_call(a_call(), an_attempt())
    assert [g.last_used_us for g in await store.grants()] == [T0, None]
    rotated = Grant(grant_id="g1", created_us=1, secrets=(secret,))
    await store.put_grant(rotated)  # an edit does not take the last use back
    first = (await store.grants())[0]
    assert (first.secrets, first.last_used_us, first.models) == ((secret,), T0, ())
    with pytest.raises(ValueError, match=r"secrets\.public_id"):
        await store.put_grant(Grant(grant_id="g3", secrets=(secret,)))
    assert len(await store.grants()) == 2

    fleet = FleetRecord(
        fleet="crew",
        budgets=(BudgetRule(amount_nanos=1, alert_at=(0.5,)),),
        max_parallel=3,
        shadow=("max_parallel",),
        models=("m",),
        metadata={"a": 1},
        blocked=True,
    )
    await store.put_fleet(fleet)
    assert await store.fleets() == [fleet]
    assert await store.delete_fleet("crew")
    assert not await store.delete_fleet("crew")

    second = Deployment(
        deployment_id="d1",
        fleet="crew",
        group="fast",
        model="openai/o3-mini",
        order=1,
        weight=3,
        context_tokens=200_000,
        options=Options(strategy="weighted", retries=0, fallback_on=("context-window",)),
        applied="5e1f",
    )
    front = Deployment(deployment_id="d2", fleet=None, group="fast", model="anthropic/claude", order=0)
    for deployment in (second, front):
        await store.put_deployment(deployment)
    assert await store.deployments() == [front, second]
    assert await store.delete_deployment("d1")
    assert not await store.delete_deployment("d1")


CALLS = st.lists(
    st.tuples(
        st.sampled_from(["run-a", "run-b", None]),
        st.sampled_from([None, "plan", "write"]),
        st.sampled_from(["ok", "failed", "abandoned", "refused", "open", "expired", "late"]),
        st.integers(0, 100),
    ),
    max_size=12,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls=CALLS)
async def test_sums_of_runs_and_steps_are_the_sums_of_their_calls(store, clock, calls):
    made = []
    for run_id, step, outcome, cost in calls:
        call, attempt = a_call(run_id=run_id, step=step), an_attempt(50, role_scope(), expires_us=clock.now_us + 10)
        made.append(call.request_id)
        if outcome == "refused":
            store.log_refusal(call, refusal(call))
            continue
        await store.open_call(call, attempt)
        if outcome in ("expired", "late"):
            clock.now_us += 10
            await store.sweep(clock.now_us)
        if outcome not in ("open", "expired"):
            state = "ok" if outcome == "late" else outcome
            store.close_call(call_end(call, state, input_tokens=cost), attempt_end(attempt, amount=cost))
    assert await store.verify_ledger() == []
    page = await store.runs(LogFilter(), before=None, limit=1000)
    for run in page.runs:
        detail = await store.run(run.run_id, fleet="crew")
        assert detail.run == run
        for sums, parts in [
            (run, detail.calls),
            *((step, [c for c in detail.calls if c.step == step.step]) for step in detail.steps),
        ]:
            assert sums.calls == len(parts)
            assert sums.errors == sum(c.state in ("failed", "refused", "abandoned") for c in parts)
            assert sums.cost_nanos == sum(c.cost_nanos or 0 for c in parts)
            assert sums.input_tokens == sum(c.input_tokens or 0 for c in parts)
            assert (sums.state == "running") == any(c.state == "open" for c in parts)
    assert {c for r in page.runs for c in [r.run_id]} >= {m for m, c in zip(made, calls, strict=True) if c[0] is None}
