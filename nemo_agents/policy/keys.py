"""Virtual keys as values: their text format, and whether a grant may be used now.

A key reads `sk-nemo-<public id>-<secret><check>`: ten lower-case base32 characters that may be logged, 32 base62
characters (190 bits) that may not, and six that catch typing errors without a look-up (CRC-32 of everything before).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from nemo_agents.errors import Code
from nemo_agents.policy.budgets import BudgetRule, LoopRule, ModelLimit
from nemo_agents.policy.refusal import Refusal

__all__ = [
    "Grant",
    "KeySecret",
    "claimed_public_id",
    "compose_key",
    "hide_keys",
    "mask_key",
    "mint",
    "parse_public_id",
    "usable",
]

_BASE32: Final = "abcdefghijklmnopqrstuvwxyz234567"
_BASE62: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_BASE62_PAIRS = tuple(high + low for high in _BASE62 for low in _BASE62)
_KEY = re.compile(r"sk-nemo-([a-z2-7]{10})-([0-9A-Za-z]{32})([0-9A-Za-z]{6})")
# A key of any issuer: a provider's message may repeat the provider's key.
_KEY_LIKE = re.compile(r"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{8,}")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySecret:
    """One secret of a grant: during a rotation's overlap a grant has two. `digest` is HMAC-SHA-256 under the pepper."""

    public_id: str
    digest: bytes = field(repr=False)
    created_us: int
    expires_us: int | None = None
    revoked_us: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a virtual key allows: the unit that limits and budgets of a role are counted against.

    Secrets come and go by rotation; the grant, its spend and its id stay. `shadow` names the rates (`rpm`, `tpm`,
    `max_parallel`) that are recorded and never refuse. `loop` None looks for no loops. `request_nanos` is the price of
    a request for models that have no other. `cache_ttl_s` is how long its answers are given again; None: never.
    """

    grant_id: str
    alias: str | None = None
    fleet: str | None = None
    role: str | None = None
    models: tuple[str, ...] = ()
    rpm: int | None = None
    tpm: int | None = None
    max_parallel: int | None = None
    model_limits: tuple[ModelLimit, ...] = ()
    shadow: tuple[str, ...] = ()
    budgets: tuple[BudgetRule, ...] = ()
    loop: LoopRule | None = LoopRule()
    request_nanos: int | None = None
    cache_ttl_s: int | None = None
    guardrails: tuple[str, ...] = ()
    tools: tuple[str, ...] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    blocked: bool = False
    created_us: int = 0
    updated_us: int = 0
    expires_us: int | None = None
    revoked_us: int | None = None
    last_used_us: int | None = None
    secrets: tuple[KeySecret, ...] = ()


def compose_key(public_id: str, secret: str) -> str:
    """Return the full text of a key. `secret` is 32 base62 characters of good randomness."""
    body = f"sk-nemo-{public_id}-{secret}"
    key = body + _check(body)
    if _KEY.fullmatch(key) is None:
        raise ValueError("a public id is 10 base32 characters, a secret 32 base62 characters")
    return key


def mint(choose: Callable[[str], str]) -> tuple[str, str]:
    """Return a new key: its public id and its full text.

    `choose` picks one character of an alphabet, at random and unpredictably.
    """
    public_id = "".join(choose(_BASE32) for _ in range(10))
    return public_id, compose_key(public_id, "".join(choose(_BASE62) for _ in range(32)))


def claimed_public_id(key: str) -> str | None:
    """Return the public id that a text claims, which may be no key for all that: only its digest tells."""
    match = _KEY.fullmatch(key)
    return None if match is None else match[1]


def parse_public_id(key: str) -> str | None:
    """Return the public id of a well-formed key; None when the text cannot be one of ours."""
    match = _KEY.fullmatch(key)
    if match is None or _check(key[:-6]) != match[3]:
        return None
    return match[1]


def mask_key(key: str) -> str:
    """Return what may be shown of a key: `sk-nemo-<public id>-…<last four>`."""
    match = _KEY.fullmatch(key)
    return f"sk-nemo-{match[1]}-…{key[-4:]}" if match else "sk-…"


def hide_keys(text: str) -> str:
    """Return a text in which everything that looks like a key, ours or a provider's, is masked."""
    return _KEY_LIKE.sub(lambda match: mask_key(match[0]), text)


def usable(grant: Grant, secret: KeySecret, *, now_us: int) -> Refusal | None:
    """Say why this secret of this grant may not be used now, or None when it may."""
    if grant.revoked_us is not None or (secret.revoked_us is not None and secret.revoked_us <= now_us):
        return _no(Code.KEY_REVOKED, grant, "was revoked. Ask for a new one: `nemo-agents provision`.")
    over = secret.expires_us is not None and secret.expires_us <= now_us
    if over and any(other.created_us > secret.created_us for other in grant.secrets):
        what = "was replaced by a rotation. Use the new secret: `nemo-agents keys export` prints it."
        return _no(Code.KEY_EXPIRED, grant, what)
    if over or (grant.expires_us is not None and grant.expires_us <= now_us):
        return _no(Code.KEY_EXPIRED, grant, "has expired. Issue a successor: `nemo-agents rotate`.")
    if grant.blocked:
        return _no(Code.KEY_BLOCKED, grant, "is blocked. Lift it with `nemo-agents unblock`.")
    return None


def _no(code: Code, grant: Grant, what: str) -> Refusal:
    name = grant.alias or grant.grant_id
    return Refusal(status=403, code=code, message=f"The key of {name} {what}", scope="key")


def _check(text: str) -> str:
    rest, low = divmod(zlib.crc32(text.encode()), 62 * 62)
    high, middle = divmod(rest, 62 * 62)
    return _BASE62_PAIRS[high] + _BASE62_PAIRS[middle] + _BASE62_PAIRS[low]
