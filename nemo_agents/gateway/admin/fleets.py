"""`/team/…` and `/model/…`: a fleet is a LiteLLM team, a model group several LiteLLM models of one name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from nemo_agents.admin.wire import TeamRow
from nemo_agents.gateway.admin.access import Access, AdminRoute, Caller
from nemo_agents.gateway.admin.deployments import deployment_row, parse_deployment, refuse_misplaced
from nemo_agents.gateway.admin.faults import bad, not_found
from nemo_agents.gateway.admin.fields import (
    iso,
    keep_ours,
    ours_of,
    parse_budgets,
    parse_fields,
    parse_limit,
    parse_ours,
    refuse_soft_budget,
)
from nemo_agents.gateway.admin.json import json_response
from nemo_agents.gateway.admin.keys import key_rows
from nemo_agents.gateway.state import Gateway
from nemo_agents.gateway.stores.base import FleetRecord
from nemo_agents.money import nanos_to_wire
from nemo_agents.policy.rulewire import first_budget, read_max_parallel, read_shadow

__all__ = ["ROUTES"]


class TeamFields(msgspec.Struct, kw_only=True):
    """What `/team/new` and `/team/update` may set; in an update an absent field stays and null clears."""

    team_id: str | None = None
    team_alias: str | None = None
    max_budget: float | None | UnsetType = UNSET
    budget_duration: str | None | UnsetType = UNSET
    rpm_limit: int | None | UnsetType = UNSET
    tpm_limit: int | None | UnsetType = UNSET
    soft_budget: float | None | UnsetType = UNSET
    models: list[str] | None | UnsetType = UNSET
    metadata: dict[str, Any] | None | UnsetType = UNSET
    blocked: bool | None | UnsetType = UNSET


class TeamNames(msgspec.Struct, kw_only=True):
    """A body that names fleets."""

    team_ids: list[str]


class ModelFields(msgspec.Struct, kw_only=True):
    """One deployment: `litellm_params.model` is `provider/model`, `model_info.team_id` the fleet it belongs to."""

    model_name: str
    litellm_params: dict[str, Any]
    model_info: dict[str, Any] = {}


class ModelName(msgspec.Struct, kw_only=True):
    """A body that names one deployment."""

    id: str


async def _new(gateway: Gateway, _request: Request, _caller: Caller, raw: bytes) -> Response:
    fields = parse_fields(raw, TeamFields)
    name = fields.team_id or fields.team_alias
    if not name:
        raise bad("`team_id` names the fleet.", "team_id")
    if name in gateway.fleets:
        raise bad(f"A fleet named {name!r} exists; use /team/update.", "team_id")
    fleet = _apply(FleetRecord(fleet=name, created_us=gateway.clock.now_us()), fields, gateway.clock.now_us())
    await gateway.put_fleet(fleet)
    return json_response(await _row(gateway, fleet))


async def _update(gateway: Gateway, _request: Request, _caller: Caller, raw: bytes) -> Response:
    fields = parse_fields(raw, TeamFields)
    fleet = _apply(_fleet(gateway, fields.team_id), fields, gateway.clock.now_us())
    await gateway.put_fleet(fleet)
    return json_response({"team_id": fleet.fleet, "data": await _row(gateway, fleet)})


async def _info(gateway: Gateway, request: Request, _caller: Caller, _raw: bytes) -> Response:
    fleet = _fleet(gateway, request.query_params.get("team_id"))
    keys = [g for g in gateway.keyring.grants() if g.fleet == fleet.fleet and g.revoked_us is None]
    return json_response(
        {
            "team_id": fleet.fleet,
            "team_info": await _row(gateway, fleet),
            "keys": await key_rows(gateway, keys),
            "team_memberships": [],
        }
    )


async def _list(gateway: Gateway, _request: Request, _caller: Caller, _raw: bytes) -> Response:
    return json_response([await _row(gateway, fleet) for fleet in gateway.fleets.values()])


async def _delete(gateway: Gateway, _request: Request, _caller: Caller, raw: bytes) -> Response:
    names = parse_fields(raw, TeamNames).team_ids
    deleted = [name for name in names if name in gateway.fleets]
    if not deleted:
        raise not_found("Team")
    for name in deleted:  # its keys first, as LiteLLM does: left alive they would go on without the fleet's budget
        now_us = gateway.clock.now_us()
        for grant in gateway.keyring.grants():
            if grant.fleet == name and grant.revoked_us is None:
                await gateway.put_grant(replace(grant, revoked_us=now_us, updated_us=now_us))
        await gateway.delete_fleet(name)
    return json_response({"deleted_teams": deleted})


async def _model_new(gateway: Gateway, _request: Request, _caller: Caller, raw: bytes) -> Response:
    fields = parse_fields(raw, ModelFields)
    if not fields.model_name:
        raise bad("`model_name` names the model group.", "model_name")
    deployment = parse_deployment(fields.model_name, fields.litellm_params, fields.model_info, gateway.ids.grant_id)
    refuse_misplaced(deployment, configured=gateway.configured, provisioned=gateway.deployments.values())
    await gateway.put_deployment(deployment)
    return json_response(deployment_row(deployment))


async def _model_info(gateway: Gateway, _request: Request, _caller: Caller, _raw: bytes) -> Response:
    rows = [deployment_row(one) for one in (*gateway.configured, *gateway.deployments.values())]
    return json_response({"data": rows})


async def _model_delete(gateway: Gateway, _request: Request, _caller: Caller, raw: bytes) -> Response:
    name = parse_fields(raw, ModelName).id
    if any(one.deployment_id == name for one in gateway.configured):
        raise bad(f"{name} is of the gateway's configuration file: change it there, and start the gateway anew.", "id")
    if not await gateway.delete_deployment(name):
        raise not_found("Model")
    return json_response({"message": f"Model: {name} deleted successfully"})


def _apply(fleet: FleetRecord, fields: TeamFields, now_us: int) -> FleetRecord:
    refuse_soft_budget(fields.soft_budget)
    changes: dict[str, Any] = {"updated_us": now_us}
    if fields.rpm_limit is not UNSET:
        changes["rpm"] = parse_limit(fields.rpm_limit, "rpm_limit")
    if fields.tpm_limit is not UNSET:
        changes["tpm"] = parse_limit(fields.tpm_limit, "tpm_limit")
    if fields.models is not UNSET:
        changes["models"] = tuple(fields.models or ())
    if fields.blocked is not UNSET:
        changes["blocked"] = bool(fields.blocked)
    metadata = fleet.metadata
    if fields.metadata is not UNSET:
        metadata = keep_ours(fields.metadata or {}, fleet.metadata)
        ours = ours_of(metadata)
        changes |= {
            "metadata": metadata,
            "shadow": parse_ours(read_shadow, ours),
            "max_parallel": parse_ours(read_max_parallel, ours),
        }
    changes["budgets"] = parse_budgets(fleet.budgets, fields.max_budget, fields.budget_duration, ours_of(metadata))
    return replace(fleet, **changes)


def _fleet(gateway: Gateway, name: str | None) -> FleetRecord:
    if name is None or name not in gateway.fleets:
        raise not_found("Team")
    return gateway.fleets[name]


async def _row(gateway: Gateway, fleet: FleetRecord) -> TeamRow:
    scope = gateway.fleet_scope(fleet.fleet, now_us=gateway.clock.now_us())
    (balance,) = await gateway.store.balances([scope])
    first = first_budget(fleet.budgets)
    return TeamRow(
        team_id=fleet.fleet,
        team_alias=fleet.fleet,
        models=list(fleet.models),
        spend=nanos_to_wire(balance.posted_nanos),
        max_budget=None if first is None else nanos_to_wire(first.amount_nanos),
        budget_duration=None if first is None else first.duration,
        budget_reset_at=iso(scope.resets_at_us),
        rpm_limit=fleet.rpm,
        tpm_limit=fleet.tpm,
        metadata=fleet.metadata,
        blocked=fleet.blocked,
        created_at=iso(fleet.created_us),
        updated_at=iso(fleet.updated_us),
    )


ROUTES = [
    AdminRoute(method="POST", path="/team/new", access=Access.ADMIN, handler=_new),
    AdminRoute(method="POST", path="/team/update", access=Access.ADMIN, handler=_update),
    AdminRoute(method="GET", path="/team/info", access=Access.ADMIN, handler=_info),
    AdminRoute(method="GET", path="/team/list", access=Access.ADMIN, handler=_list),
    AdminRoute(method="POST", path="/team/delete", access=Access.ADMIN, handler=_delete),
    AdminRoute(method="POST", path="/model/new", access=Access.ADMIN, handler=_model_new),
    AdminRoute(method="GET", path="/model/info", access=Access.ADMIN, handler=_model_info),
    AdminRoute(method="POST", path="/model/delete", access=Access.ADMIN, handler=_model_delete),
]
