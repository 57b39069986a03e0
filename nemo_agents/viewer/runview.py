"""A run arranged for its page: steps as a tree, calls under their steps, bars on a common axis. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from nemo_agents.admin import wire
from nemo_agents.viewer.content import Content, content_of
from nemo_agents.viewer.timeline import (
    Axis,
    Burn,
    Span,
    Tick,
    axis_of,
    burn_down,
    call_spans,
    end_of,
    span,
    ticks,
)
from nemo_agents.viewer.verdict import PROBLEM_STATES, Verdict, why

__all__ = ["CallView", "RunView", "Scale", "StepView", "arrange", "contents_wanted"]

Scale = Literal["run", "step"]

MOST_CONTENTS: Final = 40  # calls of a page that are shown with their texts; the others are a link away
MOST_OPEN: Final = 8  # problems that are open from the start; with more, only the culprit is
MOST_CHARS: Final = 8_000  # of one text, unless its call is the selected one
MOST_CHARS_SELECTED: Final = 200_000
PAGE_CHARS: Final = 1_000_000  # of all texts on a page
MANY_CALLS: Final = 100  # from here on a bar on the run's axis is a sliver: steps get an axis of their own
MOST_DEPTH: Final = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class CallView:
    """A call on the page. `content` is None when it is not on it (`content_elsewhere`) or was not kept."""

    row: wire.CallRow
    bars: tuple[Span, ...]
    problem: bool
    selected: bool
    is_open: bool
    content: Content | None
    content_elsewhere: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StepView:
    """A step with its calls. `row` is None for calls that name no step, or one that nobody reported."""

    label: str | None
    depth: int
    row: wire.StepRow | None
    bar: Span | None
    cost_nanos: int
    duration_us: int | None
    calls: tuple[CallView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """All that the page of a run shows."""

    run: wire.RunRow
    verdict: Verdict
    steps: tuple[StepView, ...]
    problems: int
    burn: Burn | None
    ticks: tuple[Tick, ...]
    scale: Scale
    model_time_us: int
    duration_us: int | None
    extra_attempts: int
    unknown_costs: int
    step_anchor: Mapping[str, int]


def contents_wanted(detail: wire.RunDetail, *, selected: str | None) -> list[str]:
    """Return the ids of the calls whose texts belong on the page: the selected one, problems, the rest in order.

    The call before the selected one is among them, so that repeated messages can be told from new ones.
    """
    calls = detail.calls
    chosen = next((index for index, call in enumerate(calls) if call.request_id == selected), None)
    near = [] if chosen is None else [calls[chosen].request_id, *_before(calls, chosen)]
    problems = [call.request_id for call in calls if call.state in PROBLEM_STATES]
    wanted = dict.fromkeys([*near, *problems[:MOST_OPEN], *(call.request_id for call in calls)])
    return list(wanted)[:MOST_CONTENTS]


def _before(calls: Sequence[wire.CallRow], index: int) -> list[str]:
    step = calls[index].step
    return next(([call.request_id] for call in reversed(calls[:index]) if call.step == step), [])


def arrange(
    detail: wire.RunDetail,
    contents: Mapping[str, wire.CallContent],
    *,
    now_us: int,
    selected: str | None = None,
    full: bool = False,
    scale: Scale | None = None,
) -> RunView:
    """Arrange a run for its page.

    `contents` holds the texts of the calls in `contents_wanted`; `full` shows the selected one uncut.
    """
    run = detail.run
    verdict = why(detail, now_us=now_us)
    axis = axis_of(run, detail.steps, detail.calls, now_us=now_us)
    chosen_scale: Scale = scale or ("step" if len(detail.calls) > MANY_CALLS else "run")
    problems = sum(call.state in PROBLEM_STATES for call in detail.calls)
    wanted = frozenset(contents_wanted(detail, selected=selected))
    texts = _texts(detail, contents, selected=selected, full=full)

    def view(call: wire.CallRow, on: Axis) -> CallView:
        problem = call.state in PROBLEM_STATES
        opened = problem and (problems <= MOST_OPEN or call.request_id == verdict.culprit)
        content = texts.get(call.request_id)
        kept_here = call.request_id in contents or call.request_id not in wanted
        return CallView(
            row=call,
            bars=call_spans(call, on, now_us=now_us),
            problem=problem,
            selected=call.request_id == selected,
            is_open=opened or call.request_id == selected,
            content=content,
            content_elsewhere=content is None and kept_here,
        )

    steps = []
    for label, depth, row, calls in _tree(detail):
        own = _step_axis(row, calls, now_us) if chosen_scale == "step" else axis
        start, end = _extent(row, calls, now_us)
        steps.append(
            StepView(
                label=label,
                depth=min(depth, MOST_DEPTH),
                row=row,
                bar=span(axis, "step", start, end) if calls or row else None,
                cost_nanos=sum(call.cost_nanos or 0 for call in calls),
                duration_us=end - start,
                calls=tuple(view(call, own) for call in calls),
            )
        )
    end_us = run.ended_us if run.ended_us is not None else now_us if run.state == "running" else None
    return RunView(
        run=run,
        verdict=verdict,
        steps=tuple(steps),
        problems=problems,
        burn=burn_down(run, detail.calls, axis, now_us=now_us),
        ticks=ticks(axis),
        scale=chosen_scale,
        model_time_us=sum(call.latency_us or 0 for call in detail.calls),
        duration_us=None if end_us is None else end_us - run.started_us,
        extra_attempts=sum(max(0, call.attempts - 1) for call in detail.calls),
        unknown_costs=sum(call.cost_nanos is None and call.state != "open" for call in detail.calls),
        step_anchor={step.label: index for index, step in enumerate(steps, 1) if step.label is not None},
    )


def _texts(
    detail: wire.RunDetail, contents: Mapping[str, wire.CallContent], *, selected: str | None, full: bool
) -> dict[str, Content]:
    """Arrange texts until the page is full; the selected call comes first and always fits."""
    before: dict[str, wire.CallContent | None] = {}
    last: dict[str | None, wire.CallContent] = {}
    for call in detail.calls:
        before[call.request_id] = last.get(call.step)
        if call.request_id in contents:
            last[call.step] = contents[call.request_id]
    texts: dict[str, Content] = {}
    room = PAGE_CHARS
    for request_id in contents_wanted(detail, selected=selected):
        kept = contents.get(request_id)
        if kept is None:
            continue
        most = MOST_CHARS
        if request_id == selected:
            most = MOST_CHARS_SELECTED
        cut = None if full and request_id == selected else most
        content = content_of(kept, previous=before[request_id], most_chars=cut)
        size = _size(content, folded=request_id != selected)
        if request_id == selected or size <= room:
            texts[request_id] = content
            room -= size
    return texts


def _size(content: Content, *, folded: bool) -> int:
    shown = content.prompt[content.repeated :] if folded else content.prompt
    blocks = [*content.tools, *(block for message in (*shown, *content.answer) for block in message.blocks)]
    return sum(len(block.body) for block in blocks) + sum(len(value) for _, value in content.params)


def _tree(
    detail: wire.RunDetail,
) -> list[tuple[str | None, int, wire.StepRow | None, list[wire.CallRow]]]:
    """Return steps parents first, each with its depth and calls; then calls of steps that nobody reported."""
    calls: dict[str | None, list[wire.CallRow]] = {}
    for call in detail.calls:
        calls.setdefault(call.step, []).append(call)
    known = {step.step: step for step in detail.steps}
    children: dict[str | None, list[wire.StepRow]] = {}
    for step in sorted(known.values(), key=lambda step: step.seq):
        parent = step.parent if step.parent in known and step.parent != step.step else None
        children.setdefault(parent, []).append(step)
    told: list[tuple[str | None, int, wire.StepRow | None, list[wire.CallRow]]] = []
    seen: set[str] = set()

    def tell(step: wire.StepRow) -> None:
        stack = [(step, 0)]
        while stack:
            each, depth = stack.pop()
            if each.step not in seen:
                seen.add(each.step)
                told.append((each.step, depth, each, calls.get(each.step, [])))
                stack += [(child, depth + 1) for child in reversed(children.get(each.step, []))]

    for root in children.get(None, []):
        tell(root)
    for step in known.values():  # a ring of parents has no root
        tell(step)
    told += [(label, 0, None, rows) for label, rows in calls.items() if label not in seen]
    return told


def _extent(row: wire.StepRow | None, calls: Sequence[wire.CallRow], now_us: int) -> tuple[int, int]:
    starts = [call.started_us for call in calls] + ([row.started_us] if row else [])
    ends = [end_of(call, now_us) for call in calls]
    if row is not None:
        ends.append(row.ended_us if row.ended_us is not None else now_us if row.state == "running" else row.started_us)
    start = min(starts)
    return start, max(start, *ends) if ends else start


def _step_axis(row: wire.StepRow | None, calls: Sequence[wire.CallRow], now_us: int) -> Axis:
    start, end = _extent(row, calls, now_us)
    return Axis(start_us=start, end_us=max(end, start + 1))
