"""After a heartbeat the answer is a stream, whatever comes of the attempts that follow: it ends as streams end."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults_gateway import FaultBench, fault_bench, watched_gateway
from faulty_provider import TEXT, FaultyProvider
from gateway_bench import Key

HEARTBEAT = b": still working\n\n"


@pytest.fixture
def beating(tmp_path: Path, provider: FaultyProvider) -> Iterator[FaultBench]:
    """A gateway that sends a heartbeat before the first attempt of `role-hang` has timed out."""
    with (
        watched_gateway(tmp_path / "home", provider, heartbeat_s=0.1) as gateway,
        fault_bench(gateway, provider) as ready,
    ):
        yield ready


def last_event(bench: FaultBench, key: Key, group: str, *, after_heartbeat: Any = None) -> dict[str, Any]:
    """Ask for a stream that begins with a heartbeat; return its only event."""
    body = {"model": group, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 50, "stream": True}
    with bench.http.stream("POST", "/v1/chat/completions", json=body, headers=key.headers) as answer:
        assert answer.status_code == 200
        pieces = answer.iter_bytes()
        read = next(pieces)
        assert read.startswith(HEARTBEAT)
        if after_heartbeat is not None:
            after_heartbeat()
        read += b"".join(pieces)
    event = read.replace(HEARTBEAT, b"")
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    found: dict[str, Any] = json.loads(event.removeprefix(b"data: "))["error"]
    return found


@pytest.mark.parametrize("second", ["ok", "wrong-kind"], ids=["stream", "plain"])
def test_the_next_deployment_answers_as_a_stream_also_when_it_answers_plainly(beating: FaultBench, second: str):
    group = beating.group("faulty/role-hang", f"faulty/{second}")
    answer = beating.chat(beating.key(models=(group,)), group, stream=True)
    assert answer.text.startswith(HEARTBEAT.decode())
    assert answer.text.endswith("data: [DONE]\n\n")
    told = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    assert "".join(each["choices"][0]["delta"].get("content") or "" for each in told if each["choices"]) == TEXT
    (row,) = beating.logs()
    assert (row["state"], row["attempts"], row["usage_source"]) == ("ok", 2, "provider")


def test_a_refusal_of_the_next_attempt_is_told(beating: FaultBench):
    group = beating.group("faulty/role-hang", "faulty/ok")
    error = last_event(beating, beating.key(models=(group,), max_budget=0.0002), group)
    assert (error["code"], error["scope"]) == ("budget_exhausted", "role")
    (row,) = beating.logs()
    assert (row["state"], row["status"], row["attempts"]) == ("refused", 402, 1)


def test_a_store_that_fails_before_the_next_attempt_is_told(beating: FaultBench):
    group = beating.group("faulty/role-hang", "faulty/ok")
    key = beating.key(models=(group,))
    stranger = sqlite3.connect(beating.gateway.home / "gateway.db", isolation_level=None)
    error = last_event(beating, key, group, after_heartbeat=lambda: stranger.execute("BEGIN IMMEDIATE"))
    stranger.execute("ROLLBACK")
    stranger.close()
    assert error["code"] == "store_unavailable"
    beating.until(lambda: beating.logs()[0]["state"] == "failed")
    assert [record["model"] for record in beating.sent()] == ["role-hang"]
