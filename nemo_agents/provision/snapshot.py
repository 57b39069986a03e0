"""Read what the gateway has of a fleet into one value with a fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from nemo_agents.admin import deployments, fleets, keys
from nemo_agents.admin.calls import Flow, ask
from nemo_agents.admin.wire import DeploymentRow, KeyRow, TeamRow
from nemo_agents.errors import AdminError
from nemo_agents.provision.specs import is_managed, key_alias, nemo_metadata

__all__ = ["Snapshot", "read_snapshot"]

# What changes by use alone does not make a plan stale.
_VOLATILE = (
    "spend",
    "budget_reset_at",
    "last_active",
    "created_at",
    "updated_at",
    "blocked",
    "rotation_count",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The gateway's side of one fleet: its team, the keys in it or under its aliases, its deployments."""

    gateway_url: str
    fleet: str
    team: TeamRow | None = None
    keys: tuple[KeyRow, ...] = ()
    deployments: tuple[DeploymentRow, ...] = ()

    @property
    def fingerprint(self) -> str:
        """A SHA-256 (hex) over everything that a plan depends on."""
        value = [
            self.fleet,
            None if self.team is None else _stable(self.team),
            sorted((_stable(row) for row in self.keys), key=lambda row: str(row["token"])),
            sorted((_stable(row) for row in self.deployments), key=lambda row: str(row["model_info"]["id"])),
        ]
        return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).hexdigest()

    def managed_keys(self) -> tuple[KeyRow, ...]:
        """Return the fleet's keys that provisioning owns."""
        return tuple(row for row in self.keys if row.team_id == self.fleet and is_managed(row.metadata))

    def foreign_keys(self) -> tuple[KeyRow, ...]:
        """Return the fleet's keys that provisioning does not own."""
        return tuple(row for row in self.keys if row.team_id == self.fleet and not is_managed(row.metadata))

    def key_by_alias(self, alias: str) -> KeyRow | None:
        """Return the key of this alias, whoever owns it."""
        return next((row for row in self.keys if row.key_alias == alias), None)

    def keys_of(self, role: str) -> tuple[KeyRow, ...]:
        """Return the keys that provisioning owns for a role; more than one is an accident."""
        return tuple(row for row in self.managed_keys() if nemo_metadata(row.metadata).get("role") == role)


def read_snapshot(gateway_url: str, fleet: str, roles: Sequence[str]) -> Flow[Snapshot]:
    """Read a fleet. `roles` are the declared ones, whose aliases keys outside of the fleet may hold."""
    team = yield from _team(fleet)
    rows = [row for row in (yield from keys.every(team_id=fleet)) if row.team_id == fleet]
    taken = {row.key_alias for row in rows}
    for alias in sorted(key_alias(fleet, role) for role in roles):
        if alias not in taken:
            # A gateway may match aliases by part, or ignore a filter that it does not know.
            rows.extend(row for row in (yield from keys.every(key_alias=alias)) if row.key_alias == alias)
    found = yield from ask(deployments.every())
    return Snapshot(
        gateway_url=gateway_url,
        fleet=fleet,
        team=team,
        keys=tuple({row.token: row for row in rows}.values()),
        deployments=tuple(row for row in found if _belongs(row, fleet)),
    )


def _team(fleet: str) -> Flow[TeamRow | None]:
    try:
        return (yield from ask(fleets.info(fleet)))
    except AdminError as error:
        if error.status == 404:
            return None
        raise


def _belongs(row: DeploymentRow, fleet: str) -> bool:
    ours = str(row.model_info.get("id", "")).startswith(f"{fleet}/")
    return ours and row.model_info.get("team_id") == fleet


def _stable(row: TeamRow | KeyRow | DeploymentRow) -> dict[str, Any]:
    value: dict[str, Any] = msgspec.to_builtins(row)
    if isinstance(row, DeploymentRow):  # a gateway adds prices and capabilities of its own
        params = {key: row.litellm_params.get(key) for key in ("model", "order", "weight")}
        info = {key: item for key, item in row.model_info.items() if key == "id" or key.startswith("nemo_")}
        return {"name": row.model_name, "params": params, "model_info": info}
    return {key: item for key, item in value.items() if key not in _VOLATILE}
