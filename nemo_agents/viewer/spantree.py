"""Calls and spans as a tree, for the page and for a terminal. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from nemo_agents.admin.wire import CallRow, RunRow, SpanRow

__all__ = ["KIND_MARKS", "Item", "Node", "id_of", "in_order", "is_problem", "outwards", "span_end", "tree_of"]

Item: TypeAlias = CallRow | SpanRow

KIND_MARKS: Final = {
    "agent": "●",
    "task": "▪",
    "tool": "⚙",
    "chain": "»",
    "retriever": "⌕",
    "guardrail": "◆",
    "llm": "✦",
    "other": "·",
}
"""A sign beside the word for the kind of a span."""

_PROBLEMS: Final = frozenset({"refused", "failed", "abandoned"})  # states of calls, and the one of spans


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A call or a span, and how many spans it is in."""

    item: Item
    depth: int


def id_of(item: Item) -> str:
    """Return the id of a call or span."""
    return item.request_id if isinstance(item, CallRow) else item.span_id


def is_problem(item: Item) -> bool:
    """Whether it went wrong."""
    return item.state in _PROBLEMS


def span_end(span: SpanRow, run: RunRow, now_us: int) -> int:
    """Return when a span ended; while it goes on, now, and in a run that is over, the end of that."""
    if span.ended_us is not None:
        return span.ended_us
    return max(span.started_us, now_us if run.state == "running" else run.ended_us or 0)


def in_order(calls: Sequence[CallRow], spans: Sequence[SpanRow]) -> list[Item]:
    """Return calls and spans by their starts, a span before what starts with it; calls alone keep their order."""
    if not spans:
        return list(calls)
    return sorted([*spans, *calls], key=_start)


def tree_of(calls: Sequence[CallRow], spans: Sequence[SpanRow]) -> Iterator[Node]:
    """Yield calls and spans, each right after the span that it is in; what is in none of these is at the top."""
    among = {span.span_id for span in spans}
    children: dict[str | None, list[Item]] = {}
    for item in in_order(calls, spans):
        parent = _parent(item)
        children.setdefault(parent if parent in among and parent != id_of(item) else None, []).append(item)
    seen: set[str] = set()
    # Spans whose parents go in a circle hang at none of the tops; they come last, each once.
    for top in (*children.get(None, ()), *spans):
        stack = [Node(item=top, depth=0)]
        while stack:
            node = stack.pop()
            name = id_of(node.item)
            if name in seen:
                continue
            seen.add(name)
            yield node
            if isinstance(node.item, SpanRow):
                stack += [Node(item=item, depth=node.depth + 1) for item in reversed(children.get(name, []))]


def outwards(item: Item, spans: dict[str, SpanRow]) -> Iterator[str]:
    """Yield the ids of the spans that it is in, from the innermost."""
    seen = {id_of(item)}
    parent = _parent(item)
    while parent is not None and parent in spans and parent not in seen:
        seen.add(parent)
        yield parent
        parent = spans[parent].parent_id


def _parent(item: Item) -> str | None:
    return item.parent_span if isinstance(item, CallRow) else item.parent_id


def _start(item: Item) -> tuple[int, bool, int]:
    is_call = isinstance(item, CallRow)
    return item.started_us, is_call, item.seq if isinstance(item, CallRow) else 0
