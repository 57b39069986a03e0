"""`nemo-agents gateway`."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nemo_agents import environment
from nemo_agents.cli.connect import missing_part

if TYPE_CHECKING:
    from nemo_agents.gateway.server import Running

__all__ = ["gateway"]


@click.command()
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port; 0 picks a free one and prints it.  [default: 4141]")
@click.option(
    "--home",
    type=click.Path(path_type=Path),
    help="Folder of database and secrets.  [default: NEMO_HOME or ~/.nemo-agents]",
)
@click.option("--config", type=click.Path(path_type=Path), help="Configuration file.  [default: <home>/gateway.toml]")
@click.option(
    "--database",
    metavar="URL",
    help="PostgreSQL that many gateways share: postgresql://user@host/name.  [default: NEMO_DATABASE_URL, else a file]",
)
@click.option(
    "--cache",
    metavar="URL",
    help="Valkey or Redis that many gateways count rates in: redis://host.  [default: NEMO_CACHE_URL, else memory]",
)
@click.option(
    "--sandbox",
    type=click.Choice(["auto", "on", "off"]),
    help="When the built-in sandbox answers for models without credentials.",
)
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="What the gateway's own log shows."
)
def gateway(
    *,
    host: str | None,
    port: int | None,
    home: Path | None,
    config: Path | None,
    database: str | None,
    cache: str | None,
    sandbox: str | None,
    log_level: str | None,
) -> None:
    """Serve the embedded gateway, the admin API and the run viewer until interrupted.

    Providers are found by their environment variables (OPENAI_API_KEY, ANTHROPIC_API_KEY, GEMINI_API_KEY, ...), by a
    local Ollama, and in the configuration file. Without any, the built-in sandbox answers for every model, and says so.

    Many gateways serve as one with the same --database, --cache, NEMO_PEPPER, NEMO_ADMIN_KEY and NEMO_VIEWER_TOKEN.
    Passwords go into NEMO_DATABASE_PASSWORD and NEMO_CACHE_PASSWORD: everybody on a machine can read a command line.
    """
    from nemo_agents.gateway.settings import load_settings

    overrides = {
        "host": host,
        "port": port,
        "database": database or os.environ.get(environment.DATABASE_URL) or None,
        "cache": cache or os.environ.get(environment.CACHE_URL) or None,
        "sandbox": sandbox,
        "log_level": log_level,
    }
    settings = load_settings(home or environment.home(os.environ), config=config, overrides=overrides)
    for option, url, shown in (("--database", database, settings.database), ("--cache", cache, settings.cache)):
        if url and url != shown:
            click.echo(f"warning: everybody on this machine can read the password in {option} {shown}", err=True)
    try:
        from nemo_agents.gateway.server import new_event_loop, serve
    except ImportError as error:
        raise missing_part(error, "the gateway's parts are not installed") from error

    async def serve_until_stopped() -> None:
        stop = asyncio.Event()
        async with serve(settings, os.environ, on_signal=stop.set) as running:
            click.echo(_banner(running))
            await stop.wait()
            click.echo("stopping: calls under way are finished first")
        click.echo("stopped")

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(serve_until_stopped())


def _banner(running: Running) -> str:
    state = running.gateway
    real = [name for name in state.providers if name != "sandbox"]
    lines = [
        f"nemo-agents gateway listening on {running.url}",
        f"  endpoint   {running.url}/v1",
        f"  data       {state.settings.database or state.settings.home}",
        *([f"  rates      {state.settings.cache}"] if state.settings.cache else []),
        f"  providers  {', '.join(real) or 'none found'}",
    ]
    if state.stand_in is not None:
        lines.append("  sandbox    answers for every model without a provider: made-up text, real prices, no network")
    lines += [
        "  viewer     open it with: nemo-agents view",
        "  next       nemo-agents provision fleet.py",
    ]
    return "\n".join(lines)
