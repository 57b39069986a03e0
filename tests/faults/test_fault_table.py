"""Every fault of a provider, alone and before a good deployment: the documented answer, and nothing left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from faults_gateway import MIB, FaultBench
from faults_table import FAULTS, PAGE, Fault, Outcome, page
from faulty_provider import BEHAVIOURS, TEXT
from faulty_wire import WIRE_FAULTS

from nemo_agents.policy.sse import SseSplitter

ROWS = [fault for faults in FAULTS.values() for fault in faults]
LARGE = {"endless-line": 80 * MIB}  # a plain answer may be long; anything else is read for the socket's buffers at most
WAITS_FOR_RELEASES = {"dribble": 6_000, "reset-after-head": 1}


def ask(bench: FaultBench, fault: Fault, model: str, *, stream: bool) -> httpx.Response:
    """Ask for a completion, and give the provider the releases that this fault needs."""
    name = fault.model.rpartition("/")[2]
    if name in WAITS_FOR_RELEASES:
        bench.faulty.release(WAITS_FOR_RELEASES[name])
    if not (stream and name == "reset-mid-body"):
        if name == "reset-mid-body":
            bench.faulty.release()
        return bench.chat(bench.key(models=(model,)), model, stream=stream)
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 50, "stream": True}
    headers = bench.key(models=(model,)).headers
    with bench.http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
        read = bytearray()
        for piece in answer.iter_bytes():
            if not read:
                bench.faulty.release()  # not before the first half is through
            read += piece
    return httpx.Response(answer.status_code, headers=answer.headers, content=bytes(read))


def events_of(answer: httpx.Response) -> list[Any]:
    """The events of a stream, decoded; what is no JSON as its bytes."""
    splitter = SseSplitter()
    found: list[Any] = []
    for event in [*splitter.feed(answer.content), *splitter.end()]:
        if event.data is not None:
            try:
                found.append(json.loads(event.data))
            except (ValueError, RecursionError):
                found.append(event.data)
    return found


def check_told(answer: httpx.Response, outcome: Outcome) -> None:
    """The client was told what the page says, and which attempts there were."""
    assert answer.status_code == outcome.status, answer.text[:500]
    if outcome.event:
        last = events_of(answer)[-1]
        assert last["error"]["message"]
        return
    assert answer.headers.get("x-nemo-error-code") == outcome.code
    if outcome.code is None:
        return
    error = answer.json()["error"]
    if outcome.status == 400:
        assert error["message"] == "Unsupported value", "the provider's own words"
        return
    assert error["code"] == outcome.code
    assert [each["n"] for each in error["attempts"]] == [*range(1, outcome.asked + 1)]
    assert all(each["error"] and each["latency_ms"] >= 0 for each in error["attempts"])
    if outcome.status == 429:
        assert answer.headers["retry-after"] == "60"


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("fault", ROWS, ids=lambda fault: fault.model)
def test_alone_it_is_answered_as_the_page_says(bench: FaultBench, fault: Fault, stream: bool):
    outcome = fault.outcome(stream=stream)
    answer = ask(bench, fault, fault.model, stream=stream)
    check_told(answer, outcome)
    row = bench.row(answer)
    attempts = row["attempt_rows"]
    assert len(attempts) == outcome.asked == int(answer.headers["x-nemo-attempts"])
    for attempt in attempts:
        usage = attempt["cost_nanos"] not in {0, attempt["held_nanos"]}
        held = attempt["cost_nanos"] == attempt["held_nanos"]
        assert {"nothing": not attempt["cost_nanos"], "hold": held, "usage": usage}[outcome.charged], attempt
        assert bool(attempt["error"]) == outcome.failed
    assert row["cost_nanos"] == sum(attempt["cost_nanos"] for attempt in attempts)
    assert row["state"] == ("failed" if outcome.failed else "ok")
    seen = bench.faulty.seen(finished=True)["requests"]
    largest = LARGE.get(fault.model.rpartition("/")[2], 0) if not stream else 0
    assert all(record["sent_bytes"] < max(largest, 16 * MIB) for record in seen), "it was read much too far"
    assert all(record["path"] != "/_trap" for record in seen)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("fault", ROWS, ids=lambda fault: fault.model)
def test_before_a_good_deployment_that_one_answers_unless_something_was_shown(
    bench: FaultBench, fault: Fault, stream: bool
):
    outcome = fault.outcome(stream=stream)
    answer = ask(bench, fault, bench.group(fault.model, "faulty/ok"), stream=stream)
    rows = bench.row(answer)["attempt_rows"]
    if not outcome.goes_on:
        assert len(rows) == 1
        assert answer.status_code == outcome.status
        assert (events_of(answer)[-1]["error"] is not None) if outcome.event else True
        return
    assert answer.status_code == 200
    assert answer.headers["x-nemo-attempts"] == "2"
    first, second = rows
    assert first["error"]
    assert (second["reason"], second["status"], second["error"]) == ("fallback", 200, None)
    if stream:
        deltas = [choice["delta"] for event in events_of(answer)[:-1] for choice in event["choices"]]
        assert "".join(delta.get("content") or "" for delta in deltas) == TEXT
        assert sum("role" in delta for delta in deltas) == 1, "nothing of the first stream is in it"
    else:
        assert answer.json()["choices"][0]["message"]["content"] == TEXT


def test_after_all_of_them_at_once_nothing_is_left(fresh: FaultBench):
    """Three times every fault, plain and streamed, sixteen at a time, before one gateway."""
    bench = fresh
    key = bench.key(models=("*",))

    def call(model: str, stream: bool) -> None:
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 50, "stream": stream}
        with httpx.Client(base_url=bench.url, trust_env=False, verify=False, timeout=30) as client:
            answer = client.post("/v1/chat/completions", json=body, headers=key.headers)
        assert answer.status_code in {200, 400, 429, 502, 504}, answer.text[:500]

    def all_of(models: list[str]) -> None:
        calls = [bench.later(call, model, stream) for model in models for stream in (False, True)]
        for each in calls:
            each.result()
        bench.all_over()

    all_of(["faulty/ok", "faulty/error-500"] * 20)
    bench.http.close()
    before = bench.gateway.until(lambda found: not found["in_flight"])
    bench.faulty.release(100_000)
    all_of([fault.model for fault in ROWS] * 3)
    own_files = before["files"] - before["idle"]
    after = bench.gateway.until(
        lambda found: found["tasks"] <= before["tasks"] and found["files"] - found["idle"] <= own_files
    )
    assert (after["busy"], after["waiting"], after["in_flight"]) == ({}, 0, 0)
    assert after["rss_bytes"] - before["rss_bytes"] < 50 * MIB
    assert all(each["in_flight"] == 0 for each in bench.gateway.ask("deployments").values())
    bench.http = httpx.Client(base_url=bench.url, trust_env=False, verify=False, timeout=30)
    assert bench.chat(key).status_code == 200


def test_the_page_is_what_these_tests_go_by():
    assert PAGE.read_text(encoding="utf-8") == page(), f"run: python {Path('tests/faults/faults_table.py')}"


def test_every_fault_on_the_wire_has_a_row():
    rows = [fault.model.partition("/")[2] for fault in ROWS]
    assert set(WIRE_FAULTS) <= set(rows)
    assert len(ROWS) == len({fault.model for fault in ROWS}) > 60
    assert set(rows) <= set(BEHAVIOURS)
