"""What provisioning keeps on the gateway, as values: a fleet, its model groups, its roles' keys.

A spec is built from a declaration or read from a live row; both give the same normal form, so that comparing
them is comparing meaning. Wire format: LiteLLM's `/team`, `/model` and `/key`; our own facts travel in
`metadata.nemo`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar

import msgspec

from nemo_agents.admin.wire import KeyRow, TeamRow
from nemo_agents.durations import DURATION_OF, period_order
from nemo_agents.errors import ProvisionError
from nemo_agents.money import format_nanos, nanos_from_wire, nanos_to_wire
from nemo_agents.policy.budgets import BudgetRule, LoopRule, ModelLimit
from nemo_agents.policy.rulewire import (
    RuleFault,
    budget_facts,
    cache_fact,
    first_budget,
    loop_fact,
    model_facts,
    model_fields,
    read_budgets,
    read_cache_ttl_s,
    read_loop,
    read_max_parallel,
    read_model_limits,
    read_request_nanos,
    read_shadow,
)
from nemo_agents.provision.groupspec import GroupSpec, group_spec
from nemo_agents.provision.texts import (
    budget_texts,
    cache_text,
    loop_text,
    model_limit_text,
    period_text,
    rate_texts,
)
from nemo_agents.roles import AgentRole, FleetDeclaration
from nemo_agents.rules import Budget

__all__ = [
    "FleetSpec",
    "GroupSpec",
    "KeySpec",
    "Spec",
    "applied_mark",
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
_LOOP: Final[LoopRule | None] = LoopRule()
_MODEL_MAPS: Final = ("model_rpm_limit", "model_tpm_limit")

_T = TypeVar("_T")


class FleetSpec(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="fleet"):
    """A fleet's own budgets and limits; `shadow` names the rates that record and never refuse."""

    fleet: str
    budgets: tuple[BudgetRule, ...] = ()
    rpm: int | None = None
    tpm: int | None = None
    max_parallel: int | None = None
    shadow: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The fleet's name."""
        return self.fleet

    def wire(self) -> dict[str, Any]:
        """Return every field of `/team/new` but the metadata."""
        return {**_budget_wire(self.budgets), "rpm_limit": self.rpm, "tpm_limit": self.tpm}

    def facts(self) -> dict[str, Any]:
        """Return what `metadata.nemo` says; None where it says nothing."""
        return {
            "managed": True,
            **budget_facts(self.budgets),
            "max_parallel": self.max_parallel,
            "shadow": list(self.shadow) or None,
        }

    def texts(self) -> dict[str, str | None]:
        """Return the fields as people read them."""
        return {**budget_texts(self.budgets), **rate_texts(self, self.shadow)}


class KeySpec(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="role"):
    """A role's key: `models` allowed, limits, budgets, guardrails (the fleet's included) and tools.

    `loop` None looks for no loops; `request_nanos` is the price of a request where no other is known; `cache_ttl_s` is
    for how many seconds an answer is given again, None for never.
    """

    fleet: str
    role: str
    alias: str
    models: tuple[str, ...]
    rpm: int | None = None
    tpm: int | None = None
    max_parallel: int | None = None
    shadow: tuple[str, ...] = ()
    model_limits: tuple[ModelLimit, ...] = ()
    budgets: tuple[BudgetRule, ...] = ()
    loop: LoopRule | None = _LOOP
    request_nanos: int | None = None
    cache_ttl_s: int | None = None
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
            **model_fields(self.model_limits),
            **_budget_wire(self.budgets),
            "guardrails": list(self.guardrails),
        }

    def facts(self) -> dict[str, Any]:
        """Return what `metadata.nemo` says; None where it says nothing."""
        return {
            "managed": True,
            "role": self.role,
            **budget_facts(self.budgets),
            "shadow": list(self.shadow) or None,
            **model_facts(self.model_limits),
            "loop": loop_fact(self.loop),
            "price_per_request": None if self.request_nanos is None else nanos_to_wire(self.request_nanos),
            "cache": cache_fact(self.cache_ttl_s),
            "tools": None if self.tools is None else list(self.tools),
        }

    def texts(self) -> dict[str, str | None]:
        """Return the fields as people read them."""
        return {
            "alias": self.alias,
            **rate_texts(self, self.shadow),
            "model_limits": ", ".join(model_limit_text(limit) for limit in self.model_limits) or None,
            **budget_texts(self.budgets),
            "loop": loop_text(self.loop),
            "price_per_request": None if self.request_nanos is None else format_nanos(self.request_nanos),
            "cache": cache_text(self.cache_ttl_s),
            "models": ", ".join(self.models),
            "guardrails": ", ".join(self.guardrails) or None,
            "tools": None if self.tools is None else ", ".join(self.tools) or "none",
        }


Spec = FleetSpec | KeySpec | GroupSpec


# --- from a declaration
def fleet_spec(fleet: FleetDeclaration) -> FleetSpec:
    """Return what a declaration wants of the fleet itself."""
    return FleetSpec(
        fleet=fleet.name,
        budgets=tuple(_rule(budget) for budget in fleet.budgets),
        rpm=fleet.rpm,
        tpm=fleet.tpm,
        max_parallel=fleet.max_parallel,
        shadow=fleet.shadow,
    )


def key_spec(fleet: FleetDeclaration, role: AgentRole) -> KeySpec:
    """Return what a declaration wants of one role's key."""
    price, loop = role.price_per_request_nanos, role.loop
    return KeySpec(
        fleet=fleet.name,
        role=role.name,
        alias=key_alias(fleet.name, role.name),
        models=role.models,
        rpm=role.rpm,
        tpm=role.tpm,
        max_parallel=role.max_parallel,
        shadow=role.shadow,
        model_limits=tuple(
            ModelLimit(model=model, rpm=one.rpm, tpm=one.tpm, max_parallel=one.max_parallel, mode=one.mode)
            for model, one in role.model_limits
        ),
        budgets=tuple(_rule(budget) for budget in role.budgets),
        loop=None if loop is None else LoopRule(repeats=loop.repeats, within_s=loop.within_s, mode=loop.mode),
        request_nanos=None if price is None else _as_on_the_wire(price),
        cache_ttl_s=role.cache_ttl_s,
        guardrails=tuple(guardrail.name for guardrail in fleet.effective_guardrails(role)),
        tools=role.tools,
    )


def key_alias(fleet: str, role: str) -> str:
    """Return the alias of a role's key."""
    return f"{fleet}/{role}"


# --- from a live row
def live_fleet_spec(row: TeamRow) -> FleetSpec:
    """Return what the gateway has of a fleet. Raises ProvisionError for an impossible amount."""
    nemo = nemo_metadata(row.metadata)
    return FleetSpec(
        fleet=row.team_id,
        budgets=_live_budgets(row.max_budget, row.budget_duration, nemo, row.team_id),
        rpm=row.rpm_limit,
        tpm=row.tpm_limit,
        max_parallel=_read(read_max_parallel, nemo, None),
        shadow=_read(read_shadow, nemo, ()),
    )


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
        shadow=_read(read_shadow, nemo, ()),
        model_limits=_live_model_limits(row, nemo),
        budgets=_live_budgets(row.max_budget, row.budget_duration, nemo, row.key_alias or row.token),
        loop=_read(read_loop, nemo, _LOOP),
        request_nanos=_read(read_request_nanos, nemo, None),
        cache_ttl_s=_read(read_cache_ttl_s, nemo, None),
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
def applied_mark(spec: Spec) -> str:
    """Return the SHA-256 (hex) of a spec's canonical JSON: what `metadata.nemo.applied` records, or `nemo_applied`."""
    told = msgspec.to_builtins(spec)
    if told.get("cache_ttl_s") is None:  # marks that are older than this field hold without it
        told.pop("cache_ttl_s", None)
    canonical = msgspec.json.encode(told, order="deterministic")
    return hashlib.sha256(canonical).hexdigest()


def merged_metadata(live: Mapping[str, Any], spec: FleetSpec | KeySpec) -> dict[str, Any]:
    """Return the live metadata with our part brought up to date; what others wrote stays as it is."""
    nemo = {**nemo_metadata(live), **spec.facts(), "applied": applied_mark(spec)}
    # LiteLLM keeps a key's limits by model in its metadata, too; a copy sent back would outlive them.
    others = {key: value for key, value in live.items() if key not in _MODEL_MAPS or isinstance(spec, FleetSpec)}
    return {**others, MARK: {key: value for key, value in nemo.items() if value is not None}}


# --- between declaration, wire and rule
def _rule(budget: Budget) -> BudgetRule:
    return BudgetRule(
        amount_nanos=_as_on_the_wire(budget.amount_nanos),
        duration=DURATION_OF.get(budget.period, budget.period),
        tz=budget.tz,
        alert_at=budget.alert_at,
        mode=budget.mode,
    )


def _as_on_the_wire(nanos: int) -> int:
    """Return what comes back of an amount: a JSON number carries 15 digits, and what is compared must be alike."""
    return nanos_from_wire(nanos_to_wire(nanos))


def _live_budgets(
    max_budget: float | None, duration: str | None, nemo: Mapping[str, Any], owner: str
) -> tuple[BudgetRule, ...]:
    try:
        nanos = None if max_budget is None else nanos_from_wire(max_budget)
    except ValueError as error:
        raise ProvisionError(f"the gateway's budget of {owner} cannot be read: {error}") from None
    try:
        found = read_budgets(nanos, duration, nemo)
    except RuleFault:  # what is written there by hand and cannot be meant is written anew
        found = read_budgets(nanos, duration, {})
    return tuple(sorted((_same_duration(rule) for rule in found), key=_order))


def _order(rule: BudgetRule) -> tuple[bool, float, str, str]:
    name = period_text(rule.duration)
    return (rule.mode != "enforce", period_order(name), name, rule.tz)


def _same_duration(rule: BudgetRule) -> BudgetRule:
    """Return the rule with its duration as we write it: gateways may answer `24h` or `1w` to what was `1d` or `7d`."""
    name = "week" if rule.duration == "1w" else period_text(rule.duration)
    return replace(rule, duration=DURATION_OF.get(name, name))


def _live_model_limits(row: KeyRow, nemo: Mapping[str, Any]) -> tuple[ModelLimit, ...]:
    rpm, tpm = (getattr(row, name) or row.metadata.get(name) or {} for name in _MODEL_MAPS)
    try:
        return read_model_limits(rpm, tpm, nemo)
    except RuleFault:
        return ()


def _read(read: Callable[[Mapping[str, Any]], _T], nemo: Mapping[str, Any], otherwise: _T) -> _T:
    """Return what `metadata.nemo` says; what cannot be meant counts as not said, and is written anew."""
    try:
        return read(nemo)
    except RuleFault:
        return otherwise


def _budget_wire(budgets: Sequence[BudgetRule]) -> dict[str, Any]:
    first = first_budget(budgets)
    if first is None:
        return {"max_budget": None, "budget_duration": None}
    return {"max_budget": nanos_to_wire(first.amount_nanos), "budget_duration": first.duration}
