"""What retention deletes, in pieces that are short waits for everybody else.

Each operation looks again, under the locks, at what it was told to delete: a run that has come back to life stays. A
run goes as a whole, with its calls, so that the sums that the audit compares never differ. Entries of the ledger stay
for ever; how many have lost their calls is counted in the same transaction (`prunings`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from nemo_agents.admin.wire import Pruned
from nemo_agents.gateway.stores.database import Database
from nemo_agents.gateway.stores.writer_books import Books

__all__ = [
    "MESSAGES_AT_ONCE",
    "OVER",
    "PIECE",
    "Piece",
    "delete_changes",
    "delete_events",
    "delete_messages",
    "drop_contents",
    "drop_runs",
    "drop_spans",
    "refer",
]

PIECE: Final = 50
"""How many calls and spans go in one transaction, unless a single run has more calls."""
MESSAGES_AT_ONCE: Final = 100

OVER: Final = (
    "r.started_us < :cut AND r.last_us < :cut AND r.open_calls = 0 AND r.state <> 'running'"
    " AND NOT EXISTS (SELECT 1 FROM attempts a WHERE a.run = r.run AND a.settled IS NULL)"
)
"""Which runs may go: nothing of them is open, and nothing has happened in them since `:cut`."""

_LISTED: Final = "(SELECT CAST(v.value AS BIGINT) FROM json_each(?) v)"
_STILL: Final = f"SELECT r.run FROM runs r WHERE r.run IN {_LISTED.replace('?', ':runs')} AND {OVER}"  # noqa: S608 - our own text
_PRUNING: Final = (
    "INSERT INTO prunings(pruning, at_us, cut_us, runs, calls, holds, cost_nanos) VALUES (?, ?, ?, ?, ?, ?, ?)"
    " ON CONFLICT (pruning) DO UPDATE SET runs = prunings.runs + excluded.runs,"
    " calls = prunings.calls + excluded.calls, holds = prunings.holds + excluded.holds,"
    " cost_nanos = prunings.cost_nanos + excluded.cost_nanos"
)
_DROP_SPANS: Final = (
    "DELETE FROM spans WHERE run = :run AND span_id IN (SELECT span_id FROM spans WHERE run = :run LIMIT :limit)"  # noqa: S608 - our own text
    f" AND EXISTS (SELECT 1 FROM runs r WHERE r.run = :run AND {OVER})"
)
# The condition stands twice: PostgreSQL looks again only at the outer one when somebody refers to a message meanwhile.
_DELETE_MESSAGES: Final = (
    "DELETE FROM messages WHERE day < :day"
    " AND hash IN (SELECT hash FROM messages WHERE day < :day ORDER BY day LIMIT :limit)"
)
_DELETE_CHANGES: Final = (
    "DELETE FROM changes WHERE at_us < :cut AND seq < (SELECT max(seq) FROM changes)"
    " AND (kind = 'run' OR seq NOT IN (SELECT max(seq) FROM changes GROUP BY kind, id))"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Runs of one fleet that are deleted in one transaction, by a pruning of this id."""

    pruning: str
    at_us: int
    cut_us: int
    runs: tuple[int, ...]


def drop_runs(books: Books, piece: Piece) -> Pruned:
    """Delete those of the runs that are still over, with everything that is in them."""
    runs, listed = _still_over(books, piece)
    if not runs:
        return Pruned()
    db = books.db
    (holds, cost) = db.execute(
        f"SELECT count(*), CAST(coalesce(sum(cost_nanos), 0) AS BIGINT) FROM attempts WHERE run IN {_LISTED}",  # noqa: S608 - our own text
        (listed,),
    ).fetchone()
    gone = {table: _delete(db, table, listed) for table in ("contents", "spans", "attempts", "calls", "steps", "runs")}
    db.execute(_PRUNING, (piece.pruning, piece.at_us, piece.cut_us, gone["runs"], gone["calls"], holds, cost))
    books.drop_runs(runs)
    return Pruned(runs=gone["runs"], calls=gone["calls"], contents=gone["contents"], spans=gone["spans"])


def drop_contents(books: Books, piece: Piece) -> Pruned:
    """Delete what was said in those of the runs that are still over, and nothing else of them."""
    runs, listed = _still_over(books, piece)
    if not runs:
        return Pruned()
    db = books.db
    gone = _delete(db, "contents", listed)
    db.execute(f"UPDATE calls SET answer = NULL WHERE answer IS NOT NULL AND run IN {_LISTED}", (listed,))  # noqa: S608 - our own text
    db.execute(
        "UPDATE spans SET input = NULL, output = NULL"  # noqa: S608 - our own text
        f" WHERE (input IS NOT NULL OR output IS NOT NULL) AND run IN {_LISTED}",
        (listed,),
    )
    return Pruned(contents=gone)


def drop_spans(books: Books, run: int, cut_us: int) -> int:
    """Delete a piece of the spans of a run that has many and is still over; return how many."""
    books.save()
    return books.db.execute(_DROP_SPANS, {"run": run, "cut": cut_us, "limit": 5 * PIECE}).rowcount


def delete_events(books: Books, seqs: Sequence[int]) -> int:
    """Delete events, the latest excepted: numbers go on from it. Those that a webhook has still to get stay."""
    listed = json.dumps(list(seqs))
    told = f"SELECT seq FROM events e WHERE e.seq IN {_LISTED} AND e.seq < (SELECT max(seq) FROM events)"  # noqa: S608 - our own text
    done = " AND NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.event_seq = e.seq AND d.due_us IS NOT NULL)"
    found = json.dumps([seq for (seq,) in books.db.execute(told + done, (listed,)).fetchall()])
    books.db.execute(f"DELETE FROM deliveries WHERE event_seq IN {_LISTED}", (found,))  # noqa: S608 - likewise
    return books.db.execute(f"DELETE FROM events WHERE seq IN {_LISTED}", (found,)).rowcount  # noqa: S608 - likewise


def delete_changes(books: Books, before_us: int) -> int:
    """Delete what every replica has heard; the latest change of each thing stays for those that come back late."""
    return books.db.execute(_DELETE_CHANGES, {"cut": before_us}).rowcount


def refer(books: Books, hashes: Iterable[bytes], day: int) -> None:
    """Note that messages are referred to on a day, by calls or spans that stay."""
    # In the order of all who write messages, so that no two transactions wait for each other.
    books.db.executemany(
        "UPDATE messages SET day = ? WHERE hash = ? AND day < ?", [(day, each, day) for each in sorted(hashes)]
    )


def delete_messages(books: Books, day: int) -> int:
    """Delete a piece of the messages that nothing has referred to since a day; return how many."""
    return books.db.execute(_DELETE_MESSAGES, {"day": day, "limit": MESSAGES_AT_ONCE}).rowcount


def _still_over(books: Books, piece: Piece) -> tuple[list[int], str]:
    books.save()  # what earlier operations of this transaction have said of these runs
    found = books.db.execute(_STILL, {"runs": json.dumps(piece.runs), "cut": piece.cut_us}).fetchall()
    runs = [run for (run,) in found]
    return runs, json.dumps(runs)


def _delete(db: Database, table: str, listed: str) -> int:
    return db.execute(f"DELETE FROM {table} WHERE run IN {_LISTED}", (listed,)).rowcount  # noqa: S608 - our own names
