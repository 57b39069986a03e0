"""How a command reaches a gateway's admin API: address, home and admin key, from options or the environment."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from nemo_agents import environment
from nemo_agents.errors import SettingsError
from nemo_agents.secret import Secret

if TYPE_CHECKING:
    from nemo_agents.client import Client

__all__ = ["admin_client", "admin_key", "gateway_options", "home_folder"]

F = TypeVar("F", bound=Callable[..., Any])


def gateway_options(command: F) -> F:
    """Add `--gateway` and `--home`, which every command that talks to a gateway takes."""
    url = click.option(
        "--gateway",
        "gateway_url",
        metavar="URL",
        help="The gateway.  [default: NEMO_GATEWAY_URL or http://127.0.0.1:4141]",
    )
    home = click.option(
        "--home",
        type=click.Path(path_type=Path),
        help="Folder of keys and admin key.  [default: NEMO_HOME or ~/.nemo-agents]",
    )
    return url(home(command))


def home_folder(home: Path | None) -> Path:
    """Return the folder that a command works with."""
    return home or environment.home(os.environ)


def admin_key(home: Path | None) -> Secret:
    """Return the admin key from NEMO_ADMIN_KEY or `<home>/admin.key`. Raises SettingsError saying where it looked."""
    if os.environ.get(environment.ADMIN_KEY):
        return Secret(os.environ[environment.ADMIN_KEY])
    path = home_folder(home) / "admin.key"
    try:
        text = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        raise SettingsError(
            f"no admin key: NEMO_ADMIN_KEY is not set and {path} does not exist. "
            "Start the gateway once (`nemo-agents gateway`), or name its folder with --home."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: the admin key cannot be read ({error})") from None
    return Secret(text)


def admin_client(gateway_url: str | None, home: Path | None) -> Client:
    """Return a client of the admin API; the caller closes it."""
    from nemo_agents.client import Client

    return Client((gateway_url or environment.gateway_url(os.environ)).rstrip("/"), admin_key(home))
