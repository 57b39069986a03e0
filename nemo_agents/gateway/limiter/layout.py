"""Where the rates are in Redis: the names of the keys, and which of them are kept together.

All keys of one call carry one tag, so that a cluster keeps them on one node: what belongs to a fleet goes into one of
sixteen drawers, by the fleet's name (a role without a fleet: by its own). Each drawer has a marker of its own.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Final

from nemo_agents.policy.limits import PastUse
from nemo_agents.policy.rates import RateScope

__all__ = ["DRAWERS", "Drawer", "drawer_of", "drawer_of_use", "home_of"]

DRAWERS: Final = 16


class Drawer:
    """The names of one drawer's keys. An epoch, the name of everything since a rebuild, is part of those it holds."""

    __slots__ = ("_tag", "lock", "marker")

    def __init__(self, number: int) -> None:
        self._tag = f"{{nemo:{number}}}"
        self.marker = f"{self._tag}:epoch"
        self.lock = f"{self._tag}:rebuild"

    def requests(self, epoch: str, scope: str) -> str:
        """Return the window of requests of a scope."""
        return f"{self._tag}:{epoch[-16:]}:q:{scope}"

    def tokens(self, epoch: str, scope: str) -> str:
        """Return the window of tokens of a scope."""
        return f"{self._tag}:{epoch[-16:]}:t:{scope}"

    def places(self, epoch: str, scope: str) -> str:
        """Return the calls in flight of a scope."""
        return f"{self._tag}:{epoch[-16:]}:p:{scope}"

    def repeats(self, epoch: str, run: str, digest: bytes) -> str:
        """Return when one request of a run was made."""
        return f"{self._tag}:{epoch[-16:]}:l:{digest.hex()}:{run}"

    def rejoining(self, epoch: str) -> str:
        """Return the calls in flight that are to be rebuilt."""
        return f"{self._tag}:{epoch[-16:]}:rejoining"

    def rebuilt(self, epoch: str) -> str:
        """Return which entries the calls in flight that were rebuilt have charged."""
        return f"{self._tag}:{epoch[-16:]}:rebuilt"


def home_of(scope: RateScope) -> str:
    """Return what a scope is kept with."""
    if scope.fleet is not None:
        return scope.fleet
    return scope.id if scope.kind == "fleet" else scope.id.partition("/")[0]


def drawer_of(scopes: Sequence[RateScope]) -> int:
    """Return the drawer of the scopes of one request. Raises ValueError when they do not belong together."""
    home = home_of(scopes[0])
    for scope in scopes[1:]:
        if home_of(scope) != home:
            raise ValueError(f"the scopes of one request belong together: {home!r} and {home_of(scope)!r} do not")
    return _drawer(home)


def drawer_of_use(use: PastUse) -> int:
    """Return the drawer in which a past request is counted."""
    return _drawer(use.fleet if use.fleet is not None else use.grant_id)


def _drawer(home: str) -> int:
    return zlib.crc32(home.encode()) % DRAWERS
