"""Reads of the spans of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from nemo_agents.admin.wire import SpanRow
from nemo_agents.gateway.stores.database import Database
from nemo_agents.gateway.stores.reader import marks
from nemo_agents.gateway.stores.writer_content import unpack
from nemo_agents.gateway.stores.writer_spans import SPAN_COLUMNS

__all__ = ["WITH_CONTENTS_MAX", "read_span_contents", "read_spans_of_run"]

WITH_CONTENTS_MAX: Final = 500
"""With more spans, a run is read without what they took and gave; `read_span_contents` has it."""
_CHUNK: Final = 500
_SELECT: Final = f"SELECT {', '.join(SPAN_COLUMNS)} FROM spans WHERE run = :run ORDER BY started_us, span_id"  # noqa: S608 - our own column names
_TEXTS: Final = SPAN_COLUMNS[1:-3]


def read_spans_of_run(db: Database, run: int) -> list[SpanRow]:
    """Return the spans of a run in the order of their starts."""
    rows = db.execute(_SELECT, {"run": run}).fetchall()
    texts = _texts(db, [key for row in rows for key in row[-2:] if key]) if len(rows) <= WITH_CONTENTS_MAX else {}
    return [_span(row, texts) for row in rows]


def read_span_contents(
    db: Database, *, fleet: str, run_id: str, span_ids: Sequence[str]
) -> dict[str, tuple[str | None, str | None]]:
    """Return what these spans took and gave, where it was kept."""
    rows: list[tuple[str, bytes | None, bytes | None]] = []
    for first in range(0, len(span_ids), _CHUNK):
        some = span_ids[first : first + _CHUNK]
        rows += db.execute(
            "SELECT s.span_id, s.input, s.output FROM spans s JOIN runs r ON r.run = s.run"  # noqa: S608 - only numbers of marks
            f" WHERE r.run_id = ? AND r.fleet = ? AND s.span_id IN ({marks(some)})",
            (run_id, fleet, *some),
        ).fetchall()
    texts = _texts(db, [key for row in rows for key in row[1:] if key])
    return {span_id: (_text(texts, taken), _text(texts, given)) for span_id, taken, given in rows}


def _span(row: tuple[Any, ...], texts: dict[bytes, str]) -> SpanRow:
    *values, attributes, taken, given = row[1:]
    return SpanRow(
        **dict(zip(_TEXTS, values, strict=True)),
        attributes=json.loads(attributes),
        input=_text(texts, taken),
        output=_text(texts, given),
    )


def _text(texts: dict[bytes, str], key: bytes | None) -> str | None:
    return None if key is None else texts.get(bytes(key))


def _texts(db: Database, keys: Sequence[bytes]) -> dict[bytes, str]:
    texts: dict[bytes, str] = {}
    wanted = list(dict.fromkeys(bytes(key) for key in keys))
    for first in range(0, len(wanted), _CHUNK):
        some = wanted[first : first + _CHUNK]
        for key, body in db.execute(f"SELECT hash, body FROM messages WHERE hash IN ({marks(some)})", some):  # noqa: S608 - only numbers of marks
            texts[bytes(key)] = json.loads(unpack(body))
    return texts
