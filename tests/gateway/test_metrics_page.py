"""`/metrics`: what a monitoring system reads, who may read it, and that its numbers are those of the calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from gateway_bench import PROVIDER_KEY, Bench, bench_for, gateway_at
from prometheus_client.parser import text_string_to_metric_families

from nemo_agents import __version__
from nemo_agents.money import NANOS_PER_DOLLAR


def read(text):
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(bench, **headers):
    answer = bench.http.get("/metrics", headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return read(answer.text)


def value(found, name, **labels):
    return found.get((name, *sorted(labels.items())))


@pytest.fixture
def own(tmp_path, shared_provider) -> Iterator[Bench]:
    """A gateway of the test's own, whose counters begin at nothing."""
    with gateway_at(tmp_path / "home", shared_provider) as gateway, bench_for(gateway, shared_provider) as bench:
        yield bench


@contextmanager
def with_settings(tmp_path, provider, **settings) -> Iterator[Bench]:
    with gateway_at(tmp_path / "home", provider, **settings) as gateway, bench_for(gateway, provider) as bench:
        yield bench


# --- what it says -------------------------------------------------------------------------------------------------
def test_the_numbers_are_those_of_the_calls(own):
    key = own.key(metadata={"nemo": {"role": "writer", "cache": {"ttl_s": 60}}})
    answers = [own.chat(key, text=text) for text in ("one", "two", "two")]
    own.chat(key, "faulty/error-503")
    own.chat(key, "faulty/ok", stream=True)
    assert own.http.post("/v1/chat/completions", json={}, headers={"authorization": "Bearer sk-x"}).status_code == 401
    found = scrape(own)
    role = {"fleet": own.fleet, "role": "writer"}
    calls = {**role, "endpoint": "chat"}
    assert value(found, "nemo_requests_total", **calls, outcome="ok") == 3
    assert value(found, "nemo_requests_total", **calls, outcome="cached") == 1
    assert value(found, "nemo_requests_total", **calls, outcome="failed") == 1
    assert value(found, "nemo_request_duration_seconds_count", **calls) == 5
    assert value(found, "nemo_refusals_total", **role, code="upstream_error", scope="") == 1
    assert value(found, "nemo_refusals_total", fleet="", role="", code="invalid_api_key", scope="") == 1
    rows = [row for row in own.logs() if row["state"] == "ok" and row["provider"] == "faulty"]
    model = {"provider": "faulty", "model": "ok"}
    for direction in ("input", "output"):
        tokens = sum(row[f"{direction}_tokens"] for row in rows)
        assert value(found, "nemo_tokens_total", **role, **model, direction=direction) == tokens > 0
    cost = sum(row["cost_nanos"] for row in rows) / NANOS_PER_DOLLAR
    assert value(found, "nemo_cost_dollars_total", **role, **model) == pytest.approx(cost, rel=1e-12)
    assert value(found, "nemo_time_to_first_token_seconds_count", **model) == 3
    assert value(found, "nemo_attempts_total", **model, reason="first", result="ok") == 3
    failed = {"provider": "faulty", "model": "error-503"}
    assert value(found, "nemo_attempts_total", **failed, reason="first", result="server_error") == 1
    assert value(found, "nemo_cache_lookups_total", **role, result="hit") == 1
    assert value(found, "nemo_cache_lookups_total", **role, result="miss") == 4
    saved = own.row(answers[1])["cost_nanos"] / NANOS_PER_DOLLAR
    assert value(found, "nemo_cache_saved_dollars_total", **role) == pytest.approx(saved, rel=1e-12)
    assert value(found, "nemo_cache_answers") == 3


def test_budgets_and_what_is_left_of_them(own):
    own.ok("POST", "/team/new", {"team_id": own.fleet, "max_budget": 5, "budget_duration": "1d"})
    key = own.key(metadata={"nemo": {"role": "writer"}}, max_budget=2, budget_duration="30d")
    spent = own.row(own.chat(key))["cost_nanos"] / NANOS_PER_DOLLAR
    found = scrape(own)
    of_role = {"fleet": own.fleet, "role": "writer", "budget": "month", "mode": "enforce"}
    of_fleet = {"fleet": own.fleet, "role": "", "budget": "day", "mode": "enforce"}
    assert value(found, "nemo_budget_dollars", **of_role) == 2
    assert value(found, "nemo_budget_dollars", **of_fleet) == 5
    assert value(found, "nemo_budget_left_dollars", **of_role) == pytest.approx(2 - spent, abs=1e-9)
    assert value(found, "nemo_budget_left_dollars", **of_fleet) == pytest.approx(5 - spent, abs=1e-9)


def test_calls_in_flight_and_their_holds(own):
    key = own.key(max_budget=1)
    answer = own.later(own.chat, key, "faulty/slow-first-byte")
    own.faulty.seen(at_least=1)
    found = scrape(own)
    assert value(found, "nemo_calls_in_flight", fleet=own.fleet) == 1
    assert value(found, "nemo_open_holds") == 1
    assert value(found, "nemo_held_dollars") > 0
    own.faulty.release()
    assert answer.result().status_code == 200


def test_the_process_and_the_store(own):
    found = scrape(own)
    assert value(found, "nemo_store_up") == 1
    assert value(found, "nemo_store_backlog") >= 0
    assert value(found, "nemo_uptime_seconds") > 0
    assert value(found, "process_resident_memory_bytes") > 10_000_000
    assert value(found, "process_start_time_seconds") > 0
    (build,) = [dict(labels) for name, *labels in found if name == "nemo_build_info"]
    assert build["version"] == __version__


def test_money_is_read_from_the_store_now_and_then_and_counters_every_time(own):
    key = own.key(max_budget=1, metadata={"nemo": {"role": "writer"}})
    before = scrape(own)
    own.chat(key)
    after = scrape(own)
    left = {"fleet": own.fleet, "role": "writer", "budget": "total", "mode": "enforce"}
    assert value(after, "nemo_budget_left_dollars", **left) == value(before, "nemo_budget_left_dollars", **left) == 1
    ok = {"fleet": own.fleet, "role": "writer", "endpoint": "chat", "outcome": "ok"}
    assert value(after, "nemo_requests_total", **ok) == 1


def test_a_page_names_no_secret(own):
    key = own.key()
    own.chat(key)
    text = own.http.get("/metrics").text
    for secret in (key.secret, own.gateway.admin_key.reveal(), PROVIDER_KEY):
        assert secret not in text


# --- who may read it ----------------------------------------------------------------------------------------------
def test_programs_on_this_machine_may_and_nobody_who_came_through_a_proxy(bench):
    scrape(bench)
    for header in ("x-forwarded-for", "forwarded", "x-real-ip", "via"):
        assert bench.http.get("/metrics", headers={header: "192.0.2.7"}).status_code == 401
    admin = f"Bearer {bench.gateway.admin_key.reveal()}"
    scrape(bench, **{"x-forwarded-for": "192.0.2.7", "authorization": admin})
    virtual = {"authorization": f"Bearer {bench.key().secret}", "via": "1.1 proxy"}
    assert bench.http.get("/metrics", headers=virtual).status_code == 403


def test_a_page_of_another_site_may_not(tmp_path, shared_provider):
    with with_settings(tmp_path, shared_provider, allowed_hosts=("gateway.example",)) as bench:
        assert bench.http.get("/metrics", headers={"host": "gateway.example"}).status_code == 401
        assert bench.http.get("/metrics", headers={"host": "evil.example"}).status_code == 421
        assert bench.http.get("/metrics").status_code == 200


def test_the_admin_key_alone_where_the_settings_say_so(tmp_path, shared_provider):
    with with_settings(tmp_path, shared_provider, metrics="key") as bench:
        assert bench.http.get("/metrics").status_code == 401
        assert bench.admin("GET", "/metrics").status_code == 200


def test_nobody_where_they_are_off(tmp_path, shared_provider):
    with with_settings(tmp_path, shared_provider, metrics="off") as bench:
        assert bench.admin("GET", "/metrics").status_code == 404


def test_other_methods_are_refused(bench):
    assert bench.admin("POST", "/metrics", {}).status_code == 405


def test_a_store_that_is_away_is_a_number_and_no_failure(own, monkeypatch):
    """The page is what says that the store is away: it has to come then."""
    from nemo_agents.gateway.stores.base import StoreUnavailable

    async def away(*_):
        raise StoreUnavailable("the disk is full")

    store = own.gateway.running.gateway.store
    monkeypatch.setattr(type(store), "open_holds", away)
    answer = httpx.get(f"{own.url}/metrics", trust_env=False)
    assert answer.status_code == 200
    found = read(answer.text)
    assert value(found, "nemo_store_up") == 0
    assert not [name for name, *_ in found if name.startswith("nemo_budget")]
    monkeypatch.undo()
