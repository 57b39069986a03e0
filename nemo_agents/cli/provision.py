"""The commands that bring a fleet onto a gateway and look after its keys: they parse, ask and print."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nemo_agents import environment
from nemo_agents.cli.connect import address, admin_client, gateway_options, home_folder
from nemo_agents.cli.output import console, echo_json, one_line, print_json, print_wrapped
from nemo_agents.errors import ExitCode, ProvisionError

if TYPE_CHECKING:
    from rich.console import Console

    from nemo_agents.admin.calls import Flow
    from nemo_agents.admin.wire import KeyRow
    from nemo_agents.client import Client
    from nemo_agents.provision.keystore import FileKeyStore
    from nemo_agents.provision.plan import Plan
    from nemo_agents.roles import FleetDeclaration

__all__ = [
    "adopt",
    "apply",
    "block",
    "check",
    "destroy",
    "forget",
    "keys",
    "plan",
    "print_plan",
    "provision",
    "revoke",
    "rotate",
    "unblock",
]

_COLOURS = {"+": "green", "~": "yellow", "±": "yellow", "-": "red", "!": "red", "=": "dim"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Site:
    """Which gateway, and whose home: from the options, else from the environment."""

    gateway_url: str
    home: Path

    @property
    def store(self) -> FileKeyStore:
        from nemo_agents.provision.keystore import KEYS_FILE, FileKeyStore

        return FileKeyStore(self.home / KEYS_FILE)

    def client(self) -> Client:
        return admin_client(self.gateway_url, self.home)


def _site(gateway_url: str | None, home: Path | None) -> _Site:
    return _Site(gateway_url=address(gateway_url), home=home_folder(home))


_yes = click.option("--yes", is_flag=True, help="Do not ask.")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_FLEET_FILE = click.argument("fleet", metavar="FLEET", type=click.Path(path_type=Path))
_FLEET = click.argument("fleet", metavar="FLEET")
_ROLE = click.argument("role", metavar="ROLE")


# --- the plan and what is done with it
@click.command()
@_FLEET_FILE
@_yes
@click.option("--plan", "plan_only", is_flag=True, help="Print the plan and change nothing.")
@_json
@gateway_options
def provision(
    fleet: Path, gateway_url: str | None, home: Path | None, *, yes: bool, plan_only: bool, as_json: bool
) -> None:
    """Make the gateway as FLEET (a .py or .toml file) declares: plan, ask, apply."""
    site = _site(gateway_url, home)
    declared = _load(fleet)
    if plan_only:
        _print_plan(_prepare(site, declared), as_json=as_json)
        return
    with site.store.exclusively():
        _confirm_and_apply(site, _prepare(site, declared), yes=yes, as_json=as_json)


@click.command()
@_FLEET_FILE
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the plan for `apply`.")
@_json
@gateway_options
def plan(fleet: Path, gateway_url: str | None, home: Path | None, *, out: Path | None, as_json: bool) -> None:
    """Print what `provision` would do, and do nothing."""
    site = _site(gateway_url, home)
    made = _prepare(site, _load(fleet))
    if out is not None:
        from nemo_agents.provision.render import plan_to_json

        try:
            out.write_text(plan_to_json(made) + "\n", encoding="utf-8")
        except OSError as error:
            raise ProvisionError(f"the plan cannot be written to {out}: {error.strerror}.") from error
    _print_plan(made, as_json=as_json)


@click.command()
@click.argument("planfile", metavar="PLANFILE", type=click.Path(path_type=Path))
@_yes
@_json
@gateway_options
def apply(planfile: Path, gateway_url: str | None, home: Path | None, *, yes: bool, as_json: bool) -> None:
    """Perform exactly the plan that `plan --out PLANFILE` wrote."""
    from nemo_agents.provision.render import plan_from_json

    try:
        made = plan_from_json(planfile.read_bytes())
    except OSError as error:
        raise ProvisionError(f"the plan {planfile} cannot be read: {error.strerror}.") from error
    site = _site(gateway_url, home)
    if made.gateway_url != site.gateway_url:
        raise ProvisionError(
            f"the plan was made for {made.gateway_url} and this is {site.gateway_url}. "
            f"Pass --gateway {made.gateway_url}, or make a new plan."
        )
    with site.store.exclusively():
        _confirm_and_apply(site, made, yes=yes, as_json=as_json)


@click.command()
@_FLEET_FILE
@_json
@gateway_options
@click.pass_context
def check(ctx: click.Context, fleet: Path, gateway_url: str | None, home: Path | None, *, as_json: bool) -> None:
    """Exit with 3 unless the gateway is exactly as FLEET declares (for CI)."""
    made = _prepare(_site(gateway_url, home), _load(fleet))
    _print_plan(made, as_json=as_json)
    ctx.exit(ExitCode.OK if made.is_empty else ExitCode.CHANGES)


@click.command()
@_FLEET
@_yes
@_json
@gateway_options
def destroy(fleet: str, gateway_url: str | None, home: Path | None, *, yes: bool, as_json: bool) -> None:
    """Revoke FLEET's managed keys, then remove its model groups and the fleet."""
    from nemo_agents.provision.operate import prepare_destroy

    site = _site(gateway_url, home)
    name = _fleet_name(fleet)
    with site.store.exclusively():
        with site.client() as client:
            made = client.run(prepare_destroy(name, site.gateway_url))
        if not made.changes:
            raise ProvisionError(
                f"there is no fleet {name} at {site.gateway_url}. `nemo-agents status` lists those it has."
            )
        _confirm_and_apply(site, made, yes=yes, as_json=as_json)


# --- single keys
@click.command()
@_FLEET
@_ROLE
@click.argument("key", metavar="KEY_ALIAS_OR_ID")
@gateway_options
def adopt(fleet: str, role: str, key: str, gateway_url: str | None, home: Path | None) -> None:
    """Make an existing key the key of ROLE; its limits stay until the next provisioning."""
    from nemo_agents.provision import operate

    name = _fleet_name(fleet)
    with _site(gateway_url, home).client() as client:
        row = client.run(operate.adopt(name, role, key))
    click.echo(f"{name}/{role} is the key {row.token} now. Its secret stays with whoever has it;")
    click.echo(f"`nemo-agents rotate {name} {role}` puts a new one into the key store.")


@click.command()
@_FLEET
@_ROLE
@gateway_options
def forget(fleet: str, role: str, gateway_url: str | None, home: Path | None) -> None:
    """Stop managing ROLE's key without revoking it; its secret leaves the key store."""
    from nemo_agents.provision import operate

    site = _site(gateway_url, home)
    name = _fleet_name(fleet)
    with site.store.exclusively(), site.client() as client:
        row = client.run(operate.forget(site.gateway_url, name, role, site.store))
    lives = f"the key {row.token} goes on working" if row else "the gateway has no such key"
    click.echo(f"{name}/{role} is not managed here any more; {lives}.")


@click.command()
@click.argument("fleet", metavar="FLEET_OR_NAME")
@_ROLE
@click.option("--grace", metavar="TIME", default="24h", show_default=True, help="How long the old secret works on.")
@click.option("--now", is_flag=True, help="The old secret stops working at once.")
@gateway_options
def rotate(fleet: str, role: str, gateway_url: str | None, home: Path | None, *, grace: str, now: bool) -> None:
    """Give ROLE's key a new secret; both work until the grace time is over."""
    from nemo_agents.provision import operate

    site = _site(gateway_url, home)
    name = _fleet_name(fleet)
    ends = operate.NO_GRACE if now else grace
    with site.store.exclusively(), site.client() as client:
        entry = client.run(operate.rotate(site.gateway_url, name, role, site.store, grace=ends))
    old = "stopped working" if now else f"works for {grace} more"
    click.echo(f"{name}/{role} has a new secret ({entry.public_id}) in the key store; the old one {old}.")


@click.command()
@_FLEET
@_ROLE
@gateway_options
def block(fleet: str, role: str, gateway_url: str | None, home: Path | None) -> None:
    """Stop ROLE's key, reversibly."""
    from nemo_agents.provision import operate

    name = _change_key(_site(gateway_url, home), fleet, role, operate.block)
    click.echo(f"{name}/{role} is blocked. `nemo-agents unblock {name} {role}` lifts it.")


@click.command()
@_FLEET
@_ROLE
@gateway_options
def unblock(fleet: str, role: str, gateway_url: str | None, home: Path | None) -> None:
    """Let ROLE's blocked key work again."""
    from nemo_agents.provision import operate

    name = _change_key(_site(gateway_url, home), fleet, role, operate.unblock)
    click.echo(f"{name}/{role} works again.")


@click.command()
@_FLEET
@_ROLE
@_yes
@gateway_options
def revoke(fleet: str, role: str, gateway_url: str | None, home: Path | None, *, yes: bool) -> None:
    """End ROLE's key for good."""
    from nemo_agents.provision import operate

    site = _site(gateway_url, home)
    name = _fleet_name(fleet)
    _confirm(f"Revoke the key of {name}/{role} for good?", yes=yes)
    with site.store.exclusively(), site.client() as client:
        row = client.run(operate.revoke(site.gateway_url, name, role, site.store))
    click.echo(f"{name}/{role}: the key {row.token} is revoked.")


@click.group()
def keys() -> None:
    """The keys in the key store."""


@keys.command("export")
@_FLEET
@click.option("--role", "only", metavar="ROLE", help="This role alone.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["env", "json"]),
    default="env",
    show_default=True,
    help="Lines of an environment file, or JSON by role.",
)
@gateway_options
def export(fleet: str, gateway_url: str | None, home: Path | None, *, only: str | None, form: str) -> None:
    """Print secrets, in clear: the one command that does. An environment file names them NEMO_KEY_<ROLE>."""
    site = _site(gateway_url, home)
    name = _fleet_name(fleet)
    found = {
        entry.role: entry.usable_secret
        for entry in site.store.entries(site.gateway_url, name)
        if entry.usable_secret is not None and only in (None, entry.role)
    }
    if not found:
        who = f"role {only} of fleet {name}" if only else f"fleet {name}"
        elsewhere = site.store.addresses(name, only)
        todo = (
            f"It has one for {', '.join(map(one_line, elsewhere))}: name the gateway with --gateway."
            if elsewhere
            else "`nemo-agents provision` first."
        )
        raise ProvisionError(f"the key store has no key for {who} at {site.gateway_url}. {todo}")
    if form == "json":
        print_json({role: secret.reveal() for role, secret in found.items()})
        return
    for role, secret in found.items():
        click.echo(f"{environment.role_key_variable(role)}={secret.reveal()}")


# --- helpers
def _load(path: Path) -> FleetDeclaration:
    from nemo_agents.provision.load import load_fleet

    with redirect_stdout(sys.stderr):  # what a fleet file prints is none of the command's output, which may be JSON
        return load_fleet(path)


def _fleet_name(text: str) -> str:
    """Return the name that a fleet file declares, or the text when it is a name and not a file."""
    path = Path(text)
    return _load(path).name if path.suffix in (".py", ".toml") or path.exists() else text


def _change_key(site: _Site, fleet: str, role: str, change: Callable[[str, str], Flow[KeyRow]]) -> str:
    """Run a change of ROLE's key on the gateway, and return the fleet's name."""
    name = _fleet_name(fleet)
    with site.client() as client:
        client.run(change(name, role))
    return name


def _prepare(site: _Site, declared: FleetDeclaration) -> Plan:
    from nemo_agents.provision.operate import prepare

    with site.client() as client:
        return client.run(prepare(declared, site.gateway_url, site.store))


def _confirm_and_apply(site: _Site, made: Plan, *, yes: bool, as_json: bool) -> None:
    from nemo_agents.provision.apply import apply as perform
    from nemo_agents.provision.render import done

    if not as_json or made.is_empty:
        _print_plan(made, as_json=as_json)
    elif not yes:  # a person is asked about it below, and the answer's place is taken by the JSON
        click.echo("\n".join(_plan_lines(made)), err=True)
    if made.is_empty:
        return
    if not made.conflicts:  # with conflicts, apply says what to do about them
        _confirm("Apply this plan?", yes=yes)
    with site.client() as client:
        client.run(perform(made, site.store))
    if as_json:
        _print_plan(made, as_json=True)
    else:
        issued = any(change.kind == "role" and change.action in ("create", "rotate") for change in made.changes)
        where = f" Keys are in {site.store.path}." if issued else ""
        click.echo(f"  Done: {done(made)} at {site.gateway_url}.{where}")


def _confirm(question: str, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("there is no terminal to ask at: pass --yes to go ahead.")
    if not click.confirm(f"  {question}", err=True):
        raise ProvisionError("not confirmed, so nothing was changed.")


def _print_plan(made: Plan, *, as_json: bool) -> None:
    from nemo_agents.provision.render import plan_to_json

    if as_json:
        echo_json(plan_to_json(made))
    else:
        print_plan(console(), made)


def print_plan(to: Console, made: Plan) -> None:
    """Print a plan: on a terminal in colour, and continued under the details where a line is too long."""
    details_at = max((len(change.name) for change in made.changes), default=0) + 6
    for line in _plan_lines(made):
        sign = line[2:3] if line[3:4] == " " else ""
        indent = details_at if sign in _COLOURS else len(line) - len(line.lstrip())
        print_wrapped(to, line, indent=indent, style=_COLOURS.get(sign, ""))


def _plan_lines(made: Plan) -> list[str]:
    """Return the plan's lines; a name on the gateway that holds a line feed cannot pass for a line of its own."""
    from nemo_agents.provision.render import line_of, plan_to_text

    width = max((len(change.name) for change in made.changes), default=0)
    lines = [line for change in made.changes for line in line_of(change, width)]
    rest = plan_to_text(made).removeprefix("\n".join(lines))
    return [one_line(line) for line in (*lines, *rest.strip("\n").split("\n"))]
