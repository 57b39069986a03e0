"""`models`: what a gateway can reach."""

from __future__ import annotations

from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nemo_agents.cli.connect import admin_client, gateway_options
from nemo_agents.cli.output import console, one_line, print_json, print_wrapped
from nemo_agents.cli.table import Column, print_table
from nemo_agents.errors import AdminError, NemoError
from nemo_agents.money import format_nanos

if TYPE_CHECKING:
    from rich.console import Console

    from nemo_agents.admin.models import GroupRow, ModelRow, ProviderModels, ProviderRow
    from nemo_agents.client import Client

__all__ = ["models"]

_GROUPS = (
    Column(title="model group", shrink_to=16),
    Column(title="fleet", shrink_to=12, drop=1),
    Column(title="deployments", shrink_to=24),
)
_PROVIDERS = (
    Column(title="provider"),
    Column(title="credentials", shrink_to=24),
    Column(title="wires", shrink_to=16, drop=1),
    Column(title="base URL", shrink_to=24, drop=2),
)
_MODELS = (
    Column(title="model", shrink_to=24),
    Column(title="input", right=True),
    Column(title="output", right=True),
    Column(title="context", right=True),
    Column(title="also at", shrink_to=12, drop=1),
    Column(title="bare name goes to", drop=2),
)


@click.command()
@click.option("--provider", metavar="NAME", help="Show the models of this provider, with price and context size.")
@gateway_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON; prices are nanos per million tokens.")
def models(provider: str | None, gateway_url: str | None, home: Path | None, *, as_json: bool) -> None:
    """Show which model groups and providers the gateway can reach, and what the others lack."""
    from nemo_agents.admin import models as api

    with admin_client(gateway_url, home) as client:
        if provider is not None:
            of_provider = _asked_of(client, provider)
            print_json(of_provider) if as_json else _print_models(of_provider)
            return
        found = client.run(api.reachable())
    if as_json:
        print_json(found)
        return
    to = console()
    if found.groups:
        print_table(to, _GROUPS, [_group(row) for row in found.groups])
        to.print()
    print_table(to, _PROVIDERS, [_provider(row) for row in found.providers])
    _print_lacks(to, found.groups)
    if found.stand_in:
        print_wrapped(to, f"{one_line(found.stand_in)} answers for every model whose provider has no credentials.")


def _asked_of(client: Client, provider: str) -> ProviderModels:
    """Ask for the models of a provider. Raises NemoError with the names that there are where it is none of them."""
    from nemo_agents.admin import models as api

    try:
        return client.run(api.provider_models(provider))
    except AdminError as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise
    names = ", ".join(one_line(row.name) for row in client.run(api.reachable()).providers)
    raise NemoError(f"there is no provider {one_line(provider)!r}. There are: {names}.")


def _group(row: GroupRow) -> tuple[str, ...]:
    deployments = ", ".join(one_line(each.model) + ("" if each.lacks is None else " (!)") for each in row.deployments)
    return one_line(row.name), one_line(row.fleet or "-"), deployments


def _print_lacks(to: Console, groups: list[GroupRow]) -> None:
    lacks = {each.model: each.lacks for row in groups for each in row.deployments if each.lacks is not None}
    for model, what in sorted(lacks.items()):
        print_wrapped(to, f"(!) {one_line(model)}: {one_line(what)}", indent=4)


def _provider(row: ProviderRow) -> tuple[str, ...]:
    if row.lacks:
        credentials = row.lacks
    elif row.credentials == "found":
        credentials = f"from {row.key_env}" if row.key_env else "found"
    else:
        credentials = "none needed"
    return one_line(row.name), one_line(credentials), ", ".join(row.wires), one_line(row.base_url)


def _print_models(found: ProviderModels) -> None:
    to = console()
    if not found.models:
        raise NemoError(f"{one_line(found.note or found.provider.name)} No model is known there.")
    to.print(f"{one_line(found.provider.name)}: {one_line(found.provider.base_url)}; dollars per million tokens")
    print_table(to, _MODELS, [_model(row) for row in found.models])
    if found.note:
        print_wrapped(to, one_line(found.note), style="dim")


def _model(row: ModelRow) -> tuple[str, ...]:
    return (
        one_line(row.model),
        "-" if row.input is None else format_nanos(row.input),
        "-" if row.output is None else format_nanos(row.output),
        "-" if row.context_tokens is None else f"{row.context_tokens:,}",
        one_line(", ".join(row.also_at) or "-"),
        one_line(row.bare_goes_to or "-"),
    )
