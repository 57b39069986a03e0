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

__all__ = ["AttributeValue", "SpanKind", "SpanRecord", "attributes", "encode_spans"]

SpanKind = Literal["agent", "task", "tool", "chain", "retriever", "guardrail", "other"]
AttributeValue = str | int | float | bool

_INTERNAL: Final = 1
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
    resource = {"service.name": "nemo-agents", "nemo.run.id": run_id}
    scope_spans = {"scope": {"name": "nemo_agents"}, "spans": [_span(trace_id, span) for span in spans]}
    return {"resourceSpans": [{"resource": {"attributes": attributes(resource)}, "scopeSpans": [scope_spans]}]}


def _span(trace_id: str, span: SpanRecord) -> dict[str, Any]:
    out: dict[str, Any] = {
        "traceId": trace_id,
        "spanId": span.span_id,
        "parentSpanId": span.parent_id,
        "name": span.name,
        "kind": _INTERNAL,
        "startTimeUnixNano": str(span.started_us * 1_000),
        "endTimeUnixNano": str(max(span.started_us, span.ended_us) * 1_000),
        "attributes": attributes({**span.attributes, **_facts(span)}),
    }
    if span.error is not None:
        out["status"] = {"code": _ERROR, "message": span.error}
    elif span.request_id is None:
        out["status"] = {"code": _OK}
    return out


def _facts(span: SpanRecord) -> dict[str, AttributeValue]:
    """What the record says itself; it goes over attributes of the same name."""
    operation, name_attribute = _GEN_AI.get(span.kind, (None, None))
    facts: dict[str, AttributeValue | None] = {
        "nemo.span.kind": span.kind,
        "nemo.step.name": span.step,
        "nemo.role": span.role,
        "nemo.request.id": span.request_id,
        "gen_ai.operation.name": operation,
        "input.value": span.input,
        "output.value": span.output,
    }
    if name_attribute is not None:
        facts[name_attribute] = span.name
    return {name: value for name, value in facts.items() if value is not None}


def attributes(values: Mapping[str, AttributeValue]) -> list[dict[str, Any]]:
    """Write attributes as OTLP/JSON has them."""
    return [{"key": name, "value": _value(value)} for name, value in values.items()]


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
