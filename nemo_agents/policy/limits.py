"""Rate windows: requests and tokens in the last 60 seconds, and calls in flight, per role and per fleet.

A window is a log of what was charged and when. In any 60 seconds it admits at most its limit, exactly: for
limits up to 1,000 every charge is an entry of its own, above that charges within 60 ms share one, dated at
the latest of them. An entry is then never too old, so that the limit still holds exactly, a charge may stay
up to 60 ms longer than it must, and a window has about a thousand entries at most, whatever its limit.

`now_us` of every call is microseconds of one clock, the same for restored use; a clock that steps back is
read as standing still. All of it belongs to one thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from msgspec import Struct

from nemo_agents.policy.rates import (
    ALLOWED,
    WINDOW_US,
    Allowed,
    Answer,
    Never,
    RateScope,
    Reading,
    Wait,
    judge,
    judge_parallel,
)
from nemo_agents.policy.refusal import Refusal

__all__ = [
    "OWN_ENTRY_LIMIT_MAX",
    "WINDOW_US",
    "Admitted",
    "Allowed",
    "Entry",
    "Never",
    "PastUse",
    "RateScope",
    "RateWindow",
    "RateWindows",
    "SlotLease",
    "TokenCharge",
    "Wait",
    "scopes_of_use",
]

OWN_ENTRY_LIMIT_MAX: Final = 1_000
"""Up to this limit every charge has an entry of its own, and a window about as many entries at most."""


@dataclass(slots=True, eq=False)
class Entry:
    """What was charged from `since_us` to `at_us`; it leaves the window 60 seconds after `at_us`."""

    since_us: int
    at_us: int
    weight: int
    gone: bool = False


class RateWindow:
    """The last 60 seconds of one scope, of requests or tokens; the limit is an argument, and may change."""

    __slots__ = ("_entries", "_now_us", "_used", "_window_us")

    def __init__(self, window_us: int = WINDOW_US) -> None:
        self._window_us = window_us
        self._entries: deque[Entry] = deque()
        self._now_us = 0
        self._used = 0

    def check(self, now_us: int, weight: int, limit: int | None) -> Answer:
        """Say whether `weight` more fits under `limit`; charges nothing."""
        if now_us > self._now_us:
            self._advance(now_us)
        if limit is None or self._used + weight <= limit:
            return ALLOWED
        if weight > limit:
            return Never()
        excess = self._used + weight - limit
        for entry in self._entries:
            excess -= entry.weight
            if excess <= 0:
                return Wait(entry.at_us + self._window_us - now_us)
        raise AssertionError("the entries of a window add up to its use")

    def charge(self, now_us: int, weight: int, limit: int | None) -> Entry:
        """Charge `weight` at `now_us`, fit or not; the entry is what a later `settle` corrects."""
        if now_us > self._now_us:
            self._advance(now_us)
        self._used += weight
        last = self._entries[-1] if self._entries else None
        shared = limit is None or limit > OWN_ENTRY_LIMIT_MAX or len(self._entries) >= OWN_ENTRY_LIMIT_MAX
        if last is not None and shared and self._now_us - last.since_us < self._window_us // OWN_ENTRY_LIMIT_MAX:
            last.at_us = self._now_us
            last.weight += weight
            return last
        entry = Entry(self._now_us, self._now_us, weight)
        self._entries.append(entry)
        return entry

    def settle(self, entry: Entry, difference: int) -> None:
        """Correct a charge by `difference` at the time it was made; no effect once it has left the window."""
        if entry.gone:
            return
        if entry.weight + difference < 0:
            raise ValueError(f"cannot give back {-difference} of a charge of {entry.weight}")
        entry.weight += difference
        self._used += difference

    def used(self, now_us: int) -> int:
        """Return what is charged in the last 60 seconds; after settling upwards it may exceed the limit."""
        if now_us > self._now_us:
            self._advance(now_us)
        return self._used

    def remaining(self, now_us: int, limit: int) -> int:
        """Return what fits now, never negative."""
        if now_us > self._now_us:
            self._advance(now_us)
        return max(0, limit - self._used)

    def reset_us(self, now_us: int) -> int:
        """Return the microseconds until the window is empty, if nothing else is charged."""
        if now_us > self._now_us:
            self._advance(now_us)
        if self._entries and (latest := self._entries[-1]).weight:
            return latest.at_us + self._window_us - now_us
        for entry in reversed(self._entries):
            if entry.weight:
                return entry.at_us + self._window_us - now_us
        return 0

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self._entries)

    def log(self) -> list[int]:
        """Return since, at and weight of every entry, oldest first, one after the other."""
        return [part for entry in self._entries for part in (entry.since_us, entry.at_us, entry.weight)]

    def idle(self, now_us: int) -> bool:
        """Say whether nothing is left in the window."""
        if now_us > self._now_us:
            self._advance(now_us)
        return not self._entries

    def _advance(self, now_us: int) -> None:
        """Take out what ends by now. Whoever asks at the same time again, as a request does, need not come here."""
        self._now_us = now_us
        entries = self._entries
        ends_us = now_us - self._window_us
        while entries and entries[0].at_us <= ends_us:
            entry = entries.popleft()
            entry.gone = True
            self._used -= entry.weight


@dataclass(slots=True, eq=False)
class _Meter:
    requests: RateWindow
    tokens: RateWindow
    in_flight: int = 0


class Admitted(Struct, frozen=True, kw_only=True):
    """The request is counted in every scope. `shadowed` is what limits in mode shadow would have answered."""

    at_us: int
    shadowed: tuple[Refusal, ...] = ()


@dataclass(slots=True, eq=False, kw_only=True)
class TokenCharge:
    """Tokens charged by estimate in every scope of a call; resolved once, later tries do nothing."""

    tokens: int
    parts: Sequence[tuple[RateWindow, Entry]]
    shadowed: tuple[Refusal, ...] = ()
    resolved: bool = False


@dataclass(slots=True, eq=False, kw_only=True)
class SlotLease:
    """One call in flight in every scope, until it is released; later releases do nothing."""

    meters: Sequence[_Meter]
    shadowed: tuple[Refusal, ...] = ()
    released: bool = False


class PastUse(Protocol):
    """One request of the last minute as the store remembers it."""

    @property
    def grant_id(self) -> str:
        """Return the id of the role scope."""

    @property
    def fleet(self) -> str | None:
        """Return the id of the fleet scope."""

    @property
    def model(self) -> str | None:
        """Return the model as the caller named it: with the grant's id, the id of a model scope."""

    @property
    def at_us(self) -> int:
        """Return when it was admitted."""

    @property
    def tokens(self) -> int:
        """Return what it was charged."""


class RateWindows:
    """The windows of every scope. A request is admitted by all of its scopes or counted in none.

    Windows that have been empty for a while are dropped: memory follows the scopes of the last two minutes.
    """

    __slots__ = ("_meters", "_swept_us", "_window_us")

    def __init__(self, window_us: int = WINDOW_US) -> None:
        self._window_us = window_us
        self._meters: dict[tuple[str, str], _Meter] = {}
        self._swept_us = 0

    def __len__(self) -> int:
        return len(self._meters)

    def admit_requests(self, now_us: int, scopes: Sequence[RateScope]) -> Admitted | Refusal:
        """Count one request. It stays counted when a later check refuses it: that slows a loop."""
        pairs = self._pairs(now_us, scopes)
        answers = [meter.requests.check(now_us, 1, scope.rpm) for scope, meter in pairs]
        refusal, shadowed = judge("rpm", scopes, answers, weight=1)
        if refusal is not None:
            return refusal
        for scope, meter in pairs:
            meter.requests.charge(now_us, 1, scope.rpm)
        return Admitted(at_us=now_us, shadowed=shadowed)

    def admit_tokens(self, now_us: int, scopes: Sequence[RateScope], tokens: int) -> TokenCharge | Refusal:
        """Charge an estimate of a call's tokens; settle it when the call is over, with 0 if nothing was sent."""
        return _charge_tokens(now_us, scopes, self._pairs(now_us, scopes), tokens)

    def enter(self, now_us: int, scopes: Sequence[RateScope], tokens: int) -> tuple[SlotLease, TokenCharge] | Refusal:
        """Do both, `acquire` and then `admit_tokens`, or neither."""
        pairs = self._pairs(now_us, scopes)
        slot = _acquire(scopes, pairs)
        if isinstance(slot, Refusal):
            return slot
        charge = _charge_tokens(now_us, scopes, pairs, tokens)
        if isinstance(charge, Refusal):
            self.release(slot)
            return charge
        return slot, charge

    def settle_tokens(self, charge: TokenCharge, actual: int) -> None:
        """Replace the estimate by the actual use, at the time of the charge; beyond the limit is a debt."""
        if actual < 0:
            raise ValueError("a call uses at least 0 tokens")
        if not charge.resolved:
            charge.resolved = True
            for window, entry in charge.parts:
                window.settle(entry, actual - charge.tokens)

    def acquire(self, now_us: int, scopes: Sequence[RateScope]) -> SlotLease | Refusal:
        """Count one more call in flight in every scope, or in none; release the lease when it is over."""
        return _acquire(scopes, self._pairs(now_us, scopes))

    def release(self, lease: SlotLease) -> None:
        """End a call in flight."""
        if not lease.released:
            lease.released = True
            for meter in lease.meters:
                meter.in_flight -= 1

    def used(self, now_us: int, kind: str, scope_id: str) -> tuple[int, int]:
        """Return the requests and the tokens of a scope in the last 60 seconds."""
        meter = self._meters.get((kind, scope_id))
        return (0, 0) if meter is None else (meter.requests.used(now_us), meter.tokens.used(now_us))

    def readings(self, now_us: int, scopes: Sequence[RateScope], *, requests: bool = True) -> tuple[Reading, ...]:
        """Return where every limit of requests and tokens stands; those of requests only where they are wanted."""
        readings: list[Reading] = []
        for scope in scopes:
            meter = self._meters.get(scope.key)
            if requests and scope.rpm is not None:
                window = None if meter is None else meter.requests
                readings.append(_reading(window, now_us, "requests", scope.rpm, "rpm" in scope.shadow))
            if scope.tpm is not None:
                window = None if meter is None else meter.tokens
                readings.append(_reading(window, now_us, "tokens", scope.tpm, "tpm" in scope.shadow))
        return tuple(readings)

    def restore(self, now_us: int, uses: Iterable[PastUse]) -> None:
        """Charge the use of the last minute after a restart, oldest first, so that no limit starts anew."""
        for use in uses:
            if use.at_us + self._window_us <= now_us:
                continue
            at_us = min(use.at_us, now_us)
            for key in scopes_of_use(use):
                meter = self._meter(key)
                meter.requests.charge(at_us, 1, None)
                meter.tokens.charge(at_us, use.tokens, None)

    def _pairs(self, now_us: int, scopes: Sequence[RateScope]) -> list[tuple[RateScope, _Meter]]:
        if now_us - self._swept_us >= self._window_us:
            self._swept_us = now_us
            self._meters = {key: meter for key, meter in self._meters.items() if not _idle(meter, now_us)}
        known = self._meters.get
        return [(scope, known(scope.key) or self._meter(scope.key)) for scope in scopes]

    def _meter(self, key: tuple[str, str]) -> _Meter:
        meter = self._meters.get(key)
        if meter is None:
            meter = self._meters[key] = _Meter(requests=RateWindow(self._window_us), tokens=RateWindow(self._window_us))
        return meter


def _acquire(scopes: Sequence[RateScope], pairs: Sequence[tuple[RateScope, _Meter]]) -> SlotLease | Refusal:
    meters = [meter for _, meter in pairs]
    refusal, shadowed = judge_parallel(scopes, [meter.in_flight for meter in meters])
    if refusal is not None:
        return refusal
    for meter in meters:
        meter.in_flight += 1
    return SlotLease(meters=meters, shadowed=shadowed)


def _charge_tokens(
    now_us: int, scopes: Sequence[RateScope], pairs: Sequence[tuple[RateScope, _Meter]], tokens: int
) -> TokenCharge | Refusal:
    weight = max(1, tokens)
    answers = [meter.tokens.check(now_us, weight, scope.tpm) for scope, meter in pairs]
    refusal, shadowed = judge("tpm", scopes, answers, weight=weight)
    if refusal is not None:
        return refusal
    parts = [(meter.tokens, meter.tokens.charge(now_us, weight, scope.tpm)) for scope, meter in pairs]
    return TokenCharge(tokens=weight, parts=parts, shadowed=shadowed)


def _reading(
    window: RateWindow | None,
    now_us: int,
    what: Literal["requests", "tokens"],
    limit: int,
    shadow: bool,  # noqa: FBT001 - one of the fields of a reading, in their order
) -> Reading:
    if window is None:
        return Reading(what=what, limit=limit, remaining=limit, reset_us=0, shadow=shadow)
    remaining = window.remaining(now_us, limit)
    return Reading(what=what, limit=limit, remaining=remaining, reset_us=window.reset_us(now_us), shadow=shadow)


def _idle(meter: _Meter, now_us: int) -> bool:
    return meter.in_flight == 0 and meter.requests.idle(now_us) and meter.tokens.idle(now_us)


def scopes_of_use(use: PastUse) -> list[tuple[str, str]]:
    """Return kind and id of every scope that a past request counted against."""
    scopes = [("role", use.grant_id)]
    if use.fleet is not None:
        scopes.append(("fleet", use.fleet))
    if use.model is not None:
        scopes.append(("model", f"{use.grant_id}/{use.model}"))
    return scopes
