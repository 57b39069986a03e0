"""What provisioning keeps of a model group, as a value: built from a declaration, or read from live rows.

Wire format: LiteLLM's `/model`, one row for each deployment; `admin.wire.DeploymentRow` says what of it is ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from nemo_agents.admin.wire import DeploymentRow
from nemo_agents.groups import FALLBACKS, STRATEGIES, FallbackOn, ModelGroup, Strategy
from nemo_agents.rules import format_count

__all__ = [
    "APPLIED",
    "GroupSpec",
    "Member",
    "are_alike",
    "group_spec",
    "live_group_spec",
    "live_groups",
    "marks_of",
    "same_deployment",
]

APPLIED: Final = "nemo_applied"


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """One deployment of a group: its model, its tier from 0, its weight, and how long a prompt may be in tokens."""

    model: str
    tier: int = 0
    weight: int = 1
    context_tokens: int | None = None

    def text(self, *, weighted: bool) -> str:
        """Return the deployment as people read it: `openai/o3-mini (weight 3, 200k tokens)`."""
        notes = [f"weight {self.weight}"] if weighted and self.weight != 1 else []
        if self.context_tokens is not None:
            notes.append(f"{format_count(self.context_tokens)} tokens")
        return f"{self.model} ({', '.join(notes)})" if notes else self.model


class GroupSpec(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="models"):
    """A model group: its deployments in their normal order, and how it chooses among them."""

    fleet: str
    group: str
    members: tuple[Member, ...]
    strategy: Strategy = "order"
    retries: int | None = None
    fallback_on: tuple[FallbackOn, ...] = ()

    @property
    def name(self) -> str:
        """The group's name."""
        return self.group

    @property
    def models(self) -> tuple[str, ...]:
        """The names of the models, in the order of the deployments."""
        return tuple(member.model for member in self.members)

    def deployments(self) -> tuple[DeploymentRow, ...]:
        """Return the rows of `/model/new`, one per deployment; the n-th has the id `fleet/group/n`, from 1."""
        group = {
            "nemo_strategy": None if self.strategy == STRATEGIES[0] else self.strategy,
            "nemo_retries": self.retries,
            "nemo_fallback_on": list(self.fallback_on) or None,
        }
        return tuple(
            DeploymentRow(
                model_name=self.group,
                litellm_params={"model": member.model, "order": member.tier + 1, "weight": member.weight},
                model_info={
                    "id": f"{self.fleet}/{self.group}/{n}",
                    "team_id": self.fleet,
                    **_said({"nemo_context_tokens": member.context_tokens, **group}),
                },
            )
            for n, member in enumerate(self.members, start=1)
        )

    def texts(self) -> dict[str, str | None]:
        """Return the fields as people read them."""
        return {
            "models": self._line(),
            "strategy": None if self.strategy == STRATEGIES[0] else self.strategy,
            "retries": None if self.retries is None else str(self.retries),
            "fallback_on": ", ".join(self.fallback_on) or None,
        }

    def facts(self) -> list[str]:
        """Return what the line of a plan says of it: the deployments, and what is not usual."""
        retries = None if self.retries is None else f"{self.retries} {'retry' if self.retries == 1 else 'retries'}"
        also = f"falls back on {', '.join(self.fallback_on)}" if self.fallback_on else None
        return [text for text in (self.texts()["strategy"], self._line(), retries, also) if text]

    def _line(self) -> str:
        """Return the deployments: tiers apart by `;`, unless each is one of its own in any case."""
        tiers: dict[int, list[str]] = {}
        for member in self.members:
            tiers.setdefault(member.tier, []).append(member.text(weighted=self.strategy in ("weighted", "least-busy")))
        between = ", " if self.strategy == "order" else "; then "
        return between.join(", ".join(tier) for _, tier in sorted(tiers.items()))


def group_spec(fleet: str, group: ModelGroup) -> GroupSpec:
    """Return what a declaration wants of one model group."""
    return GroupSpec(
        fleet=fleet,
        group=group.name,
        members=tuple(
            Member(model=one.model, tier=one.tier or 0, weight=one.weight, context_tokens=one.context_tokens)
            for one in group.deployments
        ),
        strategy=group.strategy,
        retries=group.retries,
        fallback_on=group.fallback_on,
    )


def live_groups(rows: Iterable[DeploymentRow]) -> dict[str, tuple[DeploymentRow, ...]]:
    """Return deployments by model group, in the order in which the gateway has them."""
    groups: dict[str, list[DeploymentRow]] = {}
    for row in rows:
        groups.setdefault(row.model_name, []).append(row)
    return {name: tuple(sorted(groups[name], key=_order)) for name in sorted(groups)}


def live_group_spec(fleet: str, group: str, rows: Sequence[DeploymentRow]) -> GroupSpec:
    """Return what the gateway has of a model group, in the order of `live_groups`.

    What cannot be meant, by another hand's doing, counts as not said. The first row speaks for the group, as it does
    in the gateway, whether or not they `are_alike`.
    """
    strategy, retries, fallback_on = _of_group(rows[0])
    orders = [_int(row.litellm_params.get("order"), 0) for row in rows]
    tiers = sorted(set(orders))
    members = [
        Member(
            model=str(row.litellm_params.get("model", "")),
            tier=n if strategy == "order" else tiers.index(order),
            weight=_int(row.litellm_params.get("weight"), 1),
            context_tokens=_whole(row.model_info.get("nemo_context_tokens")),
        )
        for n, (row, order) in enumerate(zip(rows, orders, strict=True))
    ]
    if strategy != "order":
        members.sort(key=lambda member: (member.tier, member.model))
    return GroupSpec(
        fleet=fleet,
        group=group,
        members=tuple(members),
        strategy=strategy,
        retries=retries,
        fallback_on=fallback_on,
    )


def are_alike(rows: Iterable[DeploymentRow]) -> bool:
    """Say whether all rows of a group say the same of the group."""
    return len({_of_group(row) for row in rows}) < 2


def same_deployment(has: DeploymentRow, wanted: DeploymentRow) -> bool:
    """Say whether a live row is as wanted; marks, and what the gateway adds, make no difference."""
    if any(has.litellm_params.get(key) != value for key, value in wanted.litellm_params.items()):
        return False
    return _ours(has) == _ours(wanted)


def marks_of(rows: Iterable[DeploymentRow]) -> frozenset[str]:
    """Return the marks that provisioning left in rows: of the group as it was when each was written."""
    return frozenset(mark for row in rows if isinstance(mark := row.model_info.get(APPLIED), str))


def _of_group(row: DeploymentRow) -> tuple[Strategy, int | None, tuple[FallbackOn, ...]]:
    info = row.model_info
    strategy, fallback_on = info.get("nemo_strategy"), info.get("nemo_fallback_on")
    known = next((one for one in STRATEGIES if one == strategy), STRATEGIES[0])
    named = fallback_on if isinstance(fallback_on, list) else []
    return (
        known,
        _whole(info.get("nemo_retries")),
        tuple(one for one in FALLBACKS if one in named),
    )


def _order(row: DeploymentRow) -> tuple[int, str]:
    return (_int(row.litellm_params.get("order"), 0), str(row.model_info.get("id", "")))


def _ours(row: DeploymentRow) -> dict[str, Any]:
    return {key: value for key, value in row.model_info.items() if key.startswith("nemo_") and key != APPLIED}


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _int(value: object, otherwise: int) -> int:
    found = _whole(value)
    return otherwise if found is None else found


def _said(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
