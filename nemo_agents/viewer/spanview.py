"""Spans as the page of a run shows them. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from nemo_agents.admin.wire import RunDetail, RunRow, SpanRow
from nemo_agents.viewer.spantree import span_end
from nemo_agents.viewer.text import pretty_json
from nemo_agents.viewer.timeline import Axis, Span, span

__all__ = ["MOST_NESTED", "SpanText", "SpanView", "span_texts", "span_view", "spans_wanted"]

MOST_NESTED: Final = 6  # spans within one another that are moved to the right
MOST_TEXTS: Final = 60  # spans of a page that are shown with what they took and gave, where that is read for each
MOST_CHARS: Final = 8_000  # of one text, unless its span is the selected one
PAGE_CHARS: Final = 600_000  # of all of them on a page

Texts = Mapping[str, tuple[str | None, str | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanText:
    """What a span took or gave. `left_out` is how many characters are not shown."""

    body: str
    left_out: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanView:
    """A span on the page. `elsewhere` says that its texts are not on it."""

    row: SpanRow
    depth: int
    bars: tuple[Span, ...]
    problem: bool
    selected: bool
    is_open: bool
    duration_us: int
    input: SpanText | None
    output: SpanText | None
    elsewhere: bool
    facts: tuple[tuple[str, str], ...]

    @property
    def is_span(self) -> bool:
        """It is one, and no call."""
        return True


def spans_wanted(detail: RunDetail, shown: Sequence[SpanRow], selected: str | None) -> list[str]:
    """Return the spans on a page whose texts are to be read for it, as the run came without them."""
    if not shown or any(span.input is not None or span.output is not None for span in detail.spans):
        return []
    in_turn = sorted(shown, key=lambda span: (span.span_id != selected, span.state != "failed"))
    return [span.span_id for span in in_turn[:MOST_TEXTS]]


def span_texts(spans: Sequence[SpanRow], read: Texts, selected: str | None) -> dict[str, tuple[str, str]]:
    """Return the texts of the spans on a page, as far as the page has room; the selected one's always."""
    room = PAGE_CHARS
    texts: dict[str, tuple[str, str]] = {}
    for each in sorted(spans, key=lambda each: each.span_id != selected):
        taken, given = read.get(each.span_id, (each.input, each.output))
        size = sum(min(len(text or ""), MOST_CHARS) for text in (taken, given))
        if (taken or given) and (each.span_id == selected or size <= room):
            texts[each.span_id] = (taken or "", given or "")
            room -= size
    return texts


def span_view(
    row: SpanRow,
    depth: int,
    axis: Axis,
    *,
    run: RunRow,
    now_us: int,
    texts: Mapping[str, tuple[str, str]],
    read_all: bool,
    selected: bool,
    is_open: bool,
) -> SpanView:
    """Return a span as it is shown. `read_all` says that a span that is not in `texts` has none."""
    end_us = span_end(row, run, now_us)
    kind: Literal["failed", "open", "span"] = "span"
    if row.state in ("failed", "running"):
        kind = "failed" if row.state == "failed" else "open"
    taken, given = texts.get(row.span_id, ("", ""))
    return SpanView(
        row=row,
        depth=min(depth, MOST_NESTED),
        bars=(span(axis, kind, row.started_us, end_us),),
        problem=row.state == "failed",
        selected=selected,
        is_open=is_open,
        duration_us=end_us - row.started_us,
        input=_text(taken, whole=selected),
        output=_text(given, whole=selected),
        elsewhere=row.span_id not in texts and not read_all,
        facts=tuple((name, _inline(value)) for name, value in row.attributes.items()),
    )


def _text(text: str, *, whole: bool) -> SpanText | None:
    if not text:
        return None
    shown = _pretty(text) if text[:1] in ("[", "{") else text
    if whole or len(shown) <= MOST_CHARS:
        return SpanText(body=shown)
    return SpanText(body=shown[:MOST_CHARS], left_out=len(shown) - MOST_CHARS)


def _pretty(text: str) -> str:
    try:
        return pretty_json(json.loads(text))
    except (ValueError, RecursionError):  # it only looks like JSON, or was cut
        return text


def _inline(value: object) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)
