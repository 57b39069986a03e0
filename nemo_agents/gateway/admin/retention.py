"""`/nemo/runs/prune` and `/nemo/log`: delete what is old, and see how large the log is."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from nemo_agents.gateway.admin.access import Access, AdminRoute, Caller
from nemo_agents.gateway.admin.faults import AdminFault, bad, not_found
from nemo_agents.gateway.admin.fields import parse_fields
from nemo_agents.gateway.admin.json import json_response
from nemo_agents.gateway.retention import PruneWish, RetentionBusy
from nemo_agents.gateway.state import Gateway

__all__ = ["ROUTES", "run_not_found"]

_YOUNGEST_S = 3600
_OLDEST_S = 100 * 366 * 86_400
_WITHIN_S = 5.0  # before the client's patience ends; it asks again


class _Asked(msgspec.Struct, forbid_unknown_fields=True):
    older_than_s: int
    contents_only: bool = False
    vacuum: bool = False
    dry_run: bool = False


async def run_not_found(gateway: Gateway) -> AdminFault:
    """Return the fault for a run that is not there; where runs were pruned, it says so."""
    cut_us = (await gateway.store.log_size()).pruned_before_us
    if cut_us is None:
        return not_found("Run")
    day = datetime.fromtimestamp(cut_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M UTC")
    message = (
        f"Run not found. Runs that were over before {day} have been pruned; their costs are still in the balances."
    )
    return AdminFault(404, message, "not_found_error")


async def _prune(gateway: Gateway, _request: Request, _caller: Caller, raw: bytes) -> Response:
    asked: _Asked = parse_fields(raw, _Asked)
    if not _YOUNGEST_S <= asked.older_than_s <= _OLDEST_S:
        raise bad("`older_than_s` must be at least an hour (3600) and at most a hundred years.", "older_than_s")
    wish = PruneWish(older_than_s=asked.older_than_s, contents_only=asked.contents_only, vacuum=asked.vacuum)
    if asked.dry_run:
        return json_response(await gateway.retention.foresee(wish))
    try:
        return json_response(await gateway.retention.prune(wish, within_s=_WITHIN_S))
    except RetentionBusy:
        message = "This gateway deletes something else just now. Try again when it is done."
        raise AdminFault(409, message, "conflict_error") from None


async def _size(gateway: Gateway, _request: Request, _caller: Caller, _raw: bytes) -> Response:
    return json_response(await gateway.retention.size())


ROUTES = [
    AdminRoute(method="POST", path="/nemo/runs/prune", access=Access.ADMIN, handler=_prune),
    AdminRoute(method="GET", path="/nemo/log", access=Access.ADMIN, handler=_size),
]
