"""Where bars lie on a time axis, and how a run's budget burned down: pure geometry, in per cent of the axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from nemo_agents.admin import wire
from nemo_agents.viewer.text import duration

__all__ = [
    "BURN_HEIGHT",
    "BURN_WIDTH",
    "Axis",
    "Burn",
    "Span",
    "Tick",
    "axis_of",
    "burn_down",
    "call_spans",
    "end_of",
    "span",
    "ticks",
]

BURN_WIDTH: Final = 1_000
BURN_HEIGHT: Final = 56

_NICE: Final = (1, 2, 5)
LAST_LABEL: Final = 0.9  # of the axis; a label further right would leave it


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A stretch of time, in microseconds since the epoch; `end_us` is later than `start_us`."""

    start_us: int
    end_us: int

    def share(self, at_us: int) -> float:
        """Return where a moment lies, from 0 to 1; a moment outside lies at the nearer end."""
        return min(1.0, max(0.0, (at_us - self.start_us) / (self.end_us - self.start_us)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A bar: `x` and `width` are SVG lengths in per cent."""

    kind: Literal["wait", "work", "failed", "refused", "open", "step", "span"]
    x: str
    width: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A mark on the axis; `x` is an SVG length in per cent, `label` is empty where it would not fit."""

    x: str
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Burn:
    """What is left of a budget over the run: SVG paths in a box of BURN_WIDTH by BURN_HEIGHT."""

    line: str
    area: str
    stop_x: str | None  # where the run was stopped, an SVG length in per cent
    spent_nanos: int
    cap_nanos: int


def end_of(call: wire.CallRow, now_us: int) -> int:
    """Return when a call ended, or now while it is open."""
    if call.latency_us is not None:
        return call.started_us + call.latency_us
    return max(now_us, call.started_us) if call.state == "open" else call.started_us


def axis_of(
    run: wire.RunRow,
    steps: Sequence[wire.StepRow],
    calls: Sequence[wire.CallRow],
    spans: Sequence[wire.SpanRow] = (),
    *,
    now_us: int,
) -> Axis:
    """Return the axis from the run's start to its end, wide enough for every step, call and span."""
    told: list[wire.StepRow | wire.SpanRow] = [*steps, *spans]
    starts = [run.started_us, *(each.started_us for each in told), *(call.started_us for call in calls)]
    ends = [
        *(end_of(call, now_us) for call in calls),
        *(each.ended_us for each in told if each.ended_us is not None),
    ]
    if run.ended_us is not None:
        ends.append(run.ended_us)
    elif run.state == "running":
        ends.append(now_us)
    start = min(starts)
    return Axis(start_us=start, end_us=max(start + 1, *ends, start + 1))


def ticks(axis: Axis, *, most: int = 6) -> tuple[Tick, ...]:
    """Return marks at round times after the start, at most `most` beside the zero."""
    length = axis.end_us - axis.start_us
    size = 1
    while length / size > most:
        size *= 10
    step = next((nice * size // 10 for nice in _NICE if size >= 10 and length / (nice * size / 10) <= most), size)
    marks = range(0, length + 1, max(1, step))
    labels = (duration(at).replace(".0", "") if at / length < LAST_LABEL else "" for at in marks)
    return tuple(
        Tick(x=_percent(at / length), label=label if at else "0") for at, label in zip(marks, labels, strict=True)
    )


def span(
    axis: Axis, kind: Literal["wait", "work", "failed", "refused", "open", "step", "span"], start: int, end: int
) -> Span:
    """Return the bar from start to end on the axis."""
    left, right = axis.share(start), axis.share(max(start, end))
    return Span(kind=kind, x=_percent(left), width=_percent(right - left))


def call_spans(call: wire.CallRow, axis: Axis, *, now_us: int) -> tuple[Span, ...]:
    """Return the bars of a call: attempts that failed, the wait for the first token, and the generation."""
    end = end_of(call, now_us)
    if call.state == "refused":
        return (span(axis, "refused", call.started_us, end),)
    bars = [
        span(axis, "failed", attempt.started_us, attempt.started_us + (attempt.latency_us or 0))
        for attempt in call.attempt_rows[:-1]
    ]
    start = call.started_us
    if len(call.attempt_rows) > 1:
        start = call.attempt_rows[-1].started_us
    if call.state == "failed":
        return (*bars, span(axis, "failed", start, end))
    if call.state == "open":
        return (*bars, span(axis, "open", start, end))
    first = None if call.ttft_us is None else min(end, call.started_us + call.ttft_us)
    if first is not None and first > start:
        return (*bars, span(axis, "wait", start, first), span(axis, "work", first, end))
    return (*bars, span(axis, "work", start, end))


def burn_down(run: wire.RunRow, calls: Sequence[wire.CallRow], axis: Axis, *, now_us: int) -> Burn | None:
    """Return how the run's budget was spent, each call when it ended; None for a run without a budget."""
    cap = run.budget_nanos
    if not cap:
        return None
    spent = 0
    x, y = 0.0, 0.0
    path = [f"M0 {y:.2f}"]
    for call in sorted(calls, key=lambda call: (end_of(call, now_us), call.seq)):
        if not call.cost_nanos:
            continue
        spent += call.cost_nanos
        x = axis.share(end_of(call, now_us)) * BURN_WIDTH
        y = min(1.0, spent / cap) * BURN_HEIGHT
        path.append(f"H{x:.2f}V{y:.2f}")
    last = run.ended_us if run.ended_us is not None else now_us if run.state == "running" else axis.end_us
    x = max(x, axis.share(last) * BURN_WIDTH)
    path.append(f"H{x:.2f}")
    line = "".join(path)
    stop = _percent(x / BURN_WIDTH) if run.state == "stopped" else None
    area = f"{line}V{BURN_HEIGHT}H0Z"
    return Burn(line=line, area=area, stop_x=stop, spent_nanos=run.cost_nanos, cap_nanos=cap)


def _percent(share: float) -> str:
    return f"{100 * share:.3f}".rstrip("0").rstrip(".") + "%"
