"""Addresses of a database and a cache: what they may be, and how a password in one is kept out of sight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

from nemo_agents import environment
from nemo_agents.errors import SettingsError
from nemo_agents.secret import Secret

__all__ = ["PASSWORD_OF", "password_of", "with_password", "without_password"]

_SCHEMES: Final = {
    "database": ("postgresql", "postgres"),
    "cache": ("redis", "rediss", "valkey", "valkeys", "unix"),
}
PASSWORD_OF: Final = {"database": environment.DATABASE_PASSWORD, "cache": environment.CACHE_PASSWORD}
"""The environment variables that may carry the password of an address."""


def without_password(setting: str, url: str) -> tuple[str, Secret | None]:
    """Return an address that may be shown, and the password that was in it: as user information, or `password=`.

    `setting` is `database` or `cache`. Raises SettingsError, which does not repeat what may hold a password.
    """
    if not url:
        return "", None
    schemes = _SCHEMES[setting]
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in schemes or (not parts.netloc and not parts.path.strip("/") and not parts.query):
        raise SettingsError(
            f"{setting} must be an address that begins with {schemes[0]}:// and names a host "
            f"(a password may stand in {PASSWORD_OF[setting]})"
        )
    user, at, host = parts.netloc.rpartition("@")
    name, colon, password = user.partition(":")
    query = parse_qsl(parts.query, keep_blank_values=True)
    in_query = [value for key, value in query if key == "password"]
    if in_query:
        query = [(key, value) for key, value in query if key != "password"]
        parts = parts._replace(query=urlencode(query))
    if colon:
        parts = parts._replace(netloc=f"{name}{at if name else ''}{host}")
    found = unquote(password) if password else next(iter(in_query), "")
    return _joined(parts) if colon or in_query else url, Secret(found) if found else None


def with_password(url: str, password: Secret | None) -> Secret:
    """Return an address with its password in it, to be given to a driver; it shows itself without."""
    if password is None:
        return Secret(url, mask=url)
    parts, quoted = urlsplit(url), quote(password.reveal(), safe="")
    if not parts.netloc and parts.scheme in _SCHEMES["database"]:  # the host is in the query, or the default socket
        parts = parts._replace(query="&".join(filter(None, (parts.query, f"password={quoted}"))))
    else:
        user, _, host = parts.netloc.rpartition("@")
        parts = parts._replace(netloc=f"{user}:{quoted}@{host}")
    return Secret(_joined(parts), mask=url)


def password_of(setting: str, of_address: Secret | None, environ: Mapping[str, str]) -> Secret | None:
    """Return the password for an address: what was in it, else what the environment has."""
    if of_address is not None:
        return of_address
    text = environ.get(PASSWORD_OF[setting])
    return Secret(text) if text else None


def _joined(parts: SplitResult) -> str:
    """Return the text of an address; the library's own drops the slashes where no host is named."""
    query = f"?{parts.query}" if parts.query else ""
    return f"{parts.scheme}://{parts.netloc}{parts.path}{query}"
