"""`runs prune`: delete what is old."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nemo_agents.cli.connect import admin_client, gateway_options
from nemo_agents.cli.output import print_json
from nemo_agents.durations import span_seconds

if TYPE_CHECKING:
    from nemo_agents.admin.wire import Pruned
    from nemo_agents.client import Client

__all__ = ["prune_runs"]

_NAMES = (
    ("runs", "run"),
    ("calls", "call"),
    ("contents", "prompt"),
    ("spans", "span"),
    ("messages", "text"),
    ("events", "event"),
    ("changes", "change"),
)


# click 8.2, which is in the range, has no generic ParamType yet.
class _Age(click.ParamType):  # type: ignore[type-arg]
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        seconds = span_seconds(str(value))
        if seconds is None or seconds < 3600:
            self.fail("write it like 12h, 30d or 8w; an hour is the least", param, ctx)
        return seconds


@click.command("prune")
@click.option("--older-than", "older_than_s", type=_Age(), required=True, help="What was over so long ago: 12h, 30d.")
@click.option("--contents-only", is_flag=True, help="Delete what was said; keep runs, calls and their costs.")
@click.option("--vacuum", is_flag=True, help="Then make the SQLite file smaller.")
@click.option("--dry-run", is_flag=True, help="Only say how much it is.")
@gateway_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def prune_runs(
    older_than_s: int,
    gateway_url: str | None,
    home: Path | None,
    *,
    contents_only: bool,
    vacuum: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Delete runs that were over so long ago, with their calls, spans and contents, and events of that time.

    What is still open stays, and so does every entry of the ledger: balances are as they were. Calls are served
    meanwhile. Interrupted, the gateway goes on with it.
    """
    from nemo_agents.admin.retention import log_size

    with admin_client(gateway_url, home) as client:
        pruned = _prune(client, older_than_s, contents_only=contents_only, vacuum=vacuum, dry_run=dry_run)
        fixed = vacuum and not dry_run and not client.run(log_size()).shrinks
    if as_json:
        print_json(pruned)
        return
    click.echo(_sentence(pruned, dry_run=dry_run))
    if pruned.bytes:
        click.echo(f"The file is {pruned.bytes / 1e6:,.1f} MB smaller.")
    if fixed:
        click.echo("The database does not shrink in use; what is free in it is used again.", err=True)


def _prune(client: Client, older_than_s: int, *, contents_only: bool, vacuum: bool, dry_run: bool) -> Pruned:
    from nemo_agents.admin.retention import prune

    wish = prune(older_than_s=older_than_s, contents_only=contents_only, vacuum=vacuum, dry_run=dry_run)
    told = False
    while not (pruned := client.run(wish)).done:
        if not told:
            click.echo("Deleting, in small pieces between the calls.", err=True)
        told = True
    return pruned


def _sentence(pruned: Pruned, *, dry_run: bool) -> str:
    counts = [(getattr(pruned, name), word) for name, word in _NAMES]
    parts = [f"{count:,} {word}{'' if count == 1 else 's'}" for count, word in counts if count]
    if not parts:
        return "Nothing is that old."
    return f"{'Would delete' if dry_run else 'Deleted'} {', '.join(parts)}."
