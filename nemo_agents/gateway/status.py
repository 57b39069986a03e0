"""What every fleet and role has spent and used, now."""

from __future__ import annotations

from nemo_agents.admin.wire import FleetStatus, RoleStatus
from nemo_agents.gateway.state import Gateway
from nemo_agents.policy.keys import Grant
from nemo_agents.policy.ledger import Balance
from nemo_agents.policy.periods import period_name

__all__ = ["fleet_statuses"]

_NO_FLEET = ""


async def fleet_statuses(gateway: Gateway) -> list[FleetStatus]:
    """Return the status of every fleet; keys without a fleet come last, under an empty name."""
    now_us = gateway.clock.now_us()
    grants = [grant for grant in gateway.keyring.grants() if grant.revoked_us is None]
    names = sorted({*gateway.fleets, *(g.fleet for g in grants if g.fleet)})
    if any(grant.fleet is None for grant in grants):
        names.append(_NO_FLEET)
    last_used = await gateway.last_used()
    return [
        await _fleet(gateway, name, [g for g in grants if (g.fleet or _NO_FLEET) == name], last_used, now_us)
        for name in names
    ]


async def _fleet(
    gateway: Gateway, name: str, grants: list[Grant], last_used: dict[str, int | None], now_us: int
) -> FleetStatus:
    own = gateway.fleet_scope(name, now_us=now_us)
    scopes = [gateway.role_scope(grant, now_us=now_us) for grant in grants]
    balance, *of_roles = await gateway.store.balances([own, *scopes])
    record = gateway.fleets.get(name)
    return FleetStatus(
        fleet=name,
        spent_nanos=balance.posted_nanos,
        held_nanos=balance.held_nanos,
        budget_nanos=own.limit_nanos,
        period=period_name(record.budget_duration if record else None),
        resets_at_us=own.resets_at_us,
        roles=[
            _role(gateway, grant, role_balance, last_used.get(grant.grant_id), now_us)
            for grant, role_balance in zip(grants, of_roles, strict=True)
        ],
    )


def _role(gateway: Gateway, grant: Grant, balance: Balance, last_used_us: int | None, now_us: int) -> RoleStatus:
    rpm_used, tpm_used = gateway.windows.used(now_us, "role", grant.grant_id)
    expired = grant.expires_us is not None and grant.expires_us <= now_us
    return RoleStatus(
        role=grant.role or grant.alias or grant.grant_id,
        key_id=grant.secrets[-1].public_id,
        state="expired" if expired else "blocked" if grant.blocked else "active",
        models=list(grant.models),
        spent_nanos=balance.posted_nanos,
        held_nanos=balance.held_nanos,
        budget_nanos=grant.budget_nanos,
        period=period_name(grant.budget_duration),
        resets_at_us=balance.scope.resets_at_us,
        alert_at=grant.alert_at,
        rpm=grant.rpm,
        rpm_used=rpm_used,
        tpm=grant.tpm,
        tpm_used=tpm_used,
        last_used_us=last_used_us,
        guardrails=list(grant.guardrails),
    )
