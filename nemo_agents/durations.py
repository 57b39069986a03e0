"""Names and texts of time: the periods of budgets, time spans, and time zones.

A budget's period goes by one of four names (`day`, `week`, `month`, `total`) or by a span of its own (`12h`). On
the wire it is LiteLLM's `budget_duration`, where `1d`, `7d` and `30d` mean the calendar's day, week and month.
"""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import Final
from zoneinfo import ZoneInfo, available_timezones

__all__ = [
    "DURATION_OF",
    "UTC_NAME",
    "follows_calendar",
    "is_time_zone",
    "period_name",
    "period_order",
    "span_seconds",
    "time_zones",
]

DURATION_OF: Final = MappingProxyType({"day": "1d", "week": "7d", "month": "1mo", "total": None})
"""The duration text (LiteLLM's `budget_duration`) of each period that has a name."""

UTC_NAME: Final = "UTC"

_MONTHS: Final = frozenset({"1mo", "30d"})
_SPAN: Final = re.compile(r"([1-9][0-9]{0,5})([smhdw])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_LONGEST_S: Final = {"day": 86_400, "week": 604_800, "month": 31 * 86_400}
_ZONE: Final = re.compile(r"[A-Z][A-Za-z0-9_+-]{0,31}(?:/[A-Za-z0-9_+-]{1,31}){0,2}")


def period_name(duration: str | None) -> str:
    """Return `day`, `week`, `month`, `total`, or another duration in its largest unit: `12h` for `720m` too.

    LiteLLM's `1d`, `7d`, `1mo` and `30d` are the calendar's, and so are a day and a week in smaller units: whoever
    writes the one for the other must not open a fresh budget by it. `720h` is no month, at LiteLLM neither. Raises
    ValueError for what is no duration of a budget.
    """
    if duration is None:
        return "total"
    if not isinstance(duration, str):
        raise ValueError(_no_duration(duration))  # noqa: TRY004 - bad input, whatever its type
    seconds = None if duration.endswith("w") else span_seconds(duration)
    if duration in _MONTHS:
        return "month"
    if seconds is None:
        raise ValueError(_no_duration(duration))
    if seconds == _SECONDS["d"]:
        return "day"
    if seconds == _SECONDS["w"]:
        return "week"
    # 30 days would read as a month
    unit = next(unit for unit in "dhms" if seconds % _SECONDS[unit] == 0 and (unit, seconds) != ("d", 2_592_000))
    return f"{seconds // _SECONDS[unit]}{unit}"


def _no_duration(duration: object) -> str:
    return f"not a budget duration: {duration!r}. Use 1d, 7d, 1mo, or a number followed by s, m, h or d."


def period_order(name: str) -> float:
    """Return by what periods of these names are sorted, the shortest first: their seconds at most."""
    if name == "total":
        return float("inf")
    return _LONGEST_S.get(name) or span_seconds(name) or float("inf")


def follows_calendar(name: str) -> bool:
    """Say whether a period begins and ends by the calendar of a time zone."""
    return name in _LONGEST_S


def span_seconds(text: str) -> int | None:
    """Return the seconds of a time span such as `90s`, `30m`, `24h`, `7d` or `2w`; None for any other text."""
    match = _SPAN.fullmatch(text)
    return None if match is None else int(match[1]) * _SECONDS[match[2]]


def is_time_zone(name: str) -> bool:
    """Say whether this is the name of a time zone in the IANA database that this machine has.

    Names whose meaning is a machine's own (`localtime`), or which count leap seconds (`right/...`), are none.
    """
    if name == UTC_NAME:
        return True
    if _ZONE.fullmatch(name) is None or name == "Factory":
        return False
    try:
        ZoneInfo(name)
    except (LookupError, OSError, ValueError):  # not there, a folder, not such a file
        return False
    return True


def time_zones() -> frozenset[str]:
    """Return the names of all time zones. Reads a folder: for messages, not for every call."""
    return frozenset(name for name in available_timezones() if is_time_zone(name))
