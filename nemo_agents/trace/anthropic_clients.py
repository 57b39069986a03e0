"""The `anthropic` package's own clients, pointed at the gateway's `/v1/messages` with a role's key.

Their errors and retries are the package's own; answers are noted by the hooks, so that a run knows what stopped it.
"""

from __future__ import annotations

try:
    import anthropic
except ModuleNotFoundError as exc:
    raise ModuleNotFoundError(
        "the anthropic package is not installed, and this client is made of it: pip install anthropic",
        name="anthropic",
    ) from exc

from nemo_agents.trace.connections import Connections
from nemo_agents.trace.context import Place

__all__ = ["anthropic_client", "async_anthropic_client", "connections"]


def connections(gateway_url: str, *, made_at: Place | None = None) -> Connections:
    """Return connections of the kind that the installed `anthropic` wants."""
    return Connections(gateway_url, library=anthropic, made_at=made_at)


def anthropic_client(line: Connections, key: str, *, max_retries: int, timeout_s: float | None) -> anthropic.Anthropic:
    """Return an `anthropic.Anthropic` over these connections; `key` is the role's stand-in."""
    return anthropic.Anthropic(
        api_key=key,
        base_url=line.gateway_url,
        max_retries=max_retries,
        timeout=anthropic.NOT_GIVEN if timeout_s is None else timeout_s,
        http_client=line.sync(),
    )


def async_anthropic_client(
    line: Connections, key: str, *, max_retries: int, timeout_s: float | None
) -> anthropic.AsyncAnthropic:
    """Return an `anthropic.AsyncAnthropic` over these connections; see `anthropic_client`."""
    return anthropic.AsyncAnthropic(
        api_key=key,
        base_url=line.gateway_url,
        max_retries=max_retries,
        timeout=anthropic.NOT_GIVEN if timeout_s is None else timeout_s,
        http_client=line.asynchronous(),
    )
