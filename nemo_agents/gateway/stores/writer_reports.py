"""What people and the SDK say about runs: reports, the stop switch, and runs that fell silent."""

from __future__ import annotations

from typing import Final

from nemo_agents.admin.wire import RunReport, StepReport, StoppedBy
from nemo_agents.errors import Code
from nemo_agents.gateway.stores.writer_books import Books
from nemo_agents.gateway.stores.writer_runs import RunRecord, StepRecord, lower, stop_json

__all__ = ["SILENT", "check_report", "give_up_silent_runs", "report_run", "stop_run"]

_STATES: Final = frozenset({"running", "ok", "failed", "stopped"})
_WITH_A_CAUSE: Final = frozenset({"failed", "stopped"})
_BY_HAND: Final = StoppedBy(
    kind="stopped", code=Code.RUN_STOPPED, scope="run", limit="stopped", message="stopped by hand"
)
_YEAR_2000_US: Final = 946_684_800_000_000
_DAY_US: Final = 24 * 3600 * 1_000_000
SILENT: Final = "state = 'running' AND reported_state = 'running' AND open_calls = 0 AND last_us < :before"
"""Which runs fell silent, as a condition on `runs`."""


def check_report(report: RunReport, *, now_us: int) -> None:
    """Raise ValueError for a report that cannot be kept.

    A time that cannot be meant (another unit, a clock far ahead) would put a run at the wrong end of every list
    for good. A day allows for clocks that go wrong by a time zone.
    """
    told: tuple[RunReport | StepReport, ...] = (report, *report.steps)
    for each in told:
        if each.state not in _STATES:
            raise ValueError(f"the state of a run or step is one of {', '.join(sorted(_STATES))}, not {each.state!r}")
        for name, at_us in (("started_us", each.started_us), ("ended_us", each.ended_us)):
            if at_us is not None and not _YEAR_2000_US <= at_us <= now_us + _DAY_US:
                of = "the run" if each is report else f"step {each.step!r}" if isinstance(each, StepReport) else ""
                raise ValueError(
                    f"`{name}` of {of} is {at_us}; it is in microseconds since 1970 (UTC), not before the year 2000 "
                    f"and at most a day after the gateway's clock ({now_us})"
                )


def report_run(books: Books, fleet: str, run_id: str, report: RunReport) -> None:
    """Insert or update what the SDK tells. Sums come from calls alone; caps are lowered and never raised."""
    run = books.find_run(fleet, run_id) or books.new_run(
        fleet=fleet, run_id=run_id, grouped=True, name=report.name, started_us=report.started_us
    )
    run.name = report.name or run.name
    run.reported_state, run.traced = report.state, 0
    run.started_us = report.started_us
    run.last_us = max(run.last_us, report.started_us, report.ended_us or 0)
    run.ended_us = report.ended_us
    run.error = report.error
    run.budget_nanos = lower(run.budget_nanos, report.budget_nanos)
    run.max_calls = lower(run.max_calls, report.max_calls)
    _report_stop(run, report)
    for told in report.steps:
        _report_step(run, told)
    books.touched(run)


def stop_run(books: Books, fleet: str | None, run_id: str, now_us: int) -> bool:
    """Refuse every further call of a run; without a fleet, of every run that has this id."""
    if fleet is None:
        rows = books.db.execute("SELECT run FROM runs WHERE run_id=?", (run_id,)).fetchall()
        found = [books.run(run) for (run,) in rows]
    else:
        one = books.find_run(fleet, run_id)
        found = [] if one is None else [one]
    for run in found:
        if run.stopped_us is None:
            run.stopped_us = now_us
            run.last_us = max(run.last_us, now_us)
            if run.stopped_by is None or run.state == "running":  # a run that goes on was not ended by a refusal
                run.stopped_by = stop_json(_BY_HAND)
        books.touched(run)
        books.changed("run", f"{run.fleet}/{run.run_id}")
    return bool(found)


def give_up_silent_runs(books: Books, before_us: int, *, fleet: str | None = None) -> int:
    """Mark runs as lost that the SDK still calls running, without an open call or a word since then.

    `fleet` None looks at those of all fleets.
    """
    rows = books.db.execute(
        f"SELECT run FROM runs WHERE {SILENT}{'' if fleet is None else ' AND fleet = :fleet'}",  # noqa: S608 - our own text
        {"before": before_us, "fleet": fleet},
    ).fetchall()
    for (number,) in rows:
        run = books.run(number)
        run.reported_state = "lost"
        run.ended_us = run.last_us
        books.touched(run)
    return len(rows)


def _report_stop(run: RunRecord, report: RunReport) -> None:
    """Note what the SDK says ended a run. A run that went on and ended well was stopped by nothing."""
    stop = report.stopped_by if report.state in _WITH_A_CAUSE else None
    if stop is not None:
        run.stopped_by, run.stop_reported = stop_json(stop), 1
    elif run.stop_reported:  # of a report that this one replaces
        run.stopped_by, run.stop_reported = stop_json(None if run.stopped_us is None else _BY_HAND), 0


def _report_step(run: RunRecord, told: StepReport) -> None:
    step: StepRecord = run.step_named(told.step, parent=told.parent, role=told.role, started_us=told.started_us)
    step.reported_state = told.state
    step.started_us = told.started_us
    step.last_us = max(step.last_us, told.started_us, told.ended_us or 0)
    step.ended_us = told.ended_us
    step.error = told.error
    step.state = step.derive_state()
