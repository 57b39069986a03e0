"""In which order the deployments of a model group are asked for one request.

Deployments of a lower tier (`Target.order`) come first, a stage after the other; within a stage the group's strategy
says. What has too small a context for the request is passed over, and what is cooling down comes last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from nemo_agents.groups import Strategy
from nemo_agents.policy.routing import Target

__all__ = ["LAST", "Candidate", "Choice", "arrange", "cooled_last", "smoothed_us"]

LAST: Final = 1 << 30
"""The stage of what is cooling down: it is asked when nothing else is left."""

_EXPLORE: Final = 0.05  # of requests go to any deployment, so that one that was slow once can show that it is not now
_NEW_WEIGHS: Final = 0.2  # what the latest latency counts for in the mean; those before it count for ever less


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A deployment, and what is known of it now.

    `latency_us` is the mean time to the first token, `cost_nanos` what this very request costs there at most; None
    where that is not known.
    """

    target: Target
    in_flight: int = 0
    latency_us: int | None = None
    cost_nanos: int | None = None


class Choice(Struct, frozen=True, kw_only=True):
    """A deployment in its place: those of a lower stage are asked first."""

    target: Target
    stage: int


def arrange(
    candidates: Sequence[Candidate], strategy: Strategy, *, tokens_in: int, chance: Callable[[], float]
) -> tuple[Choice, ...]:
    """Return the deployments to ask, in order; never none where there is one.

    `tokens_in` is an estimate of the prompt. `chance` gives numbers from 0 up to, not including, 1.

    - `order`: as they are listed.
    - `weighted`: by chance, each in proportion to its weight among those that are left.
    - `least-busy`: the least calls in flight for its weight; by chance among equals.
    - `lowest-latency`: the least mean time to the first token. One that is not known yet comes first, and a twentieth
      of the requests goes to any, for a latency of long ago says little.
    - `lowest-cost`: the least cost of this request. Unknown is not free: it comes last.
    """
    fitting = [one for one in candidates if _fits(one.target, tokens_in)]
    if not fitting:  # the estimate may be too high: nobody is refused by it
        largest = sorted(candidates, key=lambda one: -(one.target.context_tokens or 0))
        return tuple(Choice(target=one.target, stage=stage) for stage, one in enumerate(largest))
    tiers: dict[int, list[Candidate]] = {}
    for one in fitting:
        tiers.setdefault(one.target.order, []).append(one)
    return tuple(
        Choice(target=one.target, stage=stage)
        for stage, tier in enumerate(sorted(tiers))
        for one in _by_strategy(tiers[tier], strategy, chance)
    )


def cooled_last(choices: Sequence[Choice], cooling_until_us: Callable[[Target], int | None]) -> tuple[Choice, ...]:
    """Return the choices with those behind all others that are cooling down, the soonest ready first.

    `cooling_until_us` is None for a deployment that is not.
    """
    ready: list[Choice] = []
    cooled: list[tuple[int, Choice]] = []
    for choice in choices:
        until_us = cooling_until_us(choice.target)
        if until_us is None:
            ready.append(choice)
        else:
            cooled.append((until_us, replace(choice, stage=LAST)))
    cooled.sort(key=lambda pair: pair[0])
    return (*ready, *(choice for _, choice in cooled))


def smoothed_us(former_us: int | None, sample_us: int) -> int:
    """Return the mean of latencies after another one: an exponentially weighted moving average."""
    return sample_us if former_us is None else round(former_us + _NEW_WEIGHS * (sample_us - former_us))


def _fits(target: Target, tokens_in: int) -> bool:
    return target.context_tokens is None or target.context_tokens >= tokens_in


def _by_strategy(tier: list[Candidate], strategy: Strategy, chance: Callable[[], float]) -> list[Candidate]:
    if len(tier) < 2:
        return tier
    match strategy:
        case "order":
            return tier
        case "weighted":
            # Efraimidis and Spirakis, "Weighted random sampling with a reservoir" (2006): the order of u^(1/w),
            # largest first, is that of drawing one after the other without replacement.
            return _sorted(tier, [(-(chance() ** (1 / one.target.weight)), 0) for one in tier])
        case "least-busy":
            return _sorted(tier, [(one.in_flight / one.target.weight, chance()) for one in tier])
        case "lowest-latency":
            order = _sorted(tier, [(-1 if one.latency_us is None else one.latency_us, chance()) for one in tier])
            if chance() < _EXPLORE:
                order.insert(0, order.pop(int(chance() * len(order))))
            return order
        case "lowest-cost":
            return _sorted(tier, [(one.cost_nanos is None, one.cost_nanos or 0) for one in tier])


def _sorted(tier: list[Candidate], keys: Sequence[tuple[float, float]]) -> list[Candidate]:
    """Return a tier by a key for each; equals stay as they were."""
    return [tier[n] for n in sorted(range(len(tier)), key=keys.__getitem__)]
