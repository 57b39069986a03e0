"""`[webhooks.<name>]` in the gateway's configuration, checked at its start."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpx

from nemo_agents.errors import SettingsError
from nemo_agents.gateway.alerts.signing import read_secrets
from nemo_agents.policy.alerts import EVENT_KINDS
from nemo_agents.secret import Secret

__all__ = ["Destination", "read_destinations"]

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TIMEOUT_S: Final = 10.0
_TIMEOUT_MAX_S: Final = 30.0
_FIELDS: Final = ("url", "secret_env", "events", "timeout_s")
_MAKE_ONE = (
    "`python3 -c 'import base64, secrets; print(\"whsec_\" + base64.b64encode(secrets.token_bytes(32)).decode())'`"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """One webhook: who gets which events, signed with what. A try takes at most `timeout_s` seconds."""

    name: str
    url: str = dataclasses.field(repr=False)  # its path may be a secret of the receiver's
    secrets: tuple[Secret, ...]
    events: frozenset[str]
    timeout_s: float = _TIMEOUT_S


def read_destinations(tables: Mapping[str, Any], environ: Mapping[str, str], *, source: str) -> tuple[Destination, ...]:
    """Return the webhooks that are configured in `source` (a file name).

    Raises SettingsError that names the file, the field and what would be right, and shows no secret.
    """
    return tuple(_destination(name, table, environ, source) for name, table in tables.items())


def _destination(name: str, table: Any, environ: Mapping[str, str], source: str) -> Destination:
    where = f"{source}: [webhooks.{name[:63]}]"
    if _NAME.fullmatch(name) is None:
        raise SettingsError(f"{where}: a name is 1 to 63 characters out of a-z 0-9 _ and -, from a letter or digit on")
    if not isinstance(table, dict):
        raise SettingsError(f"{where} must be a table with `url` and `secret_env`")
    unknown = sorted(set(table) - set(_FIELDS))
    if unknown:
        raise SettingsError(f"{where}: unknown field `{unknown[0]}`; known are {', '.join(_FIELDS)}")
    return Destination(
        name=name,
        url=_url(table.get("url"), where),
        secrets=_secrets(table.get("secret_env"), environ, where),
        events=_events(table.get("events"), where),
        timeout_s=_timeout(table.get("timeout_s", _TIMEOUT_S), where),
    )


def _url(value: Any, where: str) -> str:
    try:
        url = httpx.URL(value)
    except (httpx.InvalidURL, TypeError):
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.host:
        raise SettingsError(f"{where}: `url` must be an address such as https://alerts.example.com/nemo")
    if url.userinfo:
        raise SettingsError(f"{where}: `url` must have no user name or password in it; the signature tells who sends")
    return str(url)


def _secrets(value: Any, environ: Mapping[str, str], where: str) -> tuple[Secret, ...]:
    if not isinstance(value, str) or _VARIABLE.fullmatch(value) is None:
        raise SettingsError(f"{where}: `secret_env` must name the environment variable that has the signing secret")
    if not environ.get(value):
        raise SettingsError(
            f"{where}: the environment variable {value} that `secret_env` names is not set. Make a secret with "
            f"{_MAKE_ONE} and give it to the gateway and to the receiver"
        )
    try:
        return read_secrets(environ[value])
    except ValueError as error:
        raise SettingsError(
            f"{where}: the secret in the environment variable {value} {error}. Make one with {_MAKE_ONE}"
        ) from None


def _events(value: Any, where: str) -> frozenset[str]:
    if value is None:
        return frozenset(EVENT_KINDS)
    if not isinstance(value, list) or not value or not all(kind in EVENT_KINDS for kind in value):
        raise SettingsError(f"{where}: `events` must be a list out of {', '.join(EVENT_KINDS)}")
    return frozenset(value)


def _timeout(value: Any, where: str) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not (math.isfinite(value) and 0 < value <= _TIMEOUT_MAX_S):
        raise SettingsError(f"{where}: `timeout_s` must be a number of seconds above 0 and up to {_TIMEOUT_MAX_S:g}")
    return float(value)
