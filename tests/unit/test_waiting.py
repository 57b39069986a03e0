"""What is sent again and after which wait: the policy, and the clients that follow it, with a clock of the test."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from recording_gateway import RecordingGateway, Told, chunk, recording_gateway, refusal

from nemo_agents import (
    AgentRole,
    BudgetExceeded,
    Fleet,
    GatewayUnavailable,
    GatewayUnreachable,
    GuardrailBlocked,
    RateLimited,
    RunEnded,
    UpstreamFailed,
)
from nemo_agents.errors import ErrorFacts
from nemo_agents.trace.waiting import Sleeper, wait_after_loss_s, wait_after_refusal_s

KEY = "sk-nemo-abcdefghij-0123456789abcdefghijABCDEFGHIJKLxxxxxx"
ASK = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]}
SLOW_DOWN = refusal(429, "rate_limit_exceeded", headers={"retry-after": "7"}, scope="role", limit="rpm")


# --- the policy -----------------------------------------------------------------------------------------------------
def limited(retry_after_s: float | None, code: str = "rate_limit_exceeded", status: int = 429) -> RateLimited:
    return RateLimited("slow down", facts=ErrorFacts(status=status, code=code, retry_after_s=retry_after_s))


@pytest.mark.parametrize(
    ("error", "facts", "wait_s"),
    [
        (limited(7), {}, 7),
        (limited(0), {}, 0),
        (limited(120), {}, 120),
        (limited(120.5), {}, None),
        (limited(None), {}, None),
        (limited(7, code="loop_detected"), {}, None),
        (limited(7), {"told_not_to": True}, None),
        (limited(7), {"tries_left": 0}, None),
        (limited(7), {"left_s": 7.5}, 7),
        (limited(7), {"left_s": 7}, None),
        (limited(7), {"left_s": 0}, None),
        (limited(300), {"left_s": 400}, 300),
        (GatewayUnavailable("x", facts=ErrorFacts(status=503, retry_after_s=2)), {}, 2),
        (GatewayUnavailable("x", facts=ErrorFacts(status=503)), {}, None),
        (BudgetExceeded("x", facts=ErrorFacts(status=402, code="budget_held", retry_after_s=2)), {}, None),
        (UpstreamFailed("x", facts=ErrorFacts(status=502, retry_after_s=2)), {}, None),
        (GatewayUnreachable("x"), {}, None),
    ],
)
def test_a_refusal_is_waited_out_when_it_says_how_long_and_there_is_time(error, facts, wait_s):
    known = {"told_not_to": False, "tries_left": 1, "left_s": None, **facts}
    assert wait_after_refusal_s(error, **known) == wait_s


@pytest.mark.parametrize(
    ("lost", "tries_left", "left_s", "wait_s"),
    [(1, 2, None, 0.5), (2, 1, None, 1), (6, 1, None, 8), (1, 0, None, None), (1, 1, 0.5, None), (1, 1, 0.6, 0.5)],
)
def test_waits_after_lost_connections_grow(lost, tries_left, left_s, wait_s):
    assert wait_after_loss_s(lost=lost, tries_left=tries_left, left_s=left_s) == wait_s


# --- the clients ----------------------------------------------------------------------------------------------------
@dataclass
class Clock:
    """Time that passes only when somebody waits."""

    now_us: int = 1_000_000_000_000_000
    waits: list[float] = field(default_factory=list)
    then: Callable[[], object] = lambda: None

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now_us += int(seconds * 1e6)
        self.then()

    async def asleep(self, seconds: float) -> None:
        self.sleep(seconds)

    @property
    def sleeper(self) -> Sleeper:
        return Sleeper(sleep=self.sleep, asleep=self.asleep)


@pytest.fixture
def gateway():
    with recording_gateway() as running:
        yield running


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def fleet(gateway: RecordingGateway, tmp_path):
    roles = [AgentRole("researcher", models=["gpt-4o-mini"])]
    return Fleet("crew", roles=roles).connect(gateway.url, home=tmp_path, environ={"NEMO_KEY_RESEARCHER": KEY})


@pytest.fixture(params=["sync", "async"])
def ask(request, fleet, clock):
    """Call through either client of a member whose waits are the clock's."""
    member = replace(fleet["researcher"], sleeper=clock.sleeper)

    def call(*, max_retries: int = 2, **body):
        if request.param == "sync":
            return member.openai(max_retries=max_retries).chat.completions.create(**ASK, **body)
        client = member.async_openai(max_retries=max_retries)
        return asyncio.run(client.chat.completions.create(**ASK, **body))

    return call


def with_clock(run, clock):
    """The run, with the test's time and waits at its rim."""
    member = run.rim.member
    run.rim = replace(
        run.rim,
        clock_us=lambda: clock.now_us,
        member=lambda role: replace(member(role), sleeper=clock.sleeper),
    )
    return run


def test_a_rate_refusal_is_waited_out_as_it_says(ask, gateway, clock):
    gateway.answers.extend([SLOW_DOWN, SLOW_DOWN])
    assert ask().choices[0].message.content == "hi"
    assert clock.waits == [7, 7]
    assert [seen.headers["x-stainless-retry-count"] for seen in gateway.seen] == ["0", "1", "2"]
    assert len({str(seen.body) for seen in gateway.seen}) == 1


def test_the_third_refusal_is_told(ask, gateway, clock):
    gateway.answers.extend([SLOW_DOWN] * 4)
    with pytest.raises(RateLimited):
        ask()
    assert (clock.waits, len(gateway.seen)) == ([7, 7], 3)


def test_no_retries_means_one_request(ask, gateway, clock):
    gateway.answers.append(SLOW_DOWN)
    with pytest.raises(RateLimited):
        ask(max_retries=0)
    assert (clock.waits, len(gateway.seen)) == ([], 1)


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        (refusal(402, "budget_exhausted", headers={"x-should-retry": "false"}), BudgetExceeded),
        (refusal(402, "budget_held", headers={"retry-after": "1"}), BudgetExceeded),
        (refusal(400, "guardrail_blocked"), GuardrailBlocked),
        (refusal(429, "loop_detected", headers={"retry-after": "1"}), RateLimited),
        (refusal(429, "rate_limit_exceeded", headers={"retry-after": "1", "x-should-retry": "false"}), RateLimited),
        (refusal(429, "rate_limit_exceeded"), RateLimited),
        (refusal(429, "rate_limit_exceeded", headers={"retry-after": "121"}), RateLimited),
        (refusal(502, "upstream_error", headers={"retry-after": "1"}), UpstreamFailed),
        (refusal(500, "internal_error"), UpstreamFailed),
        (refusal(503, "store_unavailable"), GatewayUnavailable),
    ],
)
def test_everything_else_is_sent_once(ask, gateway, clock, told, kind):
    gateway.answers.append(told)
    with pytest.raises(kind):
        ask()
    assert (clock.waits, len(gateway.seen)) == ([], 1)


def test_an_unavailable_gateway_is_waited_for(ask, gateway, clock):
    gateway.answers.append(refusal(503, "store_unavailable", headers={"retry-after": "3"}))
    ask()
    assert (clock.waits, len(gateway.seen)) == ([3], 2)


def test_a_stream_that_is_refused_before_its_first_byte_is_asked_for_again(fleet, gateway, clock):
    gateway.answers.extend([SLOW_DOWN, Told(events=[chunk("a")])])
    client = replace(fleet["researcher"], sleeper=clock.sleeper).openai()
    pieces = list(client.chat.completions.create(**ASK, stream=True))
    assert [piece.choices[0].delta.content for piece in pieces] == ["a"]
    assert (clock.waits, len(gateway.seen)) == ([7], 2)


def test_a_stream_that_breaks_after_its_first_byte_is_not(fleet, gateway, clock):
    gateway.answers.append(Told(events=[chunk("a")], cut=True))
    client = replace(fleet["researcher"], sleeper=clock.sleeper).openai()
    stream = client.chat.completions.create(**ASK, stream=True)
    with pytest.raises(GatewayUnreachable):
        list(stream)
    assert (clock.waits, len(gateway.seen)) == ([], 1)


@pytest.mark.parametrize("how", ["sync", "async"])
def test_a_lost_connection_is_tried_again(fleet, clock, how):
    with recording_gateway() as gone:
        url = gone.url
    away = fleet.connect(url, environ={"NEMO_KEY_RESEARCHER": KEY})
    member = replace(away["researcher"], sleeper=clock.sleeper)

    def ask():
        if how == "sync":
            return member.openai().chat.completions.create(**ASK)
        return asyncio.run(member.async_openai().chat.completions.create(**ASK))

    with pytest.raises(GatewayUnreachable):
        ask()
    assert clock.waits == [0.5, 1]


def test_a_copy_with_other_options_waits_as_they_say(fleet, gateway, clock):
    gateway.answers.extend([SLOW_DOWN] * 5)
    client = replace(fleet["researcher"], sleeper=clock.sleeper).openai()
    with pytest.raises(RateLimited):
        client.with_options(max_retries=1).chat.completions.create(**ASK)
    assert clock.waits == [7]
    with pytest.raises(RateLimited):
        client.copy(max_retries=0).chat.completions.create(**ASK)
    assert (clock.waits, len(gateway.seen)) == ([7], 3)


# --- deadlines ------------------------------------------------------------------------------------------------------
def test_a_steps_deadline_goes_with_each_call_as_what_is_left_of_it(fleet, gateway, clock):
    gateway.answers.append(SLOW_DOWN)
    with with_clock(fleet.run("r"), clock) as run, run.step("s", "researcher", timeout_s=30) as step:
        step.openai().chat.completions.create(**ASK)
        fleet["researcher"].openai().chat.completions.create(**ASK)
        clock.sleep(60)
        step.openai().chat.completions.create(**ASK)
    assert [seen.headers["x-nemo-timeout-ms"] for seen in gateway.seen] == ["30000", "23000", "23000", "1"]


def test_a_call_outside_of_a_step_with_a_deadline_has_none(fleet, gateway, clock):
    with with_clock(fleet.run("r"), clock) as run:
        with run.step("s", "researcher", timeout_s=30) as step:
            client = step.openai()
        client.chat.completions.create(**ASK)
        with run.step("t", "researcher") as step:
            step.openai().chat.completions.create(**ASK)
    assert ["x-nemo-timeout-ms" in seen.headers for seen in gateway.seen] == [False, False]


def test_a_step_inside_another_has_no_more_time_than_that(fleet, clock):
    with with_clock(fleet.run("r"), clock) as run, run.step("a", "researcher", timeout_s=30) as outer:
        with run.step("b") as inner:
            assert inner.left_s() == 30
        with run.step("c", timeout_s=50) as inner:
            assert inner.left_s() == 30
        with run.step("d", timeout_s=10) as inner, run.span("tool", "t") as span:
            assert inner.left_s() == span.left_s() == 10
        assert outer.left_s() == 30


def test_a_wait_that_does_not_fit_into_the_deadline_is_not_begun(fleet, gateway, clock):
    gateway.answers.extend([SLOW_DOWN] * 3)
    with (
        pytest.raises(RateLimited),
        with_clock(fleet.run("r"), clock) as run,
        run.step("s", "researcher", timeout_s=10) as step,
    ):
        step.openai().chat.completions.create(**ASK)
    assert (clock.waits, len(gateway.seen)) == ([7], 2)


@pytest.mark.parametrize("timeout_s", [0, -1, float("inf"), float("nan")])
def test_a_deadline_is_a_time(fleet, timeout_s):
    from nemo_agents import DeclarationError

    with fleet.run("r") as run, pytest.raises(DeclarationError, match="timeout_s"):
        run.step("s", timeout_s=timeout_s)


# --- waits that are cut short ---------------------------------------------------------------------------------------
def test_an_interrupt_ends_a_wait(fleet, gateway, clock):
    def interrupt():
        raise KeyboardInterrupt

    gateway.answers.append(SLOW_DOWN)
    clock.then = interrupt
    with pytest.raises(KeyboardInterrupt):
        replace(fleet["researcher"], sleeper=clock.sleeper).openai().chat.completions.create(**ASK)
    assert len(gateway.seen) == 1


async def test_a_waiting_call_can_be_cancelled(fleet, gateway):
    waiting = asyncio.Event()

    async def asleep(_seconds: float) -> None:
        waiting.set()
        await asyncio.Event().wait()

    member = replace(fleet["researcher"], sleeper=Sleeper(sleep=Clock().sleep, asleep=asleep))
    gateway.answers.append(SLOW_DOWN)
    call = asyncio.create_task(member.async_openai().chat.completions.create(**ASK))
    await waiting.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert len(gateway.seen) == 1


def test_a_run_that_ends_during_a_wait_sends_nothing_more(fleet, gateway, clock):
    run = fleet.run("r").__enter__()
    client = replace(fleet["researcher"], sleeper=clock.sleeper).openai()
    clock.then = lambda: run.__exit__(None, None, None)
    gateway.answers.append(SLOW_DOWN)
    with pytest.raises(RunEnded):
        client.chat.completions.create(**ASK)
    assert len(gateway.seen) == 1
