"""Which providers can be called: found by the keys in the environment, and declared in the configuration.

Every provider is reached on its OpenAI-compatible endpoint with its key as a bearer token.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, cast
from urllib.parse import urlsplit

from nemo_agents.errors import SettingsError
from nemo_agents.policy.hosts import is_loopback
from nemo_agents.policy.routing import SANDBOX
from nemo_agents.secret import Secret

__all__ = ["KEY_ENV_OF", "ProviderConfig", "discover"]

MaxTokensField = Literal["max_tokens", "max_completion_tokens"]
_MAX_TOKENS_FIELDS: Final = ("max_tokens", "max_completion_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderConfig:
    """How to call one provider.

    `base_url` has no slash at its end; `max_tokens_field` is the field by which this provider caps an answer.
    `key_env` names where the key is from, or would be. `headers` are sent with every request, and may be as
    secret as a key. `priced_as` is the provider whose prices this one charges.
    """

    name: str
    base_url: str
    api_key: Secret | None = None
    key_env: str | None = None
    max_tokens_field: MaxTokensField = "max_tokens"
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    priced_as: str | None = None


@dataclass(frozen=True, slots=True)
class _Known:
    """A provider that needs no configuration beside its key."""

    base_url: str
    key_envs: tuple[str, ...]
    max_tokens_field: MaxTokensField = "max_tokens"


_KNOWN: Final[Mapping[str, _Known]] = {
    "openai": _Known("https://api.openai.com/v1", ("OPENAI_API_KEY",), "max_completion_tokens"),
    "anthropic": _Known("https://api.anthropic.com/v1", ("ANTHROPIC_API_KEY",)),
    "gemini": _Known("https://generativelanguage.googleapis.com/v1beta/openai", ("GEMINI_API_KEY", "GOOGLE_API_KEY")),
    "groq": _Known("https://api.groq.com/openai/v1", ("GROQ_API_KEY",), "max_completion_tokens"),
    "mistral": _Known("https://api.mistral.ai/v1", ("MISTRAL_API_KEY",)),
    "deepseek": _Known("https://api.deepseek.com/v1", ("DEEPSEEK_API_KEY",)),
    "xai": _Known("https://api.x.ai/v1", ("XAI_API_KEY",), "max_completion_tokens"),
    "together": _Known("https://api.together.xyz/v1", ("TOGETHER_API_KEY",)),
    "fireworks": _Known("https://api.fireworks.ai/inference/v1", ("FIREWORKS_API_KEY",)),
    "openrouter": _Known("https://openrouter.ai/api/v1", ("OPENROUTER_API_KEY",)),
}
_OLLAMA: Final = "ollama"
_OLLAMA_URL: Final = "http://127.0.0.1:11434/v1"
_OPENAI_BASE_URL: Final = "OPENAI_BASE_URL"

KEY_ENV_OF: Final[Mapping[str, str]] = {name: known.key_envs[0] for name, known in _KNOWN.items()}
"""The environment variable of each known provider's key, for messages."""

_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_ENV_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_VISIBLE: Final = re.compile(r"[\x21-\x7e]+")
_HEADER_VALUE: Final = re.compile(r"[\x20-\x7e]*")
_KEY_FILE_BYTES_MAX: Final = 16_384
_FIELDS: Final = (
    "base_url",
    "api_key_env",
    "api_key_file",
    "max_tokens_field",
    "headers",
    "priced_as",
    "allow_insecure",
)
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


def discover(
    environ: Mapping[str, str], config: Mapping[str, Any], *, probe: Callable[[str], bool] | None = None
) -> dict[str, ProviderConfig]:
    """Return the providers that can be called, by name.

    `config` is the whole configuration, of which `[providers.<name>]` tables are read: they add providers of
    any name with an OpenAI-compatible `base_url`, and change the known ones. A known provider without a key
    is left out. `probe` is asked whether Ollama answers at a base URL; without it Ollama is offered only when
    it is configured. Raises SettingsError naming table, field, value and what would be right; never a secret.
    """
    tables = config.get("providers", {})
    if not isinstance(tables, Mapping):
        raise SettingsError("providers: must be tables such as [providers.corp].")
    found: dict[str, ProviderConfig] = {}
    for name, known in _KNOWN.items():
        provider = _known(name, known, tables.get(name, {}), environ)
        if provider is not None:
            found[name] = provider
    for name, table in tables.items():
        if name not in _KNOWN:
            found[name] = _configured(name, table, environ)
    if _OLLAMA not in found and probe is not None and probe(_OLLAMA_URL):
        found[_OLLAMA] = ProviderConfig(name=_OLLAMA, base_url=_OLLAMA_URL)
    return found


def _known(name: str, known: _Known, table: object, environ: Mapping[str, str]) -> ProviderConfig | None:
    values = _table(name, table)
    if "base_url" not in values and name == "openai" and environ.get(_OPENAI_BASE_URL):
        base_url = _base_url(_OPENAI_BASE_URL, environ[_OPENAI_BASE_URL], allow_insecure=_insecure(name, values))
    else:
        base_url = _base_url_of(name, values, known.base_url)
    key_env, api_key = _key_of(name, values, environ)
    if api_key is None:
        key_env = next((variable for variable in known.key_envs if environ.get(variable, "").strip()), None)
        if key_env is None:
            return None
        api_key = _key_text(key_env, environ[key_env])
    return ProviderConfig(
        name=name,
        base_url=base_url,
        api_key=api_key,
        key_env=key_env,
        max_tokens_field=_max_tokens_field(name, values, known.max_tokens_field),
        headers=_headers(name, values),
        priced_as=_priced_as(name, values),
    )


def _configured(name: str, table: object, environ: Mapping[str, str]) -> ProviderConfig:
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise SettingsError(
            f"[providers.{name}]: a provider's name is lower-case letters, digits, - and _, up to 32 of them."
        )
    if name == SANDBOX:
        raise SettingsError(f"[providers.{name}]: the name belongs to the built-in sandbox. Choose another.")
    values = _table(name, table)
    key_env, api_key = _key_of(name, values, environ)
    return ProviderConfig(
        name=name,
        base_url=_base_url_of(name, values, _OLLAMA_URL if name == _OLLAMA else None),
        api_key=api_key,
        key_env=key_env,
        max_tokens_field=_max_tokens_field(name, values, "max_tokens"),
        headers=_headers(name, values),
        priced_as=_priced_as(name, values),
    )


def _table(name: str, table: object) -> Mapping[str, Any]:
    if not isinstance(table, Mapping):
        raise SettingsError(f"[providers.{name}]: must be a table with at least base_url.")
    for key in table:
        if key == "api_key":
            raise SettingsError(
                f"[providers.{name}] api_key: a key does not belong into the configuration. Put it into "
                f"an environment variable and name that in api_key_env, or into a file and name that in "
                f"api_key_file."
            )
        if key not in _FIELDS:
            raise SettingsError(f"[providers.{name}] {key}: no such field. Use {', '.join(_FIELDS)}.")
    return table


def _key_of(name: str, values: Mapping[str, Any], environ: Mapping[str, str]) -> tuple[str | None, Secret | None]:
    variable, file = values.get("api_key_env"), values.get("api_key_file")
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
        return variable, _key_text(f"{where} ({_if_short(variable)})", environ[variable])
    if file is not None:
        return None, _key_from_file(f"[providers.{name}] api_key_file", file)
    return None, None


def _if_short(variable: str) -> str:
    """Return a variable's name, unless it looks more like a key than like a name."""
    return variable if len(variable) <= 40 and variable.upper() == variable else "that it names"


def _key_from_file(where: str, file: object) -> Secret:
    if not isinstance(file, str) or not Path(file).expanduser().is_absolute():
        raise SettingsError(f"{where}: must be an absolute path of a file that holds the key (got {file!r}).")
    try:
        with Path(file).expanduser().open("rb") as opened:
            content = opened.read(_KEY_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise SettingsError(f"{where}: cannot read {file}: {error.strerror}.") from error
    if len(content) > _KEY_FILE_BYTES_MAX:
        raise SettingsError(f"{where}: {file} is larger than a key can be.")
    return _key_text(where, content.decode("ascii", errors="replace"))


def _key_text(where: str, text: str) -> Secret:
    key = text.strip()
    if _VISIBLE.fullmatch(key) is None:
        raise SettingsError(f"{where}: is no key: it must be one word of visible ASCII characters. Copy it again.")
    return Secret(key)


def _base_url_of(name: str, values: Mapping[str, Any], default: str | None) -> str:
    where = f"[providers.{name}] base_url"
    value = values.get("base_url", default)
    if value is None:
        raise SettingsError(f"{where}: is missing. Give the provider's OpenAI-compatible endpoint, up to /v1.")
    return _base_url(where, value, allow_insecure=_insecure(name, values))


def _insecure(name: str, values: Mapping[str, Any]) -> bool:
    value = values.get("allow_insecure", False)
    if not isinstance(value, bool):
        raise SettingsError(f"[providers.{name}] allow_insecure: must be true or false (got {value!r}).")
    return value


def _base_url(where: str, value: object, *, allow_insecure: bool) -> str:
    """Check a base URL. A URL that may hold a credential is not repeated in the error."""
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
    return value.rstrip("/")


def _max_tokens_field(name: str, values: Mapping[str, Any], default: MaxTokensField) -> MaxTokensField:
    value = values.get("max_tokens_field", default)
    if value not in _MAX_TOKENS_FIELDS:
        raise SettingsError(
            f"[providers.{name}] max_tokens_field: must be {' or '.join(_MAX_TOKENS_FIELDS)} (got {value!r})."
        )
    return cast("MaxTokensField", value)


def _headers(name: str, values: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    where = f"[providers.{name}] headers"
    table = values.get("headers", {})
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


def _priced_as(name: str, values: Mapping[str, Any]) -> str | None:
    value = values.get("priced_as")
    if value is not None and (not isinstance(value, str) or _NAME.fullmatch(value) is None):
        raise SettingsError(
            f"[providers.{name}] priced_as: must be the name of a provider, such as openai (got {value!r})."
        )
    return value
