"""Decide what has to change on the gateway so that a fleet is as declared: values in, a value out.

A plan names every thing that provisioning looks at, the unchanged ones too, in the order in which apply
performs it: the fleet, its model groups, its roles' keys, and at the end what is declared no more (but before the
model groups one whose name is to be that of a model).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from nemo_agents.admin.wire import DeploymentRow, KeyRow, TeamRow
from nemo_agents.policy.budgets import BudgetRule
from nemo_agents.provision.groupspec import are_alike, live_group_spec, live_groups, marks_of
from nemo_agents.provision.snapshot import Snapshot
from nemo_agents.provision.specs import (
    FleetSpec,
    GroupSpec,
    KeySpec,
    Spec,
    applied_mark,
    fleet_spec,
    group_spec,
    is_managed,
    key_spec,
    live_fleet_spec,
    live_key_spec,
    nemo_metadata,
)
from nemo_agents.provision.stored import StoredKey
from nemo_agents.provision.texts import budget_text, period_text
from nemo_agents.roles import Exposure, FleetDeclaration

__all__ = [
    "SYMBOLS",
    "Action",
    "Change",
    "Conflict",
    "FieldChange",
    "Kind",
    "Plan",
    "plan",
    "plan_destroy",
]

Action = Literal["create", "update", "rotate", "revoke", "keep"]
Kind = Literal["fleet", "models", "role"]
SYMBOLS: Final[dict[Action, str]] = {"create": "+", "update": "~", "rotate": "±", "revoke": "-", "keep": "="}

_FINISH = "finishes what was interrupted"
_NO_SECRET = "its secret is not in this key store; `nemo-agents rotate` issues a new one"  # noqa: S105 - a sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldChange:
    """One field, before and after, as people read it; None is "not set"."""

    field: str
    old: str | None
    new: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One thing and what is done to it.

    `spec` is what it shall be (None when it shall not be); `public_id` the live key; `drift` says that
    another hand changed it since it was last applied.
    """

    action: Action
    kind: Kind
    name: str
    spec: Spec | None = None
    public_id: str | None = None
    fields: tuple[FieldChange, ...] = ()
    drift: bool = False
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """A role whose alias is taken by a key that provisioning does not own; apply refuses."""

    role: str
    alias: str
    public_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that apply does, and the fingerprint of the live side that it rests on. No secrets."""

    gateway_url: str
    fleet: str
    fingerprint: str
    changes: tuple[Change, ...]
    conflicts: tuple[Conflict, ...] = ()
    exposure: tuple[Exposure, ...] = ()
    in_shadow: tuple[str, ...] = ()  # budgets that hold nothing, each with whose it is

    @property
    def is_empty(self) -> bool:
        """Whether the gateway is as declared already."""
        return not self.conflicts and all(change.action == "keep" for change in self.changes)

    @property
    def roles(self) -> tuple[str, ...]:
        """The declared roles: what a snapshot to compare with must look for."""
        declared = [change.name for change in self.changes if isinstance(change.spec, KeySpec)]
        return (*declared, *(conflict.role for conflict in self.conflicts))

    def count(self, action: Action) -> int:
        """Return how many things this happens to: the fleet, its model groups and its roles alike."""
        return sum(change.action == action for change in self.changes)


def plan(desired: FleetDeclaration, live: Snapshot, stored: Sequence[StoredKey]) -> Plan:
    """Return the plan that makes `live` as `desired`; `stored` is what the local key store has of the fleet.

    Raises ProvisionError when a live amount of money cannot be read.
    """
    entries = {entry.role: entry for entry in stored}
    decided = [_role(key_spec(desired, role), live, entries.get(role.name)) for role in desired.roles]
    groups = {group.name: group_spec(desired.name, group) for group in desired.models}
    found = live_groups(live.deployments)
    gone = [name for name in found if name not in groups]
    listed = {model for spec in groups.values() for model in spec.models}
    first = [name for name in gone if name in listed]  # a group holds models only: it goes before it may be listed
    in_turn = sorted(groups.items(), key=lambda item: item[0] not in found)  # likewise what other groups held
    return Plan(
        gateway_url=live.gateway_url,
        fleet=desired.name,
        fingerprint=live.fingerprint,
        changes=(
            _fleet(fleet_spec(desired), live.team),
            *(_gone("models", name) for name in first),
            *(_group(spec, found.get(name)) for name, spec in in_turn),
            *(item for item in decided if isinstance(item, Change)),
            *_surplus_keys(live, decided),
            *(_gone("models", name) for name in gone if name not in first),
        ),
        conflicts=tuple(item for item in decided if isinstance(item, Conflict)),
        exposure=desired.worst_case(),
        in_shadow=desired.in_shadow(),
    )


def plan_destroy(live: Snapshot) -> Plan:
    """Return the plan that revokes the fleet's managed keys and removes its groups and itself."""
    changes = [_revoke(row) for row in live.managed_keys()]
    changes.extend(_gone("models", name) for name in live_groups(live.deployments))
    foreign = len(live.foreign_keys())
    if live.team is not None and foreign:
        note = f"stays: {foreign} of its keys are not managed here"
        changes.append(Change(action="keep", kind="fleet", name=live.fleet, note=note))
    elif live.team is not None:
        changes.append(_gone("fleet", live.fleet))
    return Plan(gateway_url=live.gateway_url, fleet=live.fleet, fingerprint=live.fingerprint, changes=tuple(changes))


def _fleet(spec: FleetSpec, row: TeamRow | None) -> Change:
    if row is None:
        return Change(action="create", kind="fleet", name=spec.name, spec=spec)
    live = live_fleet_spec(row)
    fields = _differences(live, spec)
    if not is_managed(row.metadata):
        notes = ["exists already; provisioning takes it over", _counts_anew(live.budgets, spec.budgets)]
        note = "; ".join(text for text in notes if text)
        return Change(action="update", kind="fleet", name=spec.name, spec=spec, fields=fields, note=note)
    action: Action = "update" if fields else "keep"
    return Change(
        action=action,
        kind="fleet",
        name=spec.name,
        spec=spec,
        fields=fields,
        drift=_drifted(live, row, fields),
        note=_counts_anew(live.budgets, spec.budgets),
    )


def _group(spec: GroupSpec, rows: tuple[DeploymentRow, ...] | None) -> Change:
    if not rows:
        return Change(action="create", kind="models", name=spec.name, spec=spec)
    live = live_group_spec(spec.fleet, spec.group, rows)
    fields = _differences(live, spec)
    if not fields and not are_alike(rows):
        fields = (FieldChange(field="options", old="not alike in all deployments", new="as declared"),)
    marks = marks_of(rows)
    return Change(
        action="update" if fields else "keep",
        kind="models",
        name=spec.name,
        spec=spec,
        fields=fields,
        drift=bool(fields and marks) and applied_mark(live) not in marks,
    )


def _role(spec: KeySpec, live: Snapshot, entry: StoredKey | None) -> Change | Conflict:
    row = _key_of(spec, live, entry)
    if row is None:
        taken = live.key_by_alias(spec.alias)
        if taken is not None:
            return Conflict(role=spec.role, alias=spec.alias, public_id=taken.token)
        return _create(spec, entry)
    has = live_key_spec(row, spec.role)
    fields = _differences(has, spec)
    action, note = _next_step(row, entry, changed=bool(fields))
    notes = [note, _counts_anew(has.budgets, spec.budgets), "it is blocked" if row.blocked else None]
    return Change(
        action=action,
        kind="role",
        name=spec.role,
        spec=spec,
        public_id=row.token,
        fields=fields,
        drift=_drifted(has, row, fields),
        note="; ".join(text for text in notes if text) or None,
    )


def _counts_anew(had: Sequence[BudgetRule], wants: Sequence[BudgetRule]) -> str | None:
    """Say whose count does not go on: spend is counted by period and time zone, each for itself.

    The gateway goes on with a count that a budget had before, where its period is not over; a plan cannot see that.
    """
    known = {(period_text(rule.duration), rule.tz) for rule in had}
    new = [rule for rule in wants if (period_text(rule.duration), rule.tz) not in known]
    if not known or not new:
        return None
    return f"another count for {' and '.join(budget_text(rule) for rule in new)}: a new one, or the one it had"


def _create(spec: KeySpec, entry: StoredKey | None) -> Change:
    if entry is None:
        return Change(action="create", kind="role", name=spec.role, spec=spec)
    if entry.state == "pending" and entry.previous_id is None:
        return Change(action="create", kind="role", name=spec.role, spec=spec, note=_FINISH)
    note = "its key is gone from the gateway; a new one is issued"
    return Change(action="create", kind="role", name=spec.role, spec=spec, drift=True, note=note)


def _next_step(row: KeyRow, entry: StoredKey | None, *, changed: bool) -> tuple[Action, str | None]:
    """Say what a live key needs, given what the key store has of it."""
    update: Action = "update" if changed else "keep"
    if entry is None:
        return update, _NO_SECRET
    if entry.state == "pending" and entry.previous_id is not None:
        if row.token in (entry.public_id, entry.previous_id):
            return "rotate", _FINISH
        return update, _NO_SECRET
    if row.token != entry.public_id:
        return update, _NO_SECRET
    return ("create", _FINISH) if entry.state == "pending" else (update, None)


def _key_of(spec: KeySpec, live: Snapshot, entry: StoredKey | None) -> KeyRow | None:
    """Return the role's key: of several, the one with the right alias, else the one whose secret is here."""
    rows = live.keys_of(spec.role)
    known = {entry.public_id, entry.previous_id} if entry else set()
    ranked = sorted(rows, key=lambda row: (row.key_alias != spec.alias, row.token not in known, row.token))
    return ranked[0] if ranked else None


def _surplus_keys(live: Snapshot, decided: Sequence[Change | Conflict]) -> list[Change]:
    """Return the revocation of every key that is ours and that no declared role uses."""
    used = {item.public_id for item in decided}
    return [_revoke(row) for row in live.managed_keys() if row.token not in used]


def _revoke(row: KeyRow) -> Change:
    role = str(nemo_metadata(row.metadata).get("role") or row.key_alias or row.token)
    return Change(action="revoke", kind="role", name=role, public_id=row.token)


def _gone(kind: Kind, name: str) -> Change:
    return Change(action="revoke", kind=kind, name=name)


def _differences(old: Spec, new: Spec) -> tuple[FieldChange, ...]:
    before, after = old.texts(), new.texts()
    fields = tuple(
        FieldChange(field=field, old=before[field], new=after[field])
        for field in after
        if before[field] != after[field]
    )
    # Texts are for people and may round: never let a real difference pass for none.
    return fields or (() if old == new else (FieldChange(field="exact values", old="other", new="as declared"),))


def _drifted(live: FleetSpec | KeySpec, row: TeamRow | KeyRow, fields: tuple[FieldChange, ...]) -> bool:
    """Say whether another hand made the difference: live is neither as declared nor as last applied."""
    applied = nemo_metadata(row.metadata).get("applied")
    return bool(fields) and isinstance(applied, str) and applied != applied_mark(live)
