"""What answers say of rates: the six headers of OpenAI, the two of the IETF's draft, and refusals."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from nemo_agents.policy.rates import (
    Allowed,
    Never,
    RateScope,
    Reading,
    Wait,
    judge,
    judge_parallel,
    newer_readings,
    rate_headers,
)

SIX = {f"x-ratelimit-{part}-{what}" for part in ("limit", "remaining", "reset") for what in ("requests", "tokens")}


def requests(remaining, *, limit=60, reset_us=0, shadow=False):
    return Reading(what="requests", limit=limit, remaining=remaining, reset_us=reset_us, shadow=shadow)


def tokens(remaining, *, limit=90_000, reset_us=0, shadow=False):
    return Reading(what="tokens", limit=limit, remaining=remaining, reset_us=reset_us, shadow=shadow)


def test_both_families_tell_the_tightest_of_each_kind():
    readings = [requests(50), requests(12, reset_us=4_000_001), tokens(90_000), tokens(70, limit=100, reset_us=1)]
    assert rate_headers(readings) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "12",
        "x-ratelimit-reset-requests": "5s",
        "x-ratelimit-limit-tokens": "100",
        "x-ratelimit-remaining-tokens": "70",
        "x-ratelimit-reset-tokens": "1ms",
        "ratelimit-policy": '"rpm";q=60;w=60, "tpm";q=100;w=60;qu="tokens"',
        "ratelimit": '"rpm";r=12;t=5, "tpm";r=70;t=1',
    }


def test_a_limit_in_mode_shadow_is_told_only_where_there_is_no_other():
    told = rate_headers([requests(0, shadow=True), requests(9), tokens(0, limit=5, shadow=True)])
    assert told["x-ratelimit-remaining-requests"] == "9"
    assert (told["x-ratelimit-remaining-tokens"], told["x-ratelimit-limit-tokens"]) == ("0", "5")


def test_a_limit_of_one_model_is_told_as_its_role_s():
    scope = RateScope(kind="model", id="g_1/openai/gpt-4o", name="researcher, openai/gpt-4o", rpm=3, max_parallel=1)
    refusal, _ = judge("rpm", [scope], [Wait(2_000_000)], weight=1)
    assert refusal is not None
    assert refusal.message == (
        "Role researcher has used its limit of 3 requests per minute for openai/gpt-4o (rpm). Retry in 2 s."
    )
    assert refusal.scope == "model"
    refusal, _ = judge_parallel([scope], [1])
    assert refusal is not None
    assert refusal.message.startswith("Role researcher has its limit of 1 calls in flight for openai/gpt-4o (max_")


def test_no_limit_no_header():
    assert rate_headers([]) == {}
    assert set(rate_headers([requests(1)])) == {name for name in SIX if "requests" in name} | {
        "ratelimit",
        "ratelimit-policy",
    }


_numbers = st.integers(0, 10**12)


@given(_numbers, _numbers, _numbers)
def test_every_header_can_be_read_back(limit, remaining, reset_us):
    headers = rate_headers([requests(remaining, limit=limit, reset_us=reset_us), tokens(remaining, limit=limit)])
    assert set(headers) == SIX | {"ratelimit", "ratelimit-policy"}
    standing = re.fullmatch(r'"rpm";r=(\d+);t=(\d+), "tpm";r=(\d+);t=0', headers["ratelimit"])
    assert standing is not None
    r, t, _ = map(int, standing.groups())
    assert r == remaining
    assert 0 <= t * 1_000_000 - reset_us < 1_000_000, "in seconds, rounded up"
    assert re.fullmatch(r"\d+ms|(\d+m)?\d+s", headers["x-ratelimit-reset-requests"])


def test_newer_readings_stand_for_older_ones_of_their_kind():
    before = (requests(5), tokens(100))
    assert newer_readings(before, (tokens(40),)) == (requests(5), tokens(40))
    assert newer_readings(before, ()) == before
    assert newer_readings((), before) == before


ROLE = RateScope(kind="role", id="g", rpm=5)
FLEET = RateScope(kind="fleet", id="f", rpm=9, name="crew")
SHADOW = RateScope(kind="model", id="g/m", rpm=3, shadow=frozenset({"rpm"}))


def test_the_scope_that_takes_longest_speaks_and_never_is_longest():
    refusal, shadowed = judge("rpm", [ROLE, FLEET], [Wait(10_000), Wait(20_000)], weight=1)
    assert (refusal.scope, refusal.retry_after_ms, shadowed) == ("fleet", 20, ())
    refusal, _ = judge("rpm", [ROLE, FLEET], [Never(), Wait(20_000)], weight=1)
    assert (refusal.scope, refusal.retry_after_ms) == ("role", None)
    assert judge("rpm", [ROLE, FLEET], [Allowed(), Allowed()], weight=1) == (None, ())


def test_what_is_in_shadow_is_told_apart():
    refusal, shadowed = judge("rpm", [ROLE, SHADOW], [Allowed(), Wait(10_000)], weight=1)
    assert refusal is None
    assert [told.scope for told in shadowed] == ["model"]
    refusal, shadowed = judge("rpm", [ROLE, SHADOW], [Wait(1), Never()], weight=1)
    assert (refusal.scope, [told.retry_after_ms for told in shadowed]) == ("role", [None])


def test_places_in_flight():
    few = RateScope(kind="role", id="g", max_parallel=2)
    quiet = RateScope(kind="fleet", id="f", max_parallel=1, shadow=frozenset({"max_parallel"}))
    assert judge_parallel([few, quiet], [1, 0]) == (None, ())
    refusal, shadowed = judge_parallel([few, quiet], [2, 1])
    assert (refusal.scope, refusal.limit, refusal.retry_after_ms) == ("role", "max_parallel", 1000)
    assert [told.scope for told in shadowed] == ["fleet"]
    closed = RateScope(kind="role", id="g", max_parallel=0)
    assert judge_parallel([closed], [0])[0].retry_after_ms is None
