"""Grants with their secrets, fleets and deployments: small tables, written whole and read whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from nemo_agents.gateway.stores.base import FleetRecord
from nemo_agents.gateway.stores.database import Database
from nemo_agents.gateway.stores.writer_books import Books
from nemo_agents.policy.budgets import BudgetRule, LoopRule, ModelLimit
from nemo_agents.policy.keys import Grant, KeySecret
from nemo_agents.policy.routing import Deployment, Options

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
    "model_limits",
    "budgets",
    "shadow",
    "loop",
    "request_nanos",
    "cache_ttl_s",
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
    "budgets",
    "shadow",
    "rpm",
    "tpm",
    "max_parallel",
    "models",
    "metadata",
    "blocked",
    "created_us",
    "updated_us",
)
_DEPLOYMENT = (
    "deployment_id",
    "fleet",
    "group_name",
    "model",
    "order_no",
    "weight",
    "context_tokens",
    "options",
    "applied",
)

# What is kept as JSON text, and what it is.
_JSON: Final[dict[str, Any]] = {
    "models": tuple[str, ...],
    "model_limits": tuple[ModelLimit, ...],
    "shadow": tuple[str, ...],
    "budgets": tuple[BudgetRule, ...],
    "loop": LoopRule,
    "guardrails": tuple[str, ...],
    "tools": tuple[str, ...],
    "metadata": dict[str, Any],
}


def _kept(record: Grant | FleetRecord, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the columns of a record."""
    values = {name: getattr(record, name) for name in names}
    for name in _JSON.keys() & values.keys():
        if values[name] is not None:
            values[name] = msgspec.json.encode(values[name]).decode()
    values["blocked"] = int(record.blocked)
    return values


def _told(names: tuple[str, ...], row: tuple[Any, ...]) -> dict[str, Any]:
    """Return the fields that a row tells."""
    values = dict(zip(names, row, strict=True))
    for name in _JSON.keys() & values.keys():
        if values[name] is not None:
            values[name] = msgspec.json.decode(values[name], type=_JSON[name])
    values["blocked"] = bool(values["blocked"])
    return values


def _upsert(table: str, names: tuple[str, ...], *, newer: tuple[str, ...] = ()) -> str:
    key, *rest = names
    sets = ", ".join(
        f"{n} = CASE WHEN coalesce({table}.{n}, 0) > coalesce(excluded.{n}, 0) THEN {table}.{n} ELSE excluded.{n} END"
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
    books.db.execute(_PUT_GRANT, tuple(_kept(grant, _GRANT).values()))
    books.db.execute("DELETE FROM secrets WHERE grant_id=?", (grant.grant_id,))
    books.db.executemany(
        "INSERT INTO secrets(grant_id, public_id, digest, created_us, expires_us, revoked_us)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        [(grant.grant_id, *(getattr(secret, name) for name in _SECRET)) for secret in grant.secrets],
    )
    books.changed("grant", grant.grant_id)


def put_fleet(books: Books, fleet: FleetRecord) -> None:
    """Insert or replace a fleet."""
    books.db.execute(_PUT_FLEET, tuple(_kept(fleet, _FLEET).values()))
    books.changed("fleet", fleet.fleet)


def delete_fleet(books: Books, fleet: str) -> bool:
    """Remove a fleet's record; say whether there was one."""
    found = books.db.execute("DELETE FROM fleets WHERE fleet=?", (fleet,)).rowcount > 0
    books.changed("fleet", fleet)
    return found


def put_deployment(books: Books, deployment: Deployment) -> None:
    """Insert or replace a deployment."""
    d = deployment
    options = msgspec.json.encode(d.options).decode()
    values = (d.deployment_id, d.fleet, d.group, d.model, d.order, d.weight, d.context_tokens, options, d.applied)
    books.db.execute(_PUT_DEPLOYMENT, values)
    books.changed("deployment", d.deployment_id)


def delete_deployment(books: Books, deployment_id: str) -> bool:
    """Remove a deployment; say whether there was one."""
    found = books.db.execute("DELETE FROM deployments WHERE deployment_id=?", (deployment_id,)).rowcount > 0
    books.changed("deployment", deployment_id)
    return found


def read_grants(db: Database, last_used: Mapping[str, int]) -> list[Grant]:
    """Return every grant with its secrets; `last_used` holds later times than the file."""
    secrets: dict[str, list[KeySecret]] = {}
    for grant_id, *values in db.execute(
        f"SELECT grant_id, {', '.join(_SECRET)} FROM secrets ORDER BY created_us, public_id"  # noqa: S608 - our own names
    ):
        secrets.setdefault(grant_id, []).append(KeySecret(**dict(zip(_SECRET, values, strict=True))))
    grants = []
    for row in db.execute(f"SELECT {', '.join(_GRANT)} FROM grants ORDER BY created_us, grant_id"):  # noqa: S608 - likewise
        values_of = _told(_GRANT, row)
        used = max(values_of["last_used_us"] or 0, last_used.get(values_of["grant_id"], 0))
        values_of["last_used_us"] = used or None
        grants.append(Grant(**values_of, secrets=tuple(secrets.get(values_of["grant_id"], ()))))
    return grants


def read_fleets(db: Database) -> list[FleetRecord]:
    """Return every fleet."""
    rows = db.execute(f"SELECT {', '.join(_FLEET)} FROM fleets ORDER BY fleet")  # noqa: S608 - our own names
    return [FleetRecord(**_told(_FLEET, row)) for row in rows]


def read_deployments(db: Database) -> list[Deployment]:
    """Return every deployment, in the order in which a group tries them."""
    rows = db.execute(
        f"SELECT {', '.join(_DEPLOYMENT)} FROM deployments ORDER BY group_name, order_no, deployment_id"  # noqa: S608 - our own names
    )
    return [
        Deployment(
            deployment_id=i,
            fleet=fleet,
            group=group,
            model=model,
            order=order,
            weight=weight,
            context_tokens=context_tokens,
            options=msgspec.json.decode(options, type=Options),
            applied=applied,
        )
        for i, fleet, group, model, order, weight, context_tokens, options, applied in rows
    ]
