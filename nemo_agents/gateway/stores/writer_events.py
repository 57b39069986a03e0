"""Events with their deliveries to webhooks, and documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from nemo_agents.admin.wire import EventRow
from nemo_agents.gateway.stores.base import Delivery
from nemo_agents.gateway.stores.database import Database
from nemo_agents.gateway.stores.writer_books import Books

__all__ = ["claim_deliveries", "end_delivery", "put_document", "put_event", "read_document", "read_events"]

_COLUMNS: Final = ("seq", "event_id", "kind", "at_us", "fleet", "role", "message", "facts")
_SELECT: Final = f"SELECT {', '.join('e.' + name for name in _COLUMNS)} FROM events e"  # noqa: S608 - our own column names
_INSERT: Final = (
    "INSERT INTO events(seq, event_id, kind, at_us, fleet, role, message, facts, once)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (once) DO NOTHING"
)
_DELIVER: Final = "INSERT INTO deliveries(event_seq, webhook, due_us) VALUES (?, ?, ?)"
_DUE: Final = (
    "SELECT event_seq, webhook, attempts FROM deliveries WHERE due_us IS NOT NULL AND due_us <= ?"
    " ORDER BY due_us, event_seq, webhook LIMIT ?"
)


def put_event(books: Books, event: EventRow, *, once: str, webhooks: Sequence[str]) -> int | None:
    """Store an event with its deliveries and return its number; None when it was stored before."""
    (last,) = books.db.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()
    seq = int(last) + 1
    facts = msgspec.json.encode(event.facts).decode()
    values = (seq, event.event_id, event.kind, event.at_us, event.fleet, event.role, event.message, facts, once)
    if not books.db.execute(_INSERT, values).rowcount:
        return None
    books.db.executemany(_DELIVER, [(seq, webhook, event.at_us) for webhook in dict.fromkeys(webhooks)])
    return seq


def claim_deliveries(books: Books, now_us: int, *, lease_us: int, limit: int) -> list[Delivery]:
    """Return deliveries that are due, and make them due again only when the lease ends.

    The try counts from here on, so that one that takes its process down is not made for ever.
    """
    due = books.db.execute(_DUE, (now_us, limit)).fetchall()
    found = []
    for seq, webhook, attempts in due:
        books.db.execute(
            "UPDATE deliveries SET due_us=?, attempts=attempts+1 WHERE event_seq=? AND webhook=?",
            (now_us + lease_us, seq, webhook),
        )
        event = _event(books.db.execute(f"{_SELECT} WHERE e.seq=?", (seq,)).fetchone())
        found.append(Delivery(event=event, webhook=webhook, attempts=attempts))
    return found


def end_delivery(books: Books, seq: int, webhook: str, *, retry_us: int | None, error: str | None, now_us: int) -> None:
    """Note how a delivery went."""
    done_us = now_us if retry_us is None and error is None else None
    books.db.execute(
        "UPDATE deliveries SET due_us=?, done_us=?, error=? WHERE event_seq=? AND webhook=? AND done_us IS NULL",
        (retry_us, done_us, error, seq, webhook),
    )


def read_events(db: Database, *, after: int, limit: int, fleet: str | None) -> list[EventRow]:
    """Return events after a number in the order of storing; `after` -1 asks for the latest ones."""
    within = "" if fleet is None else " AND e.fleet = :fleet"
    order = "DESC" if after == -1 else "ASC"
    rows = db.execute(
        f"{_SELECT} WHERE e.seq > :after{within} ORDER BY e.seq {order} LIMIT :limit",
        {"after": after, "limit": limit, "fleet": fleet},
    ).fetchall()
    return [_event(row) for row in (reversed(rows) if after == -1 else rows)]


def put_document(books: Books, name: str, body: bytes, *, now_us: int) -> None:
    """Insert or replace a document."""
    books.db.execute(
        "INSERT INTO documents(name, body, updated_us) VALUES (?, ?, ?)"
        " ON CONFLICT (name) DO UPDATE SET body = excluded.body, updated_us = excluded.updated_us",
        (name, body, now_us),
    )
    books.changed("document", name)


def read_document(db: Database, name: str) -> bytes | None:
    """Return a document by name."""
    row = db.execute("SELECT body FROM documents WHERE name = ?", (name,)).fetchone()
    return None if row is None else bytes(row[0])


def _event(row: tuple[Any, ...]) -> EventRow:
    values = dict(zip(_COLUMNS, row, strict=True))
    values["facts"] = msgspec.json.decode(values["facts"])
    return EventRow(**values)
