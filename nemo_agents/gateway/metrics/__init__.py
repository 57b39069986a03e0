"""What the gateway counts while it serves, for `/metrics`: plain numbers, made into a page when somebody asks."""

from nemo_agents.gateway.metrics.counters import (
    AttemptReason,
    AttemptResult,
    CallFacts,
    CallOutcome,
    Metrics,
    result_of,
)
from nemo_agents.gateway.metrics.families import Family, Histogram, Kind, Sample

__all__ = [
    "AttemptReason",
    "AttemptResult",
    "CallFacts",
    "CallOutcome",
    "Family",
    "Histogram",
    "Kind",
    "Metrics",
    "Sample",
    "result_of",
]
