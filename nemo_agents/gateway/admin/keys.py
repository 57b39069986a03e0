"""`/key/…`: virtual keys in the LiteLLM wire format.

Where LiteLLM is lax the gateway is not: an unknown guardrail, a bad duration or a negative limit is refused with 400,
the same key value never overwrites another key, and only keys that existed are reported as deleted.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from nemo_agents.admin.wire import KeyRow
from nemo_agents.gateway.admin.access import Access, AdminRoute, Caller
from nemo_agents.gateway.admin.faults import AdminFault, bad, not_found
from nemo_agents.gateway.admin.fields import (
    iso,
    keep_ours,
    ours_of,
    parse_budgets,
    parse_fields,
    parse_guardrails,
    parse_limit,
    parse_model_limits,
    parse_ours,
    refuse_soft_budget,
)
from nemo_agents.gateway.admin.json import json_response
from nemo_agents.gateway.state import Gateway
from nemo_agents.money import nanos_to_wire
from nemo_agents.policy.keys import Grant, KeySecret, mask_key, parse_public_id
from nemo_agents.policy.ledger import BudgetScope
from nemo_agents.policy.periods import span_seconds
from nemo_agents.policy.rulewire import (
    first_budget,
    model_fields,
    read_cache_ttl_s,
    read_loop,
    read_request_nanos,
    read_shadow,
)

__all__ = ["ROUTES", "key_rows"]


class KeyFields(msgspec.Struct, kw_only=True):
    """What `/key/generate` and `/key/update` may set; in an update an absent field stays and null clears."""

    key_alias: str | None | UnsetType = UNSET
    team_id: str | None | UnsetType = UNSET
    models: list[str] | None | UnsetType = UNSET
    max_budget: float | None | UnsetType = UNSET
    budget_duration: str | None | UnsetType = UNSET
    rpm_limit: int | None | UnsetType = UNSET
    tpm_limit: int | None | UnsetType = UNSET
    max_parallel_requests: int | None | UnsetType = UNSET
    model_rpm_limit: dict[str, int] | None | UnsetType = UNSET
    model_tpm_limit: dict[str, int] | None | UnsetType = UNSET
    soft_budget: float | None | UnsetType = UNSET
    guardrails: list[str] | None | UnsetType = UNSET
    metadata: dict[str, Any] | None | UnsetType = UNSET
    blocked: bool | None | UnsetType = UNSET
    duration: str | None | UnsetType = UNSET
    key: str | None | UnsetType = UNSET


class KeyName(msgspec.Struct, kw_only=True):
    """A body that names one key."""

    key: str


class KeyNames(msgspec.Struct, kw_only=True):
    """A body that names several keys."""

    keys: list[str] | None = None
    key_aliases: list[str] | None = None


class Regenerate(msgspec.Struct, kw_only=True):
    """A rotation: the successor's value (made here when absent) and how long the old secret stays valid."""

    new_key: str | None = None
    grace_period: str | None = None


async def _generate(gateway: Gateway, _request: Request, _caller: Caller, raw: bytes) -> Response:
    fields = parse_fields(raw, KeyFields)
    alias = fields.key_alias or None
    key = fields.key or gateway.ids.key()
    public_id = parse_public_id(key)
    if public_id is None:
        raise bad("`key` must be a well-formed `sk-nemo-…` key; leave it out to have one made.", "key")
    existing = gateway.keyring.find(key)
    if existing is not None and existing.alias == alias and existing.revoked_us is None:
        return json_response(await _with_key(gateway, existing, key))  # the same call again: same answer
    if gateway.keyring.by_public_id(public_id) is not None:
        raise bad("Another key has this `key` value's id; choose another value.", "key")
    if alias and gateway.keyring.by_alias(alias) is not None:
        raise bad(f"A key with the alias {alias!r} exists. Update or rotate it, or delete it first.", "key_alias")
    now_us = gateway.clock.now_us()
    secret = KeySecret(public_id=public_id, digest=gateway.keyring.digest(key), created_us=now_us)
    grant = Grant(grant_id=gateway.ids.grant_id(), created_us=now_us, secrets=(secret,))
    grant = _apply(grant, fields, now_us)
    await gateway.put_grant(grant)
    return json_response(await _with_key(gateway, grant, key))


async def _update(gateway: Gateway, _request: Request, _caller: Caller, raw: bytes) -> Response:
    fields = parse_fields(raw, KeyFields)
    if not fields.key:
        raise bad("`key` names the key to update.", "key")
    grant = _grant(gateway, fields.key)
    alias = fields.key_alias
    other = gateway.keyring.by_alias(alias) if isinstance(alias, str) and alias else None
    if other is not None and other.grant_id != grant.grant_id:
        raise bad(f"A key with the alias {alias!r} exists.", "key_alias")
    changed = _apply(grant, fields, gateway.clock.now_us())
    await gateway.put_grant(changed)
    return json_response(await _row(gateway, changed))


async def _info(gateway: Gateway, request: Request, caller: Caller, _raw: bytes) -> Response:
    name = request.query_params.get("key")
    if name is None and caller.admin:
        raise bad("`key` names the key to show.", "key")
    grant = caller.grant if name is None else gateway.keyring.find(name)
    if grant is None or grant.revoked_us is not None:
        raise not_found("Key")
    if not caller.admin and caller.grant != grant:
        raise AdminFault(403, "A virtual key may look at itself only.", "auth_error")
    row = await _row(gateway, grant)
    return json_response({"key": row.token, "info": row})


async def _list(gateway: Gateway, request: Request, _caller: Caller, _raw: bytes) -> Response:
    query = request.query_params
    page, size = _number(query.get("page", "1"), "page"), _number(query.get("size", "100"), "size")
    grants = [g for g in gateway.keyring.grants() if g.revoked_us is None]
    if "team_id" in query:
        grants = [g for g in grants if g.fleet == query["team_id"]]
    if "key_alias" in query:
        grants = [g for g in grants if g.alias == query["key_alias"]]
    size = min(size, 100)
    shown = grants[(page - 1) * size : page * size]
    full = query.get("return_full_object", "false").lower() == "true"
    rows = await key_rows(gateway, shown)
    return json_response(
        {
            "keys": rows if full else [row.token for row in rows],
            "total_count": len(grants),
            "current_page": page,
            "total_pages": -(-len(grants) // size),
        }
    )


async def _delete(gateway: Gateway, _request: Request, _caller: Caller, raw: bytes) -> Response:
    names = parse_fields(raw, KeyNames)
    found = {name: gateway.keyring.find(name) for name in names.keys or ()}
    found |= {alias: gateway.keyring.by_alias(alias) for alias in names.key_aliases or ()}
    if not found:
        raise bad("Name the keys in `keys` or `key_aliases`.", "keys")
    live = {name: grant for name, grant in found.items() if grant is not None and grant.revoked_us is None}
    if not live:
        raise not_found("Key")
    for grant in live.values():
        now_us = gateway.clock.now_us()
        await gateway.put_grant(replace(grant, revoked_us=now_us, updated_us=now_us))
    return json_response({"deleted_keys": [parse_public_id(name) or name for name in live]})  # never a secret


async def _block(gateway: Gateway, _request: Request, _caller: Caller, raw: bytes) -> Response:
    return await _set_blocked(gateway, raw, blocked=True)


async def _unblock(gateway: Gateway, _request: Request, _caller: Caller, raw: bytes) -> Response:
    return await _set_blocked(gateway, raw, blocked=False)


async def _set_blocked(gateway: Gateway, raw: bytes, *, blocked: bool) -> Response:
    grant = _grant(gateway, parse_fields(raw, KeyName).key)
    grant = replace(grant, blocked=blocked, updated_us=gateway.clock.now_us())
    await gateway.put_grant(grant)
    return json_response(await _row(gateway, grant))


async def _regenerate(gateway: Gateway, request: Request, _caller: Caller, raw: bytes) -> Response:
    grant = _grant(gateway, request.path_params["key"])
    asked = parse_fields(raw, Regenerate)
    key = asked.new_key or gateway.ids.key()
    public_id = parse_public_id(key)
    if public_id is None:
        raise bad("`new_key` must be a well-formed `sk-nemo-…` key; leave it out to have one made.", "new_key")
    holder = gateway.keyring.by_public_id(public_id)
    if holder is not None:
        if holder[0].grant_id == grant.grant_id and gateway.keyring.find(key) is not None:
            return json_response(await _with_key(gateway, grant, key))  # the same call again: same answer
        raise bad("Another key has this `new_key` value's id; choose another value.", "new_key")
    now_us = gateway.clock.now_us()
    grace_us = _seconds(asked.grace_period, "grace_period", int(gateway.settings.rotation_grace_s)) * 1_000_000
    old = tuple(replace(s, expires_us=min(s.expires_us or now_us + grace_us, now_us + grace_us)) for s in grant.secrets)
    new = KeySecret(public_id=public_id, digest=gateway.keyring.digest(key), created_us=now_us)
    grant = replace(grant, secrets=(*old, new), updated_us=now_us)
    await gateway.put_grant(grant)
    return json_response(await _with_key(gateway, grant, key))


def _apply(grant: Grant, fields: KeyFields, now_us: int) -> Grant:
    changes: dict[str, Any] = {"updated_us": now_us}
    refuse_soft_budget(fields.soft_budget)
    for wire, name in (("key_alias", "alias"), ("team_id", "fleet")):
        value = getattr(fields, wire)
        if value is not UNSET:
            changes[name] = value or None
    if isinstance(fields.key_alias, str) and (len(fields.key_alias) > 256 or not fields.key_alias.isprintable()):
        raise bad("`key_alias` must be at most 256 printable characters.", "key_alias")
    for wire, name in (("rpm_limit", "rpm"), ("tpm_limit", "tpm"), ("max_parallel_requests", "max_parallel")):
        value = getattr(fields, wire)
        if value is not UNSET:
            changes[name] = parse_limit(value, wire)
    if fields.models is not UNSET:
        changes["models"] = tuple(fields.models or ())
    if fields.guardrails is not UNSET:
        changes["guardrails"] = parse_guardrails(fields.guardrails or [])
    if fields.blocked is not UNSET:
        changes["blocked"] = bool(fields.blocked)
    if fields.duration is not UNSET:
        changes["expires_us"] = _expiry(fields.duration, now_us)
    metadata = grant.metadata
    if fields.metadata is not UNSET:
        metadata = keep_ours(fields.metadata or {}, grant.metadata)
        changes |= _from_metadata(metadata)
    ours = ours_of(metadata)
    rpm, tpm = fields.model_rpm_limit, fields.model_tpm_limit
    changes["budgets"] = parse_budgets(grant.budgets, fields.max_budget, fields.budget_duration, ours)
    changes["model_limits"] = parse_model_limits(grant.model_limits, rpm, tpm, ours)
    return replace(grant, **changes)


def _from_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    ours = ours_of(metadata)
    tools, role = ours.get("tools"), ours.get("role")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, str) for tool in tools)):
        raise bad("`metadata.nemo.tools` must be a list of tool names.", "metadata")
    return {
        "metadata": metadata,
        "role": role if isinstance(role, str) else None,
        "tools": tuple(tools) if tools is not None else None,
        "shadow": parse_ours(read_shadow, ours),
        "loop": parse_ours(read_loop, ours),
        "request_nanos": parse_ours(read_request_nanos, ours),
        "cache_ttl_s": parse_ours(read_cache_ttl_s, ours),
    }


def _expiry(duration: str | None, now_us: int) -> int | None:
    return None if duration is None else now_us + _seconds(duration, "duration", 0) * 1_000_000


def _seconds(text: str | None, param: str, default: int) -> int:
    if text is None:
        return default
    if text in ("0", "0s"):
        return 0
    seconds = span_seconds(text)
    if seconds is None:
        raise bad(f"`{param}` must read like 90d, 24h, 30m or 0s.", param)
    return seconds


def _number(text: str, param: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= len(text) <= 9 or int(text) < 1:
        raise bad(f"`{param}` must be a whole number of at least 1.", param)
    return int(text)


def _grant(gateway: Gateway, name: str) -> Grant:
    grant = gateway.keyring.find(name)
    if grant is None or grant.revoked_us is not None:
        raise not_found("Key")
    return grant


async def _with_key(gateway: Gateway, grant: Grant, key: str) -> dict[str, Any]:
    row = await _row(gateway, grant)
    shown = msgspec.to_builtins(row)
    return {**shown, "key": key, "token": parse_public_id(key), "token_id": parse_public_id(key)}


async def _row(gateway: Gateway, grant: Grant) -> KeyRow:
    return (await key_rows(gateway, [grant]))[0]


async def key_rows(gateway: Gateway, grants: list[Grant]) -> list[KeyRow]:
    """Return grants as `/key/info` shows them, with what they spent in the current period of their first budget."""
    now_us = gateway.clock.now_us()
    scopes = [gateway.role_scope(grant, now_us=now_us) for grant in grants]
    balances = await gateway.store.balances(scopes)
    last_used = await gateway.last_used()
    return [
        _key_row(replace(grant, last_used_us=last_used.get(grant.grant_id)), balance.posted_nanos, scope)
        for grant, scope, balance in zip(grants, scopes, balances, strict=True)
    ]


def _key_row(grant: Grant, posted_nanos: int, scope: BudgetScope) -> KeyRow:
    newest, first = grant.secrets[-1], first_budget(grant.budgets)
    return KeyRow(
        token=newest.public_id,
        key_name=mask_key(f"sk-nemo-{newest.public_id}-" + "0" * 38)[:-4],
        key_alias=grant.alias,
        team_id=grant.fleet,
        models=list(grant.models),
        spend=nanos_to_wire(posted_nanos),
        max_budget=None if first is None else nanos_to_wire(first.amount_nanos),
        budget_duration=None if first is None else first.duration,
        budget_reset_at=iso(scope.resets_at_us),
        rpm_limit=grant.rpm,
        tpm_limit=grant.tpm,
        max_parallel_requests=grant.max_parallel,
        **model_fields(grant.model_limits),
        guardrails=list(grant.guardrails),
        metadata=grant.metadata,
        blocked=grant.blocked,
        expires=iso(grant.expires_us),
        created_at=iso(grant.created_us),
        updated_at=iso(grant.updated_us),
        last_active=iso(grant.last_used_us),
        rotation_count=len(grant.secrets) - 1,
    )


ROUTES = [
    AdminRoute(method="POST", path="/key/generate", access=Access.ADMIN, handler=_generate),
    AdminRoute(method="POST", path="/key/update", access=Access.ADMIN, handler=_update),
    AdminRoute(method="GET", path="/key/info", access=Access.KEY, handler=_info),
    AdminRoute(method="GET", path="/key/list", access=Access.ADMIN, handler=_list),
    AdminRoute(method="POST", path="/key/delete", access=Access.ADMIN, handler=_delete),
    AdminRoute(method="POST", path="/key/block", access=Access.ADMIN, handler=_block),
    AdminRoute(method="POST", path="/key/unblock", access=Access.ADMIN, handler=_unblock),
    AdminRoute(method="POST", path="/key/{key}/regenerate", access=Access.ADMIN, handler=_regenerate),
]
