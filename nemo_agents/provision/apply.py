"""Perform a plan, exactly: the flow that changes the gateway, safe to be killed at any point.

A key's secret is chosen here and is in the key store as `pending` before the gateway hears of it; only after
the gateway's answer does it become `active`. Whoever repeats the work finds the pending entry, asks the
gateway whether that key came to be, and either only marks it or sends the same secret again. So there is
never a key whose secret nobody has, nor a second key for one role.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nemo_agents.admin import deployments, fleets, keys
from nemo_agents.admin.calls import Call, Flow, ask
from nemo_agents.admin.wire import DeploymentRow, KeyRow, TeamRow
from nemo_agents.errors import AdminError, ProvisionError, StalePlan
from nemo_agents.provision.groupspec import APPLIED, GroupSpec, live_groups, marks_of, same_deployment
from nemo_agents.provision.mint import Mint, mint_key
from nemo_agents.provision.plan import Change, Plan
from nemo_agents.provision.snapshot import Snapshot, read_snapshot
from nemo_agents.provision.specs import (
    FleetSpec,
    KeySpec,
    applied_mark,
    live_key_spec,
    merged_metadata,
)
from nemo_agents.provision.stored import KeyStore, StoredKey

__all__ = ["DEFAULT_GRACE", "Applied", "apply", "changed_fields", "finish_rotation", "forgiving"]

DEFAULT_GRACE = "24h"


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What apply did: the plan's changes but those that keep."""

    fleet: str
    performed: tuple[Change, ...]


def apply(plan: Plan, store: KeyStore, *, mint: Mint = mint_key) -> Flow[Applied]:
    """Perform the plan's changes in their order.

    Raises ProvisionError when the plan has conflicts, StalePlan when the gateway's side changed since the
    plan was made, KeyStoreError when a secret cannot be kept (before the gateway is told of it).
    """
    _refuse_conflicts(plan)
    live = yield from read_snapshot(plan.gateway_url, plan.fleet, plan.roles)
    if live.fingerprint != plan.fingerprint:
        raise StalePlan(
            f"the gateway's side of {plan.fleet} changed after the plan was made, so nothing was done. "
            f"Make a new plan and read it again."
        )
    performed = tuple(change for change in plan.changes if change.action != "keep")
    for change in performed:
        yield from _perform(change, live, store, mint)
    return Applied(fleet=plan.fleet, performed=performed)


def finish_rotation(gateway_url: str, fleet: str, entry: StoredKey, live_id: str, store: KeyStore) -> Flow[StoredKey]:
    """Bring a pending rotation to its end. `live_id` is the id that the gateway has for the key now."""
    token = entry.public_id
    if live_id != entry.public_id:
        grace = entry.grace or DEFAULT_GRACE
        issued = yield from ask(keys.regenerate(live_id, new_key=entry.secret, grace_period=grace))
        token = issued.token
    return _activate(gateway_url, fleet, entry, token, store)


def forgiving(call: Call[None]) -> Flow[None]:
    """Remove something; that it is gone already is as good."""
    try:
        yield from ask(call)
    except AdminError as error:
        if error.status != 404:
            raise


def _refuse_conflicts(plan: Plan) -> None:
    if plan.conflicts:
        conflict = plan.conflicts[0]
        raise ProvisionError(
            f"a key with the alias {conflict.alias} exists and is not managed here. "
            f"Take it over with `nemo-agents adopt {plan.fleet} {conflict.role} {conflict.public_id}`, "
            f"or rename it."
        )


def _perform(change: Change, live: Snapshot, store: KeyStore, mint: Mint) -> Flow[None]:
    match change.spec:
        case FleetSpec():
            yield from _put_fleet(change.spec, live)
        case GroupSpec():
            yield from _put_group(change.spec, live)
        case KeySpec():
            yield from _put_key(change, change.spec, live, store, mint)
        case None:
            yield from _remove(change, live, store)


def _put_fleet(spec: FleetSpec, live: Snapshot) -> Flow[None]:
    if live.team is None:
        fields = {**_set_fields(spec.wire()), "metadata": merged_metadata({}, spec)}
        yield from ask(fleets.new(spec.fleet, fields))
        return
    metadata = merged_metadata(live.team.metadata, spec)
    yield from ask(fleets.update(spec.fleet, {**changed_fields(live.team, spec.wire()), "metadata": metadata}))


def _put_group(spec: GroupSpec, live: Snapshot) -> Flow[None]:
    """Bring a group's deployments up to date, one after the other.

    It never has a model twice, and is never empty, but for the moment in which the only one that it has is changed.
    What is written carries the mark of the whole group, by which a later plan tells what another hand did since.
    """
    found = live_groups(live.deployments).get(spec.group, ())
    mark = applied_mark(spec)
    kept: set[str] = set()
    written = False
    wanted = _with_ids(spec, found)
    by_id = {_id(row): row for row in found}
    for row in sorted(wanted, key=lambda row: _id(row) in by_id):
        deployment_id = _id(row)
        kept.add(deployment_id)
        has = by_id.get(deployment_id)
        if has is None or not same_deployment(has, row):
            yield from _put_deployment(row, mark, replaces=has is not None)
            written = True
    if not written and mark not in marks_of(by_id[deployment_id] for deployment_id in by_id if deployment_id in kept):
        yield from _put_deployment(wanted[0], mark, replaces=True)
    for deployment_id in by_id:
        if deployment_id not in kept:
            yield from forgiving(deployments.delete(deployment_id))


def _put_deployment(row: DeploymentRow, mark: str, *, replaces: bool) -> Flow[None]:
    if replaces:
        yield from forgiving(deployments.delete(_id(row)))
    info = {**row.model_info, APPLIED: mark}
    yield from ask(
        deployments.new(DeploymentRow(model_name=row.model_name, litellm_params=row.litellm_params, model_info=info))
    )


def _with_ids(spec: GroupSpec, found: Sequence[DeploymentRow]) -> list[DeploymentRow]:
    """Return the wanted rows; one whose model has a deployment keeps that one's id, so that it is only changed."""
    had = {str(row.litellm_params.get("model")): _id(row) for row in reversed(found)}
    rows = spec.deployments()
    taken = {had[model] for model in spec.models if model in had}
    taken |= {_id(row) for row in found} if len(found) == 1 else set()  # the only one goes when another is there
    given: list[DeploymentRow] = []
    for row in rows:
        named = had.get(row.litellm_params["model"])
        if named is None:
            free = (_id(row), *(f"{spec.fleet}/{spec.group}/{n}" for n in range(1, len(rows) + len(taken) + 1)))
            named = next(name for name in free if name not in taken)
            taken.add(named)
        given.append(
            DeploymentRow(
                model_name=row.model_name,
                litellm_params=row.litellm_params,
                model_info={**row.model_info, "id": named},
            )
        )
    return given


def _put_key(change: Change, spec: KeySpec, live: Snapshot, store: KeyStore, mint: Mint) -> Flow[None]:
    row = next((row for row in live.keys if row.token == change.public_id), None)
    entry = store.get(live.gateway_url, spec.fleet, spec.role)
    if row is None:
        yield from _create_key(spec, live.gateway_url, entry, store, mint)
        return
    yield from _bring_up_to_date(spec, row)
    if change.action == "create" and entry is not None:
        _activate(live.gateway_url, spec.fleet, entry, row.token, store)
    if change.action == "rotate" and entry is not None:
        yield from finish_rotation(live.gateway_url, spec.fleet, entry, row.token, store)


def _create_key(spec: KeySpec, gateway_url: str, entry: StoredKey | None, store: KeyStore, mint: Mint) -> Flow[None]:
    fields = {**_set_fields(spec.wire()), "metadata": merged_metadata({}, spec)}
    if entry is not None and entry.state == "pending" and entry.previous_id is None:
        try:
            issued = yield from ask(keys.generate(fields, key=entry.secret))
        except AdminError as error:
            if error.status != 400:
                raise
            # The interrupted attempt did create the key, and it was revoked since: its secret is used up.
        else:
            _activate(gateway_url, spec.fleet, entry, issued.token, store)
            return
    minted = mint()
    entry = StoredKey(role=spec.role, public_id=minted.public_id, secret=minted.secret, state="pending")
    store.put(gateway_url, spec.fleet, entry)
    issued = yield from ask(keys.generate(fields, key=entry.secret))
    _activate(gateway_url, spec.fleet, entry, issued.token, store)


def _bring_up_to_date(spec: KeySpec, row: KeyRow) -> Flow[None]:
    if live_key_spec(row, spec.role) != spec:
        metadata = merged_metadata(row.metadata, spec)
        yield from ask(keys.update(row.token, {**changed_fields(row, spec.wire()), "metadata": metadata}))


def _remove(change: Change, live: Snapshot, store: KeyStore) -> Flow[None]:
    if change.kind == "fleet":
        yield from forgiving(fleets.delete([change.name]))
    elif change.kind == "models":
        for row in live_groups(live.deployments).get(change.name, ()):
            yield from forgiving(deployments.delete(_id(row)))
    elif change.public_id is not None:
        # Forget first: killed in between, the key is still live and the next plan revokes it.
        entry = store.get(live.gateway_url, live.fleet, change.name)
        if entry is not None and change.public_id in (entry.public_id, entry.previous_id):
            store.forget(live.gateway_url, live.fleet, change.name)
        yield from forgiving(keys.delete([change.public_id]))


def _activate(gateway_url: str, fleet: str, entry: StoredKey, token: str, store: KeyStore) -> StoredKey:
    active = replace(entry, public_id=token, state="active", previous_id=None, previous_secret=None, grace=None)
    store.put(gateway_url, fleet, active)
    return active


def _id(row: DeploymentRow) -> str:
    return str(row.model_info.get("id", ""))


def _set_fields(wire: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in wire.items() if value is not None and value != []}


def changed_fields(row: TeamRow | KeyRow, wire: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that the row has not; an empty list or object and none at all are the same."""
    return {key: value for key, value in wire.items() if _or_none(getattr(row, key)) != _or_none(value)}


def _or_none(value: Any) -> Any:
    return None if value in ([], {}) else value
