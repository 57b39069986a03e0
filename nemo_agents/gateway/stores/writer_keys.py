"""Grants with their secrets, fleets and deployments: small tables, written whole and read whole."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from typing import Any

from nemo_agents.gateway.stores.base import FleetRecord
from nemo_agents.gateway.stores.writer_books import Books
from nemo_agents.policy.keys import Grant, KeySecret
from nemo_agents.policy.routing import Deployment

__all__ = [
    "delete_deployment",
    "delete_fleet",
    "put_deployment",
    "put_fleet",
    "put_grant",
    "read_deployments",
    "read_fleets",
    "read_grants",
]

_GRANT = (
    "grant_id",
    "alias",
    "fleet",
    "role",
    "models",
    "rpm",
    "tpm",
    "max_parallel",
    "budget_nanos",
    "budget_duration",
    "alert_at",
    "guardrails",
    "tools",
    "metadata",
    "blocked",
    "created_us",
    "updated_us",
    "expires_us",
    "revoked_us",
    "last_used_us",
)
_SECRET = ("public_id", "digest", "created_us", "expires_us", "revoked_us")
_FLEET = (
    "fleet",
    "budget_nanos",
    "budget_duration",
    "alert_at",
    "rpm",
    "tpm",
    "models",
    "metadata",
    "blocked",
    "created_us",
    "updated_us",
)
_DEPLOYMENT = ("deployment_id", "fleet", "group_name", "model", "order_no", "weight")


def _upsert(table: str, names: tuple[str, ...], *, newer: tuple[str, ...] = ()) -> str:
    key, *rest = names
    sets = ", ".join(
        f"{n} = nullif(max(coalesce({table}.{n}, 0), coalesce(excluded.{n}, 0)), 0)"
        if n in newer
        else f"{n} = excluded.{n}"
        for n in rest
    )
    marks = ", ".join("?" * len(names))
    return (
        f"INSERT INTO {table}({', '.join(names)}) VALUES ({marks})"  # noqa: S608 - our own column names
        f" ON CONFLICT ({key}) DO UPDATE SET {sets}"
    )


_PUT_GRANT = _upsert("grants", _GRANT, newer=("last_used_us",))  # an edit must not set the clock back
_PUT_FLEET = _upsert("fleets", _FLEET)
_PUT_DEPLOYMENT = _upsert("deployments", _DEPLOYMENT)


def put_grant(books: Books, grant: Grant) -> None:
    """Insert or replace a grant and its secrets."""
    values = {name: getattr(grant, name) for name in _GRANT}
    values["models"] = json.dumps(grant.models)
    values["guardrails"] = json.dumps(grant.guardrails)
    values["tools"] = None if grant.tools is None else json.dumps(grant.tools)
    values["metadata"] = json.dumps(grant.metadata)
    values["blocked"] = int(grant.blocked)
    books.db.execute(_PUT_GRANT, tuple(values.values()))
    books.db.execute("DELETE FROM secrets WHERE grant_id=?", (grant.grant_id,))
    books.db.executemany(
        "INSERT INTO secrets(grant_id, public_id, digest, created_us, expires_us, revoked_us)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        [(grant.grant_id, *(getattr(secret, name) for name in _SECRET)) for secret in grant.secrets],
    )


def put_fleet(books: Books, fleet: FleetRecord) -> None:
    """Insert or replace a fleet."""
    values = {name: getattr(fleet, name) for name in _FLEET}
    values["models"] = json.dumps(fleet.models)
    values["metadata"] = json.dumps(fleet.metadata)
    values["blocked"] = int(fleet.blocked)
    books.db.execute(_PUT_FLEET, tuple(values.values()))


def delete_fleet(books: Books, fleet: str) -> bool:
    """Remove a fleet's record; say whether there was one."""
    return books.db.execute("DELETE FROM fleets WHERE fleet=?", (fleet,)).rowcount > 0


def put_deployment(books: Books, deployment: Deployment) -> None:
    """Insert or replace a deployment."""
    d = deployment
    books.db.execute(_PUT_DEPLOYMENT, (d.deployment_id, d.fleet, d.group, d.model, d.order, d.weight))


def delete_deployment(books: Books, deployment_id: str) -> bool:
    """Remove a deployment; say whether there was one."""
    return books.db.execute("DELETE FROM deployments WHERE deployment_id=?", (deployment_id,)).rowcount > 0


def read_grants(db: sqlite3.Connection, last_used: Mapping[str, int]) -> list[Grant]:
    """Return every grant with its secrets; `last_used` holds later times than the file."""
    secrets: dict[str, list[KeySecret]] = {}
    for grant_id, *values in db.execute(
        f"SELECT grant_id, {', '.join(_SECRET)} FROM secrets ORDER BY created_us, public_id"  # noqa: S608 - our own names
    ):
        secrets.setdefault(grant_id, []).append(KeySecret(**dict(zip(_SECRET, values, strict=True))))
    grants = []
    for row in db.execute(f"SELECT {', '.join(_GRANT)} FROM grants ORDER BY created_us, grant_id"):  # noqa: S608 - likewise
        values_of: dict[str, Any] = dict(zip(_GRANT, row, strict=True))
        values_of["models"] = tuple(json.loads(values_of["models"]))
        values_of["guardrails"] = tuple(json.loads(values_of["guardrails"]))
        values_of["tools"] = None if values_of["tools"] is None else tuple(json.loads(values_of["tools"]))
        values_of["metadata"] = json.loads(values_of["metadata"])
        values_of["blocked"] = bool(values_of["blocked"])
        used = max(values_of["last_used_us"] or 0, last_used.get(values_of["grant_id"], 0))
        values_of["last_used_us"] = used or None
        grants.append(Grant(**values_of, secrets=tuple(secrets.get(values_of["grant_id"], ()))))
    return grants


def read_fleets(db: sqlite3.Connection) -> list[FleetRecord]:
    """Return every fleet."""
    fleets = []
    for row in db.execute(f"SELECT {', '.join(_FLEET)} FROM fleets ORDER BY fleet"):  # noqa: S608 - our own names
        values: dict[str, Any] = dict(zip(_FLEET, row, strict=True))
        values["models"] = tuple(json.loads(values["models"]))
        values["metadata"] = json.loads(values["metadata"])
        values["blocked"] = bool(values["blocked"])
        fleets.append(FleetRecord(**values))
    return fleets


def read_deployments(db: sqlite3.Connection) -> list[Deployment]:
    """Return every deployment, in the order in which a group tries them."""
    rows = db.execute(
        f"SELECT {', '.join(_DEPLOYMENT)} FROM deployments ORDER BY group_name, order_no, deployment_id"  # noqa: S608 - our own names
    )
    return [
        Deployment(deployment_id=i, fleet=fleet, group=group, model=model, order=order, weight=weight)
        for i, fleet, group, model, order, weight in rows
    ]
