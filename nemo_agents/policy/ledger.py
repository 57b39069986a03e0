"""Values of the ledger, and the words a store answers with.

A reservation is *held* before a call, and resolves exactly once: *posted* with what it cost, *voided* when the
request provably never left, or *expired* (posted at the hold) when nobody knows. Money is integer nanos. A store
performs the guard in one atomic statement over all scopes of a request: all of them hold, or none does.

What every call makes several of is a msgspec Struct: frozen like the dataclasses, and made at a third of their price.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from msgspec import Struct

__all__ = ["Balance", "BudgetScope", "Held", "HoldRefused", "RunCaps", "RunRefused", "Settlement"]

ScopeKind = Literal["run", "role", "fleet"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetScope:
    """One budget that a hold counts against, in the period in which the hold opens.

    `id` is `<fleet>/<run id>`, a grant id, or a fleet name; `period` a period id of `policy.periods`. `limit_nanos`
    is None where spend is recorded without a budget. `resets_at_us` is when the period ends, None when never.
    """

    kind: ScopeKind
    id: str
    period: str
    limit_nanos: int | None
    resets_at_us: int | None = None


class Balance(Struct, frozen=True, kw_only=True):
    """What a scope has posted and holds in one period."""

    scope: BudgetScope
    posted_nanos: int
    held_nanos: int

    @property
    def left_nanos(self) -> int | None:
        """What another hold may take; None without a budget; never negative."""
        if self.scope.limit_nanos is None:
            return None
        return max(0, self.scope.limit_nanos - self.posted_nanos - self.held_nanos)


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
    """No scope took the hold, because `balance` (the first in order) cannot. `balances` is all of them, unchanged."""

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
