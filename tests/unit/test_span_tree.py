"""Where spans and calls belong, whatever order they came in."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest

from nemo_agents.admin import wire
from nemo_agents.policy.otel.tree import settle
from nemo_agents.viewer.spantree import outwards, tree_of


def span(name: str, parent: str | None = None, kind: str = "tool", at: int = 0, **given: Any) -> wire.SpanRow:
    values: dict[str, Any] = {"step": None, "role": None, "state": "ok", "started_us": at, "ended_us": at + 1}
    return wire.SpanRow(span_id=name, parent_id=parent, kind=kind, name=name, **(values | given))


def call(
    request_id: str, parent: str | None = None, step: str | None = None, at: int = 0, seq: int = 1
) -> wire.CallRow:
    nothing: dict[str, Any] = {
        name: None
        for name in wire.CallRow.__struct_fields__
        if name not in ("attempt_rows", "shadow", "guardrails", "parent_span")
    }
    return wire.CallRow(
        **{**nothing, "request_id": request_id, "step": step, "started_us": at, "seq": seq, "state": "ok"},
        guardrails=[],
        parent_span=parent,
    )


def ids(spans: list[wire.SpanRow]) -> list[str]:
    return [each.span_id for each in spans]


def test_a_span_that_names_a_call_gives_it_its_place() -> None:
    one = call("req_1", parent="step's own")
    left = settle([span("agent", kind="agent"), span("link", "agent", "llm", request_id="req_1")], [one])
    assert (ids(left), one.parent_span) == (["agent"], "agent")


def test_a_span_of_a_model_with_exactly_one_call_in_it_is_that_call() -> None:
    one = call("req_1", parent="chat")
    assert ids(settle([span("agent"), span("chat", "agent", "llm")], [one])) == ["agent"]
    assert one.parent_span == "agent"
    two = [call("req_1", parent="chat"), call("req_2", parent="chat")]
    assert ids(settle([span("agent"), span("chat", "agent", "llm")], two)) == ["agent", "chat"]
    assert [each.parent_span for each in two] == ["chat", "chat"]
    assert ids(settle([span("search", None, "tool")], [call("req_1", parent="search")])) == ["search"]


def test_a_span_that_names_a_call_of_another_run_is_shown() -> None:
    assert ids(settle([span("link", kind="llm", request_id="req_elsewhere")], [call("req_1")])) == ["link"]


def test_spans_within_a_call_move_to_what_is_around_it() -> None:
    one = call("req_1", parent="chat")
    left = settle([span("agent"), span("chat", "agent", "llm"), span("http", "chat", "other")], [one])
    assert [(each.span_id, each.parent_id) for each in left] == [("agent", None), ("http", "agent")]


def test_spans_that_are_calls_and_lie_in_a_circle_end_at_the_top() -> None:
    one, two = call("req_1"), call("req_2")
    spans = [span("a", "b", "llm", request_id="req_1"), span("b", "a", "llm", request_id="req_2")]
    assert settle(spans, [one, two]) == []
    assert (one.parent_span, two.parent_span) == (None, None)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_span_has_the_step_of_what_is_around_it(order: tuple[int, ...]) -> None:
    spans = [span("agent", step="research"), span("task", "agent"), span("tool", "task")]
    left = settle([spans[n] for n in order], [])
    assert {each.span_id: each.step for each in left} == {"agent": "research", "task": "research", "tool": "research"}


def test_a_span_that_names_no_step_has_that_of_the_calls_beside_or_in_it() -> None:
    beside = call("req_1", parent="step", step="plan")  # made in the step itself, whose span never comes
    inside = call("req_2", parent="agent", step="write")
    spans = [span("tool", "step"), span("agent", kind="agent"), span("task", "agent"), span("alone", "gone")]
    left = settle(spans, [beside, inside])
    assert {each.span_id: each.step for each in left} == {
        "tool": "plan",
        "agent": "write",
        "task": "write",
        "alone": None,
    }


def test_circles_and_long_chains_take_no_time() -> None:
    ring = [span(str(n), str((n + 1) % 1000)) for n in range(1000)]
    chain = [span(f"c{n}", f"c{n - 1}" if n else None) for n in range(20_000)]
    before_s = time.thread_time()
    left = settle([*ring, *reversed(chain)], [])
    assert len(list(tree_of([], left))) == 21_000
    assert time.thread_time() - before_s < 5


# --- as it is shown -----------------------------------------------------------------------------------------------
def shown(calls: list[wire.CallRow], spans: list[wire.SpanRow]) -> list[tuple[str, int]]:
    nodes = tree_of(calls, spans)
    return [(n.item.request_id if isinstance(n.item, wire.CallRow) else n.item.span_id, n.depth) for n in nodes]


def test_children_follow_their_span_in_the_order_of_their_starts() -> None:
    spans = [span("agent", at=1), span("tool", "agent", at=5), span("late", at=9)]
    calls = [call("req_1", "agent", at=3, seq=1), call("req_2", "tool", at=6, seq=2), call("req_3", at=7, seq=3)]
    expected = [("agent", 0), ("req_1", 1), ("tool", 1), ("req_2", 2), ("req_3", 0), ("late", 0)]
    for order in itertools.permutations(spans):
        assert shown(calls, list(order)) == expected


def test_without_spans_calls_keep_their_order() -> None:
    calls = [call("req_1", at=9, seq=1), call("req_2", at=3, seq=2)]
    assert shown(calls, []) == [("req_1", 0), ("req_2", 0)]


def test_what_is_in_a_span_that_never_came_is_at_the_top() -> None:
    assert shown([call("req_1", "gone", at=2)], [span("tool", "gone", at=1)]) == [("tool", 0), ("req_1", 0)]


def test_spans_in_a_circle_are_shown_once_each() -> None:
    spans = [span("a", "b", at=1), span("b", "a", at=2), span("self", "self", at=3)]
    found = shown([], spans)
    assert sorted(name for name, _ in found) == ["a", "b", "self"]
    by_id = {each.span_id: each for each in spans}
    assert list(outwards(spans[0], by_id)) == ["b"]
