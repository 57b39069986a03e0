"""A day's worth of calls in a gateway's SQLite file, made out of one real call: as right as it, as fast as SQL.

The copies are spread over the twenty hours that ended an hour ago, a hundred to a run. Ledger, log and sums add up
afterwards, which `GET /nemo/ledger/verify` confirms.
"""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

CALLS_PER_RUN = 100
SPAN_US = 20 * 3600 * 1_000_000
AGO_US = 3600 * 1_000_000
_SUMS = ("calls", "admitted", "last_seq", "input_tokens", "output_tokens", "cached_tokens", "cost_nanos")


def fill_the_day(database: Path, *, calls: int) -> None:
    """Copy the first call of a database that no gateway has open so many times (two ledger entries each)."""
    with closing(sqlite3.connect(database, isolation_level=None)) as db:
        db.row_factory = sqlite3.Row
        call = _one(db, "SELECT * FROM calls WHERE state = 'ok' ORDER BY started_us LIMIT 1")
        run = _one(db, "SELECT * FROM runs WHERE run = ?", call["run"])
        attempt = _one(db, "SELECT * FROM attempts WHERE run = ? AND seq = ?", call["run"], call["seq"])
        content = _one(db, "SELECT * FROM contents WHERE run = ? AND seq = ?", call["run"], call["seq"])
        hold, post = (
            _one(db, "SELECT * FROM entries WHERE hold_id = ? AND slot = ?", attempt["hold_id"], slot)
            for slot in (0, 1)
        )
        first_us = time.time_ns() // 1000 - AGO_US - SPAN_US
        last_run = db.execute("SELECT max(run) FROM runs").fetchone()[0]
        rows: dict[str, list[dict[str, Any]]] = {
            name: [] for name in ("runs", "calls", "attempts", "contents", "entries")
        }
        for number in range(calls):
            at_us = first_us + number * SPAN_US // calls
            back_us = at_us - call["started_us"]
            in_run, seq = last_run + 1 + number // CALLS_PER_RUN, 1 + number % CALLS_PER_RUN
            request, hold_id = f"req_day{number:08}", f"day{number:08}"
            place = {"run": in_run, "seq": seq}
            ended = {"ended_us": call["ended_us"] + back_us}
            rows["calls"].append({**call, **place, **ended, "request_id": request, "started_us": at_us, "step": None})
            times = {"started_us": at_us, "ended_us": attempt["ended_us"] + back_us}
            times["expires_us"] = attempt["expires_us"] + back_us
            rows["attempts"].append({**attempt, **place, **times, "hold_id": hold_id})
            rows["contents"].append({**content, **place})
            of_call = {"request_id": request, "hold_id": hold_id}
            rows["entries"] += [{**entry, **of_call, "at_us": entry["at_us"] + back_us} for entry in (hold, post)]
            if seq == 1:
                held = min(CALLS_PER_RUN, calls - number)
                sums = dict.fromkeys(_SUMS[:3], held) | {name: held * (call[name] or 0) for name in _SUMS[3:]}
                name = f"day-{in_run}"
                rows["runs"].append(
                    {**run, **sums, "run": in_run, "run_id": name, "started_us": at_us, "last_us": at_us}
                )
        db.execute("BEGIN")
        for table, many in rows.items():
            columns = ", ".join(many[0])
            places = ", ".join(f":{column}" for column in many[0])
            db.executemany(f"INSERT INTO {table} ({columns}) VALUES ({places})", many)  # noqa: S608 - our own names
        for balance in json.loads(hold["balances"]):
            db.execute(
                "UPDATE balances SET posted_nanos = posted_nanos + ? WHERE id = ?",
                (calls * post["amount_nanos"], balance),
            )
        db.execute("COMMIT")


def _one(db: sqlite3.Connection, sql: str, *values: object) -> dict[str, Any]:
    row = db.execute(sql, values).fetchone()
    if row is None:
        raise ValueError("the database has no call to copy: make one first")
    return dict(row)
