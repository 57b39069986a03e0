"""Who may call what: every route names the credential that it needs, and nothing is open by default."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nemo_agents.gateway.admin.faults import AdminFault, bad
from nemo_agents.gateway.authentication import bearer, fleet_refusal
from nemo_agents.gateway.state import Gateway
from nemo_agents.policy.keys import Grant
from nemo_agents.policy.refusal import Refusal

__all__ = ["Access", "AdminRoute", "Caller", "caller_of", "to_starlette"]

_MAX_BODY_BYTES = 2 * 1024 * 1024
_NOWHERE = "\0"  # not "", under which the store keeps what belongs to no fleet, of whichever key


class Access(Enum):
    """The credential that a route needs."""

    PUBLIC = "public"
    KEY = "key"  # a virtual key, which sees its own fleet only; the admin key as well
    ADMIN = "admin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who calls: the admin, or the holder of a virtual key. `fleet` restricts what a key may see."""

    admin: bool
    grant: Grant | None = None

    @property
    def fleet(self) -> str | None:
        """The fleet a key is bound to; for a key without one, a name that no fleet has."""
        if self.admin or self.grant is None:
            return None
        return self.grant.fleet or _NOWHERE


Handler = Callable[[Gateway, Request, Caller, bytes], Awaitable[Response]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminRoute:
    """One route: method, path, the credential it needs, and what it does."""

    method: str
    path: str
    access: Access
    handler: Handler
    max_body_bytes: int = _MAX_BODY_BYTES


def to_starlette(route: AdminRoute, gateway: Gateway) -> Route:
    """Return the Starlette route that checks the credential, reads the body, and calls the handler."""

    async def endpoint(request: Request) -> Response:
        caller = caller_of(gateway, request, route.access)
        body = await _body(request, route.max_body_bytes)
        if route.access is Access.ADMIN and route.method != "GET":
            async with gateway.changing:
                return await route.handler(gateway, request, caller, body)
        return await route.handler(gateway, request, caller, body)

    return Route(route.path, endpoint, methods=[route.method], name=f"{route.method} {route.path}")


def caller_of(gateway: Gateway, request: Request, access: Access) -> Caller:
    """Return who calls. Raises AdminFault for a credential that is absent, not good now, or not enough."""
    if access is Access.PUBLIC:
        return Caller(admin=False)
    presented = bearer(dict(request.headers))
    if presented is None:
        raise AdminFault(401, "No key: send `Authorization: Bearer <admin key>`.", "auth_error")
    if hmac.compare_digest(presented.encode(), gateway.secrets.admin_key.reveal().encode()):
        return Caller(admin=True)
    found = gateway.keyring.authenticate(presented, now_us=gateway.clock.now_us())
    if isinstance(found, Refusal):
        raise AdminFault(found.status, found.message, "auth_error")
    if access is Access.ADMIN:
        raise AdminFault(403, "A virtual key may not do this; it needs the admin key.", "auth_error")
    if fleet_refusal(gateway, found[0]) is not None:
        raise AdminFault(403, f"The fleet {found[0].fleet} is blocked.", "auth_error")
    return Caller(admin=False, grant=found[0])


async def _body(request: Request, max_bytes: int) -> bytes:
    if request.method in ("GET", "HEAD"):
        return b""
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > max_bytes:
            raise AdminFault(413, f"The body is larger than {max_bytes} bytes.", "bad_request_error")
    if raw and not request.headers.get("content-type", "").startswith("application/json"):
        raise bad("Send the body as `content-type: application/json`.")
    return bytes(raw)
