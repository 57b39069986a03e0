"""Two gateways before one PostgreSQL and one Redis, as a client meets them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from faulty_provider import FaultyProvider
from gateway_bench import PROVIDER_KEY, settings_for

from nemo_agents.errors import SettingsError
from nemo_agents.gateway.wake import Wake
from nemo_agents.secret import Secret
from nemo_agents.testing import LocalGateway, running_gateway

SECRETS = {
    "NEMO_PEPPER": "one pepper for all gateways",
    "NEMO_ADMIN_KEY": "sk-nemo-admin-of-all-gateways",
    "NEMO_VIEWER_TOKEN": "one token for all gateways",
    "FAULTY_API_KEY": PROVIDER_KEY,
}
ADMIN = {"authorization": f"Bearer {SECRETS['NEMO_ADMIN_KEY']}"}
ASK: dict[str, Any] = {"model": "faulty/ok", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 50}


@dataclass(kw_only=True)
class Pair:
    """Two gateways that share everything."""

    gateways: list[LocalGateway]
    faulty: FaultyProvider
    http: httpx.Client

    def admin(self, n: int, method: str, path: str, body: Any = None) -> Any:
        answer = self.http.request(method, f"{self.gateways[n].url}{path}", json=body, headers=ADMIN)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def key(self, n: int = 0, **fields: Any) -> dict[str, str]:
        made = self.admin(n, "POST", "/key/generate", {"team_id": "crew", **fields})["key"]
        return {"authorization": f"Bearer {made}"}

    def chat(self, n: int, key: dict[str, str], **body: Any) -> httpx.Response:
        return self.http.post(f"{self.gateways[n].url}/v1/chat/completions", json={**ASK, **body}, headers=key)

    def until(self, n: int, key: dict[str, str], status: int) -> float:
        """Ask until the answer has this status; return the seconds it took."""
        began = time.monotonic()
        while self.chat(n, key).status_code != status:
            assert time.monotonic() < began + 15
        return time.monotonic() - began


@pytest.fixture
def pair(tmp_path: Path, shared_provider: FaultyProvider, postgres_url: str, redis_url: str) -> Iterator[Pair]:
    settings = settings_for(shared_provider, database=postgres_url, cache=redis_url)
    shared_provider.reset()
    with ExitStack() as stack:
        gateways = [
            stack.enter_context(running_gateway(tmp_path / str(n), settings=settings, environ=SECRETS)) for n in (1, 2)
        ]
        http = stack.enter_context(httpx.Client(timeout=30, trust_env=False))
        yield Pair(gateways=gateways, faulty=shared_provider, http=http)


def test_a_key_of_one_opens_the_other_and_shares_its_rates_and_budget(pair: Pair):
    key = pair.key(0, rpm_limit=4, max_budget=1)
    pair.until(1, key, 200)
    left = [pair.chat(n, key).headers["x-ratelimit-remaining-requests"] for n in (0, 1)]
    assert left == ["2", "1"]
    assert pair.chat(0, key).status_code == 200
    refused = pair.chat(1, key)
    assert (refused.status_code, refused.json()["error"]["limit"]) == (429, "rpm")
    spent = [pair.admin(n, "GET", "/nemo/status")[0]["spent_nanos"] for n in (0, 1)]
    assert spent == [4 * 31_000] * 2
    assert pair.admin(1, "GET", "/nemo/ledger/verify") == {"problems": []}


@pytest.mark.parametrize(
    ("path", "code"), [("/key/delete", "key_revoked"), ("/key/block", "key_blocked"), ("stop", "run_stopped")]
)
def test_what_one_ends_is_cut_on_the_other_within_a_second(pair: Pair, path: str, code: str):
    key = pair.key(0)
    pair.until(1, key, 200)
    sent = {**key, "x-nemo-run-id": "r1"}
    name = key["authorization"].removeprefix("Bearer ")
    ended: list[float] = []
    with pair.http.stream(
        "POST",
        f"{pair.gateways[1].url}/v1/chat/completions",
        json={**ASK, "model": "faulty/stepped", "stream": True},
        headers=sent,
    ) as answer:
        events = answer.iter_text()
        next(events)

        def end() -> None:
            if path == "stop":
                pair.admin(0, "POST", "/nemo/runs/r1/stop")
            else:
                pair.admin(0, "POST", path, {"keys": [name]} if path == "/key/delete" else {"key": name})
            ended.append(time.monotonic())

        other = threading.Thread(target=end)
        other.start()
        rest = "".join(events)
        took = time.monotonic()
        other.join()
    assert code in rest
    assert took - ended[0] < 1.0
    refused = pair.http.post(f"{pair.gateways[1].url}/v1/chat/completions", json=ASK, headers=sent)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, code)
    assert pair.admin(0, "GET", "/nemo/ledger/verify") == {"problems": []}


def test_two_admins_at_once_lose_no_change(pair: Pair):
    """Each change reads what is there before it writes, whichever gateway it comes to."""
    key = pair.key(0)
    name = key["authorization"].removeprefix("Bearer ")

    def rotate(n: int) -> None:
        for _ in range(4):
            pair.admin(n, "POST", f"/key/{name}/regenerate", {"grace_period": "1h"})

    threads = [threading.Thread(target=rotate, args=(n,)) for n in (0, 1)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    # A change knows all changes before it; a mere look may be a fraction of a second behind.
    assert pair.admin(1, "POST", "/key/update", {"key": name})["rotation_count"] == 8


def test_ready_tells_both_parts(pair: Pair):
    for gateway in pair.gateways:
        assert pair.http.get(f"{gateway.url}/health/ready").json() == {
            "status": "ready",
            "store": "ready",
            "limiter": "ready",
        }


def test_one_with_other_secrets_does_not_start(tmp_path: Path, shared_provider: FaultyProvider, postgres_url: str):
    settings = settings_for(shared_provider, database=postgres_url)
    with running_gateway(tmp_path / "1", settings=settings, environ=SECRETS):
        with (
            pytest.raises(SettingsError, match="NEMO_PEPPER"),
            running_gateway(tmp_path / "2", settings=settings, environ={"FAULTY_API_KEY": PROVIDER_KEY}),
        ):
            raise AssertionError("it started")
        with running_gateway(tmp_path / "3", settings=settings, environ=SECRETS):
            pass


def test_another_admin_key_is_warned_of_at_each_change_and_keeps_nobody_from_starting(
    tmp_path: Path, shared_provider: FaultyProvider, postgres_url: str, capfd: pytest.CaptureFixture[str]
):
    settings = settings_for(shared_provider, database=postgres_url, log_level="warning")
    other = {**SECRETS, "NEMO_ADMIN_KEY": "sk-nemo-admin-of-another-time"}
    warned = []
    for n, environ in enumerate((SECRETS, SECRETS, other, other, SECRETS)):
        with running_gateway(tmp_path / str(n), settings=settings, environ=environ):
            pass
        said = capfd.readouterr().err
        warned.append("NEMO_ADMIN_KEY" in said)
        assert other["NEMO_ADMIN_KEY"] not in said
    assert warned == [False, False, True, False, True]


def test_periods_follow_the_database_s_clock(pair: Pair):
    """Within what a round trip takes: both gateways read the same clock, whatever their machines say."""
    times = [gateway.running.gateway.clock.now_us() for gateway in pair.gateways]
    assert abs(times[0] - times[1]) < 200_000


async def test_a_word_over_the_cache_is_heard_at_once(redis_url: str):
    """Also by one that named the cache by its own name; one whose cache is gone says nothing and raises nothing."""
    heard = asyncio.Event()
    ear = Wake(Secret(redis_url), heard.set)
    mouth = Wake(Secret(redis_url.replace("redis://", "valkey://")), lambda: None)
    listening = asyncio.create_task(ear.listen())
    async with asyncio.timeout(20):
        while not heard.is_set():  # until it has subscribed, it hears nothing
            mouth.say()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await heard.wait()
        nobody = Wake(Secret("redis://127.0.0.1:9"), heard.set)
        nobody.say()
        await asyncio.gather(*nobody._saying)
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
