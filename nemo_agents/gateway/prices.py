"""Prices of models: the table inside `genai-prices`, and what the configuration declares over it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from nemo_agents.errors import SettingsError
from nemo_agents.money import parse_dollars
from nemo_agents.policy.pricing import Price
from nemo_agents.policy.routing import SANDBOX

if TYPE_CHECKING:
    from nemo_agents.gateway.pricetable import PriceTable

__all__ = ["FREE", "PriceBook", "declared_prices"]

_NAME_LENGTH_MAX: Final = 256
_CACHE_SIZE: Final = 4096
_RATE_FIELDS: Final = (
    "input_per_mtok",
    "output_per_mtok",
    "cached_input_per_mtok",
    "cache_write_per_mtok",
    "per_request",
)


class PriceBook:
    """The price of each model at each provider.

    The package's table is read when it is first needed, or by `load`. `declared` prices (by `provider/model`, by a
    bare name for every provider, or by `provider/*` for all of its models) count over the table's. `now` gives the
    time for prices that depend on it (off-peak, announced changes). `priced_as` maps a configured provider to the one
    whose prices it charges.
    """

    def __init__(
        self,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(tz=UTC),
        declared: Mapping[str, Price] | None = None,
        priced_as: Mapping[str, str] | None = None,
    ) -> None:
        self._now = now
        self._declared = dict(declared or {})
        self._priced_as = dict(priced_as or {})
        self._table: PriceTable | None = None
        self._owner = lru_cache(maxsize=_CACHE_SIZE)(self._search_owner)

    def load(self) -> PriceTable:
        """Read the table now, which takes some tenths of a second; any thread may do it."""
        if self._table is None:
            from nemo_agents.gateway.pricetable import PriceTable  # noqa: PLC0415 - slow, and seldom needed at once

            self._table = PriceTable(self._now)
        return self._table

    def price(self, provider: str, model: str) -> Price | None:
        """Return the price of a model at a provider; None when it is not known, which is not free.

        The sandbox charges what the model it stands for costs.
        """
        if provider == SANDBOX:
            named, slash, rest = model.partition("/")
            if not slash:
                named, rest = self.provider_of(model) or "", model
            return None if named == SANDBOX else self.price(named, rest)
        for name in (f"{provider}/{model}", model, f"{provider}/*"):
            if name in self._declared:
                return self._declared[name]
        return self.load().price(self._priced_as.get(provider, provider), model)

    def provider_of(self, model: str) -> str | None:
        """Return the provider that a bare model name belongs to; None when no provider is known for it.

        A model that follows a provider's naming is that provider's, also when it is too new to have a price
        here.
        """
        return self._owner(model)

    def _search_owner(self, model: str) -> str | None:
        for name in self._declared:
            provider, _, rest = name.partition("/")
            if rest == model:
                return provider
        if not 0 < len(model) <= _NAME_LENGTH_MAX:
            return None
        return "openai" if model.startswith("ft:") else self.load().owner(model)


FREE: Final = Price(input=0, cached_input=0, cache_write=0, output=0, version="free")
"""The price of models that run on the user's own machine."""


def declared_prices(config: Mapping[str, Any]) -> dict[str, Price]:
    """Read the `[prices."provider/model"]` tables of a configuration, by name.

    `input_per_mtok`, `output_per_mtok` and optionally `cached_input_per_mtok` and `cache_write_per_mtok` are dollars
    per million tokens, `per_request` is dollars per request. Zeros make a model free; a missing price does not. Raises
    SettingsError naming table, field and value.
    """
    tables = config.get("prices", {})
    if not isinstance(tables, Mapping):
        raise SettingsError(f'prices: must be tables such as [prices."ollama/llama3.3"] (got {tables!r}).')
    return {name: _declared(name, table) for name, table in tables.items()}


def _declared(name: str, table: object) -> Price:
    where = f'[prices."{name}"]'
    if not isinstance(table, Mapping):
        raise SettingsError(f"{where}: must be a table with input_per_mtok and output_per_mtok (got {table!r}).")
    for field in table:
        if field not in _RATE_FIELDS:
            raise SettingsError(f"{where} {field}: no such field. Use {', '.join(_RATE_FIELDS)}.")
    amounts = {field: _dollars(where, field, value) for field, value in table.items()}
    for field in ("input_per_mtok", "output_per_mtok"):
        if field not in amounts:
            raise SettingsError(f"{where} {field}: is missing. Give dollars per million tokens, 0 when it is free.")
    return Price(
        input=amounts["input_per_mtok"],
        cached_input=amounts.get("cached_input_per_mtok", amounts["input_per_mtok"]),
        cache_write=amounts.get("cache_write_per_mtok", amounts["input_per_mtok"]),
        output=amounts["output_per_mtok"],
        request_nanos=amounts.get("per_request", 0),
        version="configuration",
    )


def _dollars(where: str, field: str, value: object) -> int:
    try:
        amount = Decimal("NaN") if isinstance(value, bool) else Decimal(str(value))
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite() or not 0 <= amount <= 10**6:
        unit = "per request" if field == "per_request" else "per million tokens"
        raise SettingsError(f"{where} {field}: must be dollars {unit}, from 0 to a million (got {value!r}).")
    return parse_dollars(amount)
