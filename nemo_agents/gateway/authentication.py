"""Whose key a request presents, and whether it is good now: the one place for agents' calls and for traces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from nemo_agents.errors import Code
from nemo_agents.gateway.state import Gateway
from nemo_agents.policy.keys import Grant, KeySecret
from nemo_agents.policy.refusal import Refusal

__all__ = ["STALE_KEYS", "authenticate", "bearer", "fleet_refusal"]


def bearer(headers: Mapping[str, str]) -> str | None:
    """Return the presented key: `Authorization: Bearer …`, or the headers that other SDKs use."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    return headers.get("x-api-key") or headers.get("api-key")


async def authenticate(gateway: Gateway, presented: str | None, *, now_us: int) -> tuple[Grant, KeySecret] | Refusal:
    """Return the grant behind a presented key, or the refusal of a key that is not good now.

    Whether its fleet is blocked is asked apart, of the grant: see `fleet_refusal`.
    """
    if gateway.keys_are_stale:
        return STALE_KEYS
    found = gateway.keyring.authenticate(presented, now_us=now_us)
    if isinstance(found, Refusal) and gateway.look is not None and gateway.keyring.may_be_new(presented):
        await gateway.look()  # another gateway may have made it a moment ago
        found = gateway.keyring.authenticate(presented, now_us=now_us)
    return found


def fleet_refusal(gateway: Gateway, grant: Grant) -> Refusal | None:
    """Return the refusal of every key of a blocked fleet, None when the grant's is not."""
    fleet = gateway.fleet_of(grant)
    if fleet is None or not fleet.blocked:
        return None
    return Refusal(
        status=403,
        code=Code.KEY_BLOCKED,
        message=f"The fleet {fleet.fleet} is blocked, and all of its keys with it. Unblock it with /team/update.",
        scope="fleet",
    )


STALE_KEYS: Final = Refusal(
    status=503,
    code=Code.STORE_UNAVAILABLE,
    message=(
        "The gateway has not reached its database for a while, and does not know which keys are still good. "
        "Try again shortly."
    ),
    retry_after_ms=1_000,
)
