"""Virtual keys on LiteLLM's wire, `/key/*`; a key goes by its public id (`token`), which may be logged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from nemo_agents.admin.calls import Call, Flow, as_type, ask, ignored, query_of, segment
from nemo_agents.admin.wire import KeyRow
from nemo_agents.secret import Secret

__all__ = [
    "Issued",
    "KeyPage",
    "block",
    "delete",
    "every",
    "generate",
    "info",
    "page",
    "regenerate",
    "unblock",
    "update",
]

_PAGE_SIZE = 100


class Issued(msgspec.Struct, kw_only=True, frozen=True):
    """What is kept of the answer to a new key; the secret in it is not read, for the client made it."""

    token: str
    key_name: str = ""


class KeyPage(msgspec.Struct, kw_only=True):
    """One page of `/key/list`; pages count from 1."""

    keys: list[KeyRow]
    total_count: int = 0
    current_page: int = 1
    total_pages: int = 1


def generate(fields: Mapping[str, Any], *, key: Secret) -> Call[Issued]:
    """Create a key whose secret the caller chose. Sending the same secret and alias again changes nothing."""
    return Call(method="POST", path="/key/generate", body={**fields, "key": key}, decode=as_type(Issued))


def update(public_id: str, fields: Mapping[str, Any]) -> Call[None]:
    """Change the fields given: an absent field stays, None clears. `metadata` replaces the whole object."""
    return Call(method="POST", path="/key/update", body={"key": public_id, **fields}, decode=ignored)


def info(key: str) -> Call[KeyRow]:
    """Read one key by public id. An unknown key is AdminError with status 404."""
    return Call(method="GET", path="/key/info", query={"key": key}, decode=_key_info)


def page(number: int, *, team_id: str | None = None, key_alias: str | None = None) -> Call[KeyPage]:
    """Read one page of full key rows, restricted to a fleet or an alias."""
    query = query_of(page=number, size=_PAGE_SIZE, return_full_object="true", team_id=team_id, key_alias=key_alias)
    return Call(method="GET", path="/key/list", query=query, decode=as_type(KeyPage))


def every(*, team_id: str | None = None, key_alias: str | None = None) -> Flow[tuple[KeyRow, ...]]:
    """Read all pages of keys, restricted to a fleet or an alias."""
    rows: list[KeyRow] = []
    number = 1
    while True:
        answer = yield from ask(page(number, team_id=team_id, key_alias=key_alias))
        rows.extend(answer.keys)
        if not answer.keys or number >= answer.total_pages:
            return tuple(rows)
        number += 1


def delete(keys: Sequence[str]) -> Call[None]:
    """Revoke keys for good. When none of them exists it is AdminError with status 404."""
    return Call(method="POST", path="/key/delete", body={"keys": list(keys)}, decode=ignored)


def block(public_id: str) -> Call[None]:
    """Stop a key, reversibly."""
    return Call(method="POST", path="/key/block", body={"key": public_id}, decode=ignored)


def unblock(public_id: str) -> Call[None]:
    """Let a blocked key work again."""
    return Call(method="POST", path="/key/unblock", body={"key": public_id}, decode=ignored)


def regenerate(public_id: str, *, new_key: Secret, grace_period: str) -> Call[Issued]:
    """Give a key a successor that the caller chose; the old secret works for `grace_period` (`24h`)."""
    body = {"new_key": new_key, "grace_period": grace_period}
    path = f"/key/{segment(public_id)}/regenerate"
    return Call(method="POST", path=path, body=body, decode=as_type(Issued))


class _KeyInfo(msgspec.Struct):
    key: str
    info: dict[str, Any]


def _key_info(answer: bytes) -> KeyRow:
    found = msgspec.json.decode(answer, type=_KeyInfo)
    # LiteLLM leaves the token out of `info`: it is the `key` beside it.
    return msgspec.convert({"token": found.key, "key_name": "", **found.info}, KeyRow)
