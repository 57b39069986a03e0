"""What a run needs from outside."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from nemo_agents.admin.wire import RunReport, RunRow, Why
from nemo_agents.trace.member import Member
from nemo_agents.trace.otlp import SpanRecord

__all__ = ["REPORT_TIMEOUT_S", "AsyncReporter", "AsyncWhyReader", "Reporter", "Rim", "SpanSender", "WhyReader"]

REPORT_TIMEOUT_S: Final = 2.0

Reporter = Callable[[str, RunReport], RunRow]
AsyncReporter = Callable[[str, RunReport], Awaitable[RunRow]]
WhyReader = Callable[[str], Why]
AsyncWhyReader = Callable[[str], Awaitable[Why]]
SpanSender = Callable[[str, Sequence[SpanRecord]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rim:
    """What a run needs from outside: its gateway, its fleet's members, a clock, ids, and ways to report.

    `clock_us` gives microseconds since the epoch (UTC), `new_span_id` 16 hex digits. The reporters tell the
    gateway about the run by its id and return its row, `send_spans` blocks while it sends some of the run's spans;
    whatever they raise stays inside the run. The readers of `why` ask how the run with an id ended; what they raise is
    their caller's.
    """

    gateway_url: str
    member: Callable[[str], Member]
    report: Reporter
    areport: AsyncReporter
    why: WhyReader
    awhy: AsyncWhyReader
    send_spans: SpanSender
    clock_us: Callable[[], int]
    new_span_id: Callable[[], str]
