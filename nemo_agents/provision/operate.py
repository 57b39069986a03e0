"""Single acts on a role's key beside the plan: rotate, block, unblock, revoke, adopt, forget."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from nemo_agents.admin import keys
from nemo_agents.admin.calls import Flow, ask
from nemo_agents.admin.wire import KeyRow
from nemo_agents.errors import AdminError, ProvisionError
from nemo_agents.policy.periods import span_seconds
from nemo_agents.provision.apply import DEFAULT_GRACE, changed_fields, finish_rotation, forgiving
from nemo_agents.provision.mint import Mint, mint_key
from nemo_agents.provision.plan import Plan, plan, plan_destroy
from nemo_agents.provision.snapshot import read_snapshot
from nemo_agents.provision.specs import (
    MARK,
    is_managed,
    key_alias,
    live_key_spec,
    merged_metadata,
    nemo_metadata,
)
from nemo_agents.provision.stored import KeyStore, StoredKey
from nemo_agents.roles import FleetDeclaration

__all__ = [
    "NO_GRACE",
    "adopt",
    "block",
    "forget",
    "prepare",
    "prepare_destroy",
    "revoke",
    "rotate",
    "unblock",
]

NO_GRACE = "0s"


def prepare(desired: FleetDeclaration, gateway_url: str, store: KeyStore) -> Flow[Plan]:
    """Read the gateway's side and plan what makes it as declared."""
    live = yield from read_snapshot(gateway_url, desired.name, [role.name for role in desired.roles])
    return plan(desired, live, store.entries(gateway_url, desired.name))


def prepare_destroy(fleet: str, gateway_url: str) -> Flow[Plan]:
    """Read the gateway's side and plan the end of a fleet."""
    live = yield from read_snapshot(gateway_url, fleet, ())
    return plan_destroy(live)


def rotate(
    gateway_url: str,
    fleet: str,
    role: str,
    store: KeyStore,
    *,
    grace: str = DEFAULT_GRACE,
    mint: Mint = mint_key,
) -> Flow[StoredKey]:
    """Give a role's key a successor; the old secret works for `grace` (`24h`, `0s`) longer.

    Killed half way, it is finished by the next rotate or apply, with the same successor. Raises
    ProvisionError for a grace that is no duration, or a role without a managed key.
    """
    if grace != NO_GRACE and span_seconds(grace) is None:
        raise ProvisionError(f"{grace!r} is not a duration. Write a number and s, m, h or d: 24h.")
    row = yield from _managed(fleet, role)
    entry = store.get(gateway_url, fleet, role)
    if entry is not None and _is_under_way(entry, row):
        successor = replace(entry, grace=grace)
    else:
        here = entry is not None and row.token == entry.public_id
        minted = mint()
        successor = StoredKey(
            role=role,
            public_id=minted.public_id,
            secret=minted.secret,
            state="pending",
            previous_id=row.token,
            previous_secret=entry.secret if entry is not None and here else None,
            grace=grace,
        )
    store.put(gateway_url, fleet, successor)
    return (yield from finish_rotation(gateway_url, fleet, successor, row.token, store))


def block(fleet: str, role: str) -> Flow[KeyRow]:
    """Stop a role's key, reversibly."""
    row = yield from _existing(fleet, role)
    yield from ask(keys.block(row.token))
    return row


def unblock(fleet: str, role: str) -> Flow[KeyRow]:
    """Let a role's blocked key work again."""
    row = yield from _existing(fleet, role)
    yield from ask(keys.unblock(row.token))
    return row


def revoke(gateway_url: str, fleet: str, role: str, store: KeyStore) -> Flow[KeyRow]:
    """End a role's key for good; the next provisioning of a fleet that declares the role issues a new one."""
    row = yield from _existing(fleet, role)
    store.forget(gateway_url, fleet, role)
    yield from forgiving(keys.delete([row.token]))
    return row


def adopt(fleet: str, role: str, key: str) -> Flow[KeyRow]:
    """Take ownership of an existing key, named by public id or alias: it becomes the key of this role.

    Its limits stay until the next provisioning. Its secret stays with whoever has it. Raises ProvisionError
    when there is no such key or the role has another one.
    """
    row = yield from _named(key)
    if row is None:
        raise ProvisionError(f"the gateway has no key with the id or alias {key}.")
    alias = key_alias(fleet, role)
    other = yield from _by_alias(alias)
    if other is not None and other.token != row.token:
        raise ProvisionError(f"{alias} has a key already ({other.token}). Revoke it first, or adopt that one.")
    has = live_key_spec(row, role)
    # Marked as it is now: what the declaration wants differently is an update then, not drift.
    spec = msgspec.structs.replace(has, fleet=fleet, alias=alias)
    fields = {**changed_fields(row, spec.wire()), "metadata": merged_metadata(row.metadata, spec)}
    yield from ask(keys.update(row.token, fields))
    return row


def forget(gateway_url: str, fleet: str, role: str, store: KeyStore) -> Flow[KeyRow | None]:
    """Drop ownership of a role's key without revoking it, here and on the gateway; it goes on working.

    Raises ProvisionError when neither the gateway nor the key store has a key of this fleet and role.
    """
    row = yield from _by_alias(key_alias(fleet, role))
    if row is None and store.get(gateway_url, fleet, role) is None:
        raise _no_key(fleet, role)
    if row is not None and is_managed(row.metadata):
        nemo = {**nemo_metadata(row.metadata), "managed": False}
        yield from ask(keys.update(row.token, {"metadata": {**row.metadata, MARK: nemo}}))
    store.forget(gateway_url, fleet, role)
    return row


def _is_under_way(entry: StoredKey, row: KeyRow) -> bool:
    rotating = entry.state == "pending" and entry.previous_id is not None
    return rotating and row.token in (entry.public_id, entry.previous_id)


def _named(key: str) -> Flow[KeyRow | None]:
    try:
        return (yield from ask(keys.info(key)))
    except AdminError as error:
        if error.status != 404:
            raise
    return (yield from _by_alias(key))


def _by_alias(alias: str) -> Flow[KeyRow | None]:
    rows = yield from keys.every(key_alias=alias)
    return next((row for row in rows if row.key_alias == alias), None)


def _existing(fleet: str, role: str) -> Flow[KeyRow]:
    row = yield from _by_alias(key_alias(fleet, role))
    if row is None:
        raise _no_key(fleet, role)
    return row


def _no_key(fleet: str, role: str) -> ProvisionError:
    return ProvisionError(
        f"the gateway has no key of role {role} in a fleet {fleet}. `nemo-agents status` lists the fleets and roles."
    )


def _managed(fleet: str, role: str) -> Flow[KeyRow]:
    row = yield from _existing(fleet, role)
    if not is_managed(row.metadata):
        raise ProvisionError(
            f"the key {row.key_alias} is not managed here. "
            f"Take it over first: `nemo-agents adopt {fleet} {role} {row.token}`."
        )
    return row
