"""Two thousand calls through three providers of which each fails one in five: what the clients get, and what it costs.

What a provider does to a prompt is fixed by the seed, whoever is asked first and whatever runs beside it. Streams are
not broken after they have shown something: nobody else could finish those.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from faults_gateway import WatchedGateway, running_process, short
from faulty_provider import SEEDED, TEXT, FaultyProvider, run_faulty_provider
from gateway_bench import INPUT_NANOS, OUTPUT_NANOS, PRICE

CALLS = 2_000
AT_ONCE = 40
TIMEOUT_S = 1.5
NAMES = ("alpha", "beta", "gamma")
REFUSALS = frozenset({429, 500, 503})  # in the provider's own words: nothing was served
SEEDS = [pytest.param(1, id="1"), *(pytest.param(n, marks=pytest.mark.long, id=str(n)) for n in range(2, 22))]


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """An attempt as the log has it."""

    n: int
    provider: str
    status: int | None
    error: str | None
    held_nanos: int
    cost_nanos: int


@dataclass(kw_only=True)
class Outcome:
    """How a call ended for its client."""

    request_id: str
    answered: bool


@pytest.mark.parametrize("seed", SEEDS)
def test_almost_every_call_is_answered_and_the_ledger_is_what_was_billed(tmp_path: Path, seed: int):
    print(f"seed={seed}")  # noqa: T201 - a failure shows it
    with ExitStack() as stack:
        providers = {name: stack.enter_context(run_faulty_provider(f"--seed={seed}-{name}")) for name in NAMES}
        gateway = stack.enter_context(running_process(tmp_path / "home", settings_before(providers)))
        http = stack.enter_context(httpx.Client(base_url=gateway.url, trust_env=False, verify=False, timeout=30))
        key = a_key_for_the_group(gateway, http)
        outcomes = asyncio.run(call_all(gateway.url, key))
        gateway.until(lambda found: not found["in_flight"])
        http.get("/health/ready").raise_for_status()  # everything queued is committed
        assert verified(gateway, http) == []
        failed = [text for text, outcome in outcomes.items() if not outcome.answered]
        assert len(failed) <= CALLS // 100, failed
        records = {name: provider.seen(finished=True)["requests"] for name, provider in providers.items()}
    check_that_there_was_chaos(records)
    check_the_law(gateway.home / "gateway.db", outcomes, records)


def settings_before(providers: Mapping[str, FaultyProvider]) -> dict[str, Any]:
    return {
        **short(TIMEOUT_S),
        "sandbox": "off",
        "log_level": "error",
        "providers": {name: {"base_url": provider.base_url} for name, provider in providers.items()},
        "prices": {f"{name}/seeded": PRICE for name in providers},
    }


def admin(gateway: WatchedGateway, http: httpx.Client, method: str, path: str, body: Any = None) -> Any:
    headers = {"authorization": f"Bearer {gateway.admin_key.reveal()}"}
    answer = http.request(method, path, json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


def a_key_for_the_group(gateway: WatchedGateway, http: httpx.Client) -> str:
    """Declare the group, in which any of the three is asked first, and issue a key with a budget for it."""
    for name in NAMES:
        deployment = {
            "model_name": "group",
            "litellm_params": {"model": f"{name}/seeded"},
            "model_info": {"team_id": "crew", "nemo_strategy": "weighted", "nemo_retries": 1},
        }
        admin(gateway, http, "POST", "/model/new", deployment)
    fields = {"key_alias": "caller", "team_id": "crew", "models": ["group"], "max_budget": 100}
    issued: str = admin(gateway, http, "POST", "/key/generate", fields)["key"]
    return issued


def verified(gateway: WatchedGateway, http: httpx.Client) -> list[str]:
    problems: list[str] = admin(gateway, http, "GET", "/nemo/ledger/verify")["problems"]
    return problems


async def call_all(url: str, key: str) -> dict[str, Outcome]:
    """Make all calls, half of them streamed; return how each ended, by its prompt."""
    limits, places = httpx.Limits(max_connections=AT_ONCE), asyncio.Semaphore(AT_ONCE)
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(
        base_url=url, headers=headers, trust_env=False, verify=False, timeout=60, limits=limits
    ) as client:

        async def one(number: int) -> tuple[str, Outcome]:
            text = f"call {number}"
            async with places:
                return text, await call(client, text, stream=number % 2 == 1)

        return dict(await asyncio.gather(*(one(number) for number in range(CALLS))))


async def call(client: httpx.AsyncClient, text: str, *, stream: bool) -> Outcome:
    """Make one call and check that the whole answer came, or the whole truth about why not."""
    body = {"model": "group", "messages": [{"role": "user", "content": text}], "max_tokens": 50, "stream": stream}
    answer = await client.post("/v1/chat/completions", json=body)
    request_id = answer.headers["x-nemo-request-id"]
    if answer.status_code != 200:
        assert answer.status_code in {429, 502, 504}, answer.text
        assert len(answer.json()["error"]["attempts"]) == int(answer.headers["x-nemo-attempts"])
        return Outcome(request_id=request_id, answered=False)
    if not stream:
        assert answer.json()["choices"][0]["message"]["content"] == TEXT
        return Outcome(request_id=request_id, answered=True)
    *events, last = answer.text.removesuffix("\n\n").split("\n\n")
    if last != "data: [DONE]":  # the last attempt that was allowed was streamed at once, and broke
        assert '"code":"upstream_error"' in last
        return Outcome(request_id=request_id, answered=False)
    deltas = [choice["delta"] for event in events for choice in json.loads(event.removeprefix("data: "))["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == TEXT
    assert sum("role" in delta for delta in deltas) == 1, "nothing of a stream that was given up is in another"
    return Outcome(request_id=request_id, answered=True)


def check_that_there_was_chaos(records: Mapping[str, list[dict[str, Any]]]) -> None:
    """Every provider was asked much, failed about one in five, and in every way."""
    for name, requests in records.items():
        played = Counter(request["played"] for request in requests)
        faults = len(requests) - played["ok"]
        assert 0.15 < faults / len(requests) < 0.25, (name, played)
        assert set(played) == {"ok", *SEEDED[False], *SEEDED[True]}, (name, played)


def check_the_law(database: Path, outcomes: Mapping[str, Outcome], records: Mapping[str, list[dict[str, Any]]]) -> None:
    """Every attempt whose outcome is known posts exactly what was billed for it; any other its hold, never less."""
    billed_for: dict[tuple[str, str], list[int]] = defaultdict(list)
    for name, requests in records.items():
        for request in requests:
            text = request["body"]["messages"][0]["content"]
            bill = request["prompt_tokens"] * INPUT_NANOS + request["completion_tokens"] * OUTPUT_NANOS
            billed_for[text, name].append(bill)
    calls, attempts, posted = from_the_log(database)
    for text, outcome in outcomes.items():
        ours = attempts[outcome.request_id]
        assert [one.n for one in ours] == [*range(1, len(ours) + 1)]
        assert sum(one.cost_nanos for one in ours) == calls[outcome.request_id]
        assert (ours[-1].error is None) == outcome.answered
        for one in ours:
            billed = billed_for[text, one.provider].pop(0)
            if one.error is None or one.status in REFUSALS:
                assert one.cost_nanos == billed, (text, one, billed)
            else:
                assert one.cost_nanos == one.held_nanos >= billed, (text, one, billed)
    assert not any(billed_for.values()), "a request reached a provider, and no attempt of it is in the log"
    assert posted == sum(calls.values())


def from_the_log(database: Path) -> tuple[dict[str, int], dict[str, list[Attempt]], int]:
    """The cost of each call, the attempts of each, and what the role has posted; nothing may be held."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as db:
        costs = dict(db.execute("SELECT request_id, cost_nanos FROM calls"))
        rows = db.execute(
            "SELECT c.request_id, a.n, a.provider, a.status, a.error, a.held_nanos, a.cost_nanos "
            "FROM attempts a JOIN calls c USING (run, seq) ORDER BY a.run, a.seq, a.n"
        ).fetchall()
        ((posted, held),) = db.execute("SELECT sum(posted_nanos), sum(held_nanos) FROM balances WHERE kind='role'")
    assert held == 0
    attempts: dict[str, list[Attempt]] = defaultdict(list)
    for request_id, n, provider, status, error, held_nanos, cost_nanos in rows:
        attempts[request_id].append(
            Attempt(n=n, provider=provider, status=status, error=error, held_nanos=held_nanos, cost_nanos=cost_nanos)
        )
    return costs, attempts, posted
