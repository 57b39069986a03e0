"""JSON shapes of the admin API, shared by the gateway and its clients.

Keys, teams (a fleet is a LiteLLM team) and models follow the LiteLLM Proxy wire format; dollars are JSON numbers
there. What LiteLLM lacks lives under `/nemo/…`, where money is integer nanos and time integer microseconds since the
epoch (UTC).
"""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = [
    "AttemptRow",
    "BudgetStatus",
    "CallContent",
    "CallRow",
    "DeploymentRow",
    "EventPage",
    "EventRow",
    "FleetStatus",
    "KeyRow",
    "LogPage",
    "LogSize",
    "ModelRates",
    "Pruned",
    "RoleStatus",
    "RunDetail",
    "RunPage",
    "RunReport",
    "RunRow",
    "Shadowed",
    "SpanRow",
    "SpikeStatus",
    "StepReport",
    "StepRow",
    "StoppedBy",
    "Suspect",
    "TeamRow",
    "Why",
    "WhyPart",
]


class KeyRow(msgspec.Struct, kw_only=True, omit_defaults=False):
    """One virtual key as `/key/info` and `/key/list` show it; `token` is its public id, the secret is never here."""

    token: str
    key_name: str
    key_alias: str | None = None
    team_id: str | None = None
    models: list[str] = []
    spend: float = 0.0
    max_budget: float | None = None
    budget_duration: str | None = None
    budget_reset_at: str | None = None
    rpm_limit: int | None = None
    tpm_limit: int | None = None
    max_parallel_requests: int | None = None
    model_rpm_limit: dict[str, int] | None = None
    model_tpm_limit: dict[str, int] | None = None
    guardrails: list[str] | None = None
    metadata: dict[str, Any] = {}
    blocked: bool = False
    expires: str | None = None
    created_at: str | None = None
    updated_at: str | None = None
    last_active: str | None = None
    rotation_count: int = 0


class TeamRow(msgspec.Struct, kw_only=True):
    """One fleet as `/team/info` and `/team/list` show it."""

    team_id: str
    team_alias: str | None = None
    models: list[str] = []
    spend: float = 0.0
    max_budget: float | None = None
    budget_duration: str | None = None
    budget_reset_at: str | None = None
    rpm_limit: int | None = None
    tpm_limit: int | None = None
    metadata: dict[str, Any] = {}
    blocked: bool = False
    created_at: str | None = None
    updated_at: str | None = None


class DeploymentRow(msgspec.Struct, kw_only=True):
    """One deployment of a model group as `/model/info` shows it: `litellm_params.model` is `provider/model`.

    `litellm_params.order` is its tier, from the lowest, and `litellm_params.weight` its share. What LiteLLM has no
    words for is in `model_info`, which LiteLLM keeps and ignores, and only where it says something:
    `nemo_context_tokens`, and for the group as a whole, alike in all its rows, `nemo_strategy`, `nemo_retries`,
    `nemo_fallback_on`. `nemo_applied` is the mark of what provisioning made of the group.
    """

    model_name: str
    litellm_params: dict[str, Any]
    model_info: dict[str, Any]


class StoppedBy(msgspec.Struct, kw_only=True, frozen=True):
    """What ended a run.

    `kind` is `budget`, `rate`, `loop`, `guardrail`, `max_calls`, `stopped`, `error` or `access`.
    """

    kind: str
    code: str
    scope: str | None = None
    limit: str | None = None
    step: str | None = None
    request_id: str | None = None
    message: str = ""


class StepReport(msgspec.Struct, kw_only=True, frozen=True):
    """A step as the SDK saw it. `step` is the label that calls carry in `x-nemo-step`, unique in its run."""

    step: str
    parent: str | None = None
    role: str | None = None
    state: str = "running"  # running | ok | failed | stopped
    started_us: int
    ended_us: int | None = None
    error: str | None = None


class RunReport(msgspec.Struct, kw_only=True, frozen=True):
    """What the SDK tells about a run, at its start and at its end; later reports replace earlier ones."""

    name: str
    state: str = "running"  # running | ok | failed | stopped
    started_us: int
    ended_us: int | None = None
    error: str | None = None
    stopped_by: StoppedBy | None = None
    budget_nanos: int | None = None
    max_calls: int | None = None
    steps: list[StepReport] = []


class RunRow(msgspec.Struct, kw_only=True):
    """One run with sums over its calls."""

    run_id: str
    fleet: str | None
    name: str
    state: str  # running | ok | recovered | failed | stopped | lost
    grouped: bool  # False: a call that carried no run id, shown as a run of one call
    started_us: int
    ended_us: int | None = None
    stopped_by: StoppedBy | None = None
    error: str | None = None
    budget_nanos: int | None = None
    max_calls: int | None = None
    calls: int = 0
    errors: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cost_nanos: int = 0
    roles: list[str] = []
    models: list[str] = []


class StepRow(msgspec.Struct, kw_only=True):
    """One step of a run with sums over its calls; `seq` is its order of appearance from 1."""

    seq: int
    step: str
    parent: str | None
    role: str | None
    state: str
    started_us: int
    ended_us: int | None = None
    error: str | None = None
    calls: int = 0
    errors: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cost_nanos: int = 0


class AttemptRow(msgspec.Struct, kw_only=True):
    """One attempt at one deployment."""

    n: int
    model: str
    provider: str
    reason: str  # first | retry | fallback
    status: int | None = None
    error: str | None = None
    started_us: int
    latency_us: int | None = None
    held_nanos: int = 0
    cost_nanos: int | None = None
    wait_ms: int = 0  # what was waited before it


class CallRow(msgspec.Struct, kw_only=True):
    """One record of the request log."""

    request_id: str
    run_id: str
    seq: int  # order within the run, from 1
    step: str | None
    fleet: str | None
    role: str | None
    key_alias: str | None
    key_id: str | None
    endpoint: str
    stream: bool
    model_asked: str | None
    model_served: str | None
    provider: str | None
    state: str  # open | ok | refused | failed | abandoned
    status: int | None
    code: str | None
    error: str | None
    limit: str | None
    scope: str | None
    started_us: int
    latency_us: int | None
    ttft_us: int | None
    input_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None
    cost_nanos: int | None
    held_nanos: int
    usage_source: str | None  # provider | hold | none
    finish_reason: str | None
    attempts: int
    guardrails: list[str]  # those that ran: the name alone of one that allowed, else `name: redact` or `name: block`
    attempt_rows: list[AttemptRow] = []
    shadow: list[Shadowed] = []
    parent_span: str | None = None  # the span that it was made in, 16 hex: of `traceparent`, or as the span tells


class Shadowed(msgspec.Struct, kw_only=True, frozen=True):
    """A refusal that a limit or budget in mode `shadow` would have given, and did not."""

    code: str
    scope: str | None = None  # run | role | fleet | model
    limit: str | None = None  # rpm | tpm | max_parallel | budget | loop
    message: str = ""


class CallContent(msgspec.Struct, kw_only=True):
    """What a call said: the prompt as sent (after guardrails), the parameters beside it, and the answer."""

    request_id: str
    prompt: list[Any] = []
    params: dict[str, Any] = {}
    answer: Any = None


class SpanRow(msgspec.Struct, kw_only=True):
    """One span of a run: the work of an agent, a task, a tool, as the SDK or a framework's own tracing tells it.

    `parent_id` may name a span that never came. A span that is a call of the request log is not among these: it only
    gives that call its `parent_span`. Tokens are what the span claims, and in no sum: calls are what is counted.
    """

    span_id: str  # 16 hex
    parent_id: str | None
    kind: str  # agent | task | tool | chain | retriever | guardrail | llm | other
    name: str
    step: str | None
    role: str | None
    state: str  # running | ok | failed
    started_us: int
    ended_us: int | None
    error: str | None = None
    request_id: str | None = None
    model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    input: str | None = None
    output: str | None = None
    attributes: dict[str, Any] = {}


class RunDetail(msgspec.Struct, kw_only=True):
    """A run, its steps in order of appearance, its calls in order, and its spans in the order of their starts.

    Of a run with more than a few hundred spans, `input` and `output` are left out.
    """

    run: RunRow
    steps: list[StepRow]
    calls: list[CallRow]
    spans: list[SpanRow] = []


class WhyPart(msgspec.Struct, kw_only=True, frozen=True):
    """A piece of a sentence; `call` (a request id) or `step` (a label) is what it speaks of, if anything."""

    text: str
    call: str | None = None
    step: str | None = None


class Suspect(msgspec.Struct, kw_only=True, frozen=True):
    """What may have spoiled the result of a run: a call to look at, and how strongly it is suspected.

    `kind` is `cut_off`, `withheld`, `refusal`, `empty`, `not_json`, `tool_error`, `repeated`, `lost_context`,
    `redacted`, `other_model` or `changed` (against a good run). `weight` is 1 to 100 and ranks, no probability.
    """

    kind: str
    weight: int
    sentence: str
    request_id: str
    seq: int
    step: str | None = None


class Why(msgspec.Struct, kw_only=True, frozen=True):
    """How a run ended and why: the sentence, its pieces with what they speak of, and the same for programs.

    `kind`, `code`, `scope` and `limit` are those of StoppedBy, of a stopped run alone. `value` is what that limit
    allows, where the run has it: nanos of its budget, or its number of calls. `request_id` is the call to look at
    first, `step` the one it speaks of. `suspects` has the strongest first, where no error explains the end.
    """

    run_id: str
    state: str
    sentence: str
    parts: list[WhyPart] = []
    kind: str | None = None
    code: str | None = None
    scope: str | None = None
    limit: str | None = None
    value: int | None = None
    step: str | None = None
    request_id: str | None = None
    suspects: list[Suspect] = []

    def __str__(self) -> str:
        return self.sentence


class RunPage(msgspec.Struct, kw_only=True):
    """A page of runs, newest first; `next` goes into `before` for the following page."""

    runs: list[RunRow]
    next: str | None = None


class LogPage(msgspec.Struct, kw_only=True):
    """A page of the request log, newest first; `next` goes into `before` for the following page."""

    calls: list[CallRow]
    next: str | None = None


class BudgetStatus(msgspec.Struct, kw_only=True):
    """One budget of a role or fleet in its current period."""

    name: str  # day | week | month | total | 12h …, with the time zone behind it where it is not UTC
    mode: str  # enforce | shadow
    amount_nanos: int
    spent_nanos: int
    held_nanos: int
    resets_at_us: int | None
    alert_at: list[float] = []


class SpikeStatus(msgspec.Struct, kw_only=True):
    """Spend of the last hour far above what is usual for the role."""

    hour_nanos: int
    usual_nanos: int  # an hour's spend by the role's own baseline
    factor: float


class EventRow(msgspec.Struct, kw_only=True):
    """One event: what alerts send to the log, the event stream and webhooks.

    `kind` is `budget.alert` (a threshold was passed), `budget.exhausted`, `budget.overrun` (a call cost more than its
    hold), `spend.spike`, or `clock.stepped`. `seq` rises in the order of storing, and is the cursor of the stream.
    """

    seq: int = 0
    event_id: str  # evt_…
    kind: str
    at_us: int
    fleet: str | None = None
    role: str | None = None
    message: str
    facts: dict[str, Any] = {}


class EventPage(msgspec.Struct, kw_only=True):
    """Events in the order of storing; `next` goes into `after` for the following page."""

    events: list[EventRow]
    next: int


class ModelRates(msgspec.Struct, kw_only=True):
    """The rates of one model within a role: requests and tokens per minute, and those of the last 60 seconds."""

    model: str
    rpm: int | None
    rpm_used: int
    tpm: int | None
    tpm_used: int


class RoleStatus(msgspec.Struct, kw_only=True):
    """One role's key now."""

    role: str
    key_id: str
    state: str  # active | blocked | expired
    models: list[str]
    spent_nanos: int
    held_nanos: int
    budget_nanos: int | None
    period: str | None  # day | week | month | total
    resets_at_us: int | None
    alert_at: float | None
    rpm: int | None
    rpm_used: int
    tpm: int | None
    tpm_used: int
    last_used_us: int | None
    guardrails: list[str] = []
    budgets: list[BudgetStatus] = []
    spike: SpikeStatus | None = None
    shadow: list[str] = []  # the rates that are recorded and never refuse: rpm, tpm, max_parallel
    model_rates: list[ModelRates] = []


class FleetStatus(msgspec.Struct, kw_only=True):
    """A fleet and its roles now."""

    fleet: str
    spent_nanos: int
    held_nanos: int
    budget_nanos: int | None
    period: str | None
    resets_at_us: int | None
    roles: list[RoleStatus]
    budgets: list[BudgetStatus] = []
    rpm: int | None = None
    rpm_used: int = 0
    tpm: int | None = None
    tpm_used: int = 0
    shadow: list[str] = []


class Pruned(msgspec.Struct, kw_only=True):
    """How much was deleted, or would be. `messages` are texts that nothing refers to any more: nobody can foresee them.

    `done` is False while a pruning goes on; `bytes` is by how much the database has shrunk, where that was asked for.
    """

    runs: int = 0
    calls: int = 0
    contents: int = 0
    spans: int = 0
    messages: int = 0
    events: int = 0
    changes: int = 0
    bytes: int = 0
    done: bool = True

    def add(self, more: Pruned) -> None:
        """Add what else was deleted."""
        for name in ("runs", "calls", "contents", "spans", "messages", "events", "changes", "bytes"):
            setattr(self, name, getattr(self, name) + getattr(more, name))


class LogSize(msgspec.Struct, kw_only=True):
    """How large the database is, how much of it is free for new rows, and how long what is in it is kept.

    `shrinks` says whether the file can be made smaller while it is used. Days are None where things are kept for ever;
    `pruned_before_us` is before which time runs were deleted.
    """

    bytes: int
    free_bytes: int
    shrinks: bool
    pruned_before_us: int | None = None
    keep_runs_days: int | None = None
    keep_content_days: int | None = None
