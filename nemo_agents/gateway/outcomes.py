"""How an attempt can end, and what the client is told when all of them have failed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec
from msgspec import Struct

from nemo_agents.admin import headers as h
from nemo_agents.errors import Code
from nemo_agents.gateway.ports import ProviderResponse, UpstreamError
from nemo_agents.gateway.upstream import read_all
from nemo_agents.policy.failover import Fault
from nemo_agents.policy.faults import FaultKind, kind_of_refusal
from nemo_agents.policy.refusal import Refusal, Tried
from nemo_agents.policy.routing import Target
from nemo_agents.policy.settlement import is_own_error
from nemo_agents.policy.usage import Usage

__all__ = ["NOT_JSON", "Answered", "Failure", "final_refusal", "read_failure"]

NOT_JSON = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)
_MAX_ERROR_BYTES = 256 * 1024
# A provider's own refusal of the request itself: the client's to mend, so it is passed on as it came.
_CLIENTS_FAULT = frozenset({400, 404, 409, 413, 415, 422})


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An attempt that gave no answer."""

    status: int | None
    message: str
    sent: bool
    timed_out: bool = False
    retry_after_ms: int | None = None
    kind: FaultKind | None = None  # what a provider's own 400 was about
    body: bytes | None = None  # the provider's own words, where they are the client's to read
    own_error: bool = False  # the provider itself said so, and not something in between
    refusal: Refusal | None = None  # why nothing was sent, where that is ours to say

    @property
    def fault(self) -> Fault:
        """What decides on the next attempt."""
        return Fault(
            status=self.status,
            kind=self.kind,
            timed_out=self.timed_out,
            retry_after_ms=self.retry_after_ms,
            sent=self.sent,
        )


class Answered(Struct, frozen=True, kw_only=True):
    """An attempt that was answered, wholly or until the stream broke.

    `usage` is of the whole answer, None where nobody knows it; `told` is then what it had said so far, if anything.
    `forbidden` is a call in it of a tool that the role may not use: the client does not get it, and it is billed.
    """

    usage: Usage | None
    answer: object
    finish_reason: str | None
    ttft_us: int | None
    state: Literal["ok", "failed", "abandoned"] = "ok"
    status: int = 200
    code: str | None = None
    error: str | None = None
    told: Usage | None = None
    counted_nanos: int | None = None  # what was counted of an answer that was cut because it had cost all it may
    forbidden: str | None = None


async def read_failure(response: ProviderResponse) -> Failure:
    """Read what a provider said beside a status that is no answer, and let go of the connection."""
    try:
        raw = await read_all(response, _MAX_ERROR_BYTES)
    except UpstreamError:
        raw = b""
    finally:
        await response.aclose()
    try:
        decoded = msgspec.json.decode(raw)
    except NOT_JSON:
        decoded = None
    keep = isinstance(decoded, dict) and response.status in _CLIENTS_FAULT
    return Failure(
        status=response.status,
        message=f"the provider answered {response.status}: {_said(decoded)}",
        sent=True,
        retry_after_ms=_retry_after_ms(response.headers),
        kind=kind_of_refusal(response.status, decoded),
        body=raw if keep else None,
        own_error=is_own_error(decoded),
    )


def _said(decoded: object) -> str:
    error = decoded.get("error", decoded) if isinstance(decoded, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return str(message)[:500] if message else "no message"


def _retry_after_ms(headers: Mapping[str, str]) -> int | None:
    """Read a provider's own `retry-after-ms` or `retry-after` in seconds (RFC 9110); dates are not honoured."""
    for name, factor in ((h.RETRY_AFTER_MS, 1), (h.RETRY_AFTER, 1000)):
        text = headers.get(name, "")
        if text.isascii() and text.isdigit() and len(text) <= 8:
            return int(text) * factor
    return None


def final_refusal(last: Failure, target: Target, attempts: tuple[Tried, ...]) -> Refusal:
    """Return what the client is told after the last attempt. A provider's own limit stays a 429, to be waited out."""
    tried = f" after {len(attempts)} attempts" if len(attempts) > 1 else ""
    where = f"{target.provider}/{target.model}"
    if last.status == 429:
        return Refusal(
            status=429,
            code=Code.RATE_LIMIT_EXCEEDED,
            message=f"The provider's own limit stopped {where}{tried}: {last.message}.",
            scope="provider",
            limit="provider",
            retry_after_ms=last.retry_after_ms,
            attempts=attempts,
        )
    if last.body is not None and last.status is not None:
        return Refusal(
            status=last.status, code=Code.INVALID_REQUEST, message=last.message, scope="provider", attempts=attempts
        )
    if last.timed_out:
        message = f"{where} did not answer in time{tried}: {last.message}."
        return Refusal(status=504, code=Code.UPSTREAM_TIMEOUT, message=message, attempts=attempts)
    message = f"{where} failed{tried}: {last.message}."
    return Refusal(status=502, code=Code.UPSTREAM_ERROR, message=message, attempts=attempts)
