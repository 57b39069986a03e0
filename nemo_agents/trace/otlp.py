"""Spans of a run as OTLP/JSON: what `POST /v1/traces` takes; pure.

The form is that of ExportTraceServiceRequest in OTLP 1.x, JSON encoding
(https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding): ids in hex, 64-bit integers as text, enumerations
as numbers. Attribute names are OpenTelemetry's for generative AI where they fit, OpenInference's `input.value` and
`output.value`, and our own `nemo.*`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from nemo_agents.trace.propagate import trace_id_of

__all__ = [
    "CLIENT",
    "INTERNAL",
    "AttributeValue",
    "SpanKind",
    "SpanRecord",
    "encode_spans",
    "export_request",
    "gen_ai_of",
    "status_of",
    "written",
]

SpanKind = Literal["agent", "task", "tool", "chain", "retriever", "guardrail", "other"]
AttributeValue = str | int | float | bool

INTERNAL: Final = 1
CLIENT: Final = 3
_OK: Final = 1
_ERROR: Final = 2
_INT64 = range(-(2**63), 2**63)
# The operation and the attribute that carries the name, where OpenTelemetry has them.
_GEN_AI: Final[Mapping[str, tuple[str, str | None]]] = {
    "agent": ("invoke_agent", "gen_ai.agent.name"),
    "tool": ("execute_tool", "gen_ai.tool.name"),
    "retriever": ("retrieval", None),
    "guardrail": ("apply_guardrail", None),
}
_NAMED: Final = tuple(attribute for _, attribute in _GEN_AI.values() if attribute is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanRecord:
    """One span that has ended, or a link: `request_id` set says that this model call belongs under `parent_id`.

    Times are microseconds since the epoch (UTC); `input`, `output` and `error` are texts of bounded length.
    """

    span_id: str
    parent_id: str
    kind: SpanKind
    name: str
    step: str | None
    role: str | None
    started_us: int
    ended_us: int
    input: str | None = None
    output: str | None = None
    error: str | None = None
    request_id: str | None = None
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)


def encode_spans(run_id: str, spans: Iterable[SpanRecord]) -> dict[str, Any]:
    """Return the export request for these spans of one run, as data for a JSON encoder."""
    trace_id = trace_id_of(run_id)
    return export_request(run_id, [_span(trace_id, span) for span in spans])


def export_request(run_id: str, spans: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the export request that these written spans of one run are in."""
    resource = {"service.name": "nemo-agents", "nemo.run.id": run_id}
    scope_spans = {"scope": {"name": "nemo_agents"}, "spans": spans}
    return {"resourceSpans": [{"resource": {"attributes": _attributes(resource)}, "scopeSpans": [scope_spans]}]}


def written(
    *,
    trace_id: str,
    span_id: str,
    parent_id: str | None,
    name: str,
    kind: int = INTERNAL,
    started_us: int,
    ended_us: int,
    facts: Mapping[str, AttributeValue | None],
) -> dict[str, Any]:
    """Write one span but for its status; facts that are None are left out, and no span ends before it starts."""
    out: dict[str, Any] = {"traceId": trace_id, "spanId": span_id}
    if parent_id is not None:
        out["parentSpanId"] = parent_id
    return out | {
        "name": name,
        "kind": kind,
        "startTimeUnixNano": str(started_us * 1_000),
        "endTimeUnixNano": str(max(started_us, ended_us) * 1_000),
        "attributes": _attributes(facts),
    }


def status_of(error: str | None) -> dict[str, Any]:
    """Write how a span ended; None: well."""
    return {"code": _OK} if error is None else {"code": _ERROR, "message": error}


def gen_ai_of(kind: str, name: str) -> tuple[str | None, dict[str, AttributeValue | None]]:
    """Return OpenTelemetry's operation of a span of this kind, and by which attributes it has its name (or has not)."""
    operation, mine = _GEN_AI.get(kind, (None, None))
    return operation, {attribute: name if attribute == mine else None for attribute in _NAMED}


def _span(trace_id: str, span: SpanRecord) -> dict[str, Any]:
    out = written(
        trace_id=trace_id,
        span_id=span.span_id,
        parent_id=span.parent_id,
        name=span.name,
        started_us=span.started_us,
        ended_us=span.ended_us,
        facts={**span.attributes, **_told(_facts(span))},
    )
    if span.error is not None or span.request_id is None:
        out["status"] = status_of(span.error)
    return out


def _facts(span: SpanRecord) -> dict[str, AttributeValue | None]:
    """What the record says itself; it goes over attributes of the same name."""
    operation, names = gen_ai_of(span.kind, span.name)
    return {
        "nemo.span.kind": span.kind,
        "nemo.step.name": span.step,
        "nemo.role": span.role,
        "nemo.request.id": span.request_id,
        "gen_ai.operation.name": operation,
        "input.value": span.input,
        "output.value": span.output,
        **names,
    }


def _told(facts: Mapping[str, AttributeValue | None]) -> dict[str, AttributeValue]:
    return {name: value for name, value in facts.items() if value is not None}


def _attributes(facts: Mapping[str, AttributeValue | None]) -> list[dict[str, Any]]:
    return [{"key": name, "value": _value(value)} for name, value in _told(facts).items()]


def _value(value: AttributeValue) -> dict[str, Any]:
    match value:
        case bool():
            return {"boolValue": value}
        case int() if value in _INT64:
            return {"intValue": str(value)}
        case float() if value - value == 0:
            return {"doubleValue": value}
        case _:  # JSON has no infinity, and an integer of that size has no type
            return {"stringValue": str(value)}
