"""How a hold resolves, given how its attempt ended.

The rule: only what provably cost nothing is voided. A request that never left, or that the provider refused before any
token (4xx, 429, and the 5xx that a provider answers by itself), costs nothing. A time-out, a broken connection, a
502/504 from something in between, or a status that neither answers nor refuses (202, 204, a redirect) may hide a call
that was served and will be billed: its hold is charged in full.
"""

from __future__ import annotations

from nemo_agents.policy.content import Content
from nemo_agents.policy.ledger import Settlement
from nemo_agents.policy.pricing import Price

__all__ = ["output_nanos_per_mtok", "settle_answer", "settle_cut", "settle_failure"]

_REFUSED_FROM = 400
_AMBIGUOUS_STATUSES = frozenset({502, 504, 520, 522, 523, 524})
_COST_MAX_NANOS = 10**18


def settle_failure(*, sent: bool, status: int | None, hold_nanos: int) -> Settlement:
    """Resolve the hold of an attempt that gave no answer: `status` is the provider's, None without one."""
    refused = status is not None and status >= _REFUSED_FROM and status not in _AMBIGUOUS_STATUSES
    if not sent or refused:
        return Settlement(kind="void", amount_nanos=0)
    return Settlement(kind="expire", amount_nanos=hold_nanos)


def settle_answer(*, cost_nanos: int | None, hold_nanos: int) -> Settlement:
    """Resolve the hold of an attempt that was answered: at its cost, or at the hold when the usage is unknown.

    A cost beyond a billion dollars is no cost but a mistake, and as good as unknown; no ledger takes it.
    """
    if cost_nanos is None or cost_nanos > _COST_MAX_NANOS:
        return Settlement(kind="expire", amount_nanos=hold_nanos)
    return Settlement(kind="post", amount_nanos=cost_nanos)


def settle_cut(*, counted_nanos: int, hold_nanos: int) -> Settlement:
    """Resolve the hold of an answer that was cut because what was counted of it had reached the hold.

    What came beyond the hold is posted as well: a provider that ignores the cap it was sent bills it.
    """
    return Settlement(kind="post", amount_nanos=max(counted_nanos, hold_nanos))


def output_nanos_per_mtok(price: Price, content: Content) -> int:
    """Return what a million tokens of output cost at least, in nanos: what was counted of a stream costs no less."""
    rates = [price.output]
    if content.service_tier is not None:  # a cheaper tier may have been asked for
        rates += [tier.output for tier in price.service_tiers]
    return min(rates)
