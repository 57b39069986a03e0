"""A run as OTLP/JSON spans, for tools that read traces: run, steps, spans, calls and attempts. Pure.

Names are those of OpenTelemetry's conventions for generative AI
(https://opentelemetry.io/docs/specs/semconv/gen-ai/), `session.id`, `openinference.span.kind`, `llm.cost.total`,
`input.value` and `output.value` of OpenInference, and our own `nemo.*`. Attempts carry no tokens, so that nothing is
counted twice. Ids are made of the run's own: the same run is always the same trace.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from nemo_agents.admin import wire
from nemo_agents.money import NANOS_PER_DOLLAR
from nemo_agents.trace.otlp import CLIENT, INTERNAL, AttributeValue, export_request, gen_ai_of, status_of, written
from nemo_agents.trace.propagate import trace_id_of
from nemo_agents.viewer.verdict import PROBLEM_STATES, name_of

__all__ = ["spans_of_run"]

_OPERATIONS: Final = {"/v1/embeddings": "embeddings", "/v1/completions": "text_completion"}

_Attributes = Mapping[str, AttributeValue | None]


def spans_of_run(detail: wire.RunDetail, contents: Mapping[str, wire.CallContent]) -> dict[str, Any]:
    """Return an ExportTraceServiceRequest of a run, as data for a JSON encoder.

    `contents` is what its calls said, by request id; of others there is no text.
    """
    tree = _Tree(detail)
    spans = [tree.run()]
    spans += [tree.step(step) for step in detail.steps]
    spans += [tree.span(span) for span in detail.spans]
    for call in detail.calls:
        spans += [
            tree.call(call, contents.get(call.request_id)),
            *(tree.attempt(call, row) for row in call.attempt_rows),
        ]
    return export_request(detail.run.run_id, spans)


class _Tree:
    """The spans of one run, each under its parent."""

    def __init__(self, detail: wire.RunDetail) -> None:
        self._run = detail.run
        self._trace_id = trace_id_of(detail.run.run_id)
        self._steps = {step.step: step for step in detail.steps}
        self._spans = {span.span_id for span in detail.spans}
        self._root = self._id("run", "")
        ends = [detail.run.started_us, *(_end(call.started_us, call.latency_us) for call in detail.calls)]
        ends += [step.ended_us for step in detail.steps if step.ended_us is not None]
        ends += [span.ended_us for span in detail.spans if span.ended_us is not None]
        self._last_us = detail.run.ended_us if detail.run.ended_us is not None else max(ends)

    def run(self) -> dict[str, Any]:
        run, by = self._run, self._run.stopped_by
        error = run.error or (by.message or by.code if by is not None else None)
        facts: _Attributes = {
            "gen_ai.operation.name": "invoke_workflow",
            "gen_ai.agent.name": name_of(run),
            "gen_ai.conversation.id": run.run_id,
            "session.id": run.run_id,
            "openinference.span.kind": "CHAIN",
            "nemo.run.id": run.run_id,
            "nemo.run.state": run.state,
            "nemo.run.stop.kind": by.kind if by is not None else None,
            "nemo.run.stop.limit": by.limit if by is not None else None,
            "nemo.run.cost.usd": run.cost_nanos / NANOS_PER_DOLLAR,
            "nemo.budget.limit_usd": None if run.budget_nanos is None else run.budget_nanos / NANOS_PER_DOLLAR,
        }
        failed = (error or run.state) if run.state in ("failed", "stopped", "lost") else None
        name = f"invoke_workflow {name_of(run)}"
        return self._made(self._root, None, name, times=(run.started_us, run.ended_us), facts=facts, failed=failed)

    def step(self, step: wire.StepRow) -> dict[str, Any]:
        agent = step.role or step.step
        facts: _Attributes = {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.name": agent,
            "nemo.step.name": step.step,
            "nemo.step.index": step.seq,
            "nemo.role": step.role,
        }
        parent = self._id("step", step.parent) if step.parent in self._steps else self._root
        failed = (step.error or step.state) if step.state in ("failed", "stopped") else None
        times = (step.started_us, step.ended_us)
        return self._made(
            self._id("step", step.step), parent, f"invoke_agent {agent}", times=times, facts=facts, failed=failed
        )

    def span(self, span: wire.SpanRow) -> dict[str, Any]:
        told = {key: value for key, value in span.attributes.items() if isinstance(value, str | int | float | bool)}
        operation, names = gen_ai_of(span.kind, span.name)
        facts: _Attributes = {
            **told,
            "gen_ai.operation.name": operation,
            **names,
            "nemo.span.kind": span.kind,
            "nemo.role": span.role,
            "input.value": span.input,
            "output.value": span.output,
        }
        failed = (span.error or span.state) if span.state == "failed" else None
        parent = self._under(span.parent_id, span.step)
        return self._made(
            span.span_id, parent, span.name, times=(span.started_us, span.ended_us), facts=facts, failed=failed
        )

    def call(self, call: wire.CallRow, content: wire.CallContent | None) -> dict[str, Any]:
        operation = _OPERATIONS.get(call.endpoint, "chat")
        params = content.params if content is not None else {}
        facts: _Attributes = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": call.provider,
            "gen_ai.request.model": call.model_asked,
            "gen_ai.response.model": call.model_served,
            "gen_ai.usage.input_tokens": call.input_tokens,
            "gen_ai.usage.output_tokens": call.output_tokens,
            "gen_ai.usage.cache_read.input_tokens": call.cached_tokens,
            "gen_ai.response.time_to_first_chunk": None if call.ttft_us is None else call.ttft_us / 1e6,
            "gen_ai.request.stream": call.stream,
            "gen_ai.request.temperature": _number(params.get("temperature")),
            "gen_ai.request.top_p": _number(params.get("top_p")),
            "gen_ai.request.max_tokens": _number(params.get("max_completion_tokens", params.get("max_tokens"))),
            "gen_ai.conversation.id": call.run_id,
            "session.id": call.run_id,
            "error.type": (call.code or str(call.status or call.state)) if call.state in PROBLEM_STATES else None,
            "llm.cost.total": None if call.cost_nanos is None else call.cost_nanos / NANOS_PER_DOLLAR,
            "nemo.role": call.role,
            "nemo.call.seq": call.seq,
            "nemo.request.id": call.request_id,
            "input.value": _json(content.prompt) if content is not None and content.prompt else None,
            "output.value": _json(content.answer) if content is not None and content.answer is not None else None,
        }
        failed = (call.error or call.code or call.state) if call.state in PROBLEM_STATES else None
        parent = self._under(call.parent_span, call.step)
        name = f"{operation} {call.model_asked or call.endpoint}"
        times = (call.started_us, _end(call.started_us, call.latency_us))
        span_id = self._id("call", call.request_id)
        made = self._made(span_id, parent, name, kind=CLIENT, times=times, facts=facts, failed=failed)
        if call.finish_reason is not None:
            reasons = {"arrayValue": {"values": [{"stringValue": call.finish_reason}]}}
            made["attributes"].append({"key": "gen_ai.response.finish_reasons", "value": reasons})
        return made

    def attempt(self, call: wire.CallRow, attempt: wire.AttemptRow) -> dict[str, Any]:
        failed = attempt.error if call.state != "ok" or attempt.n < call.attempts else None
        facts: _Attributes = {
            "gen_ai.request.model": attempt.model,
            "gen_ai.provider.name": attempt.provider,
            "http.request.resend_count": attempt.n - 1 if attempt.n > 1 else None,
            "http.response.status_code": attempt.status,
            "error.type": str(attempt.status or "no_answer") if failed is not None else None,
            "nemo.attempt.n": attempt.n,
            "nemo.attempt.reason": attempt.reason,
        }
        span_id = self._id("attempt", f"{call.request_id}:{attempt.n}")
        name = f"attempt {attempt.n} {attempt.model}"
        times = (attempt.started_us, _end(attempt.started_us, attempt.latency_us))
        return self._made(
            span_id, self._id("call", call.request_id), name, kind=CLIENT, times=times, facts=facts, failed=failed
        )

    def _under(self, span_id: str | None, step: str | None) -> str:
        if span_id is not None and span_id in self._spans:
            return span_id
        return self._id("step", step) if step is not None and step in self._steps else self._root

    def _id(self, kind: str, name: str | None) -> str:
        return hashlib.sha256(f"{self._run.run_id}\n{kind}\n{name}".encode("utf-8", "replace")).hexdigest()[:16]

    def _made(
        self,
        span_id: str,
        parent: str | None,
        name: str,
        *,
        kind: int = INTERNAL,
        times: tuple[int, int | None],
        facts: _Attributes,
        failed: str | None,
    ) -> dict[str, Any]:
        started_us, ended_us = times
        made = written(
            trace_id=self._trace_id,
            span_id=span_id,
            parent_id=parent,
            name=name,
            kind=kind,
            started_us=started_us,
            ended_us=self._last_us if ended_us is None else ended_us,
            facts=facts,
        )
        return made | {"status": status_of(failed)}


def _end(start_us: int, took_us: int | None) -> int:
    return start_us + (took_us or 0)


def _number(value: Any) -> int | float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
