"""What the rates of a request mean, wherever they are counted: scopes, refusals, and what the headers say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, Literal

from msgspec import Struct

from nemo_agents.errors import Code
from nemo_agents.policy.refusal import Refusal

__all__ = [
    "ALLOWED",
    "WINDOW_US",
    "Allowed",
    "Answer",
    "Never",
    "RateScope",
    "Reading",
    "Wait",
    "format_reset",
    "judge",
    "judge_parallel",
    "newer_readings",
    "rate_headers",
]

WINDOW_US: Final = 60_000_000
_PARALLEL_RETRY_MS: Final = 1_000
"""When a call in flight ends is not known; a second is a polite guess."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RateScope:
    """One scope's rate limits as they are now; None where there is none. `name` is for messages.

    The id of a scope of kind `model` is `<grant id>/<model>`: one model of a role. `shadow` names the limits (`rpm`,
    `tpm`, `max_parallel`) that are recorded and never refuse. `fleet` is the fleet it belongs to, its own id for a
    fleet: a server that many gateways share keeps what belongs to one fleet together.
    """

    kind: Literal["role", "fleet", "model"]
    id: str
    rpm: int | None = None
    tpm: int | None = None
    max_parallel: int | None = None
    name: str | None = None
    shadow: frozenset[str] = frozenset()
    fleet: str | None = None
    key: tuple[str, str] = field(init=False, repr=False, compare=False)  # kind and id, by which its windows are kept

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", (self.kind, self.id))


@dataclass(frozen=True, slots=True)
class Allowed:
    """The weight fits now."""


ALLOWED: Final = Allowed()


@dataclass(frozen=True, slots=True)
class Wait:
    """The weight fits after this many microseconds, if nothing else is charged meanwhile."""

    retry_after_us: int


@dataclass(frozen=True, slots=True)
class Never:
    """The weight is larger than the limit: no waiting helps."""


Answer = Allowed | Wait | Never


class Reading(Struct, frozen=True, kw_only=True):
    """Where one limit stands: what still fits now, and the microseconds until its window is empty."""

    what: Literal["requests", "tokens"]
    limit: int
    remaining: int
    reset_us: int
    shadow: bool = False


def judge(
    limit: Literal["rpm", "tpm"], scopes: Sequence[RateScope], answers: Sequence[Answer], *, weight: int
) -> tuple[Refusal | None, tuple[Refusal, ...]]:
    """Return the refusal that the answers of the scopes' windows amount to, and those of limits in mode shadow.

    The refusal is of the scope that takes longest: waiting that long is enough for all of them.
    """
    if answers.count(ALLOWED) == len(answers):
        return None, ()
    slowest: tuple[RateScope, Wait | Never] | None = None
    shadowed: list[Refusal] = []
    for scope, answer in zip(scopes, answers, strict=True):
        if isinstance(answer, Allowed):
            continue
        if limit in scope.shadow:
            shadowed.append(_refusal(limit, scope, answer, weight))
        elif slowest is None or _is_longer(answer, slowest[1]):
            slowest = (scope, answer)
    return None if slowest is None else _refusal(limit, *slowest, weight), tuple(shadowed)


def judge_parallel(scopes: Sequence[RateScope], in_flight: Sequence[int]) -> tuple[Refusal | None, tuple[Refusal, ...]]:
    """Return the refusal of one more call beside those in flight, and those of limits in mode shadow."""
    refusal: Refusal | None = None
    shadowed: list[Refusal] = []
    for scope, flying in zip(scopes, in_flight, strict=True):
        most = scope.max_parallel
        if most is None or flying < most:
            continue
        if "max_parallel" in scope.shadow:
            shadowed.append(_parallel_refusal(scope, most))
        elif refusal is None:
            refusal = _parallel_refusal(scope, most)
    return refusal, tuple(shadowed)


def newer_readings(before: Sequence[Reading], after: Sequence[Reading]) -> tuple[Reading, ...]:
    """Return the readings after, and of what they do not speak of (requests, tokens) those before."""
    if not before:
        return tuple(after)
    spoken = {reading.what for reading in after}
    return (*[reading for reading in before if reading.what not in spoken], *after)


def rate_headers(readings: Iterable[Reading]) -> dict[str, str]:
    """Return OpenAI's six rate headers and the two of the IETF's draft, for the tightest reading of each kind.

    A limit in mode shadow is told only where there is no other. The draft is
    draft-ietf-httpapi-ratelimit-headers-10: lists of structured fields with quota `q`, window `w` in seconds, quota
    unit `qu`, remaining `r`, and `t` seconds until the quota is whole again, rounded up.
    """
    requests = tokens = None
    for reading in readings:
        if reading.what == "requests":
            requests = reading if requests is None else _tighter(reading, requests)
        else:
            tokens = reading if tokens is None else _tighter(reading, tokens)
    headers: dict[str, str] = {}
    standings: list[str] = []
    if requests is not None:
        headers["x-ratelimit-limit-requests"] = str(requests.limit)
        headers["x-ratelimit-remaining-requests"] = str(requests.remaining)
        headers["x-ratelimit-reset-requests"] = format_reset(requests.reset_us)
        standings.append(f'"rpm";r={requests.remaining};t={-(-requests.reset_us // 1_000_000)}')
    if tokens is not None:
        headers["x-ratelimit-limit-tokens"] = str(tokens.limit)
        headers["x-ratelimit-remaining-tokens"] = str(tokens.remaining)
        headers["x-ratelimit-reset-tokens"] = format_reset(tokens.reset_us)
        standings.append(f'"tpm";r={tokens.remaining};t={-(-tokens.reset_us // 1_000_000)}')
    if standings:
        headers["ratelimit-policy"] = _policies(requests and requests.limit, tokens and tokens.limit)
        headers["ratelimit"] = ", ".join(standings)
    return headers


@lru_cache(maxsize=256)
def _policies(rpm: int | None, tpm: int | None) -> str:
    """Return the value of `ratelimit-policy`, which is the same for every request of a role."""
    window = f"w={WINDOW_US // 1_000_000}"
    policies = [] if rpm is None else [f'"rpm";q={rpm};{window}']
    if tpm is not None:
        policies.append(f'"tpm";q={tpm};{window};qu="tokens"')
    return ", ".join(policies)


def format_reset(reset_us: int) -> str:
    """Write a time as OpenAI's `x-ratelimit-reset-*` do: `120ms`, `1s`, `6m0s`; rounded up."""
    if 0 < reset_us < 1_000_000:
        return f"{-(-reset_us // 1000)}ms"
    minutes, seconds = divmod(-(-reset_us // 1_000_000), 60)
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"


def _tighter(one: Reading, other: Reading) -> Reading:
    return one if _tightness(one) < _tightness(other) else other


def _tightness(reading: Reading) -> tuple[bool, int, int, int]:
    return reading.shadow, reading.remaining, reading.limit, reading.reset_us


def _is_longer(answer: Wait | Never, than: Wait | Never) -> bool:
    if isinstance(than, Never):
        return False
    return isinstance(answer, Never) or answer.retry_after_us > than.retry_after_us


def _refusal(limit: Literal["rpm", "tpm"], scope: RateScope, answer: Wait | Never, weight: int) -> Refusal:
    value = (scope.rpm if limit == "rpm" else scope.tpm) or 0
    if isinstance(answer, Never):
        return _refusal_for_good(limit, scope, value, weight)
    retry_after_ms = max(1, -(-answer.retry_after_us // 1000))
    unit = "requests" if limit == "rpm" else "tokens"
    need = "" if limit == "rpm" else f", and this request needs about {weight:,}"
    return Refusal(
        status=429,
        code=Code.RATE_LIMIT_EXCEEDED,
        message=(
            f"{_who(scope)} has used its limit of {value:,} {unit} per minute{_on(scope)} ({limit}){need}. "
            f"Retry in {retry_after_ms / 1000:g} s."
        ),
        scope=scope.kind,
        limit=limit,
        retry_after_ms=retry_after_ms,
    )


def _refusal_for_good(limit: Literal["rpm", "tpm"], scope: RateScope, value: int, weight: int) -> Refusal:
    if limit == "rpm":
        message = (
            f"{_who(scope)} has a limit of {value} requests per minute{_on(scope)} (rpm): raise it to let any pass."
        )
    else:
        message = (
            f"This request needs about {weight:,} tokens. {_who(scope)} has a limit of {value:,} tokens per "
            f"minute{_on(scope)} (tpm): waiting does not help. Shorten the request, lower its max_tokens, or raise "
            f"the limit."
        )
    return Refusal(status=429, code=Code.RATE_LIMIT_EXCEEDED, message=message, scope=scope.kind, limit=limit)


def _parallel_refusal(scope: RateScope, most: int) -> Refusal:
    never = most < 1
    remedy = "Raise it to let any pass." if never else "Retry when one of them has ended."
    return Refusal(
        status=429,
        code=Code.RATE_LIMIT_EXCEEDED,
        message=f"{_who(scope)} has its limit of {most} calls in flight{_on(scope)} (max_parallel). {remedy}",
        scope=scope.kind,
        limit="max_parallel",
        retry_after_ms=None if never else _PARALLEL_RETRY_MS,
    )


def _who(scope: RateScope) -> str:
    """Name a scope at the start of a sentence; one of a model is its role's."""
    if scope.kind == "model":
        role = (scope.name or "").removesuffix(f", {_model(scope)}")
        return f"Role {role}" if role else "The role"
    return f"{scope.kind.capitalize()} {scope.name}" if scope.name else f"The {scope.kind}"


def _on(scope: RateScope) -> str:
    return f" for {_model(scope)}" if scope.kind == "model" else ""


def _model(scope: RateScope) -> str:
    return scope.id.partition("/")[2]
