"""The options of a caller, parted into those of the connection, which the role owns, and the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from nemo_agents.errors import DeclarationError

__all__ = ["RETRIES_MAX", "refuse_connection_options", "take_timing"]

RETRIES_MAX: Final = 2

_OF_THE_ROLE: Final = (
    "api_key",
    "base_url",
    "http_client",
    "default_headers",
    "organization",
    "project",
    "azure_endpoint",
    "api_type",
    "api_version",
)


def refuse_connection_options(function: str, options: Mapping[str, Any]) -> None:
    """Raise DeclarationError for options that say where to call and with which key: the role says that."""
    for name in _OF_THE_ROLE:
        if name in options:
            raise DeclarationError(
                "the role says where to call and with which key",
                field=name,
                value="…",  # it may be a key
                remedy=f"Leave {name} out of {function}(...).",
            )


def take_timing(options: dict[str, Any]) -> tuple[int, float | None]:
    """Take `max_retries` and `timeout` (seconds, None for openai's own) out of the options."""
    retries: int = options.pop("max_retries", RETRIES_MAX)
    timeout_s: float | None = options.pop("timeout", None)
    return retries, timeout_s
