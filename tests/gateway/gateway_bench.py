"""What the gateway tests share: a gateway before the faulty provider, and a bench to call both over HTTP."""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
from faulty_provider import BEHAVIOURS, FaultyProvider

from nemo_agents.testing import LocalGateway, running_gateway

INPUT_NANOS, OUTPUT_NANOS = 1_000, 2_000  # what a token costs at PRICE
PRICE = {"input_per_mtok": "1", "output_per_mtok": "2"}
PROVIDER_KEY = "sk-provider-canary-0123456789"
NO_KEY: dict[str, str] = {}


def settings_for(provider: FaultyProvider, **changes: Any) -> dict[str, Any]:
    """Settings of a gateway before the faulty provider, the same one without prices, and one that is down."""
    priced = [*(f"faulty/{name}" for name in BEHAVIOURS), "down/ok"]
    return {
        "sandbox": "off",
        "providers": {
            "faulty": {"base_url": provider.base_url, "api_key_env": "FAULTY_API_KEY"},
            "unpriced": {"base_url": provider.base_url},
            "down": {"base_url": "http://127.0.0.1:9/v1"},
        },
        "prices": dict.fromkeys(priced, PRICE),
        "log_level": "error",
        "retries": 0,
        "max_body_bytes": 4 * 1024 * 1024,
        **changes,
    }


@contextmanager
def gateway_at(home: Path, provider: FaultyProvider, **changes: Any) -> Iterator[LocalGateway]:
    """Run a gateway in front of the faulty provider, with these settings changed."""
    settings = settings_for(provider, **changes)
    with running_gateway(home, settings=settings, environ={"FAULTY_API_KEY": PROVIDER_KEY}) as gateway:
        yield gateway


@dataclass(frozen=True, kw_only=True)
class Key:
    """A virtual key that a test made."""

    secret: str
    public_id: str
    fleet: str

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.secret}"}


@dataclass(kw_only=True)
class Bench:
    """One gateway and one provider as a test uses them, over HTTP."""

    gateway: LocalGateway
    faulty: FaultyProvider
    http: httpx.Client
    pool: ThreadPoolExecutor
    fleet: str = field(default_factory=lambda: f"fleet-{uuid.uuid4().hex[:8]}")

    @property
    def url(self) -> str:
        return self.gateway.url

    def admin(self, method: str, path: str, body: Any = None, **params: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.gateway.admin_key.reveal()}"}
        return self.http.request(method, path, json=body, params=params or None, headers=headers)

    def ok(self, method: str, path: str, body: Any = None, **params: Any) -> Any:
        answer = self.admin(method, path, body, **params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def key(self, *, fleet: str | None = None, models: tuple[str, ...] = ("faulty/*",), **fields: Any) -> Key:
        """Make a virtual key of the test's fleet. Fields as on LiteLLM's wire."""
        fleet = fleet or self.fleet
        issued = self.ok(
            "POST",
            "/key/generate",
            {
                "key_alias": f"{fleet}-{uuid.uuid4().hex[:8]}",
                "team_id": fleet,
                "models": list(models),
                **fields,
            },
        )
        return Key(secret=issued["key"], public_id=issued["token"], fleet=fleet)

    def chat(
        self,
        key: Key,
        model: str = "faulty/ok",
        *,
        headers: dict[str, str] = NO_KEY,
        text: str = "hi",
        **body: Any,
    ) -> httpx.Response:
        """Ask for a completion of at most 50 tokens, unless told otherwise."""
        asked = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 50, **body}
        return self.http.post("/v1/chat/completions", json=asked, headers={**key.headers, **headers})

    def raw(self, key: Key, content: Any, **headers: str) -> httpx.Response:
        """Post bytes as they are."""
        sent = {"content-type": "application/json", **key.headers, **headers}
        return self.http.post("/v1/chat/completions", content=content, headers=sent)

    def client(self, key: Key, **options: Any) -> openai.OpenAI:
        """The unmodified client, which by itself would retry twice."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key.secret, **{"max_retries": 0, **options})

    def later(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a call on a thread; `.result()` waits for it."""
        return self.pool.submit(call, *args, **kwargs)

    # --- what the gateway recorded -------------------------------------------------------------------------------
    def row(self, answer: httpx.Response) -> dict[str, Any]:
        """The request log's record of an answer."""
        row: dict[str, Any] = self.ok("GET", f"/nemo/calls/{answer.headers['x-nemo-request-id']}")
        return row

    def logs(self, fleet: str | None = None) -> list[dict[str, Any]]:
        """The records of the test's fleet, oldest first."""
        rows: list[dict[str, Any]] = self.ok("GET", "/nemo/logs", fleet=fleet or self.fleet, limit=500)["calls"]
        return rows[::-1]

    def content(self, answer: httpx.Response) -> dict[str, Any]:
        found: dict[str, Any] = self.ok("GET", f"/nemo/calls/{answer.headers['x-nemo-request-id']}/content")
        return found

    def spent(self, kind: str = "fleet", scope: str | None = None) -> tuple[int, int]:
        """Posted and held nanos of a scope, straight from the database."""
        return self._balances("WHERE kind=? AND scope_id=?", kind, scope or self.fleet)

    def usage(self, answer: httpx.Response) -> dict[str, int]:
        """The counts beside the entry by which an answer's hold was posted, straight from the database."""
        request_id = answer.headers["x-nemo-request-id"]
        query = "SELECT usage FROM entries WHERE request_id=? AND kind='post'"
        ((usage,),) = self._read(query, request_id)
        counts: dict[str, int] = json.loads(usage)
        return counts

    def sent(self) -> list[dict[str, Any]]:
        """What reached the provider."""
        requests: list[dict[str, Any]] = self.faulty.seen()["requests"]
        return requests

    def _balances(self, where: str, *values: str) -> tuple[int, int]:
        sums = f"SELECT coalesce(sum(posted_nanos), 0), coalesce(sum(held_nanos), 0) FROM balances {where}"
        ((posted, held),) = self._read(sums, *values)
        return posted, held

    def _read(self, query: str, *values: str) -> list[tuple[Any, ...]]:
        self.http.get("/health/ready").raise_for_status()  # everything queued is committed
        with closing(sqlite3.connect(f"file:{self.gateway.home}/gateway.db?mode=ro", uri=True)) as db:
            return db.execute(query, values).fetchall()

    def until(self, condition: Callable[[], bool]) -> None:
        """Ask the gateway for its health until something has become true."""
        deadline = time.monotonic() + 15
        while not condition():
            assert time.monotonic() < deadline, "it did not come true"
            self.http.get("/health/live")

    def all_over(self) -> None:
        """Wait until no call is in flight."""
        self.until(lambda: not self.gateway.running.gateway.in_flight)

    def check_books(self, posted_before: int = 0) -> None:
        """Nothing is held, every balance adds up, and no provider billed more than was posted."""
        self.all_over()
        posted, held = self._balances("WHERE kind='role'")
        assert held == 0
        assert self.ok("GET", "/nemo/ledger/verify") == {"problems": []}
        billed = self.faulty.seen()["billed"]
        cost = billed["prompt_tokens"] * INPUT_NANOS + billed["completion_tokens"] * OUTPUT_NANOS
        assert cost <= posted - posted_before

    def posted(self) -> int:
        return self._balances("WHERE kind='role'")[0]


@contextmanager
def bench_for(gateway: LocalGateway, faulty: FaultyProvider, *, checked: bool = True) -> Iterator[Bench]:
    """A bench whose books are checked at the end, where there is a store to ask."""
    faulty.reset()
    with (
        httpx.Client(base_url=gateway.url, trust_env=False, verify=False, timeout=30) as http,
        ThreadPoolExecutor(60) as pool,
    ):
        bench = Bench(gateway=gateway, faulty=faulty, http=http, pool=pool)
        posted_before = bench.posted()
        yield bench
        if checked:
            bench.check_books(posted_before)


def refused(answer: httpx.Response, status: int, code: str, **facts: Any) -> dict[str, Any]:
    """Check that an answer is this refusal, in the one form that refusals have; return its error object."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"error", "request_id"}
    error: dict[str, Any] = body["error"]
    assert {"message", "type", "param", "code"} <= set(error)
    assert error["code"] == code == answer.headers["x-nemo-error-code"], answer.text
    assert len(error["message"]) > 10
    assert body["request_id"] == answer.headers["x-nemo-request-id"]
    assert float(answer.headers["x-nemo-latency-ms"]) >= 0
    assert answer.headers["content-type"] == "application/json"
    for name, value in facts.items():
        assert error.get(name) == value, (name, error)
    if "retry-after-ms" in answer.headers:
        milliseconds = int(answer.headers["retry-after-ms"])
        assert int(answer.headers["retry-after"]) == -(-milliseconds // 1000)
        assert error["retry_after_ms"] == milliseconds > 0
        assert "x-should-retry" not in answer.headers
    else:
        assert answer.headers["x-should-retry"] == "false"
        assert "retry-after" not in answer.headers
    return error
