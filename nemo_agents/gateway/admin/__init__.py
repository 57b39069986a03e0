"""The admin API and the viewer as one Starlette application beside the data plane."""

from __future__ import annotations

import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from nemo_agents.gateway.admin import fleets, keys, observe
from nemo_agents.gateway.admin.access import AdminRoute, to_starlette
from nemo_agents.gateway.admin.faults import AdminFault, fault_response
from nemo_agents.gateway.admin.reading import StoreReader
from nemo_agents.gateway.state import Gateway
from nemo_agents.gateway.stores.base import StoreUnavailable
from nemo_agents.viewer.app import viewer_app, viewer_routes

__all__ = ["ROUTES", "admin_and_viewer"]

ROUTES: list[AdminRoute] = [*observe.ROUTES, *keys.ROUTES, *fleets.ROUTES]
_log = structlog.get_logger("nemo_agents.gateway")


def admin_and_viewer(gateway: Gateway) -> Starlette:
    """Return the application for everything that is not on the data plane."""
    viewer = viewer_app(
        StoreReader(gateway),
        token=gateway.secrets.viewer_token,
        allowed_hosts=gateway.settings.allowed_hosts,
        now_us=gateway.clock.now_us,
    )
    app = Starlette(
        routes=[*(to_starlette(route, gateway) for route in ROUTES), *viewer_routes(viewer)],
        exception_handlers={
            AdminFault: fault_response,
            StoreUnavailable: _unavailable,
            404: _no_route,
            405: _wrong_method,
            500: _broken,
        },
    )
    app.router.redirect_slashes = False
    return app


async def _unavailable(request: Request, _error: Exception) -> Response:
    fault = AdminFault(503, "The gateway's store cannot be used now. Try again shortly.", "service_unavailable")
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
