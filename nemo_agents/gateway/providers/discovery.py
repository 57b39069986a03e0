"""Which providers can be called: by the credentials in the environment, by the configuration, and on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from nemo_agents.errors import SettingsError
from nemo_agents.gateway.providers import fields
from nemo_agents.gateway.providers.config import ProviderConfig
from nemo_agents.gateway.providers.known import KNOWN, LITELLM, LOCAL, Known
from nemo_agents.policy.routing import SANDBOX
from nemo_agents.secret import Secret

__all__ = ["Probe", "discover"]

Probe = Callable[[str, str | None], bool]
"""Says whether a server lists models at a base URL; with a second argument, whether they are that one's."""

_OPENAI_BASE_URL: Final = "OPENAI_BASE_URL"
_AZURE_ENDPOINT: Final = "AZURE_OPENAI_ENDPOINT"
_AWS_REGIONS: Final = ("AWS_REGION", "AWS_DEFAULT_REGION")
_GOOGLE_PROJECT: Final = "GOOGLE_CLOUD_PROJECT"
_GOOGLE_LOCATION: Final = "GOOGLE_CLOUD_LOCATION"
_V1: Final = "/openai/v1"


def discover(
    environ: Mapping[str, str], config: Mapping[str, Any], *, probe: Probe | None = None
) -> dict[str, ProviderConfig]:
    """Return the providers that can be called, by name.

    `config` is the whole configuration, of which `[providers.<name>]` tables are read: they add providers of
    any name with an OpenAI-compatible `base_url`, and change the known ones. A known provider without credentials
    is left out. `probe` is asked for the servers that may run on this machine; without it those are offered only
    when they are configured. Raises SettingsError naming table, field, value and what would be right; never a secret.
    """
    tables = config.get("providers", {})
    if not isinstance(tables, Mapping):
        raise SettingsError("providers: must be tables such as [providers.corp].")
    found: dict[str, ProviderConfig] = {}
    for name, known in KNOWN.items():
        provider = _known(name, known, fields.table_of(name, tables.get(name, {})), environ, asked=name in tables)
        if provider is not None:
            found[name] = provider
    for name, table in tables.items():
        if name not in KNOWN:
            found[name] = _configured(name, table, environ)
    for name, local in LOCAL.items():
        if name not in tables and probe is not None and probe(local.base_url, local.owner):
            found[name] = ProviderConfig(name=name, base_url=local.base_url, wires=local.wires)
    return found


def _known(
    name: str, known: Known, table: Mapping[str, Any], environ: Mapping[str, str], *, asked: bool
) -> ProviderConfig | None:
    """Return a known provider; None without credentials, or without the place that its address needs.

    `asked` says that the configuration has a table of it: then what is lacking beside the key is a fault.
    """
    values = {"auth": known.auth, **fields.values_of(name, table)}
    key_env, key_file, api_key = _credentials(name, known, values["auth"], table, environ)
    if api_key is None and values["auth"] not in ("sigv4", "google"):
        _base_url(name, known, table, environ, asked=False)  # a fault in it is told all the same
        return None
    if values["auth"] == "google" and not asked and not environ.get(known.key_envs[0], "").strip():
        return None
    if values["auth"] == "sigv4":
        values["region"] = _region(table, environ)
        if values["region"] is None:
            raise SettingsError(f"[providers.{name}] region: is missing. Give the AWS region, or set AWS_REGION.")
    base_url = _base_url(name, known, table, environ, asked=asked)
    if base_url is None:
        return None
    return ProviderConfig(
        **{
            "wires": known.wires,
            "max_tokens_field": known.max_tokens_field,
            "priced_as": known.priced_as,
            "lists_models": known.lists_models,
            **values,
        },
        name=name,
        base_url=base_url,
        api_key=api_key,
        key_env=key_env,
        key_file=key_file,
    )


def _credentials(
    name: str, known: Known, auth: str, table: Mapping[str, Any], environ: Mapping[str, str]
) -> tuple[str | None, Path | None, Secret | None]:
    key_env, key_file, api_key = fields.key_in(name, table, environ)
    if auth in ("sigv4", "google"):
        if api_key is not None:
            raise SettingsError(f'[providers.{name}] auth: "{auth}" takes no key. Leave api_key_env and -file out.')
        return (known.key_envs[0] if auth == known.auth else None), None, None
    if api_key is None:
        key_env = next((variable for variable in known.key_envs if environ.get(variable, "").strip()), None)
        api_key = None if key_env is None else fields.key_text(key_env, environ[key_env])
    return key_env, key_file, api_key


def _base_url(
    name: str, known: Known, table: Mapping[str, Any], environ: Mapping[str, str], *, asked: bool
) -> str | None:
    """Return where a known provider is; None when its address has a part that nobody has told."""
    if "base_url" in table:
        return fields.base_url_in(name, table, None)
    if name == "openai" and environ.get(_OPENAI_BASE_URL):
        where, allow = _OPENAI_BASE_URL, fields.insecure_in(name, table)
        return fields.base_url(where, environ[_OPENAI_BASE_URL], allow_insecure=allow)
    if "{" not in known.base_url:
        return fields.base_url_in(name, table, known.base_url)
    if "{endpoint}" in known.base_url:
        return _azure(name, table, environ, asked=asked)
    parts = _places(name, table, environ)
    lacking = [part for part, value in parts.items() if value is None and f"{{{part}}}" in known.base_url]
    if not lacking:
        return fields.base_url_in(name, table, known.base_url.format(**parts))
    if asked:
        variables = {"region": _AWS_REGIONS[0], "project": _GOOGLE_PROJECT}
        raise SettingsError(
            f"[providers.{name}] {lacking[0]}: is missing. Give it here, or set {variables[lacking[0]]}."
        )
    return None


def _azure(name: str, table: Mapping[str, Any], environ: Mapping[str, str], *, asked: bool) -> str | None:
    endpoint = environ.get(_AZURE_ENDPOINT, "").strip()
    if not endpoint:
        if asked:
            raise SettingsError(f"[providers.{name}] base_url: is missing. Give it, or set {_AZURE_ENDPOINT}.")
        return None
    url = fields.base_url(_AZURE_ENDPOINT, endpoint, allow_insecure=fields.insecure_in(name, table))
    return url if url.endswith(_V1) else url.removesuffix("/openai") + _V1


def _places(name: str, table: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, str | None]:
    """Return the parts of addresses that name a place; the location of Google that serves from anywhere is `global`."""
    location = fields.place_in(name, table, "location", environ.get(_GOOGLE_LOCATION)) or "global"
    return {
        "region": fields.place_in(name, table, "region", _region({}, environ)),
        "project": fields.place_in(name, table, "project", environ.get(_GOOGLE_PROJECT)),
        "location": location,
        "host": "aiplatform.googleapis.com" if location == "global" else f"{location}-aiplatform.googleapis.com",
    }


def _region(table: Mapping[str, Any], environ: Mapping[str, str]) -> str | None:
    from_environ = next((environ[name].strip() for name in _AWS_REGIONS if environ.get(name, "").strip()), None)
    region: str | None = table.get("region", from_environ)
    return region


def _configured(name: object, table: object, environ: Mapping[str, str]) -> ProviderConfig:
    checked = fields.check_name(name)
    if checked == SANDBOX:
        raise SettingsError(f"[providers.{checked}]: the name belongs to the built-in sandbox. Choose another.")
    values = fields.table_of(checked, table)
    if checked == LITELLM:
        return _litellm(values)
    key_env, key_file, api_key = fields.key_in(checked, values, environ)
    local = LOCAL.get(checked)
    shared = fields.values_of(checked, values)
    if shared.get("auth") == "sigv4" and "region" not in shared:
        shared["region"] = fields.place_in(checked, values, "region", _region({}, environ))
        if shared["region"] is None:
            raise SettingsError(f"[providers.{checked}] region: is missing. Give the AWS region, or set AWS_REGION.")
    return ProviderConfig(
        **({} if local is None else {"wires": local.wires}) | shared,
        name=checked,
        base_url=fields.base_url_in(checked, values, None if local is None else local.base_url),
        api_key=api_key,
        key_env=key_env,
        key_file=key_file,
    )


def _litellm(table: Mapping[str, Any]) -> ProviderConfig:
    """Return the provider that calls LiteLLM in this process, which finds addresses and keys by itself."""
    allowed = {"priced_as", "on_client_gone", "max_tokens_field"}
    for field in table:
        if field not in allowed:
            raise SettingsError(
                f"[providers.{LITELLM}] {field}: cannot be set here, since LiteLLM finds addresses and keys by itself. "
                f"For a LiteLLM Proxy, give its base_url in a table of another name, such as [providers.proxy]."
            )
    return ProviderConfig(name=LITELLM, base_url="", **fields.values_of(LITELLM, table))
