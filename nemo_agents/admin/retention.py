"""How long the log is kept: `/nemo/runs/prune` and `/nemo/log`."""

from __future__ import annotations

from nemo_agents.admin.calls import Call, as_type
from nemo_agents.admin.wire import LogSize, Pruned

__all__ = ["log_size", "prune"]


def prune(
    *, older_than_s: int, contents_only: bool = False, vacuum: bool = False, dry_run: bool = False
) -> Call[Pruned]:
    """Delete runs that were over so long ago, or only what was said in them; ask again while it is not `done`.

    `vacuum` then gives what is free back to the machine; `dry_run` only counts.
    """
    body = {"older_than_s": older_than_s, "contents_only": contents_only, "vacuum": vacuum, "dry_run": dry_run}
    return Call(method="POST", path="/nemo/runs/prune", body=body, decode=as_type(Pruned))


def log_size() -> Call[LogSize]:
    """Read how large the log is, and how long it is kept."""
    return Call(method="GET", path="/nemo/log", decode=as_type(LogSize))
