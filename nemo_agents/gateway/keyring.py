"""The grants in memory: look-up by a presented key, and by everything the admin API names them with."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from nemo_agents.errors import Code
from nemo_agents.policy.keys import Grant, KeySecret, claimed_public_id, parse_public_id, usable
from nemo_agents.policy.refusal import Refusal
from nemo_agents.secret import Secret

__all__ = ["KeyRing"]

_UNKNOWN = Refusal(
    status=401,
    code=Code.INVALID_API_KEY,
    message="This virtual key is unknown to the gateway. Provision the fleet, or check NEMO_KEY_<ROLE>.",
)
_MISSING = Refusal(
    status=401,
    code=Code.INVALID_API_KEY,
    message="No virtual key: send `Authorization: Bearer sk-nemo-…` (a key that `nemo-agents provision` stored).",
)


class KeyRing:
    """Every grant of the gateway.

    A key is looked up by its public id and then compared in constant time by its digest, HMAC-SHA-256 under a pepper
    that is not in the database: a stolen database confirms no leaked key, and who can write to it cannot insert one.
    """

    def __init__(self, pepper: Secret, grants: Iterable[Grant] = ()) -> None:
        self._mac = hmac.new(pepper.reveal().encode(), digestmod=hashlib.sha256)
        self._grants: dict[str, Grant] = {}
        self._by_public_id: dict[str, tuple[Grant, KeySecret]] = {}
        for grant in grants:
            self.put(grant)

    def digest(self, key: str) -> bytes:
        """Return what is stored of a key."""
        mac = self._mac.copy()  # keyed once; `hmac.digest` would also hand the interpreter to other threads each time
        mac.update(key.encode())
        return mac.digest()

    def put(self, grant: Grant) -> None:
        """Insert or replace a grant."""
        old = self._grants.get(grant.grant_id)
        for secret in old.secrets if old else ():
            self._by_public_id.pop(secret.public_id, None)
        self._grants[grant.grant_id] = grant
        for secret in grant.secrets:
            self._by_public_id[secret.public_id] = (grant, secret)

    def grants(self) -> list[Grant]:
        """Return every grant, revoked ones included, oldest first."""
        return list(self._grants.values())

    def current(self, grant: Grant) -> Grant:
        """Return a grant as it is now, which may have been changed since it was looked up."""
        return self._grants.get(grant.grant_id, grant)

    def by_alias(self, alias: str) -> Grant | None:
        """Return the grant that is not revoked and has this alias."""
        found = (g for g in self._grants.values() if g.alias == alias and g.revoked_us is None)
        return next(found, None)

    def by_public_id(self, public_id: str) -> tuple[Grant, KeySecret] | None:
        """Return the grant and secret of a public id."""
        return self._by_public_id.get(public_id)

    def find(self, name: str) -> Grant | None:
        """Return a grant by public id, full key or grant id; the admin API accepts any of them."""
        public_id = parse_public_id(name) or name
        entry = self._by_public_id.get(public_id)
        if entry is not None and name != public_id and not hmac.compare_digest(entry[1].digest, self.digest(name)):
            return None
        return entry[0] if entry else self._grants.get(name)

    def may_be_new(self, presented: str | None) -> bool:
        """Say whether a presented key is one that another gateway may have made: well-formed, and its id unknown."""
        public_id = parse_public_id(presented) if presented else None
        return public_id is not None and public_id not in self._by_public_id

    def authenticate(self, presented: str | None, *, now_us: int) -> tuple[Grant, KeySecret] | Refusal:
        """Return the grant behind a presented key, or the refusal that its use deserves."""
        if not presented:
            return _MISSING
        public_id = claimed_public_id(presented)
        entry = self._by_public_id.get(public_id) if public_id else None
        # The digest is computed for unknown ids too, so that time does not tell them from wrong secrets.
        digest = self.digest(presented[:256])
        if entry is None or not hmac.compare_digest(entry[1].digest, digest):
            return _UNKNOWN
        return usable(*entry, now_us=now_us) or entry
