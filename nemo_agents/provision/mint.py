"""Make a key's text on this side of the wire, so that it can be on disk before the gateway hears of it."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from nemo_agents.policy.keys import mask_key, mint
from nemo_agents.secret import Secret

__all__ = ["Mint", "Minted", "mint_key"]


class Minted(NamedTuple):
    """A new key: its loggable id and its secret text."""

    public_id: str
    secret: Secret


Mint: TypeAlias = Callable[[], Minted]


def mint_key(choose: Callable[[str], str] = secrets.choice) -> Minted:
    """Return a new key; `choose` picks one character of an alphabet, by default at random, unpredictably."""
    public_id, key = mint(choose)
    return Minted(public_id, Secret(key, mask=mask_key(key)))
