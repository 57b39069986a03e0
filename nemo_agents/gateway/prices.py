"""Prices of models: the table inside `genai-prices`, and what the configuration declares over it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import ROUND_CEILING, Decimal, InvalidOperation
from functools import lru_cache
from importlib.metadata import version
from typing import Any, Final

from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ModelInfo, ModelPrice, Provider, TieredPrices

from nemo_agents.errors import SettingsError
from nemo_agents.money import NANOS_PER_DOLLAR
from nemo_agents.policy.pricing import Price, PriceTier
from nemo_agents.policy.routing import SANDBOX

__all__ = ["FREE", "PriceBook", "declared_prices"]

_TABLE_NAME: Final = {"gemini": "google", "xai": "x-ai"}
_OUR_NAME: Final = {theirs: ours for ours, theirs in _TABLE_NAME.items()}

# Companies whose models are known by their bare names, and after them places that serve models of others.
_BY_PATTERN: Final = ("openai", "anthropic", "google", "mistral", "deepseek", "x-ai")
_BY_LISTING: Final = (*_BY_PATTERN, "groq")

_NAME_LENGTH_MAX: Final = 256
_CACHE_SIZE: Final = 4096
_ANSWERS_NOTHING: Final = re.compile(r"embed|rerank|\b(?:bge|gte|voyage)\b", re.IGNORECASE)
# Models that answer in something dearer than text, or bill what no token bound covers.
_BILLED_BESIDE: Final = (
    "output_audio_mtok",
    "output_citation_mtok",
    "output_image_mtok",
    "output_video_mtok",
    "input_text_messages_kcount",
)
_RATE_FIELDS: Final = (
    "input_per_mtok",
    "output_per_mtok",
    "cached_input_per_mtok",
    "cache_write_per_mtok",
    "per_request",
)


class PriceBook:
    """The price of each model at each provider.

    The package's table is read once, from its own files. Its look-up functions are not used: they remember every
    name they were ever asked for, and names come from clients. `declared` prices (by `provider/model`, by a bare name
    for every provider, or by `provider/*` for all of its models) count over the table's. `now` gives the time for
    prices that depend on it (off-peak, announced changes). `priced_as` maps a configured provider to the one whose
    prices it charges.
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
        self._all = get_snapshot().providers
        self._providers: dict[str, Provider] = {provider.id: provider for provider in self._all}
        self._converted: dict[int, Price | None] = {}  # by identity of a row; the rows live as long as the process
        self._find = lru_cache(maxsize=_CACHE_SIZE)(self._search)
        self._owner = lru_cache(maxsize=_CACHE_SIZE)(self._search_owner)
        self.version = f"genai-prices {version('genai-prices')}"

    def declare(self, name: str, price: Price) -> None:
        """Set the price of `provider/model`, or of a bare model name at every provider, over the table's."""
        self._declared[name] = price
        self._owner.cache_clear()

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
        found = self._find(self._priced_as.get(provider, provider), model)
        return None if found is None else self._convert(found)

    def provider_of(self, model: str) -> str | None:
        """Return the provider that a bare model name belongs to; None when no provider is known for it.

        A model that follows a provider's naming is that provider's, also when it is too new to have a price
        here.
        """
        return self._owner(model)

    def context_window(self, model: str) -> int | None:
        """Return the most tokens that `provider/model` or a bare name can read, where the table knows it."""
        provider, slash, name = model.partition("/")
        if slash and provider == SANDBOX:
            return self.context_window(name)
        owner = provider if slash else self.provider_of(model)
        found = self._find(self._priced_as.get(owner, owner), name if slash else model) if owner else None
        return None if found is None else found.context_window

    def _search(self, provider: str, model: str) -> ModelInfo | None:
        row = self._providers.get(_TABLE_NAME.get(provider, provider))
        if row is None or not 0 < len(model) <= _NAME_LENGTH_MAX:
            return None
        return row.find_model(model, all_providers=self._all)

    def _search_owner(self, model: str) -> str | None:
        for name in self._declared:
            provider, _, rest = name.partition("/")
            if rest == model:
                return provider
        if not 0 < len(model) <= _NAME_LENGTH_MAX:
            return None
        if model.startswith("ft:"):
            return "openai"
        lower = model.lower()
        for name in _BY_PATTERN:
            pattern = self._providers[name].model_match
            if pattern is not None and pattern.is_match(lower):
                return _OUR_NAME.get(name, name)
        for name in _BY_LISTING:
            if self._providers[name].find_model(lower) is not None:
                return _OUR_NAME.get(name, name)
        return None

    def _convert(self, model: ModelInfo) -> Price | None:
        row = model.get_prices(self._now())
        if id(row) not in self._converted:
            self._converted[id(row)] = _price_of(row, model.id, self.version)
        return self._converted[id(row)]


def _price_of(row: ModelPrice, model_id: str, table_version: str) -> Price | None:
    """Translate a row of the table; None when it does not say all that a text call costs."""
    if row.input_mtok is None or any(getattr(row, name) is not None for name in _BILLED_BESIDE):
        return None
    if row.output_mtok is None and not _ANSWERS_NOTHING.search(model_id):
        return None
    fields = (
        row.input_mtok,
        row.output_mtok,
        row.output_reasoning_mtok,
        row.cache_read_mtok,
        row.cache_write_mtok,
    )
    starts = sorted({tier.start for value in fields if isinstance(value, TieredPrices) for tier in value.tiers})
    per_thousand = row.requests_kcount
    return Price(
        **_rates(row, 0),
        version=table_version,
        request_nanos=0 if per_thousand is None else _nanos(_at(per_thousand, 0) / 1000),
        tiers=tuple(PriceTier(above=start, **_rates(row, start + 1)) for start in starts),
    )


def _rates(row: ModelPrice, input_tokens: int) -> dict[str, int]:
    """Return the rates for this much input; where reasoning has its own price, the dearer one counts."""

    def rate(value: Decimal | TieredPrices | None, otherwise: int) -> int:
        return otherwise if value is None else _nanos(_at(value, input_tokens))

    plain = rate(row.input_mtok, 0)
    output = rate(row.output_mtok, 0)
    return {
        "input": plain,
        "cached_input": rate(row.cache_read_mtok, plain),
        "cache_write": rate(row.cache_write_mtok, plain),
        "output": max(output, rate(row.output_reasoning_mtok, output)),
    }


def _at(value: Decimal | TieredPrices, input_tokens: int) -> Decimal:
    if isinstance(value, Decimal):
        return value
    above = [tier.price for tier in value.tiers if input_tokens > tier.start]
    return above[-1] if above else value.base


def _nanos(dollars: Decimal) -> int:
    return int((dollars * NANOS_PER_DOLLAR).to_integral_value(rounding=ROUND_CEILING))


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
    return _nanos(amount)
