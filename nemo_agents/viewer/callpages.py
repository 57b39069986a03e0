"""Which calls and spans of a long run are on its page: two hundred at a time, and the problems wherever they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from nemo_agents.viewer.spantree import Item, id_of, is_problem

__all__ = ["PAGE_CALLS", "CallPage", "PageLink", "call_page"]

PAGE_CALLS: Final = 200
MOST_PROBLEMS: Final = 100  # of other pages; a run of refusals would be on every page as a whole
NEAR: Final = 2  # pages before and after this one that are named


@dataclass(frozen=True, slots=True, kw_only=True)
class PageLink:
    """A page of calls; `first` and `last` are places in the run's order, from 1.

    `skipped` says that pages lie before it that are not named.
    """

    first: int
    last: int
    current: bool
    skipped: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CallPage:
    """The calls and spans on a page: `shown` holds the ids of those from `first` to `last`, and of others.

    `problems_added` counts the problems among the others, `problems_left_out` those that are not shown. `place` is
    the place of every one in the run's order, from 1.
    """

    first: int
    last: int
    shown: frozenset[str]
    problems_added: int
    problems_left_out: int
    links: tuple[PageLink, ...]
    place: dict[str, int]

    def page_of(self, place: int) -> int:
        """Return where the page begins that has the call with this place."""
        return (place - 1) // PAGE_CALLS * PAGE_CALLS + 1


def call_page(calls: Sequence[Item], *, asked: int | None, also: Sequence[str | None] = ()) -> CallPage:
    """Return the page that has the call or span with the place `asked`, by default the one that has `also[0]`.

    Those in `also`, by their ids, are shown on whatever page. A place behind the last one means the last page.
    """
    place = {id_of(call): number for number, call in enumerate(calls, 1)}
    wanted = [name for name in also if name in place]
    number = asked if asked is not None else place.get(also[0] or "", 1) if also else 1
    first = (max(1, min(number, len(calls))) - 1) // PAGE_CALLS * PAGE_CALLS + 1
    last = min(first + PAGE_CALLS - 1, len(calls))
    here = {id_of(call) for call in calls[first - 1 : last]}
    elsewhere = [id_of(call) for call in calls if is_problem(call) and id_of(call) not in here]
    shown = frozenset([*here, *wanted, *elsewhere[:MOST_PROBLEMS]])
    added = sum(name in shown for name in elsewhere)
    return CallPage(
        first=first,
        last=last,
        shown=shown,
        problems_added=added,
        problems_left_out=len(elsewhere) - added,
        links=_links(len(calls), first),
        place=place,
    )


def _links(calls: int, first: int) -> tuple[PageLink, ...]:
    starts = range(1, calls + 1, PAGE_CALLS)
    if len(starts) < 2:
        return ()
    current = (first - 1) // PAGE_CALLS
    named = [n for n in range(len(starts)) if n in (0, len(starts) - 1) or abs(n - current) <= NEAR]
    return tuple(
        PageLink(
            first=starts[n],
            last=min(starts[n] + PAGE_CALLS - 1, calls),
            current=n == current,
            skipped=n > 0 and n - 1 not in named,
        )
        for n in named
    )
