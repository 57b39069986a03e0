"""How a hold resolves, given how its attempt ended.

The rule: only what provably cost nothing is voided. A request that never left, or that the provider refused before any
token (4xx, 429, and the 5xx that a provider answers by itself), costs nothing. A time-out, a broken connection, a
502/504 from something in between, or a status that neither answers nor refuses (202, 204, a redirect) may hide a call
that was served and will be billed: its hold is charged in full.
"""

from __future__ import annotations

from nemo_agents.policy.ledger import Settlement

__all__ = ["settle_answer", "settle_failure"]

_REFUSED_FROM = 400
_AMBIGUOUS_STATUSES = frozenset({502, 504, 520, 522, 523, 524})


def settle_failure(*, sent: bool, status: int | None, hold_nanos: int) -> Settlement:
    """Resolve the hold of an attempt that gave no answer: `status` is the provider's, None without one."""
    refused = status is not None and status >= _REFUSED_FROM and status not in _AMBIGUOUS_STATUSES
    if not sent or refused:
        return Settlement(kind="void", amount_nanos=0)
    return Settlement(kind="expire", amount_nanos=hold_nanos)


def settle_answer(*, cost_nanos: int | None, hold_nanos: int) -> Settlement:
    """Resolve the hold of an attempt that was answered: at its cost, or at the hold when the usage is unknown."""
    if cost_nanos is None:
        return Settlement(kind="expire", amount_nanos=hold_nanos)
    return Settlement(kind="post", amount_nanos=cost_nanos)
