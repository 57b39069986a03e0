"""Alerts of a running gateway: told once whatever happens, streamed, and delivered to webhooks that misbehave."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from gateway_bench import Bench
from msgspec import structs
from structlog.testing import CapturingLogger
from webhook_receiver import webhook_receiver

from nemo_agents.admin.wire import EventRow
from nemo_agents.errors import SettingsError
from nemo_agents.gateway.admin import events as events_api
from nemo_agents.gateway.alerts import Alerts
from nemo_agents.gateway.alerts import watch as watch_module
from nemo_agents.gateway.alerts.destinations import Destination
from nemo_agents.gateway.alerts.outlet import History, Outlet
from nemo_agents.gateway.alerts.signing import read_secrets
from nemo_agents.gateway.alerts.spikes import Spikes
from nemo_agents.gateway.alerts.watch import Watch
from nemo_agents.gateway.alerts.webhooks import GIVE_UP_US, Webhooks, make_client, retry_after_us
from nemo_agents.gateway.server import build, serve
from nemo_agents.gateway.settings import Settings
from nemo_agents.gateway.state import Gateway, Settled
from nemo_agents.gateway.stores.base import AttemptEnd, AttemptStart, CallEnd, CallStart, StoreUnavailable
from nemo_agents.gateway.stores.sqlite import SqliteStore
from nemo_agents.policy.alerts import EVENT_KINDS, HOUR_US, EventDraft, SpikeRule
from nemo_agents.policy.budgets import BudgetRule
from nemo_agents.policy.keys import Grant
from nemo_agents.policy.ledger import Held, RunCaps, Settlement
from nemo_agents.testing import running_gateway

SECRET = "whsec_" + base64.b64encode(b"s" * 32).decode()
DOLLAR = 1_000_000_000
CALL_NANOS = 31_000  # what one call of `Bench.chat` costs


def events_of(bench: Bench, fleet: str | None = None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = bench.ok("GET", "/nemo/events", fleet=fleet or bench.fleet)["events"]
    return found


def told(events: list[dict[str, Any]]) -> list[tuple[str, float]]:
    return sorted((event["kind"], event["facts"].get("threshold")) for event in events)


# --- budgets, over HTTP -------------------------------------------------------------------------------------------
def test_callers_at_once_pass_every_threshold_and_each_is_told_once(bench: Bench):
    key = bench.key(
        max_budget=CALL_NANOS * 10 / DOLLAR,
        budget_duration="1d",
        metadata={"nemo": {"role": "writer", "alert_at": 0.5}},
    )
    answers = [bench.later(bench.chat, key, max_tokens=12) for _ in range(40)]
    statuses = {answer.result().status_code for answer in answers}
    assert statuses == {200, 402}
    while bench.chat(key, max_tokens=12).status_code == 200:
        pass
    bench.until(lambda: len(events_of(bench)) >= 2)
    bench.until(lambda: not bench.gateway.running.gateway.in_flight)
    events = events_of(bench)
    assert told(events) == [("budget.alert", 0.5), ("budget.exhausted", 1.0)]
    assert {(event["fleet"], event["role"]) for event in events} == {(bench.fleet, "writer")}
    spent = bench.ok("GET", "/nemo/status", fleet=bench.fleet)[0]["spent_nanos"]
    for event in events:
        assert event["facts"]["spent_nanos"] <= spent
        assert event["event_id"].startswith("evt_")


def test_a_run_s_budget_is_told_as_the_run_s(bench: Bench):
    key = bench.key(metadata={"nemo": {"role": "writer"}})
    run = {"x-nemo-run-id": "a-dear-run", "x-nemo-run-budget": f"{CALL_NANOS * 6 / DOLLAR:.9f}"}
    while bench.chat(key, headers=run, max_tokens=12).status_code == 200:
        pass
    bench.until(lambda: len(events_of(bench)) >= 1)
    event = events_of(bench)[-1]
    assert (event["kind"], event["facts"]["scope"], event["facts"]["name"]) == (
        "budget.exhausted",
        "run",
        "a-dear-run",
    )


def test_a_key_sees_the_events_of_its_own_fleet_and_pages_follow_each_other(bench: Bench):
    mine, other = bench.key(), bench.key(fleet=f"{bench.fleet}-other")
    emit = bench.gateway.running.gateway.emit
    assert emit is not None
    for number in range(5):
        for fleet in (mine.fleet, other.fleet):
            emit(EventDraft(kind="budget.alert", once=f"{fleet} {number}", message=f"{number}", fleet=fleet))
    bench.until(lambda: len(events_of(bench)) == len(events_of(bench, other.fleet)) == 5)

    def page(**params: Any) -> dict[str, Any]:
        answer = bench.http.get("/nemo/events", params=params, headers=mine.headers)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    assert [event["message"] for event in page()["events"]] == ["0", "1", "2", "3", "4"]
    assert [event["message"] for event in page(limit=2)["events"]] == ["3", "4"]
    assert {event["fleet"] for event in page(fleet=other.fleet)["events"]} == {mine.fleet}
    seen, after = [], 0
    while found := page(after=after, limit=2)["events"]:
        seen += [event["message"] for event in found]
        after = page(after=after, limit=2)["next"]
    assert seen == ["0", "1", "2", "3", "4"]
    assert page(after=after) == {"events": [], "next": after}
    for bad in ({"after": "-1"}, {"after": "x"}, {"limit": "1e3"}):
        assert bench.http.get("/nemo/events", params=bad, headers=mine.headers).status_code == 400
    assert bench.http.get("/nemo/events").status_code == 401


# --- the stream ---------------------------------------------------------------------------------------------------
@asynccontextmanager
async def a_gateway(home: Path, environ: dict[str, str] | None = None, **settings: Any) -> AsyncIterator[Any]:
    """Serve a gateway in this very loop, so that a test can look inside."""
    values: dict[str, Any] = {"port": 0, "sandbox": "on", "log_level": "critical", **settings}
    async with serve(Settings(home=home, **values), environ or {}) as running:
        headers = {"authorization": f"Bearer {running.secrets.admin_key.reveal()}"}
        async with httpx.AsyncClient(base_url=running.url, headers=headers, trust_env=False, timeout=20) as http:
            running.gateway.emit(EventDraft(kind="budget.alert", once="first", message="first", fleet="crew"))
            yield running.gateway, http


@asynccontextmanager
async def stream(http: httpx.AsyncClient, **headers: str) -> AsyncIterator[AsyncIterator[dict[str, str]]]:
    """Open the stream of events and read it as frames; a comment is a frame of its own."""
    async with http.stream("GET", "/nemo/events", headers={"accept": "text/event-stream", **headers}) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")

        async def frames() -> AsyncIterator[dict[str, str]]:
            frame: dict[str, str] = {}
            async for line in answer.aiter_lines():
                if not line:
                    yield frame
                    frame = {}
                else:
                    name, _, value = line.partition(":")
                    frame[name] = value.strip()

        yield frames()


async def until_stored(gateway: Gateway, number: int) -> list[EventRow]:
    while len(found := list(await gateway.store.events(after=0, limit=500))) < number:
        pass
    return found


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that looks often and has its heart beat at every look."""
    monkeypatch.setattr(events_api, "POLL_S", 0.02)
    monkeypatch.setattr(events_api, "_HEARTBEAT_POLLS", 2)


async def test_the_stream_resumes_where_it_was_left_and_its_heart_beats(tmp_path: Path, quick: None):
    async with a_gateway(tmp_path / "home") as (gateway, http):
        await until_stored(gateway, 1)
        async with stream(http) as frames:  # from now on
            assert await anext(frames) == {"retry": "2000"}
            assert await anext(frames) == {"": "nothing new"}
            gateway.emit(EventDraft(kind="spend.spike", once="second", message="two\nlines", fleet="crew"))
            frame = await anext(frames)
            while "" in frame:
                frame = await anext(frames)
        assert (frame["id"], frame["event"]) == ("2", "spend.spike")
        assert json.loads(frame["data"])["message"] == "two\nlines"
        gateway.emit(EventDraft(kind="budget.overrun", once="third", message="missed meanwhile", fleet="crew"))
        await until_stored(gateway, 3)
        async with stream(http, **{"last-event-id": "1"}) as frames:
            ids = [(await anext(frames)).get("id") for _ in range(3)]
            assert ids == [None, "2", "3"]
        while gateway.event_streams.total():  # who left is noticed
            await http.get("/health/live")


async def test_a_stream_ends_with_its_key_and_shows_its_fleet_alone(tmp_path: Path, quick: None):
    async with a_gateway(tmp_path / "home") as (gateway, http):
        issued = (await http.post("/key/generate", json={"key_alias": "k", "team_id": "crew"})).json()
        key = {"authorization": f"Bearer {issued['key']}", "last-event-id": "0"}
        gateway.emit(EventDraft(kind="budget.alert", once="foreign", message="foreign", fleet="other"))
        await until_stored(gateway, 2)
        async with stream(http, **key) as frames:
            assert await anext(frames) == {"retry": "2000"}
            assert (await anext(frames))["id"] == "1"
            await http.post("/key/delete", json={"keys": [issued["token"]]})
            rest = [frame async for frame in frames]
        assert all("id" not in frame for frame in rest)


async def test_a_stream_ends_when_the_gateway_stops_and_does_not_keep_it(tmp_path: Path):
    reading = asyncio.Event()

    async def read(base: httpx.AsyncClient) -> int:
        own = httpx.AsyncClient(base_url=base.base_url, headers=base.headers, trust_env=False, timeout=20)
        async with own, stream(own) as frames:
            await anext(frames)
            reading.set()
            return len([frame async for frame in frames])

    async with a_gateway(tmp_path / "home") as (_, http):
        reader = asyncio.create_task(read(http))
        await reading.wait()
        before = asyncio.get_running_loop().time()
    assert await reader <= 1  # it was ended, not cut, with at most what was told meanwhile
    assert asyncio.get_running_loop().time() - before < 5


async def test_there_is_an_end_to_how_many_streams_a_fleet_may_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(events_api, "_STREAMS_PER_FLEET_MAX", 1)
    async with a_gateway(tmp_path / "home") as (_, http):
        issued = (await http.post("/key/generate", json={"key_alias": "k", "team_id": "crew"})).json()
        key = {"authorization": f"Bearer {issued['key']}", "accept": "text/event-stream"}
        async with stream(http, **key) as frames:
            await anext(frames)
            assert (await http.get("/nemo/events", headers=key)).status_code == 429


async def test_streams_that_are_opened_at_once_are_counted_as_those_that_come_one_by_one(tmp_path: Path):
    async with a_gateway(tmp_path / "home") as (gateway, http):
        issued = (await http.post("/key/generate", json={"key_alias": "k", "team_id": "crew"})).json()
        key = {"authorization": f"Bearer {issued['key']}", "accept": "text/event-stream"}

        async with AsyncExitStack() as opened:
            many = httpx.AsyncClient(base_url=http.base_url, trust_env=False, timeout=20, limits=httpx.Limits())
            await opened.enter_async_context(many)
            asked = [many.build_request("GET", "/nemo/events", headers=key) for _ in range(60)]
            answers = await asyncio.gather(*(many.send(each, stream=True) for each in asked))
            for answer in answers:
                opened.push_async_callback(answer.aclose)
            assert Counter(answer.status_code for answer in answers) == {200: 20, 429: 40}
            assert gateway.event_streams == {"crew": 20}


async def test_what_an_admin_looks_at_uses_up_nobody_s_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(events_api, "_STREAMS_PER_FLEET_MAX", 1)
    async with a_gateway(tmp_path / "home") as (_, http):
        issued = (await http.post("/key/generate", json={"key_alias": "k", "team_id": "crew"})).json()
        sse = {"accept": "text/event-stream"}
        async with (
            http.stream("GET", "/nemo/events?fleet=crew", headers=sse) as of_admin,
            stream(http, authorization=f"Bearer {issued['key']}") as own,
        ):
            assert of_admin.status_code == 200
            assert await anext(own) == {"retry": "2000"}


async def test_a_client_that_reads_nothing_loses_its_stream(tmp_path: Path, quick: None):
    async with a_gateway(tmp_path / "home", client_timeout_s=0.2) as (gateway, http):
        for number in range(100):
            gateway.emit(EventDraft(kind="budget.alert", once=f"{number}", message="x" * 100_000, fleet="crew"))
        await until_stored(gateway, 101)
        deaf = socket.socket()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with closing(deaf):
            deaf.connect((http.base_url.host, http.base_url.port))
            lines = ("GET /nemo/events?after=0 HTTP/1.1", f"host: {http.base_url.host}", "accept: text/event-stream")
            lines += (f"authorization: {http.headers['authorization']}",)
            deaf.sendall("\r\n".join([*lines, "", ""]).encode())
            async with asyncio.timeout(10):
                while not gateway.event_streams.total():
                    await http.get("/health/live")
                while gateway.event_streams.total():
                    await http.get("/health/live")


# --- told once, whatever happens ----------------------------------------------------------------------------------
def ask_until_refused(gateway: Any, key: str) -> None:
    asked = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 10}
    headers = {"authorization": f"Bearer {key}"}
    with httpx.Client(base_url=gateway.url, headers=headers, trust_env=False, timeout=20) as http:
        while http.post("/v1/chat/completions", json=asked).status_code == 200:
            pass


def a_key(gateway: Any, **more: Any) -> str:
    headers = {"authorization": f"Bearer {gateway.admin_key.reveal()}"}
    asked = {"key_alias": "w", "team_id": "crew", "max_budget": 0.0001, "budget_duration": "1d", **more}
    answer = httpx.post(f"{gateway.url}/key/generate", json=asked, headers=headers, trust_env=False)
    key: str = answer.json()["key"]
    return key


def kept_events(home: Path) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(home / "gateway.db")) as db:
        return db.execute("SELECT kind, message FROM events ORDER BY seq").fetchall()


def test_what_a_killed_gateway_left_untold_is_told_after_the_start_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    home = tmp_path / "home"
    with monkeypatch.context() as killed:

        async def dies(_: Watch) -> None:
            raise StoreUnavailable("killed before it looked")

        killed.setattr(Watch, "look", dies)
        with running_gateway(home, settings={"log_level": "critical"}) as gateway:
            ask_until_refused(gateway, a_key(gateway, metadata={"nemo": {"role": "w", "alert_at": 0.5}}))
        assert kept_events(home) == []
    for _ in range(2):
        with running_gateway(home, settings={"log_level": "critical"}):
            pass  # it looks a last time when it stops
        assert [kind for kind, _ in kept_events(home)] == ["budget.alert"]


# --- the watch, the look-out and the deliveries by themselves -----------------------------------------------------
NOW_US = 1_795_500_000_000_000  # 2026-11-24T06:00:00Z


class Hands:
    """A clock that a test sets."""

    def __init__(self, now_us: int) -> None:
        self.at_us = now_us

    def now_us(self) -> int:
        return self.at_us


@asynccontextmanager
async def built(home: Path, **settings: Any) -> AsyncIterator[Gateway]:
    """A gateway with a clock of its own that nobody serves."""
    gateway = build(Settings(home=home, port=0, log_level="critical", **settings), {})
    clock = Hands(NOW_US)
    gateway.clock = clock
    gateway.store = SqliteStore(home / "gateway.db", clock=clock.now_us)
    await gateway.store.start()
    try:
        yield gateway
    finally:
        await gateway.store.close()


def a_grant(number: int = 1, **more: Any) -> Grant:
    rule = BudgetRule(amount_nanos=10 * DOLLAR, duration="1d", alert_at=(0.5, 0.8))
    values: dict[str, Any] = {"fleet": "crew", "role": f"role-{number}", "budgets": (rule,)}
    return Grant(grant_id=f"g_{number}", alias=f"crew/role-{number}", **{**values, **more})


async def spend(gateway: Gateway, grant: Grant, nanos: int, *, at_us: int | None = None) -> Settled:
    """Make a call in the store that costs so much, and return what the data plane would tell of it."""
    at_us = gateway.clock.now_us() if at_us is None else at_us
    scopes = gateway.budget_scopes(grant, run_id=None, caps=RunCaps(), now_us=at_us)
    request_id = gateway.ids.request_id()
    call = CallStart(
        request_id=request_id,
        started_us=at_us,
        fleet=grant.fleet,
        role=grant.role,
        key_alias=grant.alias,
        key_id=None,
        grant_id=grant.grant_id,
        run_id=request_id,
        grouped=False,
    )
    start = AttemptStart(
        hold_id=f"{request_id}.1",
        n=1,
        model="m",
        provider="p",
        reason="first",
        started_us=at_us,
        hold_nanos=0,
        scopes=scopes,
        price_version=None,
        expires_us=at_us + HOUR_US,
    )
    held = await gateway.store.open_call(call, start)
    assert isinstance(held, Held)
    settlement = Settlement(kind="post", amount_nanos=nanos)
    ended = AttemptEnd(
        hold_id=start.hold_id,
        n=1,
        ended_us=at_us,
        status=200,
        error=None,
        settlement=settlement,
        usage_source="provider",
    )
    gateway.store.close_call(
        CallEnd(request_id=request_id, ended_us=at_us, state="ok", status=200, cost_nanos=nanos), ended
    )
    return Settled(request_id=request_id, grant=grant, held_nanos=nanos, posted_nanos=nanos, balances=held.balances)


async def have(gateway: Gateway, *grants: Grant) -> None:
    for grant in grants:
        await gateway.put_grant(grant)


async def told_by(gateway: Gateway) -> list[tuple[str, Any, Any]]:
    events = await gateway.store.events(after=0, limit=500)
    return [(event.kind, event.role, event.facts.get("threshold")) for event in events]


async def test_of_gateways_that_look_at_once_one_tells(tmp_path: Path):
    async with built(tmp_path) as gateway:
        grant = a_grant()
        await have(gateway, grant)
        watches = [Alerts(gateway, []).watch for _ in range(8)]
        settled = await spend(gateway, grant, 9 * DOLLAR)
        for watch in watches:
            watch.settled(settled)
        await asyncio.gather(*(watch.look() for watch in watches))
        assert await told_by(gateway) == [("budget.alert", "role-1", 0.5), ("budget.alert", "role-1", 0.8)]


async def test_a_look_that_fails_forgets_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async with built(tmp_path) as gateway:
        grant = a_grant()
        await have(gateway, grant)
        watch = Alerts(gateway, []).watch
        await watch.look()
        watch.settled(await spend(gateway, grant, 6 * DOLLAR))
        put_event = SqliteStore.put_event

        async def down(*_: Any, **__: Any) -> None:
            raise StoreUnavailable("down")

        for method in ("balances", "put_event", "flush"):
            with monkeypatch.context() as outage:
                outage.setattr(SqliteStore, method, down)
                with pytest.raises(StoreUnavailable):
                    await watch.look()
        assert SqliteStore.put_event is put_event
        assert await told_by(gateway) == []
        await watch.look()
        assert await told_by(gateway) == [("budget.alert", "role-1", 0.5)]


async def test_spend_at_the_end_of_a_period_is_told_although_the_next_has_begun(tmp_path: Path):
    async with built(tmp_path) as gateway:
        grant = a_grant()
        await have(gateway, grant)
        watch = Alerts(gateway, []).watch
        await watch.look()
        watch.settled(await spend(gateway, grant, 6 * DOLLAR))
        gateway.clock.at_us += 24 * HOUR_US  # type: ignore[attr-defined]
        watch.settled(await spend(gateway, grant, 5 * DOLLAR))
        await watch.look()
        events = await gateway.store.events(after=0, limit=10)
        periods = sorted(event.facts["period"] for event in events)
        assert periods == ["2026-11-24", "2026-11-25"]


async def test_a_lower_budget_in_shadow_mode_beside_the_one_that_refuses_is_told_too(tmp_path: Path):
    async with built(tmp_path) as gateway:
        trial = BudgetRule(amount_nanos=4 * DOLLAR, duration="1d", mode="shadow")
        grant = a_grant(budgets=(*a_grant().budgets, trial))
        await have(gateway, grant)
        watch = Alerts(gateway, []).watch
        await watch.look()
        watch.settled(await spend(gateway, grant, 5 * DOLLAR))
        await watch.look()
        events = await gateway.store.events(after=0, limit=10)
        assert [(event.kind, event.facts["mode"]) for event in events] == [
            ("budget.alert", "enforce"),
            ("budget.exhausted", "shadow"),
        ]


async def test_a_raised_budget_is_told_of_when_spend_reaches_its_own_threshold_also_after_a_restart(tmp_path: Path):
    async with built(tmp_path) as gateway:
        grant = a_grant()
        await have(gateway, grant)
        watch = Alerts(gateway, []).watch
        watch.settled(await spend(gateway, grant, 9 * DOLLAR))
        await watch.look()
        raised = a_grant(budgets=(replace(grant.budgets[0], amount_nanos=11 * DOLLAR),))
        await have(gateway, raised)
        await Alerts(gateway, []).watch.look()  # one that has just started, and has only the events to go by
        assert len(await told_by(gateway)) == 2
        double = a_grant(budgets=(replace(grant.budgets[0], amount_nanos=20 * DOLLAR),))
        await have(gateway, double)
        again = Alerts(gateway, []).watch
        again.settled(await spend(gateway, double, 7 * DOLLAR))
        await again.look()
        assert [(kind, threshold) for kind, _, threshold in await told_by(gateway)] == [
            ("budget.alert", 0.5),
            ("budget.alert", 0.8),
            ("budget.alert", 0.5),
            ("budget.alert", 0.8),
        ]


async def test_more_touched_budgets_than_are_remembered_are_all_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(watch_module, "_TOUCHED_MAX", 4)
    async with built(tmp_path) as gateway:
        grants = [a_grant(number, fleet=None) for number in range(20)]
        await have(gateway, *grants)
        watch = Alerts(gateway, []).watch
        await watch.look()
        for grant in grants:
            watch.settled(await spend(gateway, grant, 6 * DOLLAR))
            assert len(watch._touched) <= 4
        await watch.look()
        assert sorted(role for _, role, _ in await told_by(gateway)) == sorted(grant.role or "" for grant in grants)


async def test_a_call_that_cost_more_than_its_hold_is_told(tmp_path: Path):
    async with built(tmp_path) as gateway:
        grant = a_grant()
        await have(gateway, grant)
        watch = Alerts(gateway, []).watch
        settled = structs.replace(await spend(gateway, grant, DOLLAR), held_nanos=DOLLAR // 2)
        for _ in range(2):
            watch.settled(settled)
        await watch.look()
        (event,) = await gateway.store.events(after=0, limit=10)
        assert (event.kind, event.facts["held_nanos"], event.facts["posted_nanos"]) == (
            "budget.overrun",
            DOLLAR // 2,
            DOLLAR,
        )
        assert "cost $1, more than the $0.50" in event.message


# --- spikes -------------------------------------------------------------------------------------------------------
def a_look_out(gateway: Gateway) -> Spikes:
    """A look-out as one that has just started: all it knows is in the store."""
    alerts = Alerts(gateway, [], spike_rule=SpikeRule(least_hours=3))
    return alerts.spikes


async def test_a_spike_is_seen_told_once_an_hour_and_over_by_itself(tmp_path: Path):
    async with built(tmp_path) as gateway:
        clock = gateway.clock
        assert isinstance(clock, Hands)
        steady, wild = a_grant(1, budgets=()), a_grant(2, budgets=())
        await have(gateway, steady, wild)
        for hour in range(3, 9):
            for grant in (steady, wild):
                await spend(gateway, grant, 3 * DOLLAR, at_us=NOW_US - hour * HOUR_US)
        clock.at_us = NOW_US + HOUR_US // 4
        await spend(gateway, steady, 3 * DOLLAR, at_us=NOW_US)
        await spend(gateway, wild, 6 * DOLLAR, at_us=NOW_US - HOUR_US // 2)  # in the hour before, and in the last
        await spend(gateway, wild, 6_600_000_000, at_us=NOW_US)
        looking = a_look_out(gateway)
        await looking.look()
        assert set(gateway.spikes) == {"g_2"}
        found = gateway.spikes["g_2"]
        assert (found.hour_nanos, found.usual_nanos, found.factor) == (12_600_000_000, 3 * DOLLAR, 4.2)
        for one in (looking, a_look_out(gateway), a_look_out(gateway)):  # also after a restart
            await one.look()
        events = await gateway.store.events(after=0, limit=10)
        assert [(event.kind, event.role, event.facts["level"]) for event in events] == [("spend.spike", "role-2", 1)]
        await spend(gateway, wild, 20 * DOLLAR, at_us=NOW_US)
        await looking.look()
        assert [event.facts["level"] for event in await gateway.store.events(after=0, limit=10)] == [1, 2]
        clock.at_us += 2 * HOUR_US
        await looking.look()
        assert gateway.spikes == {}


async def test_a_store_that_is_down_for_long_is_logged_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    turns = 0

    async def sleep(_: float) -> None:
        nonlocal turns
        turns += 1
        if turns > 4:
            raise asyncio.CancelledError

    async def down(*_: Any) -> None:
        if turns < 3:
            raise StoreUnavailable("the database is away")

    async with built(tmp_path) as gateway:
        alerts = Alerts(gateway, [])
        looking = Spikes(gateway, alerts.outlet, History(gateway.store), rule=SpikeRule(), sleep=sleep)
        monkeypatch.setattr(Spikes, "look", down)
        log = CapturingLogger()
        monkeypatch.setattr("nemo_agents.gateway.alerts.spikes._log", log)
        with pytest.raises(asyncio.CancelledError):
            await looking.run()
    event = "spend spikes cannot be looked for"
    told = [(call.method_name, *call.args) for call in log.calls]
    assert told == [("warning", event), ("info", f"over: {event}")]


async def test_closed_hours_are_read_once_and_the_last_two_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async with built(tmp_path) as gateway:
        clock = gateway.clock
        assert isinstance(clock, Hands)
        grant = a_grant(budgets=())
        await have(gateway, grant)
        for hour in range(2, 6):
            await spend(gateway, grant, 2 * DOLLAR, at_us=NOW_US - hour * HOUR_US)
        asked: list[tuple[int, int]] = []
        read = SqliteStore.spend_by_hour

        async def noted(store: SqliteStore, since_us: int, until_us: int) -> Any:
            asked.append((since_us, until_us))
            return await read(store, since_us, until_us)

        monkeypatch.setattr(SqliteStore, "spend_by_hour", noted)
        looking = a_look_out(gateway)
        await looking.look()
        week, hour = asked
        assert week == (NOW_US - 7 * 24 * HOUR_US, NOW_US)
        assert hour == (NOW_US - HOUR_US, NOW_US)
        # A call of a closed hour is settled late, and the clock moves on by an hour.
        await spend(gateway, grant, 40 * DOLLAR, at_us=NOW_US - HOUR_US)
        asked.clear()
        clock.at_us += HOUR_US
        await looking.look()
        assert asked[0] == (NOW_US - 2 * HOUR_US, NOW_US + HOUR_US)
        assert looking._of("g_1", until_us=NOW_US) == [2 * DOLLAR] * 4 + [40 * DOLLAR]


def test_a_factor_that_would_always_alarm_is_refused(tmp_path: Path):
    with pytest.raises(SettingsError, match=r"spike_factor is 0\.5; it must be more than 1"):
        Alerts.of(build(Settings(home=tmp_path, spike_factor=0.5), {}), {})


# --- webhooks -----------------------------------------------------------------------------------------------------
class Deliveries(SqliteStore):
    """A store that tells how each delivery ended."""

    def __init__(self, path: Path, clock: Any) -> None:
        super().__init__(path, clock=clock)
        self.ended: asyncio.Queue[tuple[str, int | None, str | None]] = asyncio.Queue()

    async def end_delivery(self, seq: int, webhook: str, *, retry_us: int | None, error: str | None) -> None:
        await super().end_delivery(seq, webhook, retry_us=retry_us, error=error)
        self.ended.put_nowait((webhook, retry_us, error))

    async def next(self) -> tuple[str, int | None, str | None]:
        return await asyncio.wait_for(self.ended.get(), 20)


def to(url: str, name: str = "ops", *, timeout_s: float = 5.0, events: tuple[str, ...] = EVENT_KINDS) -> Destination:
    return Destination(name=name, url=url, secrets=read_secrets(SECRET), events=frozenset(events), timeout_s=timeout_s)


class Post:
    """A store with events in it, and what delivers them; one at a time may run."""

    def __init__(self, store: Deliveries, clock: Hands, destinations: tuple[Destination, ...]) -> None:
        self.store = store
        self.clock = clock
        self.destinations = destinations
        self.outlet = Outlet(
            store,
            History(store),
            now_us=clock.now_us,
            new_event_id=lambda: f"evt_{clock.now_us():x}",
            wanted={each.name: each.events for each in destinations},
            stored=lambda: None,
        )

    async def put(self, number: int = 1, kind: str = "budget.alert") -> None:
        self.clock.at_us += 1
        await self.outlet.publish(EventDraft(kind=kind, once=f"{kind} {number}", message=f"number {number}"))

    @asynccontextmanager
    async def running(self, *, delay_us: int = 0) -> AsyncIterator[None]:
        async with make_client() as client:
            webhooks = Webhooks(
                self.store,
                self.destinations,
                now_us=self.clock.now_us,
                client=client,
                delay_us=lambda _: delay_us,
                poll_s=0.01,
            )
            running = asyncio.create_task(webhooks.run())
            try:
                yield
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)


@asynccontextmanager
async def posting(home: Path, *destinations: Destination) -> AsyncIterator[Post]:
    clock = Hands(NOW_US)
    store = Deliveries(home / "gateway.db", clock.now_us)
    await store.start()
    try:
        yield Post(store, clock, destinations)
    finally:
        await store.close()


async def test_a_delivery_is_signed_and_says_what_happened(tmp_path: Path):
    with webhook_receiver() as receiver:
        async with posting(tmp_path, to(receiver.url, events=("spend.spike",))) as post, post.running():
            await post.put(1, "budget.alert")  # not wanted
            await post.put(2, "spend.spike")
            assert await post.store.next() == ("ops", None, None)
        got = receiver.next()
        assert receiver.got.empty()
    event = json.loads(got.body)
    assert (event["type"], event["data"]["message"]) == ("spend.spike", "number 2")
    assert event["timestamp"] == "2026-11-24T06:00:00.000002Z"
    assert event["data"]["event_id"] == got.headers["webhook-id"]
    assert got.headers["webhook-timestamp"] == str(NOW_US // 1_000_000)
    assert got.headers["content-type"] == "application/json"
    verify = verifier()
    verify(got.body, got.headers, SECRET, now_s=NOW_US // 1_000_000)
    for change in (
        {"webhook-signature": "v1,AAAA"},
        {"webhook-id": "evt_other"},
        {"webhook-timestamp": str(NOW_US // 1_000_000 + 1)},
    ):
        with pytest.raises(ValueError, match="signature"):
            verify(got.body, {**got.headers, **change}, SECRET, now_s=NOW_US // 1_000_000)
    with pytest.raises(ValueError, match="signature"):
        verify(got.body + b" ", got.headers, SECRET, now_s=NOW_US // 1_000_000)
    with pytest.raises(ValueError, match="old"):
        verify(got.body, got.headers, SECRET, now_s=NOW_US // 1_000_000 + 3600)


def verifier() -> Any:
    """Return the function that the documentation gives to those who receive."""
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "get-alerts.md").read_text(encoding="utf-8")
    code = next(block for block in page.split("```python\n")[1:] if "def verify" in block).partition("```")[0]
    names: dict[str, Any] = {}
    exec(code, names)
    return names["verify"]


@pytest.mark.parametrize(
    ("script", "errors"),
    [
        (("500", "503", "ok"), ["status 500", "status 503", None]),
        (("redirect", "ok"), ["status 307", None]),
        (("404", "429", "ok"), ["status 404", "status 429", None]),
        (("close", "ok"), ["RemoteProtocolError", None]),
    ],
)
async def test_what_fails_is_tried_again_until_it_is_taken(tmp_path: Path, script: tuple[str, ...], errors: list[Any]):
    with webhook_receiver(*script) as receiver:
        async with posting(tmp_path, to(receiver.url)) as post, post.running():
            await post.put()
            for error in errors:
                _, retry_us, said = await post.store.next()
                assert said == error
                assert (retry_us is None) == (error is None)
        got = [receiver.next() for _ in script]
        assert not receiver.trapped()
    assert len({delivery.headers["webhook-id"] for delivery in got}) == 1
    assert len({delivery.body for delivery in got}) == 1


async def test_a_receiver_that_is_gone_for_good_is_not_asked_again(tmp_path: Path):
    with webhook_receiver("410") as receiver:
        async with posting(tmp_path, to(receiver.url)) as post, post.running():
            await post.put()
            assert await post.store.next() == ("ops", None, "status 410")
            assert await post.store.claim_deliveries(NOW_US + 10 * GIVE_UP_US, lease_us=1, limit=9) == []


async def test_a_gigabyte_of_answer_is_left_unread(tmp_path: Path):
    with webhook_receiver("gigabyte") as receiver:
        async with posting(tmp_path, to(receiver.url)) as post, post.running():
            await post.put()
            assert await post.store.next() == ("ops", None, None)
            await post.put(2)  # and its connection is not used for the next
            assert await post.store.next() == ("ops", None, None)
        assert receiver.sent_bytes < 64 * 2**20


async def test_a_receiver_that_hangs_times_out_and_keeps_nobody_else_waiting(tmp_path: Path):
    with webhook_receiver(*["hang"] * 9) as slow, webhook_receiver() as good:
        destinations = (to(slow.url, "slow", timeout_s=30), to(good.url, "good"))
        async with posting(tmp_path, *destinations) as post, post.running():
            for number in range(8):
                await post.put(number)
            for _ in range(8):
                assert await post.store.next() == ("good", None, None)
            assert slow.got.qsize() <= 1  # one at a time
        async with posting(tmp_path, to(slow.url, "slow", timeout_s=0.05)) as post:
            post.clock.at_us += HOUR_US  # leases of the gateway before have ended
            async with post.running():
                name, retry_us, error = await post.store.next()
                assert (name, error) == ("slow", "no answer within 0.05 s")
                assert retry_us is not None


async def test_while_a_receiver_fails_one_delivery_tries_it_and_the_others_are_put_off(tmp_path: Path):
    with webhook_receiver(*["500"] * 50) as receiver:
        async with posting(tmp_path, to(receiver.url)) as post:
            for number in range(10):
                await post.put(number)
            async with post.running(delay_us=60_000_000):
                ends = [await post.store.next() for _ in range(10)]
            assert [error for _, _, error in ends] == ["status 500"] + ["put off: the receiver fails"] * 9
            assert receiver.got.qsize() == 1
            receiver.script.clear()
            post.clock.at_us += 120_000_000
            async with post.running():
                assert [(await post.store.next())[2] for _ in range(10)] == [None] * 10


@pytest.mark.parametrize(("asked", "waits_s"), [("120", 120), ("7200", 3600)])
async def test_a_receiver_that_says_when_is_not_asked_before_but_for_an_hour_at_most(
    tmp_path: Path, asked: str, waits_s: int
):
    """Nor are its other deliveries tried while it wants to be left alone."""
    with webhook_receiver(f"503 {asked}") as receiver:
        async with posting(tmp_path, to(receiver.url)) as post:
            for number in range(2):
                await post.put(number)
            back_us = post.clock.at_us + waits_s * 1_000_000
            async with post.running():
                assert await post.store.next() == ("ops", back_us, "status 503")
                assert await post.store.next() == ("ops", back_us, "put off: the receiver fails")
            assert receiver.got.qsize() == 1
            post.clock.at_us = back_us
            async with post.running():
                assert [(await post.store.next())[2] for _ in range(2)] == [None, None]


def test_a_date_to_come_back_at_is_read_as_the_time_until_then():
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    at_us = int(now.timestamp() * 1e6)
    for after_s, waits_s in ((90, 90), (-90, 0), (90_000, 3_600)):
        asked = format_datetime(now + timedelta(seconds=after_s), usegmt=True)
        assert retry_after_us(asked, at_us) == waits_s * 1_000_000
    for text in ("", "-5", "1.5", "²", "9" * 40, "Mon, 99 Jan 2026 00:00:00 GMT", "Fri, 02 Jan 2026 03:05:05 -0000"):
        assert 0 <= retry_after_us(text, at_us) <= 3_600_000_000


async def test_deliveries_survive_a_restart_and_end_with_a_day(tmp_path: Path):
    with webhook_receiver("500", "500") as receiver:
        async with posting(tmp_path, to(receiver.url)) as post:
            await post.put()
            async with post.running(delay_us=60_000_000):
                assert (await post.store.next())[2] == "status 500"
        async with posting(tmp_path, to(receiver.url)) as post:
            post.clock.at_us = NOW_US + GIVE_UP_US
            async with post.running(delay_us=60_000_000):
                assert await post.store.next() == ("ops", None, "status 500")
                assert await post.store.claim_deliveries(NOW_US + 10 * GIVE_UP_US, lease_us=1, limit=9) == []


async def test_of_two_gateways_one_makes_a_delivery(tmp_path: Path):
    with webhook_receiver() as receiver:
        async with posting(tmp_path, to(receiver.url)) as post:
            for number in range(30):
                await post.put(number)
            async with post.running(), post.running():
                assert [(await post.store.next())[2] for _ in range(30)] == [None] * 30
        ids = [receiver.next().headers["webhook-id"] for _ in range(30)]
        assert len(set(ids)) == 30
        assert receiver.got.empty()


async def test_a_webhook_that_is_configured_no_longer_gets_nothing_and_hides_nothing(tmp_path: Path):
    with webhook_receiver() as receiver:
        async with posting(tmp_path, to(receiver.url, "old"), to(receiver.url, "kept")) as post:
            for number in range(3):
                await post.put(number)
        async with posting(tmp_path, to(receiver.url, "kept")) as post:
            post.clock.at_us += HOUR_US
            async with post.running(delay_us=HOUR_US):
                ends = sorted([(await post.store.next())[::2] for _ in range(6)], key=str)
        assert ends == [("kept", None)] * 3 + [("old", "no webhook old is configured")] * 3


async def test_a_gateway_delivers_what_its_settings_say_and_a_bad_one_does_not_start(tmp_path: Path):
    with webhook_receiver() as receiver:
        webhooks = {"ops": {"url": receiver.url, "secret_env": "OPS_SECRET"}}
        async with a_gateway(tmp_path / "home", {"OPS_SECRET": SECRET}, webhooks=webhooks):
            got = await asyncio.to_thread(receiver.next)
    assert json.loads(got.body)["data"]["message"] == "first"
    with pytest.raises(SettingsError, match="OPS_SECRET that `secret_env` names is not set"):
        async with a_gateway(tmp_path / "other", {}, webhooks=webhooks):
            pass
