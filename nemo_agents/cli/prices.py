"""`prices`: the prices that count, and another table for a gateway that runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nemo_agents.cli.connect import admin_client, gateway_options
from nemo_agents.cli.output import console, one_line, print_json
from nemo_agents.cli.table import Column, print_table
from nemo_agents.errors import NemoError
from nemo_agents.money import format_nanos

if TYPE_CHECKING:
    from nemo_agents.admin.prices import PriceRow

__all__ = ["prices"]

_TABLE_BYTES_MAX = 16 * 1024 * 1024
_FETCH_TIMEOUT_S = 30.0
_COLUMNS = (
    Column(title="model", shrink_to=24),
    Column(title="input", right=True),
    Column(title="cached", right=True, drop=3),
    Column(title="written", right=True, drop=4),
    Column(title="output", right=True),
    Column(title="beside", shrink_to=12, drop=1),
    Column(title="from", shrink_to=12, drop=2),
)


@click.group()
def prices() -> None:
    """Read the prices that count, and give the gateway another table while it runs."""


@prices.command("list")
@click.option("--model", metavar="TEXT", help="Only models whose name has this in it.")
@gateway_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every component in nanos.")
def list_(model: str | None, gateway_url: str | None, home: Path | None, *, as_json: bool) -> None:
    """Show what each model costs, in dollars per million tokens, and where the price is from."""
    from nemo_agents.admin import prices as api

    with admin_client(gateway_url, home) as client:
        found = client.run(api.effective(model))
    if as_json:
        print_json(found)
        return
    to = console()
    if not found.prices:
        what = f"no price is known for {one_line(model)!r}" if model else "no price is known"
        raise NemoError(f'{what}. Declare one in gateway.toml: [prices."provider/model"].')
    given = f", given {found.given[:10]}" if found.given else ""
    to.print(f"{one_line(found.version)} ({one_line(found.source)}{given}); dollars per million tokens")
    print_table(to, _COLUMNS, [_row(row) for row in found.prices])


@prices.command()
@click.argument("table", metavar="FILE|URL")
@click.option(
    "--force",
    is_flag=True,
    help="Take it although models disappear, or prices are a thousand times off the former ones.",
)
@gateway_options
def update(table: str, gateway_url: str | None, home: Path | None, *, force: bool) -> None:
    """Give the gateway a table of prices in the data format of genai-prices; the whole table is replaced.

    It is checked first: with anything wrong in it, nothing changes. Calls on their way keep the price they began with.
    """
    from nemo_agents.admin import prices as api

    raw = _read(table)
    try:
        json.loads(raw)  # to say here what is no JSON, rather than to send it
    except (ValueError, RecursionError) as error:
        raise NemoError(f"{table}: is not JSON ({error}). Give a table as genai-prices publishes it.") from None
    with admin_client(gateway_url, home) as client:
        changed = client.run(api.give(raw, source=_source(table), force=force))
    click.echo(f"{one_line(changed.version)} counts now, in place of {one_line(changed.former)}.")


@prices.command()
@gateway_options
def reset(gateway_url: str | None, home: Path | None) -> None:
    """Let the table inside the installed package count again."""
    from nemo_agents.admin import prices as api

    with admin_client(gateway_url, home) as client:
        changed = client.run(api.reset())
    click.echo(f"{one_line(changed.version)} counts now, in place of {one_line(changed.former)}.")


def _source(table: str) -> str:
    """Name the table without what a URL may carry as a secret."""
    if "://" not in table:
        return f"file {Path(table).name}"[:200]
    return table.partition("?")[0].rpartition("@")[2].rpartition("://")[2][:200]


def _read(table: str) -> bytes:
    if table.startswith(("https://", "http://")):
        return _fetch(table)
    try:
        raw = Path(table).read_bytes()
    except OSError as error:
        raise NemoError(f"{table}: cannot be read ({error.strerror or error}).") from None
    return _small_enough(table, raw)


def _fetch(url: str) -> bytes:
    import httpx

    from nemo_agents.policy.hosts import is_loopback_url

    if url.startswith("http://") and not is_loopback_url(url):
        raise NemoError(f"{_source(url)}: prices are money; fetch them by https.")
    raw = b""
    try:
        with httpx.stream("GET", url, timeout=_FETCH_TIMEOUT_S) as response:
            if response.status_code != 200:
                raise NemoError(f"{_source(url)}: answered {response.status_code}.")
            for chunk in response.iter_bytes():
                raw = _small_enough(_source(url), raw + chunk)
    except httpx.HTTPError as error:
        raise NemoError(f"{_source(url)}: cannot be fetched ({error}).") from None
    return raw


def _small_enough(what: str, raw: bytes) -> bytes:
    if len(raw) > _TABLE_BYTES_MAX:
        raise NemoError(f"{what}: is larger than {_TABLE_BYTES_MAX} bytes.")
    return raw


def _row(row: PriceRow) -> tuple[str, ...]:
    return (
        one_line(row.name),
        format_nanos(row.input),
        format_nanos(row.cached_input),
        format_nanos(row.cache_write),
        format_nanos(row.output),
        _beside(row),
        "configuration" if row.version in ("configuration", "free") else "table",
    )


def _beside(row: PriceRow) -> str:
    """Say in a few words what a price has beside its four rates."""
    words = []
    if row.request_nanos:
        words.append(f"{format_nanos(row.request_nanos)}/request")
    if row.image_nanos:
        words.append(f"{format_nanos(row.image_nanos)}/image")
    if row.reasoning is not None:
        words.append(f"reasoning {format_nanos(row.reasoning)}")
    if row.audio_input is not None:
        words.append(f"audio {format_nanos(row.audio_input)}")
    words += [f"over {tier.above} tokens: {format_nanos(tier.input)}/{format_nanos(tier.output)}" for tier in row.tiers]
    words += [
        f"{one_line(tier.name)} {format_nanos(tier.input)}/{format_nanos(tier.output)}" for tier in row.service_tiers
    ]
    return ", ".join(words) or "-"
