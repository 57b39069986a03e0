"""Fail at the n-th await, for n = 1, 2, 3 … until nothing fails: every point of a call's life, in every way.

The gateway and the SQLite file are real. An exception is what that point raises when its part of the world is down; a
cancellation comes while the point is waited for, once before what it does and once after; a process exit leaves the
file as it is at that moment, and another process opens it.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from backends import copy_as_it_is, empty_database
from planted import Around, ForgetsTheAbandoned, HoldsNothingForAFallback, VoidsWhatNobodyKnows
from world import (
    DONE,
    HOLD_TTL_S,
    PROVIDERS,
    Caller,
    HandClock,
    ScriptedProvider,
    a_chain,
    a_day,
    a_fleet,
    a_grant,
    a_piece,
    a_prompt,
    an_answer,
    bill_of,
    gateway_before,
    streamed,
    the_usage,
)

from nemo_agents.gateway.limiter.base import LimiterUnavailable
from nemo_agents.gateway.limiter.memory import MemoryLimiter
from nemo_agents.gateway.ports import ProviderRequest, ProviderResponse, UpstreamError
from nemo_agents.gateway.stores.base import StoreUnavailable
from nemo_agents.gateway.stores.sqlite import SqliteStore
from nemo_agents.policy.ledger import BudgetScope

KINDS = ("exception", "surprise", "cancellation", "exit")
LIVES = ("plain", "stream", "plain failover", "stream failover", "embeddings")
NO = UpstreamError("refused", sent=False)
BROKE = UpstreamError("broke off", sent=True)


class CancelledWhenAnswered:
    """Wait for something, and be cancelled when it is there and has not been taken."""

    def __init__(self, awaitable: Awaitable[Any]) -> None:
        self.awaitable = awaitable

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self.awaitable.__await__()
        try:
            yield next(steps)
        except StopIteration:
            raise asyncio.CancelledError from None  # it had not been waited for: cancelled right after
        return steps.throw(asyncio.CancelledError())


@dataclass(kw_only=True)
class Fuse:
    """Counts the points that are passed, and blows at one of them."""

    at: int
    kind: str
    path: Path
    passed: list[str] = field(default_factory=list)
    blown: str | None = None
    exits_at: Path | None = None

    def here(self, point: str) -> bool:
        self.passed.append(point)
        if len(self.passed) != self.at:
            return False
        self.blown = point
        return True

    async def step(self, point: str, fault: BaseException) -> None:
        if self.here(point):
            await self.blow(fault)

    async def blow(self, fault: BaseException) -> None:
        if self.kind == "exception":
            raise fault
        if self.kind == "surprise":
            raise RuntimeError("nobody thought of this")
        if self.kind == "exit":
            self.leave_the_file_as_it_is()
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    def leave_the_file_as_it_is(self) -> None:
        self.exits_at = self.path.with_name("after.db")
        copy_as_it_is(self.path, self.exits_at)


class FusedStore(Around):
    """The real store; what it commits is committed before the answer is lost."""

    def __init__(self, store: SqliteStore, fuse: Fuse) -> None:
        super().__init__(store)
        self.fuse = fuse

    async def open_call(self, *args: Any) -> Any:
        return await self._fused("open_call", self.store.open_call, *args)

    async def next_attempt(self, *args: Any) -> Any:
        return await self._fused("next_attempt", self.store.next_attempt, *args)

    async def _fused(self, name: str, method: Any, *args: Any) -> Any:
        await self.fuse.step(name, StoreUnavailable("down"))
        if not self.fuse.here(f"{name} answered"):
            return await method(*args)
        if self.fuse.kind == "cancellation":
            return await CancelledWhenAnswered(method(*args))
        await method(*args)
        return await self.fuse.blow(StoreUnavailable("the answer was lost"))


class FusedLimiter(Around):
    """The real limiter."""

    def __init__(self, fuse: Fuse) -> None:
        super().__init__(MemoryLimiter())
        self.fuse = fuse

    async def admit(self, *args: Any) -> Any:
        await self.fuse.step("admit", LimiterUnavailable("down"))
        return await self.store.admit(*args)

    async def enter(self, *args: Any) -> Any:
        await self.fuse.step("enter", LimiterUnavailable("down"))
        return await self.store.enter(*args)


class FusedCaller(Caller):
    """A client whose connection may break at every piece."""

    def __init__(self, fuse: Fuse, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fuse = fuse

    async def receive(self) -> Any:
        await self.fuse.step("receive", OSError("connection lost"))
        return await super().receive()

    async def send(self, message: Any) -> None:
        await self.fuse.step(f"send {message['type']}", OSError("connection lost"))
        await super().send(message)


class Providers:
    """The first target fails where a failover is wanted, after it may have billed; every other one answers."""

    def __init__(self, fuse: Fuse, life: str) -> None:
        self.fuse = fuse
        self.life = life
        self.billed = 0
        self.asked = 0

    async def script(self, request: ProviderRequest, body: dict[str, Any]) -> ProviderResponse:
        await self.fuse.step("connect", NO)
        self.asked += 1
        model = {"cheap": "alpha/cheap", "plain": "beta/plain"}[body["model"]]
        if "failover" in self.life and self.asked == 1:
            self.billed += bill_of(model, 10, 3)
            await self.fuse.step("fail", BROKE)
            raise BROKE
        if request.stream:
            await self.fuse.step("head", BROKE)
            return streamed(self._stream(model))
        tokens_out = 0 if self.life == "embeddings" else 5
        self.billed += bill_of(model, 10, tokens_out)
        await self.fuse.step("head", BROKE)
        return ProviderResponse(
            status=200, headers={"content-type": "application/json"}, chunks=self._chunks(an_answer(10, tokens_out))
        )

    async def _chunks(self, whole: bytes) -> AsyncIterator[bytes]:
        for part in (whole[:20], whole[20:]):
            await self.fuse.step("chunk", BROKE)
            yield part

    async def _stream(self, model: str) -> AsyncIterator[bytes]:
        self.billed += bill_of(model, 10, 0)
        for n in range(3):
            self.billed += bill_of(model, 0, 1)
            await self.fuse.step("event", BROKE)
            yield a_piece("x", end=n == 2)
        await self.fuse.step("usage", BROKE)
        yield the_usage(10, 3)
        yield DONE


def request_of(life: str) -> tuple[dict[str, Any], str]:
    if life == "embeddings":
        return {"model": "alpha/cheap", "input": "hello"}, "/v1/embeddings"
    model = "ladder" if "failover" in life else "alpha/cheap"
    return a_prompt(model=model, max_tokens=9, stream=life.startswith("stream")), "/v1/chat/completions"


async def one_life(
    folder: Path, life: str, kind: str, at: int, *, around: Callable[[Any], Any] = lambda store: store
) -> Fuse:
    """Live one call with a fuse at one point, and look at the books; return the fuse."""
    path = folder / "nemo.db"
    shutil.copy(empty_database(), path)
    clock = HandClock()
    store = SqliteStore(path, clock=clock.now_us)
    await store.start()
    fuse = Fuse(at=at, kind=kind, path=path)
    key, grant = a_grant(1, a_day(1.0))
    await store.put_grant(grant)
    await store.put_fleet(a_fleet(a_day(2.0)))
    for deployment in a_chain("ladder", ["alpha/cheap", "beta/plain"]):
        await store.put_deployment(deployment)
    providers = Providers(fuse, life)
    scripted = {name: ScriptedProvider(name, providers.script) for name in PROVIDERS}
    gateway = gateway_before(FusedStore(around(store), fuse), scripted, clock=clock)
    gateway.limiter = FusedLimiter(fuse)
    await gateway.load()
    body, url = request_of(life)
    caller = FusedCaller(fuse, key, body, path=url)
    call = asyncio.create_task(caller.call(gateway))
    done, _ = await asyncio.wait([call], timeout=20)
    assert done, f"stuck at {fuse.blown}"
    if not call.cancelled() and (error := call.exception()) is not None:
        assert fuse.blown is not None
        assert fuse.blown.startswith("send"), f"{fuse.blown} raised {error!r} out of the data plane"
    await store.flush()
    books = store
    if fuse.exits_at is not None:
        await store.close()
        books = SqliteStore(fuse.exits_at, clock=clock.now_us)
        await books.start()
    try:
        await look(books, fuse, providers, gateway, clock)
    finally:
        await books.close()
    return fuse


async def look(books: SqliteStore, fuse: Fuse, providers: Providers, gateway: Any, clock: HandClock) -> None:
    where = f"{fuse.kind} at {fuse.blown}"
    scopes = [
        BudgetScope(kind="role", id="g1", period="2025-11-24", limit_nanos=None),
        BudgetScope(kind="fleet", id="crew", period="2025-11-24", limit_nanos=None),
    ]
    assert await books.verify_ledger() == [], where
    for balance in await books.balances(scopes):
        lost = fuse.blown is not None and fuse.blown.endswith("answered") and fuse.kind in ("exception", "surprise")
        assert lost or balance.held_nanos == 0, f"{where}: a hold without an owner"
        assert balance.posted_nanos + balance.held_nanos >= providers.billed, f"{where}: unrecorded money"
    clock.at_us += int((HOLD_TTL_S + 1) * 1e6)
    await books.sweep(clock.now_us())
    assert await books.verify_ledger() == [], where
    for balance in await books.balances(scopes):
        assert balance.held_nanos == 0, f"{where}: open after its time and a sweep"
        assert balance.posted_nanos >= providers.billed, f"{where}: unrecorded money"
        if fuse.blown is None and "failover" not in providers.life:
            assert balance.posted_nanos == providers.billed
    assert not gateway.in_flight, where
    row = await books.call("req_000000000000000001")
    if providers.asked:
        assert row is not None, f"{where}: sent without a row in the log"
        assert row.state != "open", f"{where}: {row.state}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("life", LIVES)
async def test_a_fault_at_every_point(tmp_path: Path, life: str, kind: str) -> None:
    at = 0
    while True:
        at += 1
        folder = tmp_path / str(at)
        folder.mkdir()
        fuse = await one_life(folder, life, kind, at)
        shutil.rmtree(folder)
        if fuse.blown is None:
            break
    least = {"plain": 10, "stream": 14, "plain failover": 14, "stream failover": 18, "embeddings": 10}[life]
    assert len(fuse.passed) >= least, fuse.passed
    assert {"receive", "admit", "enter", "open_call", "open_call answered", "connect"} <= set(fuse.passed)
    assert ("next_attempt answered" in fuse.passed) == ("failover" in life)


@pytest.mark.parametrize(
    ("bug", "life", "kind"),
    [
        (ForgetsTheAbandoned, "stream", "cancellation"),
        (VoidsWhatNobodyKnows, "plain", "exception"),
        (HoldsNothingForAFallback, "plain failover", "exit"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
async def test_it_finds_a_bug_between_relay_and_store(tmp_path: Path, bug: type[Around], life: str, kind: str) -> None:
    """Some point of the life gives the planted bug away."""
    found = []
    for at in range(1, 30):
        folder = tmp_path / str(at)
        folder.mkdir()
        try:
            fuse = await one_life(folder, life, kind, at, around=bug)
        except AssertionError as error:
            found.append(str(error))
        else:
            if fuse.blown is None:
                break
    assert any("unrecorded money" in what or "without an owner" in what for what in found), found
