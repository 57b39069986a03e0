"""Money in the database: the guarded hold, and its one resolution.

A hold is one guarded UPDATE over all its scopes: either every balance takes the amount, or none does. A
resolution is guarded twice: by `attempts.settled IS NULL`, and by the primary key (hold_id, slot) of the
append-only entries. Nothing here commits; the caller's transaction does.

Every decision is the database's. What balances and holds amount to is remembered as well, for as long as nobody
else can write them: the statements then need not return it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import msgspec

from nemo_agents.gateway.stores.base import AttemptEnd, AttemptStart
from nemo_agents.gateway.stores.database import Database
from nemo_agents.policy.ledger import Balance, BudgetScope, HoldRefused

__all__ = ["MAX_NANOS", "Hold", "KeptBalance", "LedgerWriter", "capped", "check_hold", "read_balance"]

MAX_NANOS: Final = 10**18
"""A billion dollars: nothing above it is a price, and sums of many stay within 64 bits."""

_SELECT_BALANCE: Final = "SELECT id, posted_nanos, held_nanos FROM balances WHERE kind=? AND scope_id=? AND period=?"
_INSERT_BALANCE: Final = "INSERT INTO balances(kind, scope_id, period) VALUES (?, ?, ?) RETURNING id"
_ENTRY: Final = (
    "INSERT INTO entries(hold_id, slot, kind, request_id, attempt, amount_nanos, balances, price_version, usage,"
    " usage_source, expires_us, at_us) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_RESOLVE: Final = (
    "UPDATE attempts SET settled=?, cost_nanos=?, ended_us=?, status=?, error=?"
    " WHERE run=? AND seq=? AND n=? AND hold_id=? AND settled IS NULL"
)
_CORRECT: Final = (
    "UPDATE attempts SET settled='correct', cost_nanos=?, ended_us=?, status=?, error=?"
    " WHERE run=? AND seq=? AND n=? AND hold_id=? AND settled='expire'"
)
_SELECT_HOLD: Final = (
    "SELECT held_nanos, balances, price_version FROM attempts WHERE run=? AND seq=? AND n=? AND hold_id=?"
)
_SCOPES_MAX: Final = 16


@lru_cache(maxsize=64)
def _guarded_hold(limited: tuple[bool, ...]) -> str:
    """Return the statement that holds `?1` nanos in all balances, or in none; `limited` says which have a guard.

    The balances are the parameters from 2 on, and then come the guards there are. The subqueries depend on no
    row, so SQLite evaluates each once, at the first row and before that changes: no row sees what another took.
    """
    ids = [f"?{2 + i}" for i in range(len(limited))]
    bounded = [i for i, has_limit in zip(ids, limited, strict=True) if has_limit]
    guards = "".join(
        f" AND (SELECT posted_nanos + held_nanos + ?1 <= ?{2 + len(ids) + n} FROM balances WHERE id = {i})"  # noqa: S608 - only numbers of parameters
        for n, i in enumerate(bounded)
    )
    return f"UPDATE balances SET held_nanos = held_nanos + ?1 WHERE id IN ({', '.join(ids)}){guards}"  # noqa: S608 - likewise


_MOVE: Final = "UPDATE balances SET held_nanos=held_nanos-?, posted_nanos=posted_nanos+? WHERE id=?"


def check_hold(attempt: AttemptStart) -> None:
    """Raise ValueError for an attempt that must never reach the ledger."""
    if not 0 <= attempt.hold_nanos <= MAX_NANOS:
        raise ValueError(f"a hold is between 0 and {MAX_NANOS} nanos, not {attempt.hold_nanos}")
    scopes = attempt.scopes
    if len({(s.kind, s.id, s.period) for s in scopes}) != len(scopes) or len(scopes) > _SCOPES_MAX:
        raise ValueError(f"a hold counts against up to {_SCOPES_MAX} different scopes: {scopes!r}")


def read_balance(db: Database, scope: BudgetScope) -> Balance:
    """Return the balance of a scope; zero where nothing was ever held."""
    row = db.execute(_SELECT_BALANCE, (scope.kind, scope.id, scope.period)).fetchone()
    return Balance(scope=scope, posted_nanos=row[1] if row else 0, held_nanos=row[2] if row else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """An attempt's hold as its row has it. `listed` is the JSON list of the balances it counts against."""

    hold_id: str
    held_nanos: int
    listed: str
    balance_ids: tuple[int, ...]
    price_version: str | None


@dataclass(slots=True)
class KeptBalance:
    """A balance as the open transaction has it."""

    id: int
    posted_nanos: int
    held_nanos: int


class LedgerWriter:
    """The money statements on the one connection that writes."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._kept: dict[tuple[str, str, str], KeptBalance] = {}
        self._kept_by_id: dict[int, KeptBalance] = {}

    def forget(self) -> None:
        """Drop what is remembered of rows that a rollback may have taken back."""
        self._kept.clear()
        self._kept_by_id.clear()

    def trim(self, size: int) -> None:
        """Drop what is remembered when it has grown past `size`."""
        if len(self._kept) > size:
            self.forget()

    def hold(
        self, attempt: AttemptStart, *, request_id: str, scopes: tuple[BudgetScope, ...]
    ) -> tuple[tuple[Balance, ...], Hold] | HoldRefused:
        """Hold in all scopes or in none; return the balances after it and the hold."""
        amount = attempt.hold_nanos
        kept = [self._balance(scope) for scope in scopes]
        ids = [each.id for each in kept]
        balances: list[Balance] = []
        if ids:
            if not self._take(kept, scopes, amount):
                return self._refused(scopes, amount)
            for each, scope in zip(kept, scopes, strict=True):
                each.held_nanos += amount
                balances.append(Balance(scope=scope, posted_nanos=each.posted_nanos, held_nanos=each.held_nanos))
        listed = str(ids)
        self._entry(
            attempt.hold_id,
            "hold",
            request_id,
            attempt.n,
            amount,
            listed,
            attempt.price_version,
            None,
            None,
            attempt.expires_us,
            attempt.started_us,
        )
        hold_of = Hold(
            hold_id=attempt.hold_id,
            held_nanos=amount,
            listed=listed,
            balance_ids=tuple(ids),
            price_version=attempt.price_version,
        )
        return tuple(balances), hold_of

    def settle(self, run: int, seq: int, request_id: str, end: AttemptEnd, *, known: Hold | None) -> int:
        """Resolve a hold and return by how much the posted amount changed; 0 when it was resolved before.

        `known` is an open hold of this call, which is not read again when it is the one that ended. What really
        happened to an expired hold is a correction: a new entry with the difference.
        """
        kind = end.settlement.kind
        truth = 0 if kind == "void" else end.settlement.amount_nanos
        if not 0 <= truth <= MAX_NANOS:
            raise ValueError(f"a settlement is between 0 and {MAX_NANOS} nanos, not {truth}")
        where = (run, seq, end.n, end.hold_id)
        how = (end.ended_us, end.status, end.error)
        hold = known if known is not None and known.hold_id == end.hold_id else self._read_hold(where)
        if hold is None:
            return 0
        posted = hold.held_nanos if kind == "expire" else truth
        if self._db.touch(_RESOLVE, (kind, posted, *how, *where), 1 if hold is known else None):
            self._resolution(end, kind, request_id, hold, posted)
            self._move(hold, hold.held_nanos, posted)
            return posted
        if kind == "expire" or not self._db.touch(_CORRECT, (truth, *how, *where), None):
            return 0
        difference = truth - hold.held_nanos
        self._resolution(end, "correct", request_id, hold, difference)
        self._move(hold, 0, difference)
        return difference

    def knows(self, run: int, seq: int, end: AttemptEnd) -> bool:
        """Say whether there is this attempt."""
        return self._read_hold((run, seq, end.n, end.hold_id)) is not None

    def _read_hold(self, where: tuple[int, int, int, str]) -> Hold | None:
        row = self._db.execute(_SELECT_HOLD, where).fetchone()
        if row is None:
            return None
        held_nanos, listed, price_version = row
        return Hold(
            hold_id=where[3],
            held_nanos=held_nanos,
            listed=listed,
            balance_ids=tuple(msgspec.json.decode(listed, type=list[int])),
            price_version=price_version,
        )

    def _resolution(self, end: AttemptEnd, kind: str, request_id: str, hold: Hold, amount: int) -> None:
        usage = msgspec.json.encode(end.usage).decode() if end.usage else None
        self._entry(
            end.hold_id,
            kind,
            request_id,
            end.n,
            amount,
            hold.listed,
            hold.price_version,
            usage,
            end.usage_source,
            None,
            end.ended_us,
        )

    def _move(self, hold: Hold, held: int, posted: int) -> None:
        # One row after the other, with no guard to ask: what resolves the hold has decided, and the transaction binds.
        self._db.executemany(_MOVE, [(held, posted, balance_id) for balance_id in hold.balance_ids])
        for balance_id in hold.balance_ids:
            kept = self._kept_by_id.get(balance_id)
            if kept is not None:
                kept.held_nanos -= held
                kept.posted_nanos += posted

    def _entry(self, hold_id: str, kind: str, *rest: str | int | None) -> None:
        slot = 0 if kind == "hold" else 2 if kind == "correct" else 1
        self._db.later(_ENTRY, (hold_id, slot, kind, *rest))

    def _take(self, kept: list[KeptBalance], scopes: tuple[BudgetScope, ...], amount: int) -> bool:
        """Add a hold to all of these balances, or to none; say whether it fitted."""
        limits = [scope.guard_nanos for scope in scopes]
        guarded = _guarded_hold(tuple([limit is not None for limit in limits]))
        parameters = (amount, *[each.id for each in kept], *[limit for limit in limits if limit is not None])
        touched = self._db.execute(guarded, parameters).rowcount
        if touched not in (0, len(kept)):
            raise RuntimeError(f"a hold touched {touched} of {len(kept)} balances")
        return touched > 0

    def _balance(self, scope: BudgetScope) -> KeptBalance:
        key = (scope.kind, scope.id, scope.period)
        kept = self._kept.get(key)
        if kept is None:
            row = self._db.execute(_SELECT_BALANCE, key).fetchone()
            kept = KeptBalance(*row) if row else self._new_balance(key)
            self._keep(key, kept)
        return kept

    def _new_balance(self, key: tuple[str, str, str]) -> KeptBalance:
        return KeptBalance(int(self._db.execute(_INSERT_BALANCE, key).fetchall()[0][0]), 0, 0)

    def _keep(self, key: tuple[str, str, str], kept: KeptBalance) -> None:
        self._kept[key] = self._kept_by_id[kept.id] = kept

    def _refused(self, scopes: Sequence[BudgetScope], amount: int) -> HoldRefused:
        balances = tuple(read_balance(self._db, scope) for scope in scopes)
        for balance in balances:
            if not balance.takes(amount):
                return HoldRefused(balance=balance, needed_nanos=amount, balances=balances)
        raise RuntimeError("the guard refused a hold that every balance can take")


def capped(scopes: tuple[BudgetScope, ...], budget_nanos: int | None) -> tuple[BudgetScope, ...]:
    """Return the scopes with the run's limit lowered to what the run declared, never raised."""
    if budget_nanos is None:
        return scopes
    return tuple(
        replace(scope, limit_nanos=budget_nanos)
        if scope.kind == "run" and (scope.limit_nanos is None or scope.limit_nanos > budget_nanos)
        else scope
        for scope in scopes
    )
