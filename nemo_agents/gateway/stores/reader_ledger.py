"""Reads of the ledger, and the audit that recomputes everything that is kept twice."""

from __future__ import annotations

from collections.abc import Iterator

from nemo_agents.gateway.stores.base import HourSpend
from nemo_agents.gateway.stores.database import Database
from nemo_agents.money import format_nanos

__all__ = ["audit", "read_open_holds", "read_spend_by_hour"]

_HOUR_US = 3600 * 1_000_000

_GRACE_US = 10_000_000
"""How long a hold may be past its time and still be as it should: gateways sweep every few seconds."""
_SHOWN_MAX = 100  # sentences per kind of difference

_BALANCES = """
WITH moved(id, posted, held) AS (
    SELECT CAST(b.value AS BIGINT), CASE WHEN e.kind IN ('post', 'expire', 'correct') THEN e.amount_nanos ELSE 0 END,
           CASE WHEN e.kind = 'hold' THEN e.amount_nanos WHEN e.slot = 1 THEN -h.amount_nanos ELSE 0 END
    FROM entries e JOIN entries h ON h.hold_id = e.hold_id AND h.slot = 0, json_each(h.balances) b
), sums(id, posted, held) AS (SELECT id, CAST(sum(posted) AS BIGINT), CAST(sum(held) AS BIGINT) FROM moved GROUP BY id)
SELECT b.kind, b.scope_id, b.period, b.posted_nanos, coalesce(s.posted, 0), b.held_nanos, coalesce(s.held, 0)
FROM balances b LEFT JOIN sums s ON s.id = b.id
WHERE b.posted_nanos <> coalesce(s.posted, 0) OR b.held_nanos <> coalesce(s.held, 0) LIMIT ?
"""
_HOMELESS = """
SELECT e.kind, e.hold_id FROM entries e LEFT JOIN entries h ON h.hold_id = e.hold_id AND h.slot = 0
WHERE h.hold_id IS NULL OR h.balances <> e.balances OR h.request_id <> e.request_id LIMIT ?
"""
_CORRECTIONS = """
SELECT e.hold_id FROM entries e LEFT JOIN entries x ON x.hold_id = e.hold_id AND x.kind = 'expire'
WHERE e.kind = 'correct' AND x.hold_id IS NULL LIMIT ?
"""
_OVERDUE = """
SELECT c.request_id, a.hold_id, a.held_nanos FROM attempts a JOIN calls c ON c.run = a.run AND c.seq = a.seq
WHERE a.settled IS NULL AND a.expires_us <= :due LIMIT :max
"""
_ATTEMPTS = """
WITH e(hold_id, request_id, attempt, held, resolved, corrected, cost) AS (
    SELECT hold_id, min(request_id), min(attempt), sum(CASE slot WHEN 0 THEN amount_nanos ELSE 0 END),
           max(CASE slot WHEN 1 THEN kind END), max(slot) = 2, sum(CASE slot WHEN 0 THEN 0 ELSE amount_nanos END)
    FROM entries GROUP BY hold_id
)
SELECT e.hold_id FROM e JOIN calls c ON c.request_id = e.request_id
LEFT JOIN attempts a ON a.run = c.run AND a.seq = c.seq AND a.n = e.attempt
WHERE a.hold_id IS NULL OR a.hold_id <> e.hold_id OR a.held_nanos <> e.held OR coalesce(a.cost_nanos, 0) <> e.cost
   OR coalesce(a.settled, '') <> coalesce(CASE WHEN e.corrected THEN 'correct' ELSE e.resolved END, '') LIMIT ?
"""
_BARE = """
SELECT a.hold_id FROM attempts a LEFT JOIN entries e ON e.hold_id = a.hold_id AND e.slot = 0
WHERE e.hold_id IS NULL LIMIT ?
"""
_COSTS = """
WITH e(request_id, cost) AS (
    SELECT request_id, CAST(sum(CASE slot WHEN 0 THEN 0 ELSE amount_nanos END) AS BIGINT) FROM entries
    GROUP BY request_id
)
SELECT c.request_id, coalesce(c.cost_nanos, 0), coalesce(e.cost, 0)
FROM calls c LEFT JOIN e ON e.request_id = c.request_id WHERE coalesce(c.cost_nanos, 0) <> coalesce(e.cost, 0) LIMIT ?
"""
_ORPHANS = """
SELECT e.hold_id, e.request_id FROM entries e LEFT JOIN calls c ON c.request_id = e.request_id
WHERE e.slot = 0 AND c.run IS NULL AND e.at_us >= (SELECT coalesce(max(cut_us), 0) FROM prunings) LIMIT ?
"""
# Entries outlive the calls that retention deletes; how many have, and what those cost, was counted when they were.
_OUTLIVED = """
SELECT count(CASE e.slot WHEN 0 THEN 1 END),
       CAST(coalesce(sum(CASE e.slot WHEN 0 THEN 0 ELSE e.amount_nanos END), 0) AS BIGINT),
       (SELECT CAST(coalesce(sum(holds), 0) AS BIGINT) FROM prunings),
       (SELECT CAST(coalesce(sum(cost_nanos), 0) AS BIGINT) FROM prunings)
FROM entries e JOIN entries h ON h.hold_id = e.hold_id AND h.slot = 0
LEFT JOIN calls c ON c.request_id = e.request_id
WHERE c.run IS NULL AND h.at_us < (SELECT coalesce(max(cut_us), 0) FROM prunings)
"""
_OF_CALLS = """
    SELECT run, {key} count(*), count(*) FILTER (WHERE state = 'open'),
           count(*) FILTER (WHERE state NOT IN ('open', 'ok')), sum(coalesce(input_tokens, 0)),
           sum(coalesce(output_tokens, 0)), sum(coalesce(cached_tokens, 0)), sum(coalesce(cost_nanos, 0)),
           count(*) FILTER (WHERE attempts > 0 OR state = 'ok'), max(seq)
    FROM calls {where}
"""
_NAMES = ("calls", "open_calls", "errors", "input_tokens", "output_tokens", "cached_tokens", "cost_nanos")
_RUNS = (
    f"WITH c(run, {', '.join(_NAMES)}, admitted, last_seq) AS ({_OF_CALLS.format(key='', where='GROUP BY run')})"  # noqa: S608 - our own names
    f" SELECT r.run_id, {', '.join(f'r.{n}, coalesce(c.{n}, 0)' for n in (*_NAMES, 'admitted', 'last_seq'))}"
    " FROM runs r LEFT JOIN c ON c.run = r.run WHERE "
    + " OR ".join(f"r.{n} <> coalesce(c.{n}, 0)" for n in (*_NAMES, "admitted", "last_seq"))
    + " LIMIT ?"
)
_STEPS = (
    f"WITH c(run, step, {', '.join(_NAMES)}, admitted, last_seq) AS ("  # noqa: S608 - our own names
    f"{_OF_CALLS.format(key='step,', where='WHERE step IS NOT NULL GROUP BY run, step')})"
    f" SELECT r.run_id || ' step ' || s.step, {', '.join(f's.{n}, coalesce(c.{n}, 0)' for n in _NAMES)}"
    " FROM steps s JOIN runs r ON r.run = s.run LEFT JOIN c ON c.run = s.run AND c.step = s.seq WHERE "
    + " OR ".join(f"s.{n} <> coalesce(c.{n}, 0)" for n in _NAMES)
    + " LIMIT ?"
)


def audit(db: Database, now_us: int) -> list[str]:
    """Recompute balances, costs and sums from their parts; return one sentence per difference.

    At most a hundred sentences of each kind: where that many differ, the first tell the story.
    """
    return [*_audit_entries(db), *_audit_attempts(db, now_us), *_audit_sums(db)]


def read_open_holds(db: Database) -> tuple[int, int]:
    """Return how many holds are open, and the nanos that they hold."""
    ((count, nanos),) = db.execute(
        "SELECT count(*), CAST(coalesce(sum(held_nanos), 0) AS BIGINT) FROM attempts WHERE settled IS NULL"
    )
    return count, nanos


def read_spend_by_hour(db: Database, since_us: int, until_us: int) -> list[HourSpend]:
    """Return what each grant spent in each hour of a range, by the start of its calls."""
    rows = db.execute(
        "SELECT grant_id, started_us / :hour * :hour, CAST(sum(cost_nanos) AS BIGINT) FROM calls"
        " WHERE started_us >= :since AND started_us < :until AND grant_id IS NOT NULL AND cost_nanos > 0"
        " GROUP BY 1, 2 ORDER BY 2, 1",
        {"hour": _HOUR_US, "since": since_us, "until": until_us},
    )
    return [HourSpend(grant_id=grant_id, hour_us=hour_us, cost_nanos=cost) for grant_id, hour_us, cost in rows]


def _audit_entries(db: Database) -> Iterator[str]:
    shown = (_SHOWN_MAX,)
    for kind, scope_id, period, posted, posted_sum, held, held_sum in db.execute(_BALANCES, shown):
        of = f"The balance of {kind} {scope_id} in {period}"
        if posted != posted_sum:
            yield f"{of} says {format_nanos(posted)} posted, its entries add up to {format_nanos(posted_sum)}."
        if held != held_sum:
            yield f"{of} says {format_nanos(held)} held, its entries add up to {format_nanos(held_sum)}."
    for kind, hold_id in db.execute(_HOMELESS, shown):
        yield f"The {kind} entry of hold {hold_id} does not match a hold entry."
    for (hold_id,) in db.execute(_CORRECTIONS, shown):
        yield f"Hold {hold_id} was corrected without having expired."
    for hold_id, request_id in db.execute(_ORPHANS, shown):
        yield f"Hold {hold_id} belongs to request {request_id}, which is not in the request log."
    ((holds, cost, pruned, pruned_cost),) = db.execute(_OUTLIVED)
    if (holds, cost) != (pruned, pruned_cost):
        yield (
            f"{holds} holds ({format_nanos(cost)}) have outlived their calls; those of {pruned} "
            f"({format_nanos(pruned_cost)}) were pruned."
        )


def _audit_attempts(db: Database, now_us: int) -> Iterator[str]:
    for request_id, hold_id, held in db.execute(_OVERDUE, {"due": now_us - _GRACE_US, "max": _SHOWN_MAX}):
        yield f"Hold {hold_id} of request {request_id} ({format_nanos(held)}) is open past its time."
    for (hold_id,) in db.execute(_ATTEMPTS, (_SHOWN_MAX,)):
        yield f"The attempt of hold {hold_id} does not say what its entries say."
    for (hold_id,) in db.execute(_BARE, (_SHOWN_MAX,)):
        yield f"The attempt of hold {hold_id} has no hold entry."


def _audit_sums(db: Database) -> Iterator[str]:
    for request_id, cost, entries in db.execute(_COSTS, (_SHOWN_MAX,)):
        yield f"Request {request_id} says {format_nanos(cost)}, its entries add up to {format_nanos(entries)}."
    for sql, names in ((_RUNS, (*_NAMES, "admitted", "last_seq")), (_STEPS, _NAMES)):
        for label, *numbers in db.execute(sql, (_SHOWN_MAX,)):
            for name, kept, counted in zip(names, numbers[::2], numbers[1::2], strict=True):
                if kept != counted:
                    yield f"Run {label} says {name} {kept}, its calls add up to {counted}."
