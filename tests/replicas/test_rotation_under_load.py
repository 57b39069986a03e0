"""Keys change while two hundred calls a second are made: the valid one always works, the revoked one never again."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from replica_load import load_of
from replica_stack import Key, Stack, until

CALLERS = 10
PER_S = 200
ROTATIONS = 50
WITHIN_S = 1.0


def callers_at(per_s: int) -> list[dict[str, Any]]:
    """Callers that make so many calls a second between them, on all replicas in turn, half of them streams."""
    calls = [
        {"marker": f"n{number}", "key": "role", "body": {"model": "faulty/ok", "max_tokens": 5, "stream": stream}}
        for number, stream in enumerate((True, False))
    ]
    return [
        {
            "calls": [{**call, "marker": f"{caller}.{call['marker']}"} for call in calls],
            "forever": True,
            "pace_s": CALLERS / per_s,
            "first_after_s": caller / per_s,
        }
        for caller in range(CALLERS)
    ]


def rotate(stack: Stack, key: Key, grace: str, *, replica: int) -> Key:
    issued = stack.ok("POST", f"/key/{key.public_id}/regenerate", {"grace_period": grace}, replica=replica)
    return Key(secret=issued["key"], public_id=issued["token"], fleet=key.fleet)


def refused_everywhere(stack: Stack, key: Key, since: float) -> float:
    """Return how long after `since` the last replica began to refuse a key."""
    for replica in range(len(stack.gateways)):

        def refused(at: int = replica) -> bool:
            answer = stack.chat(key, replica=at, max_tokens=1)
            assert answer.status_code in {200, 403}, answer.text
            return answer.status_code == 403

        until(refused, f"replica {replica} refuses the key", timeout_s=10)
    return time.monotonic() - since


def test_the_valid_key_works_through_fifty_rotations(stack: Stack):
    key = stack.key(budget=1_000.0)
    grant, fleet = stack.grant_of(key), key.fleet
    with load_of(stack.urls, {"role": key.secret}, callers_at(PER_S)) as load:
        answered = load.answered(at_least=PER_S // 4)
        for number in range(ROTATIONS):
            key = rotate(stack, key, "30s", replica=number % len(stack.gateways))
            load.use_key("role", key.secret)
            answered = load.answered(at_least=answered + 10)
        outcomes = load.stop()
    assert Counter((each.status, each.code) for each in outcomes) == {(200, None): len(outcomes)}
    stack.settle(fleet)
    assert stack.grant_of(key) == grant
    posted, _ = stack.spent(grant, "role")
    assert stack.spent(fleet) == (posted, 0)
    assert posted == sum(stack.charged(each.marker for each in outcomes).values()) > 0
    limit = stack.ok("GET", "/key/info", key=key.public_id)["info"]["max_budget"]
    assert limit == 1_000.0


def test_rotations_on_different_replicas_at_once_lose_no_key(stack: Stack):
    key = stack.key()
    replicas = [number % len(stack.gateways) for number in range(6)]
    with ThreadPoolExecutor(len(replicas)) as pool:
        made = list(pool.map(lambda replica: rotate(stack, key, "60s", replica=replica), replicas))
    for successor in (key, *made):
        for replica in range(len(stack.gateways)):
            assert stack.chat(successor, replica=replica).status_code == 200
    stack.settle(key.fleet)


def test_an_old_key_is_refused_within_a_second_of_its_rotation(stack: Stack):
    key = stack.key()
    with load_of(stack.urls, {"role": stack.key().secret}, callers_at(PER_S)) as load:
        load.answered(at_least=PER_S // 4)
        for number in range(5):
            successor = rotate(stack, key, "0s", replica=number % len(stack.gateways))
            assert refused_everywhere(stack, key, time.monotonic()) <= WITHIN_S
            assert stack.chat(successor, replica=(number + 1) % len(stack.gateways)).status_code == 200
            key = successor
        outcomes = load.stop()
    assert {each.status for each in outcomes} == {200}
    stack.settle(key.fleet)


def test_a_revoked_key_is_refused_and_its_streams_are_cut_within_a_second(stack: Stack):
    streams = len(stack.gateways)
    with load_of(stack.urls, {"role": stack.key().secret}, callers_at(PER_S)) as load:
        load.answered(at_least=PER_S // 4)
        for number in range(5):
            stack.provider.reset()
            key = stack.key()
            body = {"model": "faulty/stepped", "max_tokens": 10, "stream": True}
            on_each = [
                {"calls": [{"marker": f"cut{number}-{at}", "key": "doomed", "body": body}], "target": at}
                for at in range(streams)
            ]
            with load_of(stack.urls, {"doomed": key.secret}, on_each) as doomed:
                until(lambda: _stepped(stack) == streams, "every replica has its stream")
                stack.ok("POST", "/key/delete", {"keys": [key.public_id]}, replica=number % streams)
                revoked_us, since = time.time_ns() // 1000, time.monotonic()
                assert refused_everywhere(stack, key, since) <= WITHIN_S
                for cut in doomed.outcomes():
                    assert (cut.status, cut.code, cut.done) == (200, "key_revoked", False)
                    assert cut.ended_us - revoked_us <= WITHIN_S * 1e6
            stack.settle(key.fleet)
        outcomes = load.stop()
    assert {each.status for each in outcomes} == {200}


def _stepped(stack: Stack) -> int:
    return sum(request["model"] == "stepped" for request in stack.provider.seen()["requests"])
