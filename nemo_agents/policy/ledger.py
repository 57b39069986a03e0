"""Values of the ledger, and the words a store answers with.

A reservation is *held* before a call, and resolves exactly once: *posted* with what it cost, *voided* when the
request provably cost nothing, or *expired* (posted at the hold) when nobody knows. Money is integer nanos. A store
takes a hold over all scopes of a request or over none, and lets nobody come between the check and the take: on SQLite
in one guarded statement, on PostgreSQL with the balances locked, decided, and written only if they still are what was
read.

What every call makes several of is a msgspec Struct: frozen like the dataclasses, and made at a third of their price.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from msgspec import Struct

__all__ = ["Balance", "BudgetScope", "Held", "HoldRefused", "RunCaps", "RunRefused", "ScopeKind", "Settlement"]

ScopeKind = Literal["run", "role", "fleet"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetScope:
    """One budget that a hold counts against, in the period in which the hold opens.

    `id` is `<fleet>/<run id>`, a grant id, or a fleet name; `period` a period id of `policy.periods`. `limit_nanos`
    is None where spend is recorded without a budget. `resets_at_us` is when the period ends, None when never.
    A scope in mode `shadow` records, and never refuses: no guard looks at its limit. `alert_at` are fractions of the
    limit at which to warn; `name` is what people call the budget (`day`, `12h`). Several scopes of one hold may have
    one kind and id, never one period beside them.
    """

    kind: ScopeKind
    id: str
    period: str
    limit_nanos: int | None
    resets_at_us: int | None = None
    mode: Literal["enforce", "shadow"] = "enforce"
    alert_at: tuple[float, ...] = ()
    name: str = "total"

    @property
    def guard_nanos(self) -> int | None:
        """The limit that a hold must fit under; None where nothing guards."""
        return self.limit_nanos if self.mode == "enforce" else None


class Balance(Struct, frozen=True, kw_only=True):
    """What a scope has posted and holds in one period."""

    scope: BudgetScope
    posted_nanos: int
    held_nanos: int

    @property
    def left_nanos(self) -> int | None:
        """What another hold may take; None where nothing guards; never negative."""
        guard_nanos = self.scope.guard_nanos
        return None if guard_nanos is None else max(0, guard_nanos - self.posted_nanos - self.held_nanos)

    def takes(self, nanos: int) -> bool:
        """Say whether another hold of this much fits."""
        guard_nanos = self.scope.guard_nanos
        return guard_nanos is None or self.posted_nanos + self.held_nanos + nanos <= guard_nanos


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCaps:
    """The run's own caps, as its first call declared them; later calls may lower and never raise them."""

    budget_nanos: int | None = None
    max_calls: int | None = None


class Held(Struct, frozen=True, kw_only=True):
    """The hold is committed. `balances` are the scopes after it, in the order asked; `seq` is its number in the run."""

    balances: tuple[Balance, ...]
    seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldRefused:
    """No scope took the hold, because `balance` (the first in order) cannot. `balances` is all of them, unchanged.

    Which of them a refusal names is for admission to say.
    """

    balance: Balance
    needed_nanos: int
    balances: tuple[Balance, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRefused:
    """The run takes no further call: `stopped` by hand, or `max_calls` used up."""

    why: Literal["stopped", "max_calls"]
    max_calls: int | None = None


class Settlement(Struct, frozen=True, kw_only=True):
    """How a hold resolves: `post` what it cost (even beyond the hold: truth first), `void` 0, or `expire` the hold."""

    kind: Literal["post", "void", "expire"]
    amount_nanos: int
