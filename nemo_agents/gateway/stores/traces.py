"""Under which text the trace of a run is kept."""

from __future__ import annotations

from nemo_agents.trace.propagate import trace_id_of

__all__ = ["trace_key"]


def trace_key(fleet: str, run_id: str, trace_id: str | None = None) -> str:
    """Return what a run is found by when a span names its trace alone.

    That is the trace that its calls name, else the one that the SDK derives from the run's id. A run without a fleet
    has its grant before its id (see `policy.grouping.own_run`), and before its trace as well: nobody else finds it.
    """
    owner, dot, told = ("", "", run_id) if fleet or "." not in run_id else run_id.partition(".")
    return f"{owner}{dot}{trace_id or trace_id_of(told)}"
