"""What one key must never be able to do to another, and what must not hold up the rest."""

from __future__ import annotations

import asyncio
import socket
import time
from dataclasses import replace
from urllib.parse import urlsplit

import httpx
import pytest
from faulty_provider import run_faulty_provider
from gateway_bench import bench_for, gateway_at, refused

from nemo_agents.gateway.stores.base import FleetRecord

LONG = "0123456789 " * 30_000  # beyond what is scanned on the event loop


def test_no_client_may_take_a_name_that_the_gateway_gives(bench):
    """A run id like a coming request id would make the next call of somebody else collide with it."""
    key = bench.key()
    answer = bench.chat(key, headers={"x-nemo-run-id": "req_0123456789ab000000000001"})
    refused(answer, 400, "invalid_request")
    assert "x-nemo-run-id" in answer.json()["error"]["message"]


def test_keys_without_a_fleet_have_runs_of_their_own(bench):
    """Otherwise one could cap or stop the run of another by its id alone."""
    first, second = (
        bench.ok("POST", "/key/generate", {"models": ["faulty/*"], "key_alias": f"{bench.fleet}-{name}"})["key"]
        for name in ("one", "two")
    )
    body = {"model": "faulty/ok", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}

    def call(key: str, **headers: str) -> httpx.Response:
        sent = {"authorization": f"Bearer {key}", "x-nemo-run-id": f"shared-{bench.fleet}", **headers}
        return bench.http.post("/v1/chat/completions", json=body, headers=sent)

    assert call(first, **{"x-nemo-run-max-calls": "1"}).status_code == 200
    refused(call(first), 403, "run_stopped")
    assert call(second).status_code == 200
    assert call(second).headers["x-nemo-run-id"] != call(first).headers["x-nemo-run-id"]


def test_anothers_metadata_lifts_no_limit_of_a_role(bench):
    key = bench.key(metadata={"nemo": {"role": "writer", "tools": ["search"], "alert_at": 0.5}})
    changed = bench.ok("POST", "/key/update", {"key": key.public_id, "metadata": {"team": "x"}})
    assert changed["metadata"] == {"team": "x", "nemo": {"role": "writer", "tools": ["search"], "alert_at": 0.5}}
    offered = [{"type": "function", "function": {"name": "delete_everything", "parameters": {}}}]
    refused(bench.chat(key, tools=offered), 403, "tool_not_allowed")
    cleared = bench.ok("POST", "/key/update", {"key": key.public_id, "metadata": {"nemo": {}}})
    assert cleared["metadata"] == {"nemo": {}}
    assert bench.chat(key, tools=offered).status_code == 200


def test_the_keys_of_a_blocked_fleet_read_nothing(bench):
    bench.ok("POST", "/team/new", {"team_id": bench.fleet})
    key = bench.key()
    assert bench.http.get("/nemo/logs", headers=key.headers).status_code == 200
    bench.ok("POST", "/team/update", {"team_id": bench.fleet, "blocked": True})
    assert bench.http.get("/nemo/logs", headers=key.headers).status_code == 403


@pytest.mark.parametrize("guardrail", ["pii-filter", "prompt-injection-detect"])
def test_long_texts_are_guarded_beside_the_event_loop(bench, guardrail):
    """The answer is the same; and while it is worked out, others are answered."""
    key = bench.key(guardrails=[guardrail])
    long = bench.later(bench.chat, key, text=f"{LONG} mail anna@example.com", max_tokens=5)
    while not long.done():
        assert bench.http.get("/health/live").status_code == 200
    answer = long.result()
    assert answer.status_code == 200, answer.text
    if guardrail == "pii-filter":
        assert "anna@example.com" not in str(bench.content(answer))


def test_a_client_that_stops_reading_lets_go_of_its_slot(tmp_path):
    """Its connection stays open and full; the call ends all the same, at what the provider billed."""
    with (
        run_faulty_provider("--many=60000") as provider,  # more than the buffers between here and there take in
        gateway_at(tmp_path / "home", provider, client_timeout_s=0.2, drain_timeout_s=30.0) as gateway,
    ):
        admin = {"authorization": f"Bearer {gateway.admin_key.reveal()}"}
        with httpx.Client(base_url=gateway.url, timeout=20) as http:
            made = http.post("/key/generate", json={"max_parallel_requests": 1}, headers=admin).json()
            with _silent_stream(gateway.url, made["key"], "faulty/many-chunks"):
                until = time.monotonic() + 20
                while time.monotonic() < until:
                    calls = http.get("/nemo/logs", headers=admin).json()["calls"]
                    if calls and calls[0]["state"] != "open":
                        break
                assert calls[0]["state"] == "abandoned", calls[0]
                free = http.post(
                    "/v1/chat/completions",
                    json={"model": "faulty/ok", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5},
                    headers={"authorization": f"Bearer {made['key']}"},
                )
                assert free.status_code == 200, free.text
        assert gateway.ledger_problems() == []


def _silent_stream(url: str, key: str, model: str) -> socket.socket:
    """Ask for a stream with the smallest receive buffer there is, and read nothing of it."""
    address = urlsplit(url)
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    sock.connect((address.hostname, address.port))
    text = "x" * 40_000
    body = f'{{"model":"{model}","stream":true,"max_tokens":100000,"messages":[{{"role":"user","content":"{text}"}}]}}'
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {address.netloc}\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    sock.sendall((head + body).encode())
    return sock


class _Pausing:
    """A limiter whose answer takes its time, as one on another machine does; a test acts meanwhile."""

    def __init__(self, whole, meanwhile) -> None:
        self._whole = whole
        self._meanwhile = meanwhile

    def __getattr__(self, name):
        return getattr(self._whole, name)

    async def enter(self, *args):
        entry = await self._whole.enter(*args)
        await self._meanwhile()
        return entry


@pytest.mark.parametrize("ended", ["revoked", "fleet"])
def test_a_key_that_ends_while_its_request_is_being_counted_sends_nothing(tmp_path, shared_provider, ended):
    """It is not in flight yet, so that nothing cuts it; it is looked at once more before it is."""
    with gateway_at(tmp_path / "home", shared_provider) as gateway, bench_for(gateway, shared_provider) as bench:
        key = bench.key(max_parallel_requests=1)
        state = gateway.running.gateway

        async def set_end(*, over: bool) -> None:
            grant = state.keyring.find(key.public_id)
            if ended == "revoked":
                await state.put_grant(replace(grant, revoked_us=1 if over else None))
            else:
                await state.put_fleet(FleetRecord(fleet=bench.fleet, blocked=over))

        whole, state.limiter = state.limiter, _Pausing(state.limiter, lambda: set_end(over=True))
        refused(bench.chat(key), 403, "key_revoked" if ended == "revoked" else "key_blocked")
        assert bench.sent() == []
        state.limiter = whole
        asyncio.run_coroutine_threadsafe(set_end(over=False), state.store._writer._loop).result(timeout=10)
        assert bench.chat(key).status_code == 200  # its one place in flight was given back
