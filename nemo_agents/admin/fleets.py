"""Fleets on LiteLLM's wire, where a fleet is a team: `/team/*`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from nemo_agents.admin.calls import Call, as_type, ignored
from nemo_agents.admin.wire import TeamRow

__all__ = ["delete", "every", "info", "new", "update"]


class _TeamInfo(msgspec.Struct):
    team_info: TeamRow


def new(fleet: str, fields: Mapping[str, Any]) -> Call[None]:
    """Create a fleet; its id and its alias are its name."""
    body = {"team_id": fleet, "team_alias": fleet, **fields}
    return Call(method="POST", path="/team/new", body=body, decode=ignored)


def update(fleet: str, fields: Mapping[str, Any]) -> Call[None]:
    """Change the fields given: an absent field stays, None clears. `metadata` replaces the whole object."""
    return Call(method="POST", path="/team/update", body={"team_id": fleet, **fields}, decode=ignored)


def info(fleet: str) -> Call[TeamRow]:
    """Read one fleet. An unknown fleet is AdminError with status 404."""
    return Call(method="GET", path="/team/info", query={"team_id": fleet}, decode=_team_info)


def every() -> Call[list[TeamRow]]:
    """Read all fleets."""
    return Call(method="GET", path="/team/list", decode=as_type(list[TeamRow]))


def delete(fleets: Sequence[str]) -> Call[None]:
    """Remove fleets; their history stays."""
    return Call(method="POST", path="/team/delete", body={"team_ids": list(fleets)}, decode=ignored)


def _team_info(answer: bytes) -> TeamRow:
    return msgspec.json.decode(answer, type=_TeamInfo).team_info
