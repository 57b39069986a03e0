"""The limiter of many gateways: windows, calls in flight and repeats in one Redis or Valkey, decided there.

Each of `admit` and `enter` is one script and one round trip; `leave` is queued. Time is the server's. What the server
lost is noticed in the next call and rebuilt from the store's log before anything is admitted; while it cannot be
reached nothing is admitted either. A call in flight holds its place for half a minute and renews it: the places of a
gateway that died are given back by then.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal, cast

import msgspec
import structlog

from nemo_agents.errors import SettingsError
from nemo_agents.gateway.limiter.base import Admission, Entry, LimiterUnavailable, Repeat
from nemo_agents.gateway.limiter.layout import DRAWERS, Drawer, drawer_of
from nemo_agents.gateway.limiter.link import Link, NotSent, NotUsable
from nemo_agents.gateway.limiter.lua import LOST, REFUSED
from nemo_agents.gateway.limiter.recovery import Held, Recovery
from nemo_agents.policy.limits import PastUse
from nemo_agents.policy.loops import loop_refusal, most_repeats
from nemo_agents.policy.rates import (
    WINDOW_US,
    Allowed,
    Answer,
    Never,
    RateScope,
    Reading,
    Wait,
    judge,
    judge_parallel,
)
from nemo_agents.secret import Secret

__all__ = ["RedisLimiter"]

_BEAT_S: Final = 0.4
_LEASE_S: Final = 30.0
_RENEWALS_PER_LEASE: Final = 3
_GRACE_S: Final = 1.0
"""Longer than a beat, in which every gateway notices a loss, and than a request takes from admission to the log."""
_PATIENCE_S: Final = 2.5
"""How long a request waits for a rebuild before it is told that the rates are unavailable."""
_LEAVING_MAX: Final = 100_000
_LEAVE_BATCH: Final = 256
_LOOK_EVERY_S: Final = 300.0
_log = structlog.get_logger("nemo_agents.gateway")
_encode = msgspec.msgpack.Encoder().encode
_admitted = msgspec.msgpack.Decoder(tuple[int, list[tuple[int, int, int, int, int]], int]).decode
_entered = msgspec.msgpack.Decoder(tuple[int, int, list[tuple[int, int, int, int, int]]]).decode
_counted = msgspec.msgpack.Decoder(tuple[int, list[tuple[int, int]]]).decode
_state = msgspec.msgpack.Decoder(int).decode


@dataclass(slots=True, eq=False)
class _Lease:
    """A call in flight: the server knows it by `id`, in an epoch, and its charges by the numbers of their entries."""

    id: str
    drawer: int
    scopes: tuple[str, ...]
    tokens: int
    epoch: str = ""
    numbers: tuple[int, ...] = ()
    at_us: int = 0
    left: bool = False


class RedisLimiter:
    """A Limiter on a shared server. `recent_use` is the store's log since a time, in microseconds.

    For tests alone: `window_us`, `lease_s`, `beat_s` and `grace_s` make time short, and `time_of="caller"` takes the
    time from the caller's `now_us` instead of the server.
    """

    def __init__(
        self,
        url: Secret,
        *,
        recent_use: Callable[[int], Awaitable[Sequence[PastUse]]],
        window_us: int = WINDOW_US,
        lease_s: float = _LEASE_S,
        beat_s: float = _BEAT_S,
        grace_s: float = _GRACE_S,
        patience_s: float = _PATIENCE_S,
        time_of: Literal["server", "caller"] = "server",
    ) -> None:
        self._link = Link(url, on_server=self._met)
        self._drawers = [Drawer(number) for number in range(DRAWERS)]
        self._recovery = Recovery(
            self._link,
            self._drawers,
            window_us=window_us,
            grace_s=grace_s,
            recent_use=recent_use,
            rejoin=self._rejoin,
        )
        self._window_us = window_us
        self._lease_us = int(lease_s * 1_000_000)
        self._beat_s = beat_s
        self._patience_s = patience_s
        self._by_caller = time_of == "caller"
        self._server = ""
        self._epochs: dict[int, str] = {}
        self._recovering: asyncio.Task[None] | None = None
        self._leases: dict[str, _Lease] = {}
        self._leaving: deque[tuple[_Lease, int]] = deque(maxlen=_LEAVING_MAX)
        self._telling = 0
        self._somebody_leaves = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._me = secrets.token_hex(6)
        self._count = 0

    async def start(self) -> None:
        """Connect, and rebuild what the server does not have. The store must have been started.

        Raises SettingsError when the server cannot be reached or used.
        """
        try:
            await self._link.connect()
            await self._recovered(patience_s=None)
        except NotUsable as error:
            raise SettingsError(f"cache {self._link} cannot be used: {error}") from None
        except LimiterUnavailable as error:
            raise SettingsError(f"cache: {error}") from None
        self._tasks = [
            asyncio.create_task(self._keep(), name="rates-keeper"),
            asyncio.create_task(self._give_back(), name="rates-leaver"),
        ]

    async def close(self) -> None:
        """Give back what is held, if the server answers, and hang up."""
        tasks = [*self._tasks, *([self._recovering] if self._recovering is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for lease in list(self._leases.values()):
            self.leave(lease, None)
        while self._leaving and self._link.up and await self._give_back_some():
            pass
        await self._link.close()

    async def admit(self, now_us: int, scopes: Sequence[RateScope], repeat: Repeat | None) -> Admission:
        """Count one request in every scope, or in none when one refuses. Raises LimiterUnavailable."""
        number = drawer_of(scopes)
        drawer, names = self._drawers[number], [_name(scope) for scope in scopes]
        limits = [(_limit(scope.rpm), "rpm" in scope.shadow, _limit(scope.tpm)) for scope in scopes]
        loop = (0, 0, False)
        if repeat is not None:
            loop = (most_repeats(repeat.rule), repeat.rule.within_s * 1_000_000, repeat.rule.mode == "shadow")
        rows: list[tuple[int, int, int, int, int]]
        while True:
            epoch = await self._epoch(number)
            keys = [drawer.marker]
            for name in names:
                keys += (drawer.requests(epoch, name), drawer.tokens(epoch, name))
            if repeat is not None:
                keys.append(drawer.repeats(epoch, repeat.run, repeat.digest))
            asked = (epoch, self._time(now_us), self._window_us, limits, *loop)
            state, rows, loop_wait_us = _admitted(await self._link.call("admit", keys, asked))
            if state != LOST:
                break
            self._lost(number, epoch)
        answers = [_answer(row[0]) for row in rows]
        refusal, shadowed = judge("rpm", scopes, answers, weight=1)
        if refusal is None and repeat is not None and loop_wait_us:
            looped = loop_refusal(repeat.run, repeat.rule, loop_wait_us)
            if repeat.rule.mode == "shadow":
                shadowed = (*shadowed, looped)
            else:
                refusal = looped
        readings = []
        for scope, row in zip(scopes, rows, strict=True):
            readings += _reading("requests", scope.rpm, row[1], row[2], shadow="rpm" in scope.shadow)
            readings += _reading("tokens", scope.tpm, row[3], row[4], shadow="tpm" in scope.shadow)
        return Admission(refusal=refusal, shadowed=() if refusal is not None else shadowed, readings=tuple(readings))

    async def enter(self, now_us: int, scopes: Sequence[RateScope], tokens: int) -> Entry:
        """Take a place in flight and charge tokens, in every scope or in none. Raises LimiterUnavailable.

        Readings are of tokens alone. A caller that is cancelled, or gets no answer, has entered nothing: what the
        server may have taken is given back.
        """
        number = drawer_of(scopes)
        drawer, names = self._drawers[number], tuple(_name(scope) for scope in scopes)
        weight = max(1, tokens)
        limits = [
            (_limit(scope.tpm), "tpm" in scope.shadow, _limit(scope.max_parallel), "max_parallel" in scope.shadow)
            for scope in scopes
        ]
        while True:
            epoch = await self._epoch(number)
            self._count += 1
            lease = _Lease(f"{self._me}:{self._count}", number, names, weight, epoch=epoch)
            keys = [drawer.marker]
            for name in names:
                keys += (drawer.tokens(epoch, name), drawer.places(epoch, name))
            asked = (epoch, self._time(now_us), self._window_us, limits, weight, lease.id, self._lease_us)
            try:
                answer = await self._link.call("enter", keys, asked, partial(self._orphaned, lease))
            except NotSent:
                raise
            except LimiterUnavailable:
                self._leaving.append((lease, 0))  # whether it was taken is not known: the place goes back if it was
                raise
            state, at_us, rows = _entered(answer)
            if state != LOST:
                break
            self._lost(number, epoch)
        refusal, shadowed = judge_parallel(scopes, [row[0] for row in rows])
        if refusal is None:
            refusal, also = judge("tpm", scopes, [_answer(row[1]) for row in rows], weight=weight)
            shadowed += also
        readings = []
        for scope, row in zip(scopes, rows, strict=True):
            readings += _reading("tokens", scope.tpm, row[2], row[3], shadow="tpm" in scope.shadow)
        if state == REFUSED:
            assert refusal is not None
            return Entry(refusal=refusal, readings=tuple(readings))
        lease.at_us, lease.numbers = at_us, tuple(row[4] for row in rows)
        self._leases[lease.id] = lease
        return Entry(lease=lease, shadowed=shadowed, readings=tuple(readings))

    def leave(self, lease: object, tokens: int | None) -> None:
        """Give the place back, once, as soon as the server can be told; the estimate stays where use is unknown."""
        held = cast("_Lease", lease)
        if held.left:
            return
        held.left = True
        self._leases.pop(held.id, None)
        self._leaving.append((held, 0 if tokens is None else tokens - held.tokens))
        self._somebody_leaves.set()

    async def used(self, now_us: int, scopes: Sequence[RateScope]) -> Sequence[tuple[int, int]]:
        """Return the requests and the tokens of each scope in the last 60 seconds. Raises LimiterUnavailable."""
        return await asyncio.gather(*(self._used(now_us, scope) for scope in scopes))

    async def restore(self, now_us: int, uses: Sequence[PastUse]) -> None:
        """Do nothing: what the server does not have was rebuilt at the start, from the same log."""

    async def _used(self, now_us: int, scope: RateScope) -> tuple[int, int]:
        number = drawer_of([scope])
        drawer, name = self._drawers[number], _name(scope)
        while True:
            epoch = await self._epoch(number)
            keys = (drawer.marker, drawer.requests(epoch, name), drawer.tokens(epoch, name))
            asked = (epoch, self._time(now_us), self._window_us)
            state, rows = _counted(await self._link.call("used", keys, asked))
            if state != LOST:
                return rows[0]
            self._lost(number, epoch)

    # --- epochs -------------------------------------------------------------------------------------------------
    def _met(self, server: str) -> None:
        """Note which server answers now; what another one had (or the same, before it restarted) is lost."""
        if server != self._server:
            self._server = server
            self._epochs.clear()

    def _lost(self, number: int, epoch: str) -> None:
        if self._epochs.get(number) == epoch:
            del self._epochs[number]
            _log.warning("rates were lost and are rebuilt", server=str(self._link))

    async def _epoch(self, number: int) -> str:
        epoch = self._epochs.get(number)
        if epoch is None:
            await self._recovered(patience_s=self._patience_s)
            epoch = self._epochs.get(number)
            if epoch is None:
                raise LimiterUnavailable("the rates were lost again while they were being rebuilt")
        return epoch

    async def _recovered(self, *, patience_s: float | None) -> None:
        """Wait for a rebuild that is under way, or begin one. Raises LimiterUnavailable."""
        if not self._link.up:
            raise LimiterUnavailable(f"the rates at {self._link} cannot be reached")
        if self._recovering is None or self._recovering.done():
            self._recovering = asyncio.create_task(self._recover(), name="rates-recovery")
            self._recovering.add_done_callback(_look_at)
        done, _ = await asyncio.wait({self._recovering}, timeout=patience_s)
        if not done:
            raise LimiterUnavailable("the rates are being rebuilt; try again")
        for task in done:
            if task.cancelled():
                raise LimiterUnavailable("the gateway stops")
            task.result()

    async def _recover(self) -> None:
        server = self._server
        epochs = await self._recovery.epochs(server)
        if self._server == server:
            self._epochs = epochs

    async def _rejoin(self, number: int, epoch: str) -> None:
        """Make every call in flight here a part of an epoch to come, or of one that came without it."""
        drawer = self._drawers[number]
        strays = [lease for lease in self._leases.values() if lease.drawer == number and lease.epoch != epoch]
        for lease in strays:
            keys = [drawer.marker, drawer.lock, drawer.rejoining(epoch), drawer.rebuilt(epoch)]
            for name in lease.scopes:
                keys += (drawer.tokens(epoch, name), drawer.places(epoch, name))
            held = msgspec.json.encode(Held(lease.scopes, lease.tokens, lease.at_us)).decode()
            asked = (epoch, 0, self._window_us, lease.id, self._lease_us, held, lease.tokens)
            if _state(await self._link.call("rejoin", keys, asked)) == LOST:
                return  # another rebuild has begun: there is a next time
            lease.epoch, lease.numbers = epoch, ()

    # --- in the background --------------------------------------------------------------------------------------
    async def _keep(self) -> None:
        """Beat: connect again, notice a loss, and renew the places of calls in flight."""
        loop = asyncio.get_running_loop()
        renewed_s = looked_s = loop.time()
        away = False
        while True:
            await asyncio.sleep(self._beat_s)
            try:
                if not self._link.up:
                    await self._link.connect()
                if len(self._epochs) < DRAWERS or loop.time() - looked_s > _LOOK_EVERY_S:
                    looked_s = loop.time()
                    await self._recovered(patience_s=None)
                due = loop.time() - renewed_s >= self._lease_us / 1_000_000 / _RENEWALS_PER_LEASE
                await self._renew(all_of_them=due)
                if due:
                    renewed_s = loop.time()
                if self._leaving:
                    self._somebody_leaves.set()
                if away:
                    _log.info("rates are available again", server=str(self._link))
                away = False
            except (LimiterUnavailable, NotUsable) as error:
                if not away:
                    _log.warning("rates are unavailable", server=str(self._link), error=str(error))
                away = True
            except Exception:  # noqa: BLE001 - whatever it is, the next beat must come
                _log.exception("the keeper of the rates failed; it goes on")

    async def _renew(self, *, all_of_them: bool) -> None:
        """Renew what is held; in between, ask with one call of each drawer, so that a loss is noticed."""
        held: dict[int, list[_Lease]] = defaultdict(list)
        for lease in self._leases.values():
            held[lease.drawer].append(lease)
        await asyncio.gather(
            *(self._renew_drawer(number, leases if all_of_them else leases[:1]) for number, leases in held.items())
        )

    async def _renew_drawer(self, number: int, leases: Sequence[_Lease]) -> None:
        epoch, drawer = self._epochs.get(number), self._drawers[number]
        if epoch is None:
            return
        by_place: dict[str, list[str]] = defaultdict(list)
        for lease in leases:
            if lease.epoch == epoch:
                for scope in lease.scopes:
                    by_place[drawer.places(epoch, scope)].append(lease.id)
        now_us = 0  # the server's: a place is held in real time
        asked = (epoch, now_us, self._lease_us, list(by_place.values()))
        if _state(await self._link.call("renew", (drawer.marker, *by_place), asked)) == LOST:
            self._lost(number, epoch)
            await self._recovered(patience_s=None)

    async def _give_back(self) -> None:
        while True:
            await self._somebody_leaves.wait()
            self._somebody_leaves.clear()
            while self._leaving and self._link.up:
                try:
                    if not await self._give_back_some():
                        break  # the next beat wakes this up again
                except Exception:  # noqa: BLE001 - places end by themselves; the rest must still be given back
                    _log.exception("a place in flight could not be given back")

    async def _give_back_some(self) -> bool:
        """Tell the server of calls that are over; say whether it could be told."""
        batch = [self._leaving.popleft() for _ in range(min(len(self._leaving), _LEAVE_BATCH))]
        self._telling = len(batch)
        try:
            told = await asyncio.gather(*(self._tell(lease, difference) for lease, difference in batch))
        finally:
            self._telling = 0
        untold = [item for item, done in zip(batch, told, strict=True) if not done]
        self._leaving.extendleft(reversed(untold))
        return not untold

    async def _tell(self, lease: _Lease, difference: int) -> bool:
        """Give one place back; True when there is nothing left to do. To do it twice does no more than once."""
        drawer, epoch = self._drawers[lease.drawer], lease.epoch
        keys = [drawer.marker, drawer.rebuilt(epoch)]
        for name in lease.scopes:
            keys += (drawer.tokens(epoch, name), drawer.places(epoch, name))
        try:
            state = _state(await self._link.call("leave", keys, (epoch, lease.id, difference, lease.numbers)))
        except LimiterUnavailable:
            return False
        if state != LOST:
            return True
        # Its epoch is over, and the log knows what it used; or it has said that it is part of one to come.
        self._lost(lease.drawer, epoch)
        return not self._recovers()

    def _recovers(self) -> bool:
        return self._recovering is not None and not self._recovering.done()

    def _orphaned(self, lease: _Lease, answer: bytes) -> None:
        """Give back what a call entered whose caller had gone by then."""
        state, _, rows = _entered(answer)
        if state not in {LOST, REFUSED}:
            lease.numbers = tuple(row[4] for row in rows)
            self.leave(lease, 0)

    def _time(self, now_us: int) -> int:
        return now_us if self._by_caller else 0


def _name(scope: RateScope) -> str:
    return f"{scope.kind}:{scope.id}"


def _limit(limit: int | None) -> int:
    return -1 if limit is None else limit


def _answer(wait_us: int) -> Answer:
    if wait_us == 0:
        return Allowed()
    return Never() if wait_us < 0 else Wait(wait_us)


def _reading(
    what: Literal["requests", "tokens"],
    limit: int | None,
    used: int,
    reset_us: int,
    *,
    shadow: bool,
) -> list[Reading]:
    if limit is None:
        return []
    return [Reading(what=what, limit=limit, remaining=max(0, limit - used), reset_us=reset_us, shadow=shadow)]


def _look_at(task: asyncio.Task[None]) -> None:
    """Look at how a task ended, so that asyncio does not report what nobody waited for."""
    if not task.cancelled():
        task.exception()
