"""`/metrics`: what Prometheus reads, for programs on this machine and for whoever has the admin key."""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from nemo_agents.gateway.admin.access import Access, AdminRoute, Caller, caller_of
from nemo_agents.gateway.admin.faults import AdminFault
from nemo_agents.gateway.metrics import Family
from nemo_agents.gateway.metrics.scrape import Scraper
from nemo_agents.gateway.state import Gateway
from nemo_agents.policy.hosts import host_allowed, is_loopback

__all__ = ["ROUTES"]

# What proxies add: whoever comes through one is not on this machine, though the proxy may be.
_FORWARDED: Final = ("forwarded", "x-forwarded-for", "x-real-ip", "via")


async def _metrics(gateway: Gateway, request: Request, _caller: Caller, _raw: bytes) -> Response:
    who = gateway.settings.metrics
    if who == "off":
        raise AdminFault(404, "Metrics are off; `metrics` of [gateway] says who may read them.", "not_found_error")
    if who == "key" or not _is_local(request):
        caller_of(gateway, request, Access.ADMIN)
    scraper: Scraper = request.app.state.scraper
    page, content_type = await asyncio.to_thread(_write, await scraper.families())
    return Response(page, headers={"content-type": content_type, "cache-control": "no-store"})


def _is_local(request: Request) -> bool:
    """Say whether a program on this machine asks, by one of the machine's own names, and through no proxy."""
    client = request.client
    return (
        client is not None
        and is_loopback(client.host)
        and host_allowed(request.headers.get("host", ""), ())
        and not any(name in request.headers for name in _FORWARDED)
    )


def _write(families: list[Family]) -> tuple[bytes, str]:
    # Slow to import, and needed only where somebody watches.
    from nemo_agents.gateway.metrics.exposition import CONTENT_TYPE, write  # noqa: PLC0415 - see above

    return write(families), CONTENT_TYPE


ROUTES = [AdminRoute(method="GET", path="/metrics", access=Access.PUBLIC, handler=_metrics)]
