"""The ASGI application: `/v1/…` to the data plane, everything else to the admin API and the viewer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from functools import lru_cache
from typing import Any

from nemo_agents.errors import Code
from nemo_agents.gateway.answers import Send, send_json
from nemo_agents.gateway.dataplane import DataPlane
from nemo_agents.gateway.otlp.intake import TRACES, TraceIntake
from nemo_agents.gateway.state import Gateway
from nemo_agents.policy.hosts import host_allowed
from nemo_agents.policy.refusal import Refusal
from nemo_agents.policy.wires.envelope import openai_error

__all__ = ["GatewayApp"]

AsgiApp = Callable[[MutableMapping[str, Any], Any, Any], Awaitable[None]]


class GatewayApp:
    """One gateway as an ASGI application. `pages` serves all that is not on the data plane."""

    def __init__(self, gateway: Gateway, pages: AsgiApp) -> None:
        self._data_plane = DataPlane(gateway)
        self._traces = TraceIntake(gateway)
        self._pages = pages
        allowed_hosts = gateway.settings.allowed_hosts
        # Clients keep to a few names; what is remembered of others is as bounded as a request's head.
        self._host_allowed = lru_cache(maxsize=16)(lambda host: host_allowed(host.decode("latin-1"), allowed_hosts))

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Send) -> None:
        """Serve one connection's request; websockets and other protocols are refused by saying nothing."""
        if scope["type"] != "http":
            return
        # Binding to loopback does not keep web pages out: a page may rebind its own host name to 127.0.0.1.
        host = next((value for name, value in scope["headers"] if name == b"host"), b"")
        if not self._host_allowed(host):
            await send_json(send, _MISDIRECTED.status, openai_error(_MISDIRECTED, ""), {})
        elif scope["path"] == TRACES:
            await self._traces(scope, receive, send)
        elif scope["path"].startswith("/v1/"):
            await self._data_plane(scope, receive, send)
        else:
            await self._pages(scope, receive, send)


_MISDIRECTED = Refusal(
    status=421,
    code=Code.MISDIRECTED_REQUEST,
    message="This host name is not the gateway's. Use 127.0.0.1 or localhost, or add the name to `allowed_hosts`.",
)
