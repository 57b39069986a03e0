"""Faults that repeat: a deployment is left alone for a while and then asked again, and a storm of 429 costs nothing."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from faults_gateway import FaultBench

IN_A_ROW = 5


def names(bench: FaultBench) -> list[str]:
    """The models that the provider was asked for since the last look."""
    found = [record["model"] for record in bench.sent()]
    bench.faulty.reset()
    return found


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("fault", ["error-500", "proxy-503", "drop-before-head", "hang", "http-2", "drop-after-head"])
def test_five_failures_in_a_row_put_a_deployment_out_of_every_pick(bench: FaultBench, fault: str, stream: bool):
    group = bench.group(f"faulty/{fault}", "faulty/ok")
    key = bench.key(models=(group,))
    for n in range(1, IN_A_ROW + 1):
        assert bench.gateway.state(group, fault) == "ready"
        assert bench.chat(key, group, stream=stream).headers["x-nemo-attempts"] == "2", n
    assert bench.gateway.state(group, fault) == "cooling"
    assert names(bench) == [fault, "ok"] * IN_A_ROW
    assert bench.chat(key, group, stream=stream).headers["x-nemo-attempts"] == "1"
    assert names(bench) == ["ok"]


def test_streams_that_break_after_they_showed_something_count_as_well(bench: FaultBench):
    group = bench.group("faulty/drop-mid-stream", "faulty/ok")
    key = bench.key(models=(group,))
    for _ in range(IN_A_ROW):
        assert '"error"' in bench.chat(key, group, stream=True).text
    assert bench.gateway.state(group, "drop-mid-stream") == "cooling"
    assert '"error"' not in bench.chat(key, group, stream=True).text


def test_what_the_client_is_to_blame_for_never_does(bench: FaultBench):
    group = bench.group("faulty/bad-request", "faulty/ok")
    key = bench.key(models=(group,))
    for _ in range(2 * IN_A_ROW):
        assert bench.chat(key, group).status_code == 400
    assert bench.gateway.state(group, "bad-request") == "ready"


def test_it_is_asked_again_after_its_cooldown_and_is_back_when_it_has_recovered(bench: FaultBench):
    group = bench.group("faulty/switched", "faulty/ok")
    key = bench.key(models=(group,))

    def asked() -> list[str]:
        assert bench.chat(key, group).status_code == 200
        return names(bench)

    for _ in range(IN_A_ROW):
        assert asked() == ["switched", "ok"]
    assert asked() == ["ok"]
    bench.gateway.advance(4.9 - 1.0)  # a second for what has passed by itself
    assert asked() == ["ok"]
    bench.gateway.advance(1.2)
    assert bench.gateway.state(group, "switched") == "probing"
    assert asked() == ["switched", "ok"], "a probe, which fails: twice as long from now on"
    bench.gateway.advance(6)
    assert asked() == ["ok"]
    bench.gateway.advance(4.5)
    bench.faulty.release(2)
    assert asked() == ["switched"], "a probe, which is answered"
    assert bench.gateway.state(group, "switched") == "ready"
    bench.faulty.release(1)
    assert asked() == ["switched"]


def test_a_storm_of_429_reaches_every_client_and_costs_nothing(bench: FaultBench):
    before = bench.gateway.measure()
    key = bench.key()
    answers = many(bench, key.headers, "faulty/rate-limited-60", 1_000)
    assert {answer.status_code for answer in answers} == {429}
    assert {answer.headers["retry-after"] for answer in answers} == {"60"}
    assert {answer.json()["error"]["scope"] for answer in answers} == {"provider"}
    assert bench.spent() == (0, 0)
    assert len(bench.sent()) == 1_000
    bench.all_over()
    after = bench.gateway.until(lambda found: found["tasks"] <= before["tasks"])
    assert (after["busy"], after["waiting"]) == ({}, 0)


def test_a_storm_of_429_goes_to_the_next_deployment_and_leaves_the_first_alone(bench: FaultBench):
    group = bench.group("faulty/rate-limited-60", "faulty/ok")
    key = bench.key(models=(group,))
    answers = many(bench, key.headers, group, 300)
    assert {answer.status_code for answer in answers} == {200}
    refused = names(bench).count("rate-limited-60")
    assert 1 <= refused <= bench.threads, "only those that were under way when the first was refused"
    bench.gateway.advance(61)
    assert bench.chat(key, group).headers["x-nemo-attempts"] == "2"


def many(bench: FaultBench, headers: dict[str, str], model: str, count: int) -> list[httpx.Response]:
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 50}
    calls = [bench.later(bench.http.post, "/v1/chat/completions", json=body, headers=headers) for _ in range(count)]
    return [each.result() for each in calls]
