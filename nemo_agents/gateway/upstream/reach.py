"""What is at a provider's base URL: its list of models, or what to mend about the address or the key."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import msgspec

from nemo_agents.admin.models import ProviderFinding
from nemo_agents.gateway.ports import Provider, ProviderRequest, UpstreamError
from nemo_agents.gateway.providers import ProviderConfig
from nemo_agents.gateway.upstream.provider import HttpProvider, read_all

__all__ = ["Look", "examine", "look"]

Outcome = Literal["listed", "missing", "key", "redirect", "page", "status", "fault", "unasked"]
_TIMEOUT_S: Final = 4.0
_LIST_BYTES_MAX: Final = 8 << 20
_IDS_MAX: Final = 5_000
_V1_PLACES: Final = ("/v1", "/openai/v1", "/api/v1")
_MAY_BE_THERE: Final = frozenset({"listed", "key"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a provider answered when it was asked for its models.

    `detail` is its status, where it leads to, or what failed; `models` are the ids that it listed.
    """

    outcome: Outcome
    detail: str = ""
    models: tuple[str, ...] = ()


async def look(provider: Provider, config: ProviderConfig) -> Look:
    """Ask a provider for its list of models; what goes wrong is an answer, too."""
    if not isinstance(provider, HttpProvider):
        return Look(outcome="unasked")
    # Claude's list takes the header of its own API, and has pages.
    anthropic = config.auth == "anthropic"
    request = ProviderRequest(
        method="GET",
        wire="messages" if anthropic else "chat",
        path="/models?limit=1000" if anthropic else "/models",
        body=b"",
        stream=False,
        first_byte_timeout_s=_TIMEOUT_S,
        idle_timeout_s=_TIMEOUT_S,
    )
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            response = await provider.send(request)
            raw = await read_all(response, _LIST_BYTES_MAX)
    except UpstreamError as error:
        return Look(outcome="fault", detail=str(error))
    except TimeoutError:
        return Look(outcome="fault", detail=f"{config.name}: no answer within {_TIMEOUT_S:g} s")
    return judge(response.status, response.headers, raw)


def judge(status: int, headers: Mapping[str, str], raw: bytes) -> Look:
    """Say what an answer to the question for models means. Nothing of its body is repeated but the models' ids."""
    if 300 <= status < 400:
        return Look(outcome="redirect", detail=_place_of(headers.get("location", "")))
    if status in (401, 403) or (status == 400 and b"api key" in raw[:4096].lower()):  # Gemini's way to say it
        return Look(outcome="key", detail=str(status))
    if status in (404, 405):
        return Look(outcome="missing", detail=str(status))
    if status != 200:
        return Look(outcome="status", detail=str(status))
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        kind = headers.get("content-type", "").partition(";")[0].strip()[:50]
        return Look(outcome="page", detail=kind or "something that is not JSON")
    listed = body.get("data", body.get("models")) if isinstance(body, dict) else body
    if listed is not None and not isinstance(listed, list):
        return Look(outcome="page", detail="JSON without a list of models")
    return Look(outcome="listed", models=tuple(_ids(listed or [])))


async def examine(provider: Provider, config: ProviderConfig) -> ProviderFinding:
    """Look at a provider and say what was found there, and what to mend."""
    found = await look(provider, config)
    if found.outcome in ("missing", "page") and isinstance(provider, HttpProvider):
        better = await _better(provider, config)
        if better is not None:
            return _finding(
                config,
                "fail",
                f"answers {found.detail} to /models, and at {better} it has a list of models",
                f'the path is wrong: base_url = "{better}" in [providers.{config.name}]',
            )
    return say(found, config)


async def _better(provider: HttpProvider, config: ProviderConfig) -> str | None:
    """Return the address near a wrong one at which there is a list of models; None when none is found in time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_TIMEOUT_S):
            for prefix in neighbours(urlsplit(config.base_url).path):
                other = provider.below(prefix)
                if (await look(other, config)).outcome in _MAY_BE_THERE:
                    return other.base_url
    return None


def say(found: Look, config: ProviderConfig) -> ProviderFinding:
    """Put what was found into words."""
    key = f"the key from {config.key_env}" if config.key_env else "the key"
    match found.outcome:
        case "listed":
            count = len(found.models)
            return _finding(config, "ok", f"lists {count} model{'' if count == 1 else 's'}")
        case "unasked":
            return _finding(config, "ok", "is called inside the gateway's own process, and lists no models")
        case "missing" if not config.lists_models:
            return _finding(config, "ok", "answers; it has no list of models that could tell whether the key is good")
        case "missing":
            return _finding(
                config,
                "warn",
                f"answers {found.detail} to /models: it lists none, or the path is wrong",
                f"compare base_url in [providers.{config.name}] with the provider's documentation; it ends before "
                f"/chat/completions",
            )
        case "key" if config.has_credentials:
            remedy = f"put a good one into {config.key_env or 'the place it is read from'}, and start the gateway again"
            return _finding(config, "fail", f"answers {found.detail}: {key} is not accepted", remedy)
        case "key":
            remedy = f"name the variable of its key: api_key_env in [providers.{config.name}]"
            return _finding(config, "fail", f"answers {found.detail}: it wants a key, and none is configured", remedy)
        case "redirect":
            return _finding(
                config,
                "fail",
                f"redirects to {found.detail}, where the gateway does not follow",
                f"if that is the right place, let base_url in [providers.{config.name}] name it",
            )
        case "page":
            return _finding(
                config,
                "fail",
                f"answers with {found.detail} in place of a list of models",
                f"base_url in [providers.{config.name}] leads to a web page or another API; it often ends in /v1",
            )
        case "status":
            return _finding(
                config, "warn", f"answers {found.detail} to /models", "try again, or look at its status page"
            )
        case "fault":
            return _finding(
                config,
                "fail",
                found.detail.removeprefix(f"{config.name} "),
                "check the host in base_url, its certificate, and whether the gateway's machine may connect to it",
            )


def neighbours(prefix: str) -> Iterator[str]:
    """Yield the paths that may have been meant by one at which there is nothing."""
    bare = prefix.rstrip("/")
    yield from (f"{bare}{place}" for place in _V1_PLACES if not bare.endswith(place))
    parent = bare.rpartition("/")[0]
    if bare:
        yield parent
    for place in _V1_PLACES:
        if parent and f"{parent}{place}" != bare:
            yield f"{parent}{place}"


def _finding(
    config: ProviderConfig, level: Literal["ok", "warn", "fail"], what: str, remedy: str = ""
) -> ProviderFinding:
    return ProviderFinding(provider=config.name, level=level, what=what, remedy=remedy)


def _ids(listed: list[Any]) -> Iterator[str]:
    for each in listed[:_IDS_MAX]:
        name = each.get("id") or each.get("name") if isinstance(each, dict) else each
        if isinstance(name, str) and name:
            yield name.removeprefix("models/")[:256]  # as Gemini calls its own


def _place_of(location: str) -> str:
    """Return where a redirect leads, without what may be a secret in it."""
    try:
        parts = urlsplit(location)
        host = f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname
    except ValueError:
        return "something that is no address"
    return f"{parts.scheme}://{host}{parts.path}" if host else parts.path or "nowhere"
