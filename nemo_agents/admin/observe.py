"""What the gateway knows about fleets, runs and calls: `/nemo/*`. Money is nanos, time microseconds (UTC)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict, Unpack

import msgspec

from nemo_agents.admin.calls import Call, as_type, ignored, query_of, segment
from nemo_agents.admin.wire import (
    CallContent,
    CallRow,
    FleetStatus,
    LogPage,
    RunDetail,
    RunPage,
    RunReport,
    RunRow,
    Why,
)

__all__ = [
    "Where",
    "call",
    "content",
    "info",
    "logs",
    "report",
    "run",
    "runs",
    "status",
    "stop",
    "traces",
    "verify",
    "viewer_link",
    "why",
]


class Where(TypedDict, total=False):
    """Conditions on runs and calls; absent and None do not restrict.

    `model` is the one asked for or served, `since_us` microseconds since the epoch; `before` is the `next` of the page
    before, `limit` the most rows of a page.
    """

    fleet: str | None
    role: str | None
    model: str | None
    status: int | None
    code: str | None
    run_id: str | None
    state: str | None
    since_us: int | None
    before: str | None
    limit: int | None


class _Link(msgspec.Struct):
    url: str


def status(fleet: str | None = None) -> Call[list[FleetStatus]]:
    """Read spend, limits and their use now, of one fleet or of all."""
    return Call(method="GET", path="/nemo/status", query=query_of(fleet=fleet), decode=as_type(list[FleetStatus]))


def runs(**where: Unpack[Where]) -> Call[RunPage]:
    """Read a page of runs, newest first."""
    return Call(method="GET", path="/nemo/runs", query=query_of(**where), decode=as_type(RunPage))


def logs(**where: Unpack[Where]) -> Call[LogPage]:
    """Read a page of the request log, newest first."""
    return Call(method="GET", path="/nemo/logs", query=query_of(**where), decode=as_type(LogPage))


def run(run_id: str, *, fleet: str | None = None) -> Call[RunDetail]:
    """Read one run by its id, by a prefix of six or more characters, or `last`."""
    return Call(
        method="GET",
        path=f"/nemo/runs/{segment(run_id)}",
        query=query_of(fleet=fleet),
        decode=as_type(RunDetail),
    )


def why(run_id: str, *, fleet: str | None = None, good: str | None = None) -> Call[Why]:
    """Read how a run ended and why; the run as in `run`, `good` likewise a run that went well to compare it with."""
    return Call(
        method="GET",
        path=f"/nemo/runs/{segment(run_id)}/why",
        query=query_of(fleet=fleet, good=good),
        decode=as_type(Why),
    )


def stop(run_id: str, *, fleet: str | None = None) -> Call[None]:
    """Refuse every further call of a run."""
    path = f"/nemo/runs/{segment(run_id)}/stop"
    return Call(method="POST", path=path, query=query_of(fleet=fleet), decode=ignored)


def report(run_id: str, told: RunReport) -> Call[RunRow]:
    """Tell what the SDK knows about a run; a later report replaces an earlier one. Takes a role's key."""
    path = f"/nemo/runs/{segment(run_id)}/report"
    return Call(method="POST", path=path, body=msgspec.to_builtins(told), decode=as_type(RunRow))


def traces(spans: Mapping[str, Any]) -> Call[None]:
    """Send spans as an OTLP/JSON export request. Takes a role's key."""
    return Call(method="POST", path="/v1/traces", body=spans, decode=ignored)


def call(request_id: str) -> Call[CallRow]:
    """Read one record of the request log with its attempts."""
    return Call(method="GET", path=f"/nemo/calls/{segment(request_id)}", decode=as_type(CallRow))


def content(request_id: str) -> Call[CallContent]:
    """Read what a call said, where content was kept."""
    return Call(method="GET", path=f"/nemo/calls/{segment(request_id)}/content", decode=as_type(CallContent))


def verify() -> Call[dict[str, Any]]:
    """Recompute every balance from the ledger's entries."""
    return Call(method="GET", path="/nemo/ledger/verify", decode=as_type(dict[str, Any]))


def info() -> Call[dict[str, Any]]:
    """Read the gateway's version, backend and capabilities."""
    return Call(method="GET", path="/nemo/info", decode=as_type(dict[str, Any]))


def viewer_link(path: str = "/runs") -> Call[str]:
    """Ask for a link that opens the viewer at this page, signed in by its read token."""
    return Call(method="POST", path="/nemo/viewer-link", body={"path": path}, decode=_link)


def _link(answer: bytes) -> str:
    return msgspec.json.decode(answer, type=_Link).url
