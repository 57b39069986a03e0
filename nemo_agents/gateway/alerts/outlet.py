"""Where events go: the gateway's own log, the store and so the stream, and the webhooks that want them."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Mapping

import structlog

from nemo_agents.admin.wire import EventRow
from nemo_agents.gateway.stores.base import Store
from nemo_agents.policy.alerts import EventDraft, Mark, SpikeTold, budget_mark, spike_told

__all__ = ["History", "Outlet"]

_QUEUE_MAX = 1_000
_TOLD_MAX = 50_000
_PAGE = 500
_LOOK_BACK_PAGES = 10
_log = structlog.get_logger("nemo_agents.gateway")


class History:
    """What was told before, by any gateway: read from the events themselves, so that a restart forgets nothing.

    It is a memory of the latest events. What is older than those is not told twice either: the store refuses a second
    event of one name.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seq: int | None = None
        self.budgets: OrderedDict[Mark, int] = OrderedDict()
        self.spikes: OrderedDict[str, SpikeTold] = OrderedDict()

    async def catch_up(self) -> None:
        """Read the events since the last time; at first the latest ones. Raises StoreUnavailable."""
        if self._seq is None:
            latest = await self._store.events(after=-1, limit=1)
            self._seq = max(0, (latest[-1].seq if latest else 0) - _PAGE * _LOOK_BACK_PAGES)
        while True:
            page = await self._store.events(after=self._seq, limit=_PAGE)
            for event in page:
                self.note(event)
                self._seq = event.seq
            if len(page) < _PAGE:
                return

    def note(self, event: EventRow) -> None:
        """Remember what an event has told."""
        budget, spiked = budget_mark(event), spike_told(event)
        if budget is not None:
            mark, through = budget
            self.budgets[mark] = max(through, self.budgets.pop(mark, 0))
        if spiked is not None:
            self.spikes.pop(spiked[0], None)
            self.spikes[spiked[0]] = spiked[1]
        for told in (self.budgets, self.spikes):
            while len(told) > _TOLD_MAX:
                told.popitem(last=False)


class Outlet:
    """Gives events out. `wanted` says for each webhook which kinds it gets; `stored` is called after each event."""

    def __init__(
        self,
        store: Store,
        history: History,
        *,
        now_us: Callable[[], int],
        new_event_id: Callable[[], str],
        wanted: Mapping[str, frozenset[str]],
        stored: Callable[[], None],
    ) -> None:
        self._store = store
        self._history = history
        self._now_us = now_us
        self._new_event_id = new_event_id
        self._wanted = wanted
        self._stored = stored
        self._queue: deque[EventDraft] = deque()

    def emit(self, draft: EventDraft) -> None:
        """Queue an event; beyond a number that no gateway reaches in a second, the log alone has it."""
        if len(self._queue) >= _QUEUE_MAX:
            _log.error("event dropped", event_kind=draft.kind, message=draft.message)
            return
        self._queue.append(draft)

    async def flush(self) -> None:
        """Store what is queued. Raises StoreUnavailable; what was not stored stays queued."""
        while self._queue:
            await self.publish(self._queue[0])
            self._queue.popleft()

    async def publish(self, draft: EventDraft) -> bool:
        """Store an event and log it; False when it had been stored before. Raises StoreUnavailable."""
        event = EventRow(
            event_id=self._new_event_id(),
            kind=draft.kind,
            at_us=self._now_us(),
            fleet=draft.fleet,
            role=draft.role,
            message=draft.message,
            facts=draft.facts,
        )
        webhooks = [name for name, kinds in self._wanted.items() if draft.kind in kinds]
        seq = await self._store.put_event(event, once=draft.once, webhooks=webhooks)
        self._history.note(event)
        if seq is None:
            return False
        _log.warning(
            event.message,
            event_kind=event.kind,
            event_id=event.event_id,
            seq=seq,
            fleet=event.fleet,
            role=event.role,
            facts=event.facts,
        )
        self._stored()
        return True
