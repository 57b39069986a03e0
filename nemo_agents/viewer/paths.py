"""Where the viewer's pages are, for whoever serves other paths beside it and loads the viewer only when it is asked."""

from __future__ import annotations

from typing import Final

from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

__all__ = ["PATHS", "viewer_routes"]

PATHS: Final = ("/", "/runs", "/runs/{run_id}", "/roles", "/logs", "/static/{name}")
"""The paths that the viewer answers."""


def viewer_routes(app: ASGIApp) -> list[BaseRoute]:
    """Return routes that lead into the viewer, for an application that serves other paths beside it."""
    return [Route(path, endpoint=app, methods=None) for path in PATHS]
