"""A table of prices in the data format of `genai-prices`, read whole and strictly, or refused with the reason.

The format is that of `prices/new_data/v2/data.json` in the package's repository: a list of providers, each with its
models, each with `prices` (dollars per million tokens, or per thousand of other things), which may depend on a date or
on the time of day, and with variants for service tiers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date, datetime, time
from decimal import Decimal, InvalidOperation
from typing import Any, Final, TypeVar

import msgspec
from genai_prices import types as theirs

__all__ = ["PriceTableError", "check_against", "check_complete", "read_table", "rows_of"]

_DOLLARS_MAX: Final = 1_000_000
_LIKELY_FACTOR: Final = 1000
_NAMED_MAX: Final = 3
_TEXT_CLAUSES: Final[Mapping[str, Callable[[str], theirs.MatchLogic]]] = {
    "starts_with": theirs.ClauseStartsWith,
    "ends_with": theirs.ClauseEndsWith,
    "contains": theirs.ClauseContains,
    "equals": theirs.ClauseEquals,
}
_NO_PRICE: Final = theirs.ModelPrice()
T = TypeVar("T")


class PriceTableError(ValueError):
    """A table that cannot be taken: the text names provider, model and field, and says what would be right."""


def read_table(raw: bytes) -> list[theirs.Provider]:
    """Return the providers of a table. Raises PriceTableError for the first thing that is wrong with it."""
    try:
        document = msgspec.json.Decoder(float_hook=Decimal).decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, InvalidOperation) as error:
        raise PriceTableError(f"The table is not JSON: {error}.") from None
    if not isinstance(document, list):
        raise PriceTableError("The table must be a list of providers, as genai-prices publishes it.")
    if not document:
        raise PriceTableError("The table is an empty list. Give a whole table: it takes the place of the former one.")
    providers = [_provider(f"provider {number}", row) for number, row in enumerate(document, start=1)]
    _unique("providers", (provider.id for provider in providers))
    if not any(provider.models for provider in providers):
        raise PriceTableError("The table has no model. Give a whole table: it takes the place of the former one.")
    return providers


def check_against(former: Iterable[theirs.Provider], table: Iterable[theirs.Provider]) -> None:
    """Refuse a price that is a thousand times off the former one, or nothing where there was one.

    Raises PriceTableError naming provider, model and field.
    """
    known = {(p.id, m.id): list(rows_of(m)) for p in former for m in p.models}
    for provider in table:
        for model in provider.models:
            rows, before = list(rows_of(model)), known.get((provider.id, model.id))
            if before is None or not before or not rows:
                continue
            for field, value in vars(rows[-1]).items():
                old, new = _base(vars(before[-1]).get(field)), _base(value)
                if not old or new is None:
                    continue
                if not old / _LIKELY_FACTOR < new < old * _LIKELY_FACTOR:
                    raise PriceTableError(
                        f"{provider.id}, {model.id}, {field}: {new} is {_LIKELY_FACTOR} times off the former {old}. "
                        "If it is right all the same, give the table again with `force`."
                    )


def check_complete(former: Iterable[theirs.Provider], table: Iterable[theirs.Provider]) -> None:
    """Refuse a table that has no price for models which the former one knows.

    Raises PriceTableError with their number and the first of them.
    """
    new = {provider.id: provider for provider in table}
    everywhere = list(new.values())
    own = {(provider.id, model.id) for provider in everywhere for model in provider.models}
    lost = [
        f"{provider.id}/{model.id}"
        for provider in former
        for model in provider.models
        if (provider.id, model.id) not in own
        and (provider.id not in new or new[provider.id].find_model(model.id, all_providers=everywhere) is None)
    ]
    if lost:
        what = "1 model disappears:" if len(lost) == 1 else f"{len(lost)} models disappear, e.g."
        raise PriceTableError(
            f"{what} {', '.join(lost[:_NAMED_MAX])}. The table takes the place of the former one as a whole; "
            "if that is meant, give it again with `force`."
        )


def rows_of(model: theirs.ModelInfo) -> Iterator[theirs.ModelPrice]:
    """Yield every set of standard prices that a model has, the one with the most precedence last."""
    if isinstance(model.prices, theirs.ModelPrice):
        yield model.prices
    else:
        for conditional in model.prices:
            yield conditional.prices


def _provider(place: str, row: object) -> theirs.Provider:
    fields = _object(place, row)
    where = name = _text(place, "id", fields.get("id"))
    fallback = fields.get("fallback_model_providers")
    if fallback is not None and not (isinstance(fallback, list) and all(isinstance(one, str) for one in fallback)):
        raise PriceTableError(f"{where}, fallback_model_providers: must be a list of provider ids.")
    models = fields.get("models", [])
    if not isinstance(models, list):
        raise PriceTableError(f"{where}, models: must be a list.")
    provider = theirs.Provider(
        id=name,
        name=str(fields.get("name", name)),
        api_pattern=str(fields.get("api_pattern", "")),
        model_match=_optional(_clause, f"{where}, model_match", fields.get("model_match")),
        fallback_model_providers=fallback,
        models=[_model(where, number, model) for number, model in enumerate(models, start=1)],
    )
    _unique(f"{where}: models", (model.id for model in provider.models))
    return provider


def _model(provider: str, number: int, row: object) -> theirs.ModelInfo:
    fields = _object(f"{provider}, model {number}", row)
    name = _text(f"{provider}, model {number}", "id", fields.get("id"))
    where = f"{provider}, {name}"
    prices = fields.get("prices")
    if isinstance(prices, list):
        if not prices:
            raise PriceTableError(f"{where}, prices: is empty.")
        conditional = [_conditional(where, one) for one in prices]
    variants = fields.get("price_variants")
    if variants is not None and not isinstance(variants, list):
        raise PriceTableError(f"{where}, price_variants: must be a list.")
    return theirs.ModelInfo(
        id=name,
        match=_clause(f"{where}, match", fields.get("match", {"equals": name})),
        prices=conditional if isinstance(prices, list) else _prices(where, prices),
        price_variants=None if variants is None else [_variant(where, one) for one in variants],
    )


def _conditional(where: str, row: object) -> theirs.ConditionalPrice:
    fields = _object(f"{where}, prices", row)
    return theirs.ConditionalPrice(
        constraint=_constraint(where, fields.get("constraint")), prices=_prices(where, fields.get("prices"))
    )


def _variant(where: str, row: object) -> theirs.PriceVariant:
    fields = _object(f"{where}, price_variants", row)
    when = _object(f"{where}, price_variants, when", fields.get("when"))
    if not when or not all(isinstance(value, str) for value in when.values()):
        raise PriceTableError(f"{where}, price_variants, when: must map names to texts, such as service_tier to flex.")
    return theirs.PriceVariant(
        when=dict(when),
        prices=_prices(where, fields.get("prices"), partial=True),
        constraint=_constraint(where, fields.get("constraint")),
    )


def _prices(where: str, row: object, *, partial: bool = False) -> theirs.ModelPrice:
    fields = {name: value for name, value in _object(f"{where}, prices", row).items() if value is not None}
    for name in fields:
        if not hasattr(_NO_PRICE, name):
            raise PriceTableError(f"{where}, {name}: no such price.")
    if not partial and "input_mtok" not in fields and any(name.endswith("_mtok") for name in fields):
        raise PriceTableError(f"{where}, input_mtok: is missing. Give dollars per million tokens, 0 when it is free.")
    return theirs.ModelPrice(**{name: _amount(f"{where}, {name}", value) for name, value in fields.items()})


def _amount(where: str, value: object) -> Decimal | theirs.TieredPrices:
    if not isinstance(value, dict):
        return _dollars(where, value)
    tiers = value.get("tiers")
    if not isinstance(tiers, list) or not all(isinstance(tier, dict) for tier in tiers):
        raise PriceTableError(f"{where}, tiers: must be a list of start and price.")
    starts = [tier.get("start") for tier in tiers]
    if not all(type(start) is int and start >= 0 for start in starts) or len(set(starts)) != len(starts):
        raise PriceTableError(f"{where}, tiers: each begins at another whole number of tokens (got {starts!r}).")
    return theirs.TieredPrices(
        base=_dollars(where, value.get("base")),
        tiers=[theirs.Tier(start=tier["start"], price=_dollars(where, tier.get("price"))) for tier in tiers],
    )


def _dollars(where: str, value: object) -> Decimal:
    try:
        amount = Decimal(value) if isinstance(value, (int, str, Decimal)) and type(value) is not bool else None
    except InvalidOperation:
        amount = None
    if amount is None or not amount.is_finite() or not 0 <= amount <= _DOLLARS_MAX:
        raise PriceTableError(f"{where}: must be dollars from 0 to a million (got {str(value)[:60]!r}).")
    return amount


def _base(value: object) -> Decimal | None:
    if isinstance(value, theirs.TieredPrices):
        return value.base
    return value if isinstance(value, Decimal) else None


def _constraint(where: str, row: object) -> theirs.StartDateConstraint | theirs.TimeOfDateConstraint | None:
    if row is None:
        return None
    fields = _object(f"{where}, constraint", row)
    try:
        if "start_date" in fields:
            return theirs.StartDateConstraint(start_date=_date(fields["start_date"]))
        return theirs.TimeOfDateConstraint(
            start_time=time.fromisoformat(fields["start_time"]), end_time=time.fromisoformat(fields["end_time"])
        )
    except (KeyError, TypeError, ValueError):
        raise PriceTableError(
            f"{where}, constraint: must be a start_date, or a start_time and an end_time, in ISO 8601."
        ) from None


def _date(value: str) -> date:
    return datetime.fromisoformat(value).date() if "T" in value else date.fromisoformat(value)


def _clause(where: str, row: object) -> theirs.MatchLogic:
    fields = _object(where, row)
    if len(fields) != 1:
        raise PriceTableError(f"{where}: must be one rule, such as {{'equals': 'name'}}.")
    ((kind, value),) = fields.items()
    if kind in ("or", "and"):
        if not isinstance(value, list) or not value:
            raise PriceTableError(f"{where}, {kind}: must be a list of rules.")
        rules = [_clause(where, one) for one in value]
        return theirs.ClauseOr(or_=rules) if kind == "or" else theirs.ClauseAnd(and_=rules)
    if not isinstance(value, str) or not value:
        raise PriceTableError(f"{where}, {kind}: must be a text.")
    if kind == "regex":
        try:
            re.compile(value)
        except (re.error, OverflowError, RecursionError) as error:
            raise PriceTableError(f"{where}, regex: {error}.") from None
        return theirs.ClauseRegex(regex=value)
    if kind not in _TEXT_CLAUSES:
        raise PriceTableError(f"{where}, {kind}: no such rule. There are {', '.join(_TEXT_CLAUSES)}, regex, or, and.")
    return _TEXT_CLAUSES[kind](value)


def _object(where: str, row: object) -> Mapping[str, Any]:
    if not isinstance(row, dict):
        raise PriceTableError(f"{where}: must be an object (got {str(row)[:60]!r}).")
    return row


def _text(where: str, field: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise PriceTableError(f"{where}, {field}: must be a text.")
    return value


def _optional(read: Callable[[str, object], T], where: str, value: object) -> T | None:
    return None if value is None else read(where, value)


def _unique(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise PriceTableError(f"{what}: {name} is there twice.")
        seen.add(name)
