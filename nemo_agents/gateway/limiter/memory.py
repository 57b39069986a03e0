"""The limiter of one process: windows in memory. They begin with what the store's log says of the last minute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from nemo_agents.gateway.limiter.base import Admission, Entry, Repeat
from nemo_agents.policy.limits import (
    WINDOW_US,
    PastUse,
    RateScope,
    RateWindows,
    SlotLease,
    TokenCharge,
)
from nemo_agents.policy.loops import Repeats
from nemo_agents.policy.refusal import Refusal

__all__ = ["MemoryLimiter"]


@dataclass(slots=True, eq=False)
class _Lease:
    """A call in flight."""

    slot: SlotLease
    charge: TokenCharge


class MemoryLimiter:
    """A Limiter over windows in memory; never unavailable. `window_us` is a minute for everybody but tests."""

    def __init__(self, *, window_us: int = WINDOW_US) -> None:
        self._windows = RateWindows(window_us)
        self._repeats = Repeats()

    async def start(self) -> None:
        """Nothing to get ready."""

    async def close(self) -> None:
        """Nothing to let go of."""

    async def admit(self, now_us: int, scopes: Sequence[RateScope], repeat: Repeat | None) -> Admission:
        """Count one request in every scope, or in none when one refuses."""
        admitted = self._windows.admit_requests(now_us, scopes)
        if isinstance(admitted, Refusal):
            return Admission(refusal=admitted, readings=self._windows.readings(now_us, scopes))
        shadowed, refusal = admitted.shadowed, None
        if repeat is not None:
            loop = self._repeats.note(now_us, repeat.run, repeat.digest, repeat.rule)
            if loop is not None and repeat.rule.mode == "shadow":
                shadowed = (*shadowed, loop)
            else:
                refusal = loop
        return Admission(
            refusal=refusal,
            shadowed=() if refusal is not None else shadowed,
            readings=self._windows.readings(now_us, scopes),
        )

    async def enter(self, now_us: int, scopes: Sequence[RateScope], tokens: int) -> Entry:
        """Take a place in flight and charge tokens, in every scope or in none. Readings are of tokens alone."""
        entered = self._windows.enter(now_us, scopes, tokens)
        readings = self._windows.readings(now_us, scopes, requests=False)
        if isinstance(entered, Refusal):
            return Entry(refusal=entered, readings=readings)
        slot, charge = entered
        return Entry(lease=_Lease(slot, charge), shadowed=slot.shadowed + charge.shadowed, readings=readings)

    def leave(self, lease: object, tokens: int | None) -> None:
        """Give the place back, once; the estimate stays charged where the use is unknown."""
        held = cast("_Lease", lease)
        self._windows.release(held.slot)
        if tokens is None:
            held.charge.resolved = True
        else:
            self._windows.settle_tokens(held.charge, tokens)

    async def used(self, now_us: int, scopes: Sequence[RateScope]) -> Sequence[tuple[int, int]]:
        """Return the requests and the tokens of each scope in the last 60 seconds."""
        return [self._windows.used(now_us, scope.kind, scope.id) for scope in scopes]

    async def restore(self, now_us: int, uses: Sequence[PastUse]) -> None:
        """Charge the use of the last minute, oldest first, so that no limit starts anew."""
        self._windows.restore(now_us, uses)
