"""Which run and step a call belongs to, written as request headers; pure functions over values.

Trace and span ids follow W3C Trace Context (https://www.w3.org/TR/trace-context/#traceparent-header): a trace id is 32
lower-case hex digits, a span id 16, neither all zeros. A run id of that form is the trace id; any other is hashed.
Names and labels travel as printable ASCII; every other character, and `%` itself, is percent-encoded UTF-8.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, unquote

from nemo_agents.admin import headers
from nemo_agents.errors import DeclarationError
from nemo_agents.money import dollars_text
from nemo_agents.policy.grouping import is_run_id

__all__ = [
    "OURS",
    "RunRef",
    "StepRef",
    "call_headers",
    "check_run_id",
    "decode_text",
    "encode_text",
    "run_name",
    "step_name",
    "trace_id_of",
    "under_span",
    "unique_label",
]

NAME_LENGTH_MAX: Final = 200
STEP_LENGTH_MAX: Final = 190  # leaves room for `#2` in the gateway's 200

# What a call says about its run; a hook removes these from a request before it writes them anew.
OURS: Final = (
    headers.RUN_ID,
    headers.RUN_NAME,
    headers.STEP,
    headers.PARENT_STEP,
    headers.RUN_BUDGET,
    headers.RUN_MAX_CALLS,
)

_UNSENDABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_TRACE_ID = re.compile(r"(?!0{32})[0-9a-f]{32}")
_PRINTABLE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRef:
    """A run as its calls announce it. `span_id` stands for the run itself, for calls outside any step."""

    run_id: str
    name: str
    span_id: str
    budget_nanos: int | None = None
    max_calls: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRef:
    """A step as its calls announce it. `parent` is the label of the step around it."""

    label: str
    span_id: str
    parent: str | None = None


def call_headers(run: RunRef, step: StepRef | None) -> Mapping[str, str]:
    """Return the headers of one call.

    The run's caps go with every call, not only the first: calls that start together have no first.
    """
    out = {headers.RUN_ID: run.run_id, headers.RUN_NAME: encode_text(run.name)}
    if step is not None:
        out[headers.STEP] = encode_text(step.label)
        if step.parent is not None:
            out[headers.PARENT_STEP] = encode_text(step.parent)
    if run.budget_nanos is not None:
        out[headers.RUN_BUDGET] = dollars_text(run.budget_nanos)
    if run.max_calls is not None:
        out[headers.RUN_MAX_CALLS] = str(run.max_calls)
    span_id = run.span_id if step is None else step.span_id
    out[headers.TRACEPARENT] = f"00-{trace_id_of(run.run_id)}-{span_id}-01"
    return out


def under_span(call: Mapping[str, str], span_id: str) -> Mapping[str, str]:
    """Return the headers of a call with this span as its parent."""
    version, trace_id, _, flags = call[headers.TRACEPARENT].split("-")
    return {**call, headers.TRACEPARENT: f"{version}-{trace_id}-{span_id}-{flags}"}


def trace_id_of(run_id: str) -> str:
    """Return the W3C trace id of a run: the run id itself when it has that form, else the start of its SHA-256."""
    if _TRACE_ID.fullmatch(run_id):
        return run_id
    return hashlib.sha256(run_id.encode()).hexdigest()[:32]


def encode_text(text: str) -> str:
    """Write a name as a header value."""
    return quote(text, safe=_PRINTABLE)


def decode_text(value: str) -> str:
    """Read a name from a header value; text that was never encoded comes back as it is."""
    return unquote(value)


def run_name(text: object) -> str:
    """Return the name of a run: white space made plain, cut at 200 characters, as names often quote a question.

    Raises DeclarationError when nothing is left.
    """
    name = " ".join(_UNSENDABLE.sub(" ", text).split()) if isinstance(text, str) else ""
    if not name:
        raise DeclarationError(
            "a run's name is a text that is not empty",
            field="name",
            value=text,
            remedy='For example fleet.run("answer a question").',
        )
    return name if len(name) <= NAME_LENGTH_MAX else name[: NAME_LENGTH_MAX - 1] + "…"


def step_name(text: object) -> str:
    """Return the name of a step as it is: it identifies the step in its run.

    Raises DeclarationError unless it is 1 to 190 characters without line breaks and control characters.
    """
    if isinstance(text, str) and 0 < len(text) <= STEP_LENGTH_MAX and text == text.strip():
        if not _UNSENDABLE.search(text):
            return text
        problem = "a step's name has no line breaks and no control characters"
    else:
        problem = f"a step's name is 1 to {STEP_LENGTH_MAX} characters with no space around them"
    value = f"{text[:40]}…" if isinstance(text, str) and len(text) > STEP_LENGTH_MAX else text
    raise DeclarationError(problem, field="step", value=value, remedy='A short word is best: "research".')


def check_run_id(text: object) -> str:
    """Return a run id that someone chose.

    Raises DeclarationError unless it is 1 to 128 letters, digits and `._:@-`, starting with a letter or digit.
    """
    if isinstance(text, str) and is_run_id(text):
        return text
    raise DeclarationError(
        "a run id is 1 to 128 letters, digits and ._:@- and starts with a letter or digit",
        field="run_id",
        value=text,
        remedy="Choose another, or leave it out to get a new one.",
    )


def unique_label(name: str, taken: Collection[str], *, steps: int = 0) -> str:
    """Return the label of a step: its name, or `name#2`, `name#3`, … where that is taken.

    `steps` is how many of that name there are; the search starts behind them.
    """
    n = steps + 1
    label = name if n == 1 else f"{name}#{n}"
    while label in taken:
        n += 1
        label = f"{name}#{n}"
    return label
