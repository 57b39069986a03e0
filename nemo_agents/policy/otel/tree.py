"""Where spans and calls of a run belong, worked out from all there are: their order of arrival says nothing."""

from __future__ import annotations

from collections.abc import Sequence

from nemo_agents.admin.wire import CallRow, SpanRow

__all__ = ["settle"]


def settle(spans: Sequence[SpanRow], calls: Sequence[CallRow]) -> list[SpanRow]:
    """Return the spans that are no call of the log, each with its step, and give calls their `parent_span`.

    A span is a call when it names its request id, or when it is of a model and exactly one call was made in it. A span
    that names no step has that of the span around it, else that of the calls beside it or in it.
    """
    by_request = {call.request_id: call for call in calls}
    inside: dict[str, list[CallRow]] = {}
    for call in calls:
        if call.parent_span is not None:
            inside.setdefault(call.parent_span, []).append(call)
    ours: dict[str, CallRow] = {}
    for span in spans:
        named = None if span.request_id is None else by_request.get(span.request_id)
        made = inside.get(span.span_id, ())
        if named is not None:
            ours[span.span_id] = named
        elif span.kind == "llm" and len(made) == 1:
            ours[span.span_id] = made[0]
    parents = {span.span_id: span.parent_id for span in spans}
    for span in spans:
        if span.span_id in ours and span.parent_id != span.span_id:
            ours[span.span_id].parent_span = _outside(span.parent_id, parents, ours)
    left = [span for span in spans if span.span_id not in ours]
    for span in left:
        span.parent_id = _outside(span.parent_id, parents, ours)
    _give_steps(left, {parent: made[0].step for parent, made in inside.items()})
    return left


def _outside(span_id: str | None, parents: dict[str, str | None], ours: dict[str, CallRow]) -> str | None:
    """Return the nearest span from here outwards that is no call."""
    seen: set[str] = set()
    while span_id is not None and span_id in ours and span_id not in seen:
        seen.add(span_id)
        span_id = parents[span_id]
    return None if span_id in seen else span_id


def _give_steps(spans: Sequence[SpanRow], of_calls: dict[str, str | None]) -> None:
    by_id = {span.span_id: span for span in spans}
    seen: set[str] = set()  # each is looked at once, also where parents go in a circle
    for span in spans:
        way: list[SpanRow] = []
        here: SpanRow | None = span
        while here is not None and here.step is None and here.span_id not in seen:
            seen.add(here.span_id)
            way.append(here)
            here = by_id.get(here.parent_id or "")
        step = None if here is None else here.step
        for each in reversed(way):  # outermost first
            step = step or of_calls.get(each.parent_id or "") or of_calls.get(each.span_id)
            each.step = step
