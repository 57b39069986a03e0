"""What the data plane needs of a rate limiter: one protocol, kept in memory by one process or in Redis by many.

A request meets it three times. `admit` counts the request in every scope or in none, and looks for a loop; what it
counted stays counted when a later check refuses. `enter` takes a place among the calls in flight and charges the
estimated tokens, both in every scope or neither. `leave` gives the place back and corrects the tokens. A limit in
mode `shadow` is counted like any other; instead of refusing, it is told in `shadowed` of what was not refused.

Both answers, refusals too, carry readings: `admit` of every limit of requests and of tokens, `enter` of those of tokens
alone, which it has changed. `policy.rates.rate_headers` makes the headers of an answer of the latest. `now_us` is the
gateway's clock; a limiter that many gateways share goes by the clock of the server they share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from nemo_agents.policy.budgets import LoopRule
from nemo_agents.policy.limits import PastUse, RateScope
from nemo_agents.policy.rates import Reading
from nemo_agents.policy.refusal import Refusal

__all__ = ["Admission", "Entry", "Limiter", "LimiterUnavailable", "Reading", "Repeat"]


class LimiterUnavailable(Exception):  # noqa: N818 - a condition, answered with 503
    """The rates cannot be read or written now; nothing was sent."""


class Repeat(Struct, frozen=True, kw_only=True):
    """One request of a run, to be compared with those before it. `digest` is of the normalised body."""

    run: str  # `<fleet>/<run id>`
    digest: bytes
    rule: LoopRule


class Admission(Struct, frozen=True, kw_only=True):
    """The answer of `admit`."""

    refusal: Refusal | None = None
    shadowed: tuple[Refusal, ...] = ()
    readings: tuple[Reading, ...] = ()


class Entry(Struct, frozen=True, kw_only=True):
    """The answer of `enter`; `lease` is the limiter's own, None when refused."""

    lease: object | None = None
    refusal: Refusal | None = None
    shadowed: tuple[Refusal, ...] = ()
    readings: tuple[Reading, ...] = ()


class Limiter(Protocol):
    """The rates of every scope. Raises LimiterUnavailable where it says so."""

    async def start(self) -> None:
        """Get ready. Raises SettingsError when what the settings name cannot be used."""

    async def close(self) -> None:
        """Let go of what is held; leases that are still out are given back."""

    async def admit(self, now_us: int, scopes: Sequence[RateScope], repeat: Repeat | None) -> Admission:
        """Count one request in every scope, or in none when one refuses. Raises LimiterUnavailable."""

    async def enter(self, now_us: int, scopes: Sequence[RateScope], tokens: int) -> Entry:
        """Take a place in flight and charge tokens, in every scope or in none. Raises LimiterUnavailable."""

    def leave(self, lease: object, tokens: int | None) -> None:
        """Give the place back, once. `tokens` is what the call used: 0 when nothing was sent, None when unknown."""

    async def used(self, now_us: int, scopes: Sequence[RateScope]) -> Sequence[tuple[int, int]]:
        """Return the requests and the tokens of each scope in the last 60 seconds. Raises LimiterUnavailable."""

    async def restore(self, now_us: int, uses: Sequence[PastUse]) -> None:
        """Charge the use of the last minute where it is not known, oldest first, so that no limit starts anew."""
