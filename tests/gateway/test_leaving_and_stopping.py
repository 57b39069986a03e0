"""Clients that leave before their answer, and a gateway that stops while calls are in flight."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import pytest
from faulty_provider import run_faulty_provider
from gateway_bench import bench_for, gateway_at, settings_for
from test_streaming import streamed

from nemo_agents.errors import SettingsError
from nemo_agents.gateway.homefiles import open_home
from nemo_agents.testing import running_gateway

ASK = {"model": "faulty/hang", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_whose_client_left_ends_soon(tmp_path, stream):
    """Or an agent that times out and tries again locks itself out of its own slots."""
    with (
        run_faulty_provider() as provider,
        gateway_at(tmp_path / "home", provider, drain_timeout_s=0.1) as gateway,
        httpx.Client(base_url=gateway.url, timeout=20) as http,
    ):
        admin = {"authorization": f"Bearer {gateway.admin_key.reveal()}"}
        key = http.post("/key/generate", json={"max_parallel_requests": 1}, headers=admin).json()["key"]
        sent = {"authorization": f"Bearer {key}"}
        _ask_and_leave(gateway.url, sent, {**ASK, "stream": stream}, until=lambda: provider.seen()["requests"])
        until = time.monotonic() + 20
        while time.monotonic() < until:
            (call,) = http.get("/nemo/logs", headers=admin).json()["calls"]
            if call["state"] != "open":
                break
        assert (call["state"], call["status"]) == ("abandoned", 499)
        assert call["cost_nanos"] == call["held_nanos"] > 0
        assert http.post("/v1/chat/completions", json={**ASK, "model": "faulty/ok"}, headers=sent).status_code == 200
        assert gateway.ledger_problems() == []


class _TimesOut:
    """A provider in which something times out that nobody foresaw; the operating system's ETIMEDOUT is one."""

    name = "faulty"

    async def send(self, _request):
        raise TimeoutError("from somewhere else")

    async def close(self):
        pass


def test_a_time_out_from_anywhere_leaves_no_hold_open(tmp_path, shared_provider):
    """Only the departure of the client is told by TimeoutError as well; any other is a fault like all faults."""
    with gateway_at(tmp_path / "home", shared_provider) as gateway, httpx.Client(base_url=gateway.url) as http:
        gateway.running.gateway.providers["faulty"] = _TimesOut()
        admin = {"authorization": f"Bearer {gateway.admin_key.reveal()}"}
        key = http.post("/key/generate", json={"max_parallel_requests": 1}, headers=admin).json()["key"]
        for _ in range(2):
            answer = http.post("/v1/chat/completions", json=ASK, headers={"authorization": f"Bearer {key}"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
        calls = http.get("/nemo/logs", headers=admin).json()["calls"]
        assert [call["state"] for call in calls] == ["failed", "failed"]
        assert all(status["held_nanos"] == 0 for status in http.get("/nemo/status", headers=admin).json())
        assert gateway.ledger_problems() == []


def test_a_gateway_that_stops_ends_its_calls_with_an_answer(tmp_path):
    """The client hears that it may come back, and the hold is settled before the file is closed."""
    with run_faulty_provider() as provider, ThreadPoolExecutor(1) as pool:
        with gateway_at(tmp_path / "home", provider) as gateway, httpx.Client(base_url=gateway.url, timeout=30) as http:
            admin = {"authorization": f"Bearer {gateway.admin_key.reveal()}"}
            key = http.post("/key/generate", json={}, headers=admin).json()["key"]
            sent = {"authorization": f"Bearer {key}"}
            waiting = pool.submit(httpx.post, f"{gateway.url}/v1/chat/completions", json=ASK, headers=sent, timeout=30)
            provider.seen(at_least=1)
            began = time.monotonic()
        answer = waiting.result()
        assert 10 <= time.monotonic() - began < 15, "calls in flight get ten seconds, as the guides say"
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "gateway_stopping"
        assert answer.headers["retry-after"] == "2"
        with gateway_at(tmp_path / "home", provider) as gateway, httpx.Client(base_url=gateway.url) as http:
            (call,) = http.get("/nemo/logs", headers=admin).json()["calls"]
            assert (call["state"], call["code"]) == ("failed", "gateway_stopping")
            assert call["cost_nanos"] == call["held_nanos"]
            assert gateway.ledger_problems() == []


def test_a_home_that_others_may_enter_is_refused_and_left_as_it_is(tmp_path):
    tmp_path.chmod(0o755)
    with pytest.raises(SettingsError, match=r"chmod 700"):
        open_home(tmp_path)
    assert tmp_path.stat().st_mode & 0o777 == 0o755
    assert list(tmp_path.iterdir()) == []


def test_a_lost_pepper_is_not_replaced_in_silence(tmp_path):
    """With another pepper every key would be unknown, and nothing would say why."""
    home = tmp_path / "home"
    with running_gateway(home):
        pass
    (home / "pepper").unlink()
    with pytest.raises(SettingsError, match=r"pepper is missing"), running_gateway(home):
        pass
    assert not (home / "pepper").exists()


def _ask_and_leave(url, headers, body, *, until):
    """Send a request over a bare socket, wait until the provider has it, and hang up."""
    address = urlsplit(url)
    request = httpx.Request("POST", f"{url}/v1/chat/completions", json=body, headers=headers)
    lines = [f"{name}: {value}" for name, value in request.headers.items()]
    head = "\r\n".join(["POST /v1/chat/completions HTTP/1.1", *lines, "", ""])
    with socket.create_connection((address.hostname, address.port)) as sock:
        sock.sendall(head.encode() + request.content)
        while not until():
            pass


@pytest.mark.parametrize("policy", ["drain", "cancel"])
def test_what_becomes_of_a_stream_whose_client_left_is_its_provider_s_policy(tmp_path, shared_provider, policy):
    """Read on, the end tells what it cost; cut off, nobody knows, and it is charged at its hold."""
    settings = settings_for(shared_provider)
    settings["providers"]["faulty"]["on_client_gone"] = policy
    with (
        gateway_at(tmp_path / "home", shared_provider, providers=settings["providers"]) as gateway,
        bench_for(gateway, shared_provider) as bench,
    ):
        with streamed(bench, bench.key(), "faulty/stepped") as answer:
            next(answer.iter_text())
        if policy == "drain":
            bench.faulty.release(100)
        (record,) = bench.faulty.seen(finished=True)["requests"]
        assert record["client_left"] is (policy == "cancel")
        row = bench.row(answer)
        assert row["state"] == "abandoned" or policy == "drain"  # it may end before its client's leaving is heard of
        assert row["usage_source"] == ("provider" if policy == "drain" else "hold")
        assert (row["cost_nanos"] == row["held_nanos"]) is (policy == "cancel")
