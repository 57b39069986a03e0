"""A store that cannot be written: nothing is sent, nothing is lost, and the gateway comes back by itself."""

from __future__ import annotations

import asyncio
import resource
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from gateway_bench import Bench, bench_for, gateway_at, refused


@pytest.fixture
def bench(tmp_path, shared_provider) -> Iterator[Bench]:
    """A gateway of the test's own, for others would notice."""
    with (
        gateway_at(tmp_path / "home", shared_provider, first_byte_timeout_s=0.5) as gateway,
        bench_for(gateway, shared_provider) as bench,
    ):
        yield bench


@contextmanager
def locked(bench: Bench) -> Iterator[None]:
    """Let a stranger hold the database's write lock."""
    db = sqlite3.connect(bench.gateway.home / "gateway.db", isolation_level=None)
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        db.execute("ROLLBACK")
        db.close()


def test_without_its_record_nothing_is_sent(bench: Bench):
    key = bench.key(max_budget=1)
    with locked(bench):
        change = bench.later(bench.admin, "POST", "/key/block", {"key": key.public_id})
        for answer in [bench.later(bench.chat, key), bench.later(bench.chat, key, stream=True)]:
            refused(answer.result(), 503, "store_unavailable", retry_after_ms=1000)
        changed = change.result()
        assert changed.status_code == 503
        assert changed.json()["error"]["type"] == "service_unavailable"
        assert bench.sent() == []
    assert bench.chat(key).status_code == 200  # it was not blocked, and the store is back
    assert bench.spent() == (31_000, 0)


@contextmanager
def full_disk(_bench: Bench) -> Iterator[None]:
    """Let no file of this process grow: SQLite hears the same error from the system as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("trouble", [locked, full_disk])
def test_ready_tells_that_it_is_the_store_and_comes_back_by_itself(bench: Bench, trouble):
    key = bench.key(max_budget=1)
    with trouble(bench):
        refused(bench.chat(key), 503, "store_unavailable", retry_after_ms=1000)
        ready = bench.http.get("/health/ready")
        assert ready.status_code == 503
        told = ready.json()
        assert (told["code"], told["store"], told["limiter"]) == ("store_unavailable", "store_unavailable", "ready")
        assert str(bench.gateway.home) not in ready.text  # anybody may ask
        assert bench.http.get("/health/live").status_code == 200
        assert bench.sent() == []
    bench.until(lambda: bench.http.get("/health/ready").status_code == 200)
    assert bench.chat(key).status_code == 200
    assert bench.spent() == (31_000, 0)


def test_what_a_call_cost_is_written_when_the_store_is_back(bench: Bench):
    key = bench.key()
    with bench.http.stream(
        "POST",
        "/v1/chat/completions",
        headers=key.headers,
        json={"model": "faulty/stepped", "messages": [{"role": "user", "content": "hi"}], "stream": True},
    ) as answer:
        parts = answer.iter_text()
        next(parts)
        with locked(bench):
            bench.faulty.release(15)
            assert "".join(parts).endswith("data: [DONE]\n\n")
            bench.all_over()
    assert bench.row(answer)["cost_nanos"] == 31_000
    assert bench.spent() == (31_000, 0)


def test_a_store_that_fails_between_two_attempts(bench: Bench):
    for order, model in enumerate(("faulty/hang", "faulty/ok")):
        params = {"model": model, "order": order}
        bench.ok("POST", "/model/new", {"model_name": "group", "litellm_params": params})
    key = bench.key(models=("group",))
    waiting = bench.later(bench.chat, key, "group")
    bench.faulty.seen(at_least=1)
    with locked(bench):
        answer = waiting.result()
    refused(answer, 503, "store_unavailable")
    row = bench.row(answer)
    assert (row["state"], row["status"], row["code"]) == ("failed", 503, "store_unavailable")
    assert row["cost_nanos"] == row["attempt_rows"][0]["held_nanos"]
    assert [request["model"] for request in bench.sent()] == ["hang"]


def test_a_closed_store_refuses_everything_that_needs_it(tmp_path, shared_provider):
    with (
        gateway_at(tmp_path / "home", shared_provider) as gateway,
        bench_for(gateway, shared_provider, checked=False) as bench,
    ):
        key = bench.key()
        assert bench.chat(key).status_code == 200
        bench.check_books()
        store = gateway.running.gateway.store
        asyncio.run_coroutine_threadsafe(store.close(), store._writer._loop).result(timeout=10)
        refused(bench.chat(key), 503, "store_unavailable", retry_after_ms=1000)
        assert bench.http.get("/health/live").status_code == 200
        assert bench.http.get("/health/ready").status_code == 503
        assert bench.admin("GET", "/nemo/status").status_code == 503
        assert len(bench.sent()) == 1
