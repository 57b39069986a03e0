"""`status`, `runs`, `logs`, `view`: what the gateway knows, for a terminal."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nemo_agents.cli.connect import admin_client, gateway_options
from nemo_agents.cli.output import console, print_json, print_table, state_text
from nemo_agents.errors import ExitCode
from nemo_agents.money import format_nanos

if TYPE_CHECKING:
    from rich.text import Text

    from nemo_agents.admin.wire import CallRow, FleetStatus, RoleStatus, RunRow

__all__ = ["logs", "print_status", "runs", "status", "view"]

_SINCE = re.compile(r"([1-9][0-9]{0,4})(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_BAR_CELLS = 12
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


class _Since(click.ParamType[int]):
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = _SINCE.fullmatch(str(value))
        if match is None:
            self.fail("write it like 30m, 24h or 7d", param, ctx)
        return time.time_ns() // 1000 - int(match[1]) * _SECONDS[match[2]] * 1_000_000


@click.command()
@click.argument("fleet", required=False)
@gateway_options
@_as_json
def status(fleet: str | None, gateway_url: str | None, home: Path | None, *, as_json: bool) -> None:
    """Show spend against budget, limits and last use of every role."""
    from nemo_agents.admin import observe

    with admin_client(gateway_url, home) as client:
        fleets = client.run(observe.status(fleet))
    if as_json:
        print_json(fleets)
        return
    if not fleets:
        click.echo("No fleet is provisioned here yet. Next: nemo-agents provision fleet.py")
    for one in fleets:
        print_status(one)


def print_status(fleet: FleetStatus) -> None:
    """Print one fleet and its roles."""
    from nemo_agents.viewer.text import age

    now_us = time.time_ns() // 1000
    title = fleet.fleet or "keys without a fleet"
    spent = _spent(fleet.spent_nanos, fleet.held_nanos, fleet.budget_nanos, fleet.period)
    console().print(f"{title}  {_bar(fleet.spent_nanos + fleet.held_nanos, fleet.budget_nanos)} {spent}")
    print_table(
        ("role", "state", "spend", "", "rpm", "tpm", "last used", "models", "guardrails"),
        [_status_row(role, age(role.last_used_us, now_us) if role.last_used_us else "never") for role in fleet.roles],
        right=("rpm", "tpm"),
    )


def _status_row(role: RoleStatus, last_used: str) -> tuple[str | Text, ...]:
    return (
        role.role,
        state_text(role.state),
        _bar(role.spent_nanos + role.held_nanos, role.budget_nanos),
        _spent(role.spent_nanos, role.held_nanos, role.budget_nanos, role.period),
        _used(role.rpm_used, role.rpm),
        _used(role.tpm_used, role.tpm),
        last_used,
        ", ".join(role.models) or "any",
        ", ".join(role.guardrails) or "-",
    )


def _bar(used: int, limit: int | None) -> str:
    if not limit:
        return " " * _BAR_CELLS
    full = min(_BAR_CELLS, -(-used * _BAR_CELLS // limit))
    return "█" * full + "░" * (_BAR_CELLS - full)


def _spent(spent: int, held: int, budget: int | None, period: str | None) -> str:
    text = format_nanos(spent)
    if held:
        text += f" (+{format_nanos(held)} held)"
    return f"{text} of {format_nanos(budget)}/{period}" if budget is not None else f"{text}, no budget"


def _used(used: int, limit: int | None) -> str:
    return f"{used:,}/{limit:,}" if limit is not None else f"{used:,}"


@click.group()
def runs() -> None:
    """Read runs: what happened, which step, which model, which prompt, what it cost, what stopped it."""


@runs.command("list")
@click.option("--fleet", help="Only this fleet.")
@click.option("--role", help="Only runs in which this role made a call.")
@click.option("--model", help="Only runs that asked for or were served by this model.")
@click.option(
    "--state", type=click.Choice(["running", "ok", "recovered", "failed", "stopped"]), help="Only this state."
)
@click.option("--since", "since_us", type=_Since(), help="Only runs newer than this, such as 24h.")
@click.option("--limit", type=click.IntRange(1, 500), default=30, show_default=True, help="How many at most.")
@click.option("--all", "everything", is_flag=True, help="Also calls that belong to no run.")
@gateway_options
@_as_json
def list_runs(
    gateway_url: str | None, home: Path | None, *, limit: int, everything: bool, as_json: bool, **where: Any
) -> None:
    """List runs, newest first."""
    from nemo_agents.admin import observe

    found: list[RunRow] = []
    before: str | None = None
    with admin_client(gateway_url, home) as client:
        while len(found) < limit:
            page = client.run(observe.runs(**where, before=before, limit=min(500, limit * 2)))
            found += [run for run in page.runs if everything or run.grouped]
            before = page.next
            if before is None:
                break
    found = found[:limit]
    if as_json:
        print_json(found)
        return
    _print_runs(found)


def _print_runs(found: list[RunRow]) -> None:
    from nemo_agents.viewer import text
    from nemo_agents.viewer.verdict import name_of

    if not found:
        click.echo("No runs yet.")
        return
    now_us = time.time_ns() // 1000
    print_table(
        ("run", "state", "name", "cost", "calls", "errors", "tokens", "took", "age", "stopped by"),
        [
            (
                run.run_id[:8] if run.grouped else run.run_id,
                state_text(run.state),
                text.visible(text.shorten(name_of(run), 48)),
                _cost(run.cost_nanos, run.budget_nanos),
                str(run.calls),
                str(run.errors) if run.errors else "-",
                text.count(run.input_tokens + run.output_tokens),
                text.duration(run.ended_us - run.started_us) if run.ended_us else "-",
                text.age(run.started_us, now_us),
                _stopped_by(run),
            )
            for run in found
        ],
        right=("cost", "calls", "errors", "tokens", "took", "age"),
    )


def _cost(cost_nanos: int, budget_nanos: int | None) -> str:
    return format_nanos(cost_nanos) + (f" / {format_nanos(budget_nanos)}" if budget_nanos is not None else "")


def _stopped_by(run: RunRow) -> str:
    if run.stopped_by is None:
        return "-"
    return " ".join(part for part in (run.stopped_by.scope, run.stopped_by.limit or run.stopped_by.kind) if part)


@runs.command("show")
@click.argument("run_id", default="last")
@click.option("--prompts", is_flag=True, help="Also print what each call said.")
@gateway_options
@_as_json
def show_run(run_id: str, gateway_url: str | None, home: Path | None, *, prompts: bool, as_json: bool) -> None:
    """Show one run as a tree: by id, by its first characters, or the last one."""
    from nemo_agents.admin import observe
    from nemo_agents.cli.tree import print_run

    with admin_client(gateway_url, home) as client:
        detail = client.run(observe.run(run_id))
        contents = [client.run(observe.content(call.request_id)) for call in detail.calls] if prompts else []
    if as_json:
        print_json({"run": detail, "contents": contents} if prompts else detail)
        return
    print_run(detail, {content.request_id: content for content in contents})


@runs.command("tail")
@click.option(
    "--interval", type=click.FloatRange(min=0.1), default=0.5, show_default=True, help="Seconds between looks."
)
@click.option("--fleet", help="Only this fleet.")
@click.option("--role", help="Only this role.")
@gateway_options
@_as_json
def tail_runs(
    gateway_url: str | None, home: Path | None, *, interval: float, as_json: bool, **where: str | None
) -> None:
    """Print each call as it ends, until interrupted."""
    from nemo_agents.admin import observe

    printed: dict[str, None] = {}
    with admin_client(gateway_url, home) as client:
        since_us = time.time_ns() // 1000
        while True:
            page = client.run(observe.logs(**where, since_us=since_us - 3_600_000_000, limit=500))  # type: ignore[arg-type]
            for call in reversed(page.calls):
                ended_us = call.started_us + (call.latency_us or 0)
                if call.state == "open" or ended_us < since_us or call.request_id in printed:
                    continue
                printed[call.request_id] = None
                if as_json:
                    import msgspec

                    click.echo(msgspec.json.encode(call))
                else:
                    click.echo("  ".join(str(cell) for cell in _call_row(call)))
                sys.stdout.flush()
            time.sleep(interval)


@runs.command("stop")
@click.argument("run_id")
@gateway_options
def stop_run(run_id: str, gateway_url: str | None, home: Path | None) -> None:
    """Refuse every further call of a run, and cut its streams."""
    from nemo_agents.admin import observe

    with admin_client(gateway_url, home) as client:
        client.run(observe.stop(run_id))
    click.echo(f"stopped {run_id}")


@click.command()
@click.option("--fleet", help="Only this fleet.")
@click.option("--role", help="Only this role.")
@click.option("--model", help="Only this model, asked or served.")
@click.option("--status", type=int, help="Only this HTTP status.")
@click.option("--code", help="Only this error code, such as budget_exhausted.")
@click.option("--run", "run_id", help="Only this run.")
@click.option("--since", "since_us", type=_Since(), help="Only calls newer than this, such as 30m.")
@click.option("--limit", type=click.IntRange(1, 500), default=50, show_default=True, help="How many at most.")
@gateway_options
@_as_json
def logs(gateway_url: str | None, home: Path | None, *, as_json: bool, **where: Any) -> None:
    """Read the request log, newest first."""
    from nemo_agents.admin import observe

    with admin_client(gateway_url, home) as client:
        if where["run_id"] is not None:
            where["run_id"] = client.run(observe.run(where["run_id"])).run.run_id
        page = client.run(observe.logs(**where))
    if as_json:
        print_json(page.calls)
        return
    if not page.calls:
        click.echo("No calls match.")
        return
    right = ("status", "in", "out", "cost", "took", "first token")
    print_table(_CALL_COLUMNS, [_call_row(call) for call in page.calls], right=right)


_CALL_COLUMNS = (
    "time",
    "role",
    "run",
    "step",
    "model",
    "provider",
    "status",
    "code",
    "in",
    "out",
    "cost",
    "took",
    "first token",
    "request",
)


def _call_row(call: CallRow) -> tuple[str | Text, ...]:
    from nemo_agents.viewer import text

    model = text.visible(call.model_asked or "-")
    if call.model_served and call.model_served not in (model, f"{call.provider}/{model}"):
        model += f" → {text.visible(call.model_served)}"
    return (
        text.clock(call.started_us),
        call.role or call.key_alias or "-",
        call.run_id[:8] if call.run_id != call.request_id else "-",
        text.visible(call.step or "-"),
        model,
        call.provider or "-",
        str(call.status or "-"),
        call.code or "-",
        text.count(call.input_tokens),
        text.count(call.output_tokens),
        text.cost(call.cost_nanos),
        text.duration(call.latency_us),
        text.duration(call.ttft_us),
        call.request_id,
    )


@click.command()
@click.argument("run_id", required=False)
@click.option("--print", "only_print", is_flag=True, help="Print the address instead of opening a browser.")
@gateway_options
def view(run_id: str | None, gateway_url: str | None, home: Path | None, *, only_print: bool) -> int:
    """Open the run viewer in the browser; the printed address signs in once, so keep it to yourself."""
    from nemo_agents.admin import observe

    with admin_client(gateway_url, home) as client:
        path = f"/runs/{client.run(observe.run(run_id)).run.run_id}" if run_id else "/runs"
        url = client.run(observe.viewer_link(path))
    click.echo(url)
    if not only_print and click.launch(url) != 0:
        click.echo("No browser could be opened here; open the address above.", err=True)
    return ExitCode.OK
