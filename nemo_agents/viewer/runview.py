"""A run arranged for its page: steps as a tree, calls under their steps, bars on a common axis. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

from nemo_agents.admin import wire
from nemo_agents.viewer.callpages import CallPage, call_page
from nemo_agents.viewer.calls import cost_in_all, unknown_costs
from nemo_agents.viewer.content import Content, content_of
from nemo_agents.viewer.shadows import shadow_hint
from nemo_agents.viewer.spantree import id_of, in_order, is_problem, outwards, span_end, tree_of
from nemo_agents.viewer.spanview import MOST_NESTED, SpanView, Texts, span_texts, span_view, spans_wanted
from nemo_agents.viewer.steporder import steps_in_order
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

__all__ = ["CallView", "RunView", "Scale", "StepView", "arrange", "contents_wanted", "span_texts_wanted"]

Scale = Literal["run", "step"]
# label, depth, row, calls, spans
_Branch: TypeAlias = tuple[str | None, int, wire.StepRow | None, list[wire.CallRow], list[wire.SpanRow]]

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
    depth: int = 0  # spans of its step that it is in

    @property
    def is_span(self) -> bool:
        """It is a call."""
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class StepView:
    """A step with its calls and spans. `row` is None for those that name no step, or one that nobody reported.

    `number` is its place among all steps. `rows` are those on this page, each after the span that it is in, and `calls`
    the calls among them; `elsewhere` counts the others, of which the first is on the page that begins with
    `elsewhere_from`; cost and duration are over all.
    """

    number: int
    label: str | None
    depth: int
    row: wire.StepRow | None
    bar: Span | None
    cost_nanos: int | None
    duration_us: int | None
    rows: tuple[CallView | SpanView, ...]
    has_calls: bool
    elsewhere: int
    elsewhere_from: int | None

    @property
    def calls(self) -> tuple[CallView, ...]:
        """The calls on this page."""
        return tuple(row for row in self.rows if isinstance(row, CallView))


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
    spans: int
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
    shown = call_page(in_order(calls, detail.spans), asked=start, also=(selected,)).shown
    chosen = next((index for index, call in enumerate(calls) if call.request_id == selected), None)
    near = [] if chosen is None else [calls[chosen].request_id, *_before(calls, chosen)]
    here = [call for call in calls if call.request_id in shown]
    problems = [call.request_id for call in here if call.state in PROBLEM_STATES]
    wanted = dict.fromkeys([*near, *problems[:MOST_OPEN], *(call.request_id for call in here)])
    return list(wanted)[:MOST_CONTENTS]


def span_texts_wanted(
    detail: wire.RunDetail, *, selected: str | None, selected_span: str | None, start: int | None
) -> list[str]:
    """Return the ids of the spans whose texts belong on the page and have not come with the run.

    `selected` is a request id, the rest is as in `arrange`.
    """
    page = call_page(in_order(detail.calls, detail.spans), asked=start, also=(selected or selected_span,))
    shown = [span for span in detail.spans if span.span_id in page.shown]
    return spans_wanted(detail, shown, selected_span)


def _before(calls: Sequence[wire.CallRow], index: int) -> list[str]:
    step = calls[index].step
    return next(([call.request_id] for call in reversed(calls[:index]) if call.step == step), [])


def arrange(
    detail: wire.RunDetail,
    contents: Mapping[str, wire.CallContent],
    *,
    now_us: int,
    selected: str | None = None,
    selected_span: str | None = None,
    start: int | None = None,
    full: bool = False,
    scale: Scale | None = None,
    texts_of_spans: Texts | None = None,
    whole: bool = False,
) -> RunView:
    """Arrange a run for its page.

    `contents` holds the texts of the calls in `contents_wanted` and `suspects.texts_wanted`; `start` says which calls
    are shown, as there; `full` shows the selected one uncut. `selected_span` is the id of a span, `texts_of_spans` has
    what those in `span_texts_wanted` took and gave. `whole` puts every call on one page, its texts uncut.
    """
    run = detail.run
    verdict = why(detail, contents, now_us=now_us)
    items = in_order(detail.calls, detail.spans)
    page = call_page(items, asked=start, also=(selected or selected_span, verdict.culprit))
    if whole:
        shown_all = frozenset(page.place)
        page = replace(page, first=1, last=len(items), shown=shown_all, problems_added=0, problems_left_out=0, links=())
    axis = axis_of(run, detail.steps, detail.calls, detail.spans, now_us=now_us)
    chosen_scale: Scale = scale or ("step" if len(items) > MANY_CALLS else "run")
    problems = sum(call.state in PROBLEM_STATES for call in detail.calls)
    by_id = {span.span_id: span for span in detail.spans}
    around = {span_id for item in items if id_of(item) in page.shown for span_id in outwards(item, by_id)}
    shown = page.shown | around
    shown_spans = [span for span in detail.spans if span.span_id in shown]
    said = span_texts(shown_spans, texts_of_spans or {}, selected_span)
    read_all = not spans_wanted(detail, shown_spans, selected_span)
    wanted = list(contents) if whole else contents_wanted(detail, selected=selected, start=start)
    texts = _texts(detail, contents, wanted, selected=selected, full=full, whole=whole)

    def view_of_span(row: wire.SpanRow, depth: int, on: Axis) -> SpanView:
        is_selected = row.span_id == selected_span
        return span_view(
            row,
            depth,
            on,
            run=run,
            now_us=now_us,
            texts=said,
            read_all=read_all,
            selected=is_selected,
            is_open=is_selected,
        )

    def view(call: wire.CallRow, depth: int, on: Axis) -> CallView:
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
            content_elsewhere=content is None and kept_here and not whole,
            depth=min(depth, MOST_NESTED),
        )

    steps = []
    tree = _tree(detail)
    kept = _steps_kept(tree, page, shown)
    for number, (label, depth, row, calls, spans) in enumerate(tree, 1):
        if kept is not None and label not in kept:
            continue
        began, ended = _extent(row, calls, spans, run, now_us)
        own = Axis(start_us=began, end_us=max(ended, began + 1)) if chosen_scale == "step" else axis
        nodes = tree_of(
            [call for call in calls if call.request_id in shown], [span for span in spans if span.span_id in shown]
        )
        others = [page.place[id_of(item)] for item in in_order(calls, spans) if id_of(item) not in shown]
        steps.append(
            StepView(
                number=number,
                label=label,
                depth=min(depth, MOST_DEPTH),
                row=row,
                bar=span(axis, "step", began, ended),
                cost_nanos=cost_in_all(calls),
                duration_us=ended - began,
                rows=tuple(
                    view(node.item, node.depth, own)
                    if isinstance(node.item, wire.CallRow)
                    else view_of_span(node.item, node.depth, own)
                    for node in nodes
                ),
                has_calls=bool(calls),
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
        steps_in_all=sum(branch[0] is not None for branch in tree),
        problems=problems + sum(is_problem(span) for span in detail.spans),
        spans=len(detail.spans),
        burn=burn_down(run, detail.calls, axis, now_us=now_us),
        ticks=ticks(axis),
        scale=chosen_scale,
        model_time_us=sum(call.latency_us or 0 for call in detail.calls),
        duration_us=None if end_us is None else end_us - run.started_us,
        extra_attempts=sum(max(0, call.attempts - 1) for call in detail.calls),
        unknown_costs=unknown_costs(detail.calls),
        step_anchor={step.label: step.number for step in steps if step.label is not None},
    )


def _steps_kept(tree: Sequence[_Branch], page: CallPage, shown: frozenset[str]) -> frozenset[str | None] | None:
    """Return the steps of this page where a run has too many: those of its rows, what they lie in, and failures.

    None keeps all.
    """
    if len(tree) <= MOST_STEPS or not page.links:
        return None
    kept: set[str | None] = set()
    for label, _, row, calls, spans in reversed(tree):  # children before their parents
        odd = not calls and not spans and row is not None and row.state != "ok"
        if odd or label in kept or any(id_of(item) in shown for item in in_order(calls, spans)):
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
    whole: bool,
) -> dict[str, Content]:
    """Arrange texts until the page is full; the selected call comes first and always fits, `whole` has all uncut."""
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
        cut = None if whole or (full and request_id == selected) else most
        content = content_of(kept, previous=before[request_id], most_chars=cut)
        size = _size(content, folded=request_id != selected)
        if whole or request_id == selected or size <= room:
            texts[request_id] = content
            room -= size
    return texts


def _size(content: Content, *, folded: bool) -> int:
    shown = content.prompt[content.repeated :] if folded else content.prompt
    blocks = [*content.tools, *(block for message in (*shown, *content.answer) for block in message.blocks)]
    return sum(len(block.body) for block in blocks) + sum(len(value) for _, value in content.params)


def _tree(detail: wire.RunDetail) -> list[_Branch]:
    """Return steps parents first, each with its depth, calls and spans; then those of steps that nobody reported."""
    calls: dict[str | None, list[wire.CallRow]] = {}
    spans: dict[str | None, list[wire.SpanRow]] = {}
    for call in detail.calls:
        calls.setdefault(call.step, []).append(call)
    for each in detail.spans:
        spans.setdefault(each.step, []).append(each)
    told: list[_Branch] = [
        (step.step, depth, step, calls.get(step.step, []), spans.get(step.step, []))
        for step, depth in steps_in_order(detail.steps)
    ]
    seen = {step.step for step in detail.steps}
    others = dict.fromkeys([*calls, *spans])
    told += [(label, 0, None, calls.get(label, []), spans.get(label, [])) for label in others if label not in seen]
    return told


def _extent(
    row: wire.StepRow | None,
    calls: Sequence[wire.CallRow],
    spans: Sequence[wire.SpanRow],
    run: wire.RunRow,
    now_us: int,
) -> tuple[int, int]:
    starts = [each.started_us for each in in_order(calls, spans)] + ([row.started_us] if row else [])
    ends = [*(end_of(call, now_us) for call in calls), *(span_end(each, run, now_us) for each in spans)]
    if row is not None:
        ends.append(row.ended_us if row.ended_us is not None else now_us if row.state == "running" else row.started_us)
    start = min(starts)
    return start, max(start, *ends) if ends else start
