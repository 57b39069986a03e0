"""Deployments of model groups on LiteLLM's wire: read strictly, and told as they were given.

What LiteLLM knows stands in `litellm_params`; the rest is ours and stands in `model_info`, under names that begin with
`nemo_`. `admin.wire.DeploymentRow` says which.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final, cast

from nemo_agents.admin.wire import DeploymentRow
from nemo_agents.gateway.admin.faults import bad
from nemo_agents.groups import FALLBACKS, RETRIES_MAX, STRATEGIES, TIER_MAX, WEIGHT_MAX, FallbackOn, Strategy
from nemo_agents.policy.routing import Deployment, Options, duplicate_in, group_in
from nemo_agents.policy.rulewire import COUNT_MAX

__all__ = ["deployment_row", "parse_deployment", "refuse_misplaced"]

_NOT_OURS: Final = {"api_base", "api_key", "base_url"}
_INFO: Final = frozenset(
    {"nemo_context_tokens", "nemo_strategy", "nemo_retries", "nemo_fallback_on", "nemo_applied"},
)
_ORDER_MAX: Final = TIER_MAX + 1  # provisioning counts tiers from 1


def parse_deployment(
    group: str, params: Mapping[str, Any], info: Mapping[str, Any], new_id: Callable[[], str]
) -> Deployment:
    """Return the deployment that a body of `/model/new` names; 400 with the field of what cannot be meant."""
    if set(params) & _NOT_OURS:
        raise bad("Provider addresses and credentials come from the gateway's configuration, never from here.")
    model, order, weight = params.get("model"), params.get("order", 0), params.get("weight", 1)
    if not isinstance(model, str) or not model or "*" in model:
        raise bad("`litellm_params.model` must be provider/model.", "litellm_params")
    if not _whole(order, 0, _ORDER_MAX) or not _whole(weight, 1, WEIGHT_MAX):
        said = f"`order` (0 to {_ORDER_MAX}) and `weight` (1 to {WEIGHT_MAX}) must be whole numbers."
        raise bad(said, "litellm_params")
    fleet, named = info.get("team_id"), info.get("id")
    if not isinstance(fleet, str | None) or not isinstance(named, str | None):
        raise bad("`model_info.id` and `model_info.team_id` must be texts.", "model_info")
    unknown = sorted(name for name in info if name.startswith("nemo_") and name not in _INFO)
    if unknown:
        raise bad(f"`model_info.{unknown[0]}` is not known; there are {', '.join(sorted(_INFO))}.", "model_info")
    context = info.get("nemo_context_tokens")
    if context is not None and not _whole(context, 1, COUNT_MAX):
        raise bad("`model_info.nemo_context_tokens` must be a whole number of at least 1.", "model_info")
    applied = info.get("nemo_applied")
    if not isinstance(applied, str | None):
        raise bad("`model_info.nemo_applied` must be a text.", "model_info")
    return Deployment(
        deployment_id=named or new_id(),
        fleet=fleet,
        group=group,
        model=model,
        order=order,
        weight=weight,
        context_tokens=context,
        options=_options(info),
        applied=applied,
    )


def refuse_misplaced(
    wanted: Deployment, *, configured: Iterable[Deployment], provisioned: Collection[Deployment]
) -> None:
    """Refuse a deployment that would put a group into a group, or a model into a group twice.

    A group of the configuration file is no part of a provisioned one of its name, which goes before it.
    """
    group = group_in(wanted, (*configured, *provisioned))
    if group is not None:
        raise bad(
            f"{group[:100]!r} is a model group, and a group holds models only. List the models themselves, as "
            "provider/model, or give the group another name.",
            "litellm_params",
        )
    twin = duplicate_in(wanted, provisioned)
    if twin is not None:
        raise bad(
            f"The group {wanted.group[:100]!r} has {wanted.model[:100]!r} already, as deployment {twin}. "
            "Remove that with /model/delete first, or give it more weight.",
            "litellm_params",
        )


def deployment_row(deployment: Deployment) -> DeploymentRow:
    """Return a deployment as `/model/info` shows it: what says nothing is left out of `model_info`."""
    options = deployment.options
    ours: dict[str, Any] = {
        "nemo_context_tokens": deployment.context_tokens,
        "nemo_strategy": None if options.strategy == STRATEGIES[0] else options.strategy,
        "nemo_retries": options.retries,
        "nemo_fallback_on": list(options.fallback_on) or None,
        "nemo_applied": deployment.applied,
    }
    return DeploymentRow(
        model_name=deployment.group,
        litellm_params={"model": deployment.model, "order": deployment.order, "weight": deployment.weight},
        model_info={
            "id": deployment.deployment_id,
            "team_id": deployment.fleet,
            **{name: value for name, value in ours.items() if value is not None},
        },
    )


def _options(info: Mapping[str, Any]) -> Options:
    strategy = info.get("nemo_strategy") or STRATEGIES[0]
    if strategy not in STRATEGIES:
        raise bad(f"`model_info.nemo_strategy` must be one of {', '.join(STRATEGIES)}.", "model_info")
    retries = info.get("nemo_retries")
    if retries is not None and not _whole(retries, 0, RETRIES_MAX):
        raise bad(f"`model_info.nemo_retries` must be a whole number from 0 to {RETRIES_MAX}.", "model_info")
    fallback_on = info.get("nemo_fallback_on") or []
    if not isinstance(fallback_on, list) or not all(one in FALLBACKS for one in fallback_on):
        raise bad(f"`model_info.nemo_fallback_on` must be a list out of {', '.join(FALLBACKS)}.", "model_info")
    named = tuple(one for one in FALLBACKS if one in fallback_on)
    return Options(strategy=cast("Strategy", strategy), retries=retries, fallback_on=cast("tuple[FallbackOn]", named))


def _whole(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most
