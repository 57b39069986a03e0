"""Addresses of a database and a cache: what they may be, and how a password in one is kept out of sight.

Of an address, what is shown is what is known to be harmless: a password that stands where it is not understood must
not be taken for a host, a port, a path or a parameter, and be seen as such.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, quote, unquote, unquote_plus, unquote_to_bytes, urlsplit

from nemo_agents import environment
from nemo_agents.errors import SettingsError
from nemo_agents.secret import Secret

__all__ = ["PASSWORD_OF", "Parts", "parts_of", "password_of", "with_password"]

_SCHEMES: Final = {
    "database": ("postgresql", "postgres"),
    "cache": ("redis", "rediss", "valkey", "valkeys", "unix"),
}
PASSWORD_OF: Final = {"database": environment.DATABASE_PASSWORD, "cache": environment.CACHE_PASSWORD}
"""The environment variables that may carry the password of an address."""

# Parameters of libpq (postgresql.org/docs/current/libpq-connect.html) and redis-py that hold no secret. What is not
# among them goes to the driver and is not shown: passwords of keys, files of passwords, and what nobody knows.
_OF_LIBPQ: Final = (
    "application_name channel_binding client_encoding connect_timeout dbname fallback_application_name gssencmode "
    "host hostaddr keepalives keepalives_count keepalives_idle keepalives_interval krbsrvname load_balance_hosts "
    "options port require_auth requirepeer service ssl_max_protocol_version ssl_min_protocol_version sslcert "
    "sslcertmode sslcrl sslcrldir sslkey sslmode sslnegotiation sslrootcert sslsni target_session_attrs "
    "tcp_user_timeout user"
)
_OF_REDIS: Final = (
    "client_name db health_check_interval protocol socket_keepalive ssl_ca_certs ssl_ca_path ssl_cert_reqs "
    "ssl_certfile ssl_check_hostname ssl_keyfile ssl_min_version username"
)
_SHOWN: Final = {"database": frozenset(_OF_LIBPQ.split()), "cache": frozenset(_OF_REDIS.split())}
_HOST: Final = re.compile(r"(?:\[[0-9A-Fa-f:.%\w]*\]|[^:\[\]]*)(?::[0-9]{0,5})?")
_UNSEEN: Final = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """An address taken apart: what may be shown, the password, and the other parameters that may not be shown."""

    shown: str
    password: Secret | None = None
    hidden: Secret | None = None


def parts_of(setting: str, url: str) -> Parts:
    """Take an address apart: its password stands there as user information, or as `password=`.

    `setting` is `database` or `cache`. Raises SettingsError, which does not repeat what may hold a password.
    """
    if not url:
        return Parts(shown="")
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
    _refuse_unquoted(setting, url, parts)
    user, at, host = parts.netloc.rpartition("@")
    name, colon, password = user.partition(":")
    query = [(unquote(pair.partition("=")[0]), pair) for pair in parts.query.split("&") if pair]
    in_query = [pair.partition("=")[2] for key, pair in query if key == "password"]
    hidden = [pair for key, pair in query if key != "password" and key not in _SHOWN[setting]]
    if in_query or hidden:
        parts = parts._replace(query="&".join(pair for key, pair in query if key in _SHOWN[setting]))
    if colon:
        parts = parts._replace(netloc=f"{name}{at if name else ''}{host}")
    decode = unquote if setting == "database" else unquote_plus  # as each driver reads a parameter
    found = unquote(password) if password else decode(next(iter(in_query), ""))
    return Parts(
        shown=_joined(parts) if colon or in_query or hidden else url,
        password=Secret(found) if found else None,
        hidden=Secret("&".join(hidden)) if hidden else None,
    )


def _refuse_unquoted(setting: str, url: str, parts: SplitResult) -> None:
    """Raise SettingsError where a character of a password was taken for the end of the user information.

    `/`, `?` and `#` are: then the rest of the password is read as the path, the parameters or the fragment, in which
    the `@` behind it gives it away, and what was before them as a host with a port that is no number.
    """
    hosts = parts.netloc.rpartition("@")[2]
    pairs = [pair for pair in parts.query.split("&") if pair]
    if (
        "#" in url
        or "@" in parts.path + parts.query
        or _UNSEEN.search(url)
        or not _is_text(url)
        or not all(_HOST.fullmatch(host) for host in hosts.split(","))
        or not all("=" in pair for pair in pairs)
    ):
        raise SettingsError(
            f"{setting} is an address that cannot be read, and is not repeated here because a password may be in it: "
            "write / # ? @ in a password as %2F %23 %3F %40, and & as %26, or leave it out and set "
            f"{PASSWORD_OF[setting]}; a port is a number, and a parameter is name=value"
        )


def _is_text(url: str) -> bool:
    """Say whether what is quoted is UTF-8, which every driver takes for granted."""
    try:
        unquote_to_bytes(url).decode()
    except UnicodeDecodeError:
        return False
    return True


def with_password(url: str, password: Secret | None, hidden: Secret | None = None) -> Secret:
    """Return an address with its password and hidden parameters, for a driver; it shows itself without."""
    parts = urlsplit(url)
    if hidden is not None:
        parts = parts._replace(query="&".join(filter(None, (parts.query, hidden.reveal()))))
    if password is None:
        return Secret(url if hidden is None else _joined(parts), mask=url)
    quoted = quote(password.reveal(), safe="")
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
