"""The local side of a key: what a key store keeps, and what provisioning needs of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from nemo_agents.secret import Secret

__all__ = ["KeyStore", "StoredKey"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKey:
    """One role's key in a key store.

    `pending` means: chosen here, not yet known to be on the gateway. A pending entry with `previous_id` is a
    rotation under way: the predecessor (whose secret may be unknown here) works until the successor is in
    place; `grace` is how long it may outlive that.
    """

    role: str
    public_id: str
    secret: Secret
    state: Literal["pending", "active"]
    previous_id: str | None = None
    previous_secret: Secret | None = None
    grace: str | None = None

    @property
    def usable_secret(self) -> Secret | None:
        """The secret that works now, as far as is known here: a pending one is not yet it."""
        return self.secret if self.state == "active" else self.previous_secret


class KeyStore(Protocol):
    """Keeps secrets by gateway, fleet and role. Every change is on disk when the method returns.

    All methods raise KeyStoreError when the store cannot be read or written safely.
    """

    def entries(self, gateway_url: str, fleet: str) -> tuple[StoredKey, ...]:
        """Return the fleet's entries, by role name."""

    def get(self, gateway_url: str, fleet: str, role: str) -> StoredKey | None:
        """Return one entry."""

    def put(self, gateway_url: str, fleet: str, entry: StoredKey) -> None:
        """Insert or replace an entry."""

    def forget(self, gateway_url: str, fleet: str, role: str) -> None:
        """Remove an entry, if there is one."""

    def secret(self, gateway_url: str, fleet: str, role: str) -> Secret | None:
        """Return the secret of a role that works now; None when there is none here."""
