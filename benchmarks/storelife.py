"""Beside the stores' own speed: how long a start takes after a long day, and what one noisy role costs the others."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx
from longday import fill_the_day
from machine import BenchmarkError, tail

READY_S = 60.0
CLIENT = Path(__file__).parents[1] / "tests" / "replicas" / "replica_client.py"
NORMAL_ROLES, NORMAL_PER_S, TIMES_NOISIER = 20, 2, 50
NOISY_CALLERS = 20
FAIR_ROUNDS = 3
ADMIN_KEY = "sk-nemo-admin-of-the-benchmark-0123456789"
PEPPER = "the pepper of the benchmark, which guards nothing"


@contextmanager
def launched(home: Path, flags: Sequence[str] = ()) -> Iterator[tuple[str, subprocess.Popen[bytes], float]]:
    """Run a gateway with the sandbox behind it; yield its address, its process, and the seconds until it was ready."""
    log = home.with_suffix(".log")
    env = {name: value for name, value in os.environ.items() if not name.startswith("NEMO_")}
    env |= {"PYTHONUNBUFFERED": "1", "NEMO_ADMIN_KEY": ADMIN_KEY, "NEMO_PEPPER": PEPPER}
    argv = [str(Path(sys.executable).with_name("nemo-agents")), "gateway", "--port", "0", "--home", str(home)]
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*argv, "--sandbox", "on", *flags], env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        while True:
            if found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text(encoding="utf-8", errors="replace")):
                try:
                    if httpx.get(f"{found[0]}/health/ready", timeout=2.0, trust_env=False).is_success:
                        break
                except httpx.TransportError:
                    pass  # it has printed its address and does not answer yet
            if process.poll() is not None or time.monotonic() - started > READY_S:
                raise BenchmarkError(f"the gateway did not start:\n{tail(log)}")
            time.sleep(0.005)
        yield found[0], process, time.monotonic() - started
    finally:
        process.kill()
        process.wait(10)


def make_key(url: str, alias: str, **wishes: Any) -> str:
    """Make a role's key in the benchmark's fleet and return its secret."""
    asked = {"key_alias": alias, "team_id": "bench", "models": ["*"], "max_budget": 1_000_000.0, **wishes}
    answer = httpx.post(
        f"{url}/key/generate", json=asked, headers={"authorization": f"Bearer {ADMIN_KEY}"}, timeout=10, trust_env=False
    )
    if not answer.is_success:
        raise BenchmarkError(f"no key was made: {answer.text[:300]}")
    secret: str = answer.json()["key"]
    return secret


def restart_seconds(folder: Path, *, entries: int, times: int) -> list[float]:
    """Return how long a killed gateway takes from its command until it is ready, with so many entries in the day."""
    home = folder / f"restart-{entries}"
    with launched(home) as (url, process, _):
        body = {"model": "gpt-4o-mini", "max_tokens": 20, "messages": [{"role": "user", "content": "hello"}]}
        key = {"authorization": f"Bearer {make_key(url, 'first')}"}
        httpx.post(f"{url}/v1/chat/completions", json=body, headers=key, trust_env=False).raise_for_status()
        httpx.get(f"{url}/health/ready", trust_env=False).raise_for_status()
        process.kill()
    if entries:
        fill_the_day(home / "gateway.db", calls=entries // 2)
    found = []
    for _ in range(times):
        with launched(home) as (url, _, seconds):  # it is killed at the end, not stopped
            found.append(seconds)
            problems = httpx.get(
                f"{url}/nemo/ledger/verify",
                headers={"authorization": f"Bearer {ADMIN_KEY}"},
                timeout=60,
                trust_env=False,
            ).json()["problems"]
            if problems:
                raise BenchmarkError(f"the books do not add up: {problems[:3]}")
    return found


def fairness(folder: Path, *, seconds: float, flags: Sequence[str] = (), replicas: int = 1) -> dict[str, float]:
    """Return the p95 of twenty normal roles in ms: alone, and beside one that asks fifty times as often and is refused.

    The noisy role may make as many calls as a normal one makes, and makes those of its minute in its first second; the
    rest of what it asks is refused with 429. Both are measured in turn, so that a slow second of the machine hits both.
    All callers ask one gateway after another.
    """
    with ExitStack() as stack:
        homes = [folder / f"fair-{len(flags)}-{replicas}-{number}" for number in range(replicas)]
        urls = [stack.enter_context(launched(home, flags))[0] for home in homes]
        keys = {f"normal-{number}": make_key(urls[0], f"normal-{number}") for number in range(NORMAL_ROLES)}
        keys["noisy"] = make_key(urls[0], "noisy", rpm_limit=60 * NORMAL_PER_S)
        normal = [
            _caller(name, NORMAL_PER_S, number / NORMAL_ROLES) for number, name in enumerate(keys) if name != "noisy"
        ]
        rate = NORMAL_PER_S * TIMES_NOISIER / NOISY_CALLERS
        noise = [_caller("noisy", rate, number / NOISY_CALLERS) for number in range(NOISY_CALLERS)]
        _latencies_ms(urls, keys, normal, seconds / FAIR_ROUNDS)  # warm
        alone, beside = list[float](), list[float]()
        for _ in range(FAIR_ROUNDS):
            alone += _latencies_ms(urls, keys, normal, seconds / FAIR_ROUNDS)
            beside += _latencies_ms(urls, keys, [*normal, *noise], seconds / FAIR_ROUNDS)
    alone_ms, beside_ms = _p95(alone), _p95(beside)
    return {"alone_ms": alone_ms, "beside_ms": beside_ms, "ratio": beside_ms / alone_ms}


def _caller(key: str, per_s: float, offset: float) -> dict[str, Any]:
    call = {"marker": f"{key}-{offset:.3f}", "key": key, "body": {"model": "gpt-4o-mini", "max_tokens": 20}}
    return {"calls": [call], "forever": True, "pace_s": 1 / per_s, "first_after_s": offset / per_s}


def _latencies_ms(
    urls: Sequence[str], keys: dict[str, str], callers: list[dict[str, Any]], seconds: float
) -> list[float]:
    with subprocess.Popen(
        [sys.executable, str(CLIENT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
    ) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(json.dumps({"targets": urls, "keys": keys, "callers": callers}) + "\n")
        client.stdin.flush()
        time.sleep(seconds)
        client.stdin.write('{"do": "stop"}\n')
        client.stdin.flush()
        client.stdout.readline()
        outcomes = json.loads(client.stdout.readline())
    normal = [each for each in outcomes if each["key"] != "noisy"]
    if wrong := [each for each in normal if each["status"] != 200]:
        raise BenchmarkError(f"{len(wrong)} of {len(normal)} calls of normal roles failed: {wrong[0]}")
    return [each["latency_us"] / 1000 for each in normal]


def _p95(samples: Sequence[float]) -> float:
    p95: float = quantiles(samples, n=20)[18]
    return p95


def median_text(samples: Sequence[float]) -> str:
    """Return the median of some seconds as text."""
    return f"{median(samples):.2f} s"
