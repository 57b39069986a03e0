"""The way of one request through the deployments that can serve it, and what is known of those.

There is one Router in a gateway; it knows of each deployment how many calls are in flight, how fast it answers and
whether it is cooling down. Each replica learns that for itself. A Route is the way of one request.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, Literal, Protocol

from msgspec import Struct

from nemo_agents.groups import FallbackOn
from nemo_agents.policy.cooldown import Cooldown, State, speaks_of_deployment
from nemo_agents.policy.failover import (
    Fallback,
    Fault,
    FaultKind,
    GiveUp,
    Limits,
    Retry,
    Tried,
    after,
    may_go_on,
)
from nemo_agents.policy.refusal import Refusal
from nemo_agents.policy.routing import Deployment, Options, Target, options_of
from nemo_agents.policy.selection import Candidate, Choice, arrange, cooled_last, smoothed_us

__all__ = ["Candidates", "DeploymentState", "Go", "Route", "Router"]

_KNOWN_MAX: Final = 4_096  # names of models come from clients: what was not asked for the longest is forgotten
_KINDS: Final[Mapping[str, FaultKind]] = {"context-window": "context_window", "content-filter": "content_filter"}


class _Clock(Protocol):
    def now_us(self) -> int:
        """Return the time now."""


class Go(Struct, frozen=True, kw_only=True):
    """The next attempt: where, after how long a wait, and why."""

    target: Target
    reason: Literal["first", "retry", "fallback"]
    wait_ms: int = 0


class Candidates(Struct, frozen=True, kw_only=True):
    """Where a request may go, in the order of the declaration, and the options of the group; there is one at least."""

    targets: tuple[Target, ...]
    options: Options


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentState:
    """What is known of a deployment now; sums are since the gateway began, or first heard of it.

    `latency_us` is the mean time to the first token, or to the whole answer where that is all that was seen.
    `faults_in_a_row` are those that speak of the deployment. `cooling_until_us` is None unless it is `cooling`.
    """

    deployment: str
    provider: str
    model: str
    state: State
    in_flight: int
    latency_us: int | None
    answers: int
    faults: int
    faults_in_a_row: int
    cooling_until_us: int | None


class _Known:
    """What is known of one deployment."""

    __slots__ = ("answers", "cooldown", "faults", "in_flight", "latency_us", "target")

    def __init__(self, target: Target) -> None:
        self.target = target
        self.cooldown = Cooldown()
        self.in_flight = 0
        self.latency_us: int | None = None
        self.answers = 0
        self.faults = 0


class Router:
    """Chooses among deployments, by what it learns of them.

    `resolve` says where a name leads, in a fleet; `groups` are the model groups of a fleet; `context_tokens` says how
    long a prompt a model takes, where its deployment does not. `attempts` bounds those of a request, `retries` is how
    often a deployment that has no other beside it is asked again. `chance` gives numbers from 0 up to 1, without it.
    """

    def __init__(
        self,
        *,
        resolve: Callable[[str, str | None], tuple[Target, ...] | Refusal],
        groups: Callable[[str | None], Mapping[str, Sequence[Deployment]]],
        context_tokens: Callable[[str, str], int | None],
        clock: _Clock,
        chance: Callable[[], float],
        attempts: int,
        retries: int,
    ) -> None:
        self._resolve = resolve
        self._groups = groups
        self._context_tokens = context_tokens
        self._clock = clock
        self._chance = chance
        self._attempts = attempts
        self._retries = retries
        self._known: OrderedDict[str, _Known] = OrderedDict()

    def candidates(self, asked: str, fleet: str | None) -> Candidates | Refusal:
        """Return where a model's or group's name leads, or the refusal when it leads nowhere."""
        targets = self._resolve(asked, fleet)
        if isinstance(targets, Refusal):
            return targets
        if len(targets) > 1:
            targets = tuple([self._with_context(target) for target in targets])
        return Candidates(targets=targets, options=options_of(self._groups(fleet).get(asked)))

    def route(
        self,
        targets: Sequence[Target],
        options: Options,
        *,
        tokens_in: int,
        cost_nanos: Callable[[Target], int | None],
        deadline_us: int | None = None,
    ) -> Route:
        """Return the way of one request through targets, of which there is at least one.

        `tokens_in` is an estimate of the prompt, `cost_nanos` says what the request costs at most at a target, and
        `deadline_us` is when the client no longer waits, by the gateway's clock.
        """
        retries = options.retries
        if retries is None:
            retries = self._retries if len(targets) == 1 else 0
        limits = _limits(self._attempts, retries, options.fallback_on)
        choices: Sequence[Choice] = (Choice(target=targets[0], stage=0),)
        if len(targets) > 1:
            priced = options.strategy == "lowest-cost"
            candidates = [self._candidate(one, cost_nanos(one) if priced else None) for one in targets]
            choices = arrange(candidates, options.strategy, tokens_in=tokens_in, chance=self._chance)
        return Route(self, choices, limits, deadline_us=deadline_us)

    def snapshot(self) -> tuple[DeploymentState, ...]:
        """Return what is known of every deployment that was asked, by its id."""
        now_us = self._clock.now_us()
        return tuple(
            DeploymentState(
                deployment=name,
                provider=one.target.provider,
                model=one.target.model,
                state=one.cooldown.state(now_us),
                in_flight=one.in_flight,
                latency_us=one.latency_us,
                answers=one.answers,
                faults=one.faults,
                faults_in_a_row=one.cooldown.faults_in_a_row,
                cooling_until_us=one.cooldown.until_us(now_us) if one.cooldown.state(now_us) == "cooling" else None,
            )
            for name, one in sorted(self._known.items())
        )

    # --- for routes ---------------------------------------------------------------------------------------------
    def now_us(self) -> int:
        """Return the time now."""
        return self._clock.now_us()

    def jitter(self) -> float:
        """Return a number from 0 to 1 that spreads waits."""
        return self._chance()

    def known(self, target: Target) -> _Known:
        """Return what is known of a deployment that is asked now."""
        one = self._known.get(target.deployment)
        if one is not None and (one.target is target or _same_model(one.target, target)):
            self._known.move_to_end(target.deployment)
            return one
        one = self._known[target.deployment] = _Known(target)  # also when the id stands for another model now
        self._known.move_to_end(target.deployment)
        if len(self._known) > _KNOWN_MAX:
            self._forget()
        return one

    def cooling_until_us(self, target: Target) -> int | None:
        """Return until when a deployment is cooling down; None when it is not."""
        one = self._known.get(target.deployment)
        return None if one is None else one.cooldown.until_us(self._clock.now_us())

    def _with_context(self, target: Target) -> Target:
        if target.context_tokens is not None:
            return target
        known = self._context_tokens(target.provider, target.model)
        return target if known is None else replace(target, context_tokens=known)

    def _candidate(self, target: Target, cost_nanos: int | None) -> Candidate:
        one = self._known.get(target.deployment)
        if one is None:
            return Candidate(target=target, cost_nanos=cost_nanos)
        return Candidate(target=target, in_flight=one.in_flight, latency_us=one.latency_us, cost_nanos=cost_nanos)

    def _forget(self) -> None:
        for name, one in self._known.items():
            if not one.in_flight:
                del self._known[name]
                return


@lru_cache(maxsize=256)
def _limits(attempts: int, retries: int, fallback_on: tuple[FallbackOn, ...]) -> Limits:
    """Return what bounds the attempts of a request: the same for every request to a group."""
    return Limits(attempts=attempts, retries=retries, fallback_on=frozenset([_KINDS[kind] for kind in fallback_on]))


def _same_model(one: Target, other: Target) -> bool:
    return (one.provider, one.model) == (other.provider, other.model)


class Route:
    """The attempts of one request, one after the other: `start`, then for each `sent` and one of its ends.

    What was `sent` must come to one of `answered`, `failed` and `left`; a `Go` that is not taken may be dropped.
    """

    __slots__ = ("_current", "_deadline_us", "_left", "_limits", "_probe", "_router", "_sent", "_tried")

    def __init__(
        self, router: Router, choices: Sequence[Choice], limits: Limits, *, deadline_us: int | None = None
    ) -> None:
        self._router = router
        self._left = list(choices)
        self._limits = limits
        self._deadline_us = deadline_us
        self._tried: list[Tried] = []
        self._current: Choice | None = None
        self._probe = False
        self._sent: _Known | None = None

    def start(self) -> Go:
        """Return the first attempt."""
        self._sort()
        return self._go(self._left[0], "first")

    @property
    def more(self) -> bool:
        """Whether a failure of the attempt under way could be followed by another attempt."""
        if self._current is None:
            return False
        return may_go_on(self._tried, self._current, self._left, self._limits)

    @property
    def attempts(self) -> int:
        """How many attempts have been told to begin."""
        return len(self._tried) + (self._current is not None)

    def sent(self, target: Target) -> None:
        """Note that the attempt is sent now: it is in flight until it ends."""
        self._expect(target)
        self._sent = self._router.known(target)
        self._sent.in_flight += 1
        if self._probe:
            self._sent.cooldown.sent(self._router.now_us(), probe=True)

    def answered(self, target: Target, *, latency_us: int | None = None) -> None:
        """Note an answer; `latency_us` is the time to its first token, or to the whole where that is all there is."""
        one, probe = self._ended(target)
        one.answers += 1
        if latency_us is not None:
            one.latency_us = smoothed_us(one.latency_us, latency_us)
        one.cooldown.succeeded(self._router.now_us(), probe=probe)

    def failed(self, target: Target, fault: Fault | None) -> Go | None:
        """Note a failure and return what is next; None when that was the end.

        `fault` None: nothing was sent for reasons of our own, such as a budget that cannot hold it. That says nothing
        of the deployment, and another one may do.
        """
        choice = self._expect(target)
        now_us = self._router.now_us()
        one, probe = self._ended(target)
        if fault is not None and speaks_of_deployment(fault):
            one.faults += 1
            asked_for_ms = fault.retry_after_ms if fault.status == 429 else None
            one.cooldown.failed(now_us, probe=probe, asked_for_ms=asked_for_ms)
        else:
            one.cooldown.left(probe=probe)
        self._tried.append(Tried(choice=choice, fault=fault, at_us=now_us))
        self._sort()
        decided = after(
            self._tried,
            self._left,
            self._limits,
            now_us=now_us,
            deadline_us=self._deadline_us,
            jitter=self._router.jitter(),
            cooling=lambda one: self._router.cooling_until_us(one) is not None,
        )
        match decided:
            case GiveUp():
                return None
            case Fallback(choice=following):
                return self._go(following, "fallback")
            case Retry(choice=following, wait_ms=wait_ms):
                return self._go(following, "retry", wait_ms)

    def broke(self, target: Target) -> None:
        """Note that an answer broke off when the client had seen some of it: nobody else is asked, nor reserved."""
        now_us = self._router.now_us()
        one, probe = self._ended(target)
        one.faults += 1
        one.cooldown.failed(now_us, probe=probe)

    def left(self, target: Target) -> None:
        """Note that the attempt ended without a verdict: the client left, it was cut, or we refused it."""
        one, probe = self._ended(target)
        one.cooldown.left(probe=probe)

    def _go(self, choice: Choice, reason: Literal["first", "retry", "fallback"], wait_ms: int = 0) -> Go:
        if reason != "retry":
            self._left = [one for one in self._left if one is not choice and one.target != choice.target]
        self._current = choice
        cooldown = self._router.known(choice.target).cooldown
        self._probe = not cooldown.ready and cooldown.reserve(self._router.now_us(), wait_us=wait_ms * 1000)
        return Go(target=choice.target, reason=reason, wait_ms=wait_ms)

    def _sort(self) -> None:
        """Put last what is cooling down by now."""
        if len(self._left) > 1 or (self._left and self._tried):
            self._left = list(cooled_last(self._left, self._router.cooling_until_us))

    def _expect(self, target: Target) -> Choice:
        current = self._current
        if current is None or (current.target is not target and current.target != target):
            raise RuntimeError(f"no attempt at {target.deployment} is under way")
        return current

    def _ended(self, target: Target) -> tuple[_Known, bool]:
        """Close the attempt under way; return what is known of its deployment, and whether it was the probe."""
        self._expect(target)
        one = self._sent or self._router.known(target)
        if self._sent is not None:
            one.in_flight -= 1
        probe, self._probe, self._current, self._sent = self._probe, False, None, None
        return one, probe
