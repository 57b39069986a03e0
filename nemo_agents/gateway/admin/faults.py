"""Errors of the admin API in LiteLLM's shape, where `code` is the HTTP status as text."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from nemo_agents.gateway.admin.json import json_response

__all__ = ["AdminFault", "bad", "fault_response", "not_found"]


class AdminFault(Exception):  # noqa: N818 - answered, never raised to a caller
    """An admin call that cannot be done: `type` is LiteLLM's word for the class of error."""

    def __init__(self, status: int, message: str, type_: str, param: str | None = None) -> None:
        self.status = status
        self.message = message
        self.type = type_
        self.param = param
        super().__init__(message)


def bad(message: str, param: str | None = None) -> AdminFault:
    """Return the fault for input that cannot be meant."""
    return AdminFault(400, message, "bad_request_error", param)


def not_found(what: str) -> AdminFault:
    """Return the fault for a name that the gateway does not know."""
    return AdminFault(404, f"{what} not found.", "not_found_error")


async def fault_response(_request: Request, fault: Exception) -> Response:
    """Answer with a fault."""
    assert isinstance(fault, AdminFault)
    error = {"message": fault.message, "type": fault.type, "param": fault.param, "code": str(fault.status)}
    return json_response({"error": error}, status=fault.status)
