"""What a server has lost (a restart, a flush, a failover) is rebuilt before anything is admitted again.

One replica does it, under a lock: it waits a moment, in which every replica says which of its calls are in flight and
in which the last requests reach the store's log; then it reads the log, and writes every window anew in a namespace
of its own. Its last step makes it all valid at once. The others wait. One that dies while rebuilding loses the lock,
and the next begins from the start.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, Literal

import msgspec
from msgspec import Struct

from nemo_agents.gateway.limiter.base import LimiterUnavailable
from nemo_agents.gateway.limiter.layout import DRAWERS, Drawer, drawer_of_use
from nemo_agents.gateway.limiter.link import Link
from nemo_agents.gateway.limiter.lua import LOST, REFUSED
from nemo_agents.gateway.stores.base import StoreUnavailable
from nemo_agents.policy.limits import PastUse, RateWindow, scopes_of_use

__all__ = ["MARKER_S", "Held", "Recovery"]

MARKER_S: Final = 86_400
_LOCK_MS: Final = 6_000
_READ_TIMEOUT_S: Final = 3.0
_POLL_S: Final = 0.05
_PUBLISH_TRIES: Final = 5
_looked = msgspec.msgpack.Decoder(tuple[Literal["ready", "waiting", "mine"], str, int]).decode
_state = msgspec.msgpack.Decoder(int).decode
_rejoined = msgspec.msgpack.Decoder(list[str]).decode


class Held(Struct, frozen=True):
    """A call in flight as it is told to whoever rebuilds: its scopes, and what it charged when."""

    scopes: tuple[str, ...]
    tokens: int
    at_us: int


class Recovery:
    """Finds out the epoch of every drawer, and rebuilds those that have none."""

    def __init__(
        self,
        link: Link,
        drawers: Sequence[Drawer],
        *,
        window_us: int,
        grace_s: float,
        recent_use: Callable[[int], Awaitable[Sequence[PastUse]]],
        rejoin: Callable[[int, str], Awaitable[None]],
    ) -> None:
        self._link = link
        self._drawers = drawers
        self._window_us = window_us
        self._grace_s = grace_s
        self._recent_use = recent_use
        self._rejoin = rejoin

    async def epochs(self, server: str) -> dict[int, str]:
        """Return the epoch of every drawer on a server (the name of its present life), rebuilt where need be.

        Every call in flight here has been made part of it. Raises LimiterUnavailable.
        """
        found: dict[int, str] = {}
        while len(found) < DRAWERS:
            missing = [number for number in range(DRAWERS) if number not in found]
            looks = await asyncio.gather(*(self._look(number, server) for number in missing))
            mine = {n: epoch for n, (standing, epoch, _) in zip(missing, looks, strict=True) if standing == "mine"}
            try:
                await asyncio.gather(*(self._rejoin(n, look[1]) for n, look in zip(missing, looks, strict=True)))
                if mine:
                    await self._rebuild(mine, max(look[2] for look in looks))
            except BaseException:
                await self._give_up(mine)
                raise
            found |= {n: look[1] for n, look in zip(missing, looks, strict=True) if look[0] == "ready"}
            if not mine and len(found) < DRAWERS:
                await asyncio.sleep(_POLL_S)
        return found

    async def _look(self, number: int, server: str) -> tuple[Literal["ready", "waiting", "mine"], str, int]:
        drawer = self._drawers[number]
        candidate = f"{server}:{secrets.token_hex(8)}"
        return _looked(
            await self._link.call("look", (drawer.marker, drawer.lock), (server, candidate, _LOCK_MS, MARKER_S))
        )

    async def _rebuild(self, mine: Mapping[int, str], looked_us: int) -> None:
        clock = asyncio.get_running_loop().time
        looked_s = clock()
        await asyncio.sleep(self._grace_s)
        for _ in range(_PUBLISH_TRIES):
            now_us = looked_us + int((clock() - looked_s) * 1_000_000)  # by the server's clock
            uses: dict[int, list[PastUse]] = defaultdict(list)
            for use in await self._read(now_us - self._window_us):
                uses[drawer_of_use(use)].append(use)
            states = await asyncio.gather(
                *(self._rebuild_drawer(number, epoch, uses[number], now_us) for number, epoch in mine.items())
            )
            mine = {n: epoch for (n, epoch), state in zip(mine.items(), states, strict=True) if state == REFUSED}
            if not mine:
                return
        raise LimiterUnavailable("the rates are being rebuilt, and new calls kept joining; try again")

    async def _read(self, since_us: int) -> Sequence[PastUse]:
        try:
            async with asyncio.timeout(_READ_TIMEOUT_S):
                return await self._recent_use(since_us)
        except TimeoutError:
            raise LimiterUnavailable("the rates cannot be rebuilt: the store does not answer in time") from None
        except StoreUnavailable as error:
            raise LimiterUnavailable(f"the rates cannot be rebuilt: {error}") from None

    async def _rebuild_drawer(self, number: int, epoch: str, uses: Sequence[PastUse], now_us: int) -> int:
        """Write one drawer's windows as the log and the calls in flight have them; return how publishing went."""
        drawer = self._drawers[number]
        told = _rejoined(await self._link.call("rejoined", (drawer.rejoining(epoch),), ()))
        held = {lease: msgspec.json.decode(text, type=Held) for lease, text in zip(told[::2], told[1::2], strict=True)}
        requests: dict[str, RateWindow] = defaultdict(lambda: RateWindow(self._window_us))
        tokens: dict[str, RateWindow] = defaultdict(lambda: RateWindow(self._window_us))
        placed: dict[str, list[int]] = {}
        events: list[tuple[int, PastUse | Held, str]] = [(min(use.at_us, now_us), use, "") for use in uses]
        events += [(min(call.at_us, now_us), call, lease) for lease, call in held.items()]
        for at_us, what, lease in sorted(events, key=lambda event: event[0]):
            if at_us + self._window_us <= now_us:
                continue
            if isinstance(what, Held):
                for scope in what.scopes:
                    tokens[scope].charge(at_us, what.tokens, None)
                    placed.setdefault(lease, []).append(len(tokens[scope]))
                continue
            for kind, scope_id in scopes_of_use(what):
                scope = f"{kind}:{scope_id}"
                requests[scope].charge(at_us, 1, None)
                tokens[scope].charge(at_us, what.tokens, None)
        life_ms = self._window_us // 1000 + 5_000
        fills = [(drawer.requests(epoch, scope), window) for scope, window in requests.items()]
        fills += [(drawer.tokens(epoch, scope), window) for scope, window in tokens.items()]
        await asyncio.gather(
            *(self._link.call("fill", (key,), (life_ms, window.log())) for key, window in fills),
            self._link.call("place", (drawer.rebuilt(epoch),), (list(placed.items()),)),
        )
        keys = (drawer.marker, drawer.lock, drawer.rejoining(epoch))
        state = _state(await self._link.call("publish", keys, (epoch, MARKER_S, len(held))))
        if state == LOST:
            raise LimiterUnavailable("the rates could not be rebuilt in time; another gateway tries")
        return state

    async def _give_up(self, mine: Mapping[int, str]) -> None:
        """Let another try at once; without an answer the lock ends by itself."""
        await asyncio.gather(
            *(self._link.call("give_up", (self._drawers[n].lock,), (epoch,)) for n, epoch in mine.items()),
            return_exceptions=True,
        )
