"""What a role or a fleet may spend and how fast, as people write it: budgets, rate limits and loop rules.

Every constructor accepts what people write (`"$20/day"`, `"100k"`) and stores one normal form. What cannot be meant
raises DeclarationError with the field's path.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from typing import Final, Literal, cast

from nemo_agents.durations import (
    DURATION_OF,
    UTC_NAME,
    follows_calendar,
    is_time_zone,
    period_name,
    period_order,
    span_seconds,
    time_zones,
)
from nemo_agents.errors import DeclarationError
from nemo_agents.money import NANOS_PER_DOLLAR, parse_dollars

__all__ = [
    "BUDGETS_MAX",
    "CACHE_TTL_S_MAX",
    "LOOP_REPEATS_MAX",
    "LOOP_WITHIN_S_MAX",
    "MODES",
    "PERIODS",
    "RATES",
    "Budget",
    "Loop",
    "Mode",
    "RateLimit",
    "budgets_of",
    "cache_ttl",
    "did_you_mean",
    "format_count",
    "parse_count",
    "request_price",
    "shadow_of",
]

Mode = Literal["enforce", "shadow"]
MODES: Final[tuple[Mode, ...]] = ("enforce", "shadow")
PERIODS: Final = tuple(DURATION_OF)
RATES: Final = ("rpm", "tpm", "max_parallel")
BUDGETS_MAX: Final = 20  # of one scope; every call holds in each of them
CACHE_TTL_S_MAX: Final = 30 * 86_400
LOOP_REPEATS_MAX: Final = 100
LOOP_WITHIN_S_MAX: Final = 3_600

_COUNT = re.compile(r"([0-9][0-9_,]*)(?:\.([0-9]+))?\s*([kKmM]?)")
_COUNT_MAX = 10**12
_SCALE = {"": 1, "k": 1_000, "m": 1_000_000}
_BUDGET_REMEDY = (
    'Write an amount and a period: "$20/day"; the periods are day, week, month and total, '
    "or a time of your own such as 12h, 90m or 10d."
)
_COUNT_REMEDY = 'Write a whole number above 0 such as 120, "100k" or "1.5k", or leave it out for no limit.'
_CACHE_REMEDY = 'Write seconds, or a time of at most 30 days: cache="10m"; "off", or nothing, keeps no answers.'
_PRICE_REMEDY = 'Write an amount in dollars: price_per_request="$0.002".'


def did_you_mean(word: str, known: Iterable[str], what: str) -> str:
    """Return the sentence that lists what is known, led by the closest match."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1)
    lead = f'Did you mean "{near[0]}"? ' if near else ""
    return f"{lead}{what}: {', '.join(names) or 'none'}."


def parse_count(value: object, *, field: str) -> int:
    """Return a positive whole number written as `120`, `"120"`, `"100k"`, `"1.5k"` or `"2m"`.

    Raises DeclarationError for anything else, zero and booleans included.
    """
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise DeclarationError("is not a count", field=field, value=value, remedy=_COUNT_REMEDY)
    number = value if isinstance(value, int) else _count_from_text(value)
    if number is None or not 0 < number <= _COUNT_MAX:
        raise DeclarationError("is not a count", field=field, value=value, remedy=_COUNT_REMEDY)
    return number


def format_count(count: int) -> str:
    """Write a count as people do, without losing a digit: `100k`, `1.5k`, `2m`, `1234`."""
    for unit, scale in (("m", 1_000_000), ("k", 1_000)):
        if count >= scale and count % (scale // 10) == 0:
            whole, tenths = divmod(count // (scale // 10), 10)
            return f"{whole}.{tenths}{unit}" if tenths else f"{whole}{unit}"
    return str(count)


@dataclass(frozen=True, slots=True, init=False)
class Budget:
    """Money per period: `Budget("$20/day")`, `Budget("$60/month", tz="Europe/Amsterdam", alert_at=[0.5, 0.8])`.

    `amount_nanos` is in nanos. `period` is `day`, `week`, `month`, `total` (never starts anew, the default) or a
    time in its largest unit, such as `12h`, counted from the epoch; `7d` is the week and `30d` the month of the
    calendar, as at LiteLLM. Days, weeks and months begin at midnight in `tz`, a name of the IANA time zone database.
    `alert_at` are the fractions of the amount, above 0 and up to 1, at which the gateway warns: a number, or a list.
    A budget in mode `shadow` warns and records, and never refuses.
    """

    amount_nanos: int
    period: str
    tz: str
    alert_at: tuple[float, ...]
    mode: Mode

    def __init__(
        self,
        amount: str | int | Decimal,
        *,
        period: str | None = None,
        tz: str = UTC_NAME,
        alert_at: float | Iterable[float] = 0.8,
        mode: str = "enforce",
    ) -> None:
        text_amount, text_period = _split_budget(amount)
        if period is not None and text_period is not None and _period(period) != _period(text_period):
            raise DeclarationError(
                f"says two periods, {text_period} and {period}",
                field="budget",
                value=amount,
                remedy="Keep one of them.",
            )
        _set(self, "amount_nanos", _amount(text_amount))
        _set(self, "period", _period(period if period is not None else text_period))
        _set(self, "tz", _time_zone(tz, self.period))
        _set(self, "alert_at", _fractions(alert_at))
        _set(self, "mode", _mode(mode, "budget.mode"))

    @classmethod
    def of(cls, value: Budget | str | Decimal | int) -> Budget:
        """Return the budget that a text stands for; a budget stands for itself. Raises DeclarationError."""
        return value if isinstance(value, Budget) else cls(value)

    def __str__(self) -> str:
        notes = [*([self.tz] if self.tz != UTC_NAME else []), *(["shadow"] if self.mode == "shadow" else [])]
        written = f"{_exact_dollars(self.amount_nanos)}/{self.period}"
        return f"{written} ({', '.join(notes)})" if notes else written


@dataclass(frozen=True, slots=True, init=False)
class RateLimit:
    """Requests and tokens per minute, and requests at the same time; None does not limit.

    In mode `shadow` they are counted and recorded, and never refuse.
    """

    rpm: int | None
    tpm: int | None
    max_parallel: int | None
    mode: Mode

    def __init__(
        self,
        *,
        rpm: int | str | None = None,
        tpm: int | str | None = None,
        max_parallel: int | str | None = None,
        mode: str = "enforce",
    ) -> None:
        _set(self, "rpm", _optional_count(rpm, "rpm"))
        _set(self, "tpm", _optional_count(tpm, "tpm"))
        _set(self, "max_parallel", _optional_count(max_parallel, "max_parallel"))
        _set(self, "mode", _mode(mode, "mode"))


@dataclass(frozen=True, slots=True, init=False)
class Loop:
    """The same request for the `repeats`-th time within `within_s` seconds of one run is a loop.

    In mode `shadow`, the usual one, a loop is recorded; in mode `enforce` that request is refused.
    """

    repeats: int
    within_s: int
    mode: Mode

    def __init__(self, repeats: int = 8, *, within_s: int = 60, mode: str = "shadow") -> None:
        _set(self, "repeats", _whole(repeats, "loop.repeats", 2, LOOP_REPEATS_MAX))
        _set(self, "within_s", _whole(within_s, "loop.within_s", 1, LOOP_WITHIN_S_MAX))
        _set(self, "mode", _mode(mode, "loop.mode"))


def budgets_of(value: object, at: str) -> tuple[Budget, ...]:
    """Return one budget or a list of them in their normal order: those that refuse first, then the shortest period.

    Two budgets of one period, time zone and mode are a mistake: the lower one alone counts. Raises DeclarationError.
    """
    if value is None:
        return ()
    several = isinstance(value, (list, tuple))
    if several and len(cast("Sequence[object]", value)) > BUDGETS_MAX:
        remedy = "Keep those that would bind first."
        raise DeclarationError(f"has more than {BUDGETS_MAX} budgets", field=f"{at}.budget", value=value, remedy=remedy)
    found: list[Budget] = []
    for n, item in enumerate(cast("Iterable[Budget | str]", value if several else (value,))):
        try:
            found.append(Budget.of(item))
        except DeclarationError as error:
            rest = error.field.removeprefix("budget")
            field = f"{at}.budget[{n}]{rest}" if several else f"{at}.budget{rest}"
            raise DeclarationError(error.problem, field=field, value=error.value, remedy=error.remedy) from None
    found.sort(key=lambda one: (one.mode != "enforce", period_order(one.period), one.period, one.tz))
    for one, other in pairwise(found):
        if (one.period, one.tz, one.mode) == (other.period, other.tz, other.mode):
            raise DeclarationError(
                "has two budgets of one period, time zone and mode",
                field=f"{at}.budget",
                value=f"{one}, {other}",
                remedy="Keep one of the two.",
            )
    return tuple(found)


def shadow_of(value: object, limits: dict[str, int | None], at: str) -> tuple[str, ...]:
    """Return which of the limits record and never refuse, in the order of RATES. Raises DeclarationError."""
    field = f"{at}.shadow"
    if isinstance(value, str) or not isinstance(value, Iterable):
        remedy = f'Write a list out of {", ".join(RATES)}: shadow=[{RATES[0]!r}]; in a budget, mode = "shadow".'
        raise DeclarationError("is not a list", field=field, value=value, remedy=remedy)
    named = tuple(value)
    for name in named:
        if not isinstance(name, str) or name not in RATES:
            remedy = did_you_mean(str(name), RATES, "The limits are")
            raise DeclarationError("is not a rate limit", field=field, value=name, remedy=remedy)
        if limits[name] is None:
            remedy = f"Give it a limit, {name}=..., or take it out of the list."
            raise DeclarationError("is in shadow and has no limit", field=field, value=name, remedy=remedy)
    return tuple(name for name in RATES if name in named)


def request_price(value: object, field: str) -> int | None:
    """Return a price in nanos, which may be 0; None for none. Raises DeclarationError."""
    if value is None:
        return None
    if isinstance(value, float):
        problem = "is money as a float, which cannot be exact"
        raise DeclarationError(problem, field=field, value=value, remedy=_PRICE_REMEDY)
    try:
        return parse_dollars(cast("str", value))
    except ValueError as error:
        raise DeclarationError(str(error), field=field, value=value, remedy=_PRICE_REMEDY) from None


def cache_ttl(value: object, field: str) -> int | None:
    """Return how long answers are given again, in seconds; None for never. Raises DeclarationError.

    It is written as whole seconds, or as a time such as `90s`, `10m`, `24h` or `7d`; `off` is never.
    """
    if value is None or value == "off":
        return None
    seconds = span_seconds(value) if isinstance(value, str) else value
    if not isinstance(seconds, int) or isinstance(seconds, bool) or not 1 <= seconds <= CACHE_TTL_S_MAX:
        raise DeclarationError("is not a time to keep answers", field=field, value=value, remedy=_CACHE_REMEDY)
    return seconds


def _set(owner: object, field: str, value: object) -> None:
    object.__setattr__(owner, field, value)


def _count_from_text(text: str) -> int | None:
    match = _COUNT.fullmatch(text.strip())
    if match is None:
        return None
    digits = match[1].replace("_", "").replace(",", "")
    scaled = Decimal(f"{digits}.{match[2] or 0}") * _SCALE[match[3].lower()]
    return int(scaled) if scaled == scaled.to_integral_value() else None


def _optional_count(value: object, field: str) -> int | None:
    return None if value is None else parse_count(value, field=field)


def _whole(value: object, field: str, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        problem = f"is not a whole number from {least} to {most}"
        raise DeclarationError(problem, field=field, value=value, remedy="For example Loop(repeats=8, within_s=60).")
    return value


def _mode(value: object, field: str) -> Mode:
    for mode in MODES:
        if value == mode:
            return mode
    raise DeclarationError(
        "is not a mode",
        field=field,
        value=value,
        remedy='Use mode="enforce", or mode="shadow" to record and never refuse.',
    )


def _split_budget(value: object) -> tuple[str | int | Decimal, str | None]:
    if isinstance(value, bool) or not isinstance(value, (str, int, Decimal)):
        problem = "is money as a float, which cannot be exact" if isinstance(value, float) else "is not a budget"
        raise DeclarationError(problem, field="budget", value=value, remedy=_BUDGET_REMEDY)
    if not isinstance(value, str):
        return value, None
    amount, slash, period = value.partition("/")
    return amount.strip(), period.strip() if slash else None


def _amount(value: str | int | Decimal) -> int:
    try:
        nanos = parse_dollars(value)
    except ValueError as error:
        raise DeclarationError(str(error), field="budget", value=value, remedy=_BUDGET_REMEDY) from None
    if nanos == 0:
        remedy = "Give it an amount above 0; to stop a role, `nemo-agents block` its key."
        raise DeclarationError("allows nothing", field="budget", value=value, remedy=remedy)
    return nanos


def _period(value: object) -> str:
    if value is None:
        return "total"
    if value in PERIODS:
        return str(value)
    try:
        return period_name(cast("str", value))
    except ValueError:
        raise DeclarationError("is not a period", field="budget.period", value=value, remedy=_BUDGET_REMEDY) from None


def _time_zone(value: object, period: str) -> str:
    if not isinstance(value, str) or not is_time_zone(value):
        near = difflib.get_close_matches(str(value), sorted(time_zones()), n=1)
        lead = f'Did you mean "{near[0]}"? ' if near else ""
        remedy = f"{lead}Use a name of the IANA time zone database, such as Europe/Amsterdam."
        raise DeclarationError("is not a time zone", field="budget.tz", value=value, remedy=remedy)
    if value != UTC_NAME and not follows_calendar(period):
        raise DeclarationError(
            f"says nothing, for a budget per {period} follows no calendar",
            field="budget.tz",
            value=value,
            remedy="Leave tz out, or use the period day, week or month.",
        )
    return value


def _fractions(value: object) -> tuple[float, ...]:
    items = value if isinstance(value, Iterable) and not isinstance(value, (str, bytes)) else (value,)
    return tuple(sorted({_fraction(item) for item in items}))


def _fraction(value: object) -> float:
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and 0 < value <= 1
    if not fits:
        raise DeclarationError(
            "is not a fraction of the budget",
            field="budget.alert_at",
            value=value,
            remedy="Write a number above 0 and up to 1, such as 0.8, or a list of such.",
        )
    return float(cast("float", value))


def _exact_dollars(nanos: int) -> str:
    whole, rest = divmod(nanos, NANOS_PER_DOLLAR)
    digits = f"{rest:09d}".rstrip("0")
    return f"${whole:,}.{digits:0<2}" if digits else f"${whole:,}"
