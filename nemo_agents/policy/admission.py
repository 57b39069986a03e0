"""The decisions of admission that need nothing but the request and the grant.

The order in which the gateway asks (docs/explanation/architecture.md): declared size, key, blocked/expired/revoked,
body and shape, model allowed, tools allowed, RPM, input guardrails, TPM, budget hold, send. Windows and
ledger keep state and live elsewhere; what is here is a function of values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from nemo_agents.errors import Code
from nemo_agents.money import format_nanos
from nemo_agents.policy.keys import Grant
from nemo_agents.policy.ledger import Balance, BudgetScope, HoldRefused, RunRefused
from nemo_agents.policy.pricing import PROVIDER_TOOL_FIELDS
from nemo_agents.policy.refusal import Refusal

__all__ = [
    "NOT_FROM_CLIENTS",
    "budget_name",
    "budget_refusal",
    "check_tools",
    "least_left",
    "other_models",
    "past_alert",
    "run_refusal",
    "shadow_budgets",
]

HELD_RETRY_MS = 1_000

NOT_FROM_CLIENTS = frozenset(
    {
        "api_base",
        "api_key",
        "api_type",
        "api_version",
        "aws_access_key_id",
        "aws_secret_access_key",
        "aws_session_token",
        "azure_ad_token",
        "base_url",
        "custom_llm_provider",
        "extra_headers",
        "headers",
        "vertex_credentials",
    }
)
"""Fields by which other gateways let a client say where a request goes, with which credentials: dropped unread."""


MODELS_BESIDE: Final = ("fallbacks", "models")
"""Fields that let a provider answer with another model than the one asked for (Anthropic's, OpenRouter's)."""


def other_models(body: Mapping[str, Any]) -> str | None:
    """Return the field by which a request names further models, if it does: what a role may use is asked of one."""
    return next((name for name in MODELS_BESIDE if body.get(name) is not None), None)


def check_tools(body: Mapping[str, Any], offered: Sequence[str | None], grant: Grant) -> Refusal | None:
    """Refuse tools that the role does not declare, its provider's own among them; without a tool list any goes.

    `offered` are the names of the functions that the body offers, None for each tool that is none (`Wire.tools`).
    """
    if grant.tools is None:
        return None
    for field in PROVIDER_TOOL_FIELDS:
        if body.get(field) is not None:
            return _tool_not_allowed(field, grant, param=field)
    for name in offered:
        if name not in grant.tools:
            return _tool_not_allowed(name, grant, param="tools")
    return None


def _tool_not_allowed(name: object, grant: Grant, *, param: str) -> Refusal:
    declared = ", ".join(grant.tools or ()) or "none"
    return Refusal(
        status=403,
        code=Code.TOOL_NOT_ALLOWED,
        message=f"Role {grant.role or grant.alias} may not offer the tool {name!r}; it declares: {declared}.",
        param=param,
        scope="role",
        limit="tools",
    )


def budget_name(scope: BudgetScope) -> str:
    """Return what a message calls a budget: `role's budget per day`, `fleet's budget per month Europe/Amsterdam`."""
    return f"{scope.kind}'s budget" + (f" per {scope.name}" if scope.resets_at_us is not None else "")


def budget_refusal(refused: HoldRefused) -> Refusal:
    """Say why a hold did not fit, and what to do: raise, wait for the reset, or ask for less.

    Of several budgets that cannot take it, the one is named whose cure takes longest: when that one lets the call
    through, so do the others.
    """
    needed = refused.needed_nanos
    balance = _binding(refused.balances or (refused.balance,), needed) or refused.balance
    limit = balance.scope.limit_nanos or 0
    name, scope, money = budget_name(balance.scope), balance.scope.kind, format_nanos
    facts = f"spent {money(balance.posted_nanos)}, held {money(balance.held_nanos)} of {money(limit)}"
    if needed > limit:
        return Refusal(
            status=402,
            code=Code.REQUEST_EXCEEDS_BUDGET,
            message=(
                f"This request alone may cost up to {money(needed)}, more than the whole of the {name} ({facts}). "
                "Lower max_tokens, shorten the prompt, or raise the budget."
            ),
            scope=scope,
            limit="budget",
        )
    if balance.posted_nanos + needed <= limit:
        return Refusal(
            status=402,
            code=Code.BUDGET_HELD,
            message=(
                f"Calls in flight hold the rest of the {name} ({facts}; needed {money(needed)}). Try again shortly."
            ),
            scope=scope,
            limit="budget",
            retry_after_ms=HELD_RETRY_MS,
        )
    return Refusal(
        status=402,
        code=Code.BUDGET_EXHAUSTED,
        message=(
            f"The {name} does not allow this call ({facts}; it may cost up to {money(needed)}). "
            + ("Raise it, or wait for its reset." if balance.scope.resets_at_us else "Raise it to go on.")
        ),
        scope=scope,
        limit="budget",
        resets_at_us=balance.scope.resets_at_us,
    )


def _binding(balances: Sequence[Balance], needed: int) -> Balance | None:
    """Return the budget that keeps a hold out for longest, the first of equals; None when all can take it."""
    return max([b for b in balances if not b.takes(needed)], key=lambda b: _cure(b, needed), default=None)


def _cure(balance: Balance, needed: int) -> tuple[int, float]:
    """Rank what cures a budget that does not take a hold: calls that end, the reset, a raise, a smaller request."""
    limit = balance.scope.guard_nanos or 0
    if needed > limit:
        return 3, 0
    if balance.posted_nanos + needed <= limit:
        return 0, 0
    resets_at_us = balance.scope.resets_at_us
    return (2, 0) if resets_at_us is None else (1, resets_at_us)


def shadow_budgets(scopes: Sequence[BudgetScope], balances: Sequence[Balance]) -> list[tuple[BudgetScope, Refusal]]:
    """Return the budgets in mode `shadow` that would have refused a hold, given the balances after it."""
    after = {(b.scope.kind, b.scope.id, b.scope.period): b for b in balances}
    over = []
    for scope in scopes:
        balance = after.get((scope.kind, scope.id, scope.period))
        if balance is None or scope.limit_nanos is None:
            continue
        if balance.posted_nanos + balance.held_nanos > scope.limit_nanos:
            over.append((scope, _would_refuse(scope, balance)))
    return over


def _would_refuse(scope: BudgetScope, balance: Balance) -> Refusal:
    money, limit = format_nanos, scope.limit_nanos or 0
    facts = f"spent {money(balance.posted_nanos)}, held {money(balance.held_nanos)} with it, of {money(limit)}"
    return Refusal(
        status=402,
        code=Code.BUDGET_EXHAUSTED,
        message=f"The {budget_name(scope)}, in shadow mode, would not have allowed this call ({facts}).",
        scope=scope.kind,
        limit="budget",
        resets_at_us=scope.resets_at_us,
    )


def run_refusal(refused: RunRefused) -> Refusal:
    """Say why the run takes no further call."""
    if refused.why == "max_calls":
        calls = "its one call" if refused.max_calls == 1 else f"all of its {refused.max_calls} calls"
        message, limit = f"This run has used {calls}. Start a new run to go on.", "max_calls"
    else:
        message, limit = "This run was stopped. Start a new run to go on.", "stopped"
    return Refusal(status=403, code=Code.RUN_STOPPED, message=message, scope="run", limit=limit)


def least_left(balances: Sequence[Balance]) -> int | None:
    """Return the nanos that are left in the tightest of the budgets that refuse; None when there is none."""
    left = [nanos for balance in balances if (nanos := balance.left_nanos) is not None]
    return min(left) if left else None


def past_alert(balances: Sequence[Balance]) -> str | None:
    """Name the budgets that are past the first of their alert thresholds, as `role 83%, fleet 91%`; None: none is.

    Where one of several budgets of a scope is meant, its period is named: `role day 83%`.
    """
    past = [balance.scope for balance in balances if balance.scope.alert_at and _is_past(balance)]
    if not past:
        return None
    kinds = [balance.scope.kind for balance in balances if balance.scope.limit_nanos is not None]
    used = {balance.scope: balance.posted_nanos + balance.held_nanos for balance in balances}
    warned = []
    for scope in past:
        name = f"{scope.kind} {scope.name}" if kinds.count(scope.kind) > 1 else scope.kind
        warned.append(f"{name} {used[scope] * 100 // (scope.limit_nanos or 1)}%")
    return ", ".join(warned)


def _is_past(balance: Balance) -> bool:
    limit = balance.scope.limit_nanos
    return bool(limit) and balance.posted_nanos + balance.held_nanos >= min(balance.scope.alert_at) * (limit or 0)
