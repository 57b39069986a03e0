"""What crewAI says about itself, as spans of a run.

Handlers are coroutines: crewAI runs those one after the other on a loop of its own, in the order of the events and with
the context of whoever caused them, while plain handlers overtake each other on ten threads.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary, WeakSet

from crewai.events import BaseEventListener

from nemo_agents.trace.run import Run, current_run, current_step
from nemo_agents.trace.step import Step
from nemo_agents_crewai import events
from nemo_agents_crewai.seats import seat_of

if TYPE_CHECKING:
    from crewai.events import CrewAIEventsBus

__all__ = ["RunListener", "attached", "listener"]

_EARLY_LINKS_MAX: Final = 1000

_lock: Final = threading.Lock()
_listener: RunListener | None = None


def listener(run: Run | None) -> RunListener:
    """Return the process's listener, made at the first call, and have it record this run, or every one."""
    global _listener  # noqa: PLW0603 - crewAI has one bus per process, and so one listener on it
    with _lock:
        if _listener is None:
            _listener = RunListener()
        _listener.record(run)
        return _listener


def attached() -> RunListener | None:
    """Return the listener, None when none was asked for."""
    return _listener


@dataclass(slots=True, kw_only=True)
class _Made:
    """What a run or step has to show so far: outputs of finished tasks, and what tools gave to those at work."""

    tasks: list[Any] = field(default_factory=list)
    tools: list[Any] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Open:
    """A span that has not ended: of which run, and what of crewAI's it stands for.

    What is `hidden` has no span of its own, and here that of what it lies in.
    """

    run: Run
    span_id: str
    subject: events.Subject
    parent: str | None
    hidden: bool


class RunListener(BaseEventListener):
    """Records crews, flows, tasks, agents, tools, searches in memory and knowledge, and crewAI's own guardrails.

    Model calls are not among them: the gateway has those, and they are put under the span of the agent that made them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._every_run = False
        self._runs: WeakSet[Run] = WeakSet()
        self._open: dict[str, _Open] = {}
        self._early_links: dict[str, list[str]] = {}
        self._made: WeakKeyDictionary[Run | Step, _Made] = WeakKeyDictionary()
        super().__init__()

    def record(self, run: Run | None) -> None:
        """Record this run from now on; None records whichever is current when something happens."""
        if run is None:
            self._every_run = True
        else:
            self._runs.add(run)

    def setup_listeners(self, crewai_event_bus: CrewAIEventsBus) -> None:
        """Register for the events that begin and end something."""
        for begins in events.BEGINNINGS:
            crewai_event_bus.on(begins)(self._begun)
        for ends in events.ENDINGS:
            crewai_event_bus.on(ends)(self._ended)

    def span_of(self, event_id: str, run_id: str) -> str | None:
        """Return the id of the open span that stands for an event in this run, None where there is none (yet)."""
        found = self._open.get(event_id)
        return None if found is None or found.run.id != run_id else found.span_id

    def link(self, request_id: str, event_id: str) -> None:
        """Put a model call under the span of the event that it was made in, now or as soon as it is open."""
        with self._lock:
            found = self._open.get(event_id)
            if found is None:
                if len(self._early_links) < _EARLY_LINKS_MAX:  # ids of events that never become spans
                    self._early_links.setdefault(event_id, []).append(request_id)
                return
        found.run.spans.link(request_id, found.span_id)

    # --- handlers: on crewAI's loop, in the context of the event ---
    async def _begun(self, source: Any, event: Any) -> None:
        beginning = events.begin(source, event)
        place = self._place_of(beginning.llm)
        if place is None:
            return
        run, step = place
        # A crew works with several roles, and has the model of one of them only to be found by.
        seat = None if beginning.subject.kind == "chain" else seat_of(beginning.llm)
        with self._lock:
            parent = self._parent_of(run, beginning, event.parent_event_id)
            around = None if parent is None else self._open[parent].span_id
        if beginning.hidden:
            if around is None:
                return
            span_id = around
        else:
            span_id = run.spans.open(
                beginning.subject.kind,
                beginning.name,
                parent_id=step.span_id if around is None and step is not None else around,
                step=None if step is None else step.label,
                role=None if seat is None else seat.member.name,
                input=beginning.input,
                attributes=beginning.attributes,
            )
        opened = _Open(run=run, span_id=span_id, subject=beginning.subject, parent=parent, hidden=beginning.hidden)
        with self._lock:
            self._open[event.event_id] = opened
            links = self._early_links.pop(event.event_id, [])
        for request_id in links:
            run.spans.link(request_id, span_id)

    async def _ended(self, source: Any, event: Any) -> None:
        ending = events.end(source, event)
        with self._lock:
            event_id = self._opened_by(ending.subject, event.started_event_id)
            closing = [] if event_id is None else self._take(event_id)
        # crewAI lets some stops through without a word about the agent they came out of: what lies inside ends as well.
        for at, each in enumerate(closing, start=1):
            if not each.hidden:
                output = ending.output if at == len(closing) else None
                each.run.spans.close(each.span_id, output=output, error=ending.error)
        if ending.made is not None and (place := self._place_of(ending.llm)) is not None:
            self._keep(*place, ending)

    def _place_of(self, llm: object) -> tuple[Run, Step | None] | None:
        """Return where something happens: where it is current, else where the model that it is about was made for."""
        run, step = current_run(), current_step()
        seat = seat_of(llm)
        if run is None and seat is not None and seat.run is not None:
            run, step = (seat.run.run, seat.run) if isinstance(seat.run, Step) else (seat.run, None)
        if run is None or not (self._every_run or run in self._runs):
            return None
        return run, step

    def _keep(self, run: Run, step: Step | None, ending: events.Ending) -> None:
        """Make what there is so far what the step, or the run, has if it stops now."""
        with self._lock:
            made = self._made.setdefault(run if step is None else step, _Made())
            if ending.subject.kind == "task":
                made.tasks.append(ending.made)
                made.tools.clear()  # the task's output is what came of them
            else:
                made.tools.append(ending.made)
            value = [*made.tasks, *made.tools]
        run.partial(value, step=None if step is None else step.label)

    # --- the spans that are open; under the lock ---
    def _parent_of(self, run: Run, beginning: events.Beginning, event_id: str | None) -> str | None:
        """Return the event of the span around: what crewAI names, else the last one of the task or agent it tells."""
        if event_id is not None and event_id in self._open and self._open[event_id].run is run:
            return event_id
        for subject in beginning.inside:
            if (found := self._last(subject, run)) is not None:
                return found
        return None

    def _opened_by(self, subject: events.Subject, event_id: str | None) -> str | None:
        """Return the event that began what has ended; after a failure the one that crewAI names can be another's."""
        if event_id is not None and event_id in self._open and self._open[event_id].subject == subject:
            return event_id
        return self._last(subject, None)

    def _last(self, subject: events.Subject, run: Run | None) -> str | None:
        for event_id, found in reversed(self._open.items()):
            if found.subject == subject and (run is None or found.run is run):
                return event_id
        return None

    def _take(self, event_id: str) -> list[_Open]:
        """Remove a span and those inside it; return them, innermost first."""
        inner = [child for child, found in self._open.items() if found.parent == event_id]
        return [found for child in inner for found in self._take(child)] + [self._open.pop(event_id)]
