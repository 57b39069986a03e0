"""Prices that the configuration declares: the `[prices."provider/model"]` tables."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from nemo_agents.errors import SettingsError
from nemo_agents.money import parse_dollars
from nemo_agents.policy.pricing import IMAGE_TOKENS_MAX, Price, PriceTier, Rates, ServiceTier

__all__ = ["declared_prices"]

_SUFFIX: Final = "_per_mtok"
_REQUIRED: Final = ("input_per_mtok", "output_per_mtok")
_RATES: Final = (
    *_REQUIRED,
    "cached_input_per_mtok",
    "cache_write_per_mtok",
    "cache_write_1h_per_mtok",
    "reasoning_per_mtok",
    "audio_input_per_mtok",
    "cached_audio_per_mtok",
    "audio_output_per_mtok",
    "image_input_per_mtok",
    "cached_image_per_mtok",
)
_FEES: Final = ("per_request", "per_image")
_IMAGE_SIZES: Final = ("image_tokens_max", "image_tokens_low")
_FIELDS: Final = (*_RATES, *_FEES, *_IMAGE_SIZES, "tiers", "service_tiers")
_TOKENS_MAX: Final = 10**9


def declared_prices(config: Mapping[str, Any]) -> dict[str, Price]:
    """Read the `[prices."provider/model"]` tables of a configuration, by name.

    What ends in `_per_mtok` is dollars per million tokens, `per_request` and `per_image` are dollars each, and
    `image_tokens_max` (of low detail: `image_tokens_low`) is how many tokens one image becomes at most. `tiers` is a
    list of tables of rates, each for calls whose input is larger than its `above`; `service_tiers` a table by name of
    either a `multiplier` of all rates or rates of their own. Zeros make a model free; a missing price does not. Raises
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
    _check_fields(where, table, _FIELDS)
    rates = _rates(where, table)
    most = _tokens(where, "image_tokens_max", table.get("image_tokens_max", IMAGE_TOKENS_MAX))
    low = _tokens(where, "image_tokens_low", table.get("image_tokens_low", most))
    if low > most:
        raise SettingsError(f"{where} image_tokens_low: must be at most image_tokens_max, {most} (got {low}).")
    tiers = _tiers(where, table.get("tiers", []))
    return Price(
        **rates,
        version="configuration",
        request_nanos=_dollars(where, "per_request", table.get("per_request", 0)),
        image_nanos=_dollars(where, "per_image", table.get("per_image", 0)),
        image_tokens_max=most,
        image_tokens_low=low,
        tiers=tiers,
        service_tiers=_service_tiers(where, table.get("service_tiers", {}), rates, tiers),
    )


def _rates(where: str, table: Mapping[str, Any]) -> dict[str, int]:
    amounts = {
        field.removesuffix(_SUFFIX): _dollars(where, field, table[field])
        for field in _RATES
        if table.get(field) is not None
    }
    for field in _REQUIRED:
        if field.removesuffix(_SUFFIX) not in amounts:
            raise SettingsError(f"{where} {field}: is missing. Give dollars per million tokens, 0 when it is free.")
    return {"cached_input": amounts["input"], "cache_write": amounts["input"], **amounts}


def _tiers(where: str, rows: object) -> tuple[PriceTier, ...]:
    if not isinstance(rows, list):
        raise SettingsError(f"{where} tiers: must be a list of tables with above and rates (got {rows!r}).")
    tiers: list[PriceTier] = []
    for number, row in enumerate(rows):
        here = f"{where} tiers[{number}]"
        if not isinstance(row, Mapping):
            raise SettingsError(f"{here}: must be a table with above and rates (got {row!r}).")
        _check_fields(here, row, ("above", *_RATES))
        above = _tokens(here, "above", row.get("above"))
        if tiers and above <= tiers[-1].above:
            raise SettingsError(f"{here} above: must be more than that of the tier before, {tiers[-1].above}.")
        tiers.append(PriceTier(above=above, **_rates(here, row)))
    return tuple(tiers)


def _service_tiers(
    where: str, tables: object, rates: Mapping[str, int], tiers: tuple[PriceTier, ...]
) -> tuple[ServiceTier, ...]:
    if not isinstance(tables, Mapping):
        raise SettingsError(f"{where} service_tiers: must be tables by name, such as flex (got {tables!r}).")
    found = []
    for name, row in tables.items():
        here = f"{where} service_tiers.{name}"
        if not isinstance(row, Mapping):
            raise SettingsError(f"{here}: must be a table with a multiplier or with rates (got {row!r}).")
        if "multiplier" in row:
            _check_fields(here, row, ("multiplier",))
            factor = _number(row["multiplier"])
            if factor is None or not 0 <= factor <= 1000:
                raise SettingsError(f"{here} multiplier: must be from 0 to 1000 (got {row['multiplier']!r}).")
            scaled = tuple(PriceTier(above=tier.above, **_scaled(_as_dict(tier), factor)) for tier in tiers)
            found.append(ServiceTier(name=name.lower(), **_scaled(rates, factor), tiers=scaled))
        else:
            _check_fields(here, row, (*_RATES, "tiers"))
            own = _tiers(here, row.get("tiers", []))
            found.append(ServiceTier(name=name.lower(), **_rates(here, row), tiers=own))
    return tuple(found)


def _as_dict(rates: Rates) -> dict[str, int]:
    values = {field.removesuffix(_SUFFIX): getattr(rates, field.removesuffix(_SUFFIX)) for field in _RATES}
    return {name: value for name, value in values.items() if value is not None}


def _scaled(rates: Mapping[str, int], factor: Decimal) -> dict[str, int]:
    """Multiply rates, rounded up to a whole nano per million tokens."""
    return {name: -int(-(rate * factor) // 1) for name, rate in rates.items()}


def _check_fields(where: str, table: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for field in table:
        if field not in known:
            raise SettingsError(f"{where} {field}: no such field. Use {', '.join(known)}.")


def _dollars(where: str, field: str, value: object) -> int:
    amount = _number(value)
    if amount is None or not 0 <= amount <= 10**6:
        unit = {"per_request": "per request", "per_image": "per image"}.get(field, "per million tokens")
        raise SettingsError(f"{where} {field}: must be dollars {unit}, from 0 to a million (got {value!r}).")
    return parse_dollars(amount)


def _tokens(where: str, field: str, value: object) -> int:
    if type(value) is not int or not 0 <= value <= _TOKENS_MAX:
        raise SettingsError(f"{where} {field}: must be a whole number of tokens from 0 to a billion (got {value!r}).")
    return value


def _number(value: object) -> Decimal | None:
    try:
        amount = Decimal("NaN") if isinstance(value, bool) else Decimal(str(value))
    except InvalidOperation:
        return None
    return amount if amount.is_finite() else None
