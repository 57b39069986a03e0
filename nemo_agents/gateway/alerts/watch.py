"""The watch over budgets: shortly after money moved, what is posted is read from the store and compared.

The path of a call only notes which budgets it touched. A second later the watch reads their balances, after whatever
was queued is committed. Every settlement is followed by such a look at what it left, so that of many calls and gateways
at once the last one sees the sum; and what two of them see at once, the store takes once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from zoneinfo import ZoneInfo

import structlog

from nemo_agents.admin.wire import RunRow
from nemo_agents.gateway.alerts.outlet import History, Outlet
from nemo_agents.gateway.outages import Outage
from nemo_agents.gateway.state import RUN_ALERT_AT, Gateway, Settled
from nemo_agents.gateway.stores.base import LogFilter, StoreUnavailable
from nemo_agents.policy.alerts import Owner, budget_event, due, exhausted_by, overrun_event
from nemo_agents.policy.budgets import BudgetRule, budget_scope
from nemo_agents.policy.keys import Grant
from nemo_agents.policy.ledger import BudgetScope, HoldRefused, ScopeKind

__all__ = ["Watch"]

COLLECT_S = 1.0
RETRY_S = 5.0
_TOUCHED_MAX = 10_000
_LOOK_BACK_US = 3_600_000_000  # what a gateway may have left untold when it was killed
_PAGE = 500
_RUN_PAGES_MAX = 20
_READ_AT_ONCE = 500
_log = structlog.get_logger("nemo_agents.gateway")

_Key = tuple[ScopeKind, str, str]


class Watch:
    """Watches every budget of one gateway. `settled`, `refused` and `everything` neither wait nor do I/O."""

    def __init__(
        self,
        gateway: Gateway,
        outlet: Outlet,
        history: History,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._gateway = gateway
        self._outlet = outlet
        self._history = history
        self._sleep = sleep
        self._touched: dict[_Key, BudgetScope] = {}
        self._refused: dict[_Key, BudgetScope] = {}
        self._everything = True  # a gateway that was killed may have left something untold
        self._woken = asyncio.Event()
        self._woken.set()

    def settled(self, settled: Settled) -> None:
        """Note which budgets a settlement touched, and a call that cost more than its hold."""
        for balance in settled.balances:
            if balance.scope.kind != "run" or balance.scope.limit_nanos is not None:
                self._touch(self._touched, balance.scope)
        if settled.posted_nanos > settled.held_nanos:
            self._outlet.emit(
                overrun_event(
                    request_id=settled.request_id,
                    fleet=settled.grant.fleet,
                    role=settled.grant.role,
                    held_nanos=settled.held_nanos,
                    posted_nanos=settled.posted_nanos,
                )
            )
        self._woken.set()

    def refused(self, refused: HoldRefused) -> None:
        """Note which budgets have too little left for a call."""
        for scope in exhausted_by(refused):
            self._touch(self._refused, scope)
            self._woken.set()

    def everything(self) -> None:
        """Look at every budget at the next look, as after holds expired that no call here knows of."""
        self._everything = True
        self._woken.set()

    def wake(self) -> None:
        """Look soon, also when no budget was touched: an event is queued."""
        self._woken.set()

    def _touch(self, among: dict[_Key, BudgetScope], scope: BudgetScope) -> None:
        if len(among) >= _TOUCHED_MAX:  # more than are worth remembering: look at all
            among.clear()
            self._everything = True
        among[scope.kind, scope.id, scope.period] = scope

    async def run(self) -> None:
        """Look at what was touched, until cancelled."""
        outage = Outage(_log, "budgets cannot be watched")
        while True:
            await self._woken.wait()
            await self._sleep(COLLECT_S)
            self._woken.clear()
            try:
                await self.look()
                outage.over()
            except Exception as error:  # noqa: BLE001 - whatever it came upon, what was touched is looked at again
                if isinstance(error, StoreUnavailable):
                    outage.met(error)
                else:
                    _log.exception("budgets cannot be watched")
                self._woken.set()
                await self._sleep(RETRY_S)

    async def look(self) -> None:
        """Read the balances of what was touched and tell what is due. Raises StoreUnavailable; then nothing is lost."""
        touched, refused, everything = self._touched, self._refused, self._everything
        self._touched, self._refused, self._everything = {}, {}, False
        try:
            await self._outlet.flush()
            await self._gateway.store.flush()
            await self._look(touched, refused, everything=everything)
        except BaseException:
            self._touched = touched | self._touched
            self._refused = refused | self._refused
            self._everything = self._everything or everything
            raise

    async def _look(
        self, touched: dict[_Key, BudgetScope], refused: dict[_Key, BudgetScope], *, everything: bool
    ) -> None:
        now_us = self._gateway.clock.now_us()
        grants = {grant.grant_id: grant for grant in self._gateway.keyring.grants()}
        scopes = self._of_owners(grants, [*touched.values(), *refused.values()], now_us)
        if everything:
            scopes = list(dict.fromkeys([*scopes, *self._all(grants, now_us), *await self._of_runs(now_us)]))
        for start in range(0, len(scopes), _READ_AT_ONCE):
            await self._tell(scopes[start : start + _READ_AT_ONCE], refused, grants)

    async def _tell(
        self, scopes: Sequence[BudgetScope], refused: dict[_Key, BudgetScope], grants: dict[str, Grant]
    ) -> None:
        balances = await self._gateway.store.balances(scopes)
        too_little = [
            scope
            for scope in scopes
            if scope.guard_nanos is not None
            and (same := refused.get((scope.kind, scope.id, scope.period))) is not None
            and scope.limit_nanos == same.limit_nanos
        ]
        if not due(balances, self._history.budgets, refused=too_little):
            return
        await self._history.catch_up()  # something is to be told, which is rare: see what others have told meanwhile
        for alert in due(balances, self._history.budgets, refused=too_little):
            await self._outlet.publish(budget_event(alert, _owner(alert.balance.scope, grants)))

    # --- which budgets ------------------------------------------------------------------------------------------
    def _of_owners(self, grants: dict[str, Grant], noted: Sequence[BudgetScope], now_us: int) -> list[BudgetScope]:
        """Return every budget of those whose budgets were noted, as declared now; and those noted in ended periods."""
        owners = dict.fromkeys((scope.kind, scope.id) for scope in noted)
        declared = [scope for kind, id_ in owners for scope in self._declared(kind, id_, grants, now_us)]
        known = {(scope.kind, scope.id, scope.period) for scope in declared}
        rest = [scope for scope in noted if (scope.kind, scope.id, scope.period) not in known]
        return list(dict.fromkeys([*declared, *rest]))

    def _all(self, grants: dict[str, Grant], now_us: int) -> Iterable[BudgetScope]:
        """Yield every budget there is, now and as it was before a period that has just begun."""
        for at_us in (now_us, now_us - _LOOK_BACK_US):
            for grant in grants.values():
                if grant.revoked_us is None:
                    yield from self._declared("role", grant.grant_id, grants, at_us)
            for fleet in list(self._gateway.fleets):
                yield from self._declared("fleet", fleet, grants, at_us)

    def _declared(self, kind: ScopeKind, id_: str, grants: dict[str, Grant], at_us: int) -> list[BudgetScope]:
        rules: Sequence[BudgetRule] = ()
        if kind == "role" and id_ in grants:
            rules = grants[id_].budgets
        elif kind == "fleet" and id_ in self._gateway.fleets:
            rules = self._gateway.fleets[id_].budgets
        return [budget_scope(kind, id_, rule, at_us, ZoneInfo(rule.tz)) for rule in rules]

    async def _of_runs(self, now_us: int) -> list[BudgetScope]:
        """Return the budgets of the runs of the last hour."""
        found: list[BudgetScope] = []
        before: str | None = None
        for _ in range(_RUN_PAGES_MAX):
            page = await self._gateway.store.runs(
                LogFilter(since_us=now_us - _LOOK_BACK_US), before=before, limit=_PAGE
            )
            found += [_run_scope(run) for run in page.runs if run.budget_nanos is not None and run.grouped]
            before = page.next
            if before is None:
                break
        return found


def _run_scope(run: RunRow) -> BudgetScope:
    return BudgetScope(
        kind="run",
        id=f"{run.fleet or ''}/{run.run_id}",
        period="total",
        limit_nanos=run.budget_nanos,
        alert_at=RUN_ALERT_AT,
        name="run",
    )


def _owner(scope: BudgetScope, grants: dict[str, Grant]) -> Owner:
    """Return whose budget it is, by the name people know."""
    if scope.kind == "fleet":
        return Owner(name=scope.id, fleet=scope.id)
    if scope.kind == "run":
        fleet, _, run_id = scope.id.rpartition("/")
        return Owner(name=run_id, fleet=fleet or None)
    grant = grants.get(scope.id)
    if grant is None:
        return Owner(name=scope.id)
    return Owner(name=grant.role or grant.alias or grant.grant_id, fleet=grant.fleet, role=grant.role)
