"""The log of attempts, over chains of failures that a seed draws: complete, in order, and adding up to its call."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from world import (
    DONE,
    Bench,
    Caller,
    a_day,
    a_piece,
    a_prompt,
    an_answer,
    bill_of,
    pieces,
    plain,
    sqlite_bench,
    streamed,
    the_usage,
)

from nemo_agents.gateway.ports import ProviderRequest, ProviderResponse, UpstreamError
from nemo_agents.gateway.rim import SystemClock
from nemo_agents.policy.failover import WAIT_MS_MAX
from nemo_agents.policy.routing import Deployment, Options

MODELS = ("alpha/cheap", "beta/plain", "delta/dear")
FULL_NAME = {name.partition("/")[2]: name for name in MODELS}
TOKENS_IN, TOKENS_OUT = 12, 5
ATTEMPTS_MAX = 4
CALLS = 60  # of one seed, all at once
CLOCKS_APART_US = 5_000  # a start is read from the clock, an end is counted from the call's start; and timers round
OWN_ERROR = b'{"error": {"message": "no", "type": "server_error"}}'
STATUS = {"429": 429, "429 soon": 429, "500": 500, "503": 503, "page 503": 503, "400": 400, "202": 202}
FREE = frozenset({"refused", "429", "429 soon", "500", "503", "400"})
ENDS_ALL = frozenset({"400", "202"})  # nobody else is asked
DOES = (*STATUS, "refused", "reset", "time-out", "not JSON", "error 200", "breaks at once", "no usage", "answers")
ANSWERS = frozenset({"answers", "no usage"})


@dataclass(kw_only=True)
class Chain:
    """What the providers do to one call, attempt by attempt, and what they were asked for."""

    group: str
    stream: bool
    does: list[str]
    asked: list[str] = field(default_factory=list)


def draw(seed: int) -> dict[str, Chain]:
    """Draw the chains of a seed, by the prompts of their calls."""
    dice = random.Random(seed)
    chains = {}
    for number in range(CALLS):
        group = f"of-{dice.randint(1, 3)}-retries-{dice.randint(0, 2)}"
        does = [dice.choice(DOES) for _ in range(ATTEMPTS_MAX)]
        chains[f"call {number}"] = Chain(group=group, stream=dice.random() < 0.5, does=does)
    return chains


class Providers:
    """All providers: each request is a further attempt of the chain that its prompt names."""

    def __init__(self, chains: dict[str, Chain]) -> None:
        self.chains = chains

    async def __call__(self, _request: ProviderRequest, body: dict[str, Any]) -> ProviderResponse:
        chain = self.chains[body["messages"][0]["content"]]
        what = chain.does[len(chain.asked)]
        chain.asked.append(FULL_NAME[body["model"]])
        match what:
            case "refused":
                raise UpstreamError("connection refused", sent=False)
            case "reset":
                raise UpstreamError("connection reset", sent=True)
            case "time-out":
                raise UpstreamError("no answer in time", sent=True, timed_out=True)
            case "page 503":
                return plain(b"<html>", 503)
            case "429 soon":
                response = plain(OWN_ERROR, 429)
                response.headers["retry-after-ms"] = "5"
                return response
            case "not JSON":
                return plain(b"<html>")
            case "error 200":
                return plain(OWN_ERROR)
            case "breaks at once":
                return streamed(pieces(b": nothing yet\n\n"))
            case "answers" | "no usage":
                return answer(stream=chain.stream, tells=what == "answers")
            case _:
                return plain(OWN_ERROR, STATUS[what])


def answer(*, stream: bool, tells: bool) -> ProviderResponse:
    if not stream:
        return plain(an_answer(TOKENS_IN, TOKENS_OUT) if tells else an_answer(0, 0, usage=None))
    usage = [the_usage(TOKENS_IN, TOKENS_OUT)] if tells else []
    return streamed(pieces(*[a_piece("x", end=n == TOKENS_OUT - 1) for n in range(TOKENS_OUT)], *usage, DONE))


async def declare_groups(bench: Bench) -> None:
    """A group for each number of deployments and of retries."""
    for size in (1, 2, 3):
        for retries in (0, 1, 2):
            group = f"of-{size}-retries-{retries}"
            for order, model in enumerate(MODELS[:size]):
                await bench.store.put_deployment(
                    Deployment(
                        deployment_id=f"{group}-{order}",
                        fleet=None,
                        group=group,
                        model=model,
                        order=order,
                        options=Options(retries=retries),
                    )
                )
    await bench.gateway.load()


@pytest.mark.parametrize("seed", [*range(6), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(6, 200))])
async def test_the_log_has_every_attempt_in_order_and_they_add_up(tmp_path: Path, seed: int):
    chains = draw(seed)
    async with sqlite_bench(tmp_path, Providers(chains), a_day(10_000), clock=SystemClock()) as bench:
        await declare_groups(bench)

        async def one(text: str, chain: Chain) -> Caller:
            body = a_prompt(text, model=chain.group, stream=chain.stream, max_tokens=TOKENS_OUT)
            caller = Caller(bench.key, body)
            caller.leaves = asyncio.Event().wait  # it never does
            await caller.call(bench.gateway)
            return caller

        callers = await asyncio.gather(*(one(text, chain) for text, chain in chains.items()))
        await bench.store.flush()
        total = 0
        for (text, chain), caller in zip(chains.items(), callers, strict=True):
            try:
                row = await bench.store.call(caller.headers["x-nemo-request-id"])
                assert row is not None
                check_order(row, chain, began=caller.status == 200)
                check_times(row)
                check_costs(row, chain)
                check_told(row, caller)
            except AssertionError as error:
                error.add_note(f"seed={seed}, {text}: {chain}")
                raise
            total += row.cost_nanos or 0
        role = await bench.balance(period=f"{datetime.now(UTC):%Y-%m-%d}")
        assert (role.posted_nanos, role.held_nanos) == (total, 0)
    attempts = sum(len(chain.asked) for chain in chains.values())
    assert attempts > CALLS * 1.5, "the dice have to make chains"


def check_order(row: Any, chain: Chain, *, began: bool) -> None:
    """One row for each request that a provider got, numbered from 1, with why it was made and how it ended."""
    rows = row.attempt_rows
    assert [f"{one.provider}/{one.model}" for one in rows] == chain.asked
    assert [one.n for one in rows] == [*range(1, row.attempts + 1)]
    asked: set[str] = set()
    for one in rows:
        name = f"{one.provider}/{one.model}"
        assert one.reason == ("first" if one.n == 1 else "retry" if name in asked else "fallback")
        asked.add(name)
    for one, what in zip(rows, chain.does, strict=False):
        # After the last attempt that there may be nothing can follow, so it is streamed at once, and breaks as a 502.
        cut = began and what == "breaks at once" and one is rows[-1]
        assert one.status == (200 if what in ANSWERS else 502 if cut else STATUS.get(what)), what
        assert (one.error is None) == (what in ANSWERS), what
        assert one is rows[-1] or what not in ANSWERS | ENDS_ALL
    assert row.state == ("ok" if rows[-1].error is None else "failed")


def check_times(row: Any) -> None:
    """An attempt begins after the one before it has ended, and after its own wait; the call spans them all."""
    ended_us = row.started_us
    for one in row.attempt_rows:
        assert 0 <= one.wait_ms <= WAIT_MS_MAX
        assert one.wait_ms == 0 or one.reason == "retry"
        assert one.latency_us is not None
        assert one.latency_us >= 0
        assert one.started_us >= ended_us + one.wait_ms * 1_000 - CLOCKS_APART_US
        ended_us = one.started_us + one.latency_us
    assert ended_us <= row.started_us + row.latency_us + CLOCKS_APART_US


def check_costs(row: Any, chain: Chain) -> None:
    """Each attempt costs nothing, what its usage says, or its hold; together they are the cost of the call."""
    for one, what in zip(row.attempt_rows, chain.does, strict=False):
        bill = bill_of(f"{one.provider}/{one.model}", TOKENS_IN, TOKENS_OUT)
        expected = 0 if what in FREE else bill if what == "answers" else one.held_nanos
        assert one.cost_nanos == expected, what
        assert one.held_nanos >= bill
    assert row.cost_nanos == sum(one.cost_nanos for one in row.attempt_rows)


def check_told(row: Any, caller: Caller) -> None:
    """A client that is told of a failure is told of the same attempts."""
    assert caller.headers["x-nemo-attempts"] == str(row.attempts) or row.stream
    if caller.status in {200, 400}:
        return
    told = json.loads(caller.body)["error"]["attempts"]
    facts = ("n", "provider", "model", "status", "error", "wait_ms")
    assert [[each[name] for name in facts] for each in told] == [
        [getattr(one, name) for name in facts] for one in row.attempt_rows
    ]
