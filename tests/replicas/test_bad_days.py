"""Disks, locks, clocks and second thoughts: one clear answer to each, and right books afterwards, without a restart."""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from faulty_provider import FaultyProvider
from replica_load import load_of, run_load
from replica_stack import ADMIN_KEY, DOLLAR, PEPPER, GatewayProcess, Stack, one_gateway, until

from nemo_agents.gateway.rim import SystemClock
from nemo_agents.testing import running_gateway

BODY = {"model": "faulty/ok", "max_tokens": 5}
OUTAGE = (503, "store_unavailable")


def calls_of(name: str, count: int, *, callers: int = 10) -> list[dict[str, object]]:
    """Callers that make so many calls in all, every second one a stream."""
    calls = [
        {"marker": f"{name}-{number}", "key": "role", "body": {**BODY, "stream": number % 2 == 0}}
        for number in range(count)
    ]
    return [{"calls": calls[at::callers]} for at in range(callers)]


def answers(stack: Stack, secret: str, name: str, count: int = 40) -> Counter[tuple[int | None, str | None]]:
    outcomes = run_load(stack.urls, {"role": secret}, calls_of(name, count))
    return Counter((each.status, each.code) for each in outcomes)


def nothing_was_sent(stack: Stack, name: str) -> bool:
    sent = [request["body"]["messages"][0]["content"] for request in stack.provider.seen()["requests"]]
    return not any(marker.startswith(f"{name}-") for marker in sent)


@pytest.fixture
def alone(tmp_path: Path, provider: FaultyProvider):
    """One gateway of the test's own on SQLite."""
    provider.reset()
    with one_gateway(tmp_path, provider) as stack:
        yield stack


def test_a_full_disk_refuses_sends_nothing_and_recovers(alone: Stack):
    """The process may not let any file grow, as on a full disk: neither its database nor its own log."""
    key = alone.key(budget=10.0)
    assert answers(alone, key.secret, "before") == {(200, None): 40}
    (gateway,) = alone.gateways
    hard = resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE, (512, hard))
    assert answers(alone, key.secret, "full") == {OUTAGE: 40}
    assert nothing_was_sent(alone, "full")
    ready = alone.http.get(f"{gateway.url}/health/ready")
    assert ready.status_code == 503
    assert alone.http.get(f"{gateway.url}/health/live").status_code == 200
    resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE, (hard, hard))
    until(lambda: alone.chat(key).status_code == 200, "it serves again", timeout_s=5)
    assert answers(alone, key.secret, "after") == {(200, None): 40}
    alone.settle(key.fleet)
    assert not alone.charged(prefix="full-")


def test_a_disk_that_fills_up_in_full_flow_loses_no_answer(alone: Stack):
    """What was answered while the disk was full is kept in memory and written when there is room."""
    key = alone.key(budget=10.0)
    (gateway,) = alone.gateways
    hard = resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE)[1]
    body = {"model": "faulty/slow-first-byte", "max_tokens": 5}
    waiting = [{"calls": [{"marker": f"flow-{at}", "key": "role", "body": body}]} for at in range(8)]
    with load_of(alone.urls, {"role": key.secret}, waiting) as load:
        alone.provider.seen(at_least=8)
        resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE, (512, hard))
        assert alone.chat(key).status_code == 503
        alone.provider.release(8)
        assert {each.status for each in load.outcomes()} == {200}
    resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE, (hard, hard))
    until(lambda: alone.chat(key).status_code == 200, "it serves again", timeout_s=5)
    alone.settle(key.fleet)
    posted = alone.charged(prefix="flow-")
    assert set(posted) == {f"flow-{at}" for at in range(8)}
    assert set(posted.values()) == {5 * 1_000_000 + 1_000}


def test_a_database_that_another_process_locks_for_ten_seconds(alone: Stack):
    key = alone.key(budget=10.0)
    seen: Counter[tuple[int | None, str | None]] = Counter()
    with closing(sqlite3.connect(alone.gateways[0].home / "gateway.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        ends = time.monotonic() + 10
        while time.monotonic() < ends:
            seen += answers(alone, key.secret, f"locked-{len(seen)}-{sum(seen.values())}", 10)
        other.execute("ROLLBACK")
    assert set(seen) == {OUTAGE}
    assert nothing_was_sent(alone, "locked")
    until(lambda: alone.chat(key).status_code == 200, "it serves again", timeout_s=5)
    alone.settle(key.fleet)


def without_superpowers() -> tuple[str, ...]:
    """For the superuser file modes do not count, unless it gives that up."""
    if os.geteuid() != 0:
        return ()
    program = shutil.which("setpriv")
    assert program is not None, "setpriv is part of util-linux"
    return (program, "--bounding-set=-all", "--inh-caps=-all")


def test_a_database_that_is_read_only_keeps_it_from_starting(tmp_path: Path, provider: FaultyProvider):
    with one_gateway(tmp_path, provider) as stack:
        key = stack.key(budget=10.0)
        assert stack.chat(key).status_code == 200
        (gateway,) = stack.gateways
        gateway.stop()
        database = gateway.home / "gateway.db"
        database.chmod(0o400)
        said = subprocess.run(
            (
                *(*without_superpowers(), sys.executable, "-m", "nemo_agents", "gateway"),
                *("--home", str(gateway.home), "--port", str(gateway.port)),
            ),
            env={**os.environ, "NEMO_ADMIN_KEY": ADMIN_KEY, "NEMO_PEPPER": PEPPER},
            capture_output=True,
            encoding="utf-8",
            timeout=30,
            check=False,
        )
        assert said.returncode == 1
        (line,) = said.stderr.splitlines()
        assert line.startswith(f"error: {database}")
        assert "cannot be written" in line
        database.chmod(0o600)
        gateway.start()
        assert stack.chat(key).status_code == 200
        stack.settle(key.fleet)


def test_a_second_gateway_on_the_same_file_says_who_has_it(alone: Stack, provider: FaultyProvider):
    (first,) = alone.gateways
    second = GatewayProcess(home=first.home, port=0)
    second.begin()
    assert second.process is not None
    assert second.process.wait(30) == 1
    said = first.log.read_text(encoding="utf-8").splitlines()[-1]
    assert f"in use by another gateway (process {first.pid})" in said
    key = alone.key(budget=1.0)
    assert alone.chat(key).status_code == 200
    alone.settle(key.fleet)


def test_a_clock_that_goes_back_an_hour_opens_no_closed_day(
    tmp_path: Path, provider: FaultyProvider, monkeypatch: pytest.MonkeyPatch
):
    """Half an hour past midnight a day's budget is spent; back before midnight there is no other day's to spend."""
    day_s = 86_400
    real, midnight = time.time_ns, (time.time_ns() // (day_s * 10**9) + 1) * day_s * 10**9
    shift = midnight + 1800 * 10**9 - real()
    monkeypatch.setattr(time, "time_ns", lambda: real() + shift)
    settings = {"sandbox": "off", "providers": {"faulty": {"base_url": provider.base_url}}}
    settings |= {"prices": {"faulty/ok": {"input_per_mtok": "1", "output_per_mtok": "1000"}}}
    with running_gateway(tmp_path / "home", settings=settings) as gateway:
        import httpx

        with httpx.Client(base_url=gateway.url, trust_env=False, timeout=30) as http:
            admin = {"authorization": f"Bearer {gateway.admin_key.reveal()}"}
            asked = {"team_id": "clock", "models": ["faulty/*"], "max_budget": 0.02, "budget_duration": "1d"}
            secret = http.post("/key/generate", json=asked, headers=admin).json()["key"]

            def chat() -> httpx.Response:
                body = {"model": "faulty/ok", "max_tokens": 10, "messages": [{"role": "user", "content": "hi"}]}
                return http.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {secret}"})

            statuses = [chat().status_code for _ in range(3)]
            assert statuses == [200, 402, 402]
            clock = gateway.running.gateway.clock
            assert isinstance(clock, SystemClock)
            before_us = clock.now_us()
            shift -= 3600 * 10**9
            assert clock.now_us() >= before_us
            assert chat().json()["error"]["code"] == "budget_exhausted"
            shift += 25 * 3600 * 10**9
            assert chat().status_code == 200  # the next day comes as it should
        assert gateway.ledger_problems() == []


def test_a_budget_lowered_below_what_is_spent(stack: Stack):
    key = stack.key(budget=1.0)
    last = len(stack.gateways) - 1
    assert stack.chat(key, max_tokens=500, model="faulty/many-chunks").status_code == 200
    stack.ok("POST", "/key/update", {"key": key.public_id, "max_budget": 0.2})
    refused = lambda: stack.chat(key, replica=last).status_code == 402  # noqa: E731 - asked again and again
    until(refused, "the lower budget counts on every replica", timeout_s=5)
    stack.flush()
    posted = stack.spent(key.fleet)[0]  # with what was let through before the lower budget was known
    assert posted >= DOLLAR // 2
    error = stack.chat(key, replica=last).json()["error"]
    assert error["code"] == "budget_exhausted"
    assert "$0.2" in error["message"]
    assert stack.spent(key.fleet) == (posted, 0)
    stack.ok("POST", "/key/update", {"key": key.public_id, "max_budget": 1.0})
    until(lambda: stack.chat(key, replica=last).status_code == 200, "the higher budget counts", timeout_s=5)
    stack.settle(key.fleet)


def test_a_start_reads_little_of_a_long_log(tmp_path: Path, provider: FaultyProvider, monkeypatch: pytest.MonkeyPatch):
    """Two hundred thousand entries in the day, and it reads what it needs; only small files are checked whole."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    from longday import fill_the_day

    with one_gateway(tmp_path, provider) as stack:
        key = stack.key(budget=10_000.0)
        assert stack.chat(key).status_code == 200
        (gateway,) = stack.gateways
        gateway.stop()
        read_before = _start_and_tell_bytes_read(gateway)
        database = gateway.home / "gateway.db"
        fill_the_day(database, calls=100_000)
        size = database.stat().st_size
        assert size > 64 * 1024 * 1024
        more = _start_and_tell_bytes_read(gateway) - read_before
        assert more < size / 10, f"the start read {more:,} bytes more for a database of {size:,}"
        gateway.start()
        assert stack.chat(key).status_code == 200
        stack.settle(key.fleet)


def _start_and_tell_bytes_read(gateway: GatewayProcess) -> int:
    gateway.start()
    told = Path(f"/proc/{gateway.pid}/io").read_text(encoding="ascii")
    gateway.stop()
    return int(next(line for line in told.splitlines() if line.startswith("rchar")).split()[1])
