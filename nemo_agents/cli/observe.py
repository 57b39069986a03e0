"""`runs`, `logs`, `view`: what the gateway knows, for a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nemo_agents.cli.connect import admin_client, gateway_options
from nemo_agents.cli.finding import find_run, read_contents
from nemo_agents.cli.output import console, one_line, print_json, safe_json, state_text
from nemo_agents.cli.run_export import export_run
from nemo_agents.cli.run_prompt import prompt_run
from nemo_agents.cli.run_prune import prune_runs
from nemo_agents.cli.run_why import why_run
from nemo_agents.cli.table import Column, print_table
from nemo_agents.errors import ExitCode
from nemo_agents.money import format_nanos
from nemo_agents.policy.periods import span_seconds

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from nemo_agents.admin.wire import CallRow, RunRow

__all__ = ["logs", "runs", "view"]

_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


# click 8.2, which is in the range, has no generic ParamType yet.
class _Since(click.ParamType):  # type: ignore[type-arg]
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        seconds = span_seconds(str(value))
        if seconds is None:
            self.fail("write it like 30m, 24h or 7d", param, ctx)
        return max(0, time.time_ns() // 1000 - seconds * 1_000_000)


@click.group()
def runs() -> None:
    """Read runs: what happened, which step, which model, which prompt, what it cost, what stopped it."""


runs.add_command(prune_runs)


@runs.command("list")
@click.option("--fleet", help="Only this fleet.")
@click.option("--role", help="Only runs in which this role made a call.")
@click.option("--model", help="Only runs that asked for or were served by this model.")
@click.option(
    "--state", type=click.Choice(["running", "ok", "recovered", "failed", "stopped", "lost"]), help="Only this state."
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


_RUN_COLUMNS = (
    Column(title="run"),
    Column(title="state"),
    Column(title="name", shrink_to=20),
    Column(title="cost", right=True),
    Column(title="calls", right=True),
    Column(title="errors", right=True, drop=3),
    Column(title="tokens", right=True, drop=2),
    Column(title="took", right=True, drop=1),
    Column(title="age", right=True),
    Column(title="stopped by", shrink_to=12),
)


def _print_runs(found: list[RunRow]) -> None:
    from nemo_agents.viewer import text
    from nemo_agents.viewer.verdict import name_of

    if not found:
        click.echo("No runs yet.")
        return
    now_us = time.time_ns() // 1000
    rows = [
        (
            text.short_id(run.run_id),
            state_text(run.state),
            one_line(name_of(run)),
            _cost(run.cost_nanos, run.budget_nanos),
            str(run.calls),
            str(run.errors) if run.errors else "-",
            text.count(run.input_tokens + run.output_tokens),
            text.duration(run.ended_us - run.started_us) if run.ended_us else "-",
            text.age(run.started_us, now_us),
            one_line(_stopped_by(run)),
        )
        for run in found
    ]
    print_table(console(), _RUN_COLUMNS, rows)


def _cost(cost_nanos: int, budget_nanos: int | None) -> str:
    return format_nanos(cost_nanos) + (f" / {format_nanos(budget_nanos)}" if budget_nanos is not None else "")


def _stopped_by(run: RunRow) -> str:
    if run.stopped_by is None:
        return "-"
    return " ".join(part for part in (run.stopped_by.scope, run.stopped_by.limit or run.stopped_by.kind) if part)


@runs.command("show")
@click.argument("run_id", default="last")
@click.option("--prompts", is_flag=True, help="Also print what each call and span said.")
@gateway_options
@_as_json
def show_run(run_id: str, gateway_url: str | None, home: Path | None, *, prompts: bool, as_json: bool) -> None:
    """Show one run as a tree: by id, by its first characters, or the last one."""
    from nemo_agents.cli.tree import print_run

    with admin_client(gateway_url, home) as client:
        detail = find_run(client, run_id)
        contents = read_contents(client, [call.request_id for call in detail.calls]) if prompts else None
    if as_json:
        print_json(detail if contents is None else {"run": detail, "contents": list(contents.values())})
        return
    print_run(console(), detail, contents)


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

    to = console()
    printed: set[str] = set()
    with admin_client(gateway_url, home) as client:
        since_us = time.time_ns() // 1000
        first = True
        while True:
            page = client.run(observe.logs(**where, since_us=since_us - _LONGEST_CALL_US, limit=500))  # type: ignore[arg-type]
            if first:  # only now: a gateway that cannot be reached has said so before
                click.echo("Waiting for calls; Ctrl-C ends this.", err=True)
                first = False
            for call in reversed(page.calls):
                ended_us = call.started_us + (call.latency_us or 0)
                if call.state == "open" or ended_us < since_us or call.request_id in printed:
                    continue
                printed.add(call.request_id)
                _print_ended(to, call, as_json=as_json)
            sys.stdout.flush()
            time.sleep(interval)


_LONGEST_CALL_US = 3_600_000_000


def _print_ended(to: Console, call: CallRow, *, as_json: bool) -> None:
    if as_json:
        import msgspec

        click.echo(safe_json(msgspec.json.encode(call).decode()))
        return
    from rich.text import Text

    from nemo_agents.cli.tree import call_text
    from nemo_agents.viewer.text import clock, short_id

    run = short_id(call.run_id) if call.run_id != call.request_id else "-"
    role = one_line(call.role or call.key_alias or "-")
    line = Text(f"{clock(call.started_us)[-8:]}  {run:8}  ", style="dim")
    line.append(f"{role}  {one_line(call.step or '-')}  ", style="not dim")
    to.print(line.append_text(call_text(call)), soft_wrap=True)


@runs.command("stop")
@click.argument("run_id")
@gateway_options
def stop_run(run_id: str, gateway_url: str | None, home: Path | None) -> None:
    """Refuse every further call of a run, and cut its streams."""
    from nemo_agents.admin import observe

    with admin_client(gateway_url, home) as client:
        found = find_run(client, run_id).run
        client.run(observe.stop(found.run_id))
    click.echo(f"Stopped {found.run_id}: further calls are refused with 403 run_stopped.")


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
            where["run_id"] = find_run(client, where["run_id"]).run.run_id
        page = client.run(observe.logs(**where))
    if as_json:
        print_json(page.calls)
        return
    if not page.calls:
        click.echo("No calls match.")
        return
    to = console()
    print_table(to, _CALL_COLUMNS, _call_rows(page.calls, short=to.is_terminal))


_CALL_COLUMNS = (
    Column(title="UTC"),
    Column(title="role", shrink_to=8),
    Column(title="run", drop=1),
    Column(title="step", shrink_to=10, drop=4),
    Column(title="model", shrink_to=10),
    Column(title="served by", shrink_to=14, drop=5),
    Column(title="status"),
    Column(title="code", shrink_to=10),
    Column(title="in", right=True, drop=2),
    Column(title="out", right=True, drop=3),
    Column(title="cost", right=True),
    Column(title="took", right=True),
    Column(title="first token", right=True, drop=7),
    Column(title="request", drop=6),
)


def _call_rows(calls: Sequence[CallRow], *, short: bool) -> list[tuple[str | Text, ...]]:
    """Return table rows; `short` leaves out what is the same in all and the tail of ids, for eyes alone."""
    from rich.text import Text

    from nemo_agents.cli.output import STATE_STYLES
    from nemo_agents.cli.tree import served_by
    from nemo_agents.viewer import text
    from nemo_agents.viewer.shadows import shadow_names

    stamps = [text.clock(call.started_us) for call in calls]
    same_day = short and len({stamp.partition(" ")[0] for stamp in (*stamps, text.clock(time.time_ns() // 1000))}) == 1
    return [
        (
            stamp.partition(" ")[2] if same_day else stamp,
            one_line(call.role or call.key_alias or "-"),
            text.short_id(call.run_id) if call.run_id != call.request_id else "-",
            one_line(call.step or "-"),
            one_line(call.model_asked or call.endpoint),
            one_line(served_by(call) or "-"),
            Text(str(call.status or "-"), style=STATE_STYLES.get(call.state, "")),
            one_line(call.code or (f"◌ {shadow_names(call)}" if call.shadow else "-")),
            text.count(call.input_tokens),
            text.count(call.output_tokens),
            text.cost(call.cost_nanos),
            text.duration(call.latency_us),
            text.duration(call.ttft_us),
            call.request_id[:12] if short else call.request_id,
        )
        for call, stamp in zip(calls, stamps, strict=True)
    ]


@click.command()
@click.argument("run_id", required=False)
@click.option("--print", "only_print", is_flag=True, help="Print the address instead of opening a browser.")
@gateway_options
def view(run_id: str | None, gateway_url: str | None, home: Path | None, *, only_print: bool) -> int:
    """Open the run viewer in the browser; the printed address signs you in, so keep it to yourself.

    The address holds the viewer's read token. It works until the token is replaced: stop the gateway, remove
    `viewer.token` from its home, start it again.
    """
    return _open(run_id, gateway_url, home, only_print=only_print)


@click.command("open")
@click.argument("run_id", default="last")
@click.option("--print", "only_print", is_flag=True, help="Print the address instead of opening a browser.")
@gateway_options
def open_run(run_id: str, gateway_url: str | None, home: Path | None, *, only_print: bool) -> int:
    """Open the page of one run in the browser; see `view` about the address."""
    return _open(run_id, gateway_url, home, only_print=only_print)


def _open(run_id: str | None, gateway_url: str | None, home: Path | None, *, only_print: bool) -> int:
    from nemo_agents.admin import observe

    with admin_client(gateway_url, home) as client:
        path = f"/runs/{find_run(client, run_id).run.run_id}" if run_id else "/runs"
        url = client.run(observe.viewer_link(path))
    click.echo(url)
    if not only_print and click.launch(url) != 0:
        click.echo("No browser could be opened here; open the address above.", err=True)
    return ExitCode.OK


for _command in (why_run, prompt_run, export_run, open_run):
    runs.add_command(_command)
