"""What is counted with every call: a few look-ups in dictionaries, and no more than so many series.

Names that come from outside could be made up without end, and every one of them would be a series that a monitoring
system keeps for ever. So a model counts by its name once that is known and a provider has not refused it, and of
everything there is a largest number: what comes beyond is counted under `other`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final, Generic, Literal, TypeVar

from msgspec import Struct

from nemo_agents.gateway.metrics.families import Family, Histogram, Sample
from nemo_agents.gateway.stores.base import CallEnd
from nemo_agents.money import NANOS_PER_DOLLAR
from nemo_agents.policy.routing import SANDBOX

__all__ = ["CACHE", "OTHER", "AttemptReason", "AttemptResult", "CallFacts", "CallOutcome", "Metrics", "result_of"]

CallOutcome = Literal["ok", "cached", "refused", "failed", "abandoned"]
AttemptReason = Literal["first", "retry", "fallback"]
AttemptResult = Literal["ok", "rate_limited", "client_error", "server_error", "timeout", "unreachable", "broken", "cut"]
"""How an attempt ended: `client_error` is a provider's 4xx but 429, `broken` an answer that is none or breaks off,
`unreachable` no answer at all, `cut` an attempt that the client or the gateway ended."""

OTHER: Final = "other"
CACHE: Final = "cache"
"""What the log has as provider of an answer that the cache gave."""

_ROLES_MAX: Final = 200
_MODELS_MAX: Final = 200
_SERIES_MAX: Final = 2000

_T = TypeVar("_T")


def result_of(status: int | None, *, timed_out: bool, sent: bool) -> AttemptResult:
    """Return how an attempt failed: `status` is the provider's, None where it gave none that could be used."""
    if timed_out:
        return "timeout"
    if status is None:
        return "broken" if sent else "unreachable"
    if status == 429:
        return "rate_limited"
    return "client_error" if 400 <= status < 500 else "server_error" if status >= 500 else "broken"


class CallFacts(Struct, frozen=True, kw_only=True):
    """One call that has ended. `model` is the served one as the log names it; it is None for a call never sent.

    `cost_nanos` is all that was posted for it, None or 0 where nothing was.
    """

    fleet: str | None
    role: str | None
    endpoint: str  # the name of its wire
    outcome: CallOutcome
    duration_us: int
    ttft_us: int | None = None
    provider: str | None = None
    model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_nanos: int | None = None


class _Spent:
    """What one role used of one model."""

    __slots__ = ("cost_nanos", "input_tokens", "output_tokens")

    def __init__(self) -> None:
        self.input_tokens = self.output_tokens = self.cost_nanos = 0


class _Looked:
    """What one role found in the cache."""

    __slots__ = ("hits", "misses", "saved_nanos")

    def __init__(self) -> None:
        self.hits = self.misses = self.saved_nanos = 0


class _Count:
    """A number that rises."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


class _Series(Generic[_T]):
    """The series of one family by the values of their labels; beyond the largest number, all go to one."""

    __slots__ = ("_make", "_most", "by_labels")

    def __init__(self, make: Callable[[], _T], most: int) -> None:
        self._make = make
        self._most = most
        self.by_labels: dict[tuple[str, ...], _T] = {}

    def of(self, labels: tuple[str, ...]) -> _T:
        found = self.by_labels.get(labels)
        if found is None:
            if len(self.by_labels) >= self._most:
                labels = (OTHER,) * len(labels)
                found = self.by_labels.get(labels)
            if found is None:
                found = self.by_labels[labels] = self._make()
        return found


class Metrics:
    """The gateway's counters; one per process, on its event loop.

    `is_known` says whether a model (provider, its name there) is one that this gateway can name: a price or a
    declaration knows it.
    """

    def __init__(
        self,
        is_known: Callable[[str, str], bool],
        *,
        roles_max: int = _ROLES_MAX,
        models_max: int = _MODELS_MAX,
        series_max: int = _SERIES_MAX,
    ) -> None:
        self._is_known = is_known
        self._roles_max = roles_max
        self._models_max = models_max
        self._series_max = series_max
        self._roles: dict[tuple[str | None, str | None], tuple[str, str]] = {}
        self._models: dict[tuple[str, str], tuple[str, str]] = {}
        self._requests = _Series(_Count, series_max)
        self._durations = _Series(Histogram, series_max)
        self._first_tokens = _Series(Histogram, series_max)
        self._spent = _Series(_Spent, series_max)
        self._refusals = _Series(_Count, series_max)
        self._attempts = _Series(_Count, series_max)
        self._attempt_durations = _Series(Histogram, series_max)
        self._looked = _Series(_Looked, series_max)
        self._call_of: dict[tuple[str | None, str | None, str, CallOutcome], tuple[_Count, Histogram]] = {}
        self._use_of: dict[tuple[str | None, str | None, str, str], tuple[_Spent, Histogram]] = {}
        self._attempt_of: dict[tuple[str, str, AttemptReason, AttemptResult], tuple[_Count, Histogram]] = {}

    # --- what the data plane tells ------------------------------------------------------------------------------
    def call_ended(self, facts: CallFacts) -> None:
        """Count a call that has ended, whatever became of it."""
        fleet, role, outcome = facts.fleet, facts.role, facts.outcome
        name = (fleet, role, facts.endpoint, outcome)
        count, durations = self._call_of.get(name) or self._find_call(*name)
        count.value += 1
        durations.observe(facts.duration_us)
        provider, model = facts.provider, facts.model
        if provider is None or model is None or outcome == "cached":
            return
        served = (fleet, role, provider, model)
        spent, first_tokens = self._use_of.get(served) or self._find_use(*served, real=outcome == "ok")
        if facts.ttft_us is not None:
            first_tokens.observe(facts.ttft_us)
        spent.input_tokens += facts.input_tokens or 0
        spent.output_tokens += facts.output_tokens or 0
        spent.cost_nanos += facts.cost_nanos or 0

    def refused(self, code: str, scope: str | None, fleet: str | None, role: str | None) -> None:
        """Count an answer that says no, or that something failed, by its error code; both None for an unknown key."""
        self._refusals.of((*self.role(fleet, role), code, scope or "")).value += 1

    def logged(self, end: CallEnd, *, endpoint: str, fleet: str | None, role: str | None, started_us: int) -> None:
        """Count a call by the record that the log gets of it: `call_ended`, and `refused` where it has a code."""
        self.call_ended(
            CallFacts(
                fleet=fleet,
                role=role,
                endpoint=endpoint,
                outcome="cached" if end.state == "ok" and end.provider == CACHE else end.state,
                duration_us=end.ended_us - started_us,
                ttft_us=end.ttft_us,
                provider=end.provider,
                model=end.model_served,
                input_tokens=end.input_tokens,
                output_tokens=end.output_tokens,
                cost_nanos=end.cost_nanos,
            )
        )
        if end.code is not None:
            self.refused(end.code, end.scope, fleet, role)

    def attempt_ended(
        self, provider: str, model: str, result: AttemptResult, duration_us: int, *, reason: AttemptReason = "first"
    ) -> None:
        """Count an attempt; `duration_us` is from its send to its end."""
        name = (provider, model, reason, result)
        count, durations = self._attempt_of.get(name) or self._find_attempt(*name)
        count.value += 1
        durations.observe(duration_us)

    def cache_looked(self, fleet: str | None, role: str | None, *, saved_nanos: int | None) -> None:
        """Count a look into the cache: `saved_nanos` is what the answer cost that it gave, None where it had none."""
        looked = self._looked.of(self.role(fleet, role))
        if saved_nanos is None:
            looked.misses += 1
        else:
            looked.hits += 1
            looked.saved_nanos += saved_nanos

    # --- series by what is told, where nothing of it is counted as `other` ---------------------------------------
    def _find_call(
        self, fleet: str | None, role: str | None, endpoint: str, outcome: CallOutcome
    ) -> tuple[_Count, Histogram]:
        of_role = self.role(fleet, role)
        found = self._requests.of((*of_role, endpoint, outcome)), self._durations.of((*of_role, endpoint))
        if of_role[0] != OTHER:
            self._call_of[fleet, role, endpoint, outcome] = found
        return found

    def _find_use(
        self, fleet: str | None, role: str | None, provider: str, model: str, *, real: bool
    ) -> tuple[_Spent, Histogram]:
        of_role, served = self.role(fleet, role), self.model(provider, model, real=real)
        found = self._spent.of((*of_role, *served)), self._first_tokens.of(served)
        if of_role[0] != OTHER and served[1] != OTHER and len(self._use_of) < self._series_max:
            self._use_of[fleet, role, provider, model] = found
        return found

    def _find_attempt(
        self, provider: str, model: str, reason: AttemptReason, result: AttemptResult
    ) -> tuple[_Count, Histogram]:
        served = self.model(provider, model, real=result != "client_error")
        found = self._attempts.of((*served, reason, result)), self._attempt_durations.of(served)
        if served[1] != OTHER:
            self._attempt_of[provider, model, reason, result] = found
        return found

    # --- labels -------------------------------------------------------------------------------------------------
    def role(self, fleet: str | None, role: str | None) -> tuple[str, str]:
        """Return the labels of a role, empty where there is none."""
        name = (fleet, role)
        found = self._roles.get(name)
        if found is None:
            if len(self._roles) >= self._roles_max:
                return OTHER, OTHER
            found = self._roles[name] = (fleet or "", role or "")
        return found

    def model(self, provider: str, model: str, *, real: bool) -> tuple[str, str]:
        """Return the labels of a model at a provider; `real` False where the provider may not know it either."""
        name = (provider, model.rpartition("/")[2] if provider == SANDBOX else model)  # as the log has it
        found = self._models.get(name)
        if found is None:
            if not real or len(self._models) >= self._models_max or not self._is_known(*name):
                return provider, OTHER
            found = self._models[name] = name
        return found

    # --- what a scrape shows ------------------------------------------------------------------------------------
    def families(self) -> Iterator[Family]:
        """Yield everything that was counted so far."""
        of_role, of_model = ("fleet", "role"), ("provider", "model")
        yield _counts(
            "nemo_requests_total", "Calls that ended.", (*of_role, "endpoint", "outcome"), self._requests.by_labels
        )
        yield _histograms(
            "nemo_request_duration_seconds",
            "From a call's arrival to its end.",
            (*of_role, "endpoint"),
            self._durations.by_labels,
        )
        yield _histograms(
            "nemo_time_to_first_token_seconds",
            "From a call's arrival to the first of its answer.",
            of_model,
            self._first_tokens.by_labels,
        )
        yield Family(
            name="nemo_tokens_total",
            kind="counter",
            help="Tokens that providers told.",
            labels=(*of_role, *of_model, "direction"),
            samples=tuple(
                Sample(labels=(*labels, direction), value=tokens)
                for labels, spent in self._spent.by_labels.items()
                for direction, tokens in (("input", spent.input_tokens), ("output", spent.output_tokens))
            ),
        )
        yield Family(
            name="nemo_cost_dollars_total",
            kind="counter",
            help="What was posted for calls that ended.",
            labels=(*of_role, *of_model),
            samples=tuple(
                Sample(labels=labels, value=spent.cost_nanos / NANOS_PER_DOLLAR)
                for labels, spent in self._spent.by_labels.items()
            ),
        )
        yield _counts(
            "nemo_refusals_total",
            "Answers that said no or that something failed, by their error code and what it was about.",
            (*of_role, "code", "scope"),
            self._refusals.by_labels,
        )
        yield _counts(
            "nemo_attempts_total",
            "Attempts at a provider; those after the first are retries and fallbacks.",
            (*of_model, "reason", "result"),
            self._attempts.by_labels,
        )
        yield _histograms(
            "nemo_attempt_duration_seconds",
            "From an attempt's send to its end.",
            of_model,
            self._attempt_durations.by_labels,
        )
        yield Family(
            name="nemo_cache_lookups_total",
            kind="counter",
            help="Looks into the cache of answers.",
            labels=(*of_role, "result"),
            samples=tuple(
                Sample(labels=(*labels, result), value=count)
                for labels, looked in self._looked.by_labels.items()
                for result, count in (("hit", looked.hits), ("miss", looked.misses))
            ),
        )
        yield Family(
            name="nemo_cache_saved_dollars_total",
            kind="counter",
            help="What the answers of the cache had cost when providers gave them.",
            labels=of_role,
            samples=tuple(
                Sample(labels=labels, value=looked.saved_nanos / NANOS_PER_DOLLAR)
                for labels, looked in self._looked.by_labels.items()
            ),
        )


def _counts(name: str, text: str, labels: tuple[str, ...], found: Mapping[tuple[str, ...], _Count]) -> Family:
    samples = tuple(Sample(labels=values, value=count.value) for values, count in found.items())
    return Family(name=name, kind="counter", help=text, labels=labels, samples=samples)


def _histograms(name: str, text: str, labels: tuple[str, ...], found: Mapping[tuple[str, ...], Histogram]) -> Family:
    samples = tuple(Sample(labels=values, value=histogram.copy()) for values, histogram in found.items())
    return Family(name=name, kind="histogram", help=text, labels=labels, samples=samples)
