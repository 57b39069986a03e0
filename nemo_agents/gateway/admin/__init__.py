"""The admin API and the viewer as one Starlette application beside the data plane."""

from __future__ import annotations

import structlog
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from nemo_agents.gateway.admin import events, fleets, keys, metrics, models, observe, prices, retention
from nemo_agents.gateway.admin.access import AdminRoute, to_starlette
from nemo_agents.gateway.admin.faults import AdminFault, fault_response
from nemo_agents.gateway.admin.reading import StoreReader
from nemo_agents.gateway.limiter.base import LimiterUnavailable
from nemo_agents.gateway.metrics.scrape import Scraper
from nemo_agents.gateway.state import Gateway
from nemo_agents.gateway.stores.base import StoreUnavailable
from nemo_agents.viewer.paths import viewer_routes

__all__ = ["ROUTES", "admin_and_viewer"]

ROUTES: list[AdminRoute] = [
    *observe.ROUTES,
    *metrics.ROUTES,
    *events.ROUTES,
    *keys.ROUTES,
    *fleets.ROUTES,
    *prices.ROUTES,
    *models.ROUTES,
    *retention.ROUTES,
]
_log = structlog.get_logger("nemo_agents.gateway")


def admin_and_viewer(gateway: Gateway) -> Starlette:
    """Return the application for everything that is not on the data plane."""
    app = Starlette(
        routes=[*(to_starlette(route, gateway) for route in ROUTES), *viewer_routes(_Viewer(gateway))],
        exception_handlers={
            AdminFault: fault_response,
            StoreUnavailable: _unavailable,
            404: _no_route,
            405: _wrong_method,
            500: _broken,
        },
    )
    app.router.redirect_slashes = False
    app.state.scraper = Scraper(gateway)
    return app


class _Viewer:
    """The viewer, imported when somebody opens it: a gateway that nobody looks at needs no template engine."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._app is None:
            self._app = await run_in_threadpool(self._make)
        await self._app(scope, receive, send)

    def _make(self) -> ASGIApp:
        from nemo_agents.viewer.app import viewer_app  # noqa: PLC0415 - see the class

        return viewer_app(
            StoreReader(self._gateway),
            token=self._gateway.secrets.viewer_token,
            allowed_hosts=self._gateway.settings.allowed_hosts,
            now_us=self._gateway.clock.now_us,
        )


async def _unavailable(request: Request, error: Exception) -> Response:
    rates = isinstance(error.__cause__, LimiterUnavailable)
    what = "rates cannot be read" if rates else "store cannot be used"
    fault = AdminFault(503, f"The gateway's {what} now. Try again shortly.", "service_unavailable")
    return await fault_response(request, fault)


async def _no_route(request: Request, _error: Exception) -> Response:
    return await fault_response(request, AdminFault(404, f"No such path: {request.url.path[:100]}", "not_found_error"))


async def _wrong_method(request: Request, _error: Exception) -> Response:
    return await fault_response(request, AdminFault(405, "Method not allowed here.", "method_not_allowed"))


async def _broken(request: Request, error: Exception) -> Response:
    _log.error("internal error", path=request.url.path, exc_info=error)
    return await fault_response(
        request, AdminFault(500, "The gateway failed on this request; see its log.", "internal_server_error")
    )
