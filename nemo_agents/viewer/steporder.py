"""The order in which the steps of a run are shown and numbered: each before the steps inside it. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from nemo_agents.admin.wire import StepRow

__all__ = ["steps_in_order"]


def steps_in_order(steps: Iterable[StepRow]) -> list[tuple[StepRow, int]]:
    """Return every step once with its depth, parents first, beside one another in the order of their appearance."""
    known = {step.step: step for step in steps}
    children: dict[str | None, list[StepRow]] = {}
    for step in sorted(known.values(), key=lambda step: step.seq):
        parent = step.parent if step.parent in known and step.parent != step.step else None
        children.setdefault(parent, []).append(step)
    told: list[tuple[StepRow, int]] = []
    seen: set[str] = set()

    def tell(step: StepRow) -> None:
        stack = [(step, 0)]
        while stack:
            each, depth = stack.pop()
            if each.step not in seen:
                seen.add(each.step)
                told.append((each, depth))
                stack += [(child, depth + 1) for child in reversed(children.get(each.step, []))]

    for root in children.get(None, []):
        tell(root)
    for step in known.values():  # a ring of parents has no root
        tell(step)
    return told
