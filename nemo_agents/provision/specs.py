"""What provisioning keeps on the gateway, as values: a fleet, its model groups, its roles' keys.

A spec is built from a declaration or read from a live row; both give the same normal form, so that comparing
them is comparing meaning. Wire format: LiteLLM's `/team`, `/model` and `/key`; our own facts travel in
`metadata.nemo`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Final

import msgspec

from nemo_agents.admin.wire import DeploymentRow, KeyRow, TeamRow
from nemo_agents.errors import ProvisionError
from nemo_agents.money import format_nanos, nanos_from_wire, nanos_to_wire
from nemo_agents.policy.periods import DURATION_OF
from nemo_agents.roles import AgentRole, Budget, FleetDeclaration, ModelGroup, format_count

__all__ = [
    "FleetSpec",
    "GroupSpec",
    "KeySpec",
    "Spec",
    "applied_mark",
    "budget_text",
    "fleet_spec",
    "group_spec",
    "is_managed",
    "key_alias",
    "key_spec",
    "live_fleet_spec",
    "live_key_spec",
    "merged_metadata",
    "nemo_metadata",
]

MARK: Final = "nemo"
_PERIODS: Final = {duration: period for period, duration in DURATION_OF.items()}


class FleetSpec(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="fleet"):
    """A fleet's own budget and limits. `budget_duration` is LiteLLM's text, None for never."""

    fleet: str
    budget_nanos: int | None = None
    budget_duration: str | None = None
    alert_at: float | None = None
    rpm: int | None = None
    tpm: int | None = None

    @property
    def name(self) -> str:
        """The fleet's name."""
        return self.fleet

    def wire(self) -> dict[str, Any]:
        """Return every field of `/team/new` but the metadata."""
        return {**_budget_wire(self), "rpm_limit": self.rpm, "tpm_limit": self.tpm}

    def facts(self) -> dict[str, Any]:
        """Return what goes into `metadata.nemo`."""
        return {"managed": True, "alert_at": self.alert_at}

    def texts(self) -> dict[str, str | None]:
        """Return the fields as people read them."""
        return {**_budget_texts(self), "rpm": _count_text(self.rpm), "tpm": _count_text(self.tpm)}


class KeySpec(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="role"):
    """A role's key: `models` allowed, limits, budget, guardrails (the fleet's included) and tools."""

    fleet: str
    role: str
    alias: str
    models: tuple[str, ...]
    rpm: int | None = None
    tpm: int | None = None
    max_parallel: int | None = None
    budget_nanos: int | None = None
    budget_duration: str | None = None
    alert_at: float | None = None
    guardrails: tuple[str, ...] = ()
    tools: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        """The role's name."""
        return self.role

    def wire(self) -> dict[str, Any]:
        """Return every field of `/key/generate` but the secret and the metadata."""
        return {
            "key_alias": self.alias,
            "team_id": self.fleet,
            "models": list(self.models),
            "rpm_limit": self.rpm,
            "tpm_limit": self.tpm,
            "max_parallel_requests": self.max_parallel,
            **_budget_wire(self),
            "guardrails": list(self.guardrails),
        }

    def facts(self) -> dict[str, Any]:
        """Return what goes into `metadata.nemo`."""
        tools = None if self.tools is None else list(self.tools)
        return {"managed": True, "role": self.role, "alert_at": self.alert_at, "tools": tools}

    def texts(self) -> dict[str, str | None]:
        """Return the fields as people read them."""
        return {
            "alias": self.alias,
            "rpm": _count_text(self.rpm),
            "tpm": _count_text(self.tpm),
            "max_parallel": _count_text(self.max_parallel),
            **_budget_texts(self),
            "models": ", ".join(self.models),
            "guardrails": ", ".join(self.guardrails) or None,
            "tools": None if self.tools is None else ", ".join(self.tools) or "none",
        }


class GroupSpec(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="models"):
    """A model group: `provider/model` in the order of trying; deployment n has order n, from 1."""

    _WEIGHT: ClassVar[int] = 1

    fleet: str
    group: str
    models: tuple[str, ...]

    @property
    def name(self) -> str:
        """The group's name."""
        return self.group

    def deployments(self) -> tuple[DeploymentRow, ...]:
        """Return the rows of `/model/new`, one per model."""
        return tuple(
            DeploymentRow(
                model_name=self.group,
                litellm_params={"model": model, "order": n, "weight": self._WEIGHT},
                model_info={"id": f"{self.fleet}/{self.group}/{n}", "team_id": self.fleet},
            )
            for n, model in enumerate(self.models, start=1)
        )

    def texts(self) -> dict[str, str | None]:
        """Return the fields as people read them."""
        return {"models": ", ".join(self.models)}


Spec = FleetSpec | KeySpec | GroupSpec


# --- from a declaration
def fleet_spec(fleet: FleetDeclaration) -> FleetSpec:
    """Return what a declaration wants of the fleet itself."""
    return FleetSpec(fleet=fleet.name, **_declared_budget(fleet.budget), rpm=fleet.rpm, tpm=fleet.tpm)


def key_spec(fleet: FleetDeclaration, role: AgentRole) -> KeySpec:
    """Return what a declaration wants of one role's key."""
    return KeySpec(
        fleet=fleet.name,
        role=role.name,
        alias=key_alias(fleet.name, role.name),
        models=role.models,
        rpm=role.rpm,
        tpm=role.tpm,
        max_parallel=role.max_parallel,
        **_declared_budget(role.budget),
        guardrails=tuple(guardrail.name for guardrail in fleet.effective_guardrails(role)),
        tools=role.tools,
    )


def group_spec(fleet: str, group: ModelGroup) -> GroupSpec:
    """Return what a declaration wants of one model group."""
    return GroupSpec(fleet=fleet, group=group.name, models=group.models)


def key_alias(fleet: str, role: str) -> str:
    """Return the alias of a role's key."""
    return f"{fleet}/{role}"


# --- from a live row
def live_fleet_spec(row: TeamRow) -> FleetSpec:
    """Return what the gateway has of a fleet. Raises ProvisionError for an impossible amount."""
    nemo = nemo_metadata(row.metadata)
    budget = _live_budget(row.max_budget, row.budget_duration, nemo, row.team_id)
    return FleetSpec(fleet=row.team_id, **budget, rpm=row.rpm_limit, tpm=row.tpm_limit)


def live_key_spec(row: KeyRow, role: str) -> KeySpec:
    """Return what the gateway has of a role's key. Raises ProvisionError for an impossible amount."""
    nemo = nemo_metadata(row.metadata)
    tools = nemo.get("tools")
    return KeySpec(
        fleet=row.team_id or "",
        role=role,
        alias=row.key_alias or "",
        models=tuple(row.models),
        rpm=row.rpm_limit,
        tpm=row.tpm_limit,
        max_parallel=row.max_parallel_requests,
        **_live_budget(row.max_budget, row.budget_duration, nemo, row.key_alias or row.token),
        guardrails=tuple(row.guardrails or ()),
        tools=tuple(sorted(str(tool) for tool in tools)) if isinstance(tools, list) else None,
    )


def nemo_metadata(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return our part of a row's metadata; empty when there is none."""
    nemo = metadata.get(MARK)
    return nemo if isinstance(nemo, Mapping) else {}


def is_managed(metadata: Mapping[str, Any]) -> bool:
    """Say whether provisioning owns the row."""
    return nemo_metadata(metadata).get("managed") is True


# --- marks
def applied_mark(spec: FleetSpec | KeySpec) -> str:
    """Return the SHA-256 (hex) of a spec's canonical JSON: what `metadata.nemo.applied` records."""
    canonical = msgspec.json.encode(msgspec.to_builtins(spec), order="deterministic")
    return hashlib.sha256(canonical).hexdigest()


def merged_metadata(live: Mapping[str, Any], spec: FleetSpec | KeySpec) -> dict[str, Any]:
    """Return the live metadata with our part brought up to date; what others wrote stays as it is."""
    nemo = {**nemo_metadata(live), **spec.facts(), "applied": applied_mark(spec)}
    return {**live, MARK: nemo}


# --- budgets
def budget_text(nanos: int | None, duration: str | None) -> str | None:
    """Write a budget as people do: `$20/day`; a duration that is not ours is shown as it is: `$20/30d`."""
    if nanos is None:
        return None
    return f"{format_nanos(nanos)}/{_PERIODS.get(duration, duration)}"


def _declared_budget(budget: Budget | None) -> dict[str, Any]:
    if budget is None:
        return {}
    # A JSON number carries 15 digits: what is compared later is what the wire can bring back.
    nanos = nanos_from_wire(nanos_to_wire(budget.amount_nanos))
    return {
        "budget_nanos": nanos,
        "budget_duration": DURATION_OF[budget.period],
        "alert_at": budget.alert_at,
    }


def _live_budget(max_budget: float | None, duration: str | None, nemo: Mapping[str, Any], owner: str) -> dict[str, Any]:
    if max_budget is None:
        return {}
    try:
        nanos = nanos_from_wire(max_budget)
    except ValueError as error:
        raise ProvisionError(f"the gateway's budget of {owner} cannot be read: {error}") from None
    alert_at = nemo.get("alert_at")
    number = float(alert_at) if isinstance(alert_at, (int, float)) else None
    return {"budget_nanos": nanos, "budget_duration": _same_duration(duration), "alert_at": number}


def _same_duration(duration: str | None) -> str | None:
    """Return the duration as we write it: gateways may answer `24h` or `1w` to what was `1d` or `7d`."""
    if duration is None or re.fullmatch(r"\d+(s|m|h|d|w|mo)", duration) is None:
        return duration
    return {"24h": "1d", "1w": "7d"}.get(duration, duration)


def _budget_wire(spec: FleetSpec | KeySpec) -> dict[str, Any]:
    amount = None if spec.budget_nanos is None else nanos_to_wire(spec.budget_nanos)
    return {"max_budget": amount, "budget_duration": spec.budget_duration}


def _budget_texts(spec: FleetSpec | KeySpec) -> dict[str, str | None]:
    alert_at = None if spec.alert_at is None else f"{spec.alert_at * 100:g}%"
    return {"budget": budget_text(spec.budget_nanos, spec.budget_duration), "alert_at": alert_at}


def _count_text(count: int | None) -> str | None:
    return None if count is None else format_count(count)
