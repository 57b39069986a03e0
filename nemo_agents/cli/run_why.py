"""`runs why`: how a run ended and why, with an exit code for scripts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from nemo_agents.cli.connect import admin_client, gateway_options
from nemo_agents.cli.finding import ask_of_run, find_run
from nemo_agents.cli.output import STATE_STYLES, console, one_line, print_json, print_wrapped
from nemo_agents.errors import ExitCode

if TYPE_CHECKING:
    from nemo_agents.admin.wire import Why

__all__ = ["why_run"]

_EXIT_CODES = {"failed": ExitCode.FAILURE, "lost": ExitCode.FAILURE, "stopped": ExitCode.STOPPED}


@click.command("why")
@click.argument("run_id", default="last")
@click.option("--good", metavar="RUN", help="A run that went well, to compare models and temperature with.")
@gateway_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def why_run(run_id: str, gateway_url: str | None, home: Path | None, *, good: str | None, as_json: bool) -> int:
    """Say in one sentence how a run ended and why; without an error, what may have spoiled its result.

    Exit codes: 0 for a run that is ok, recovered or running, 1 for one that failed or is lost, 4 for one that a limit,
    a guardrail or a person stopped.
    """
    from nemo_agents.admin import observe

    with admin_client(gateway_url, home) as client:
        other = find_run(client, good).run.run_id if good is not None else None
        answer = ask_of_run(client, run_id, observe.why(run_id, good=other))
    if as_json:
        print_json(answer)
    else:
        _print(answer)
    return _EXIT_CODES.get(answer.state, ExitCode.OK)


def _print(answer: Why) -> None:
    to = console()
    print_wrapped(to, one_line(answer.sentence), style=STATE_STYLES.get(answer.state, ""))
    if answer.suspects:
        print_wrapped(to, "What may have spoiled the result:", style="dim")
    for suspect in answer.suspects:
        step = f" ({one_line(suspect.step)})" if suspect.step else ""
        print_wrapped(to, f"  call {suspect.seq}{step}: {one_line(suspect.sentence)}", indent=4)
    seq = answer.suspects[0].request_id if answer.suspects else answer.request_id
    if seq is not None:
        print_wrapped(to, f"Read it: nemo-agents runs prompt {answer.run_id} {seq} --answer", indent=4, style="dim")
