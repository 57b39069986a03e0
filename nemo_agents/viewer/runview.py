"""A run arranged for its page: steps as a tree, calls under their steps, bars on a common axis. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from nemo_agents.admin import wire
from nemo_agents.viewer.callpages import CallPage, call_page
from nemo_agents.viewer.calls import cost_in_all, unknown_costs
from nemo_agents.viewer.content import Content, content_of
from nemo_agents.viewer.shadows import shadow_hint
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
from nemo_agents.viewer.verdict import PROBLEM_STATES, Part, Verdict, why

__all__ = ["CallView", "RunView", "Scale", "StepView", "arrange", "contents_wanted"]

Scale = Literal["run", "step"]
_Branch: TypeAlias = tuple[str | None, int, wire.StepRow | None, list[wire.CallRow]]  # label, depth, row, calls

MOST_CONTENTS: Final = 40  # calls of a page that are shown with their texts; the others are a link away
MOST_OPEN: Final = 8  # problems that are open from the start; with more, only the culprit is
MOST_CHARS: Final = 8_000  # of one text, unless its call is the selected one
MOST_CHARS_SELECTED: Final = 200_000
PAGE_CHARS: Final = 1_000_000  # of all texts on a page
MANY_CALLS: Final = 100  # from here on a bar on the run's axis is a sliver: steps get an axis of their own
MOST_DEPTH: Final = 6
MOST_STEPS: Final = 200  # with more, steps of other pages' calls are left out


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
    """A step with its calls. `row` is None for calls that name no step, or one that nobody reported.

    `number` is its place among all steps. `calls` are those on this page, `elsewhere` counts the others, of which
    the first is on the page that begins with `elsewhere_from`; cost and duration are over all.
    """

    number: int
    label: str | None
    depth: int
    row: wire.StepRow | None
    bar: Span | None
    cost_nanos: int | None
    duration_us: int | None
    calls: tuple[CallView, ...]
    elsewhere: int
    elsewhere_from: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """All that the page of a run shows. `hint` is what limits in shadow mode would have done.

    `steps` are those on this page, `step_anchor` the numbers of these.
    """

    run: wire.RunRow
    verdict: Verdict
    hint: tuple[Part, ...]
    page: CallPage
    steps: tuple[StepView, ...]
    steps_in_all: int
    problems: int
    burn: Burn | None
    ticks: tuple[Tick, ...]
    scale: Scale
    model_time_us: int
    duration_us: int | None
    extra_attempts: int
    unknown_costs: int
    step_anchor: Mapping[str, int]


def contents_wanted(detail: wire.RunDetail, *, selected: str | None, start: int | None = None) -> list[str]:
    """Return the ids of the calls whose texts belong on the page: the selected one, problems, the rest in order.

    `start` is the place of a call in the run, from 1: the page that has it is meant; by default the one that has the
    selected call.

    The call before the selected one is among them, so that repeated messages can be told from new ones.
    """
    calls = detail.calls
    shown = call_page(calls, asked=start, also=(selected,)).shown
    chosen = next((index for index, call in enumerate(calls) if call.request_id == selected), None)
    near = [] if chosen is None else [calls[chosen].request_id, *_before(calls, chosen)]
    here = [call for call in calls if call.request_id in shown]
    problems = [call.request_id for call in here if call.state in PROBLEM_STATES]
    wanted = dict.fromkeys([*near, *problems[:MOST_OPEN], *(call.request_id for call in here)])
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
    start: int | None = None,
    full: bool = False,
    scale: Scale | None = None,
) -> RunView:
    """Arrange a run for its page.

    `contents` holds the texts of the calls in `contents_wanted`; `start` says which calls are shown, as there; `full`
    shows the selected one uncut.
    """
    run = detail.run
    verdict = why(detail, now_us=now_us)
    page = call_page(detail.calls, asked=start, also=(selected, verdict.culprit))
    axis = axis_of(run, detail.steps, detail.calls, now_us=now_us)
    chosen_scale: Scale = scale or ("step" if len(detail.calls) > MANY_CALLS else "run")
    problems = sum(call.state in PROBLEM_STATES for call in detail.calls)
    wanted = contents_wanted(detail, selected=selected, start=start)
    texts = _texts(detail, contents, wanted, selected=selected, full=full)

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
    tree = _tree(detail)
    kept = _steps_kept(tree, page)
    for number, (label, depth, row, calls) in enumerate(tree, 1):
        own = _step_axis(row, calls, now_us) if chosen_scale == "step" else axis
        began, ended = _extent(row, calls, now_us)
        here = [call for call in calls if call.request_id in page.shown]
        if kept is not None and label not in kept:
            continue
        others = [page.place[call.request_id] for call in calls if call.request_id not in page.shown]
        steps.append(
            StepView(
                number=number,
                label=label,
                depth=min(depth, MOST_DEPTH),
                row=row,
                bar=span(axis, "step", began, ended) if calls or row else None,
                cost_nanos=cost_in_all(calls),
                duration_us=ended - began,
                calls=tuple(view(call, own) for call in here),
                elsewhere=len(others),
                elsewhere_from=page.page_of(_after(others, page.last)) if others else None,
            )
        )
    end_us = run.ended_us if run.ended_us is not None else now_us if run.state == "running" else None
    return RunView(
        run=run,
        verdict=verdict,
        hint=shadow_hint(detail),
        page=page,
        steps=tuple(steps),
        steps_in_all=sum(label is not None for label, _, _, _ in tree),
        problems=problems,
        burn=burn_down(run, detail.calls, axis, now_us=now_us),
        ticks=ticks(axis),
        scale=chosen_scale,
        model_time_us=sum(call.latency_us or 0 for call in detail.calls),
        duration_us=None if end_us is None else end_us - run.started_us,
        extra_attempts=sum(max(0, call.attempts - 1) for call in detail.calls),
        unknown_costs=unknown_costs(detail.calls),
        step_anchor={step.label: step.number for step in steps if step.label is not None},
    )


def _steps_kept(tree: Sequence[_Branch], page: CallPage) -> frozenset[str | None] | None:
    """Return the steps of this page where a run has too many: those of its calls, what they lie in, and failures.

    None keeps all.
    """
    if len(tree) <= MOST_STEPS or not page.links:
        return None
    kept: set[str | None] = set()
    for label, _, row, calls in reversed(tree):  # children before their parents
        odd = not calls and row is not None and row.state != "ok"
        if odd or label in kept or any(call.request_id in page.shown for call in calls):
            kept.add(label)
            if row is not None and row.parent is not None:
                kept.add(row.parent)
    return frozenset(kept)


def _after(places: Sequence[int], last: int) -> int:
    """Return the first place behind this page, else the first of all: a link leads on before it leads back."""
    return min((place for place in places if place > last), default=min(places))


def _texts(
    detail: wire.RunDetail,
    contents: Mapping[str, wire.CallContent],
    wanted: Sequence[str],
    *,
    selected: str | None,
    full: bool,
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
    for request_id in wanted:
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


def _tree(detail: wire.RunDetail) -> list[_Branch]:
    """Return steps parents first, each with its depth and calls; then calls of steps that nobody reported."""
    calls: dict[str | None, list[wire.CallRow]] = {}
    for call in detail.calls:
        calls.setdefault(call.step, []).append(call)
    known = {step.step: step for step in detail.steps}
    children: dict[str | None, list[wire.StepRow]] = {}
    for step in sorted(known.values(), key=lambda step: step.seq):
        parent = step.parent if step.parent in known and step.parent != step.step else None
        children.setdefault(parent, []).append(step)
    told: list[_Branch] = []
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
