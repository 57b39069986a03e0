"""`nemo-agents`: parse and print only. A command's module is imported when it is called, so that --help is quick."""

from __future__ import annotations

import importlib
import io
import sys
from typing import Any

import click

from nemo_agents.errors import ExitCode, NemoError

__all__ = ["cli", "main"]

# name: (module, attribute, one line of help). Help texts stand here so that listing them imports nothing.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "demo": ("demo", "demo", "See it work, offline: plan, provision, three runs, the run page."),
    "gateway": ("gateway", "gateway", "Serve the embedded gateway, the admin API and the run viewer."),
    "provision": ("provision", "provision", "Plan, ask, and apply: every role of a fleet gets its virtual key."),
    "plan": ("provision", "plan", "Show what provisioning would change; --out keeps the plan."),
    "apply": ("provision", "apply", "Perform a kept plan exactly; refuses when it is stale."),
    "check": ("provision", "check", "Exit 3 when anything is pending or has drifted (for CI)."),
    "destroy": ("provision", "destroy", "Revoke a fleet's keys and remove the fleet from the gateway."),
    "adopt": ("provision", "adopt", "Take ownership of a key that exists already."),
    "forget": ("provision", "forget", "Drop ownership of a role's key without revoking it."),
    "rotate": ("provision", "rotate", "Give a role a new key; the old one works on for a while."),
    "block": ("provision", "block", "Stop a role's key, reversibly."),
    "unblock": ("provision", "unblock", "Let a blocked key work again."),
    "revoke": ("provision", "revoke", "End a role's key for good."),
    "keys": ("provision", "keys", "Hand stored keys to another program (export)."),
    "status": ("status", "status", "Spend against budget, limits and last use of every role."),
    "runs": ("observe", "runs", "Read runs: list, show, why, prompt, export, tail, stop, prune."),
    "logs": ("observe", "logs", "Read the request log."),
    "events": ("events", "events", "Read alerts: budgets, spend spikes; --follow waits for more."),
    "view": ("observe", "view", "Open the run viewer in the browser."),
    "models": ("models", "models", "Which models can be reached, and what others lack."),
    "prices": ("prices", "prices", "The prices that count; give the gateway another table (update)."),
    "adapters": ("adapters", "adapters", "Which frameworks' adapters are installed, and which versions fit."),
    "ledger": ("ledger", "ledger", "Recompute every balance from the ledger's entries (verify)."),
    "doctor": ("doctor", "doctor", "Check this machine's set-up and say what to mend."),
}


class _LazyGroup(click.Group):
    """A group whose commands are imported when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(f"nemo_agents.cli.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


@click.command(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(None, "-V", "--version", package_name="nemo-agents", prog_name="nemo-agents")
def cli() -> None:
    """Declare your agents' roles; the gateway holds each to its models, limits, budget and guardrails.

    Start here: `nemo-agents demo`, or `nemo-agents gateway` in one terminal and `nemo-agents provision fleet.py` in
    another. Exit codes: 0 fine, 1 failure, 2 usage, 3 changes pending or drift, 4 a stopped run (`runs
    why`), 130 interrupted.
    """


def main(args: list[str] | None = None) -> None:
    """Run the command line; every expected failure is one line on standard error and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a narrow encoding shows less, but nothing fails for it
    try:
        result: Any = cli.main(args=args, prog_name="nemo-agents", standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        sys.exit(ExitCode.INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except NemoError as error:
        from nemo_agents.cli.output import one_line

        click.echo(f"error: {one_line(' '.join(str(error).split()))}", err=True)
        sys.exit(ExitCode.FAILURE)
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
    sys.exit(result if isinstance(result, int) else ExitCode.OK)
