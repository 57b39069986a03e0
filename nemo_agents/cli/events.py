"""`events`: what alerts have told, and tell."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nemo_agents.cli.connect import admin_client, gateway_options
from nemo_agents.cli.output import console, one_line, print_json, print_wrapped, safe_json
from nemo_agents.errors import AdminError, GatewayUnreachable, NemoError

if TYPE_CHECKING:
    from rich.console import Console

    from nemo_agents.admin.wire import EventPage, EventRow
    from nemo_agents.client import Client

__all__ = ["events"]

_INDENT = 16  # where the message of an event begins that does not fit its line
_PAGE = 500
_AWAY_S = 2.0  # between tries while the gateway does not answer


@click.command()
@click.option("--follow", "-f", is_flag=True, help="Wait for more, until interrupted.")
@click.option("--fleet", help="Only this fleet.")
@click.option("--limit", type=click.IntRange(1, 500), default=50, show_default=True, help="How many at first.")
@click.option(
    "--interval", type=click.FloatRange(min=0.1), default=1.0, show_default=True, help="Seconds between looks."
)
@gateway_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON; with --follow one event a line.")
def events(
    fleet: str | None,
    limit: int,
    interval: float,
    gateway_url: str | None,
    home: Path | None,
    *,
    follow: bool,
    as_json: bool,
) -> None:
    """Read alerts, oldest first: budgets at their thresholds, spend spikes, overruns."""
    from nemo_agents.admin import observe
    from nemo_agents.admin.events import events as read

    to = console()
    with admin_client(gateway_url, home) as client:
        page = client.run(read(limit=limit, fleet=fleet))
        if fleet is not None and not page.events and not client.run(observe.status(fleet)):
            raise NemoError(f"the gateway has no fleet {fleet}. `nemo-agents status` lists those it has.")
        if not follow:
            if as_json:
                print_json(page.events)
            elif not page.events:
                click.echo("No alerts yet.")
            else:
                _print(to, page.events, as_json=False)
            return
        click.echo("Waiting for alerts; Ctrl-C ends this.", err=True)
        while True:
            _print(to, page.events, as_json=as_json)
            sys.stdout.flush()
            if len(page.events) < _PAGE:
                time.sleep(interval)
            page = _further(client, page.next, fleet, pause_s=max(interval, _AWAY_S))


def _further(client: Client, after: int, fleet: str | None, *, pause_s: float) -> EventPage:
    """Read what came after `after`; while the gateway is away, say so once and ask again until it is back."""
    from nemo_agents.admin.events import events as read

    away = False
    while True:
        try:
            page = client.run(read(after=after, limit=_PAGE, fleet=fleet))
        except (GatewayUnreachable, AdminError) as error:
            if isinstance(error, AdminError) and error.status < 500:
                raise
            if not away:
                click.echo(f"The gateway is away ({one_line(str(error))}) Waiting for it.", err=True)
            away = True
            time.sleep(pause_s)
            continue
        if away:
            click.echo("The gateway is back.", err=True)
        return page


def _print(to: Console, found: list[EventRow], *, as_json: bool) -> None:
    if as_json:
        import msgspec

        for event in found:
            click.echo(safe_json(msgspec.json.encode(event).decode()))
        return
    from nemo_agents.viewer.text import clock

    for event in found:
        whose = f"{one_line(event.fleet)}  " if event.fleet else ""
        print_wrapped(
            to, f"{clock(event.at_us)}  {one_line(event.kind)}  {whose}{one_line(event.message)}", indent=_INDENT
        )
