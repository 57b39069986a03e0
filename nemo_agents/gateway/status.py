"""What every fleet and role has spent and used, now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from nemo_agents.admin.wire import BudgetStatus, FleetStatus, ModelRates, RoleStatus
from nemo_agents.gateway.limiter.base import LimiterUnavailable
from nemo_agents.gateway.state import Gateway
from nemo_agents.gateway.stores.base import StoreUnavailable
from nemo_agents.policy.budgets import BudgetRule, budget_scope
from nemo_agents.policy.keys import Grant
from nemo_agents.policy.ledger import Balance, BudgetScope, ScopeKind
from nemo_agents.policy.limits import RateScope

__all__ = ["fleet_statuses"]

_NO_FLEET = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rates:
    """The rates of a role: its own, its fleet's where that has any, and those of its models by name."""

    role: RateScope
    fleet: RateScope | None
    models: Mapping[str, RateScope]

    def all(self) -> list[RateScope]:
        return [self.role, *([self.fleet] if self.fleet else []), *self.models.values()]


async def fleet_statuses(gateway: Gateway) -> list[FleetStatus]:
    """Return the status of every fleet; keys without a fleet come last, under an empty name.

    Raises StoreUnavailable when the store or the rates cannot be read.
    """
    now_us = gateway.clock.now_us()
    grants = [grant for grant in gateway.keyring.grants() if grant.revoked_us is None]
    names = sorted({*gateway.fleets, *(g.fleet for g in grants if g.fleet)})
    if any(grant.fleet is None for grant in grants):
        names.append(_NO_FLEET)
    rates = {grant.grant_id: _rates(gateway, grant, now_us) for grant in grants}
    used = await _used(gateway, [scope for each in rates.values() for scope in each.all()], now_us)
    now = _Now(gateway=gateway, now_us=now_us, rates=rates, used=used, last_used=await gateway.last_used())
    return [await now.fleet(name, [g for g in grants if (g.fleet or _NO_FLEET) == name]) for name in names]


def _rates(gateway: Gateway, grant: Grant, now_us: int) -> _Rates:
    scopes = gateway.rate_scopes(grant, now_us)
    return _Rates(
        role=scopes[0],
        fleet=next((scope for scope in scopes if scope.kind == "fleet"), None),
        models={limit.model: gateway.rate_scopes(grant, now_us, limit.model)[-1] for limit in grant.model_limits},
    )


async def _used(gateway: Gateway, scopes: Sequence[RateScope], now_us: int) -> Mapping[RateScope, tuple[int, int]]:
    """Return the requests and tokens of the last 60 seconds."""
    apart = list(dict.fromkeys(scopes))
    try:
        return dict(zip(apart, await gateway.limiter.used(now_us, apart), strict=True))
    except LimiterUnavailable as error:
        raise StoreUnavailable(f"the rates cannot be read: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Now:
    """What is known at one moment, for every fleet and role. `rates` and `last_used` are by grant id."""

    gateway: Gateway
    now_us: int
    rates: Mapping[str, _Rates]
    used: Mapping[RateScope, tuple[int, int]]
    last_used: Mapping[str, int | None]

    async def fleet(self, name: str, grants: Sequence[Grant]) -> FleetStatus:
        """Return the status of a fleet with these roles."""
        record = self.gateway.fleets.get(name)
        main = self.gateway.fleet_scope(name, now_us=self.now_us)
        groups = [[main, *self._declared("fleet", name, record.budgets if record else ())]]
        for grant in grants:
            own = self.gateway.role_scope(grant, now_us=self.now_us)
            groups.append([own, *self._declared("role", grant.grant_id, grant.budgets)])
        balances = iter(await self.gateway.store.balances([scope for group in groups for scope in group]))
        of_fleet, *of_roles = [[next(balances) for _ in group] for group in groups]
        scope = next((self.rates[grant.grant_id].fleet for grant in grants), None)
        rpm_used, tpm_used = self.used[scope] if scope else (0, 0)
        return FleetStatus(
            fleet=name,
            spent_nanos=of_fleet[0].posted_nanos,
            held_nanos=of_fleet[0].held_nanos,
            budget_nanos=main.limit_nanos,
            period=main.name,
            resets_at_us=main.resets_at_us,
            budgets=_budgets(of_fleet[1:]),
            rpm=record.rpm if record else None,
            rpm_used=rpm_used,
            tpm=record.tpm if record else None,
            tpm_used=tpm_used,
            shadow=list(record.shadow) if record else [],
            roles=[self._role(grant, some) for grant, some in zip(grants, of_roles, strict=True)],
        )

    def _role(self, grant: Grant, balances: Sequence[Balance]) -> RoleStatus:
        """Return the status of a role; its balances are that of its first budget, then those of all."""
        balance, rates = balances[0], self.rates[grant.grant_id]
        rpm_used, tpm_used = self.used[rates.role]
        expired = grant.expires_us is not None and grant.expires_us <= self.now_us
        return RoleStatus(
            role=grant.role or grant.alias or grant.grant_id,
            key_id=grant.secrets[-1].public_id,
            state="expired" if expired else "blocked" if grant.blocked else "active",
            models=list(grant.models),
            spent_nanos=balance.posted_nanos,
            held_nanos=balance.held_nanos,
            budget_nanos=balance.scope.limit_nanos,
            period=balance.scope.name,
            resets_at_us=balance.scope.resets_at_us,
            alert_at=min(balance.scope.alert_at, default=None),
            rpm=grant.rpm,
            rpm_used=rpm_used,
            tpm=grant.tpm,
            tpm_used=tpm_used,
            last_used_us=self.last_used.get(grant.grant_id),
            guardrails=list(grant.guardrails),
            budgets=_budgets(balances[1:]),
            spike=self.gateway.spikes.get(grant.grant_id),
            shadow=list(grant.shadow),
            model_rates=[_model_rates(model, scope, self.used[scope]) for model, scope in rates.models.items()],
        )

    def _declared(self, kind: ScopeKind, id_: str, rules: Sequence[BudgetRule]) -> list[BudgetScope]:
        """Return every budget, also one that shares its balance with another which binds."""
        return [budget_scope(kind, id_, rule, self.now_us, ZoneInfo(rule.tz)) for rule in rules]


def _model_rates(model: str, scope: RateScope, used: tuple[int, int]) -> ModelRates:
    return ModelRates(model=model, rpm=scope.rpm, rpm_used=used[0], tpm=scope.tpm, tpm_used=used[1])


def _budgets(balances: Sequence[Balance]) -> list[BudgetStatus]:
    return [
        BudgetStatus(
            name=balance.scope.name,
            mode=balance.scope.mode,
            amount_nanos=balance.scope.limit_nanos or 0,
            spent_nanos=balance.posted_nanos,
            held_nanos=balance.held_nanos,
            resets_at_us=balance.scope.resets_at_us,
            alert_at=list(balance.scope.alert_at),
        )
        for balance in balances
    ]
