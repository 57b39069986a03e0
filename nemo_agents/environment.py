"""The environment variables that the SDK, the command line and the gateway read; one place for names and defaults."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

__all__ = [
    "ADMIN_KEY",
    "CACHE_PASSWORD",
    "CACHE_URL",
    "DATABASE_PASSWORD",
    "DATABASE_URL",
    "DEFAULT_GATEWAY_URL",
    "GATEWAY_URL",
    "HOME",
    "PEPPER",
    "VIEWER_TOKEN",
    "gateway_url",
    "home",
    "role_key_variable",
]

GATEWAY_URL: Final = "NEMO_GATEWAY_URL"
ADMIN_KEY: Final = "NEMO_ADMIN_KEY"
HOME: Final = "NEMO_HOME"
DATABASE_URL: Final = "NEMO_DATABASE_URL"
DATABASE_PASSWORD: Final = "NEMO_DATABASE_PASSWORD"  # noqa: S105 - the name of a variable
CACHE_URL: Final = "NEMO_CACHE_URL"
CACHE_PASSWORD: Final = "NEMO_CACHE_PASSWORD"  # noqa: S105 - likewise
PEPPER: Final = "NEMO_PEPPER"
VIEWER_TOKEN: Final = "NEMO_VIEWER_TOKEN"  # noqa: S105 - likewise
DEFAULT_GATEWAY_URL: Final = "http://127.0.0.1:4141"


def gateway_url(environ: Mapping[str, str]) -> str:
    """Return the gateway's address without a slash at its end."""
    return (environ.get(GATEWAY_URL) or DEFAULT_GATEWAY_URL).rstrip("/")


def home(environ: Mapping[str, str]) -> Path:
    """Return the folder of the gateway's data and of the key store (0700); it need not exist yet."""
    return Path(environ.get(HOME) or Path.home() / ".nemo-agents")


def role_key_variable(role: str) -> str:
    """Return the variable that may carry a role's key from elsewhere: `NEMO_KEY_<ROLE>`."""
    return "NEMO_KEY_" + re.sub(r"[^A-Z0-9]", "_", role.upper())
