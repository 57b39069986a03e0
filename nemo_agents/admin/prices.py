"""The prices that count: `/nemo/prices`. Rates are nanos per million tokens, fees nanos each."""

from __future__ import annotations

import msgspec

from nemo_agents.admin.calls import Call, as_type, query_of

__all__ = [
    "PriceList",
    "PriceRow",
    "RatesRow",
    "ServiceTierRow",
    "TableChanged",
    "TierRow",
    "effective",
    "give",
    "reset",
]


class RatesRow(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Rates of one kind of call; what is None has no price of its own."""

    input: int
    cached_input: int
    cache_write: int
    output: int
    cache_write_1h: int | None = None
    reasoning: int | None = None
    audio_input: int | None = None
    cached_audio: int | None = None
    audio_output: int | None = None
    image_input: int | None = None
    cached_image: int | None = None


class TierRow(RatesRow, kw_only=True, omit_defaults=True):
    """Rates of calls whose input is larger than `above` tokens."""

    above: int


class ServiceTierRow(RatesRow, kw_only=True, omit_defaults=True):
    """Rates of one service tier."""

    name: str
    tiers: list[TierRow] = []


class PriceRow(RatesRow, kw_only=True, omit_defaults=True):
    """The price of one model. `name` is `provider/model`; declared ones may be bare, or end in `/*`."""

    name: str
    version: str
    request_nanos: int = 0
    image_nanos: int = 0
    image_tokens_max: int
    image_tokens_low: int
    tiers: list[TierRow] = []
    service_tiers: list[ServiceTierRow] = []


class PriceList(msgspec.Struct, kw_only=True):
    """The prices that count, and the table most of them are from.

    `source` is `package`, `update` or what the admin named; `given` when a table that is not the package's was given
    (RFC 3339).
    """

    version: str
    source: str
    given: str | None = None
    prices: list[PriceRow]


class TableChanged(msgspec.Struct, kw_only=True):
    """A table that counts now, and the one that counted before."""

    version: str
    former: str


def effective(model: str | None = None) -> Call[PriceList]:
    """Read the prices that count, of all models or of those whose name has `model` in it."""
    return Call(method="GET", path="/nemo/prices", query=query_of(model=model), decode=as_type(PriceList))


def give(table: bytes, *, source: str, force: bool = False) -> Call[TableChanged]:
    """Let a table in the data format of genai-prices count; it takes the place of the former one."""
    body = {"table": msgspec.Raw(table), "source": source, "force": force}
    return Call(method="POST", path="/nemo/prices", body=body, decode=as_type(TableChanged))


def reset() -> Call[TableChanged]:
    """Let the table inside the installed package count again."""
    return Call(method="POST", path="/nemo/prices", body={"table": None}, decode=as_type(TableChanged))
