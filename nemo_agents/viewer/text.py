"""Values as text for people: numbers that line up, and strangers' text with nothing hidden in it."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

from nemo_agents.money import NANOS_PER_DOLLAR, format_nanos

__all__ = [
    "age",
    "clock",
    "cost",
    "cost_column",
    "count",
    "duration",
    "percent",
    "plural",
    "pretty_json",
    "short_id",
    "shorten",
    "stamp",
    "stamp_iso",
    "until",
    "visible",
]

NARROW_SPACE = "\N{NARROW NO-BREAK SPACE}"
NOTHING = "\N{EN DASH}"
_TOO_DEEP = "(nested too deeply to be shown)"

_ID_CHARS = 24  # of an id that somebody chose
_RANDOM_ID = re.compile(r"((?:s-)?[0-9a-f]{8})[0-9a-f]{24}")  # the SDK's; with `s-` the gateway's, for a foreign id
_REQUEST_ID = re.compile(r"req_[0-9a-f]{24}")  # told apart by its last digits

# Characters that change what a reader sees without being seen: terminal escapes and other controls, direction
# overrides (CVE-2021-42574), zero-width spaces, tag characters and variation selectors that smuggle text past
# people into prompts, and surrogates, which no encoder takes. Joiners stay: Persian, Indic scripts and emoji
# need them.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e0fff]"
)


def _marker(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\N{SYMBOL FOR DELETE}"
    return f"\u27e8U+{code:04X}\u27e9"


def visible(text: str) -> str:
    """Return the text with a marker for every character that hides or reorders; CRLF becomes a line feed."""
    return _HIDDEN.sub(_marker, text.replace("\r\n", "\n"))


def pretty_json(value: Any) -> str:
    """Write a JSON value over several lines; a value that is no JSON is written as Python shows it.

    One that is nested deeper than can be written is named so.
    """
    try:
        return json.dumps(value, indent=2, ensure_ascii=False)
    except RecursionError:
        return _TOO_DEEP
    except (TypeError, ValueError):
        return repr(value)


def shorten(text: str, limit: int) -> str:
    """Return at most `limit` characters on one line, with an ellipsis where something was left out."""
    line = " ".join(text[: limit * 4].split())
    return (
        line
        if len(line) <= limit and len(text) <= limit * 4
        else line[: limit - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"
    )


def short_id(identifier: str) -> str:
    """Write the id of a run: of one of 32 digits the first eight, of a chosen one as much as 24 characters.

    Chosen ids differ where their author counts, often at the end; what is cut off of a longer one has an ellipsis.
    """
    if match := _RANDOM_ID.fullmatch(identifier):
        return match[1]
    if len(identifier) <= _ID_CHARS or _REQUEST_ID.fullmatch(identifier):
        return identifier
    return identifier[:_ID_CHARS] + "\N{HORIZONTAL ELLIPSIS}"


def plural(number: int, noun: str, nouns: str | None = None) -> str:
    """Write `1 call`, `2 calls`."""
    return f"{number:,} {noun if number == 1 else nouns or noun + 's'}"


def percent(part: int, whole: int) -> str:
    """Write a share, `61 %`; `<1 %` and `>99 %` rather than a wrong 0 or 100."""
    if whole <= 0:
        return NOTHING
    share = round(100 * part / whole)
    if share == 0 and part > 0:
        return f"<1{NARROW_SPACE}%"
    if share == 100 and part < whole:
        return f">99{NARROW_SPACE}%"
    return f"{share}{NARROW_SPACE}%"


def count(number: int | None) -> str:
    """Write a number of tokens or calls: `812`, `4.2k`, `1.30M`; a dash for unknown."""
    if number is None:
        return NOTHING
    if number < 1_000:
        return str(number)
    if number < 9_950:
        return f"{number / 1_000:.1f}k"
    if number < 999_500:
        return f"{round(number / 1_000)}k"
    return f"{number / 1_000_000:.2f}M"


def cost(nanos: int | None) -> str:
    """Write money; a dash for unknown, which is not $0."""
    return NOTHING if nanos is None else format_nanos(nanos)


def cost_column(nanos: int | None, places: int = 5) -> str:
    """Write money for a column, with as many decimals in each row; less than its last place is written exactly."""
    if nanos is None or nanos == 0 or 0 < abs(nanos) < NANOS_PER_DOLLAR // 10**places:
        return cost(nanos)
    whole, rest = divmod(round(abs(nanos) * 10**places, -9) // NANOS_PER_DOLLAR, 10**places)
    return f"{'-' if nanos < 0 else ''}${whole:,}.{rest:0{places}d}"


def duration(us: int | None) -> str:
    """Write a duration: `840 us`, `12 ms`, `1.4 s`, `2 min 05 s`, `3 h 10 min`; a dash for unknown."""
    if us is None:
        return NOTHING
    us = max(0, us)
    if us < 1_000:
        return f"{us}{NARROW_SPACE}\N{MICRO SIGN}s"
    if us < 999_500:
        return f"{round(us / 1_000)}{NARROW_SPACE}ms"
    if us < 59_950_000:
        return f"{us / 1_000_000:.1f}{NARROW_SPACE}s"
    seconds = round(us / 1_000_000)
    if seconds < 3_600:
        return f"{seconds // 60}{NARROW_SPACE}min{NARROW_SPACE}{seconds % 60:02d}{NARROW_SPACE}s"
    if seconds < 2 * 86_400:
        return f"{seconds // 3_600}{NARROW_SPACE}h{NARROW_SPACE}{seconds % 3_600 // 60:02d}{NARROW_SPACE}min"
    return f"{seconds // 86_400}{NARROW_SPACE}d"


def age(then_us: int | None, now_us: int) -> str:
    """Write how long ago: `12 s ago`, `3 min ago`, `2 h ago`, `5 d ago`; `never` for None."""
    if then_us is None:
        return "never"
    seconds = (now_us - then_us) // 1_000_000
    if seconds < 1:
        return "now"
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")):
        if seconds >= size:
            return f"{seconds // size}{NARROW_SPACE}{unit} ago"
    raise AssertionError(seconds)


def until(then_us: int | None, now_us: int) -> str:
    """Write how long it is until then: `in 12 s`, `in 5 h`; `now` for what is past, `never` for None."""
    if then_us is None:
        return "never"
    seconds = (then_us - now_us) // 1_000_000
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")):
        if seconds >= size:
            return f"in {seconds // size}{NARROW_SPACE}{unit}"
    return "now"


def _utc(us: int) -> datetime | None:
    try:
        return datetime.fromtimestamp(us // 1_000_000, tz=UTC)
    except (OverflowError, ValueError, OSError):
        return None


def stamp(us: int | None) -> str:
    """Write a moment in UTC: `2026-03-01 14:05:09`; a dash for unknown."""
    moment = None if us is None else _utc(us)
    return NOTHING if moment is None else moment.strftime("%Y-%m-%d %H:%M:%S")


def clock(us: int | None) -> str:
    """Write a moment in UTC without its year, for a column: `03-01 14:05:09`."""
    return stamp(us)[5:] if us is not None else NOTHING


def stamp_iso(us: int | None) -> str:
    """Write a moment for a `datetime` attribute."""
    moment = None if us is None else _utc(us)
    return "" if moment is None else moment.strftime("%Y-%m-%dT%H:%M:%SZ")
