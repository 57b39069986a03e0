"""What is told of calls in the same way on the run's page and on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nemo_agents.admin.wire import AttemptRow, CallRow
from nemo_agents.viewer import text

__all__ = ["cost_in_all", "other_model", "reason_of", "unknown_costs"]


def other_model(call: CallRow) -> str | None:
    """Return the model that served a call where it is another than the one that was asked for.

    The provider in front of a name does not make it another: who asks for `openai/o3-mini` is served by `o3-mini`.
    """
    asked, served = call.model_asked or call.endpoint, call.model_served
    if not served or served == asked or asked.endswith(f"/{served}") or served.endswith(f"/{asked}"):
        return None
    return served


def unknown_costs(calls: Iterable[CallRow]) -> int:
    """Count the calls that have ended and of which nobody knows what they cost."""
    return sum(call.cost_nanos is None and call.state != "open" for call in calls)


def cost_in_all(calls: Sequence[CallRow]) -> int | None:
    """Return what calls cost together, in nanos; None, which is not $0, where that is known of none of them."""
    known = [call.cost_nanos for call in calls if call.cost_nanos is not None]
    return sum(known) if known or not unknown_costs(calls) else None


def reason_of(attempt: AttemptRow) -> str:
    """Say why an attempt was made, and what was waited before it: `retry after 250 ms`."""
    waited = f" after {text.duration(attempt.wait_ms * 1000)}" if attempt.wait_ms else ""
    return attempt.reason + waited
