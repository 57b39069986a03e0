"""Budget periods: computed from the clock, never reset by a job.

A period has an id that later periods follow, the instant it starts and the instant the next one starts. Days,
weeks (ISO 8601, from Monday) and months follow the calendar of a time zone, exactly over changes of its
offset; other durations are counted from the epoch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Final

from nemo_agents.durations import DURATION_OF, period_name, span_seconds

__all__ = ["DURATION_OF", "Period", "period_at", "period_name", "span_seconds"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """One period. It contains `starts_us` and ends just before `resets_us` (microseconds since the epoch)."""

    id: str
    starts_us: int
    resets_us: int | None


def period_at(duration: str | None, now_us: int, *, tz: tzinfo = UTC) -> Period:
    """Return the period that contains `now_us` (microseconds since the epoch).

    `duration` is LiteLLM's text: `1d` and `24h` give `2026-11-24`, `7d` and `168h` give `2026-W48`, `1mo` and
    `30d` give `2026-11`; None never ends and is `total`. Any other `<n>s`, `<n>m`, `<n>h` or `<n>d` is aligned to the
    epoch, whatever `tz`. Raises ValueError for other texts.
    """
    name = period_name(duration)
    if name == "total":
        return Period(id="total", starts_us=0, resets_us=None)
    if name not in DURATION_OF:
        return _aligned(name, now_us)
    first, following, name_id = _CALENDAR[name]
    starts = first((_EPOCH + now_us * _MICROSECOND).astimezone(tz).date())
    starts_us, resets_us = _midnight_us(starts, tz), _midnight_us(following(starts), tz)
    # Where a clock is set back over midnight, a local date comes twice; the instants decide.
    while now_us < starts_us:
        starts = first(starts - timedelta(days=1))
        starts_us, resets_us = _midnight_us(starts, tz), starts_us
    while now_us >= resets_us:
        starts = following(starts)
        starts_us, resets_us = resets_us, _midnight_us(following(starts), tz)
    return Period(id=name_id(starts), starts_us=starts_us, resets_us=resets_us)


def _aligned(duration: str, now_us: int) -> Period:
    length_us = (span_seconds(duration) or 0) * 1_000_000
    starts_us = now_us - now_us % length_us
    at = (_EPOCH + starts_us * _MICROSECOND).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Period(id=f"{duration}@{at}", starts_us=starts_us, resets_us=starts_us + length_us)


def _midnight_us(day: date, tz: tzinfo) -> int:
    """Return the instant at which a local date begins, also where its midnight or all of it is skipped."""
    midnight = datetime(day.year, day.month, day.day, tzinfo=tz)
    at_us = (midnight - _EPOCH) // _MICROSECOND
    if _local(at_us, tz).replace(tzinfo=None) == midnight.replace(tzinfo=None):
        return at_us
    # The clock skipped midnight. The jump lies between the two readings of it (PEP 495); find the jump.
    before_us = (midnight.replace(fold=1) - _EPOCH) // _MICROSECOND - 1
    while at_us - before_us > 1:
        middle_us = (before_us + at_us) // 2
        if _local(middle_us, tz).date() < day:
            before_us = middle_us
        else:
            at_us = middle_us
    return at_us


def _local(at_us: int, tz: tzinfo) -> datetime:
    return (_EPOCH + at_us * _MICROSECOND).astimezone(tz)


def _monday(day: date) -> date:
    return day - timedelta(days=day.weekday())


def _next_month(day: date) -> date:
    return (day.replace(day=28) + timedelta(days=4)).replace(day=1)


# The first date of the period of a date, the first date of the next one, and the id.
_CALENDAR: Final[dict[str, tuple[Callable[[date], date], Callable[[date], date], Callable[[date], str]]]] = {
    "day": (lambda day: day, lambda day: day + timedelta(days=1), date.isoformat),
    "week": (_monday, lambda day: day + timedelta(days=7), lambda day: day.strftime("%G-W%V")),
    "month": (lambda day: day.replace(day=1), _next_month, lambda day: day.strftime("%Y-%m")),
}
