"""From a span as OTLP has it to what it tells here, by the table in `names`. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from nemo_agents.policy.grouping import REQUEST_ID_PREFIX, is_run_id
from nemo_agents.policy.keys import hide_keys
from nemo_agents.policy.otel import names
from nemo_agents.policy.otel.values import (
    ATTRIBUTE_CHARS_MAX,
    ATTRIBUTES_MAX,
    ERROR_CHARS_MAX,
    NAME_CHARS_MAX,
    TEXT_BYTES_MAX,
    OtelSpan,
    SpanFacts,
    SpanKind,
    cut,
    cut_bytes,
)

__all__ = ["facts_of", "without_content"]

_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f]+")
_LABEL: Final = re.compile("[^\x00-\x1f\x7f]{1,200}")  # as the header of a call has it
_YEAR_2000_US: Final = 946_684_800_000_000
_DAY_US: Final = 24 * 3600 * 1_000_000
_TOKENS_MAX: Final = 1 << 40
_INTEGER_MAX: Final = 1 << 63
_NOT_KEPT: Final = frozenset({names.RUN_ID, names.STEP, names.ROLE, names.SPAN_KIND, names.REQUEST_ID})
# Without content, a text is kept only where it names something, and is short.
_NAMING: Final = re.compile(r"(gen_ai|nemo|llm|error|service|server|openinference|http|session|graph)\.[a-z0-9_.]+")
_NAME_IS_SHORT: Final = 100
_SLACK: Final = 256  # a key across the cut is whole until it is hidden
_NO_SERVICE: Final = ("unknown_service", "nemo-agents")  # where nobody named one


def facts_of(span: OtelSpan, *, now_us: int) -> SpanFacts | None:
    """Return what a span tells; None for one that names a run that cannot be.

    A start before the year 2000, or more than a day after `now_us`, is of a clock that nothing can be told from: the
    span is shown when it came. One that ends before it starts has no length.
    """
    told = span.attributes
    run_id = _first(told, (names.RUN_ID,)) or _first(span.resource, (names.RUN_ID,))
    if run_id is not None and (not is_run_id(run_id) or run_id == "last" or run_id.startswith(REQUEST_ID_PREFIX)):
        return None
    request_id = _request_id(told)
    kind = _kind(told)
    kind = "llm" if request_id is not None and kind == "other" else kind
    started_us = _time(span.start_ns, now_us) or _time(span.end_ns, now_us) or now_us
    ended_us = None if span.end_ns == 0 else max(started_us, _time(span.end_ns, now_us) or started_us)
    return SpanFacts(
        span_id=span.span_id,
        parent_id=span.parent_id,
        kind=kind,
        name=_name(_first(told, names.NAMES.get(kind, ())) or span.name) or "span",
        state="failed" if span.failed else "running" if ended_us is None else "ok",
        started_us=started_us,
        ended_us=ended_us,
        is_root=span.parent_id is None and names.SPAN_KIND not in told,
        run_id=run_id,
        trace_id=span.trace_id,
        step=_label(told.get(names.STEP)),
        role=_label(told.get(names.ROLE)),
        error=_error(span) if span.failed else None,
        request_id=request_id,
        model=_name(_first(told, names.MODEL) or "") or None,
        input_tokens=_tokens(told, names.INPUT_TOKENS),
        output_tokens=_tokens(told, names.OUTPUT_TOKENS),
        input=_said(told, names.INPUT, names.INPUT_PREFIXES),
        output=_said(told, names.OUTPUT, names.OUTPUT_PREFIXES),
        attributes=_others(span),
    )


def without_content(span: SpanFacts) -> SpanFacts:
    """Return a span without what was said: no input, no output, and no attribute that might have some of it."""
    kept = {
        name: value
        for name, value in span.attributes.items()
        if not isinstance(value, str) or (len(value) <= _NAME_IS_SHORT and _NAMING.fullmatch(name))
    }
    return msgspec.structs.replace(span, input=None, output=None, attributes=kept)


def _kind(told: Mapping[str, Any]) -> SpanKind:
    for name, kinds in names.KINDS.items():
        value = told.get(name)
        if isinstance(value, str) and value in kinds:
            return kinds[value]
    return next((kind for name, kind in names.TELLTALES if told.get(name)), "other")


def _time(at_ns: int, now_us: int) -> int | None:
    at_us = at_ns // 1000
    return at_us if _YEAR_2000_US <= at_us <= now_us + _DAY_US else None


def _request_id(told: Mapping[str, Any]) -> str | None:
    ours = _label(told.get(names.REQUEST_ID))
    if ours is not None:
        return ours
    theirs = _label(told.get(names.RESPONSE_ID))  # of a provider, unless the gateway itself has answered
    return theirs if theirs is not None and theirs.startswith(REQUEST_ID_PREFIX) else None


def _error(span: OtelSpan) -> str:
    kind = span.attributes.get("error.type")
    told = span.message or span.exception or (kind if isinstance(kind, str) else "") or "failed"
    return _shown(told, ERROR_CHARS_MAX)


def _tokens(told: Mapping[str, Any], wanted: Sequence[str]) -> int | None:
    for name in wanted:
        value = told.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _TOKENS_MAX:
            return value
    return None


def _said(told: Mapping[str, Any], wanted: Sequence[str], prefixes: Iterable[str]) -> str | None:
    for name in wanted:
        if told.get(name) not in (None, ""):
            return _said_text(told[name])
    for prefix in prefixes:
        spread = {name.removeprefix(prefix): value for name, value in told.items() if name.startswith(prefix)}
        if spread:
            return _said_text(spread)
    return None


def _others(span: OtelSpan) -> dict[str, Any]:
    """Return the attributes that are shown as they are, each a scalar."""
    others: dict[str, Any] = {}
    for name, value in span.attributes.items():
        if name in names.CONTENT or name in _NOT_KEPT or name.startswith(names.CONTENT_PREFIXES):
            continue
        if value is None or len(others) >= ATTRIBUTES_MAX:
            continue
        others[cut(_storable(name), NAME_CHARS_MAX)] = _scalar(value)
    service = span.resource.get("service.name")
    if isinstance(service, str) and not service.startswith(_NO_SERVICE):
        others.setdefault("service.name", cut(_storable(service), NAME_CHARS_MAX))
    return others


def _scalar(value: Any) -> Any:
    if isinstance(value, bool | float) or (isinstance(value, int) and -_INTEGER_MAX <= value < _INTEGER_MAX):
        return value
    return _shown(_text(value), ATTRIBUTE_CHARS_MAX)


def _shown(text: str, most_chars: int) -> str:
    """Return a text as it is kept: without NUL, without anything that looks like a key, and cut."""
    return cut(hide_keys(_storable(cut(text, most_chars + _SLACK))), most_chars)


def _said_text(value: Any) -> str:
    return cut_bytes(hide_keys(cut_bytes(_text(value), TEXT_BYTES_MAX + _SLACK)), TEXT_BYTES_MAX)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _first(told: Mapping[str, Any], wanted: Iterable[str]) -> str | None:
    return next((told[name] for name in wanted if isinstance(told.get(name), str) and told[name]), None)


def _label(value: Any) -> str | None:
    return value if isinstance(value, str) and _LABEL.fullmatch(value) else None


def _name(text: str) -> str:
    return cut(" ".join(_CONTROL.sub(" ", text).split()), NAME_CHARS_MAX)


def _storable(text: str) -> str:
    """Return a text without NUL, which PostgreSQL has no place for."""
    return text.replace("\x00", "\ufffd")
