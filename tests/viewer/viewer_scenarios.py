"""Runs built from the wire's structs, and a reader that serves them from memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nemo_agents.admin import wire

NOW_US = 1_772_373_600_000_000  # 2026-03-01 14:00:00 UTC
SECOND = 1_000_000
TOKEN = "read-token-of-the-tests"
START = NOW_US - 120 * SECOND


def call(seq: int, **given: Any) -> wire.CallRow:
    run_id = given.get("run_id", "run_7f3a91c2d4e5f607")
    values: dict[str, Any] = {
        "request_id": f"req_{run_id[-6:]}_{seq:04d}",
        "run_id": run_id,
        "seq": seq,
        "step": "plan",
        "fleet": "research-crew",
        "role": "planner",
        "key_alias": "planner",
        "key_id": "nemo_ab12cd34",
        "endpoint": "/v1/chat/completions",
        "stream": True,
        "model_asked": "gpt-4o-mini",
        "model_served": "gpt-4o-mini",
        "provider": "openai",
        "state": "ok",
        "status": 200,
        "code": None,
        "error": None,
        "limit": None,
        "scope": None,
        "started_us": START + (seq - 1) * SECOND,
        "latency_us": 800_000,
        "ttft_us": 250_000,
        "input_tokens": 1_200 + 37 * seq,
        "output_tokens": 180 + seq,
        "cached_tokens": 0,
        "cost_nanos": 2_100_000 + 13_000 * seq,
        "held_nanos": 5_000_000,
        "usage_source": "provider",
        "finish_reason": "stop",
        "attempts": 1,
        "guardrails": [],
    }
    values |= given
    if "attempt_rows" not in values:
        values["attempt_rows"] = [] if values["state"] == "refused" else [attempt(1, values)]
    values["attempts"] = len(values["attempt_rows"])
    return wire.CallRow(**values)


def attempt(n: int, of: dict[str, Any], **given: Any) -> wire.AttemptRow:
    values: dict[str, Any] = {
        "n": n,
        "model": of["model_served"] or of["model_asked"],
        "provider": of["provider"] or "openai",
        "reason": "first",
        "status": of["status"],
        "error": of["error"],
        "started_us": of["started_us"],
        "latency_us": of["latency_us"],
        "held_nanos": of["held_nanos"],
        "cost_nanos": of["cost_nanos"],
    }
    return wire.AttemptRow(**(values | given))


def refused(seq: int, code: str, status: int, **given: Any) -> wire.CallRow:
    unsent: dict[str, Any] = {
        "state": "refused",
        "status": status,
        "code": code,
        "model_served": None,
        "provider": None,
        "latency_us": 3_000,
        "ttft_us": None,
        "input_tokens": None,
        "output_tokens": None,
        "cached_tokens": None,
        "cost_nanos": 0,
        "held_nanos": 0,
        "usage_source": "none",
        "finish_reason": None,
    }
    return call(seq, **(unsent | given))


def detail(state: str, calls: list[wire.CallRow], **given: Any) -> wire.RunDetail:
    """A run with sums over its calls, and a step for each label in order of appearance."""
    steps_given = given.pop("steps", None)
    steps: list[wire.StepRow] = steps_given if steps_given is not None else _steps_of(calls, state)
    end = max([START, *(row.started_us + (row.latency_us or 0) for row in calls)])
    values: dict[str, Any] = {
        "run_id": calls[0].run_id if calls else "run_7f3a91c2d4e5f607",
        "fleet": "research-crew",
        "name": "market-brief",
        "state": state,
        "grouped": True,
        "started_us": START - 20_000,
        "ended_us": None if state in ("running", "lost") else end + 30_000,
        **_sums(calls),
        "roles": list(dict.fromkeys(row.role for row in calls if row.role)),
        "models": list(dict.fromkeys(row.model_served for row in calls if row.model_served)),
    }
    spans = given.pop("spans", [])
    return wire.RunDetail(run=wire.RunRow(**(values | given)), steps=steps, calls=calls, spans=spans)


def _sums(calls: Sequence[wire.CallRow]) -> dict[str, int]:
    return {
        "calls": len(calls),
        "errors": sum(row.state in ("refused", "failed", "abandoned") for row in calls),
        "input_tokens": sum(row.input_tokens or 0 for row in calls),
        "output_tokens": sum(row.output_tokens or 0 for row in calls),
        "cached_tokens": sum(row.cached_tokens or 0 for row in calls),
        "cost_nanos": sum(row.cost_nanos or 0 for row in calls),
    }


def _steps_of(calls: Sequence[wire.CallRow], state: str) -> list[wire.StepRow]:
    labels = list(dict.fromkeys(row.step for row in calls if row.step))
    steps = []
    for seq, label in enumerate(labels, 1):
        own = [row for row in calls if row.step == label]
        last = seq == len(labels)
        steps.append(
            wire.StepRow(
                seq=seq,
                step=label,
                parent=None,
                role=own[0].role,
                state=state if last and state in ("running", "failed", "stopped") else "ok",
                started_us=own[0].started_us - 10_000,
                ended_us=None if last and state == "running" else max(r.started_us + (r.latency_us or 0) for r in own),
                **_sums(own),
            )
        )
    return steps


def pipeline(run_id: str, upto: int = 6) -> list[wire.CallRow]:
    """The calls of a research pipeline: plan, research (twice, costly), write, critique, edit."""
    shape = (
        ("plan", "planner", "gpt-4o-mini", 1_400_000, 800_000),
        ("research", "researcher", "gpt-4o", 14_800_000, 2_600_000),
        ("research", "researcher", "gpt-4o", 15_900_000, 3_100_000),
        ("write", "writer", "claude-3-5-sonnet-20241022", 9_700_000, 5_200_000),
        ("critique", "critic", "gpt-4o-mini", 1_100_000, 1_300_000),
        ("edit", "writer", "claude-3-5-sonnet-20241022", 6_200_000, 2_900_000),
    )
    calls = []
    at = START
    for seq, (step, role, model, nanos, took) in enumerate(shape[:upto], 1):
        calls.append(
            call(
                seq,
                run_id=run_id,
                step=step,
                role=role,
                key_alias=role,
                model_asked=model,
                model_served=model,
                cost_nanos=nanos,
                latency_us=took,
                ttft_us=took // 4,
                started_us=at,
                provider="anthropic" if "claude" in model else "openai",
                cached_tokens=512 if seq > 2 else 0,
            )
        )
        at += took + 150_000
    return calls


def ok() -> wire.RunDetail:
    return detail("ok", pipeline("run_00a1b2c3d4e5f601"))


def stopped_by_budget() -> wire.RunDetail:
    calls = pipeline("run_01b7e2c3d4e5f602", 5)
    after = calls[-1].started_us + 1_500_000
    error = "the run's budget $0.05 does not allow this call: $0.0429 spent, $0.0081 needed, $0.0071 left"
    calls.append(
        refused(
            6,
            "budget_exhausted",
            402,
            run_id=calls[0].run_id,
            step="edit",
            role="writer",
            limit="budget",
            scope="run",
            error=error,
            started_us=after,
            model_asked="claude-3-5-sonnet-20241022",
        )
    )
    by = wire.StoppedBy(
        kind="budget",
        code="budget_exhausted",
        scope="run",
        limit="budget",
        step="edit",
        request_id=calls[-1].request_id,
        message=error,
    )
    return detail("stopped", calls, budget_nanos=50_000_000, max_calls=20, stopped_by=by)


def failed_upstream() -> wire.RunDetail:
    calls = pipeline("run_02c7e2c3d4e5f603", 3)
    base: dict[str, Any] = {
        "run_id": calls[0].run_id,
        "step": "write",
        "role": "writer",
        "model_asked": "fast-reasoning",
        "model_served": None,
        "provider": None,
        "state": "failed",
        "status": 502,
        "code": "upstream_error",
        "error": "every attempt failed; the last said: overloaded_error: Overloaded",
        "started_us": START + 7 * SECOND,
        "latency_us": 3_400_000,
        "ttft_us": None,
        "input_tokens": None,
        "output_tokens": None,
        "cost_nanos": 0,
        "held_nanos": 12_000_000,
        "finish_reason": None,
        "usage_source": "none",
    }
    at = START + 7 * SECOND
    base["attempt_rows"] = [
        wire.AttemptRow(
            n=1,
            model="o3-mini",
            provider="openai",
            reason="first",
            status=500,
            error="server_error",
            started_us=at,
            latency_us=900_000,
            held_nanos=9_000_000,
            cost_nanos=0,
        ),
        wire.AttemptRow(
            n=2,
            model="o3-mini",
            provider="openai",
            reason="retry",
            status=500,
            error="server_error",
            started_us=at + 1_100_000,
            latency_us=800_000,
            held_nanos=9_000_000,
            cost_nanos=0,
        ),
        wire.AttemptRow(
            n=3,
            model="claude-3-5-sonnet-20241022",
            provider="anthropic",
            reason="fallback",
            status=529,
            error="overloaded_error",
            started_us=at + 2_000_000,
            latency_us=1_400_000,
            held_nanos=12_000_000,
            cost_nanos=0,
        ),
    ]
    calls.append(call(4, **base))
    return detail("failed", calls, error="UpstreamFailed: the gateway answered 502")


def failed_in_application() -> wire.RunDetail:
    calls = pipeline("run_03d7e2c3d4e5f604", 2)
    return detail("failed", calls, error="ValueError: no table in the model's answer")


def recovered() -> wire.RunDetail:
    calls = pipeline("run_04e7e2c3d4e5f605", 2)
    same = {"run_id": calls[0].run_id, "step": "research", "role": "researcher", "model_asked": "gpt-4o"}
    at = calls[-1].started_us + 2_800_000
    for seq in (3, 4):
        calls.append(
            refused(
                seq,
                "rate_limit_exceeded",
                429,
                limit="rpm",
                scope="role",
                started_us=at + seq * 400_000,
                error="30 requests in the last minute, which is the limit; retry after 1.2 s",
                **same,
            )
        )
    calls.append(call(5, **same, model_served="gpt-4o", started_us=at + 3 * SECOND, latency_us=1_900_000))
    return detail("recovered", calls)


def running() -> wire.RunDetail:
    calls = pipeline("run_05f7e2c3d4e5f606", 3)
    calls.append(
        call(
            4,
            run_id=calls[0].run_id,
            step="write",
            role="writer",
            state="open",
            status=None,
            latency_us=None,
            ttft_us=None,
            input_tokens=None,
            output_tokens=None,
            cost_nanos=None,
            started_us=NOW_US - 4 * SECOND,
            finish_reason=None,
            usage_source=None,
            model_served=None,
        )
    )
    return detail("running", calls, budget_nanos=100_000_000)


def rate_limited() -> wire.RunDetail:
    calls = [
        refused(
            seq,
            "rate_limit_exceeded",
            429,
            run_id="run_06a7e2c3d4e5f607",
            limit="tpm",
            scope="role",
            error="100,000 tokens a minute",
        )
        for seq in range(1, 13)
    ]
    by = wire.StoppedBy(kind="rate", code="rate_limit_exceeded", scope="role", limit="tpm", step="plan")
    return detail("stopped", calls, stopped_by=by)


def guardrail_block() -> wire.RunDetail:
    calls = pipeline("run_07b7e2c3d4e5f608", 2)
    calls[1].guardrails = ["pii-filter"]
    calls.append(
        refused(
            3,
            "guardrail_blocked",
            400,
            run_id=calls[0].run_id,
            step="write",
            role="writer",
            guardrails=["prompt-injection-detect"],
            error="the last tool result asks to ignore instructions",
        )
    )
    by = wire.StoppedBy(kind="guardrail", code="guardrail_blocked", step="write", request_id=calls[-1].request_id)
    return detail("stopped", calls, stopped_by=by)


def fallback() -> wire.RunDetail:
    calls = pipeline("run_08c7e2c3d4e5f609")
    moved = calls[3]
    moved.model_asked, moved.model_served = "fast-reasoning", "claude-3-5-sonnet-20241022"
    at = moved.started_us
    moved.attempt_rows = [
        wire.AttemptRow(
            n=1,
            model="o3-mini",
            provider="openai",
            reason="first",
            status=429,
            error="tokens per min",
            started_us=at,
            latency_us=500_000,
            held_nanos=9_000_000,
            cost_nanos=0,
        ),
        wire.AttemptRow(
            n=2,
            model="claude-3-5-sonnet-20241022",
            provider="anthropic",
            reason="fallback",
            status=200,
            started_us=at + 900_000,
            latency_us=4_300_000,
            held_nanos=9_900_000,
            cost_nanos=9_700_000,
        ),
    ]
    moved.attempts, moved.ttft_us = 2, 1_700_000
    calls[5].finish_reason = "length"
    return detail("ok", calls)


def huge() -> wire.RunDetail:
    calls = [
        call(
            seq,
            run_id="run_09d7e2c3d4e5f610",
            step=f"round {seq // 50 + 1}",
            started_us=START + seq * 200_000,
            latency_us=150_000 + seq * 100,
            ttft_us=60_000,
        )
        for seq in range(1, 501)
    ]
    return detail("ok", calls, name="batch of five hundred", budget_nanos=5_000_000_000)


def long_run(calls: int = 1_500, *, problems: Sequence[int] = (350, 351, 900, 1_403)) -> wire.RunDetail:
    """A run of several pages: a hundred calls in each step."""
    rows = []
    for seq in range(1, calls + 1):
        given: dict[str, Any] = {
            "run_id": "run_30d7e2c3d4e5f630",
            "step": f"round {(seq - 1) // 100 + 1}",
            "started_us": START + seq * 60_000,
        }
        if seq in problems:
            rows.append(refused(seq, "rate_limit_exceeded", 429, limit="rpm", scope="role", **given))
        else:
            rows.append(call(seq, latency_us=50_000, ttft_us=20_000, **given))
    return detail("recovered", rows, name="a long run of many rounds")


def nested() -> wire.RunDetail:
    calls = pipeline("run_10e7e2c3d4e5f611")
    made = detail("ok", calls)
    parents = {"research": "plan", "write": None, "critique": "write", "edit": "critique"}
    for step in made.steps:
        step.parent = parents.get(step.step)
    return made


def max_calls() -> wire.RunDetail:
    calls = pipeline("run_11f7e2c3d4e5f612", 4)
    calls.append(
        refused(5, "run_stopped", 403, run_id=calls[0].run_id, step="critique", limit="max_calls", scope="run")
    )
    by = wire.StoppedBy(
        kind="max_calls", code="run_stopped", scope="run", limit="max_calls", request_id=calls[-1].request_id
    )
    return detail("stopped", calls, stopped_by=by, max_calls=4)


def lost() -> wire.RunDetail:
    return detail("lost", pipeline("run_12a8e2c3d4e5f613", 3))


def single() -> wire.RunDetail:
    only = call(
        1,
        run_id="req_130000000001",
        step=None,
        role="embeddings",
        endpoint="/v1/embeddings",
        model_asked="text-embedding-3-small",
        model_served="text-embedding-3-small",
        output_tokens=0,
        stream=False,
    )
    return detail("ok", [only], name="", grouped=False)


def shadowed() -> wire.RunDetail:
    """Limits in shadow mode refuse nothing, and say what they would have refused."""
    rpm = wire.Shadowed(
        code="rate_limit_exceeded", scope="role", limit="rpm", message="The role's rate of 2 requests a minute is used."
    )
    budget = wire.Shadowed(
        code="budget_exhausted",
        scope="fleet",
        limit="budget",
        message="The fleet's budget per day, in shadow mode, would not have allowed this call.",
    )
    loop = wire.Shadowed(
        code="loop_detected", scope="run", limit="loop", message="The same request came 8 times in 60 seconds."
    )
    run = {"run_id": "run_5ad0e1f2a3b4c5d6"}
    calls = [
        call(1, **run),
        call(2, **run),
        call(3, shadow=[rpm], **run),
        call(4, shadow=[rpm, budget], **run),
        call(5, step="write", shadow=[loop], **run),
    ]
    return detail("ok", calls, name="trial-of-limits")


def span(
    number: int, parent: int | None, kind: str, name: str, time: tuple[int, int | None], **given: Any
) -> wire.SpanRow:
    """A span; `time` is its start and end in seconds after the start of the run."""
    first, last = time
    values: dict[str, Any] = {
        "span_id": f"{number:016x}",
        "parent_id": None if parent is None else f"{parent:016x}",
        "kind": kind,
        "name": name,
        "step": "research",
        "role": None,
        "state": "running" if last is None else "failed" if given.get("error") else "ok",
        "started_us": START + first * SECOND,
        "ended_us": None if last is None else START + last * SECOND,
    }
    return wire.SpanRow(**(values | given))


def traced() -> wire.RunDetail:
    """A framework's agents, tasks and tools, with calls in them; one call and one span are in no other span."""
    run_id = "run_0c0ffee000000001"
    calls = [
        call(1, run_id=run_id, step="plan", role="planner"),
        *(
            call(seq, run_id=run_id, step="research", role="researcher", parent_span=parent, started_us=START + at)
            for seq, parent, at in (
                (2, f"{2:016x}", 2 * SECOND),
                (3, f"{2:016x}", 7 * SECOND),
                (4, "f" * 16, 9 * SECOND),
            )
        ),
    ]
    spans = [
        span(1, None, "agent", "Senior Researcher", (1, 10), role="researcher", attributes={"crew.size": 2}),
        span(2, 1, "task", "Find three sources on CRDTs and say which is oldest", (1, 9)),
        span(3, 2, "tool", "web_search", (3, 5), input='{"query": "CRDT survey", "limit": 3}', output="3 results: …"),
        span(4, 2, "tool", "fetch_url", (5, 6), input="https://example.com/crdt", error="TimeoutError: no answer"),
        span(5, 3, "retriever", "vector index", (4, 5)),
        span(6, 99, "guardrail", "style check", (9, 9), attributes={"score": 0.25, "passed": True}),
    ]
    return detail("ok", calls, run_id=run_id, name="research with tools", spans=spans)


SCENARIOS = {
    make.__name__: make
    for make in (
        ok,
        stopped_by_budget,
        failed_upstream,
        failed_in_application,
        recovered,
        running,
        rate_limited,
        guardrail_block,
        fallback,
        huge,
        long_run,
        nested,
        max_calls,
        lost,
        single,
        shadowed,
        traced,
    )
}


def conversation(row: wire.CallRow) -> wire.CallContent:
    """What a call of the pipeline said; later calls of a step repeat the earlier ones' messages."""
    prompt: list[Any] = [
        {"role": "system", "content": "You are a careful analyst. Answer in Markdown.\nNever invent a number."},
        {"role": "user", "content": "How did heat pump sales in Europe develop from 2019 to 2024?"},
    ]
    if row.step == "research" and row.seq > 2:
        prompt += [
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": "call_1",
                        "type": "function",
                        "function": {"name": "web_search", "arguments": '{"query":"heat pump sales EU","limit":5}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "call_1", "content": "EU heat pump sales fell 21 % in 2024 …"},
        ]
    answer: Any = None
    if row.state == "ok":
        answer = {"role": "assistant", "content": "Sales peaked in 2022 and fell by about a third until 2024."}
        if row.step == "research" and row.seq == 2:
            answer = {
                "role": "assistant",
                "tool_calls": [
                    {
                        "id": "call_1",
                        "type": "function",
                        "function": {"name": "web_search", "arguments": '{"query":"heat pump sales EU","limit":5}'},
                    }
                ],
            }
    tools = [
        {"type": "function", "function": {"name": "web_search", "parameters": {"type": "object"}}},
        {"type": "function", "function": {"name": "fetch_url", "parameters": {"type": "object"}}},
    ]
    params: dict[str, Any] = {"temperature": 0.2, "max_tokens": 800}
    if row.step == "research":
        params |= {"tools": tools, "tool_choice": "auto"}
    return wire.CallContent(request_id=row.request_id, prompt=prompt, params=params, answer=answer)


def fleets() -> list[wire.FleetStatus]:
    def role(name: str, **given: Any) -> wire.RoleStatus:
        values: dict[str, Any] = {
            "role": name,
            "key_id": f"nemo_{name[:8]}",
            "state": "active",
            "models": ["gpt-4o-mini"],
            "spent_nanos": 3_210_000_000,
            "held_nanos": 0,
            "budget_nanos": 20_000_000_000,
            "period": "day",
            "resets_at_us": NOW_US + 36_000 * SECOND,
            "alert_at": 0.8,
            "rpm": 60,
            "rpm_used": 12,
            "tpm": None,
            "tpm_used": 0,
            "last_used_us": NOW_US - 40 * SECOND,
        }
        values |= given
        if "budgets" not in values and values["budget_nanos"] is not None:
            values["budgets"] = [budget(values["budget_nanos"], values["spent_nanos"], values["held_nanos"])]
        return wire.RoleStatus(**values)

    def budget(amount: int, spent: int, held: int = 0, name: str = "day", mode: str = "enforce") -> wire.BudgetStatus:
        return wire.BudgetStatus(
            name=name,
            mode=mode,
            amount_nanos=amount,
            spent_nanos=spent,
            held_nanos=held,
            resets_at_us=None if name == "total" else NOW_US + 36_000 * SECOND,
            alert_at=[0.5, 0.8],
        )

    roles = [
        role("orchestrator", models=["fast-reasoning"], rpm=30, rpm_used=30),
        role(
            "researcher",
            spent_nanos=71_400_000_000,
            held_nanos=4_000_000_000,
            budget_nanos=80_000_000_000,
            tpm=100_000,
            tpm_used=64_200,
            guardrails=["pii-filter", "prompt-injection-detect"],
            rpm=120,
            budgets=[
                budget(80_000_000_000, 71_400_000_000, 4_000_000_000),
                budget(60_000_000_000, 71_400_000_000, 4_000_000_000, mode="shadow"),
                budget(900_000_000_000, 312_000_000_000, name="month Europe/Amsterdam"),
            ],
            spike=wire.SpikeStatus(hour_nanos=12_600_000_000, usual_nanos=3_000_000_000, factor=4.2),
            shadow=["tpm"],
            model_rates=[wire.ModelRates(model="gpt-4o", rpm=10, rpm_used=3, tpm=None, tpm_used=812)],
        ),
        role("writer", spent_nanos=20_000_000_000, models=["claude-3-5-sonnet-20241022"], guardrails=["secrets"]),
        role(
            "critic",
            state="blocked",
            budget_nanos=None,
            period=None,
            resets_at_us=None,
            alert_at=None,
            last_used_us=None,
        ),
    ]
    crew = wire.FleetStatus(
        fleet="research-crew",
        spent_nanos=97_820_000_000,
        held_nanos=4_000_000_000,
        budget_nanos=170_000_000_000,
        period="day",
        resets_at_us=NOW_US + 36_000 * SECOND,
        roles=roles,
        budgets=[budget(170_000_000_000, 97_820_000_000, 4_000_000_000), budget(2_000_000_000_000, 1, name="total")],
        rpm=300,
        rpm_used=42,
        tpm_used=71_000,
    )
    empty = wire.FleetStatus(
        fleet="empty", spent_nanos=0, held_nanos=0, budget_nanos=None, period=None, resets_at_us=None, roles=[]
    )
    return [crew, empty]


def events() -> list[wire.EventRow]:
    told = (
        ("budget.alert", "The budget of role researcher has reached 80%: spent $64.10 of $80 per day (80%)."),
        ("spend.spike", "Role researcher has spent $12.60 in the last hour, 4.2 times its usual $3."),
        ("budget.exhausted", "The budget of role writer is spent: $20 of $20 per day (100%)."),
    )
    return [
        wire.EventRow(
            seq=seq,
            event_id=f"evt_{seq}",
            kind=kind,
            at_us=NOW_US - (4 - seq) * 600 * SECOND,
            fleet="research-crew",
            role=message.split(" ")[3 if kind.startswith("budget") else 1],
            message=message,
        )
        for seq, (kind, message) in enumerate(told, 1)
    ]


class MemoryReader:
    """Serves runs from memory, with the filters of the protocol; a cursor is an offset."""

    def __init__(self, details: Sequence[wire.RunDetail], fleet_rows: Sequence[wire.FleetStatus] = ()) -> None:
        self.details = list(details)
        self.fleets = list(fleet_rows)
        self.contents = {row.request_id: conversation(row) for each in details for row in each.calls}
        self.span_texts: dict[str, tuple[str | None, str | None]] = {}
        self.asked: list[dict[str, Any]] = []
        self.fails: Exception | None = None
        self.events = events() if fleet_rows else []

    async def list_runs(self, *, before: str | None, limit: int, **where: Any) -> wire.RunPage:
        self._ask(where)
        rows = [each for each in self.details if self._run_matches(each, where)]
        page, following = self._cut(rows, before, limit)
        return wire.RunPage(runs=[each.run for each in page], next=following)

    async def get_run(self, run_id: str) -> wire.RunDetail | None:
        self._ask({"run_id": run_id})
        if run_id == "last":
            return self.details[0]
        found = [each for each in self.details if each.run.run_id.startswith(run_id)]
        return found[0] if len(found) == 1 else None

    async def list_calls(self, *, before: str | None, limit: int, **where: Any) -> wire.LogPage:
        self._ask(where)
        rows = [
            row
            for each in self.details
            for row in each.calls
            if where["run_id"] in (None, row.run_id)
            and where["role"] in (None, row.role)
            and where["model"] in (None, row.model_asked, row.model_served)
            and where["status"] in (None, row.status)
        ]
        rows.sort(key=lambda row: -row.started_us)
        page, following = self._cut(rows, before, limit)
        return wire.LogPage(calls=page, next=following)

    async def get_contents(self, ids: Sequence[str]) -> dict[str, wire.CallContent]:
        self._ask({"contents": list(ids)})
        return {each: self.contents[each] for each in ids if each in self.contents}

    async def get_span_texts(self, run: wire.RunRow, ids: Sequence[str]) -> dict[str, tuple[str | None, str | None]]:
        self._ask({"spans": list(ids), "of": run.run_id})
        return {span_id: self.span_texts[span_id] for span_id in ids if span_id in self.span_texts}

    async def fleet_status(self) -> list[wire.FleetStatus]:
        self._ask({})
        return self.fleets

    async def latest_events(self, limit: int) -> list[wire.EventRow]:
        self._ask({})
        return self.events[-limit:]

    def _ask(self, what: dict[str, Any]) -> None:
        self.asked.append(what)
        if self.fails is not None:
            raise self.fails

    @staticmethod
    def _run_matches(each: wire.RunDetail, where: dict[str, Any]) -> bool:
        return (
            where["state"] in (None, each.run.state)
            and where["fleet"] in (None, each.run.fleet)
            and (where["role"] is None or where["role"] in each.run.roles)
            and (where["model"] is None or where["model"] in each.run.models)
            and (where["status"] is None or any(row.status == where["status"] for row in each.calls))
            and (where["since_us"] is None or each.run.started_us >= where["since_us"])
        )

    @staticmethod
    def _cut(rows: Sequence[Any], before: str | None, limit: int) -> tuple[list[Any], str | None]:
        start = int(before) if before is not None else 0  # ValueError for a cursor that was never given
        end = start + limit
        return list(rows[start:end]), str(end) if end < len(rows) else None


def reader() -> MemoryReader:
    return MemoryReader([make() for make in SCENARIOS.values()], fleets())


__all__ = ["SCENARIOS", "TOKEN", "MemoryReader", "reader"]
