"""`ledger`: whether the books add up."""

from __future__ import annotations

from pathlib import Path

import click

from nemo_agents.cli.connect import admin_client, gateway_options
from nemo_agents.cli.output import one_line, print_json
from nemo_agents.errors import ExitCode

__all__ = ["ledger"]


@click.group()
def ledger() -> None:
    """Check the ledger: every balance, cost and sum, recomputed from the entries."""


@ledger.command("verify")
@gateway_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(gateway_url: str | None, home: Path | None, *, as_json: bool) -> int:
    """Recompute everything that is kept twice; exits 1 with a sentence for each thing that does not add up."""
    from nemo_agents.admin import observe

    with admin_client(gateway_url, home) as client:
        problems = [str(problem) for problem in client.run(observe.verify()).get("problems", [])]
    if as_json:
        print_json({"problems": problems})
    else:
        for problem in problems:
            click.echo(one_line(problem))
        if problems:
            click.echo("The ledger does not add up. Stop the gateway and keep a copy of its database.", err=True)
        else:
            click.echo("Every balance in the ledger adds up.")
    return ExitCode.FAILURE if problems else ExitCode.OK
