"""How a command reaches a gateway's admin API: address, home and admin key, from options or the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from nemo_agents import environment
from nemo_agents.errors import SettingsError
from nemo_agents.secret import Secret

if TYPE_CHECKING:
    from nemo_agents.client import Client

__all__ = ["address", "admin_client", "admin_key", "gateway_options", "home_folder", "missing_part"]

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


def address(gateway_url: str | None) -> str:
    """Return the gateway's address that a command was given, without a slash at its end."""
    return (gateway_url or environment.gateway_url(os.environ)).rstrip("/")


def home_folder(home: Path | None) -> Path:
    """Return the folder that a command works with."""
    return home or environment.home(os.environ)


def admin_key(home: Path | None) -> Secret:
    """Return the admin key from NEMO_ADMIN_KEY or `<home>/admin.key`. Raises SettingsError saying where it looked."""
    if os.environ.get(environment.ADMIN_KEY):
        return _checked(os.environ[environment.ADMIN_KEY], environment.ADMIN_KEY)
    path = home_folder(home) / "admin.key"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SettingsError(
            f"no admin key: NEMO_ADMIN_KEY is not set and {path} does not exist. "
            "Start the gateway once (`nemo-agents gateway`), or name its folder with --home."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise SettingsError(f"{path}: the admin key cannot be read: {reason}.") from None
    return _checked(text, str(path))


def _checked(text: str, where: str) -> Secret:
    key = text.strip()
    if not key or re.fullmatch(r"[\x21-\x7e]+", key) is None:
        raise SettingsError(f"{where}: is not an admin key; it is one word of visible ASCII characters.")
    return Secret(key)


def missing_part(error: ImportError, what: str) -> SettingsError:
    """Return how to install what `what` needs; a failure in a module of our own is a bug, and raised as it is."""
    if (error.name or "nemo_agents").partition(".")[0] == "nemo_agents":
        raise error
    return SettingsError(f"{what} ({error.name} is missing). Run: pip install 'nemo-agents[gateway]'")


def admin_client(gateway_url: str | None, home: Path | None) -> Client:
    """Return a client of the admin API; the caller closes it."""
    key = admin_key(home)
    url = address(gateway_url)

    from nemo_agents.client import Client

    return Client(url, key)
