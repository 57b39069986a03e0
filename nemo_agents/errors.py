"""The stable error codes, and the exceptions that carry them.

NemoError
├── DeclarationError        a role, fleet or fleet file says something impossible
├── ProvisionError          a plan cannot be made or performed
│   ├── StalePlan           the gateway changed between plan and apply
│   └── KeyStoreError       the file of virtual keys cannot be read or written
├── SettingsError           the gateway cannot start as configured
├── AdapterError            a framework is missing, or of a version that its adapter does not know
├── RunEnded                a call was made for a run that is over; nothing was sent
└── GatewayError            the gateway answered with an error, or not at all
    ├── GatewayUnreachable  no answer: not running, wrong address, time-out
    ├── AdminError          the admin API refused a call
    ├── UpstreamFailed      502/504: every attempt at a provider failed
    ├── GatewayUnavailable  503: the gateway cannot keep its promises now
    └── Refused             a *policy* no; never a bug
        ├── RequestRejected     400/404/413: the request itself
        ├── GuardrailBlocked    400: a guardrail said no
        ├── KeyRejected         401: unknown or malformed key
        ├── BudgetExceeded      402: money
        ├── AccessDenied        403: key blocked/expired/revoked, model or tool not allowed
        ├── RunStopped          403: this run was stopped
        └── RateLimited         429: rates only, never money
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Any

__all__ = [
    "AccessDenied",
    "AdapterError",
    "AdminError",
    "BudgetExceeded",
    "Code",
    "DeclarationError",
    "ExitCode",
    "GatewayError",
    "GatewayUnavailable",
    "GatewayUnreachable",
    "GuardrailBlocked",
    "KeyRejected",
    "KeyStoreError",
    "NemoError",
    "ProvisionError",
    "RateLimited",
    "Refused",
    "RequestRejected",
    "RunEnded",
    "RunStopped",
    "SettingsError",
    "StalePlan",
    "UpstreamFailed",
    "error_from_response",
]


class ExitCode(IntEnum):
    """What a `nemo-agents` command ends with."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    CHANGES = 3
    STOPPED = 4
    INTERRUPTED = 130


class Code(StrEnum):
    """`error.code` in every answer of the gateway's data plane that is not a success."""

    INVALID_REQUEST = "invalid_request"
    MODEL_NOT_PRICED = "model_not_priced"
    CONTENT_NOT_BOUNDABLE = "content_not_boundable"
    GUARDRAIL_BLOCKED = "guardrail_blocked"
    GUARDRAIL_NOT_FOUND = "guardrail_not_found"
    INVALID_API_KEY = "invalid_api_key"
    BUDGET_EXHAUSTED = "budget_exhausted"
    REQUEST_EXCEEDS_BUDGET = "request_exceeds_budget"
    BUDGET_HELD = "budget_held"
    KEY_BLOCKED = "key_blocked"
    KEY_EXPIRED = "key_expired"
    KEY_REVOKED = "key_revoked"
    MODEL_NOT_ALLOWED = "model_not_allowed"
    TOOL_NOT_ALLOWED = "tool_not_allowed"
    RUN_STOPPED = "run_stopped"
    NOT_FOUND = "not_found"
    MODEL_NOT_FOUND = "model_not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    REQUEST_TOO_LARGE = "request_too_large"
    MISDIRECTED_REQUEST = "misdirected_request"
    RATE_LIMIT_EXCEEDED = "rate_limit_exceeded"
    LOOP_DETECTED = "loop_detected"
    UPSTREAM_ERROR = "upstream_error"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    STORE_UNAVAILABLE = "store_unavailable"
    GUARDRAIL_UNAVAILABLE = "guardrail_unavailable"
    AUDIT_UNAVAILABLE = "audit_unavailable"
    GATEWAY_STOPPING = "gateway_stopping"
    INTERNAL_ERROR = "internal_error"


class NemoError(Exception):
    """Everything that nemo-agents raises on purpose."""


class DeclarationError(NemoError, ValueError):
    """A declaration that cannot be meant: names the file, the field, the value and what would be right."""

    def __init__(self, problem: str, *, field: str, value: object, remedy: str, file: str | None = None) -> None:
        self.problem = problem
        self.field = field
        self.value = value
        self.remedy = remedy
        self.file = file
        super().__init__(problem)

    def __str__(self) -> str:
        where = f"{self.file}: " if self.file else ""
        return f"{where}{self.field}: {self.problem} (got {self.value!r}). {self.remedy}"

    def in_file(self, file: str) -> DeclarationError:
        """Return the same error, with the name of the file it came from."""
        return DeclarationError(
            self.problem, field=self.field, value=self.value, remedy=self.remedy, file=self.file or file
        )


class ProvisionError(NemoError):
    """A plan cannot be made or performed."""


class StalePlan(ProvisionError):  # noqa: N818 - a condition, in the words of the plan
    """The gateway's keys changed after the plan was made; plan again."""


class KeyStoreError(ProvisionError):
    """The file of virtual keys cannot be read or written safely."""


class SettingsError(NemoError):
    """The gateway cannot start as configured."""


class AdapterError(NemoError):
    """A framework is not installed, or of a version that its adapter does not know."""


class RunEnded(NemoError, RuntimeError):  # noqa: N818 - a condition, in the words of a run
    """A call was made for a run that is over; nothing was sent."""


class GatewayError(NemoError):
    """The gateway answered with an error, or not at all."""


class GatewayUnreachable(GatewayError):  # noqa: N818 - reads as it is raised
    """No answer: the gateway is not running, the address is wrong, or it did not answer in time."""


class AdminError(GatewayError):
    """The admin API refused a call.

    `status` is the HTTP status, `type` the LiteLLM-style error type (`not_found_error`, `auth_error`, …).
    """

    def __init__(self, message: str, *, status: int, type: str | None = None) -> None:  # noqa: A002 - wire name
        self.status = status
        self.type = type
        super().__init__(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorFacts:
    """What a refusal says beside its message; every field is absent where the gateway did not send it."""

    status: int
    code: str | None = None
    request_id: str | None = None
    run_id: str | None = None
    scope: str | None = None
    limit: str | None = None
    retry_after_s: float | None = None
    resets_at: datetime | None = None


class _Answered(GatewayError):  # noqa: N818 - the base of refusals, never raised
    """An error answer of the data plane, with its facts as attributes."""

    def __init__(self, message: str, *, facts: ErrorFacts) -> None:
        self.message = message
        self.facts = facts
        super().__init__(message)

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.facts.status

    @property
    def code(self) -> str | None:
        """The stable code, one of `Code` where our gateway answered."""
        return self.facts.code

    @property
    def scope(self) -> str | None:
        """What the limit or budget is counted against: `run`, `key`, `role` or `fleet`."""
        return self.facts.scope

    @property
    def limit(self) -> str | None:
        """Which limit said no: `rpm`, `tpm`, `budget`, `max_calls`, …."""
        return self.facts.limit

    @property
    def retry_after_s(self) -> float | None:
        """Seconds after which the same request can succeed; None when waiting does not help."""
        return self.facts.retry_after_s

    @property
    def resets_at(self) -> datetime | None:
        """When the spent budget starts anew; None when it never does."""
        return self.facts.resets_at

    @property
    def request_id(self) -> str | None:
        """The gateway's id of this request; find it with `nemo-agents logs`."""
        return self.facts.request_id

    @property
    def run_id(self) -> str | None:
        """The run that the request belonged to."""
        return self.facts.run_id


class UpstreamFailed(_Answered):
    """502/504: every attempt at a provider failed."""


class GatewayUnavailable(_Answered):
    """503: the gateway cannot keep its promises now (store, audit or guardrail down) and sent nothing."""


class Refused(_Answered):
    """A policy no."""


class RequestRejected(Refused):
    """400/404/413: the request itself cannot be served."""


class GuardrailBlocked(Refused):
    """400: a guardrail said no before the request reached a model."""


class KeyRejected(Refused):
    """401: the virtual key is unknown or malformed."""


class BudgetExceeded(Refused):
    """402: a budget of the run, role or fleet does not allow this call."""


class AccessDenied(Refused):
    """403: the key is blocked, expired or revoked, or may not use this model or tool."""


class RunStopped(Refused):
    """403: this run was stopped by hand or has used up its calls."""


class RateLimited(Refused):
    """429: too many requests or tokens in the last minute; `retry_after_s` says when to come back."""


def error_from_response(body: object, facts: ErrorFacts) -> GatewayError:
    """Map an error answer of the data plane to the exception that stands for it.

    `body` is the decoded JSON of the answer (any shape); `facts` what headers and body say. Classification goes by
    code first, then by status, so that it holds for LiteLLM's changing statuses as well.
    """
    message = _message_of(body) or f"the gateway answered {facts.status}"
    return _class_for(facts)(message, facts=facts)


_BY_CODE: dict[str, type[_Answered]] = {
    Code.GUARDRAIL_BLOCKED: GuardrailBlocked,
    Code.RUN_STOPPED: RunStopped,
    Code.RATE_LIMIT_EXCEEDED: RateLimited,
    Code.BUDGET_EXHAUSTED: BudgetExceeded,
    Code.REQUEST_EXCEEDS_BUDGET: BudgetExceeded,
    Code.BUDGET_HELD: BudgetExceeded,
    "budget_exceeded": BudgetExceeded,  # LiteLLM's type, whatever its status
}
_BY_STATUS: dict[int, type[_Answered]] = {
    401: KeyRejected,
    402: BudgetExceeded,
    403: AccessDenied,
    429: RateLimited,
    502: UpstreamFailed,
    503: GatewayUnavailable,
    504: UpstreamFailed,
}


def _class_for(facts: ErrorFacts) -> type[_Answered]:
    if facts.code in _BY_CODE:
        return _BY_CODE[facts.code]
    if facts.status in _BY_STATUS:
        return _BY_STATUS[facts.status]
    return RequestRejected if facts.status < 500 else UpstreamFailed


def _message_of(body: object) -> str | None:
    if not isinstance(body, dict):
        return None
    error: Any = body.get("error", body)
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        return str(error["message"])
    return error if isinstance(error, str) else None
