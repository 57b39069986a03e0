"""`/nemo/…`: runs, request log, status, ledger check; what LiteLLM has no endpoint for."""

from __future__ import annotations

import re
import time
from typing import Any
from urllib.parse import quote

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from nemo_agents import __version__
from nemo_agents.admin import wire
from nemo_agents.gateway.admin.access import Access, AdminRoute, Caller
from nemo_agents.gateway.admin.faults import AdminFault, bad, not_found
from nemo_agents.gateway.admin.fields import parse_fields
from nemo_agents.gateway.admin.json import json_response
from nemo_agents.gateway.admin.retention import run_not_found
from nemo_agents.gateway.health import readiness
from nemo_agents.gateway.state import Gateway
from nemo_agents.gateway.status import fleet_statuses
from nemo_agents.gateway.stores.base import LogFilter
from nemo_agents.policy.grouping import is_run_id
from nemo_agents.policy.guardrails import BUILTIN
from nemo_agents.viewer.suspects import GoodRun, texts_wanted
from nemo_agents.viewer.verdict import told, why

__all__ = ["ROUTES"]

_VIEWER_PATH = re.compile(r"/|/(?:[A-Za-z0-9_.:@%-]+/?)+")
_NUMBERS = ("status", "since_us")
_TEXTS = ("fleet", "role", "model", "code", "run_id", "state")


class _Path(msgspec.Struct):
    path: str = "/runs"


async def _live(_gateway: Gateway, _request: Request, _caller: Caller, _raw: bytes) -> Response:
    return json_response({"status": "alive"})


async def _ready(gateway: Gateway, _request: Request, _caller: Caller, _raw: bytes) -> Response:
    status, body = await readiness(gateway)
    return json_response(body, status=status)


async def _info(gateway: Gateway, _request: Request, _caller: Caller, _raw: bytes) -> Response:
    return json_response(
        {
            "version": __version__,
            "providers": sorted(gateway.providers),
            "stand_in": gateway.stand_in,
            "guardrails": list(BUILTIN),
        }
    )


async def _status(gateway: Gateway, request: Request, caller: Caller, _raw: bytes) -> Response:
    wanted = caller.fleet if caller.fleet is not None else request.query_params.get("fleet")
    statuses = await fleet_statuses(gateway)
    return json_response([status for status in statuses if wanted in (None, status.fleet)])


async def _runs(gateway: Gateway, request: Request, caller: Caller, _raw: bytes) -> Response:
    where, before, limit = _page(request, caller)
    try:
        return json_response(await gateway.store.runs(where, before=before, limit=limit))
    except ValueError as error:
        raise bad(f"`before`: {error}.", "before") from None


async def _logs(gateway: Gateway, request: Request, caller: Caller, _raw: bytes) -> Response:
    where, before, limit = _page(request, caller)
    try:
        return json_response(await gateway.store.calls(where, before=before, limit=limit))
    except ValueError as error:
        raise bad(f"`before`: {error}.", "before") from None


async def _run(gateway: Gateway, request: Request, caller: Caller, _raw: bytes) -> Response:
    return json_response(await _find_run(gateway, request, caller))


async def _why(gateway: Gateway, request: Request, caller: Caller, _raw: bytes) -> Response:
    detail = await _find_run(gateway, request, caller)
    contents = await gateway.store.contents(texts_wanted(detail))
    good = None
    if asked := request.query_params.get("good"):
        compared = await gateway.store.run(asked, fleet=_fleet_of(request, caller))
        if compared is None:
            raise bad("`good` names no run.", "good")
        good = GoodRun(detail=compared, contents=await gateway.store.contents(texts_wanted(compared)))

    def explain() -> wire.Why:
        return told(detail, why(detail, contents, now_us=time.time_ns() // 1_000, good=good))

    # Long conversations take a moment to compare, and the loop carries agents' streams.
    return json_response(await run_in_threadpool(explain))


async def _stop(gateway: Gateway, request: Request, caller: Caller, _raw: bytes) -> Response:
    detail = await _find_run(gateway, request, caller)
    if not await gateway.stop_run(detail.run.fleet or "", detail.run.run_id):
        raise not_found("Run")
    return json_response({"run_id": detail.run.run_id, "stopped": True})


async def _report(gateway: Gateway, request: Request, caller: Caller, raw: bytes) -> Response:
    fleet, run_id = caller.grant.fleet if caller.grant else None, request.path_params["run_id"]
    if fleet is None:
        raise AdminFault(403, "A run is reported with a virtual key of its fleet.", "auth_error")
    if not is_run_id(run_id):
        raise bad("A run id is 1 to 128 characters out of A-Z a-z 0-9 _ . : @ -.", "run_id")
    try:
        await gateway.store.report_run(fleet, run_id, parse_fields(raw, wire.RunReport))
    except (ValueError, OverflowError) as error:
        raise AdminFault(422, str(error), "bad_request_error") from None
    detail = await gateway.store.run(run_id, fleet=fleet)
    if detail is None:
        raise not_found("Run")
    return json_response(detail.run)


async def _call(gateway: Gateway, request: Request, caller: Caller, _raw: bytes) -> Response:
    return json_response(await _find_call(gateway, request, caller))


async def _content(gateway: Gateway, request: Request, caller: Caller, _raw: bytes) -> Response:
    row = await _find_call(gateway, request, caller)
    contents = await gateway.store.contents([row.request_id])
    return json_response(contents.get(row.request_id, wire.CallContent(request_id=row.request_id)))


async def _verify(gateway: Gateway, _request: Request, _caller: Caller, _raw: bytes) -> Response:
    return json_response({"problems": list(await gateway.store.verify_ledger())})


async def _viewer_link(gateway: Gateway, _request: Request, _caller: Caller, raw: bytes) -> Response:
    path = parse_fields(raw, _Path).path
    if _VIEWER_PATH.fullmatch(path) is None:
        raise bad("`path` must be a path of the viewer, such as /runs.", "path")
    token = gateway.secrets.viewer_token.reveal()
    return json_response({"url": f"{gateway.base_url}{path}?token={quote(token)}"})


def _fleet_of(request: Request, caller: Caller) -> str | None:
    return caller.fleet if caller.fleet is not None else request.query_params.get("fleet")


async def _find_run(gateway: Gateway, request: Request, caller: Caller) -> wire.RunDetail:
    detail = await gateway.store.run(request.path_params["run_id"], fleet=_fleet_of(request, caller))
    if detail is None:
        raise await run_not_found(gateway)
    return detail


async def _find_call(gateway: Gateway, request: Request, caller: Caller) -> wire.CallRow:
    row = await gateway.store.call(request.path_params["request_id"])
    if row is None or caller.fleet not in (None, row.fleet):
        raise not_found("Call")
    return row


def _page(request: Request, caller: Caller) -> tuple[LogFilter, str | None, int]:
    query = request.query_params
    conditions: dict[str, Any] = {name: query[name] for name in _TEXTS if query.get(name)}
    conditions |= {name: _number(query[name], name) for name in _NUMBERS if query.get(name)}
    if caller.fleet is not None:
        conditions["fleet"] = caller.fleet
    return LogFilter(**conditions), query.get("before"), min(_number(query.get("limit", "50"), "limit") or 50, 500)


def _number(text: str, param: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise bad(f"`{param}` must be a whole number.", param)
    return int(text)


ROUTES = [
    AdminRoute(method="GET", path="/health/live", access=Access.PUBLIC, handler=_live),
    AdminRoute(method="GET", path="/health/ready", access=Access.PUBLIC, handler=_ready),
    AdminRoute(method="GET", path="/nemo/info", access=Access.ADMIN, handler=_info),
    AdminRoute(method="GET", path="/nemo/status", access=Access.KEY, handler=_status),
    AdminRoute(method="GET", path="/nemo/runs", access=Access.KEY, handler=_runs),
    AdminRoute(method="GET", path="/nemo/runs/{run_id}", access=Access.KEY, handler=_run),
    AdminRoute(method="GET", path="/nemo/runs/{run_id}/why", access=Access.KEY, handler=_why),
    AdminRoute(method="POST", path="/nemo/runs/{run_id}/stop", access=Access.ADMIN, handler=_stop),
    AdminRoute(method="POST", path="/nemo/runs/{run_id}/report", access=Access.KEY, handler=_report),
    AdminRoute(method="GET", path="/nemo/logs", access=Access.KEY, handler=_logs),
    AdminRoute(method="GET", path="/nemo/calls/{request_id}", access=Access.KEY, handler=_call),
    AdminRoute(method="GET", path="/nemo/calls/{request_id}/content", access=Access.KEY, handler=_content),
    AdminRoute(method="GET", path="/nemo/ledger/verify", access=Access.ADMIN, handler=_verify),
    AdminRoute(method="POST", path="/nemo/viewer-link", access=Access.ADMIN, handler=_viewer_link),
]
