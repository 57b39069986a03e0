"""What retention reads: which runs, events and messages may go, and how large the log is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from nemo_agents.admin.wire import Pruned
from nemo_agents.gateway.stores.database import Database
from nemo_agents.gateway.stores.writer_content import DAY_US, HASH_BYTES
from nemo_agents.gateway.stores.writer_prune import OVER

__all__ = [
    "Candidate",
    "read_candidates",
    "read_counts",
    "read_events_over",
    "read_hashes_of_calls",
    "read_hashes_of_spans",
    "read_pruned_before",
]

_PAGE: Final = 500
_SPEAKS: Final = (
    " AND (EXISTS (SELECT 1 FROM contents k WHERE k.run = r.run)"
    " OR EXISTS (SELECT 1 FROM calls c WHERE c.run = r.run AND c.answer IS NOT NULL)"
    " OR EXISTS (SELECT 1 FROM spans s WHERE s.run = r.run AND (s.input IS NOT NULL OR s.output IS NOT NULL)))"
)
_CANDIDATES: Final = (
    "SELECT r.started_us, r.run, r.fleet, r.calls, (SELECT count(*) FROM spans s WHERE s.run = r.run) FROM runs r"  # noqa: S608 - our own text
    f" WHERE (r.started_us, r.run) > (:started, :run) AND {OVER}{{more}} ORDER BY r.started_us, r.run LIMIT {_PAGE}"
)
_HASHES_OF_CALLS: Final = (
    "SELECT c.started_us, c.run, c.seq, c.answer, k.prompt, k.params FROM calls c"  # noqa: S608 - our own text
    " LEFT JOIN contents k ON k.run = c.run AND k.seq = c.seq"
    " WHERE c.started_us < :until AND (c.started_us, c.run, c.seq) > (:started, :run, :seq)"
    f" AND (c.answer IS NOT NULL OR k.run IS NOT NULL) ORDER BY c.started_us, c.run, c.seq LIMIT {_PAGE}"
)
_HASHES_OF_SPANS: Final = (
    "SELECT run, span_id, input, output FROM spans WHERE (run, span_id) > (:run, :span)"  # noqa: S608 - our own text
    f" AND (input IS NOT NULL OR output IS NOT NULL) ORDER BY run, span_id LIMIT {_PAGE}"
)
_COUNTS: Final = (
    "SELECT count(*), CAST(coalesce(sum(r.calls), 0) AS BIGINT),"  # noqa: S608 - our own text
    " CAST(coalesce(sum((SELECT count(*) FROM contents k WHERE k.run = r.run)), 0) AS BIGINT),"
    " CAST(coalesce(sum((SELECT count(*) FROM spans s WHERE s.run = r.run)), 0) AS BIGINT)"
    f" FROM runs r WHERE {OVER}{{more}}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A run that may go."""

    started_us: int
    run: int
    fleet: str
    calls: int
    spans: int


def read_candidates(db: Database, cut_us: int, *, speaking: bool, after: Candidate | None) -> list[Candidate]:
    """Return a page of runs that may go, the oldest first; `speaking`: of those whose contents are still there."""
    started, run = (after.started_us, after.run) if after is not None else (-(1 << 62), 0)
    sql = _CANDIDATES.format(more=_SPEAKS if speaking else "")
    rows = db.execute(sql, {"cut": cut_us, "started": started, "run": run})
    return [Candidate(started_us=s, run=n, fleet=fleet, calls=c, spans=p) for s, n, fleet, c, p in rows]


def read_counts(db: Database, cut_us: int, *, contents_only: bool) -> Pruned:
    """Return what there is to delete. Messages are not counted: others may refer to them."""
    sql = _COUNTS.format(more=_SPEAKS if contents_only else "")
    runs, calls, contents, spans = db.execute(sql, {"cut": cut_us}).fetchone()
    if contents_only:
        return Pruned(contents=contents)
    return Pruned(runs=runs, calls=calls, contents=contents, spans=spans, events=len(read_events_over(db, cut_us)))


def read_events_over(db: Database, cut_us: int) -> list[int]:
    """Return the numbers of events that may go.

    An event of a budget stays as long as its period goes on: it keeps the same from being told twice.
    """
    rows = db.execute(
        "SELECT e.seq, e.kind, e.facts FROM events e WHERE e.at_us < :cut AND e.seq < (SELECT max(seq) FROM events)"
        " AND NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.event_seq = e.seq AND d.due_us IS NOT NULL)"
        " ORDER BY e.seq",
        {"cut": cut_us},
    )
    return [seq for seq, kind, facts in rows if not _goes_on(kind, facts, cut_us)]


def read_hashes_of_calls(
    db: Database, day: int, *, after: tuple[int, int, int]
) -> tuple[set[bytes], tuple[int, int, int] | None]:
    """Return the messages of a page of the calls that began by the end of a day, and where the next page begins."""
    place = dict(zip(("started", "run", "seq"), after, strict=True))
    rows = db.execute(_HASHES_OF_CALLS, {"until": (day + 1) * DAY_US, **place}).fetchall()
    hashes = {each for _, _, _, answer, prompt, params in rows for each in _hashes(answer, prompt, params)}
    return hashes, tuple(rows[-1][:3]) if len(rows) == _PAGE else None


def read_hashes_of_spans(db: Database, *, after: tuple[int, str]) -> tuple[set[bytes], tuple[int, str] | None]:
    """Return the messages of a page of all spans, and where the next page begins.

    All, since nothing says when a span was written: its times are those of whoever sent it.
    """
    rows = db.execute(_HASHES_OF_SPANS, {"run": after[0], "span": after[1]}).fetchall()
    hashes = {each for _, _, taken, given in rows for each in _hashes(taken, given)}
    return hashes, tuple(rows[-1][:2]) if len(rows) == _PAGE else None


def read_pruned_before(db: Database) -> int | None:
    """Return before which time runs were deleted, in microseconds since the epoch; None when none were."""
    (cut_us,) = db.execute("SELECT max(cut_us) FROM prunings").fetchone()
    return None if cut_us is None else int(cut_us)


def _hashes(*texts: Any) -> Iterator[bytes]:
    for text in texts:
        if text is not None:
            joined = bytes(text)
            yield from (joined[start : start + HASH_BYTES] for start in range(0, len(joined), HASH_BYTES))


def _goes_on(kind: str, facts: str, cut_us: int) -> bool:
    if kind not in ("budget.alert", "budget.exhausted"):
        return False
    resets_at_us = msgspec.json.decode(facts).get("resets_at_us")
    return not isinstance(resets_at_us, int) or resets_at_us >= cut_us
