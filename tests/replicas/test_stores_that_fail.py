"""PostgreSQL and Redis are killed, frozen and cut off under load: no budget is passed, and service comes back.

Every failure meets callers who spend a fresh dollar, so that the limit is reached while things break.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from faulty_provider import FaultyProvider, run_faulty_provider
from replica_cutter import Cutter, cutter_before
from replica_load import Load, load_of
from replica_stack import DOLLAR, Key, Stack, billed, fresh_database, replicas, until
from services import Service, run_postgres, run_redis

pytestmark = pytest.mark.timeout(400)  # fifty failures of each server, twenty seconds of them frozen
CALLERS = 24
FROZEN_S = 5.0
RECOVERS_S = 5.0
SETTLES_S = 60.0
TIMES = {"first_byte_timeout_s": 3.0, "idle_timeout_s": 3.0, "hold_ttl_s": 6.0, "drain_timeout_s": 1.0}


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Service, Service]]:
    """A PostgreSQL and a Redis that these tests may treat as they like."""
    with run_postgres() as postgres, run_redis() as redis:
        yield postgres, redis


@pytest.fixture
def provider() -> Iterator[FaultyProvider]:
    with run_faulty_provider("--many=2000") as running:
        yield running


@contextmanager
def gateways_with_cutters(
    folder: Path, provider: FaultyProvider, postgres: Service, redis: Service
) -> Iterator[tuple[Stack, Cutter, Cutter]]:
    """Three gateways that reach both servers through a cutter each; the books are read past them."""
    redis.ensure()
    with (
        fresh_database(postgres) as database,
        cutter_before(postgres.port) as to_postgres,
        cutter_before(redis.port) as to_redis,
        replicas(
            folder,
            provider,
            database=database.replace(f":{postgres.port}/", f":{to_postgres.port}/"),
            cache=f"redis://127.0.0.1:{to_redis.port}/0",
            books=database,
            log_level="error",
            **TIMES,
        ) as stack,
    ):
        yield stack, to_postgres, to_redis


def callers(chance: random.Random) -> list[dict[str, Any]]:
    return [
        {
            "calls": [
                {
                    "marker": f"f{caller}.{number}",
                    "key": "role",
                    "body": {
                        "model": chance.choice(("faulty/ok", "faulty/many-chunks")),
                        "max_tokens": chance.randint(1, 20),
                        "stream": number % 2 == 0,
                    },
                }
                for number in range(5)
            ],
            "forever": True,
            "pace_s": 0.2,
            "first_after_s": 0.2 * caller / CALLERS,
        }
        for caller in range(CALLERS)
    ]


def serves_again(stack: Stack, key: Key) -> None:
    """Every replica answers 200 to a key with money left, soon, and without having been started anew."""
    ends = time.monotonic() + RECOVERS_S
    for replica in range(len(stack.gateways)):
        left = ends - time.monotonic()
        until(lambda at=replica: stack.chat(key, replica=at).status_code == 200, "it serves again", timeout_s=left)
    assert all(gateway.process is not None and gateway.process.poll() is None for gateway in stack.gateways)


def break_things(stack: Stack, load: Load, times: int, fail: Callable[[random.Random], None]) -> list[Key]:
    """Let things fail so many times, each time while callers spend another dollar; return all keys."""
    chance, rich = random.Random(7), stack.key()
    keys = [rich]
    for _ in range(times):
        key = stack.key(budget=1.0, fleet_budget=1.0)
        keys.append(key)
        load.use_key("role", key.secret)
        load.answered(at_least=load.answered() + chance.randint(1, 20))
        fail(chance)
        serves_again(stack, rich)
    return keys


def check(stack: Stack, keys: list[Key], outcomes: list[Any]) -> None:
    statuses = Counter((each.status, each.code) for each in outcomes)
    allowed = {(200, None), (402, "budget_exhausted"), (402, "budget_held"), (503, "store_unavailable")}
    assert set(statuses) <= allowed, statuses
    assert statuses[503, "store_unavailable"], f"no caller met an outage: {statuses}"
    stack.settle(*(key.fleet for key in keys), timeout_s=SETTLES_S)
    for key in keys[1:]:
        posted, _ = stack.spent(key.fleet)
        assert posted <= stack.most(key.fleet) <= DOLLAR
    charged, cost = stack.charged(prefix="f"), billed(stack.provider, prefix="f")
    below = {marker: (charged.get(marker), nanos) for marker, nanos in cost.items() if charged.get(marker, -1) < nanos}
    assert not below, f"charged less than the provider billed, or not at all: {below}"


def killed(service: Service) -> Callable[[random.Random], None]:
    return lambda _: service.restart()


def frozen(service: Service) -> Callable[[random.Random], None]:
    def fail(_: random.Random) -> None:
        service.stop()
        ends = time.monotonic() + FROZEN_S
        while (left := ends - time.monotonic()) > 0:
            time.sleep(left)  # the length of the freeze is what is tested
        service.cont()

    return fail


def cut_off(cutter: Cutter, load: Load) -> Callable[[random.Random], None]:
    """In turn: every connection is cut; answers are lost after the commit; nobody can connect for a while."""

    def fail(chance: random.Random) -> None:
        before = cutter.cuts
        match chance.randrange(3):
            case 0:
                cutter.drop()
            case 1:
                cutter.swallow()
                until(lambda: cutter.cuts >= before + 3, "answers were swallowed")
            case _:
                cutter.refuse()
                outcomes = load.ended()
                until(lambda: load.ended() >= outcomes + 10, "callers met it")
        cutter.mend()
        assert cutter.cuts > before

    return fail


TIMES_EACH = {"killed": 20, "frozen": 4, "cut off": 26}


@pytest.mark.parametrize("which", ["postgres", "redis"])
@pytest.mark.parametrize("how", TIMES_EACH)
def test_no_budget_is_passed_while_a_server_fails(
    tmp_path: Path, provider: FaultyProvider, servers: tuple[Service, Service], which: str, how: str
):
    postgres, redis = servers
    service = postgres if which == "postgres" else redis
    with (
        gateways_with_cutters(tmp_path, provider, postgres, redis) as (stack, to_postgres, to_redis),
        load_of(stack.urls, {"role": stack.key(budget=1.0).secret}, callers(random.Random(3))) as load,
    ):
        cutter = to_postgres if which == "postgres" else to_redis
        fail = {"killed": killed(service), "frozen": frozen(service), "cut off": cut_off(cutter, load)}[how]
        keys = break_things(stack, load, TIMES_EACH[how], fail)
        check(stack, keys, load.stop())
