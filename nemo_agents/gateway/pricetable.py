"""The table of prices inside `genai-prices`, read once, from the package's own files.

Importing this module imports that package, which takes longer than everything else a start does: only `prices`
imports it, when a price is asked for or the gateway has started. The package's look-up functions are not used:
they remember every name they were ever asked for, and names come from clients.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from importlib.metadata import version
from typing import Final

from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ModelInfo, ModelPrice, Provider, TieredPrices

from nemo_agents.money import parse_dollars
from nemo_agents.policy.pricing import Price, PriceTier

__all__ = ["PriceTable"]

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


class PriceTable:
    """The prices that the package knows, by provider and model. `now` gives the time for those that depend on it."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._all = get_snapshot().providers
        self._providers: dict[str, Provider] = {provider.id: provider for provider in self._all}
        self._converted: dict[int, Price | None] = {}  # by identity of a row; the rows live as long as the process
        self._find = lru_cache(maxsize=_CACHE_SIZE)(self._search)
        self._version = f"genai-prices {version('genai-prices')}"

    def price(self, provider: str, model: str) -> Price | None:
        """Return the price of a model at a provider; None when the table does not say all that a text call costs."""
        found = self._find(provider, model)
        return None if found is None else self._convert(found)

    def owner(self, model: str) -> str | None:
        """Return the provider whose naming a bare model name follows, also when it is too new to have a price."""
        lower = model.lower()
        for name in _BY_PATTERN:
            pattern = self._providers[name].model_match
            if pattern is not None and pattern.is_match(lower):
                return _OUR_NAME.get(name, name)
        for name in _BY_LISTING:
            if self._providers[name].find_model(lower) is not None:
                return _OUR_NAME.get(name, name)
        return None

    def _search(self, provider: str, model: str) -> ModelInfo | None:
        row = self._providers.get(_TABLE_NAME.get(provider, provider))
        if row is None or not 0 < len(model) <= _NAME_LENGTH_MAX:
            return None
        return row.find_model(model, all_providers=self._all)

    def _convert(self, model: ModelInfo) -> Price | None:
        row = model.get_prices(self._now())
        if id(row) not in self._converted:
            self._converted[id(row)] = _price_of(row, model.id, self._version)
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
        request_nanos=0 if per_thousand is None else parse_dollars(_at(per_thousand, 0) / 1000),
        tiers=tuple(PriceTier(above=start, **_rates(row, start + 1)) for start in starts),
    )


def _rates(row: ModelPrice, input_tokens: int) -> dict[str, int]:
    """Return the rates for this much input; where reasoning has its own price, the dearer one counts."""

    def rate(value: Decimal | TieredPrices | None, otherwise: int) -> int:
        return otherwise if value is None else parse_dollars(_at(value, input_tokens))

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
