"""Bugs that ledgers have had elsewhere, each as small as it was: what the proofs must find."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ledger_model import Hold, Key, Ledger, MemoryBooks, MemoryStore, guard_of, key_of
from msgspec.structs import replace as with_

from nemo_agents.gateway.stores.base import AttemptEnd, AttemptStart, CallEnd, CallStart
from nemo_agents.policy.ledger import BudgetScope, Held, HoldRefused, Settlement

# --- in the arithmetic ------------------------------------------------------------------------------------------------


class PostsIntoThePeriodOfSettlement(Ledger):
    """A hold of yesterday is posted today: today's budget pays, and yesterday's looks unspent."""

    def __init__(self) -> None:
        super().__init__()
        self.latest: dict[tuple[str, str, int], str] = {}

    def take(self, attempt: AttemptStart, request_id: str, keys: tuple[Key, ...]) -> None:
        super().take(attempt, request_id, keys)
        self.latest |= {(kind, name, len(period)): period for kind, name, period in keys}

    def resolve(self, hold: Hold, kind: str, amount: int) -> int:
        super().resolve(hold, kind, amount)
        for scope, name, period in hold.keys:
            today = (scope, name, self.latest[scope, name, len(period)])
            self.posted[scope, name, period] -= amount
            self.posted[today] = self.posted.get(today, 0) + amount
        return amount


class SettlesTwice(Ledger):
    """A second word about a hold is taken as well."""

    def settle(self, hold_id: str, settlement: Settlement) -> int:
        hold = self.holds.get(hold_id)
        if hold is not None and hold.state == "post" and settlement.kind == "post":
            for key in hold.keys:
                self.posted[key] += settlement.amount_nanos
            return settlement.amount_nanos
        return super().settle(hold_id, settlement)


class ReleasesWhatExpires(Ledger):
    """Nobody knows what became of a call, so its hold is given back."""

    def expire(self, hold: Hold) -> int:
        return self.settle(hold.hold_id, Settlement(kind="void", amount_nanos=0))


class HoldsInTheFirstScopeOnly(Ledger):
    """Every scope is asked, one is charged."""

    def take(self, attempt: AttemptStart, request_id: str, keys: tuple[Key, ...]) -> None:
        super().take(attempt, request_id, keys[:1])
        for key in keys[1:]:
            self.held.setdefault(key, 0)


class ShadowsGuard(Ledger):
    """A limit that should only be watched refuses."""

    def fits(self, scope: BudgetScope, amount: int) -> bool:
        return scope.limit_nanos is None or self.used(key_of(scope)) + amount <= scope.limit_nanos


class GuardsNothingOfTheFleet(Ledger):
    """A scope that should guard is only watched."""

    def fits(self, scope: BudgetScope, amount: int) -> bool:
        return scope.kind == "fleet" or super().fits(scope, amount)


class HoldsHalfOfARefusal(Ledger):
    """The scopes before the one that refuses keep the hold."""

    def hold(self, attempt: AttemptStart, request_id: str, scopes: Sequence[BudgetScope]) -> BudgetScope | None:
        for index, scope in enumerate(scopes):
            if not self.fits(scope, attempt.hold_nanos):
                for taken in scopes[:index]:
                    self.held[key_of(taken)] = self.held.get(key_of(taken), 0) + attempt.hold_nanos
                return scope
        return super().hold(attempt, request_id, scopes)


class ForgetsLateTruth(Ledger):
    """What an expired hold really cost is not taken any more."""

    def correct(self, hold: Hold, truth: int) -> int:  # noqa: ARG002 - that is the bug
        return 0


class CapsOverruns(Ledger):
    """A cost beyond the hold is recorded as the hold: the money is gone all the same."""

    def resolve(self, hold: Hold, kind: str, amount: int) -> int:
        return super().resolve(hold, kind, min(amount, hold.amount))


ARITHMETIC: tuple[type[Ledger], ...] = (
    PostsIntoThePeriodOfSettlement,
    SettlesTwice,
    ReleasesWhatExpires,
    HoldsInTheFirstScopeOnly,
    ShadowsGuard,
    GuardsNothingOfTheFleet,
    HoldsHalfOfARefusal,
    ForgetsLateTruth,
    CapsOverruns,
)


def books_of(ledger: type[Ledger]) -> MemoryBooks:
    return MemoryBooks(ledger=ledger())


class LosesCommits(MemoryStore):
    """What was acknowledged is not yet on disk, and a crash takes the last of it."""

    def die(self) -> None:
        super().die()
        ledger = self.books.ledger
        if ledger.open:
            hold = list(ledger.open.values())[-1]
            del ledger.open[hold.hold_id], ledger.holds[hold.hold_id], self.books.calls[hold.request_id]
            for key in hold.keys:
                ledger.held[key] -= hold.amount
            ledger.journal = [entry for entry in ledger.journal if entry.hold_id != hold.hold_id]


# --- before any store, through its own protocol -----------------------------------------------------------------------


class Around:
    """A store that passes everything on."""

    def __init__(self, store: Any) -> None:
        self.store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


def unguarded(attempt: AttemptStart) -> AttemptStart:
    return with_(attempt, scopes=tuple(replace(scope, limit_nanos=None) for scope in attempt.scopes))


class ChecksThenCharges(Around):
    """Looks whether there is room, and then takes it: two that look at once both find it."""

    async def open_call(self, call: CallStart, attempt: AttemptStart) -> Any:
        balances = await self.store.balances(attempt.scopes)
        for balance in balances:
            limit = guard_of(balance.scope)
            if limit is not None and balance.posted_nanos + balance.held_nanos + attempt.hold_nanos > limit:
                return HoldRefused(balance=balance, needed_nanos=attempt.hold_nanos, balances=tuple(balances))
        return await self.store.open_call(call, unguarded(attempt))


class ReadsTheLimitBeforeTheLock(Around):
    """Guards with the limit that was in force at the call before: a lowered budget is found out one call late."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self.limits: dict[tuple[str, str, str], int | None] = {}

    async def open_call(self, call: CallStart, attempt: AttemptStart) -> Any:
        stale = []
        for scope in attempt.scopes:
            place = (scope.kind, scope.id, scope.name)
            stale.append(replace(scope, limit_nanos=self.limits.get(place, scope.limit_nanos)))
            self.limits[place] = scope.limit_nanos
        return await self.store.open_call(call, with_(attempt, scopes=tuple(stale)))


class HoldsNothingForAFallback(Around):
    """One hold per request is enough, says the one who never saw a second attempt billed."""

    async def next_attempt(self, request_id: str, ended: AttemptEnd, attempt: AttemptStart) -> Any:
        return await self.store.next_attempt(request_id, ended, with_(attempt, hold_nanos=0))


class VoidsWhatNobodyKnows(Around):
    """A broken call cost nothing, surely."""

    def close_call(self, end: CallEnd, attempt: AttemptEnd | None) -> None:
        if attempt is not None and attempt.settlement.kind == "expire":
            attempt = with_(attempt, settlement=Settlement(kind="void", amount_nanos=0))
        self.store.close_call(end, attempt)


class ForgetsTheAbandoned(Around):
    """A call whose client left is dropped where it stands; its hold stays open until it expires."""

    def close_call(self, end: CallEnd, attempt: AttemptEnd | None) -> None:
        if end.state != "abandoned":
            self.store.close_call(end, attempt)


class SettlesBeforeTheSend(Around):
    """The hold is given back as soon as it was granted: nothing counts while the call is under way."""

    async def open_call(self, call: CallStart, attempt: AttemptStart) -> Any:
        answer = await self.store.open_call(call, attempt)
        if isinstance(answer, Held):
            end = CallEnd(request_id=call.request_id, ended_us=call.started_us, state="ok", status=200)
            void = AttemptEnd(
                hold_id=attempt.hold_id,
                n=attempt.n,
                ended_us=call.started_us,
                status=200,
                error=None,
                settlement=Settlement(kind="void", amount_nanos=0),
                usage_source="none",
            )
            self.store.close_call(end, void)
            await asyncio.sleep(0)
        return answer
