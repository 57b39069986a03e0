"""What a call cost is what all of its attempts cost, wherever that is told: header, log, metric, balance."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import httpx
import pytest
from faulty_provider import FaultyProvider
from gateway_bench import Bench, Key, bench_for, gateway_at
from test_fallback import COST, group
from test_metrics_page import scrape

from nemo_agents.money import NANOS_PER_DOLLAR
from nemo_agents.testing import LocalGateway

HOLD = 164_000  # of one attempt of these calls


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, shared_provider: FaultyProvider) -> Iterator[LocalGateway]:
    """A gateway of these tests alone: where there are many fleets, a metric counts the rest of them as one."""
    with gateway_at(tmp_path_factory.mktemp("sums") / "home", shared_provider) as made:
        yield made


@pytest.fixture
def bench(gateway: LocalGateway, shared_provider: FaultyProvider) -> Iterator[Bench]:
    with bench_for(gateway, shared_provider) as ready:
        yield ready


def metric(bench: Bench) -> float:
    """The dollars that the metric has for the test's fleet, whichever models they went to."""
    fleet = ("fleet", bench.fleet)
    return sum(found for name, found in scrape(bench).items() if name[0] == "nemo_cost_dollars_total" and fleet in name)


def agree(bench: Bench, row: dict[str, Any], nanos: int, *, before: int = 0) -> None:
    """Check that log, ledger and metric name this sum; `before` is what the fleet's calls before it cost."""
    assert row["cost_nanos"] == nanos == sum(attempt["cost_nanos"] for attempt in row["attempt_rows"])
    assert bench.spent() == (before + nanos, 0)
    assert metric(bench) == pytest.approx((before + nanos) / NANOS_PER_DOLLAR, rel=1e-12)
    assert bench.ok("GET", "/nemo/ledger/verify") == {"problems": []}


def test_an_answer_tells_the_sum(bench: Bench) -> None:
    answer = bench.chat(group(bench, "faulty/not-json", "faulty/drop-before-head", "faulty/ok"), "group")
    assert answer.status_code == 200
    assert Decimal(answer.headers["x-nemo-request-cost"]) * NANOS_PER_DOLLAR == 2 * HOLD + COST
    agree(bench, bench.row(answer), 2 * HOLD + COST)


def test_so_does_the_record_of_a_stream(bench: Bench) -> None:
    answer = bench.chat(group(bench, "faulty/role-drop", "faulty/ok"), "group", stream=True)
    assert answer.text.endswith("data: [DONE]\n\n")
    agree(bench, bench.row(answer), HOLD + COST)


@pytest.mark.parametrize(
    ("last", "status", "charged"),
    [("drop-before-head", 502, HOLD), ("error-500", 502, 0), ("bad-request", 400, 0)],
)
def test_so_does_a_failure(bench: Bench, last: str, status: int, charged: int) -> None:
    answer = bench.chat(group(bench, "faulty/not-json", f"faulty/{last}"), "group")
    assert answer.status_code == status
    agree(bench, bench.row(answer), HOLD + charged)


def test_so_does_a_refusal_of_the_next_attempt(bench: Bench) -> None:
    answer = bench.chat(group(bench, "faulty/not-json", "faulty/ok", max_budget=0.0003), "group")
    assert answer.status_code == 402
    row = bench.row(answer)
    assert (row["state"], row["provider"], row["model_served"]) == ("refused", "faulty", "not-json")
    agree(bench, row, HOLD)


def test_so_does_a_refusal_of_what_no_budget_can_hold(bench: Bench) -> None:
    """An earlier call has set a budget for the run; what the second deployment costs nobody knows."""
    key = group(bench, "faulty/not-json", "unpriced/ok")
    run = {"x-nemo-run-id": f"{bench.fleet}-run"}
    other = bench.key(fleet=f"{bench.fleet}-b")
    assert bench.chat(bench.key(), "faulty/ok", headers={**run, "x-nemo-run-budget": "1"}).status_code == 200
    assert bench.chat(other, "faulty/ok").status_code == 200  # somebody else's is nobody's sum
    answer = bench.chat(key, "group", headers=run)
    assert answer.status_code == 400
    agree(bench, bench.row(answer), HOLD, before=COST)


def test_so_does_the_record_of_a_call_that_was_cut(bench: Bench) -> None:
    key: Key = group(bench, "faulty/not-json", "faulty/hang")
    call = bench.later(bench.chat, key, "group")
    bench.faulty.seen(at_least=2)
    bench.ok("POST", "/key/block", {"key": key.public_id})
    answer: httpx.Response = call.result()
    assert answer.status_code == 403
    agree(bench, bench.row(answer), 2 * HOLD)
