"""A gateway before the shapes provider, and a bench to use both through other people's clients."""

from __future__ import annotations

import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
from shapes_provider import BEHAVIOURS, ShapesProvider

from nemo_agents.groups import ModelGroup
from nemo_agents.testing import LocalGateway, running_gateway

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
PROVIDER_KEY = "sk-shapes-canary-0123456789"
PRICE = {
    "input_per_mtok": "1",
    "cached_input_per_mtok": "0.1",
    "cache_write_per_mtok": "1.25",
    "cache_write_1h_per_mtok": "2",
    "output_per_mtok": "2",
}
NANOS = {"plain": 1_000, "cached": 100, "written": 1_250, "written_1h": 2_000, "output": 2_000}
WIRES = {"native": ["chat", "responses", "messages", "completions", "embeddings"], "chatonly": ["chat", "embeddings"]}
"""The same provider twice: once with every wire of its own, once as one that speaks only chat completions."""
SPEAKERS = tuple(WIRES)
EITHER = ("either-1", "either-2", "either-3", "either-4")
"""Groups whose first deployment is overloaded; several, for one that fails too often is asked no more for a while."""
MODELS = (*BEHAVIOURS, "embedder", *(f"{name}/overloaded" for name in EITHER))


@contextmanager
def gateway_before(provider: ShapesProvider, home: Path, **changes: Any) -> Iterator[LocalGateway]:
    """Run a gateway in front of the shapes provider."""
    one = {"base_url": provider.base_url, "api_key_env": "SHAPES_API_KEY", "auth": "anthropic"}
    settings = {
        "sandbox": "off",
        "providers": {name: {**one, "wires": wires} for name, wires in WIRES.items()},
        "prices": {f"{name}/{model}": PRICE for name in WIRES for model in MODELS},
        "groups": (
            ModelGroup("thinker", models=["native/thinker"]),
            *(ModelGroup(name, models=[f"native/{name}/overloaded", "chatonly/sense"]) for name in EITHER),
        ),
        "log_level": "error",
        "retries": 0,
        **changes,
    }
    with running_gateway(home, settings=settings, environ={"SHAPES_API_KEY": PROVIDER_KEY}) as gateway:
        yield gateway


def nanos_of(bill: dict[str, int]) -> int:
    """Return what a bill of the provider's amounts to."""
    return sum(count * NANOS.get(kind, 0) for kind, count in bill.items())


@dataclass(kw_only=True)
class ClientsBench:
    """One gateway and one provider, as clients use them.

    `exact` says that the provider told what everything used, so that the books must equal its bill to the nano.
    """

    gateway: LocalGateway
    provider: ShapesProvider
    http: httpx.Client
    exact: bool = True
    fleet: str = field(default_factory=lambda: f"fleet-{uuid.uuid4().hex[:8]}")

    def ok(self, method: str, path: str, body: Any = None, **params: Any) -> Any:
        """Call the admin API."""
        headers = {"authorization": f"Bearer {self.gateway.admin_key.reveal()}"}
        answer = self.http.request(method, path, json=body, params=params or None, headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def key(self, **fields: Any) -> str:
        """Make a virtual key of the test's fleet."""
        named = {"key_alias": f"{self.fleet}-{uuid.uuid4().hex[:8]}", "team_id": self.fleet}
        asked = {**named, "models": ["native/*", "chatonly/*", "thinker", *EITHER], **fields}
        return str(self.ok("POST", "/key/generate", asked)["key"])

    def openai(self, key: str | None = None, **options: Any) -> openai.OpenAI:
        """The unmodified client, which by itself would retry twice."""
        base_url = f"{self.gateway.url}/v1"
        return openai.OpenAI(base_url=base_url, api_key=key or self.key(), **{"max_retries": 0, **options})

    def async_openai(self, key: str | None = None) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.gateway.url}/v1", api_key=key or self.key(), max_retries=0)

    def anthropic(self, key: str | None = None, **options: Any) -> anthropic.Anthropic:
        """The unmodified client; it presents its key in `x-api-key`."""
        made = {"max_retries": 0, **options}
        return anthropic.Anthropic(base_url=self.gateway.url, api_key=key or self.key(), **made)

    def async_anthropic(self, key: str | None = None) -> anthropic.AsyncAnthropic:
        return anthropic.AsyncAnthropic(base_url=self.gateway.url, api_key=key or self.key(), max_retries=0)

    # --- what became of it ---------------------------------------------------------------------------------------
    def sent(self) -> dict[str, Any]:
        """The one request that reached the provider."""
        (request,) = self.provider.requests()
        found: dict[str, Any] = request
        return found

    def rows(self) -> list[dict[str, Any]]:
        """The request log of the test's fleet, oldest first."""
        self.http.get("/health/ready").raise_for_status()  # everything queued is committed
        rows: list[dict[str, Any]] = self.ok("GET", "/nemo/logs", fleet=self.fleet, limit=500)["calls"]
        return rows[::-1]

    def row(self) -> dict[str, Any]:
        """The one call of the test's fleet."""
        (row,) = self.rows()
        return row

    def content(self, row: dict[str, Any]) -> dict[str, Any]:
        """What the request log kept of a call's prompt and answer."""
        content: dict[str, Any] = self.ok("GET", f"/nemo/calls/{row['request_id']}/content")
        return content

    def settle(self) -> None:
        """Wait until no call is in flight."""
        deadline = time.monotonic() + 15
        while self.gateway.running.gateway.in_flight:
            assert time.monotonic() < deadline, "a call is still in flight"
            self.http.get("/health/live")

    def check(self) -> None:
        """Hold the books against the provider's bill, and the request log against both."""
        self.settle()
        served = [request for request in self.provider.requests() if request["bill"] is not None]
        rows = [row for row in self.rows() if row["state"] != "refused"]
        assert self.ok("GET", "/nemo/ledger/verify") == {"problems": []}
        assert all(row["state"] != "open" for row in rows)
        posted, held = self._balance()
        assert held == 0
        assert sum(row["cost_nanos"] or 0 for row in rows) == posted
        billed = sum(nanos_of(request["bill"]) for request in served)
        assert posted == billed if self.exact else posted >= billed
        for row in rows:
            kept = self.content(row)
            assert kept["prompt"]
            assert row["endpoint"] == "/v1/embeddings" or row["state"] == "failed" or kept["answer"]
        if self.exact:
            told = sorted(
                (row["input_tokens"], row["output_tokens"], row["cost_nanos"], row["usage_source"])
                for row in rows
                if row["state"] in ("ok", "abandoned")  # a stream whose client left is read to its end
            )
            assert told == sorted((*_tokens(each["bill"]), nanos_of(each["bill"]), "provider") for each in served)

    def _balance(self) -> tuple[int, int]:
        """Posted and held nanos of the fleet, straight from the database."""
        sums = "SELECT coalesce(sum(posted_nanos), 0), coalesce(sum(held_nanos), 0) FROM balances"
        with closing(sqlite3.connect(f"file:{self.gateway.home}/gateway.db?mode=ro", uri=True)) as db:
            posted, held = db.execute(f"{sums} WHERE kind='fleet' AND scope_id=?", (self.fleet,)).fetchone()
        return posted, held


def _tokens(bill: dict[str, int]) -> tuple[int, int]:
    return sum(bill[kind] for kind in ("plain", "cached", "written", "written_1h")), bill["output"]


@contextmanager
def clients_bench(gateway: LocalGateway, provider: ShapesProvider) -> Iterator[ClientsBench]:
    """A bench with a fleet of its own, whose books are checked when the block has ended well."""
    provider.reset()
    with httpx.Client(base_url=gateway.url, trust_env=False, timeout=30) as http:
        bench = ClientsBench(gateway=gateway, provider=provider, http=http)
        yield bench
        bench.check()
