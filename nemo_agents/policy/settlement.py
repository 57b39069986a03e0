"""How a hold resolves, given how its attempt ended.

The rule: only what provably cost nothing is voided. A request that never left, or that the provider refused before any
token (4xx, 429, and a 408 or 5xx in the provider's own words), costs nothing. A time-out, a broken connection or
stream, a 502/504 from something in between, any other 408 or 5xx that is not the provider's own error object, or a
status that neither answers nor refuses (202, 204, a redirect) may hide a call that was served and will be billed: its
hold is charged in full.
"""

from __future__ import annotations

from collections.abc import Mapping

from nemo_agents.policy.content import Content
from nemo_agents.policy.ledger import Settlement
from nemo_agents.policy.pricing import Price

__all__ = [
    "is_own_error",
    "output_nanos_per_mtok",
    "settle_answer",
    "settle_broken",
    "settle_cut",
    "settle_failure",
]

_REQUEST_TIMEOUT = 408
_AMBIGUOUS_STATUSES = frozenset({502, 504, 520, 522, 523, 524})
_COST_MAX_NANOS = 10**18


def settle_failure(*, sent: bool, status: int | None, own_error: bool, hold_nanos: int) -> Settlement:
    """Resolve the hold of an attempt that gave no answer.

    `status` is what came back, None without one; `own_error` says whether the provider itself did (`is_own_error`).
    """
    if not sent or (status is not None and _is_refusal(status, own_error=own_error)):
        return Settlement(kind="void", amount_nanos=0)
    return Settlement(kind="expire", amount_nanos=hold_nanos)


def _is_refusal(status: int, *, own_error: bool) -> bool:
    if 400 <= status < 500 and status != _REQUEST_TIMEOUT:
        return True
    return own_error and 400 <= status < 600 and status not in _AMBIGUOUS_STATUSES


def is_own_error(body: object) -> bool:
    """Say whether the decoded body of a failure is an error object as providers of this wire give it.

    That is `{"error": …}` (OpenAI, Anthropic and most others), the same as the one item of a list (Gemini), or an
    object that has `message` and `type` itself (vLLM, Mistral). What stands before a provider (a load balancer, a
    proxy) says a page, plain text, nothing, or a `message` alone, and may say it after the provider has served.
    """
    if isinstance(body, list) and len(body) == 1:
        body = body[0]
    if not isinstance(body, Mapping):
        return False
    error = body.get("error")
    if isinstance(error, (Mapping, str)):
        return bool(error)
    return all(isinstance(body.get(name), str) for name in ("message", "type"))


def settle_answer(*, cost_nanos: int | None, hold_nanos: int) -> Settlement:
    """Resolve the hold of an attempt that was answered: at its cost, or at the hold when the usage is unknown.

    A cost beyond a billion dollars is no cost but a mistake, and as good as unknown; no ledger takes it.
    """
    if cost_nanos is None or cost_nanos > _COST_MAX_NANOS:
        return Settlement(kind="expire", amount_nanos=hold_nanos)
    return Settlement(kind="post", amount_nanos=cost_nanos)


def settle_broken(*, told_nanos: int | None, hold_nanos: int) -> Settlement:
    """Resolve the hold of an answer whose whole usage nobody knows: at the hold.

    `told_nanos` is what it had said to have cost so far, None when it said nothing. It is no more than the least that
    it cost: it counts only beyond the hold.
    """
    told = _believable(told_nanos)
    if told > hold_nanos:
        return Settlement(kind="post", amount_nanos=told)
    return Settlement(kind="expire", amount_nanos=hold_nanos)


def settle_cut(*, counted_nanos: int, told_nanos: int | None, hold_nanos: int) -> Settlement:
    """Resolve the hold of an answer that was cut because what was counted of it had reached the hold.

    What came beyond the hold is posted as well, by our count or by what it had told (`told_nanos`, None for nothing),
    whichever is more: a provider that ignores the cap it was sent bills it.
    """
    return Settlement(kind="post", amount_nanos=max(counted_nanos, hold_nanos, _believable(told_nanos)))


def _believable(told_nanos: int | None) -> int:
    return 0 if told_nanos is None or told_nanos > _COST_MAX_NANOS else told_nanos


def output_nanos_per_mtok(price: Price, content: Content) -> int:
    """Return what a million tokens of output cost at least, in nanos: what was counted of a stream costs no less."""
    rates = [price.output]
    if content.service_tier is not None:  # a cheaper tier may have been asked for
        rates += [tier.output for tier in price.service_tiers]
    return min(rates)
