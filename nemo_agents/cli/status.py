"""`status`: every budget and limit of a fleet and its roles, for a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nemo_agents.cli.connect import admin_client, gateway_options
from nemo_agents.cli.output import console, one_line, print_json, print_wrapped, state_text
from nemo_agents.cli.table import Column, print_table
from nemo_agents.errors import NemoError
from nemo_agents.money import format_nanos

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from nemo_agents.admin.wire import BudgetStatus, FleetStatus, RoleStatus

__all__ = ["print_status", "status"]

_BAR_CELLS = 10
_EIGHTHS = " ▏▎▍▌▋▊▉"
_Row = tuple["str | Text", ...]


@click.command()
@click.argument("fleet", required=False)
@gateway_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(fleet: str | None, gateway_url: str | None, home: Path | None, *, as_json: bool) -> None:
    """Show spend against every budget, rates and last use of every role, and spend spikes."""
    from nemo_agents.admin import observe

    with admin_client(gateway_url, home) as client:
        fleets = client.run(observe.status(fleet))
    if as_json:
        print_json(fleets)
        return
    if fleet is not None and not fleets:
        raise NemoError(f"the gateway has no fleet {fleet}. `nemo-agents status` lists those it has.")
    if not fleets:
        click.echo("No fleet is provisioned here yet. Next: nemo-agents provision fleet.py")
    to = console()
    for number, one in enumerate(fleets):
        if number:
            to.print()
        print_status(to, one)


_COLUMNS = (
    Column(title="role", shrink_to=16),
    Column(title="state"),
    Column(title="spend", shrink_to=_BAR_CELLS),
    Column(title=""),
    Column(title="used", right=True),
    Column(title="resets", right=True, drop=2),
    Column(title="rpm", right=True),
    Column(title="tpm", right=True),
    Column(title="last used", drop=1),
    Column(title="models", shrink_to=12, drop=3),
    Column(title="guardrails", shrink_to=16, drop=4),
)


def print_status(to: Console, fleet: FleetStatus) -> None:
    """Print one fleet and its roles."""
    now_us = time.time_ns() // 1000
    for line in _fleet_lines(fleet, now_us):
        to.print(line, soft_wrap=True)
    print_table(to, _COLUMNS, [row for role in fleet.roles for row in _role_rows(role, now_us)])
    for role in fleet.roles:
        if role.spike is not None:
            spent, usual = format_nanos(role.spike.hour_nanos), format_nanos(role.spike.usual_nanos)
            what = f"▲ {one_line(role.role)}: spike {role.spike.factor:g}x: {spent} in the last hour, usually {usual}"
            print_wrapped(to, what, indent=2, style="yellow")


def _fleet_lines(fleet: FleetStatus, now_us: int) -> Iterator[Text]:
    """Yield the head of a fleet with its first budget, then a line for each further budget, then its rates."""
    from rich.text import Text

    name = one_line(fleet.fleet or "keys without a fleet")
    first = Text(name, style="bold")
    if not fleet.budgets:
        yield first.append(f"  {_spent(fleet.spent_nanos, fleet.held_nanos)}, no budget", style="not bold")
    for number, budget in enumerate(fleet.budgets):
        line = Text(" " * len(name)) if number else first
        line.append("  ").append_text(_bar_of(budget))
        facts = [_budget(budget), _share(budget)]
        if budget.resets_at_us is not None:
            facts.append(f"resets {_resets(budget, now_us)}")
        yield line.append(f"  {' · '.join(facts)}", style="not bold")
    if fleet.rpm is not None or fleet.tpm is not None:
        rpm = f"rpm {_used(fleet.rpm_used, fleet.rpm, shadow='rpm' in fleet.shadow)}"
        tpm = f"tpm {_used(fleet.tpm_used, fleet.tpm, shadow='tpm' in fleet.shadow)}"
        yield Text(f"{'':{len(name)}}  {rpm} · {tpm}", style="dim")


def _role_rows(role: RoleStatus, now_us: int) -> Iterator[_Row]:
    """Yield the row of a role, then one for each further budget and each model with rates of its own."""
    from nemo_agents.viewer.text import age

    spend = [(_bar_of(budget), _budget(budget), _share(budget), _resets(budget, now_us)) for budget in role.budgets]
    nothing = (_bar(0, None), f"{_spent(role.spent_nanos, role.held_nanos)}, no budget", "-", "-")
    yield (
        one_line(role.role),
        state_text(role.state),
        *(spend[0] if spend else nothing),
        _used(role.rpm_used, role.rpm, shadow="rpm" in role.shadow),
        _used(role.tpm_used, role.tpm, shadow="tpm" in role.shadow),
        age(role.last_used_us, now_us) if role.last_used_us else "never",
        one_line(", ".join(role.models)) or "any",
        one_line(", ".join(role.guardrails)) or "-",
    )
    for further in spend[1:]:
        yield ("", "", *further, "", "", "", "", "")
    for rates in role.model_rates:
        rpm = _used(rates.rpm_used, rates.rpm, shadow="rpm" in role.shadow)
        tpm = _used(rates.tpm_used, rates.tpm, shadow="tpm" in role.shadow)
        yield ("", "", "", f"of it {one_line(rates.model)}", "", "", rpm, tpm, "", "", "")


def _bar_of(budget: BudgetStatus) -> Text:
    return _bar(budget.spent_nanos + budget.held_nanos, budget.amount_nanos, refuses=budget.mode == "enforce")


def _bar(used: int, limit: int | None, *, refuses: bool = True) -> Text:
    """Draw a share in eighths of a cell, rounded down: a bar that looks full is full."""
    from rich.text import Text

    if not limit:
        return Text(" " * _BAR_CELLS if limit is None else "█" * _BAR_CELLS)
    eighths = min(_BAR_CELLS * 8, used * _BAR_CELLS * 8 // limit)
    full, rest = divmod(eighths, 8)
    colour = ("red" if refuses else "yellow") if eighths == _BAR_CELLS * 8 else "green"
    bar = Text("█" * full + (_EIGHTHS[rest] if rest else ""), style=colour)
    return bar.append("░" * (_BAR_CELLS - bar.cell_len), style="dim")


def _budget(budget: BudgetStatus) -> str:
    shadow = " shadow" if budget.mode == "shadow" else ""
    spent = _spent(budget.spent_nanos, budget.held_nanos)
    return f"{spent} of {format_nanos(budget.amount_nanos)}/{one_line(budget.name)}{shadow}"


def _spent(spent: int, held: int) -> str:
    return format_nanos(spent) + (f" (+{format_nanos(held)} held)" if held else "")


def _share(budget: BudgetStatus) -> str:
    from nemo_agents.viewer.text import percent

    return percent(budget.spent_nanos, budget.amount_nanos)


def _resets(budget: BudgetStatus, now_us: int) -> str:
    from nemo_agents.viewer.text import until

    return until(budget.resets_at_us, now_us)


def _used(used: int, limit: int | None, *, shadow: bool = False) -> str:
    from nemo_agents.viewer.text import count

    if limit is None:
        return count(used)
    return f"{count(used)}/{count(limit)}" + (" shadow" if shadow else "")
