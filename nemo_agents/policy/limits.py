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

from nemo_agents.errors import Code
from nemo_agents.policy.refusal import Refusal

__all__ = [
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
    "format_reset",
]

WINDOW_US: Final = 60_000_000
_OWN_ENTRY_LIMIT_MAX: Final = 1_000
_SLOT_US: Final = WINDOW_US // 1_000
_Reading = tuple[int, int, int]
_PARALLEL_RETRY_MS: Final = 1_000
"""When a call in flight ends is not known; a second is a polite guess."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RateScope:
    """One scope's rate limits as they are now; None where there is none. `name` is for messages."""

    kind: Literal["role", "fleet"]
    id: str
    rpm: int | None = None
    tpm: int | None = None
    max_parallel: int | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Allowed:
    """The weight fits now."""


@dataclass(frozen=True, slots=True)
class Wait:
    """The weight fits after this many microseconds, if nothing else is charged meanwhile."""

    retry_after_us: int


@dataclass(frozen=True, slots=True)
class Never:
    """The weight is larger than the limit: no waiting helps."""


_ALLOWED: Final = Allowed()


@dataclass(slots=True, eq=False)
class Entry:
    """What was charged from `since_us` to `at_us`; it leaves the window 60 seconds after `at_us`."""

    since_us: int
    at_us: int
    weight: int
    gone: bool = False


class RateWindow:
    """The last 60 seconds of one scope, of requests or tokens; the limit is an argument, and may change."""

    __slots__ = ("_entries", "_now_us", "_used")

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque()
        self._now_us = 0
        self._used = 0

    def check(self, now_us: int, weight: int, limit: int | None) -> Allowed | Wait | Never:
        """Say whether `weight` more fits under `limit`; charges nothing."""
        self._advance(now_us)
        if limit is None or self._used + weight <= limit:
            return _ALLOWED
        if weight > limit:
            return Never()
        excess = self._used + weight - limit
        for entry in self._entries:
            excess -= entry.weight
            if excess <= 0:
                return Wait(entry.at_us + WINDOW_US - now_us)
        raise AssertionError("the entries of a window add up to its use")

    def charge(self, now_us: int, weight: int, limit: int | None) -> Entry:
        """Charge `weight` at `now_us`, fit or not; the entry is what a later `settle` corrects."""
        self._advance(now_us)
        self._used += weight
        last = self._entries[-1] if self._entries else None
        shared = limit is None or limit > _OWN_ENTRY_LIMIT_MAX or len(self._entries) >= _OWN_ENTRY_LIMIT_MAX
        if last is not None and shared and self._now_us - last.since_us < _SLOT_US:
            last.at_us = self._now_us
            last.weight += weight
            return last
        entry = Entry(since_us=self._now_us, at_us=self._now_us, weight=weight)
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
        self._advance(now_us)
        return self._used

    def remaining(self, now_us: int, limit: int) -> int:
        """Return what fits now, never negative."""
        return max(0, limit - self.used(now_us))

    def reset_us(self, now_us: int) -> int:
        """Return the microseconds until the window is empty, if nothing else is charged."""
        self._advance(now_us)
        for entry in reversed(self._entries):
            if entry.weight:
                return entry.at_us + WINDOW_US - now_us
        return 0

    def reading(self, now_us: int, limit: int) -> _Reading:
        """Return what fits now, the limit, and the microseconds until the window is empty."""
        reset_us = self.reset_us(now_us)
        return max(0, limit - self._used), limit, reset_us

    def idle(self, now_us: int) -> bool:
        """Say whether nothing is left in the window."""
        self._advance(now_us)
        return not self._entries

    def _advance(self, now_us: int) -> None:
        if now_us <= self._now_us:
            return  # whatever ends by now has been taken out
        self._now_us = now_us
        entries = self._entries
        while entries and entries[0].at_us + WINDOW_US <= self._now_us:
            entry = entries.popleft()
            entry.gone = True
            self._used -= entry.weight


@dataclass(slots=True, eq=False)
class _Meter:
    requests: RateWindow
    tokens: RateWindow
    in_flight: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """The request is counted in every scope."""

    at_us: int


@dataclass(slots=True, eq=False, kw_only=True)
class TokenCharge:
    """Tokens charged by estimate in every scope of a call; resolved once, later tries do nothing."""

    tokens: int
    parts: tuple[tuple[RateWindow, Entry], ...]
    resolved: bool = False


@dataclass(slots=True, eq=False, kw_only=True)
class SlotLease:
    """One call in flight in every scope, until it is released; later releases do nothing."""

    meters: tuple[_Meter, ...]
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
    def at_us(self) -> int:
        """Return when it was admitted."""

    @property
    def tokens(self) -> int:
        """Return what it was charged."""


_Over = tuple[RateScope, int | None, Wait | Never]


class RateWindows:
    """The windows of every scope. A request is admitted by all of its scopes or counted in none.

    Windows that have been empty for a while are dropped: memory follows the scopes of the last two minutes.
    """

    __slots__ = ("_meters", "_swept_us")

    def __init__(self) -> None:
        self._meters: dict[tuple[str, str], _Meter] = {}
        self._swept_us = 0

    def __len__(self) -> int:
        return len(self._meters)

    def admit_requests(self, now_us: int, scopes: Sequence[RateScope]) -> Admitted | Refusal:
        """Count one request. It stays counted when a later check refuses it: that slows a loop."""
        meters = self._meters_of(now_us, scopes)
        over: list[_Over] = []
        for scope, meter in zip(scopes, meters, strict=True):
            answer = meter.requests.check(now_us, 1, scope.rpm)
            if not isinstance(answer, Allowed):
                over.append((scope, scope.rpm, answer))
        if over:
            return _refusal("rpm", over, weight=1)
        for scope, meter in zip(scopes, meters, strict=True):
            meter.requests.charge(now_us, 1, scope.rpm)
        return Admitted(at_us=now_us)

    def admit_tokens(self, now_us: int, scopes: Sequence[RateScope], tokens: int) -> TokenCharge | Refusal:
        """Charge an estimate of a call's tokens; settle or cancel the charge when the call is over."""
        weight = max(1, tokens)
        meters = self._meters_of(now_us, scopes)
        over: list[_Over] = []
        for scope, meter in zip(scopes, meters, strict=True):
            answer = meter.tokens.check(now_us, weight, scope.tpm)
            if not isinstance(answer, Allowed):
                over.append((scope, scope.tpm, answer))
        if over:
            return _refusal("tpm", over, weight=weight)
        parts = [
            (meter.tokens, meter.tokens.charge(now_us, weight, scope.tpm))
            for scope, meter in zip(scopes, meters, strict=True)
        ]
        return TokenCharge(tokens=weight, parts=tuple(parts))

    def settle_tokens(self, charge: TokenCharge, actual: int) -> None:
        """Replace the estimate by the actual use, at the time of the charge; beyond the limit is a debt."""
        if actual < 0:
            raise ValueError("a call uses at least 0 tokens")
        if not charge.resolved:
            charge.resolved = True
            for window, entry in charge.parts:
                window.settle(entry, actual - charge.tokens)

    def cancel_tokens(self, charge: TokenCharge) -> None:
        """Give the whole charge back: the call was not sent."""
        self.settle_tokens(charge, 0)

    def acquire(self, now_us: int, scopes: Sequence[RateScope]) -> SlotLease | Refusal:
        """Count one more call in flight in every scope, or in none; release the lease when it is over."""
        meters = self._meters_of(now_us, scopes)
        for scope, meter in zip(scopes, meters, strict=True):
            if scope.max_parallel is not None and meter.in_flight >= scope.max_parallel:
                return _parallel_refusal(scope, scope.max_parallel)
        for meter in meters:
            meter.in_flight += 1
        return SlotLease(meters=meters)

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

    def headers(self, now_us: int, scopes: Sequence[RateScope]) -> dict[str, str]:
        """Return OpenAI's six rate headers for the scope with least left; none for what has no limit."""
        requests: list[_Reading] = []
        tokens: list[_Reading] = []
        for scope in scopes:
            rpm, tpm = scope.rpm, scope.tpm
            if rpm is not None or tpm is not None:
                meter = self._meters.get((scope.kind, scope.id)) or _unused()
                if rpm is not None:
                    requests.append(meter.requests.reading(now_us, rpm))
                if tpm is not None:
                    tokens.append(meter.tokens.reading(now_us, tpm))
        return {**_triplet("requests", requests), **_triplet("tokens", tokens)}

    def restore(self, now_us: int, uses: Iterable[PastUse]) -> None:
        """Charge the use of the last minute after a restart, oldest first, so that no limit starts anew."""
        for use in uses:
            if use.at_us + WINDOW_US <= now_us:
                continue
            at_us = min(use.at_us, now_us)
            keys = [("role", use.grant_id)] + ([("fleet", use.fleet)] if use.fleet is not None else [])
            for key in keys:
                meter = self._meter(key)
                meter.requests.charge(at_us, 1, None)
                meter.tokens.charge(at_us, use.tokens, None)

    def _meters_of(self, now_us: int, scopes: Sequence[RateScope]) -> tuple[_Meter, ...]:
        if now_us - self._swept_us >= WINDOW_US:
            self._swept_us = now_us
            self._meters = {key: meter for key, meter in self._meters.items() if not _idle(meter, now_us)}
        return tuple([self._meter((scope.kind, scope.id)) for scope in scopes])

    def _meter(self, key: tuple[str, str]) -> _Meter:
        meter = self._meters.get(key)
        if meter is None:
            meter = self._meters[key] = _unused()
        return meter


def _idle(meter: _Meter, now_us: int) -> bool:
    return meter.in_flight == 0 and meter.requests.idle(now_us) and meter.tokens.idle(now_us)


def _unused() -> _Meter:
    return _Meter(requests=RateWindow(), tokens=RateWindow())


def _triplet(what: Literal["requests", "tokens"], readings: Sequence[_Reading]) -> dict[str, str]:
    if not readings:
        return {}
    remaining, limit, reset_us = min(readings)
    return {
        f"x-ratelimit-limit-{what}": str(limit),
        f"x-ratelimit-remaining-{what}": str(remaining),
        f"x-ratelimit-reset-{what}": format_reset(reset_us),
    }


def _refusal(
    limit: Literal["rpm", "tpm"],
    over: Sequence[_Over],
    *,
    weight: int,
) -> Refusal:
    """Return the refusal of the scope that takes longest: waiting that long is enough for all of them."""
    slowest: tuple[int, RateScope, int] | None = None
    for scope, value, answer in over:
        if isinstance(answer, Never):
            return _refusal_for_good(limit, scope, value or 0, weight)
        if slowest is None or answer.retry_after_us > slowest[0]:
            slowest = (answer.retry_after_us, scope, value or 0)
    assert slowest is not None
    retry_after_us, scope, value = slowest
    retry_after_ms = max(1, -(-retry_after_us // 1000))
    unit = "requests" if limit == "rpm" else "tokens"
    need = "" if limit == "rpm" else f", and this request needs about {weight:,}"
    return Refusal(
        status=429,
        code=Code.RATE_LIMIT_EXCEEDED,
        message=(
            f"The {_who(scope)} has used its limit of {value:,} {unit} per minute ({limit}){need}. "
            f"Retry in {retry_after_ms / 1000:g} s."
        ),
        scope=scope.kind,
        limit=limit,
        retry_after_ms=retry_after_ms,
    )


def _refusal_for_good(limit: Literal["rpm", "tpm"], scope: RateScope, value: int, weight: int) -> Refusal:
    if limit == "rpm":
        message = f"The {_who(scope)} has a limit of {value} requests per minute (rpm): raise it to let any pass."
    else:
        message = (
            f"This request needs about {weight:,} tokens, and the {_who(scope)} has a limit of {value:,} "
            f"tokens per minute (tpm): waiting does not help. Shorten the request, lower its max_tokens, or raise "
            f"the limit."
        )
    return Refusal(status=429, code=Code.RATE_LIMIT_EXCEEDED, message=message, scope=scope.kind, limit=limit)


def _parallel_refusal(scope: RateScope, most: int) -> Refusal:
    never = most < 1
    remedy = "Raise it to let any pass." if never else "Retry when one of them has ended."
    return Refusal(
        status=429,
        code=Code.RATE_LIMIT_EXCEEDED,
        message=f"The {_who(scope)} has its limit of {most} calls in flight (max_parallel). {remedy}",
        scope=scope.kind,
        limit="max_parallel",
        retry_after_ms=None if never else _PARALLEL_RETRY_MS,
    )


def _who(scope: RateScope) -> str:
    return f"{scope.kind} {scope.name}" if scope.name else scope.kind


def format_reset(reset_us: int) -> str:
    """Write a time as OpenAI's `x-ratelimit-reset-*` do: `120ms`, `1s`, `6m0s`; rounded up."""
    if 0 < reset_us < 1_000_000:
        return f"{-(-reset_us // 1000)}ms"
    minutes, seconds = divmod(-(-reset_us // 1_000_000), 60)
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"
