"""What happens after an attempt that gave no answer: once more, the next deployment, or the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from msgspec import Struct

from nemo_agents.policy.faults import Fault, FaultKind, kind_of_refusal
from nemo_agents.policy.routing import Target, fallback_on
from nemo_agents.policy.selection import Choice

__all__ = [
    "WAIT_MS_MAX",
    "Fallback",
    "Fault",
    "FaultKind",
    "GiveUp",
    "Limits",
    "Retry",
    "Tried",
    "after",
    "back_off_ms",
    "kind_of_refusal",
    "may_go_on",
]

WAIT_MS_MAX: Final = 8_000
"""The longest that a request waits here for one retry: who asked can wait longer by himself, and is told to."""

_BACK_OFF_MS: Final = 250


class Limits(Struct, frozen=True, kw_only=True):
    """What bounds the attempts of one request.

    `retries` is how often one deployment is asked again, `attempts` how many attempts there are in all. `fallback_on`
    are the refusals of a request after which another deployment may be asked: no other is.
    """

    attempts: int
    retries: int
    fallback_on: frozenset[FaultKind] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """An attempt that failed, and when. `fault` None: nothing was sent, for reasons of our own."""

    choice: Choice
    fault: Fault | None
    at_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """Ask a deployment again that was asked before, after a wait."""

    choice: Choice
    wait_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fallback:
    """Ask a deployment that was not asked yet."""

    choice: Choice


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveUp:
    """Answer with the last failure.

    `why`: the request itself was refused; the attempts or the time are used up; or there is no one left to ask.
    """

    why: Literal["refused", "attempts", "time", "nobody"]


def after(
    tried: Sequence[Tried],
    left: Sequence[Choice],
    limits: Limits,
    *,
    now_us: int,
    deadline_us: int | None,
    jitter: float,
    cooling: Callable[[Target], bool] = lambda _: False,
) -> Retry | Fallback | GiveUp:
    """Decide what follows the last of the attempts `tried`, of which there is at least one.

    `left` are the deployments that were not asked, in the order to ask them; `deadline_us` is when the client no
    longer waits. `jitter`, from 0 to 1, spreads the waits of requests that failed together. `cooling` names the
    deployments that are cooling down: they are not asked again while another is left.

    In this order: another deployment of the same stage; the least wait for one of this stage that was asked already,
    unless it is a 429, which others can spare us; the next stage; the least wait for any that was asked.
    """
    last = tried[-1]
    if len(tried) >= limits.attempts:
        return GiveUp(why="attempts")
    if deadline_us is not None and now_us >= deadline_us:
        return GiveUp(why="time")
    if last.fault is None:
        return Fallback(choice=left[0]) if left else GiveUp(why="nobody")
    if last.fault.kind is not None:
        return _after_refusal(last, last.fault.kind, left, limits)
    if not fallback_on(last.fault.status):
        return GiveUp(why="refused")
    stage = last.choice.stage
    if left and left[0].stage == stage:
        return Fallback(choice=left[0])
    retries = _retries(tried, limits, now_us=now_us, jitter=jitter)
    in_time = [retry for retry in retries if deadline_us is None or now_us + retry.wait_ms * 1000 < deadline_us]
    if not left:
        again = _soonest(in_time)
        return again or GiveUp(why="time" if retries else "nobody")
    limited = last.fault.status == 429
    here = [r for r in in_time if r.choice.stage == stage and not cooling(r.choice.target)]
    spared = {one.choice for one in tried if one.fault is not None and one.fault.status == 429}
    again = None if limited else _soonest(r for r in here if r.choice not in spared)
    return again or Fallback(choice=left[0])


def may_go_on(tried: Sequence[Tried], current: Choice, left: Sequence[Choice], limits: Limits) -> bool:
    """Say whether a failure of the attempt under way could be followed by another attempt."""
    if len(tried) + 1 >= limits.attempts:
        return False
    asked = [current, *(one.choice for one in tried if one.fault is not None and _again(one.fault))]
    return bool(left) or any(asked.count(choice) <= limits.retries for choice in asked)


def back_off_ms(retry: int, jitter: float) -> int:
    """Return the wait in milliseconds before the n-th retry, from 1: 250 ms, doubling up to 8 s, half of it by chance.

    This is "equal jitter" of https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/: requests that
    failed together do not come back together, and none comes back at once.
    """
    whole = min(WAIT_MS_MAX, _BACK_OFF_MS << min(retry - 1, 16))
    return int(whole / 2 + whole / 2 * jitter)


def _after_refusal(last: Tried, kind: FaultKind, left: Sequence[Choice], limits: Limits) -> Retry | Fallback | GiveUp:
    """Decide after a deployment that refused the request as too long, or for what it says."""
    if kind not in limits.fallback_on:
        return GiveUp(why="refused")
    too_small = last.choice.target.context_tokens if kind == "context_window" else None
    for choice in left:
        room = choice.target.context_tokens
        if too_small is None or room is None or room > too_small:
            return Fallback(choice=choice)
    return GiveUp(why="nobody")


def _retries(tried: Sequence[Tried], limits: Limits, *, now_us: int, jitter: float) -> list[Retry]:
    """Return the deployments that may be asked again, with the wait that each needs from now on."""
    latest = {one.choice: one for one in tried}
    times: dict[Choice, int] = {}
    for one in tried:
        times[one.choice] = times.get(one.choice, 0) + 1
    found = []
    for choice, one in latest.items():
        if one.fault is None or times[choice] > limits.retries or not _again(one.fault):
            continue
        asked_for_ms = one.fault.retry_after_ms or 0
        if asked_for_ms > WAIT_MS_MAX:
            continue
        since_us = max(0, now_us - one.at_us)
        wait_ms = max(asked_for_ms, back_off_ms(times[choice], jitter)) - since_us // 1000
        found.append(Retry(choice=choice, wait_ms=max(0, wait_ms)))
    return found


def _soonest(retries: Iterable[Retry]) -> Retry | None:
    return min(retries, key=lambda retry: retry.wait_ms, default=None)


def _again(fault: Fault) -> bool:
    """Say whether the same deployment may be asked once more.

    Only where it has said that it did not serve, or nothing was sent: what may have been served is not sent there
    twice, for it would be billed twice.
    """
    if fault.kind is not None:
        return False
    return not fault.sent if fault.status is None else fallback_on(fault.status)
