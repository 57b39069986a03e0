"""Money in SQLite: the guarded hold, and its one resolution.

A hold is one guarded UPDATE over all its scopes: either every balance takes the amount, or none does. A
resolution is guarded twice: by `attempts.settled IS NULL`, and by UNIQUE(hold_id, slot) of the append-only
entries. Nothing here commits; the caller's transaction does.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from nemo_agents.gateway.stores.base import AttemptEnd, AttemptStart
from nemo_agents.policy.ledger import Balance, BudgetScope, HoldRefused

__all__ = ["MAX_NANOS", "LedgerWriter", "capped", "check_hold", "read_balance"]

MAX_NANOS: Final = 10**18
"""A billion dollars: nothing above it is a price, and sums of many stay within 64 bits."""

_SELECT_BALANCE: Final = "SELECT id, posted_nanos, held_nanos FROM balances WHERE kind=? AND scope_id=? AND period=?"
_INSERT_BALANCE: Final = "INSERT INTO balances(kind, scope_id, period) VALUES (?, ?, ?)"
_ENTRY: Final = (
    "INSERT INTO entries(hold_id, slot, kind, request_id, attempt, amount_nanos, balances, price_version, usage,"
    " usage_source, expires_us, at_us) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_RESOLVE: Final = (
    "UPDATE attempts SET settled=?, cost_nanos=CASE ? WHEN 'expire' THEN held_nanos ELSE ? END, ended_us=?, status=?,"
    " error=? WHERE run=? AND seq=? AND n=? AND hold_id=? AND settled IS NULL"
    " RETURNING held_nanos, balances, price_version, cost_nanos"
)
_CORRECT: Final = (
    "UPDATE attempts SET settled='correct', cost_nanos=?, ended_us=?, status=?, error=?"
    " WHERE run=? AND seq=? AND n=? AND hold_id=? AND settled='expire' RETURNING held_nanos, balances, price_version"
)
_SCOPES_MAX: Final = 4


def _guarded_hold(scopes: int) -> str:
    """Return the statement that holds `?1` nanos in all of so many balances, or in none.

    Every limit is looked at before the first row changes: the subqueries depend on no row, so SQLite
    evaluates each once, and it collects the rows of an UPDATE whose WHERE reads the same table before it
    writes. A limit of NULL compares as NULL, which lets the hold pass.
    """
    fits = "(SELECT posted_nanos + held_nanos + ?1 <= ?{limit} FROM balances WHERE id = ?{id})"
    marks = [{"id": 2 + 2 * i, "limit": 3 + 2 * i} for i in range(scopes)]
    ids = ", ".join(f"?{mark['id']}" for mark in marks)
    guards = " AND ".join(f"coalesce({fits.format(**mark)}, 1)" for mark in marks)
    return (
        f"UPDATE balances SET held_nanos = held_nanos + ?1 WHERE id IN ({ids}) AND {guards}"  # noqa: S608 - only numbers of parameters
        " RETURNING id, posted_nanos, held_nanos"
    )


_HOLD: Final = tuple(_guarded_hold(n) for n in range(1, _SCOPES_MAX + 1))
_MOVE: Final = tuple(
    "UPDATE balances SET held_nanos=held_nanos-?, posted_nanos=posted_nanos+?"  # noqa: S608 - only numbers of marks
    f" WHERE id IN ({', '.join('?' * n)})"
    for n in range(1, _SCOPES_MAX + 1)
)


def check_hold(attempt: AttemptStart) -> None:
    """Raise ValueError for an attempt that must never reach the ledger."""
    if not 0 <= attempt.hold_nanos <= MAX_NANOS:
        raise ValueError(f"a hold is between 0 and {MAX_NANOS} nanos, not {attempt.hold_nanos}")
    if len({(s.kind, s.id) for s in attempt.scopes}) != len(attempt.scopes) or len(attempt.scopes) > len(_HOLD):
        raise ValueError(f"a hold counts against up to {_SCOPES_MAX} different scopes: {attempt.scopes!r}")


def read_balance(db: sqlite3.Connection, scope: BudgetScope) -> Balance:
    """Return the balance of a scope; zero where nothing was ever held."""
    row = db.execute(_SELECT_BALANCE, (scope.kind, scope.id, scope.period)).fetchone()
    return Balance(scope=scope, posted_nanos=row[1] if row else 0, held_nanos=row[2] if row else 0)


class LedgerWriter:
    """The money statements on the one connection that writes."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._ids: dict[tuple[str, str, str], int] = {}

    def forget(self) -> None:
        """Drop what is remembered of rows that a rollback may have taken back."""
        self._ids.clear()

    def trim(self, size: int) -> None:
        """Drop what is remembered when it has grown past `size`."""
        if len(self._ids) > size:
            self._ids.clear()

    def hold(
        self, attempt: AttemptStart, *, request_id: str, scopes: tuple[BudgetScope, ...]
    ) -> tuple[tuple[Balance, ...], str] | HoldRefused:
        """Hold in all scopes or in none; return the balances after it and the JSON list of their ids."""
        amount = attempt.hold_nanos
        ids = [self._balance_id(scope) for scope in scopes]
        balances: tuple[Balance, ...] = ()
        if ids:
            parameters: list[int | None] = [amount]
            for balance_id, scope in zip(ids, scopes, strict=True):
                parameters += (balance_id, scope.limit_nanos)
            after = {i: (p, h) for i, p, h in self._db.execute(_HOLD[len(ids) - 1], parameters).fetchall()}
            if not after:
                return self._refused(scopes, amount)
            if len(after) != len(ids):
                raise RuntimeError(f"a hold touched {len(after)} of {len(ids)} balances")
            balances = tuple(
                Balance(scope=scope, posted_nanos=after[i][0], held_nanos=after[i][1])
                for i, scope in zip(ids, scopes, strict=True)
            )
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
        return balances, listed

    def settle(self, run: int, seq: int, request_id: str, end: AttemptEnd) -> int:
        """Resolve a hold and return by how much the posted amount changed; 0 when it was resolved before.

        What really happened to an expired hold is a correction: a new entry with the difference.
        """
        kind = end.settlement.kind
        truth = 0 if kind == "void" else end.settlement.amount_nanos
        if not 0 <= truth <= MAX_NANOS:
            raise ValueError(f"a settlement is between 0 and {MAX_NANOS} nanos, not {truth}")
        where = (run, seq, end.n, end.hold_id)
        how = (end.ended_us, end.status, end.error)
        row = self._db.execute(_RESOLVE, (kind, kind, truth, *how, *where)).fetchone()
        if row is not None:
            held, listed, price_version, posted = row
            self._resolution(end, kind, request_id, amount=posted, listed=listed, price_version=price_version)
            self._move(listed, held, posted)
            return int(posted)
        if kind == "expire":
            return 0
        row = self._db.execute(_CORRECT, (truth, *how, *where)).fetchone()
        if row is None:
            return 0
        held, listed, price_version = row
        self._resolution(end, "correct", request_id, amount=truth - held, listed=listed, price_version=price_version)
        self._move(listed, 0, truth - held)
        return int(truth - held)

    def _resolution(
        self, end: AttemptEnd, kind: str, request_id: str, *, amount: int, listed: str, price_version: str | None
    ) -> None:
        usage = json.dumps(end.usage, separators=(",", ":")) if end.usage else None
        self._entry(
            end.hold_id,
            kind,
            request_id,
            end.n,
            amount,
            listed,
            price_version,
            usage,
            end.usage_source,
            None,
            end.ended_us,
        )

    def _move(self, listed: str, held: int, posted: int) -> None:
        ids = json.loads(listed)
        if ids:
            self._db.execute(_MOVE[len(ids) - 1], (held, posted, *ids))

    def _entry(self, hold_id: str, kind: str, *rest: str | int | None) -> None:
        slot = 0 if kind == "hold" else 2 if kind == "correct" else 1
        self._db.execute(_ENTRY, (hold_id, slot, kind, *rest))

    def _balance_id(self, scope: BudgetScope) -> int:
        key = (scope.kind, scope.id, scope.period)
        known = self._ids.get(key)
        if known is None:
            row = self._db.execute(_SELECT_BALANCE, key).fetchone()
            known = int(row[0]) if row else int(self._db.execute(_INSERT_BALANCE, key).lastrowid or 0)
            self._ids[key] = known
        return known

    def _refused(self, scopes: Sequence[BudgetScope], amount: int) -> HoldRefused:
        balances = tuple(read_balance(self._db, scope) for scope in scopes)
        for balance in balances:
            limit = balance.scope.limit_nanos
            if limit is not None and balance.posted_nanos + balance.held_nanos + amount > limit:
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
