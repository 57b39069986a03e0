"""A table of prices by provider and model: the one inside `genai-prices`, or one in its format from elsewhere.

Importing this module imports that package, which takes longer than everything else a start does: only `prices`
imports it, when a price is asked for or the gateway has started. The package's look-up functions are not used:
they remember every name they were ever asked for, and names come from clients.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import date, datetime
from decimal import Decimal
from functools import lru_cache
from importlib.metadata import version
from importlib.resources import files
from typing import Final

from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import (
    ModelInfo,
    ModelPrice,
    Provider,
    StartDateConstraint,
    TieredPrices,
    TimeOfDateConstraint,
)

from nemo_agents.gateway.imagetokens import image_tokens
from nemo_agents.money import parse_dollars
from nemo_agents.policy.pricing import Price, PriceTier, ServiceTier

__all__ = ["PriceTable", "package_version", "short_hash"]

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
    "output_citation_mtok",
    "output_image_mtok",
    "output_video_mtok",
    "input_text_messages_kcount",
)
_ASKED_TO_SPEAK: Final = frozenset({"openai"})  # speaks only when the request's `modalities` say so
_BATCH: Final = "batch"
# Priority at Anthropic is paid beforehand, by commitment; its tokens cost what others do.
_PRIORITY_AT_STANDARD: Final = frozenset({"anthropic"})


class PriceTable:
    """Prices by provider and model. `now` gives the time for those that depend on it.

    `source` says where the table is from, `version` names it in the ledger: package version, hash and date.
    """

    def __init__(
        self,
        now: Callable[[], datetime],
        providers: Sequence[Provider] | None = None,
        *,
        version_text: str = "",
        source: str = "package",
    ) -> None:
        self._now = now
        self.source = source
        self.all: list[Provider] = get_snapshot().providers if providers is None else list(providers)
        self.version = _bundled_version(self.all, now().date()) if providers is None else version_text
        self._providers: dict[str, Provider] = {provider.id: provider for provider in self.all}
        # By identity of rows and of the variants that count now; the rows live as long as this table.
        self._converted: dict[tuple[int, ...], Price | None] = {}
        self._find = lru_cache(maxsize=_CACHE_SIZE)(self._search)

    def price(self, provider: str, model: str) -> Price | None:
        """Return the price of a model at a provider; None when the table does not say all that a text call costs."""
        found = self._find(provider, model)
        return None if found is None else self._convert(*found)

    def context_tokens(self, provider: str, model: str) -> int | None:
        """Return how many tokens a model's context has at a provider; None where the table does not say."""
        found = self._find(provider, model)
        return None if found is None else found[1].context_window or None

    def owner(self, model: str) -> str | None:
        """Return the provider whose naming a bare model name follows, also when it is too new to have a price."""
        lower = model.lower()
        for name in _BY_PATTERN:
            pattern = self._providers[name].model_match if name in self._providers else None
            if pattern is not None and pattern.is_match(lower):
                return _OUR_NAME.get(name, name)
        for name in _BY_LISTING:
            if name in self._providers and self._providers[name].find_model(lower) is not None:
                return _OUR_NAME.get(name, name)
        return None

    def models(self) -> Iterator[tuple[str, str, Price | None]]:
        """Yield provider, model and price of everything in the table, by the names that the gateway uses."""
        for provider in self.all:
            for model in provider.models:
                yield _OUR_NAME.get(provider.id, provider.id), model.id, self._convert(provider.id, model, native=True)

    def _search(self, provider: str, model: str) -> tuple[str, ModelInfo, bool] | None:
        row = self._providers.get(_TABLE_NAME.get(provider, provider))
        if row is None or not 0 < len(model) <= _NAME_LENGTH_MAX:
            return None
        found = row.find_model(model, all_providers=self.all)
        return None if found is None else (row.id, found, any(found is own for own in row.models))

    def _convert(self, provider: str, model: ModelInfo, native: bool) -> Price | None:  # noqa: FBT001 - see _search
        """Translate a model's prices of now; a model that another provider's row stands for has no tiers of its own."""
        now = self._now()
        row = model.get_prices(now)
        active = [] if not native else [v for v in model.price_variants or () if _active(v.constraint, now)]
        key = (id(row), id(model), int(native), *map(id, active))
        if key not in self._converted:
            tiers = _service_tiers(provider, model, [_tier_name(variant.when) for variant in active], now)
            self._converted[key] = _price_of(row, provider, model.id, self.version, tiers)
        return self._converted[key]


def package_version() -> str:
    """Return the version of the package whose format and table this is."""
    return version("genai-prices")


def short_hash(raw: bytes) -> str:
    """Return what a version text has of a table's hash: 12 digits of SHA-256."""
    return hashlib.sha256(raw).hexdigest()[:12]


def _bundled_version(providers: Sequence[Provider], today: date) -> str:
    """Name the package's own table; its date is that of the newest change of price which it has and which has come."""
    data = files("genai_prices").joinpath("data.py").read_bytes()
    changes = [
        one.constraint.start_date
        for provider in providers
        for model in provider.models
        if not isinstance(model.prices, ModelPrice)
        for one in model.prices
        if isinstance(one.constraint, StartDateConstraint) and one.constraint.start_date <= today
    ]
    newest = max(changes, default=date.min)
    return f"genai-prices {package_version()} {short_hash(data)} {newest.isoformat()}"


def _active(constraint: StartDateConstraint | TimeOfDateConstraint | None, now: datetime) -> bool:
    return constraint is None or constraint.active(now)


def _tier_name(when: dict[str, str]) -> tuple[str, str] | None:
    """Return the one condition of a variant that a request's service tier can meet."""
    if len(when) != 1:
        return None
    ((key, value),) = when.items()
    return (key, value) if key == "service_tier" or (key, value) == ("processing", _BATCH) else None


def _service_tiers(
    provider: str, model: ModelInfo, conditions: Sequence[tuple[str, str] | None], now: datetime
) -> tuple[ServiceTier, ...]:
    found: dict[str, ServiceTier] = {}
    for condition in conditions:
        if condition is None or condition[1].lower() in found:
            continue
        row = model.get_prices(now, dict([condition]))
        if row.input_mtok is None:
            continue
        name = condition[1].lower()
        found[name] = ServiceTier(name=name, **_rates(row, 0), tiers=_tiers(row))
    row = model.get_prices(now)
    if provider in _PRIORITY_AT_STANDARD and "priority" not in found and row.input_mtok is not None:
        found["priority"] = ServiceTier(name="priority", **_rates(row, 0), tiers=_tiers(row))
    return tuple(found.values())


def _price_of(
    row: ModelPrice, provider: str, model_id: str, table_version: str, service_tiers: tuple[ServiceTier, ...]
) -> Price | None:
    """Translate a row of the table; None when it does not say all that a text call costs."""
    if row.input_mtok is None or any(getattr(row, name) is not None for name in _BILLED_BESIDE):
        return None
    if row.output_mtok is None and not _ANSWERS_NOTHING.search(model_id):
        return None
    if row.output_audio_mtok is not None and provider not in _ASKED_TO_SPEAK:
        return None
    per_thousand = row.requests_kcount
    image_max, image_low = image_tokens(provider, model_id)
    return Price(
        **_rates(row, 0),
        version=table_version,
        request_nanos=0 if per_thousand is None else parse_dollars(_at(per_thousand, 0) / 1000),
        image_tokens_max=image_max,
        image_tokens_low=image_low,
        tiers=_tiers(row),
        service_tiers=service_tiers,
    )


def _tiers(row: ModelPrice) -> tuple[PriceTier, ...]:
    values = [value for value in vars(row).values() if isinstance(value, TieredPrices)]
    starts = sorted({tier.start for value in values for tier in value.tiers})
    return tuple(PriceTier(above=start, **_rates(row, start + 1)) for start in starts)


def _rates(row: ModelPrice, input_tokens: int) -> dict[str, int]:
    """Return the rates for this much input; what has no price of its own is left out."""

    def rate(value: Decimal | TieredPrices | None, otherwise: int) -> int:
        return otherwise if value is None else parse_dollars(_at(value, input_tokens))

    plain = rate(row.input_mtok, 0)
    own = {
        "cache_write_1h": row.cache_write_1h_mtok,
        "reasoning": row.output_reasoning_mtok,
        "audio_input": row.input_audio_mtok,
        "cached_audio": row.cache_audio_read_mtok,
        "audio_output": row.output_audio_mtok,
        "image_input": row.input_image_mtok,
        "cached_image": row.cache_image_read_mtok,
    }
    return {
        "input": plain,
        "cached_input": rate(row.cache_read_mtok, plain),
        "cache_write": rate(row.cache_write_mtok, plain),
        "output": rate(row.output_mtok, 0),
        **{name: rate(value, 0) for name, value in own.items() if value is not None},
    }


def _at(value: Decimal | TieredPrices, input_tokens: int) -> Decimal:
    if isinstance(value, Decimal):
        return value
    above = [tier.price for tier in value.tiers if input_tokens > tier.start]
    return above[-1] if above else value.base
