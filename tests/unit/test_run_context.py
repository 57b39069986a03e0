"""Runs and steps: what is current, how a run ends, what is reported, and what a fleet gives to its agents."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recording_gateway import Told, recording_gateway

import nemo_agents
from nemo_agents import (
    AgentRole,
    BudgetExceeded,
    DeclarationError,
    Fleet,
    KeyStoreError,
    Money,
    NemoError,
    ProvisionError,
    RateLimited,
    current_run,
    current_step,
)
from nemo_agents.admin import headers as h
from nemo_agents.admin.wire import RunReport
from nemo_agents.errors import ErrorFacts, RunStopped
from nemo_agents.money import NANOS_PER_DOLLAR, dollars_text, parse_dollars
from nemo_agents.policy import grouping
from nemo_agents.provision.keystore import FileKeyStore
from nemo_agents.provision.stored import StoredKey
from nemo_agents.roles import FleetDeclaration
from nemo_agents.secret import Secret
from nemo_agents.trace import answers, propagate
from nemo_agents.trace.context import Answer

KEY = "sk-nemo-abcdefghij-0123456789abcdefghijABCDEFGHIJKLxxxxxx"
ROLES = [AgentRole("researcher", models=["gpt-4o-mini"]), AgentRole("fact-checker", models=["gpt-4o-mini"])]


@pytest.fixture
def gateway():
    with recording_gateway() as running:
        yield running


@pytest.fixture
def fleet(gateway, tmp_path):
    return Fleet("crew", roles=ROLES).connect(gateway.url, home=tmp_path, environ={"NEMO_KEY_RESEARCHER": KEY})


@pytest.fixture
def unreachable(tmp_path):
    """A fleet whose gateway has gone."""
    with recording_gateway() as gone:
        url = gone.url
    return Fleet("crew", roles=ROLES).connect(url, home=tmp_path, environ={"NEMO_KEY_RESEARCHER": KEY})


def spent(request_id: str = "req-1", **facts) -> BudgetExceeded:
    known = {"status": 402, "code": "budget_exhausted", "request_id": request_id, "scope": "run", **facts}
    return BudgetExceeded("the budget is spent", facts=ErrorFacts(**known))


# --- headers of a call ----------------------------------------------------------------------------------------------
RUN = propagate.RunRef(run_id="a" * 32, name="n", span_id="b" * 16)


def test_a_run_id_that_is_a_trace_id_is_the_trace_id():
    assert propagate.call_headers(RUN, None) == {
        "x-nemo-run-id": "a" * 32,
        "x-nemo-run-name": "n",
        "traceparent": f"00-{'a' * 32}-{'b' * 16}-01",
    }


@pytest.mark.parametrize("run_id", ["nightly-7", "A" * 32, "0" * 32, "a" * 31])
def test_any_other_run_id_gives_a_trace_id_of_its_own(run_id):
    trace_id = propagate.trace_id_of(run_id)
    assert trace_id != run_id
    assert len(trace_id) == 32
    assert int(trace_id, 16) > 0
    assert trace_id == propagate.trace_id_of(run_id)


@given(st.integers(min_value=1, max_value=10**9 * NANOS_PER_DOLLAR))
def test_a_budget_in_a_header_is_exact(nanos):
    text = dollars_text(nanos)
    assert Decimal(text) * NANOS_PER_DOLLAR == nanos
    assert parse_dollars(text) == nanos


@given(
    st.text(min_size=1, max_size=300),
    st.text(min_size=1, max_size=250),
    st.integers(1, 10**12),
    st.integers(1, 999_999_999),
)
def test_the_gateway_reads_what_a_call_says(name, label, budget_nanos, max_calls):
    with contextlib.suppress(DeclarationError):
        run = propagate.RunRef(
            run_id=propagate.check_run_id("r-1"),
            name=propagate.run_name(name),
            span_id="1" * 16,
            budget_nanos=budget_nanos,
            max_calls=max_calls,
        )
        step = propagate.StepRef(label=propagate.step_name(label), span_id="2" * 16, parent="p")
        sent = propagate.call_headers(run, step)
        for value in sent.values():
            assert value.isascii()
            assert value.isprintable()
        read = grouping.run_of({name: value.strip() for name, value in sent.items()}, {})
        assert isinstance(read, grouping.RunRef)
        assert (read.run_id, read.name, read.parent_step) == ("r-1", run.name, "p")
        assert read.step == step.label
        assert (read.caps.budget_nanos, read.caps.max_calls) == (budget_nanos, max_calls)


@pytest.mark.parametrize("name", ["", "   ", "\n\t", None, 7])
def test_a_run_has_a_name(name):
    with pytest.raises(DeclarationError, match="name"):
        propagate.run_name(name)


def test_a_long_question_makes_a_run_name_that_fits():
    name = propagate.run_name("answer:\n" + "why? " * 100)
    assert len(name) == 200
    assert name.startswith("answer: why? why?")
    assert name.endswith("…")


@pytest.mark.parametrize("name", ["", " ", " a", "a\n", "a\x00", "x" * 191, "\ud800", None])
def test_a_steps_name_is_refused_when_it_cannot_be_sent_as_it_is(name):
    with pytest.raises(DeclarationError):
        propagate.step_name(name)


@pytest.mark.parametrize("run_id", ["", "-a", "a b", "a/b", "ü", "a" * 129, None])
def test_a_run_id_is_refused_when_it_cannot_be_sent_as_it_is(run_id):
    with pytest.raises(DeclarationError, match="run id"):
        propagate.check_run_id(run_id)


# --- what is current ------------------------------------------------------------------------------------------------
def test_run_and_step_are_current_inside_their_blocks_alone(fleet):
    assert (current_run(), current_step()) == (None, None)
    with fleet.run("r") as run:
        assert (current_run(), current_step()) == (run, None)
        with run.step("a") as a:
            assert (current_run(), current_step()) == (run, a)
            with run.step("b") as b:
                assert current_step() is b
            assert current_step() is a
        assert (current_run(), current_step()) == (run, None)
    assert (current_run(), current_step()) == (None, None)


def test_a_run_inside_another_is_current_and_takes_no_parent_from_it(fleet):
    with fleet.run("outer") as outer, outer.step("s", "researcher"):
        with fleet.run("inner") as inner, inner.step("t") as step:
            assert current_run() is inner
            assert step.role is None
            assert step.report().parent is None
        assert current_run() is outer


async def test_tasks_see_the_run_they_were_started_in(fleet):
    async def see():
        await asyncio.sleep(0)
        return current_run()

    async with fleet.run("one") as one:
        first = asyncio.create_task(see())
    async with fleet.run("two") as two:
        second = asyncio.create_task(see())
    assert await asyncio.gather(first, second, see()) == [one, two, None]


def test_one_bound_function_runs_in_many_threads_at_once(fleet):
    together = threading.Barrier(4)

    def see():
        together.wait()
        return current_run()

    with ThreadPoolExecutor(4) as pool, fleet.run("r") as run:
        assert [job.result() for job in [pool.submit(run.bind(see)) for _ in range(4)]] == [run] * 4
        assert pool.submit(current_run).result() is None


def test_labels_are_unique_in_a_run_even_from_many_threads(fleet):
    with ThreadPoolExecutor(8) as pool, fleet.run("r") as run:
        run.step("research#2")
        labels = list(pool.map(lambda _: run.step("research").label, range(50)))
    assert len(set(labels)) == 50
    assert "research" in labels
    assert "research#2" not in labels


def test_a_run_and_a_step_are_entered_once(fleet):
    run = fleet.run("r")
    with pytest.raises(RuntimeError, match="enter the run first"):
        run.step("s")
    with run, run.step("s") as step:
        pass
    with pytest.raises(RuntimeError, match="entered before"), step:
        pass
    with pytest.raises(RuntimeError, match="entered before"), run:
        pass
    assert current_run() is None


def test_a_run_may_be_left_in_another_context_than_it_was_entered_in(fleet):
    def fixture():
        with fleet.run("r") as run:
            yield run

    generator = fixture()
    run = asyncio.run(_first(generator))
    assert next(generator, None) is None
    assert run.state == "ok"


async def _first(generator):
    return next(generator)


# --- how a run ends -------------------------------------------------------------------------------------------------
def test_a_run_without_trouble_is_ok(fleet):
    with fleet.run("r") as run:
        with run.step("s") as step:
            step.result = 1
        run.result = "answer"
    assert (run.state, run.result, run.error, run.stopped_by) == ("ok", "answer", None, None)
    assert step.state == "ok"


def test_another_exception_goes_through_and_the_run_has_failed(fleet, gateway):
    with pytest.raises(KeyError), fleet.run("r") as run, run.step("s"):
        raise KeyError(f"bad {KEY}")
    assert (run.state, run.stopped_by) == ("failed", None)
    assert run.result is None
    end = gateway.ends[0]
    assert end["state"] == "failed"
    assert end["error"].startswith("KeyError: ")
    assert KEY not in str({name: value for name, value in end.items() if name != "headers"})
    assert (end["steps"][0]["state"], end["steps"][0]["error"]) == ("failed", end["error"])


def test_a_result_of_its_own_survives_the_stop(fleet):
    with fleet.run("r") as run:
        run.result = "partial"
        raise spent()
    assert (run.state, run.result) == ("stopped", "partial")


def test_a_stopped_run_gives_the_results_of_its_steps_by_label(fleet):
    with fleet.run("r") as run:
        for n in range(2):
            with run.step("research") as step:
                step.result = n
        with run.step("nothing"):
            pass
        with run.step("write"):
            raise spent()
    assert run.result == {"research": 0, "research#2": 1}


class WrappedError(Exception):
    pass


def test_a_refusal_that_a_framework_wrapped_is_a_stop(fleet):
    with fleet.run("r") as run, run.step("s"):
        try:
            raise spent()
        except BudgetExceeded as exc:
            raise WrappedError from exc
    assert run.state == "stopped"
    assert run.stopped_by is not None
    assert run.stopped_by.step == "s"


def test_a_mistake_made_while_handling_a_refusal_is_a_mistake(fleet):
    def work():
        try:
            raise spent()
        except BudgetExceeded:
            return {}["missing"]

    with pytest.raises(KeyError), fleet.run("r") as run:
        work()
    assert run.state == "failed"


async def test_a_group_of_refusals_is_a_stop_and_a_mixed_group_is_not(fleet):
    async def fail(exc):
        raise exc

    async def crew(run, *failures):
        async with run, asyncio.TaskGroup() as group:
            for exc in failures:
                group.create_task(fail(exc))

    await crew(stopped := fleet.run("r"), spent(), spent())
    assert stopped.state == "stopped"
    with pytest.raises(ExceptionGroup):
        await crew(failed := fleet.run("r"), spent(), ValueError())
    assert failed.state == "failed"


def test_a_ring_of_causes_comes_to_an_end():
    one, two = ValueError(), ValueError()
    one.__cause__, two.__cause__ = two, one
    assert answers.stop_of(one) is None


def test_a_swallowed_refusal_that_nothing_followed_stops_the_run(fleet):
    with fleet.run("r") as run, run.step("s") as step:
        step.saw(Answer(sent=step.sends(), error=spent()))
        with run.step("later"):
            pass
    assert run.state == "stopped"
    assert run.stopped_by is not None
    assert run.stopped_by.step == "s"


def test_a_swallowed_refusal_that_a_success_followed_leaves_the_run_ok(fleet, gateway):
    with fleet.run("r") as run:
        run.saw(Answer(sent=run.sends(), error=spent()))
        assert run.stopped_by is not None
        assert run.stopped_by.kind == "budget"
        run.saw(Answer(sent=run.sends()))
    assert (run.state, run.stopped_by) == ("ok", None)
    assert (gateway.ends[0]["state"], gateway.ends[0]["stopped_by"]) == ("ok", None)


def see_and_leave(run, *errors, by):
    """Let a run see these answers (None is a success), and leave it by an exception."""
    for error in errors:
        run.saw(Answer(sent=run.sends(), error=error))
    raise by


def test_a_failure_is_not_put_on_a_refusal_that_the_run_had_overcome(fleet, gateway):
    with pytest.raises(KeyError), fleet.run("r") as run:
        see_and_leave(run, spent(), None, by=KeyError())
    assert (run.state, run.stopped_by) == ("failed", None)
    assert gateway.ends[0]["stopped_by"] is None


def test_a_failure_after_a_refusal_that_nothing_followed_tells_of_it(fleet):
    with pytest.raises(AttributeError), fleet.run("r") as run:
        see_and_leave(run, spent(), by=AttributeError())
    assert run.state == "failed"
    assert run.stopped_by is not None
    assert run.stopped_by.kind == "budget"


def test_an_answer_that_comes_after_the_end_does_not_change_it(fleet):
    with fleet.run("r") as run:
        pass
    run.saw(Answer(sent=run.sends(), error=spent()))
    assert (run.state, run.stopped_by) == ("ok", None)


@pytest.mark.parametrize("code", [None, 0])
def test_a_program_that_exits_well_has_not_failed(fleet, gateway, code):
    with pytest.raises(SystemExit), fleet.run("r") as run, run.step("s") as step:
        sys.exit(code)
    assert (run.state, run.error, step.state, step.error) == ("ok", None, "ok", None)
    assert [gateway.ends[0][name] for name in ("state", "error")] == ["ok", None]


@pytest.mark.parametrize(
    ("exc", "error"),
    [
        (SystemExit(3), "SystemExit: the program ended itself with exit code 3"),
        (SystemExit("no config"), "SystemExit: no config"),
        (KeyboardInterrupt(), "KeyboardInterrupt: the program was interrupted"),
    ],
)
def test_another_end_of_the_program_has_failed_and_says_how(fleet, gateway, exc, error):
    with pytest.raises(type(exc)), fleet.run("r") as run, run.step("s") as step:
        raise exc
    assert (run.state, run.error, step.state, step.error) == ("failed", error, "failed", error)
    assert [gateway.ends[0][name] for name in ("state", "error")] == ["failed", error]


def test_an_exit_for_a_stop_is_a_stop_and_still_leaves_the_program(fleet):
    def work():
        try:
            raise spent()
        except BudgetExceeded as exc:
            raise SystemExit(1) from exc

    with pytest.raises(SystemExit), fleet.run("r") as run:
        work()
    assert run.state == "stopped"
    assert run.stopped_by is not None
    assert run.stopped_by.kind == "budget"


def test_an_exit_after_a_refusal_that_nothing_followed_is_a_stop(fleet):
    with pytest.raises(SystemExit), fleet.run("r") as run:
        see_and_leave(run, spent(), by=SystemExit())
    assert run.state == "stopped"


def test_a_success_that_was_under_way_when_another_call_was_refused_does_not_undo_the_stop(fleet):
    with fleet.run("r") as run:
        slow, refused = run.sends(), run.sends()
        run.saw(Answer(sent=refused, error=spent()))
        run.saw(Answer(sent=slow))
    assert run.state == "stopped"


def test_the_refusal_that_escapes_is_told_with_the_step_it_was_seen_in(fleet):
    with fleet.run("r") as run:
        with run.step("s") as step:
            step.saw(Answer(sent=step.sends(), error=spent("req-7")))
        raise spent("req-7")
    assert run.stopped_by is not None
    assert (run.stopped_by.step, run.stopped_by.request_id) == ("s", "req-7")


@pytest.mark.parametrize(("limit", "kind"), [("max_calls", "max_calls"), (None, "stopped")])
def test_a_stop_says_whether_calls_ran_out_or_someone_stopped_it(fleet, limit, kind):
    with fleet.run("r") as run:
        raise RunStopped("no more", facts=ErrorFacts(status=403, code="run_stopped", limit=limit))
    assert run.stopped_by is not None
    assert run.stopped_by.kind == kind


def test_a_loop_that_is_refused_stops_the_run(fleet, gateway):
    loop = RateLimited("again", facts=ErrorFacts(status=429, code="loop_detected", scope="run", limit="loop"))
    with fleet.run("r") as run:
        run.saw(Answer(sent=run.sends(), error=loop))
        raise loop
    assert run.state == "stopped"
    assert run.stopped_by is not None
    assert (run.stopped_by.kind, run.stopped_by.limit) == ("loop", "loop")
    assert gateway.ends[0]["state"] == "stopped"


def test_a_rate_that_is_used_up_stops_no_run(fleet):
    with pytest.raises(RateLimited), fleet.run("r") as run:
        raise RateLimited("slow", facts=ErrorFacts(status=429, code="rate_limit_exceeded", limit="rpm"))
    assert run.state == "failed"


async def test_a_cancelled_run_is_cancelled(fleet, gateway):
    entered = asyncio.Event()
    runs = []

    async def work():
        async with fleet.run("r") as run:
            runs.append(run)
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert runs[0].state == "failed"
    assert gateway.ends[0]["error"] == "CancelledError"


# --- reports --------------------------------------------------------------------------------------------------------
def test_the_end_of_a_run_is_reported_with_its_steps(fleet, gateway):
    with fleet.run("answer", budget="$0.50", max_calls=3, run_id="nightly-7") as run:
        with run.step("plan", "researcher"), run.step("look"):
            pass
        with pytest.raises(ValueError, match="bad"), run.step("write", "fact-checker"):
            raise ValueError("bad")
    end = gateway.ends[0]
    assert end["path"] == "/nemo/runs/nightly-7/report"
    assert end["headers"]["authorization"] == f"Bearer {KEY}"
    told = msgspec.convert({k: v for k, v in end.items() if k not in ("path", "headers")}, RunReport)
    assert (told.name, told.state, told.budget_nanos, told.max_calls) == ("answer", "ok", 500_000_000, 3)
    assert told.ended_us is not None
    assert 0 <= told.ended_us - told.started_us < 60_000_000
    shape = [(s.step, s.parent, s.role, s.state, s.error) for s in told.steps]
    assert shape == [
        ("plan", None, "researcher", "ok", None),
        ("look", "plan", "researcher", "ok", None),
        ("write", None, "fact-checker", "failed", "ValueError: bad"),
    ]
    for step in told.steps:
        assert step.ended_us is not None
        assert told.started_us <= step.started_us <= step.ended_us <= told.ended_us
    assert run.url == f"{gateway.url}/runs/nightly-7"
    assert (run.cost_nanos, run.calls, run.report_error) == (777_000_001, 7, None)


def row_of(run_id: str, state: str, **more) -> Told:
    row = {"run_id": run_id, "fleet": "crew", "name": "r", "state": state, "grouped": True, "started_us": 1}
    return Told(body={**row, "calls": 3, "cost_nanos": 5, **more})


BUDGET = {"kind": "budget", "code": "budget_exhausted", "scope": "role", "limit": "budget", "message": "it is spent"}


@pytest.mark.parametrize(
    ("told", "state", "kind"),
    [
        ({"state": "recovered", "errors": 1}, "recovered", None),
        ({"state": "recovered", "errors": 1, "stopped_by": BUDGET}, "recovered", None),
        ({"state": "ok", "stopped_by": BUDGET}, "ok", None),
        ({"state": "stopped", "stopped_by": BUDGET}, "stopped", "budget"),
        ({"state": "failed", "stopped_by": BUDGET}, "failed", "budget"),
        ({"state": "failed"}, "failed", None),
        ({"state": "running"}, "ok", None),
        ({"state": "a-state-of-tomorrow"}, "ok", None),
    ],
)
def test_behind_its_block_a_run_says_what_the_gateway_says(fleet, gateway, told, state, kind):
    with fleet.run("r") as run:
        assert isinstance(run._starting, threading.Thread)
        run._starting.join()
        gateway.report_answers.append(row_of(run.id, **told))
    assert run.state == state
    assert (run.stopped_by.kind if run.stopped_by else None) == kind
    assert (run.calls, run.cost_nanos) == (3, 5)


async def test_behind_its_block_an_async_run_says_what_the_gateway_says(fleet, gateway):
    async with fleet.run("r") as run:
        assert isinstance(run._starting, asyncio.Task)
        await run._starting
        gateway.report_answers.append(row_of(run.id, "recovered"))
    assert (run.state, run.calls) == ("recovered", 3)


def test_a_start_is_reported_while_the_run_goes_on_and_before_its_end(fleet, gateway):
    with fleet.run("r") as run:
        assert isinstance(run._starting, threading.Thread)
        run._starting.join()
        assert [report["state"] for report in gateway.reports] == ["running"]
        assert run.row is None
    assert [report["state"] for report in gateway.reports] == ["running", "ok"]


async def test_an_async_run_reports_its_start_and_its_end(fleet, gateway):
    async with fleet.run("r") as run:
        assert isinstance(run._starting, asyncio.Task)
        await run._starting
        assert [report["state"] for report in gateway.reports] == ["running"]
    assert [report["state"] for report in gateway.reports] == ["running", "ok"]
    assert run.cost == Money(777_000_001)


@pytest.mark.parametrize(
    "told",
    [
        Told(status=500, body={"error": {"message": "broken"}}),
        Told(status=404, body={"detail": "Not Found"}),
        Told(body={"what": "is this"}),
        Told(body=[]),
    ],
)
def test_a_report_that_fails_is_kept_and_breaks_nothing(fleet, gateway, told):
    gateway.report_answers.extend([told] * 2)
    with fleet.run("r") as run:
        assert isinstance(run._starting, threading.Thread)
        run._starting.join()
    assert run.state == "ok"
    assert isinstance(run.report_error, NemoError)
    assert (run.row, run.cost_nanos) == (None, 0)


async def test_an_unreachable_gateway_breaks_no_run(unreachable):
    with unreachable.run("r") as run:
        run.result = 1
    assert isinstance(run.report_error, NemoError)
    async with unreachable.run("r") as run:
        run.result = 1
    assert isinstance(run.report_error, NemoError)


def test_a_fleet_without_any_key_still_runs(gateway, tmp_path):
    with Fleet("crew", roles=ROLES).connect(gateway.url, home=tmp_path, environ={}).run("r") as run:
        pass
    assert run.state == "ok"
    assert "nemo-agents provision" in str(run.report_error)


def test_a_failing_report_does_not_hide_the_exception(unreachable):
    with pytest.raises(RateLimited), unreachable.run("r") as run:
        raise RateLimited("slow down", facts=ErrorFacts(status=429, limit="rpm"))
    assert run.state == "failed"
    assert run.stopped_by is not None
    assert (run.stopped_by.kind, run.stopped_by.code) == ("rate", "http_429")


# --- the fleet ------------------------------------------------------------------------------------------------------
def test_a_key_comes_from_the_environment_then_from_the_key_store(gateway, tmp_path):
    stored = "sk-nemo-storedkeys-0123456789abcdefghijABCDEFGHIJKLyyyyyy"
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    store = FileKeyStore(home / "keys.json")
    entry = StoredKey(role="fact-checker", public_id="storedkeys", secret=Secret(stored), state="active")
    store.put(gateway.url, "crew", entry)
    fleet = Fleet("crew", roles=ROLES).connect(gateway.url + "/", home=home, environ={})
    assert fleet["fact-checker"].key.reveal() == stored
    with pytest.raises(ProvisionError, match=r"run `nemo-agents provision fleet\.py` or set NEMO_KEY_RESEARCHER"):
        _ = fleet["researcher"].key
    fleet = fleet.connect(gateway.url, home=home, environ={"NEMO_KEY_FACT_CHECKER": f" {KEY}\n"})
    assert fleet["fact-checker"].key.reveal() == KEY
    (home / "keys.json").chmod(0o644)
    with pytest.raises(KeyStoreError):
        _ = fleet["researcher"].key


def test_the_environment_of_the_process_is_read_at_each_use(monkeypatch, tmp_path):
    fleet = Fleet("crew", roles=ROLES)
    monkeypatch.setenv("NEMO_HOME", str(tmp_path))
    monkeypatch.setenv("NEMO_GATEWAY_URL", "http://127.0.0.1:5/")
    monkeypatch.setenv("NEMO_KEY_RESEARCHER", KEY)
    assert fleet["researcher"].base_url == "http://127.0.0.1:5/v1"
    assert fleet["researcher"].key.reveal() == KEY
    monkeypatch.delenv("NEMO_GATEWAY_URL")
    assert fleet["researcher"].base_url == "http://127.0.0.1:4141/v1"


def test_an_unknown_role_is_named_with_those_there_are(fleet):
    with pytest.raises(DeclarationError, match="researcher"):
        _ = fleet["reseacher"]
    with fleet.run("r") as run, pytest.raises(DeclarationError, match="fact-checker"):
        run.step("s", role="checker")


def test_a_step_without_a_role_has_no_client(fleet):
    with fleet.run("r") as run, run.step("s") as step, pytest.raises(DeclarationError, match="has no role"):
        step.openai()


def test_where_a_fleet_is_connected_is_no_part_of_what_it_declares(fleet):
    plain = Fleet("crew", roles=ROLES)
    assert fleet == plain == FleetDeclaration("crew", roles=ROLES)
    assert hash(fleet) == hash(plain)
    assert fleet.gateway_url != plain.gateway_url
    with pytest.raises(AttributeError):
        fleet.name = "other"


def test_a_copy_of_a_fleet_keeps_its_gateway_and_takes_no_keys_along(fleet):
    packed = pickle.dumps(fleet)
    assert KEY.encode() not in packed
    for twin in (pickle.loads(packed), copy.deepcopy(fleet)):
        assert twin == fleet
        assert twin.gateway_url == fleet.gateway_url
        with pytest.raises(ProvisionError):
            _ = twin["researcher"].key


def test_a_fleet_is_read_from_either_kind_of_file(tmp_path):
    python = tmp_path / "fleet.py"
    python.write_text(
        "from nemo_agents import AgentRole, Fleet\n"
        'fleet = Fleet("crew", roles=[AgentRole("researcher", models=["gpt-4o-mini"], budget="$2/day")])\n'
    )
    toml = tmp_path / "fleet.toml"
    toml.write_text(
        '[fleet]\nname = "crew"\n[[roles]]\nname = "researcher"\nmodels = ["gpt-4o-mini"]\nbudget = "$2/day"\n'
    )
    assert Fleet.from_file(python) == Fleet.from_file(str(toml))
    assert isinstance(Fleet.from_file(toml), Fleet)
    assert Fleet.from_file(toml)["researcher"].role.models == ("gpt-4o-mini",)


@pytest.mark.parametrize(
    "caps",
    [
        {"budget": "$0"},
        {"budget": "a lot"},
        {"budget": "$1/day"},
        {"budget": 0.5},
        {"budget": -1},
        {"max_calls": 0},
        {"max_calls": True},
        {"max_calls": 1.5},
        {"max_calls": 10**9},
        {"run_id": "a b"},
        {"on_stop": "ignore"},
    ],
)
def test_caps_that_cannot_be_meant_are_refused_before_the_run(fleet, caps):
    with pytest.raises(DeclarationError, match=next(iter(caps))):
        fleet.run("r", **caps)


@pytest.mark.parametrize("budget", ["$0.50", "0.5", Decimal("0.5"), Money(500_000_000)])
def test_a_budget_may_be_written_in_several_ways(fleet, budget):
    assert fleet.run("r", budget=budget).headers()[h.RUN_BUDGET] == "0.5"


# --- the package ----------------------------------------------------------------------------------------------------
def test_importing_the_package_loads_nothing_heavy():
    heavy = ["httpx", "httpx2", "openai", "msgspec", "click", "rich", "asyncio", "nemo_agents.errors"]
    code = f"import sys, nemo_agents; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_declaring_a_fleet_loads_no_http_library():
    heavy = ["httpx", "httpx2", "openai"]
    code = f"import sys; from nemo_agents import Fleet; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_without_the_openai_package_a_client_says_what_to_install():
    code = (
        "import sys; sys.modules['openai'] = None\n"
        "from nemo_agents import AgentRole, Fleet\n"
        "fleet = Fleet('crew', roles=[AgentRole('a', models=['m'])]).connect(environ={'NEMO_KEY_A': 'sk-x'})\n"
        "fleet['a'].openai()\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert out.returncode == 1
    assert "pip install 'nemo-agents[openai]'" in out.stderr


def test_the_public_names_are_sorted_and_all_there():
    assert nemo_agents.__all__ == sorted(nemo_agents.__all__)
    for name in nemo_agents.__all__:
        assert getattr(nemo_agents, name) is not None
    assert set(nemo_agents.__all__) <= set(dir(nemo_agents))
    with pytest.raises(AttributeError, match="no attribute 'Proxy'"):
        _ = nemo_agents.Proxy


def test_every_error_that_can_be_caught_is_public():
    from nemo_agents import errors

    for name in errors.__all__:
        if name not in ("ExitCode", "error_from_response"):
            assert getattr(nemo_agents, name) is getattr(errors, name)
