"""`/nemo/models` and `/nemo/providers/check`: what this gateway can reach, and what is found there."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Literal

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from nemo_agents.admin import models as wire
from nemo_agents.gateway.admin.access import Access, AdminRoute, Caller
from nemo_agents.gateway.admin.faults import not_found
from nemo_agents.gateway.admin.json import json_response
from nemo_agents.gateway.providers import KNOWN, LOCAL, ProviderConfig, what_to_set
from nemo_agents.gateway.state import Gateway
from nemo_agents.gateway.upstream.reach import Look, examine, look
from nemo_agents.policy.hosts import is_loopback_url
from nemo_agents.policy.routing import SANDBOX, Deployment

__all__ = ["ROUTES"]

_SANDBOX_WIRES = ["chat", "embeddings"]


async def _reachable(gateway: Gateway, _request: Request, _caller: Caller, _raw: bytes) -> Response:
    await run_in_threadpool(gateway.prices.load)  # which provider a bare name means is in it
    return json_response(
        wire.ModelsView(stand_in=gateway.stand_in, groups=list(_groups(gateway)), providers=list(_providers(gateway)))
    )


async def _of_provider(gateway: Gateway, request: Request, _caller: Caller, _raw: bytes) -> Response:
    name = request.path_params["provider"]
    row = next((row for row in _providers(gateway) if row.name == name), None)
    if row is None:
        raise not_found("Provider")
    config = gateway.provider_configs.get(name)
    found = Look(outcome="unasked") if config is None else await look(gateway.providers[name], config)
    rows = await run_in_threadpool(_models, gateway, name, found)
    return json_response(wire.ProviderModels(provider=row, note=_note(row, found), models=rows))


async def _check(gateway: Gateway, _request: Request, _caller: Caller, _raw: bytes) -> Response:
    configs = gateway.provider_configs.items()
    return json_response(await asyncio.gather(*(examine(gateway.providers[name], config) for name, config in configs)))


def _groups(gateway: Gateway) -> Iterator[wire.GroupRow]:
    found: dict[tuple[str | None, str], list[Deployment]] = defaultdict(list)
    provisioned = gateway.deployments.values()
    hidden = {each.group for each in provisioned if each.fleet is None}  # they go before those of the configuration
    configured = (each for each in gateway.configured if each.group not in hidden)
    for deployment in sorted((*configured, *provisioned), key=lambda each: each.order):
        found[deployment.fleet, deployment.group].append(deployment)
    for (fleet, name), deployments in sorted(found.items(), key=lambda each: (each[0][0] or "", each[0][1])):
        rows = [
            wire.DeploymentRow(
                model=each.model, order=each.order, weight=each.weight, lacks=_lacks(gateway, each.model)
            )
            for each in deployments
        ]
        yield wire.GroupRow(fleet=fleet, name=name, deployments=rows)


def _lacks(gateway: Gateway, model: str) -> str | None:
    provider, slash, _ = model.partition("/")
    if not slash:
        provider = gateway.prices.provider_of(model) or ""
    if provider in gateway.providers:
        return None
    return what_to_set(provider) if provider else "name its provider: provider/model"


def _providers(gateway: Gateway) -> Iterator[wire.ProviderRow]:
    """Yield the providers that there are, then the known ones that lack their credentials."""
    configs = gateway.provider_configs
    for name, config in sorted(configs.items()):
        yield wire.ProviderRow(
            name=name,
            base_url=config.base_url or "(in this process)",
            wires=sorted(config.wires),
            credentials=_credentials(config),
            key_env=config.key_env,
        )
    if SANDBOX in gateway.providers:
        yield wire.ProviderRow(name=SANDBOX, base_url="(built in)", wires=_SANDBOX_WIRES, credentials="none")
    for name, known in KNOWN.items():
        if name not in configs:
            yield wire.ProviderRow(
                name=name,
                base_url=known.base_url,
                wires=sorted(known.wires),
                credentials="missing",
                lacks=what_to_set(name),
            )


def _credentials(config: ProviderConfig) -> Literal["found", "none"]:
    return "found" if config.has_credentials else "none"


def _models(gateway: Gateway, provider: str, found: Look) -> list[wire.ModelRow]:
    """Return the models that a provider lists, and those that have a price there, by name."""
    prices = gateway.prices
    tables = _tables(gateway)
    sold_as = _table_of(gateway, provider)
    names = {*found.models, *(model for model, at in tables.items() if sold_as in at)}
    names |= {name.partition("/")[2] for name, _ in prices.effective() if name.startswith(f"{provider}/")}
    names.discard("*")
    others = {name: _table_of(gateway, name) for name in gateway.provider_configs if name != provider}
    rows = []
    for model in sorted(names):
        price = prices.price(provider, model)
        rows.append(
            wire.ModelRow(
                model=model,
                listed=model in found.models if found.outcome == "listed" else None,
                input=price.input if price else None,
                output=price.output if price else None,
                context_tokens=prices.context_tokens(provider, model),
                also_at=sorted(name for name, table in others.items() if table in tables.get(model, ())),
                bare_goes_to=prices.provider_of(model),
            )
        )
    return rows


def _tables(gateway: Gateway) -> Mapping[str, set[str]]:
    """Return for each model of the price table at which providers of it the model is."""
    found: dict[str, set[str]] = defaultdict(set)
    for provider, model, _ in gateway.prices.load().models():
        found[model].add(provider)
    return found


def _table_of(gateway: Gateway, provider: str) -> str:
    config = gateway.provider_configs.get(provider)
    if config is None:
        return provider
    free = provider in LOCAL and is_loopback_url(config.base_url)
    return provider if free else config.priced_as or provider


def _note(row: wire.ProviderRow, found: Look) -> str | None:
    """Say why the provider's own list is not in the answer."""
    if found.outcome == "listed":
        return None
    if row.credentials == "missing":
        why = f"{row.name} has no credentials: {row.lacks}"
    elif found.outcome == "unasked":
        why = f"{row.name} lists no models"
    elif found.outcome == "fault":
        why = found.detail
    elif found.outcome == "key":
        why = f"{row.name} answers {found.detail}: the key is not accepted"
    else:
        why = f"{row.name} answers {found.detail} in place of its list"
    return f"{why}. The models are those of the price table."


ROUTES = [
    AdminRoute(method="GET", path="/nemo/models", access=Access.ADMIN, handler=_reachable),
    AdminRoute(method="GET", path="/nemo/models/{provider}", access=Access.ADMIN, handler=_of_provider),
    AdminRoute(method="GET", path="/nemo/providers/check", access=Access.ADMIN, handler=_check),
]
