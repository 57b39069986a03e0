"""What every limiter does, in memory and in Redis, by one replica or by three that take turns."""

from __future__ import annotations

from limiter_bench import SECOND, T0, fresh_name, scopes_of, settled

from nemo_agents.errors import Code
from nemo_agents.gateway.limiter.base import Repeat
from nemo_agents.policy.budgets import LoopRule
from nemo_agents.policy.rates import newer_readings, rate_headers


async def test_all_scopes_count_a_request_or_none(turns):
    name = fresh_name()
    scopes = scopes_of(name, rpm=5, fleet={"rpm": 1})
    assert (await turns.limiter.admit(T0, scopes, None)).refusal is None
    refusal = (await turns.limiter.admit(T0 + 1, scopes, None)).refusal
    assert (refusal.status, refusal.code, refusal.scope, refusal.limit) == (
        429,
        Code.RATE_LIMIT_EXCEEDED,
        "fleet",
        "rpm",
    )
    assert refusal.retry_after_ms == 60_000
    assert list(await turns.limiter.used(T0 + 1, scopes)) == [(1, 0), (1, 0)]


async def test_the_limits_of_one_model_are_its_own(turns):
    name = fresh_name()
    limited = scopes_of(name, rpm=10, model={"rpm": 1, "tpm": 50})
    assert (await turns.limiter.admit(T0, limited, None)).refusal is None
    refusal = (await turns.limiter.admit(T0, limited, None)).refusal
    assert (refusal.scope, refusal.limit) == ("model", "rpm")
    assert (await turns.limiter.admit(T0, limited[:1], None)).refusal is None, "another model passes"
    assert (await turns.limiter.enter(T0, limited, 51)).refusal.scope == "model"


async def test_a_place_and_tokens_are_taken_both_or_neither(turns):
    scopes = scopes_of(fresh_name(), tpm=100, max_parallel=1, fleet={"tpm": 1000, "max_parallel": 5})
    too_many = await turns.limiter.enter(T0, scopes, 101)
    assert (too_many.lease, too_many.refusal.limit, too_many.refusal.retry_after_ms) == (None, "tpm", None)
    first = await turns.limiter.enter(T0, scopes, 60)
    assert first.lease is not None, "the refused call has left its place"
    second = await turns.limiter.enter(T0, scopes, 10)
    assert (second.lease, second.refusal.limit) == (None, "max_parallel")
    assert list(await turns.limiter.used(T0, scopes)) == [(0, 60), (0, 60)], "the refused call has charged nothing"


async def test_leaving_gives_the_place_back_and_corrects_the_tokens_once(turns):
    scopes = scopes_of(fresh_name(), tpm=100, max_parallel=1)
    limiter = turns.limiter
    entry = await limiter.enter(T0, scopes, 60)
    limiter.leave(entry.lease, 10)
    limiter.leave(entry.lease, 0)
    await settled(limiter)
    assert list(await turns.limiter.used(T0, scopes)) == [(0, 10)]
    again = await limiter.enter(T0, scopes, 90)
    assert again.lease is not None
    limiter.leave(again.lease, None)
    await settled(limiter)
    assert list(await turns.limiter.used(T0, scopes)) == [(0, 100)], "what is not known stays at the estimate"


async def test_use_beyond_the_estimate_is_a_debt(turns):
    scopes = scopes_of(fresh_name(), tpm=100)
    limiter = turns.limiter
    entry = await limiter.enter(T0, scopes, 10)
    limiter.leave(entry.lease, 400)
    await settled(limiter)
    later = T0 + 10 * SECOND
    refused = await turns.limiter.enter(later, scopes, 1)
    assert refused.refusal.retry_after_ms == 50_000
    assert [reading.remaining for reading in refused.readings if reading.what == "tokens"] == [0]
    assert (await turns.limiter.enter(later + 50 * SECOND, scopes, 1)).lease is not None


async def test_a_call_that_ends_after_its_minute_corrects_nothing(turns):
    scopes = scopes_of(fresh_name(), tpm=100)
    limiter = turns.limiter
    entry = await limiter.enter(T0, scopes, 60)
    assert list(await limiter.used(T0 + 60 * SECOND, scopes)) == [(0, 0)]
    limiter.leave(entry.lease, 90)
    await settled(limiter)
    assert list(await limiter.used(T0 + 60 * SECOND, scopes)) == [(0, 0)]


async def test_a_shadow_limit_counts_and_tells_and_never_refuses(turns):
    shadow = frozenset({"rpm", "tpm", "max_parallel"})
    scopes = scopes_of(fresh_name(), rpm=1, tpm=100, max_parallel=1, shadow=shadow)
    assert (await turns.limiter.admit(T0, scopes, None)).shadowed == ()
    admission = await turns.limiter.admit(T0 + SECOND, scopes, None)
    assert admission.refusal is None
    assert [(told.limit, told.retry_after_ms) for told in admission.shadowed] == [("rpm", 59_000)]
    assert (await turns.limiter.enter(T0, scopes, 100)).shadowed == ()
    entry = await turns.limiter.enter(T0, scopes, 101)
    assert entry.lease is not None
    assert [(told.limit, told.retry_after_ms) for told in entry.shadowed] == [("max_parallel", 1000), ("tpm", None)]
    assert list(await turns.limiter.used(T0 + SECOND, scopes)) == [(2, 201)]


async def test_the_nth_repeat_is_a_loop_and_passes_when_the_oldest_is_over(turns):
    scopes = scopes_of(fresh_name(), rpm=100)
    rule = LoopRule(repeats=3, within_s=10, mode="enforce")
    run = f"{scopes[0].fleet}/run-1"

    async def ask(at_us, digest=b"d" * 16, run=run):
        return (await turns.limiter.admit(at_us, scopes, Repeat(run=run, digest=digest, rule=rule))).refusal

    assert await ask(T0) is None
    assert await ask(T0 + 4 * SECOND) is None
    loop = await ask(T0 + 5 * SECOND + 1)
    assert (loop.status, loop.code, loop.scope, loop.limit) == (429, Code.LOOP_DETECTED, "run", "loop")
    assert loop.retry_after_ms is None
    assert "run-1" in loop.message
    assert "at least 3 times within 10 s" in loop.message
    assert loop.message.endswith(" in 5 s.")
    assert await ask(T0 + 5 * SECOND, digest=b"e" * 16) is None, "another request"
    assert await ask(T0 + 5 * SECOND, run=f"{scopes[0].fleet}/run-2") is None, "another run"
    assert (await ask(T0 + 10 * SECOND - 1)).message.endswith(" in 0.001 s.")
    assert await ask(T0 + 10 * SECOND) is None
    assert await ask(T0 + 10 * SECOND) is not None
    assert (await turns.limiter.used(T0 + 10 * SECOND, scopes))[0][0] == 8, "a refused repeat keeps its request slot"


async def test_a_loop_in_mode_shadow_is_told_as_long_as_it_lasts(turns):
    scopes = scopes_of(fresh_name(), rpm=100)
    repeat = Repeat(run="r/1", digest=b"d" * 16, rule=LoopRule(repeats=2, within_s=10, mode="shadow"))
    told = []
    for second in range(0, 40, 8):
        admission = await turns.limiter.admit(T0 + second * SECOND, scopes, repeat)
        assert admission.refusal is None
        told.append([refusal.code for refusal in admission.shadowed])
    assert told == [[], *[[Code.LOOP_DETECTED]] * 4]


async def test_the_six_headers_come_of_the_tightest_readings(turns):
    scopes = scopes_of(fresh_name(), rpm=30, tpm=100_000, fleet={"rpm": 10})
    admission = await turns.limiter.admit(T0, scopes, None)
    entry = await turns.limiter.enter(T0 + SECOND, scopes, 400)
    headers = rate_headers(newer_readings(admission.readings, entry.readings))
    assert {name: headers[f"x-ratelimit-{name}"] for name in ("limit-requests", "remaining-requests")} == {
        "limit-requests": "10",
        "remaining-requests": "9",
    }
    assert headers["x-ratelimit-remaining-tokens"] == "99600"
    assert headers["x-ratelimit-reset-tokens"] == "1m0s"
    assert headers["ratelimit-policy"] == '"rpm";q=10;w=60, "tpm";q=100000;w=60;qu="tokens"'


async def test_a_refusal_has_readings_of_both_kinds(turns):
    scopes = scopes_of(fresh_name(), rpm=1, tpm=100)
    await turns.limiter.admit(T0, scopes, None)
    refused = await turns.limiter.admit(T0 + SECOND, scopes, None)
    assert [(reading.what, reading.remaining, reading.reset_us) for reading in refused.readings] == [
        ("requests", 0, 59 * SECOND),
        ("tokens", 100, 0),
    ]


async def test_a_clock_that_steps_back_gives_nothing_away(turns):
    scopes = scopes_of(fresh_name(), rpm=2)
    for _ in range(2):
        assert (await turns.limiter.admit(T0, scopes, None)).refusal is None
    refusal = (await turns.limiter.admit(T0 - 30 * SECOND, scopes, None)).refusal
    assert refusal.retry_after_ms == 90_000


async def test_above_a_thousand_charges_of_a_moment_share_an_entry_dated_at_the_latest(turns):
    scopes = scopes_of(fresh_name(), tpm=2000)
    for at_us in (T0, T0 + 50_000, T0 + 70_000):
        await turns.limiter.enter(at_us, scopes, 600)
    refused = await turns.limiter.enter(T0 + SECOND, scopes, 600)
    assert refused.refusal.retry_after_ms == 59_050
    assert [await turns.limiter.used(T0 + 60 * SECOND + late, scopes) for late in (0, 49_999, 50_000, 70_000)] == [
        [(0, 1800)],
        [(0, 1800)],
        [(0, 600)],
        [(0, 0)],
    ]
