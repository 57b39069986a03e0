"""Which run and step a call belongs to, read from its headers and body.

Precedence: `x-nemo-run-id`, then other products' session headers, then the body's session fields, then W3C
`traceparent`; a call with none of them is a run of its own. The role comes from the key alone, never from here, and a
run id is scoped to the key's fleet, so a stranger cannot join a run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final
from urllib.parse import unquote

from msgspec import Struct
from msgspec.structs import replace

from nemo_agents.admin import headers as h
from nemo_agents.errors import Code
from nemo_agents.money import parse_dollars
from nemo_agents.policy.keys import Grant
from nemo_agents.policy.ledger import RunCaps
from nemo_agents.policy.refusal import Refusal

__all__ = ["REQUEST_ID_PREFIX", "RunRef", "is_run_id", "own_run", "run_of", "trace_of"]

# A call without grouping is a run of its own, under its request id: no client may take such a name beforehand.
REQUEST_ID_PREFIX: Final = "req_"

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:@-]{0,127}")
_LABEL = re.compile(r"[^\x00-\x1f\x7f]{1,200}")
_VENDOR_SESSION = re.compile(r"x-[a-z0-9-]+-session-id")
_TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}")
_NO_CAPS = RunCaps()
_OURS: Final = frozenset({h.RUN_NAME, h.STEP, h.PARENT_STEP, h.RUN_BUDGET, h.RUN_MAX_CALLS})
_ALIASES: Final = frozenset(h.RUN_ALIASES)
_BODY_SESSIONS: Final = frozenset({"litellm_session_id", "litellm_trace_id", "session_id"})
_MAX_CALLS = re.compile(r"[1-9][0-9]{0,8}")


class RunRef(Struct, frozen=True, kw_only=True):
    """The run and step of a call. `run_id` is None for a call without any grouping."""

    run_id: str | None
    name: str | None = None
    step: str | None = None
    parent_step: str | None = None
    caps: RunCaps = _NO_CAPS


def is_run_id(text: str) -> bool:
    """Say whether a text can be a run id: it goes into headers, addresses and command lines as it is."""
    return _RUN_ID.fullmatch(text) is not None


def run_of(headers: Mapping[str, str], body: Mapping[str, Any]) -> RunRef | Refusal:
    """Read the grouping of a call. Headers have lower-case names; an invalid one of ours is refused, not ignored."""
    run_id, name = headers.get(h.RUN_ID) or None, None
    if run_id is None:
        run_id, name = _foreign_run(headers, body)
    elif not is_run_id(run_id):
        return _bad(
            h.RUN_ID, "a run id is 1 to 128 characters out of A-Z a-z 0-9 _ . : @ -, starting with a letter or digit"
        )
    elif _is_taken(run_id):
        return _bad(h.RUN_ID, f"`last` and ids beginning with {REQUEST_ID_PREFIX} have a meaning of their own")
    if _OURS.isdisjoint(headers):
        return RunRef(run_id=run_id, name=name)
    labels: dict[str, str] = {}
    for header in (h.RUN_NAME, h.STEP, h.PARENT_STEP):
        if header in headers:
            text = labels[header] = unquote(headers[header])
            if _LABEL.fullmatch(text) is None:
                return _bad(
                    header, "a label is 1 to 200 printable characters (percent-encode what a header cannot carry)"
                )
    caps = _caps(headers)
    if isinstance(caps, Refusal):
        return caps
    if run_id is None and (h.STEP in labels or caps is not _NO_CAPS):
        return _bad(h.RUN_ID, "a step or a run's caps need a run id; send x-nemo-run-id as well")
    return RunRef(
        run_id=run_id,
        name=labels.get(h.RUN_NAME, name),
        step=labels.get(h.STEP),
        parent_step=labels.get(h.PARENT_STEP),
        caps=caps,
    )


def trace_of(headers: Mapping[str, str]) -> tuple[str, str] | tuple[None, None]:
    """Return the trace and the span that a call says it is made in, as W3C `traceparent` tells them."""
    match = _TRACEPARENT.fullmatch(headers.get(h.TRACEPARENT, ""))
    return (match[1], match[2]) if match else (None, None)


def own_run(run: RunRef, grant: Grant) -> RunRef:
    """Return the run as a grant may have it: without a fleet to share it with, a run is the grant's alone."""
    if run.run_id is None or grant.fleet is not None:
        return run
    return replace(run, run_id=f"{grant.grant_id}.{run.run_id}")


def _is_taken(run_id: str) -> bool:
    return run_id == "last" or run_id.startswith(REQUEST_ID_PREFIX)


def _foreign_run(headers: Mapping[str, str], body: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Return the run that another product's grouping names, and a name for it where its id cannot serve as one.

    Such an id may be any text, a conversation's title for one. Nobody is refused for that: the run gets an id that
    follows from the text, and the text as its name.
    """
    text = _foreign_id(headers, body)
    if text is None or (is_run_id(text) and not _is_taken(text)):
        return text, None
    name = "".join(c for c in text[:200] if c.isprintable()).strip()
    return f"s-{sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}", name or None


def _foreign_id(headers: Mapping[str, str], body: Mapping[str, Any]) -> str | None:
    if not _ALIASES.isdisjoint(headers):
        for header in h.RUN_ALIASES:
            if headers.get(header):
                return headers[header]
    for header in headers:
        if header.endswith("-session-id") and headers[header] and _VENDOR_SESSION.fullmatch(header):
            return headers[header]
    metadata = body.get("metadata")
    in_metadata = metadata.get("session_id") if isinstance(metadata, dict) else None
    if in_metadata is not None or not _BODY_SESSIONS.isdisjoint(body):
        litellm = (body.get("litellm_session_id"), body.get("litellm_trace_id"))
        for named in (*litellm, in_metadata, body.get("session_id")):
            if isinstance(named, str) and named:
                return named
    traceparent = headers.get(h.TRACEPARENT)
    match = None if traceparent is None else _TRACEPARENT.fullmatch(traceparent)
    return match[1] if match else None


def _caps(headers: Mapping[str, str]) -> RunCaps | Refusal:
    if h.RUN_BUDGET not in headers and h.RUN_MAX_CALLS not in headers:
        return _NO_CAPS
    budget_nanos = max_calls = None
    if h.RUN_BUDGET in headers:
        try:
            budget_nanos = parse_dollars(headers[h.RUN_BUDGET])
        except ValueError as error:
            return _bad(h.RUN_BUDGET, f"a run's budget is an amount in dollars such as 0.50 ({error})")
    if h.RUN_MAX_CALLS in headers:
        if _MAX_CALLS.fullmatch(headers[h.RUN_MAX_CALLS]) is None:
            return _bad(h.RUN_MAX_CALLS, "a run's call cap is a whole number of at least 1")
        max_calls = int(headers[h.RUN_MAX_CALLS])
    return RunCaps(budget_nanos=budget_nanos, max_calls=max_calls)


def _bad(param: str, what: str) -> Refusal:
    return Refusal(status=400, code=Code.INVALID_REQUEST, message=f"{param}: {what}.", param=param)
