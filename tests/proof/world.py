"""Gateways in this process: real policies, data plane, relay and limiter, before whatever store and providers."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

from backends import empty_database, memory_folder

from nemo_agents.gateway.dataplane import DataPlane
from nemo_agents.gateway.keyring import KeyRing
from nemo_agents.gateway.limiter.memory import MemoryLimiter
from nemo_agents.gateway.ports import ProviderRequest, ProviderResponse
from nemo_agents.gateway.server import build, configure_log
from nemo_agents.gateway.settings import Settings
from nemo_agents.gateway.state import Gateway
from nemo_agents.gateway.stores.base import FleetRecord
from nemo_agents.gateway.stores.sqlite import SqliteStore
from nemo_agents.policy.budgets import BudgetRule
from nemo_agents.policy.keys import Grant, KeySecret, compose_key, parse_public_id
from nemo_agents.policy.ledger import Balance, BudgetScope
from nemo_agents.policy.routing import Deployment

T0 = 1_763_942_400_000_000  # 2025-11-24, midnight UTC, a Monday
HOUR_US = 3_600_000_000
CENT = 10_000_000
DOLLAR = 1_000_000_000

# Dollars per million tokens: a token of an answer is a hundredth of a cent, a tenth, nothing, a cent.
PRICES: Mapping[str, tuple[int, int]] = {
    "alpha/cheap": (1, 100),
    "beta/plain": (10, 1_000),
    "gamma/free": (0, 0),
    "delta/dear": (100, 10_000),
}
PROVIDERS = tuple(name.partition("/")[0] for name in PRICES)
HOLD_TTL_S = 60.0
PEPPER = "the pepper of the proofs, which is nobody's secret"
SETTINGS: Mapping[str, Any] = {
    "sandbox": "off",
    "log_level": "error",
    "input_bound": "bytes",
    "content": "none",
    "retries": 0,
    "prices": {name: {"input_per_mtok": i, "output_per_mtok": o} for name, (i, o) in PRICES.items()},
    "first_byte_timeout_s": 10.0,
    "idle_timeout_s": 5.0,
    "client_timeout_s": 5.0,
    "drain_timeout_s": 5.0,
    "hold_ttl_s": HOLD_TTL_S,
}


def bill_of(model: str, tokens_in: int, tokens_out: int) -> int:
    """What a provider bills in nanos, by its own arithmetic: a dollar per million tokens is 1,000 nanos a token."""
    price_in, price_out = PRICES[model]
    return 1_000 * (price_in * tokens_in + price_out * tokens_out)


_templates: dict[str, Gateway] = {}


def _template(**changes: Any) -> Gateway:
    """One gateway for each choice of settings, to make others of; all have the same pepper, so that keys fit all."""
    name = json.dumps(changes, sort_keys=True)
    if name not in _templates:
        configure_log("critical")
        home = Path(tempfile.mkdtemp(dir=memory_folder())) / "home"
        _templates[name] = build(Settings(home=home, **{**SETTINGS, **changes}), {"NEMO_PEPPER": PEPPER})
    return _templates[name]


def gateway_before(
    store: Any, providers: Mapping[str, Any], *, clock: Any, ids: Any = None, **settings: Any
) -> Gateway:
    """A gateway as the server assembles it, with these parts instead of its own; nothing of it is shared."""
    template = _template(**settings)
    fresh = {
        each.name: each.default_factory()
        for each in dataclasses.fields(template)
        if each.init and each.default_factory is not dataclasses.MISSING
    }
    return dataclasses.replace(
        template,
        **{
            **fresh,
            "store": store,
            "keyring": KeyRing(template.secrets.pepper),
            "limiter": MemoryLimiter(),
            "providers": dict(providers),
            "provider_configs": {},
            "clock": clock,
            "ids": ids or CountedIds(),
        },
    )


class CountedIds:
    """Names in the order of asking."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def request_id(self) -> str:
        return f"req_{next(self._numbers):018x}"

    def key(self) -> str:
        number = next(self._numbers)
        return compose_key("".join("abcdefghij"[int(digit)] for digit in f"{number:010}"), f"{number:032}")

    def grant_id(self) -> str:
        return f"g_{next(self._numbers)}"

    def event_id(self) -> str:
        return f"evt_{next(self._numbers)}"


class HandClock:
    """Microseconds that move when told to."""

    def __init__(self, now_us: int = T0) -> None:
        self.at_us = now_us

    def now_us(self) -> int:
        return self.at_us


@cache
def _key(number: int) -> tuple[str, KeySecret]:
    """A key and what is stored of it."""
    key = compose_key("".join("abcdefghij"[int(digit)] for digit in f"{number:010}"), f"{number:032}")
    public_id = parse_public_id(key)
    assert public_id is not None
    digest = KeyRing(_template().secrets.pepper).digest(key)
    return key, KeySecret(public_id=public_id, digest=digest, created_us=0)


def a_grant(
    number: int, *budgets: BudgetRule, fleet: str | None = "crew", role: str = "writer", **more: Any
) -> tuple[str, Grant]:
    """A key and the grant that it opens."""
    key, secret = _key(number)
    grant = Grant(
        grant_id=f"g{number}",
        alias=f"{fleet}/{role}",
        fleet=fleet,
        role=role,
        budgets=budgets,
        secrets=(secret,),
        **more,
    )
    return key, grant


def a_day(dollars: float, **more: Any) -> BudgetRule:
    return BudgetRule(amount_nanos=round(dollars * DOLLAR), duration="1d", **more)


def a_fleet(*budgets: BudgetRule, name: str = "crew") -> FleetRecord:
    return FleetRecord(fleet=name, budgets=budgets)


def a_chain(group: str, models: Sequence[str]) -> list[Deployment]:
    """A model group whose deployments are tried in this order."""
    return [
        Deployment(deployment_id=f"{group}-{order}", fleet=None, group=group, model=model, order=order)
        for order, model in enumerate(models)
    ]


# --- clients ----------------------------------------------------------------------------------------------------------
class Caller:
    """One request and the client's end of it. Whatever it is sent is kept."""

    def __init__(
        self,
        key: str,
        body: Mapping[str, Any],
        *,
        path: str = "/v1/chat/completions",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        raw = json.dumps(body).encode()
        fields = {"authorization": f"Bearer {key}", "host": "localhost", "content-length": str(len(raw))}
        self.scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "headers": [(n.encode(), v.encode()) for n, v in {**fields, **(headers or {})}.items()],
        }
        self._request: list[dict[str, Any]] = [{"type": "http.request", "body": raw, "more_body": False}]
        self.sent: list[Any] = []
        self.leaves: Callable[[], Awaitable[Any]] | None = None

    async def receive(self) -> Any:
        if self._request:
            return self._request.pop()
        if self.leaves is None:
            raise AssertionError("nobody asked whether this client had left")
        await self.leaves()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    async def call(self, gateway: Gateway) -> int:
        """Make the call; return the status of its answer, 0 without any."""
        await DataPlane(gateway)(self.scope, self.receive, self.send)
        return self.status

    @property
    def status(self) -> int:
        return next((m["status"] for m in self.sent if m["type"] == "http.response.start"), 0)

    @property
    def headers(self) -> dict[str, str]:
        start = next(m for m in self.sent if m["type"] == "http.response.start")
        return {name.decode(): value.decode() for name, value in start["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(m.get("body", b"") for m in self.sent if m["type"] == "http.response.body")

    @property
    def code(self) -> str | None:
        """The code of a refusal."""
        try:
            found = json.loads(self.body)
        except ValueError:
            return None
        return found["error"].get("code") if isinstance(found, dict) and "error" in found else None


def a_prompt(text: str = "hello", *, model: str = "alpha/cheap", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


# --- providers --------------------------------------------------------------------------------------------------------
def an_answer(tokens_in: int, tokens_out: int, *, usage: Any = ..., text: str = "done") -> bytes:
    """A proper answer that says what it used, or says `usage` instead; None says nothing."""
    said = {"prompt_tokens": tokens_in, "completion_tokens": tokens_out} if usage is ... else usage
    message = {"role": "assistant", "content": text}
    body: dict[str, Any] = {
        "id": "c",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
    }
    if usage is ... or usage is not MISSING:
        body["usage"] = said
    return json.dumps(body).encode()


MISSING = object()


def an_event(body: Any) -> bytes:
    return b"data: " + (body if isinstance(body, bytes) else json.dumps(body).encode()) + b"\n\n"


def a_piece(text: str, *, end: bool = False) -> bytes:
    """A token of a streamed answer."""
    return an_event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": "stop" if end else None}]})


def the_usage(tokens_in: int, tokens_out: int) -> bytes:
    return an_event({"choices": [], "usage": {"prompt_tokens": tokens_in, "completion_tokens": tokens_out}})


DONE = an_event(b"[DONE]")


async def pieces(*chunks: bytes):
    for chunk in chunks:
        yield chunk


def plain(body: bytes, status: int = 200) -> ProviderResponse:
    return ProviderResponse(status=status, headers={"content-type": "application/json"}, chunks=pieces(body))


def streamed(chunks: Any) -> ProviderResponse:
    return ProviderResponse(status=200, headers={"content-type": "text/event-stream"}, chunks=chunks)


class ScriptedProvider:
    """A provider that does what a function says. `asked` are the bodies that came."""

    def __init__(self, name: str, script: Callable[[ProviderRequest, dict[str, Any]], Awaitable[ProviderResponse]]):
        self.name = name
        self.script = script
        self.asked: list[dict[str, Any]] = []

    async def send(self, request: ProviderRequest) -> ProviderResponse:
        body = json.loads(request.body)
        self.asked.append(body)
        return await self.script(request, body)

    async def close(self) -> None:
        """It has nothing."""


# --- on SQLite --------------------------------------------------------------------------------------------------------
@dataclasses.dataclass(kw_only=True)
class Bench:
    """A gateway on a real SQLite file, with one fleet of one role."""

    gateway: Gateway
    store: SqliteStore
    clock: Any
    key: str
    grant: Grant
    providers: Mapping[str, ScriptedProvider]

    async def call(self, body: Mapping[str, Any], **more: Any) -> Caller:
        caller = Caller(self.key, body, **more)
        await caller.call(self.gateway)
        return caller

    async def balance(self, *, kind: str = "role", period: str = "2025-11-24") -> Balance:
        """What the role or the fleet has posted and held in a period."""
        name = self.grant.grant_id if kind == "role" else self.grant.fleet or ""
        scope = BudgetScope(kind=kind, id=name, period=period, limit_nanos=None)  # type: ignore[arg-type]
        (found,) = await self.store.balances([scope])
        return found


@asynccontextmanager
async def sqlite_bench(
    folder: Path,
    script: Callable[[ProviderRequest, dict[str, Any]], Awaitable[ProviderResponse]],
    *budgets: BudgetRule,
    fleet: Sequence[BudgetRule] = (),
    clock: Any = None,
    chains: Mapping[str, Sequence[str]] | None = None,
    **settings: Any,
) -> AsyncIterator[Bench]:
    """Run a gateway on a file of its own. Its books are checked at the end, and no hold may be left."""
    path = folder / "nemo.db"
    shutil.copy(empty_database(), path)
    clock = clock or HandClock()
    store = SqliteStore(path, clock=clock.now_us)
    await store.start()
    try:
        key, grant = a_grant(1, *budgets)
        await store.put_grant(grant)
        await store.put_fleet(a_fleet(*fleet))
        for group, models in (chains or {}).items():
            for deployment in a_chain(group, models):
                await store.put_deployment(deployment)
        providers = {name: ScriptedProvider(name, script) for name in PROVIDERS}
        gateway = gateway_before(store, providers, clock=clock, **settings)
        gateway.keyring.put(grant)
        await gateway.load()
        yield Bench(gateway=gateway, store=store, clock=clock, key=key, grant=grant, providers=providers)
        await store.flush()
        assert await store.verify_ledger() == []
        assert not gateway.in_flight
    finally:
        await store.close()
