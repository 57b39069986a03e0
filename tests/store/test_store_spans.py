"""Spans in either store: found by run or trace, in any order, once each, and never in another fleet's run."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from store_values import T0, Clock, a_call, an_attempt, attempt_end, call_end, refusal, role_scope, rows

from nemo_agents.admin import wire
from nemo_agents.gateway.stores import migrate, reader_spans, writer_spans
from nemo_agents.gateway.stores.base import RootSpan, SpanBatch, SpanRecord
from nemo_agents.gateway.stores.sql import LOST_AFTER_US, SqlStore
from nemo_agents.gateway.stores.sqlite import SqliteStore
from nemo_agents.gateway.stores.traces import trace_key
from nemo_agents.trace.propagate import trace_id_of

TRACE = "ab" * 16
ROOT = RootSpan(name="the pipeline", state="ok", started_us=T0, ended_us=T0 + 90)


def a_span(span_id: str = "a", parent_id: str | None = None, **given: Any) -> SpanRecord:
    values: dict[str, Any] = {
        "kind": "tool",
        "name": f"span {span_id}",
        "step": None,
        "role": None,
        "state": "ok",
        "started_us": T0,
        "ended_us": T0 + 10,
    }
    return SpanRecord(span_id=span_id, parent_id=parent_id, **(values | given))


def a_batch(*spans: SpanRecord, **given: Any) -> SpanBatch:
    trace = given.get("trace_id", TRACE)
    ids = {"run_id": None, "trace_id": trace, "trace_run_id": trace}
    values: dict[str, Any] = {"fleet": "crew", "role": "writer", **ids}
    return SpanBatch(spans=spans or (a_span(),), **(values | given))


async def detail(store: SqlStore, run_id: str, fleet: str | None = None) -> wire.RunDetail:
    found = await store.run(run_id, fleet=fleet)
    assert found is not None
    return found


async def make_call(store: SqlStore, **given: Any) -> str:
    call, attempt = a_call(**given), an_attempt(10, role_scope())
    await store.open_call(call, attempt)
    store.close_call(call_end(call), attempt_end(attempt, amount=7))
    return call.request_id


# --- which run ------------------------------------------------------------------------------------------------------
async def test_spans_that_name_their_run_are_in_it(store: SqlStore) -> None:
    await make_call(store, run_id="my-run")
    assert await store.log_spans(a_batch(run_id="my-run")) == 0
    found = await detail(store, "my-run")
    assert ([s.name for s in found.spans], found.run.calls, found.run.state) == (["span a"], 1, "ok")


async def test_spans_of_a_trace_are_in_the_run_whose_calls_name_it(store: SqlStore) -> None:
    await make_call(store, run_id="my-run", trace_id=TRACE, parent_span="b")
    await store.log_spans(a_batch(a_span("b")))
    found = await detail(store, "my-run")
    assert ([s.span_id for s in found.spans], found.calls[0].parent_span) == (["b"], "b")


@pytest.mark.parametrize("run_id", ["my-run", "cd" * 16])
async def test_spans_of_a_trace_are_in_the_run_that_the_sdk_derives_it_from(store: SqlStore, run_id: str) -> None:
    await store.report_run("crew", run_id, wire.RunReport(name="reported", started_us=T0))
    await store.log_spans(a_batch(trace_id=trace_id_of(run_id), root=ROOT))
    found = await detail(store, run_id)
    assert (len(found.spans), found.run.name, found.run.state) == (1, "reported", "running")


async def test_a_run_of_that_name_whose_calls_name_another_trace_takes_the_spans(store: SqlStore) -> None:
    await make_call(store, run_id=TRACE, trace_id="cd" * 16)
    assert await store.log_spans(a_batch()) == 0
    assert len((await detail(store, TRACE)).spans) == 1


async def test_a_trace_without_a_run_becomes_one(store: SqlStore) -> None:
    await store.log_spans(a_batch(a_span("b", "a", started_us=T0 + 5)))
    running = await detail(store, TRACE)
    assert (running.run.name, running.run.state, running.run.ended_us) == (TRACE, "running", None)
    await store.log_spans(a_batch(a_span("a", kind="chain"), root=ROOT))
    ended = await detail(store, TRACE)
    assert (ended.run.name, ended.run.state) == ("the pipeline", "ok")
    assert (ended.run.started_us, ended.run.ended_us, ended.run.roles) == (T0, T0 + 90, ["writer"])
    assert [s.span_id for s in ended.spans] == ["a", "b"]
    failed = RootSpan(name="again", state="failed", started_us=T0, ended_us=T0 + 99, error="it broke")
    await store.log_spans(a_batch(root=failed))
    assert ((await detail(store, TRACE)).run.state, (await detail(store, TRACE)).run.error) == ("failed", "it broke")
    await store.log_spans(a_batch(root=ROOT))  # it ended before that one
    assert (await detail(store, TRACE)).run.name == "the pipeline"
    assert (await detail(store, TRACE)).run.state == "failed"


async def test_calls_without_an_sdk_and_the_root_of_their_trace_make_one_run(store: SqlStore) -> None:
    await make_call(store, run_id=TRACE, trace_id=TRACE)
    await store.log_spans(a_batch(a_span("b")))
    assert (await detail(store, TRACE)).run.state == "ok"  # as its calls say
    await store.log_spans(a_batch(root=RootSpan(name="job", state="failed", started_us=T0, ended_us=T0 + 9, error="x")))
    run = (await detail(store, TRACE)).run
    assert (run.name, run.state, run.error, run.calls, run.cost_nanos) == ("job", "failed", "x", 1, 7)


async def test_a_trace_that_a_limit_ended_is_stopped(store: SqlStore) -> None:
    call = a_call(run_id=TRACE, trace_id=TRACE)
    store.log_refusal(call, refusal(call))
    await store.flush()
    root = RootSpan(name="job", state="failed", started_us=T0, ended_us=T0 + 9, error="402")
    await store.log_spans(a_batch(root=root))
    run = (await detail(store, TRACE)).run
    assert (run.state, run.stopped_by and run.stopped_by.kind) == ("stopped", "budget")


async def test_what_the_sdk_reports_goes_over_what_a_trace_says(store: SqlStore) -> None:
    await store.log_spans(a_batch(run_id="my-run", root=ROOT))
    report = wire.RunReport(name="reported", state="failed", started_us=T0, ended_us=T0 + 5, error="mine")
    await store.report_run("crew", "my-run", report)
    await store.log_spans(a_batch(run_id="my-run", root=ROOT))
    run = (await detail(store, "my-run")).run
    assert (run.name, run.state, run.error, run.ended_us) == ("reported", "failed", "mine", T0 + 5)


async def test_a_trace_whose_root_never_comes_is_lost_and_comes_back(store: SqlStore, clock: Clock) -> None:
    await store.log_spans(a_batch())
    clock.now_us += LOST_AFTER_US + 1_000
    await store.sweep(clock.now_us)
    assert (await detail(store, TRACE)).run.state == "lost"
    await store.log_spans(a_batch(a_span("b")))
    assert (await detail(store, TRACE)).run.state == "running"


@pytest.mark.parametrize("named", [True, False])
async def test_nobody_writes_into_a_run_of_another_fleet(store: SqlStore, named: bool) -> None:
    await make_call(store, run_id=TRACE, trace_id=TRACE)
    await store.log_spans(a_batch(fleet="other", run_id=TRACE if named else None, root=ROOT))
    assert (await detail(store, TRACE, "crew")).spans == []
    assert (await detail(store, TRACE, "crew")).run.name == TRACE
    assert len((await detail(store, TRACE, "other")).spans) == 1


async def test_keys_without_a_fleet_have_traces_of_their_own(store: SqlStore) -> None:
    await make_call(store, run_id=f"g1.{TRACE}", trace_id=TRACE, fleet=None)
    for grant in ("g1", "g2"):
        own = f"{grant}.{TRACE}"
        await store.log_spans(a_batch(a_span(grant), fleet="", trace_id=own, trace_run_id=own))
    assert [s.span_id for s in (await detail(store, f"g1.{TRACE}")).spans] == ["g1"]
    assert [s.span_id for s in (await detail(store, f"g2.{TRACE}")).spans] == ["g2"]


def test_a_trace_is_kept_under_its_id_unless_the_run_is_a_grants_alone() -> None:
    assert trace_key("crew", "my-run") == trace_id_of("my-run")
    assert trace_key("crew", "a.b", TRACE) == TRACE
    assert trace_key("", "g1.my-run") == f"g1.{trace_id_of('my-run')}"
    assert trace_key("", "g1.my.run", TRACE) == f"g1.{TRACE}"


# --- spans ----------------------------------------------------------------------------------------------------------
async def test_a_span_is_kept_as_it_was_told(store: SqlStore) -> None:
    span = a_span(
        "b",
        "gone",
        kind="agent",
        step="research",
        role="critic",
        state="failed",
        error="it broke",
        request_id="req_x",
        model="m",
        input_tokens=3,
        output_tokens=4,
        attributes={"n": 1, "x": 0.5, "yes": True, "text": "ä"},
        input=b'"in"',
        output=b'"out"',
    )
    await store.log_spans(a_batch(span))
    (row,) = (await detail(store, TRACE)).spans
    told = {name: getattr(span, name) for name in span.__struct_fields__}
    assert {name: getattr(row, name) for name in told} == told | {"input": "in", "output": "out"}
    assert sorted((await detail(store, TRACE)).run.roles) == ["critic", "writer"]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
async def test_of_a_span_that_comes_twice_the_later_end_stays(store: SqlStore, order: tuple[int, ...]) -> None:
    told = [
        a_span("b", state="running", ended_us=None),
        a_span("b", ended_us=T0 + 10, name="early"),
        a_span("b", ended_us=T0 + 20, name="late"),
    ]
    for number in order:
        await store.log_spans(a_batch(told[number]))
    await store.log_spans(a_batch(a_span("c", name="first"), a_span("c", name="second")))
    assert [s.name for s in (await detail(store, TRACE)).spans] == ["late", "second"]


async def test_texts_are_kept_once(store: SqlStore) -> None:
    spans = [a_span(str(n), input=b'"the same"', output=b'"the same"') for n in range(20)]
    await store.log_spans(a_batch(*spans))
    await store.log_spans(a_batch(*spans, run_id="another"))
    assert await rows(store, "SELECT count(*) FROM messages") == [(1,)]


async def test_a_run_of_many_spans_is_read_without_their_texts(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_spans, "WITH_CONTENTS_MAX", 3)
    spans = [a_span(str(n), input=f'"in {n}"'.encode()) for n in range(3)]
    await store.log_spans(a_batch(*spans))
    assert [s.input for s in (await detail(store, TRACE)).spans] == ["in 0", "in 1", "in 2"]
    await store.log_spans(a_batch(a_span("3")))
    assert [s.input for s in (await detail(store, TRACE)).spans] == [None] * 4
    contents = await store.span_contents("crew", TRACE, ["1", "3", "nowhere"])
    assert contents == {"1": ("in 1", None), "3": (None, None)}
    assert await store.span_contents("other", TRACE, ["1"]) == {}


async def test_a_run_keeps_so_many_spans_and_turns_the_others_away(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_spans, "SPANS_PER_RUN", 5)
    for first in (0, 3):
        batch = a_batch(*[a_span(str(n)) for n in range(first, first + 3)])
        assert await store.log_spans(batch) == (1 if first else 0)
    assert len((await detail(store, TRACE)).spans) == 5


async def test_a_content_that_is_too_big_is_left_out_and_the_spans_stay(store: SqlStore) -> None:
    big = a_span(input=b'"' + b"x" * (17 << 20) + b'"')
    await store.log_spans(a_batch(big))
    (span,) = (await detail(store, TRACE)).spans
    assert (span.name, span.input) == ("span a", None)


# --- an older file --------------------------------------------------------------------------------------------------
async def test_runs_of_before_are_found_by_their_trace(tmp_path: Path) -> None:
    from alembic import command

    path = tmp_path / "nemo.db"
    engine = migrate.engine_for(path)
    with engine.begin() as connection:
        command.upgrade(migrate.alembic_config(connection), "0003")
    engine.dispose()
    insert = (
        "INSERT INTO runs(run, run_id, fleet, grouped, name, state, started_us, last_us, roles, models)"
        " VALUES (?, ?, ?, ?, 'old', 'ok', 1, 1, '[]', '[]')"
    )
    with closing(sqlite3.connect(path)) as db:
        db.executemany(
            insert,
            [(1, "my-run", "crew", 1), (2, TRACE, "crew", 1), (3, "g1.my-run", "", 1), (4, "req_1", "crew", 0)],
        )
        db.commit()
    assert migrate.bring_up_to_date(path)
    store = SqliteStore(path, clock=Clock())
    await store.start()
    found = await rows(store, "SELECT trace_id FROM runs ORDER BY run")
    assert found == [(trace_id_of("my-run"),), (TRACE,), (f"g1.{trace_id_of('my-run')}",), (None,)]
    await store.log_spans(a_batch(trace_id=trace_id_of("my-run")))
    assert len((await detail(store, "my-run", "crew")).spans) == 1
    await store.close()
