"""Rates as they are told in every answer, rates by model, loops, shadow mode, and a limiter that is down."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from gateway_bench import Bench, Key, bench_for, gateway_at, refused

from nemo_agents.gateway.limiter.base import LimiterUnavailable
from nemo_agents.policy.pricing import input_tokens_estimate

SIX = [f"x-ratelimit-{part}-{what}" for part in ("limit", "remaining", "reset") for what in ("requests", "tokens")]
RESET = re.compile(r"(\d+m)?\d+(ms|s)")
MESSAGES = [{"role": "user", "content": "hi"}]


def rates_of(answer: httpx.Response) -> dict[str, str]:
    """Check that an answer tells all rates in both ways, which agree, and return the six headers."""
    told = {name: answer.headers[name] for name in SIX}
    limit = re.fullmatch(r'"rpm";q=(\d+);w=60, "tpm";q=(\d+);w=60;qu="tokens"', answer.headers["ratelimit-policy"])
    left = re.fullmatch(r'"rpm";r=(\d+);t=(\d+), "tpm";r=(\d+);t=(\d+)', answer.headers["ratelimit"])
    assert limit is not None
    assert left is not None
    assert limit.groups() == (told["x-ratelimit-limit-requests"], told["x-ratelimit-limit-tokens"])
    assert (left[1], left[3]) == (told["x-ratelimit-remaining-requests"], told["x-ratelimit-remaining-tokens"])
    assert int(left[2]) <= 60
    assert int(left[4]) <= 60
    assert all(RESET.fullmatch(told[f"x-ratelimit-reset-{what}"]) for what in ("requests", "tokens"))
    return told


def left_of(answer: httpx.Response) -> tuple[int, int]:
    told = rates_of(answer)
    return int(told["x-ratelimit-remaining-requests"]), int(told["x-ratelimit-remaining-tokens"])


# --- told in every answer -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_a_success_tells_what_is_left(bench: Bench, stream: bool):
    key = bench.key(rpm_limit=5, tpm_limit=1000)
    estimate = input_tokens_estimate({"messages": MESSAGES}) + 50
    for n in range(2):
        answer = bench.chat(key, stream=stream)
        assert answer.status_code == 200
        used = n * 16  # what the call before has really used: 1 + 15
        assert left_of(answer) == (4 - n, 1000 - used - estimate)
        bench.all_over()


def test_a_role_without_limits_is_told_the_ceiling(bench: Bench):
    told = rates_of(bench.chat(bench.key()))
    assert (told["x-ratelimit-limit-requests"], told["x-ratelimit-limit-tokens"]) == ("60000", "1000000000")


def test_every_kind_of_refusal_and_error_tells_them(bench: Bench):
    key = bench.key(models=("faulty/*", "down/*"), rpm_limit=50, tpm_limit=5000, max_budget=1)
    answers = [
        bench.chat(key),
        bench.chat(key, "nowhere/ok"),  # before it is counted
        bench.chat(key, max_tokens=-1),
        bench.chat(key, max_tokens=9000),
        bench.chat(key, "down/ok"),
        bench.chat(key, "faulty/error-500", stream=True),
        bench.chat(key, "faulty/rate-limited"),
        bench.chat(key, "faulty/bad-request"),
        bench.chat(key, nemo_guardrail_ids=["none of that name"]),
        bench.raw(key, b"{"),
        bench.http.get("/v1/models", headers=key.headers),
    ]
    assert [answer.status_code for answer in answers] == [200, 403, 400, 429, 502, 502, 429, 400, 400, 400, 200]
    requests_left = [left_of(answer)[0] for answer in answers]
    assert requests_left == [49, 49, 48, 47, 46, 45, 44, 43, 42, 42, 42]
    bench.ok("POST", "/key/block", {"key": key.public_id})
    blocked = bench.chat(key)
    refused(blocked, 403, "key_blocked")
    assert left_of(blocked)[0] == 42


def test_a_key_that_is_unknown_is_told_nothing(bench: Bench):
    answer = bench.http.post("/v1/chat/completions", json={}, headers={"authorization": "Bearer sk-nemo-x"})
    assert answer.status_code == 401
    assert not any("ratelimit" in name for name in answer.headers)


def test_the_tightest_of_role_fleet_and_model_is_told(bench: Bench):
    bench.ok("POST", "/team/new", {"team_id": bench.fleet, "rpm_limit": 4})
    key = bench.key(rpm_limit=10, model_rpm_limit={"faulty/ok": 2})
    assert rates_of(bench.chat(key))["x-ratelimit-limit-requests"] == "2"
    assert rates_of(bench.chat(key, "faulty/usage-last"))["x-ratelimit-limit-requests"] == "4"


# --- by model -------------------------------------------------------------------------------------------------------
def test_a_limit_of_one_model_leaves_the_others_alone(bench: Bench):
    key = bench.key(model_rpm_limit={"faulty/ok": 1}, model_tpm_limit={"faulty/usage-last": 60})
    assert bench.chat(key).status_code == 200
    answer = bench.chat(key)
    error = refused(answer, 429, "rate_limit_exceeded", limit="rpm", scope="model")
    assert "faulty/ok" in error["message"]
    assert 0 < error["retry_after_ms"] <= 60_000
    row = bench.row(answer)
    assert (row["scope"], row["limit"], row["cost_nanos"]) == ("model", "rpm", 0)
    assert bench.chat(key, "faulty/usage-last", max_tokens=50).status_code == 200
    refused(bench.chat(key, "faulty/usage-last", max_tokens=50), 429, "rate_limit_exceeded", limit="tpm", scope="model")
    assert bench.chat(key, "faulty/created").status_code == 200
    assert len(bench.sent()) == 3


def test_calls_in_flight_of_one_model(bench: Bench):
    key = bench.key(metadata={"nemo": {"model_max_parallel": {"faulty/slow-first-byte": 1}}})
    waiting = bench.later(bench.chat, key, "faulty/slow-first-byte")
    bench.faulty.seen(at_least=1)
    refused(bench.chat(key, "faulty/slow-first-byte"), 429, "rate_limit_exceeded", limit="max_parallel", scope="model")
    assert bench.chat(key).status_code == 200
    bench.faulty.release()
    assert waiting.result().status_code == 200


# --- shadow ---------------------------------------------------------------------------------------------------------
def shadows(bench: Bench, answer: httpx.Response) -> list[tuple[str, str, str]]:
    """What an answer's record says would have refused it."""
    return [(each["code"], each["scope"], each["limit"]) for each in bench.row(answer)["shadow"]]


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_a_rate_in_shadow_mode_is_told_and_recorded_and_refuses_nothing(bench: Bench, stream: bool):
    key = bench.key(rpm_limit=1, tpm_limit=10, metadata={"nemo": {"shadow": ["rpm", "tpm"]}})
    first, second = bench.chat(key, stream=stream), bench.chat(key, stream=stream)
    assert first.headers["x-nemo-shadow"] == "tpm"
    assert second.headers["x-nemo-shadow"] == "rpm, tpm"
    assert second.status_code == 200
    assert shadows(bench, second) == [
        ("rate_limit_exceeded", "role", "rpm"),
        ("rate_limit_exceeded", "role", "tpm"),
    ]
    assert "tokens" in bench.row(first)["shadow"][0]["message"]
    assert "x-nemo-shadow" not in bench.chat(bench.key()).headers


def test_a_rate_that_is_enforced_beside_one_in_shadow_mode_refuses(bench: Bench):
    key = bench.key(rpm_limit=1, tpm_limit=10, metadata={"nemo": {"shadow": ["tpm"]}})
    assert bench.chat(key).headers["x-nemo-shadow"] == "tpm"
    refused(bench.chat(key), 429, "rate_limit_exceeded", limit="rpm")
    assert len(bench.sent()) == 1


# --- loops ----------------------------------------------------------------------------------------------------------
def looping(bench: Bench, **rule: Any) -> Key:
    return bench.key(metadata={"nemo": {"loop": {"repeats": 3, "within_s": 60, **rule}}})


RUN = {"x-nemo-run-id": "r1"}


def test_the_same_request_again_and_again_in_one_run_is_refused(bench: Bench):
    key = looping(bench, mode="enforce")
    answers = [bench.chat(key, headers=RUN, seed=n) for n in range(3)]
    assert [answer.status_code for answer in answers[:2]] == [200, 200]
    error = refused(answers[2], answers[2].status_code, "loop_detected")
    assert answers[2].status_code == 429
    assert (error["limit"], "retry_after_ms" in error) == ("loop", False)
    assert (answers[2].headers["x-should-retry"], answers[2].headers.get("retry-after")) == ("false", None)
    row = bench.row(answers[2])
    assert (row["state"], row["code"], row["cost_nanos"]) == ("refused", "loop_detected", 0)
    run = bench.ok("GET", "/nemo/runs/r1", fleet=bench.fleet)["run"]
    assert (run["state"], run["stopped_by"]["kind"], run["stopped_by"]["limit"]) == ("stopped", "loop", "loop")
    assert bench.chat(key, headers=RUN, text="something else").status_code == 200
    run = bench.ok("GET", "/nemo/runs/r1", fleet=bench.fleet)["run"]
    assert (run["state"], run["stopped_by"]) == ("recovered", None)
    assert bench.chat(key, headers={"x-nemo-run-id": "r2"}).status_code == 200
    assert len(bench.sent()) == 4


def test_calls_of_no_run_are_no_loop(bench: Bench):
    key = looping(bench, mode="enforce")
    assert {bench.chat(key).status_code for _ in range(4)} == {200}


def test_a_loop_in_shadow_mode_is_told_and_recorded(bench: Bench):
    key = looping(bench, mode="shadow")
    answers = [bench.chat(key, headers=RUN) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200] * 4
    assert [answer.headers.get("x-nemo-shadow") for answer in answers[:3]] == [None, None, "loop"]
    (shadowed,) = bench.row(answers[2])["shadow"]
    assert (shadowed["code"], shadowed["limit"]) == ("loop_detected", "loop")


# --- a limiter that is down -----------------------------------------------------------------------------------------
class Broken:
    """A limiter whose server is gone, from the outside; what is behind it is not harmed."""

    def __init__(self, whole: Any, *broken: str) -> None:
        self._whole = whole
        self._broken = broken

    def __getattr__(self, name: str) -> Any:
        if name not in self._broken:
            return getattr(self._whole, name)

        async def unavailable(*_args: Any) -> None:
            raise LimiterUnavailable("its server is gone")

        return unavailable


@pytest.fixture
def own(tmp_path, shared_provider) -> Iterator[Bench]:
    with gateway_at(tmp_path / "home", shared_provider) as gateway, bench_for(gateway, shared_provider) as bench:
        yield bench


@pytest.mark.parametrize("broken", ["admit", "enter"])
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_without_its_count_nothing_is_sent(own: Bench, broken: str, stream: bool):
    key = own.key(max_budget=1)
    state = own.gateway.running.gateway
    whole, state.limiter = state.limiter, Broken(state.limiter, broken, "used")
    answer = own.chat(key, stream=stream)
    refused(answer, 503, "store_unavailable", retry_after_ms=1000)
    ready = own.http.get("/health/ready")
    assert ready.status_code == 503
    assert {name: ready.json()[name] for name in ("code", "store", "limiter")} == {
        "code": "store_unavailable",
        "store": "ready",
        "limiter": "store_unavailable",
    }
    assert own.http.get("/v1/models", headers=key.headers).status_code == 200  # which only comes without its rates
    state.limiter = whole
    assert own.http.get("/health/ready").json() == {"status": "ready", "store": "ready", "limiter": "ready"}
    row = own.row(answer)
    assert (row["state"], row["status"], row["code"], row["cost_nanos"]) == ("failed", 503, "store_unavailable", 0)
    assert own.sent() == []
    assert own.chat(key).status_code == 200


def test_a_place_in_flight_is_given_back_on_every_path(bench: Bench):
    """One place is enough for calls that end in every way there is, one after the other."""
    key = bench.key(models=("faulty/*", "down/*", "nowhere/*"), max_parallel_requests=1, max_budget=1)
    client = bench.client(key)
    for model in ("ok", "error-500", "not-json", "drop-before-head", "drop-mid-body", "bad-request", "no-content"):
        for stream in (False, True):
            bench.chat(key, f"faulty/{model}", stream=stream)
            bench.all_over()
    bench.chat(key, "down/ok")
    bench.chat(key, "nowhere/ok")
    bench.chat(key, max_tokens=1_000_000)  # no budget takes it
    with client.chat.completions.create(model="faulty/stepped", messages=MESSAGES, stream=True) as stream:
        next(iter(stream))
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(model="faulty/ok", messages=MESSAGES)
    bench.faulty.release(50)
    bench.all_over()
    assert bench.chat(key).status_code == 200
