"""The filter line: `state:stopped role:writer since:24h`, parsed once for every page that has it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, Literal

from nemo_agents.policy.periods import span_seconds

__all__ = ["CALL_FILTER", "RUN_FILTER", "Filter", "Language", "Parsed", "parse"]

Kind = Literal["run", "single"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """What a filter line asks for; None does not restrict. `since_us`: microseconds since the epoch (UTC)."""

    fleet: str | None = None
    role: str | None = None
    model: str | None = None
    state: str | None = None
    status: int | None = None
    code: str | None = None
    run: str | None = None
    kind: Kind | None = None
    since_us: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """The terms that a page understands, each with an example, and the values that `state:` has there."""

    examples: Mapping[str, str]
    states: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """The filter as far as it could be understood, and one sentence per term that could not."""

    filter: Filter
    problems: tuple[str, ...] = ()


_SHARED: Final = {"fleet": "research", "role": "writer", "model": "gpt-4o", "status": "429", "since": "24h"}
RUN_FILTER: Final = Language(
    examples=MappingProxyType({"state": "stopped", **_SHARED, "is": "run"}),
    states=("running", "ok", "recovered", "failed", "stopped", "lost"),
)
CALL_FILTER: Final = Language(
    examples=MappingProxyType({"state": "refused", **_SHARED, "code": "budget_exhausted", "run": "7f3a91c2"}),
    states=("open", "ok", "refused", "failed", "abandoned"),
)

MAX_LENGTH: Final = 500
_TERM = re.compile(r'([a-z]+):(?:"([^"]*)"|(\S+))(?=\s|$)|(\S+)')


def parse(text: str, *, language: Language, now_us: int) -> Parsed:
    """Read a filter line. Never raises: what cannot be understood is left out and told in `problems`."""
    if len(text) > MAX_LENGTH:
        return Parsed(filter=Filter(), problems=(f"A filter has at most {MAX_LENGTH} characters.",))
    found = Filter()
    problems: list[str] = []
    seen: set[str] = set()
    for match in _TERM.finditer(text):
        key, quoted, bare, stray = match.groups()
        value = quoted if quoted is not None else bare
        if stray is not None or key not in language.examples:
            problems.append(_unknown(stray if stray is not None else f"{key}:{value}", language))
        elif key in seen:
            problems.append(f"{key}: is there twice; a filter takes each term once.")
        else:
            seen.add(key)
            step = _apply(found, key, value, language, now_us)
            if isinstance(step, str):
                problems.append(step)
            else:
                found = step
    return Parsed(filter=found, problems=tuple(problems))


def _unknown(term: str, language: Language) -> str:
    known = " ".join(f"{key}:{example}" for key, example in language.examples.items())
    return f"\u201c{term}\u201d is no term of this filter. Terms look like {known}"


def _apply(found: Filter, key: str, value: str, language: Language, now_us: int) -> Filter | str:
    """Return the filter with one more condition, or the sentence that says why not."""
    if not value:
        return f"{key}: needs a value, for example {key}:{language.examples[key]}"
    match key:
        case "state":
            return _one_of(key, value, language.states) or replace(found, state=value)
        case "status":
            if not re.fullmatch(r"[1-5][0-9][0-9]", value):
                return f"status: takes an HTTP status such as 429, not \u201c{value}\u201d."
            return replace(found, status=int(value))
        case "since":
            seconds = span_seconds(value)
            if seconds is None:
                return f"since: takes a time span such as 30m, 24h or 7d, not \u201c{value}\u201d."
            return replace(found, since_us=now_us - seconds * 1_000_000)
        case "is":
            wrong = _one_of(key, value, ("run", "single"))
            return wrong or replace(found, kind="run" if value == "run" else "single")
        case "fleet":
            return replace(found, fleet=value)
        case "role":
            return replace(found, role=value)
        case "model":
            return replace(found, model=value)
        case "code":
            return replace(found, code=value)
        case "run":
            return replace(found, run=value)
        case _:
            raise AssertionError(key)


def _one_of(key: str, value: str, allowed: Sequence[str]) -> str | None:
    if value in allowed:
        return None
    return f"{key}: is one of {', '.join(allowed)}, not \u201c{value}\u201d."
