"""Whether a gateway can serve now: the store and the limiter, each by itself."""

from __future__ import annotations

from typing import Any

from nemo_agents.errors import Code
from nemo_agents.gateway.limiter.base import LimiterUnavailable
from nemo_agents.gateway.state import Gateway
from nemo_agents.gateway.stores.base import StoreUnavailable
from nemo_agents.policy.rates import RateScope

__all__ = ["readiness"]

_PROBE = RateScope(kind="role", id="health")


async def readiness(gateway: Gateway) -> tuple[int, dict[str, Any]]:
    """Return the status and body of `/health/ready`: 200, or 503 with the code of what is down.

    Everything that was queued for the store before is written when it is ready.
    """
    parts: dict[str, str] = {}
    reasons: list[str] = []
    try:
        await gateway.store.flush()
        parts["store"] = "ready"
    except StoreUnavailable:
        parts["store"] = str(Code.STORE_UNAVAILABLE)
        reasons.append("The store cannot be used now.")  # anybody may ask: why is in the log alone
    try:
        await gateway.limiter.used(gateway.clock.now_us(), [_PROBE])
        parts["limiter"] = "ready"
    except LimiterUnavailable:
        parts["limiter"] = str(Code.STORE_UNAVAILABLE)
        reasons.append("The rates cannot be counted now.")
    if parts["store"] == "ready" and gateway.keys_are_stale:
        parts["store"] = str(Code.STORE_UNAVAILABLE)
        reasons.append("What other gateways changed could not be read for a while.")
    if not reasons:
        return 200, {"status": "ready", **parts}
    down = [name for name, state in parts.items() if state != "ready"]
    fault = {"message": " ".join(reasons), "type": "service_unavailable", "param": ",".join(down), "code": "503"}
    return 503, {"status": "not ready", "code": str(Code.STORE_UNAVAILABLE), **parts, "error": fault}
