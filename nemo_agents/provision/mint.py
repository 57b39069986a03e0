"""Make a key's text on this side of the wire, so that it can be on disk before the gateway hears of it."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias

from nemo_agents.policy.keys import compose_key, mask_key
from nemo_agents.secret import Secret

__all__ = ["Mint", "Minted", "mint_key"]

_BASE32: Final = "abcdefghijklmnopqrstuvwxyz234567"
_BASE62: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


class Minted(NamedTuple):
    """A new key: its loggable id and its secret text."""

    public_id: str
    secret: Secret


Mint: TypeAlias = Callable[[], Minted]


def mint_key(choose: Callable[[str], str] = secrets.choice) -> Minted:
    """Return a new key; `choose` picks one character of an alphabet, by default at random, unpredictably."""
    public_id = "".join(choose(_BASE32) for _ in range(10))
    key = compose_key(public_id, "".join(choose(_BASE62) for _ in range(32)))
    return Minted(public_id, Secret(key, mask=mask_key(key)))
