"""What a gateway knows of a shared database within one transaction.

**The fleet is the shard.** Everything that one operation on calls touches (the balances of run, role and fleet, the
run with its steps, the calls and their attempts) belongs to one fleet; keys without a fleet share one shard of no
name. A transaction first takes the advisory lock of each shard and topic of its batch, all of them in one order, so
that no two transactions wait for each other; then it is alone with them until it ends. What an operation needs is
read right after the locks, in the same round trip. Nothing of it is remembered when the transaction ends: another
gateway may write next.

**The guard.** Under the lock, and with a lock on their rows, balances are known exactly, so that each hold of a batch
is decided from memory, in order. What they come to is written once per balance, and only if the row still says what
was read (`… WHERE id=? AND posted_nanos=? AND held_nanos=?`); else the whole transaction is taken back and done again.
So no limit is passed even where the shards are wrong, as when a key has just moved to another fleet. A balance that
is new is inserted last of all, and written right behind that; until then only memory knows of it.

**A COMMIT without an answer.** The connection may be lost after the COMMIT was sent, and nobody knows whether it was
done. Then:

- Whoever waits for a hold hears that the store is unavailable, and sends nothing. That hold is taken back by an
  operation of its own (`writer_calls.take_back`), which voids it if it is there.
- Records that nobody waits for are written again. That is safe since each says what it means by keys: a hold resolves
  once (`attempts.settled IS NULL`, and the primary key (hold_id, slot) of the entries), a request has one row
  (`calls.request_id` is unique) that is looked up first.
- Both start by taking the lock of the shard, which the lost transaction holds until the server has ended it: when they
  get it, it is decided whether it was committed, and they see the result. The server ends a transaction whose client
  is gone at once, or after `IDLE_S` when it cannot tell.
- Should the process die before it has taken a hold back, the hold expires like any other that nobody resolves, and is
  charged: more than the truth, never less.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from typing import Any, Final, Literal

import msgspec

from nemo_agents.gateway.stores.database import Touches
from nemo_agents.gateway.stores.hold import Hold, KeptBalance, LedgerWriter
from nemo_agents.gateway.stores.postgres_connection import PostgresDatabase
from nemo_agents.gateway.stores.writer_books import CALL_COLUMNS, Books, CallRecord
from nemo_agents.gateway.stores.writer_content import wall_clock_us
from nemo_agents.gateway.stores.writer_runs import RUN_COLUMNS, STEP_COLUMNS, RunRecord
from nemo_agents.policy.ledger import Balance, BudgetScope, HoldRefused

__all__ = ["PostgresBooks", "lock_number"]

_NUMBERS: Final = 256  # taken from a sequence at a time

# What these ask for is found by the keys of the tables, and each is written so that no other index fits: a plan that is
# made while tables are new and without statistics is kept for a while, and would read a whole fleet, or all open holds.
_LOCK: Final = "SELECT pg_advisory_xact_lock(n) FROM unnest(%s::bigint[]) n"
_CALLS: Final = (
    f"SELECT {', '.join('c.' + name for name in CALL_COLUMNS)}, s.step, a.settled, a.hold_id, a.held_nanos,"  # noqa: S608 - our own column names
    " a.balances, a.price_version FROM calls c LEFT JOIN steps s ON s.run = c.run AND s.seq = c.step"
    " LEFT JOIN attempts a ON a.run = c.run AND a.seq = c.seq AND a.n = c.attempts WHERE c.request_id = ANY(%s)"
)
_OF_CALLS: Final = "SELECT run FROM calls WHERE request_id = ANY(%s)"
_BY_NAME: Final = "(run_id, fleet || '') IN (SELECT * FROM unnest(%s::text[], %s::text[]))"
_RUNS: Final = (
    f"SELECT {', '.join(RUN_COLUMNS)} FROM runs WHERE run IN ({_OF_CALLS})"  # noqa: S608 - likewise
    f" UNION SELECT {', '.join(RUN_COLUMNS)} FROM runs WHERE {_BY_NAME}"
)
_STEPS: Final = (
    f"SELECT {', '.join(STEP_COLUMNS)} FROM steps WHERE run IN ({_OF_CALLS}"  # noqa: S608 - likewise
    f" UNION SELECT run FROM runs WHERE {_BY_NAME}) ORDER BY run, seq"
)
_BALANCES: Final = (
    "SELECT kind, scope_id, period, id, posted_nanos, held_nanos FROM balances"
    " WHERE (kind, scope_id, period) IN (SELECT * FROM unnest(%s::text[], %s::text[], %s::text[]))"
    " ORDER BY id FOR UPDATE"
)
_FLEETS: Final = "SELECT c.request_id, r.fleet FROM calls c JOIN runs r ON r.run = c.run WHERE c.request_id = ANY(%s)"
_SAVE: Final = "UPDATE balances SET posted_nanos=?, held_nanos=? WHERE id=? AND posted_nanos=? AND held_nanos=?"
_ADD: Final = "UPDATE balances SET posted_nanos=posted_nanos+?, held_nanos=held_nanos+? WHERE id=?"
_NEXT: Final = "SELECT nextval(pg_get_serial_sequence(%s, %s)) FROM generate_series(1, %s)"
_NEW_BALANCE: Final = "INSERT INTO balances(id, kind, scope_id, period) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING"


def lock_number(name: str) -> int:
    """Return the number of an advisory lock; two names with one number would wait for each other, and no worse."""
    return int.from_bytes(
        blake2b(name.encode("utf-8", "replace"), digest_size=8, person=b"nemo-agents").digest(), signed=True
    )


class _Numbers:
    """Numbers of a sequence, taken in blocks; those of a transaction that was taken back are not used again."""

    def __init__(self, db: PostgresDatabase, table: str, column: str) -> None:
        self._db = db
        self._column = [table, column, _NUMBERS]
        self._left: deque[int] = deque()

    def take(self) -> int:
        if not self._left:
            self._left.extend(number for (number,) in self._db.connection.execute(_NEXT, self._column))
        return self._left.popleft()


class PostgresLedger(LedgerWriter):
    """Balances as a transaction has them, written when it ends."""

    def __init__(self, db: PostgresDatabase) -> None:
        super().__init__(db)
        self._numbers = _Numbers(db, "balances", "id")
        self._as_read: dict[int, tuple[int, int]] = {}
        self._changed: set[int] = set()
        self._moves: dict[int, list[int]] = {}  # of balances that were not read
        self._new: set[int] = set()  # whose rows are inserted at the end of the transaction
        self.moved = False  # there is something to be said of money in this transaction
        db.before_sending = self.save

    def forget(self) -> None:
        """Drop what is known of balances."""
        super().forget()
        self._as_read.clear()
        self._changed.clear()
        self._moves.clear()
        self._new.clear()
        self.moved = False

    def remember(self, key: tuple[str, str, str], kept: KeptBalance) -> None:
        """Note a balance as it was read."""
        self._keep(key, kept)

    def missing(self, key: tuple[str, str, str]) -> None:
        """Note that there is no such balance yet."""
        if key not in self._kept:
            self._keep(key, self._new_balance(key))

    def save(self, last: bool) -> None:  # noqa: FBT001 - as `before_sending` calls it
        """Write what balances have come to; those that are not inserted before the `last` time, then."""
        later = set() if last else self._changed & self._new
        changed, self._changed = sorted(self._changed - later), later
        for balance_id in changed:
            kept, before = self._kept_by_id[balance_id], self._as_read[balance_id]
            self._as_read[balance_id] = after = (kept.posted_nanos, kept.held_nanos)
            if after != before:
                self._db.touch(_SAVE, (*after, balance_id, *before), 1)
        moves, self._moves = self._moves, {}
        for balance_id in sorted(moves):
            self._db.touch(_ADD, (*moves[balance_id], balance_id), 1)

    def _take(self, kept: list[KeptBalance], scopes: tuple[BudgetScope, ...], amount: int) -> bool:
        for each, scope in zip(kept, scopes, strict=True):
            guard = scope.guard_nanos
            if guard is not None and each.posted_nanos + each.held_nanos + amount > guard:
                return False
        self._changed.update(each.id for each in kept)
        return True

    def _refused(self, scopes: Sequence[BudgetScope], amount: int) -> HoldRefused:
        balances = []
        for scope in scopes:
            kept = self._balance(scope)
            balances.append(Balance(scope=scope, posted_nanos=kept.posted_nanos, held_nanos=kept.held_nanos))
        first = next(balance for balance in balances if not balance.takes(amount))
        return HoldRefused(balance=first, needed_nanos=amount, balances=tuple(balances))

    def _move(self, hold: Hold, held: int, posted: int) -> None:
        for balance_id in hold.balance_ids:
            kept = self._kept_by_id.get(balance_id)
            if kept is None:
                moves = self._moves.setdefault(balance_id, [0, 0])
                moves[0] += posted
                moves[1] -= held
            else:
                kept.posted_nanos += posted
                kept.held_nanos -= held
                self._changed.add(balance_id)

    def _entry(self, hold_id: str, kind: str, *rest: str | int | None) -> None:
        super()._entry(hold_id, kind, *rest)
        self.moved = True

    def _keep(self, key: tuple[str, str, str], kept: KeptBalance) -> None:
        super()._keep(key, kept)
        self._as_read[kept.id] = kept.posted_nanos, kept.held_nanos

    def _new_balance(self, key: tuple[str, str, str]) -> KeptBalance:
        number = self._numbers.take()
        self._db.later(_NEW_BALANCE, (number, *key))
        self._new.add(number)
        return KeptBalance(number, 0, 0)


class PostgresBooks(Books):
    """The write connection of one of several gateways."""

    def __init__(self, db: PostgresDatabase, *, clock: Callable[[], int] = wall_clock_us) -> None:
        self._pg = db
        self._ledger = PostgresLedger(db)
        super().__init__(db, self._ledger, clock=clock)
        self._run_numbers = _Numbers(db, "runs", "run")
        self._no_runs: set[tuple[str, str]] = set()
        self._no_calls: set[str] = set()
        self._lasting = True

    # --- transaction ----------------------------------------------------------------------------------------
    def begin(self, touches: Sequence[Touches]) -> None:
        """Take the locks, and read what is needed under them."""
        self._pg.forget()
        self.forget_rows()
        self._lasting = any(t.lasting for t in touches)
        shards = self._shards(touches)
        locks = sorted({lock_number(name) for name in shards})
        requests = list({t.request_id for t in touches if t.request_id is not None})
        runs = list({(t.run_id, t.fleet or "") for t in touches if t.run_id is not None})
        keys = list({(scope.kind, scope.id, scope.period) for t in touches for scope in t.scopes})
        ids, fleets = [run_id for run_id, _ in runs], [fleet for _, fleet in runs]
        asked: dict[str, Sequence[Any]] = {"BEGIN": ()}
        if locks:
            asked[_LOCK] = [locks]
        if requests:
            asked[_CALLS] = [requests]
        if requests or runs:
            asked[_RUNS] = asked[_STEPS] = [requests, ids, fleets]
        if keys:
            asked[_BALANCES] = [list(part) for part in zip(*keys, strict=True)]
        answers = self._pg.pipeline.run(list(asked.items()))
        found = {text: answer.rows for text, answer in zip(asked, answers, strict=True)}
        for row in found.get(_RUNS, ()):
            self.take_run(row)
        for row in found.get(_STEPS, ()):
            self.take_step(row)
        self._no_runs = {(fleet, run_id) for run_id, fleet in runs} - self._run_ids.keys()
        self._take_calls(found.get(_CALLS, ()))
        self._no_calls = set(requests) - self._calls.keys()
        for kind, scope_id, period, *values in found.get(_BALANCES, ()):
            self._ledger.remember((kind, scope_id, period), KeptBalance(*values))
        for key in keys:
            self._ledger.missing(key)

    def commit(self) -> None:
        """Save what changed in memory, and commit.

        Where all of it is records of refused calls, the disk is not waited for.
        """
        self.save()
        self._pg.commit(lasting=self._lasting or self._ledger.moved)
        self.committed()

    def rollback(self) -> None:
        """Take the transaction back, and forget what it may have changed in memory."""
        self._pg.forget()
        super().rollback()

    def prove_writable(self) -> None:
        """Take a transaction number, which only a server that can write gives."""
        self.db.execute("SELECT pg_current_xact_id()")

    # --- rows -----------------------------------------------------------------------------------------------
    def find_run(self, fleet: str, run_id: str) -> RunRecord | None:
        """Return a run by its public id."""
        known = self._run_ids.get((fleet, run_id))
        if known is None and (fleet, run_id) in self._no_runs:
            return None
        return super().find_run(fleet, run_id)

    def new_number(self) -> int:
        """Return a number that no run has, in any of the gateways."""
        return self._run_numbers.take()

    def find_call(self, request_id: str) -> CallRecord | None:
        """Return a call by its request id."""
        if request_id in self._no_calls and request_id not in self._calls:
            self._no_calls.discard(request_id)  # it may come to be within this transaction
            return None
        return super().find_call(request_id)

    def changed(self, kind: Literal["grant", "fleet", "deployment", "document", "run"], name: str) -> None:
        """Tell the other gateways of a change. The lock of the topic sees to it that numbers rise as they commit."""
        self.db.execute(
            "INSERT INTO changes(seq, kind, id, at_us) SELECT coalesce(max(seq), 0) + 1, ?, ?,"
            " CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint) FROM changes",
            (kind, name),
        )

    def _shards(self, touches: Sequence[Touches]) -> set[str]:
        names = {topic for t in touches for topic in t.topics}
        names.update(f"/{t.fleet}" for t in touches if t.fleet is not None)
        lost = [t.request_id for t in touches if t.fleet is None and t.request_id is not None]
        if lost:  # of a call that another process has opened, or that has ended here
            names.update(f"/{fleet}" for _, fleet in self._pg.connection.execute(_FLEETS, [lost]))
        return names

    def _take_calls(self, rows: Iterable[tuple[Any, ...]]) -> None:
        for row in rows:
            *values, step, settled, hold_id, held_nanos, listed, price_version = row
            call = CallRecord(**dict(zip(CALL_COLUMNS, values, strict=True)), step=step)
            if hold_id is not None and settled is None:
                call.hold = Hold(
                    hold_id=hold_id,
                    held_nanos=held_nanos,
                    listed=listed,
                    balance_ids=tuple(msgspec.json.decode(listed, type=list[int])),
                    price_version=price_version,
                )
            self._calls[call.request_id] = call
