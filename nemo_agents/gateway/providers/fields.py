"""What a `[providers.<name>]` table may hold, field by field. A fault is named; a secret in it is not repeated."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar, get_args
from urllib.parse import urlsplit

from nemo_agents.errors import SettingsError
from nemo_agents.gateway.providers.config import AUTHS, WIRE_NAMES, Auth, MaxTokensField, OnClientGone
from nemo_agents.policy.hosts import is_loopback
from nemo_agents.policy.wires.base import WireName
from nemo_agents.secret import Secret

__all__ = [
    "FIELDS",
    "base_url",
    "base_url_in",
    "check_name",
    "insecure_in",
    "key_from_file",
    "key_in",
    "key_text",
    "place_in",
    "table_of",
    "values_of",
]

_T = TypeVar("_T")
_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_PLACE: Final = re.compile(r"[a-z0-9][a-z0-9.:-]{0,62}")  # a region, location or project, as a host or path takes it
_ENV_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_VISIBLE: Final = re.compile(r"[\x21-\x7e]+")
_HEADER_VALUE: Final = re.compile(r"[\x20-\x7e]*")
_ENDPOINTS: Final = ("/chat/completions", "/responses", "/messages", "/embeddings", "/completions", "/models")
_KEY_FILE_BYTES_MAX: Final = 16_384
FIELDS: Final = (
    "base_url",
    "api_key_env",
    "api_key_file",
    "auth",
    "wires",
    "max_tokens_field",
    "headers",
    "priced_as",
    "on_client_gone",
    "first_token_timeout_s",
    "idle_timeout_s",
    "region",
    "project",
    "location",
    "allow_insecure",
)
"""The fields of a provider's table, in the order in which messages list them."""

# Set by the HTTP client or by the key; a configured copy would be sent twice or instead.
_HEADERS_NOT_OURS: Final = frozenset(
    {
        "authorization",
        "connection",
        "content-length",
        "content-type",
        "host",
        "te",
        "transfer-encoding",
        "upgrade",
    }
)


def check_name(name: object) -> str:
    """Return a provider's name. Raises SettingsError for what cannot be one."""
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise SettingsError(
            f"[providers.{name}]: a provider's name is lower-case letters, digits, - and _, up to 32 of them."
        )
    return name


def table_of(name: str, table: object) -> Mapping[str, Any]:
    """Return a provider's table, in which every field is one that exists. Raises SettingsError."""
    if not isinstance(table, Mapping):
        raise SettingsError(f"[providers.{name}]: must be a table with at least base_url.")
    for key in table:
        if key == "api_key":
            raise SettingsError(
                f"[providers.{name}] api_key: a key does not belong into the configuration. Put it into "
                f"an environment variable and name that in api_key_env, or into a file and name that in "
                f"api_key_file."
            )
        if key not in FIELDS:
            raise SettingsError(f"[providers.{name}] {key}: no such field. Use {', '.join(FIELDS)}.")
    return table


def values_of(name: str, table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a table that are the same in ProviderConfig, checked. Raises SettingsError."""
    readers = {
        "auth": _auth,
        "wires": _wires,
        "max_tokens_field": _max_tokens_field,
        "headers": _headers,
        "priced_as": _priced_as,
        "on_client_gone": _on_client_gone,
        "first_token_timeout_s": _seconds,
        "idle_timeout_s": _seconds,
        "region": _place,
    }
    return {
        field: read(f"[providers.{name}] {field}", table[field]) for field, read in readers.items() if field in table
    }


def place_in(name: str, table: Mapping[str, Any], field: str, otherwise: str | None) -> str | None:
    """Return a region, project or location of a table, or of the environment where the table has none."""
    value = table.get(field, otherwise or None)
    return None if value is None else _place(f"[providers.{name}] {field}", value)


def key_in(
    name: str, table: Mapping[str, Any], environ: Mapping[str, str]
) -> tuple[str | None, Path | None, Secret | None]:
    """Return where a table says the key is (a variable, or a file), and the key. Raises SettingsError."""
    variable, file = table.get("api_key_env"), table.get("api_key_file")
    if variable is not None and file is not None:
        raise SettingsError(f"[providers.{name}] api_key_file: give either api_key_env or api_key_file.")
    if variable is not None:
        where = f"[providers.{name}] api_key_env"
        if not isinstance(variable, str) or _ENV_NAME.fullmatch(variable) is None:
            # Not shown: people put the key itself here.
            raise SettingsError(f"{where}: must be the name of an environment variable, such as CORP_API_KEY.")
        if not environ.get(variable, "").strip():
            raise SettingsError(
                f"{where}: the environment variable {_if_short(variable)} is not set. Set it to the key, "
                f"or remove the table."
            )
        return variable, None, key_text(f"{where} ({_if_short(variable)})", environ[variable])
    if file is not None:
        where = f"[providers.{name}] api_key_file"
        if not isinstance(file, str) or not Path(file).expanduser().is_absolute():
            raise SettingsError(f"{where}: must be an absolute path of a file that holds the key (got {file!r}).")
        path = Path(file).expanduser()
        return None, path, key_from_file(where, path)
    return None, None, None


def key_from_file(where: str, path: Path) -> Secret:
    """Read the key that is all of a file. Raises SettingsError, which does not repeat what is in it."""
    try:
        with path.open("rb") as opened:
            content = opened.read(_KEY_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise SettingsError(f"{where}: cannot read {path}: {error.strerror}.") from error
    if len(content) > _KEY_FILE_BYTES_MAX:
        raise SettingsError(f"{where}: {path} is larger than a key can be.")
    return key_text(where, content.decode("ascii", errors="replace"))


def key_text(where: str, text: str) -> Secret:
    """Return a key without what surrounds it. Raises SettingsError for what cannot be one."""
    key = text.strip()
    if _VISIBLE.fullmatch(key) is None:
        raise SettingsError(f"{where}: is no key: it must be one word of visible ASCII characters. Copy it again.")
    return Secret(key)


def _if_short(variable: str) -> str:
    """Return a variable's name, unless it looks more like a key than like a name."""
    return variable if len(variable) <= 40 and variable.upper() == variable else "that it names"


def base_url_in(name: str, table: Mapping[str, Any], default: str | None) -> str:
    """Return the base URL of a table, or the default, checked. Raises SettingsError."""
    where = f"[providers.{name}] base_url"
    value = table.get("base_url", default)
    if value is None:
        raise SettingsError(f"{where}: is missing. Give the provider's OpenAI-compatible endpoint, up to /v1.")
    return base_url(where, value, allow_insecure=insecure_in(name, table))


def insecure_in(name: str, table: Mapping[str, Any]) -> bool:
    """Say whether a table allows plain http to another machine. Raises SettingsError."""
    value = table.get("allow_insecure", False)
    if not isinstance(value, bool):
        raise SettingsError(f"[providers.{name}] allow_insecure: must be true or false (got {value!r}).")
    return value


def base_url(where: str, value: object, *, allow_insecure: bool) -> str:
    """Return a base URL without a slash at its end. A URL that may hold a credential is not repeated in the error."""
    right = "Give something like https://llm.example.com/v1."
    if not isinstance(value, str) or _VISIBLE.fullmatch(value) is None:
        raise SettingsError(f"{where}: must be a URL without spaces. {right}")
    try:
        parts = urlsplit(value)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise SettingsError(f"{where}: is not a URL. {right}") from error
    if "@" in parts.netloc:
        raise SettingsError(f"{where}: must not hold a user or password. Use api_key_env. {right}")
    if "?" in value or "#" in value:
        raise SettingsError(f"{where}: must not have a query or fragment. {right}")
    if parts.scheme not in ("http", "https") or not host:
        raise SettingsError(f"{where}: must begin with https:// or http:// and name a host (got {value!r}). {right}")
    if parts.scheme == "http" and not allow_insecure and not is_loopback(host):
        raise SettingsError(
            f"{where}: plain http sends keys and prompts in the clear to {host} (got {value!r}). Use https, "
            f"or set allow_insecure = true in the provider's table."
        )
    url = value.rstrip("/")
    for endpoint in _ENDPOINTS:
        if url.endswith(endpoint):
            raise SettingsError(
                f"{where}: ends in {endpoint}, which the gateway adds itself (got {value!r}). "
                f"Give {url.removesuffix(endpoint)}."
            )
    return url


def _one_of(where: str, value: object, options: tuple[_T, ...]) -> _T:
    for option in options:
        if option == value:
            return option
    raise SettingsError(f"{where}: must be {' or '.join(map(str, options))} (got {value!r}).")


def _auth(where: str, value: object) -> Auth:
    return _one_of(where, value, AUTHS)


def _max_tokens_field(where: str, value: object) -> MaxTokensField:
    return _one_of(where, value, get_args(MaxTokensField))


def _on_client_gone(where: str, value: object) -> OnClientGone:
    return _one_of(where, value, get_args(OnClientGone))


def _wires(where: str, value: object) -> frozenset[WireName]:
    if not isinstance(value, list) or not value or not all(each in WIRE_NAMES for each in value):
        raise SettingsError(f"{where}: must be a list of {', '.join(WIRE_NAMES)} (got {value!r}).")
    return frozenset(value)


def _seconds(where: str, value: object) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not (value > 0 and math.isfinite(value)):
        raise SettingsError(f"{where}: must be more than 0 seconds (got {value!r}).")
    return float(value)


def _place(where: str, value: object) -> str:
    if not isinstance(value, str) or _PLACE.fullmatch(value) is None:
        raise SettingsError(f"{where}: must be a name such as us-east-1 (got {value!r}).")
    return value


def _headers(where: str, table: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(table, Mapping):
        raise SettingsError(f'{where}: must be a table of texts, such as {{ "x-team" = "search" }}.')
    headers: list[tuple[str, str]] = []
    for header, value in table.items():
        if _HEADER_NAME.fullmatch(header) is None or header.lower() in _HEADERS_NOT_OURS:
            raise SettingsError(f"{where}: {header!r} cannot be set here. Name a header of your own.")
        if not isinstance(value, str) or _HEADER_VALUE.fullmatch(value) is None:
            raise SettingsError(f"{where}: the value of {header!r} must be a text of printable ASCII characters.")
        headers.append((header.lower(), value))
    return tuple(headers)


def _priced_as(where: str, value: object) -> str:
    if not isinstance(value, str) or _NAME.fullmatch(value) is None:
        raise SettingsError(f"{where}: must be the name of a provider, such as openai (got {value!r}).")
    return value
