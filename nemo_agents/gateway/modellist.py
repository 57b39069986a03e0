"""The models that a key may use, as `GET /v1/models` lists them for the clients of OpenAI and of Anthropic."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from nemo_agents.gateway.providers import KEY_ENV_OF
from nemo_agents.gateway.state import Gateway
from nemo_agents.policy.keys import Grant
from nemo_agents.policy.refusal import Refusal
from nemo_agents.policy.routing import allowed

__all__ = ["ModelList", "model_object", "models_object"]

_MADE = "1970-01-01T00:00:00Z"  # when a model was made is nothing that the gateway knows


class ModelList:
    """What a key may ask for: its groups and models by name, and what patterns such as `openai/*` stand for."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._known: tuple[object, tuple[str, ...]] | None = None

    async def names(self, grant: Grant) -> list[str]:
        """Return the names that a grant may ask for and that lead to a provider which can be called."""
        gateway = self._gateway
        groups = gateway.groups(grant.fleet)
        exact = [name for name in grant.models if "*" not in name]
        names = [*groups, *exact]
        if len(exact) < len(grant.models) or not grant.models:
            names += await self._priced()
        fleet = gateway.fleet_of(grant)
        lists = [grant.models, *([fleet.models] if fleet is not None else [])]
        owner = gateway.prices.provider_of
        return [
            name
            for name in dict.fromkeys(names)
            if all(allowed(name, models, provider_of=owner, groups=groups) for models in lists)
        ]

    async def described(self, grant: Grant, name: str) -> dict[str, Any]:
        """Return a model as `model_object` does, and as `nemo` what is known of it.

        Of a group that is what holds for each of its deployments: the smallest context, the highest prices. What is not
        known of one of them is left out.
        """
        await asyncio.to_thread(self._gateway.prices.load)
        targets = self._gateway.targets(name, grant.fleet)
        if isinstance(targets, Refusal):
            return model_object(name)
        prices = self._gateway.prices
        sizes = [target.context_tokens or prices.context_tokens(target.provider, target.model) for target in targets]
        sold = [prices.price(target.provider, target.model) for target in targets]
        facts = {
            "context_tokens": _each(sizes, min),
            "input_nanos_per_million": _each([None if price is None else price.input for price in sold], max),
            "output_nanos_per_million": _each([None if price is None else price.output for price in sold], max),
        }
        return {**model_object(name), "nemo": {key: value for key, value in facts.items() if value is not None}}

    async def _priced(self) -> Sequence[str]:
        """Return every model of the price table whose provider can be called, as `provider/model`."""
        table = await asyncio.to_thread(self._gateway.prices.load)
        if self._known is None or self._known[0] is not table:
            names = await asyncio.to_thread(lambda: [name for name, _ in self._gateway.prices.effective()])
            self._known = table, tuple(sorted(names))
        callable_ = set(self._gateway.providers) | (set(KEY_ENV_OF) if self._gateway.stand_in else set())
        return [name for name in self._known[1] if name.partition("/")[0] in callable_ and not name.endswith("/*")]


def _each(values: Sequence[int | None], choose: Callable[[Sequence[int]], int]) -> int | None:
    known = [value for value in values if value is not None]
    return choose(known) if known and len(known) == len(values) else None


def model_object(name: str) -> dict[str, Any]:
    """Return a model as both wires have it: OpenAI's `object`, `created`, `owned_by`, Anthropic's `type` and names."""
    ours = {"object": "model", "created": 0, "owned_by": "nemo-agents"}
    return {"id": name, **ours, "type": "model", "display_name": name, "created_at": _MADE}


def models_object(names: Sequence[str]) -> dict[str, Any]:
    """Return a list of models: one page, which is the first and the last."""
    ends = {"first_id": names[0] if names else None, "last_id": names[-1] if names else None}
    return {"object": "list", "data": [model_object(name) for name in names], "has_more": False, **ends}
