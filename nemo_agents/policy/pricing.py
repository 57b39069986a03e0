"""What a call costs, and what it can cost at most.

Prices are integer nanos (1e-9 dollar) per million tokens, so that every published price is exact. A hold is
an upper bound: no usage within its bounds costs more. Amounts are rounded up, once, at the end.

What bounds a request's tokens is in `requestsize`, what it brings along beside text in `content`; both are offered
here as well, because nobody prices a call without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from nemo_agents.policy.content import PROVIDER_TOOL_FIELDS, TEXT_ONLY, Content, content_boundable, content_of
from nemo_agents.policy.requestsize import (
    OUTPUT_TOKENS_MAX,
    ParamError,
    answers_asked,
    bytes_read,
    input_tokens_bound,
    input_tokens_estimate,
    output_cap,
    output_tokens_max,
)
from nemo_agents.policy.usage import Usage

__all__ = [
    "IMAGE_TOKENS_MAX",
    "OUTPUT_TOKENS_MAX",
    "PROVIDER_TOOL_FIELDS",
    "TEXT_ONLY",
    "UNKNOWN_TIER_FACTOR",
    "Content",
    "ParamError",
    "Price",
    "PriceTier",
    "Rates",
    "ServiceTier",
    "TieredRates",
    "answers_asked",
    "bytes_read",
    "clamp_output_tokens",
    "content_boundable",
    "content_of",
    "cost_nanos",
    "fixed_price",
    "input_tokens_bound",
    "input_tokens_estimate",
    "output_cap",
    "output_tokens_max",
    "pinned_service_tier",
    "unpriced_component",
    "upper_bound_nanos",
]

_MTOK: Final = 1_000_000
UNKNOWN_TIER_FACTOR: Final = 4
"""How much dearer a service tier without a published price may be: the dearest one published is 3.6 times as dear."""
IMAGE_TOKENS_MAX: Final = 48_169
"""The most tokens that an image becomes where no nearer rule is known: eight tiles of gpt-4o-mini's 5,667 tokens
and its base of 2,833 (OpenAI, "Images and vision", calculating costs), dearer than every other published rule."""

_STANDARD_TIERS: Final = frozenset({"default", "standard", "standard_only"})
_NO_DEARER_TIERS: Final = frozenset({"batch", "flex", "on_demand", "scale"})
_PINNED_TIER: Final = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Nanos per million tokens; where a provider has no price for cached or written input, that of input.

    A rate that is None has no price of its own: what it stands for is billed as the whole that it is part of, an image
    or sound as input, reasoning and speech as output. Only a cache of an hour is then billed at twice the input, as
    Anthropic does, and cached sound or images get no discount.
    """

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
    text_most: int = field(init=False, repr=False, compare=False)  # however a token of text is billed, but for an hour
    output_most: int = field(init=False, repr=False, compare=False)  # however one of a written answer is

    def __post_init__(self) -> None:
        if min(self._all()) < 0:
            raise ValueError(f"a price is at least 0: {self}")
        # Worked out once: every call asks for them.
        object.__setattr__(self, "text_most", max(self.input, self.cached_input, self.cache_write))
        object.__setattr__(self, "output_most", max(self.output, self.reasoning or 0))

    def _all(self) -> list[int]:
        optional = (
            self.cache_write_1h,
            self.reasoning,
            self.audio_input,
            self.cached_audio,
            self.audio_output,
            self.image_input,
            self.cached_image,
        )
        plain = (self.input, self.cached_input, self.cache_write, self.output)
        return [*plain, *(rate for rate in optional if rate is not None)]

    @property
    def hour_write(self) -> int:
        """The rate of input that is cached for an hour."""
        return max(self.cache_write, 2 * self.input) if self.cache_write_1h is None else self.cache_write_1h


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceTier(Rates):
    """Rates for all tokens of a call whose input is larger than `above` tokens."""

    above: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TieredRates(Rates):
    """Rates, with dearer tiers for long input."""

    tiers: tuple[PriceTier, ...] = ()

    def __post_init__(self) -> None:
        Rates.__post_init__(self)  # super() does not reach through a slotted dataclass
        if [tier.above for tier in self.tiers] != sorted({tier.above for tier in self.tiers}):
            raise ValueError("price tiers are in ascending order, and no two begin at the same size")

    def rates_for(self, input_tokens: int) -> Rates:
        """Return the rates for this much input; crossing into a tier reprices all tokens of the call."""
        rates: Rates = self
        for tier in self.tiers:
            if input_tokens > tier.above:
                rates = tier
        return rates

    def within_reach(self, input_tokens_max: int) -> Sequence[Rates]:
        """Return every set of rates that a call of at most this much input can be billed at."""
        if not self.tiers:
            return (self,)
        return (self, *[tier for tier in self.tiers if tier.above < input_tokens_max])


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceTier(TieredRates):
    """The rates of one service tier (`flex`, `priority`, `batch`, …); `name` as the provider's wire has it."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Price(TieredRates):
    """The price of one model: its rates, dearer tiers for long input, and what is billed beside tokens.

    `version` says where the numbers are from; a ledger entry keeps it, so that a later table changes no past
    amount. `request_nanos` is the fee of a request, `image_nanos` that of each image in it. `image_tokens_max` and
    `image_tokens_low` are the most tokens that one image becomes, at any detail and at low detail.
    """

    version: str
    request_nanos: int = 0
    image_nanos: int = 0
    image_tokens_max: int = IMAGE_TOKENS_MAX
    image_tokens_low: int = IMAGE_TOKENS_MAX
    service_tiers: tuple[ServiceTier, ...] = ()
    also_standard: tuple[ServiceTier, ...] = field(init=False, repr=False, compare=False)  # the usual tier by its names

    def __post_init__(self) -> None:
        TieredRates.__post_init__(self)
        named = tuple([tier for tier in self.service_tiers if tier.name in _STANDARD_TIERS])
        object.__setattr__(self, "also_standard", named)
        if min(self.request_nanos, self.image_nanos) < 0:
            raise ValueError(f"a price is at least 0: {self}")
        if not 0 <= self.image_tokens_low <= self.image_tokens_max:
            raise ValueError("an image of low detail is at most as many tokens as any image")
        if len({tier.name for tier in self.service_tiers}) != len(self.service_tiers):
            raise ValueError("each service tier has one price")

    def image_tokens(self, content: Content) -> int:
        """Return how many tokens the images of a request are at most."""
        high = content.images - content.images_low
        return high * self.image_tokens_max + content.images_low * self.image_tokens_low


def fixed_price(request_nanos: int) -> Price:
    """Return the price that a role declares per request, for a model that has none of its own."""
    return Price(input=0, cached_input=0, cache_write=0, output=0, request_nanos=request_nanos, version="role")


def upper_bound_nanos(price: Price, input_tokens_max: int, output_tokens_max: int, content: Content = TEXT_ONLY) -> int:
    """Return what a call costs at most: the dearest way to bill each token, over every tier it can reach.

    `input_tokens_max` bounds the text alone; images and sound come on top, as `content` has them.
    """
    if input_tokens_max < 0 or output_tokens_max < 0:
        raise ValueError("token bounds are at least 0")
    if content is TEXT_ONLY:
        return price.request_nanos + _per_mtok(_dearest_text(price, input_tokens_max, output_tokens_max))
    dearest = 0
    options, factor = _billed_as(price, content.service_tier)
    images = price.image_tokens(content)
    total = input_tokens_max + images + content.audio_tokens
    for rates in [rates for option in options for rates in option.within_reach(total)]:
        text = max(rates.text_most, rates.hour_write) if content.long_cache else rates.text_most
        image = max(text, rates.image_input or 0, rates.cached_image or 0)
        sound = max(text, rates.audio_input or 0, rates.cached_audio or 0)
        output = max(rates.output_most, (rates.audio_output or 0) if content.audio_output else 0)
        product = text * input_tokens_max + image * images + sound * content.audio_tokens + output * output_tokens_max
        dearest = max(dearest, product)
    return _beside_tokens(price, content) + _per_mtok(dearest * factor)


def _dearest_text(price: Price, input_tokens_max: int, output_tokens_max: int) -> int:
    """Return the dearest product of tokens and rates for text and nothing else, which is what most calls are."""
    dearest = 0
    for option in (price, *price.also_standard):
        for rates in option.within_reach(input_tokens_max):
            product = rates.text_most * input_tokens_max + rates.output_most * output_tokens_max
            dearest = max(dearest, product)
    return dearest


def cost_nanos(price: Price, usage: Usage, content: Content = TEXT_ONLY) -> int:
    """Return what a call cost, exactly, rounded up to a whole nano.

    `usage` says how its tokens are split and in which service tier the call was served; where it does not say the
    tier, the dearest counts that `content` asked for.
    """
    options, factor = _billed_as(price, usage.service_tier or content.service_tier, served=usage.service_tier)
    product = max([_product(option.rates_for(usage.input_tokens), usage) for option in options])
    return _beside_tokens(price, content) + _per_mtok(product * factor)


def clamp_output_tokens(
    price: Price,
    input_tokens_max: int,
    wanted: int,
    free_nanos: int,
    *,
    content: Content = TEXT_ONLY,
    answers: int = 1,
) -> int | None:
    """Return the largest output cap up to `wanted` whose bound fits `free_nanos`; None when not one token fits.

    `answers` is how many answers the request asks for: each may be as long as the cap.
    """

    def fits(cap: int) -> bool:
        return upper_bound_nanos(price, input_tokens_max, cap * answers, content) <= free_nanos

    if wanted < 1 or not fits(1):
        return None
    if fits(wanted):
        return wanted
    low, high = 1, wanted  # the bound never falls as the cap grows: low fits, high does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def pinned_service_tier(price: Price, content: Content) -> str | None:
    """Return the service tier to write into a request that names none, None for no need.

    At OpenAI the tier of such a request is the account's choice, which may be a dearer one than the standard rates that
    the hold was made with.
    """
    if content.service_tier is not None:
        return None
    return _PINNED_TIER if any(tier.name == _PINNED_TIER for tier in price.service_tiers) else None


def unpriced_component(price: Price, content: Content) -> str | None:
    """Name what the request wants and the price does not say; None when the price covers it all."""
    if content.audio_output and price.audio_output is None and price.output > 0:
        return "audio_output"
    return None


def _beside_tokens(price: Price, content: Content) -> int:
    return price.request_nanos + price.image_nanos * content.images


def _billed_as(price: Price, tier: str | None, *, served: str | None = None) -> tuple[Sequence[TieredRates], int]:
    """Return the rates that this service tier can be billed at, and how much dearer than them it may be.

    What was asked for may be served as less: the standard rates always count with it, also those that a table has under
    a name. What was served (`served`) and has a price is billed at just that.
    """
    standard = (price, *price.also_standard)
    if tier is None:
        return standard, 1
    listed = [one for one in price.service_tiers if one.name == tier]
    if listed and served == tier:
        return listed, 1
    if listed:
        return [*standard, *listed], 1
    if tier in _STANDARD_TIERS or tier in _NO_DEARER_TIERS:
        return standard, 1
    if price.service_tiers:
        return [price, *price.service_tiers], _factor_beyond(price)
    return [price], UNKNOWN_TIER_FACTOR


def _factor_beyond(price: Price) -> int:
    """A table that lists only tiers which are no dearer than the standard says nothing about the dear ones."""
    cheap = _STANDARD_TIERS | _NO_DEARER_TIERS
    return UNKNOWN_TIER_FACTOR if all(tier.name in cheap for tier in price.service_tiers) else 1


def _product(rates: Rates, usage: Usage) -> int:
    """Return the tokens of each kind times their rates: a million times the cost."""
    parts = _InputParts(usage)
    sound = parts.take(usage.audio_input_tokens, rates, rates.audio_input, rates.cached_audio)
    image = parts.take(usage.image_input_tokens, rates, rates.image_input, rates.cached_image)
    spoken = usage.audio_output_tokens
    written = usage.output_tokens - usage.reasoning_tokens - spoken
    return (
        sound
        + image
        + rates.input * parts.plain
        + rates.cached_input * parts.cached
        + rates.cache_write * parts.written
        + rates.hour_write * parts.written_1h
        + rates.output * written
        + (rates.output if rates.reasoning is None else rates.reasoning) * usage.reasoning_tokens
        + (rates.output if rates.audio_output is None else rates.audio_output) * spoken
    )


class _InputParts:
    """The input by how it was billed.

    No provider says whether cached tokens were text or sound: sound and images are taken to be new as far as they can
    be, which is the dearer reading wherever a cache gives a discount.
    """

    __slots__ = ("cached", "plain", "written", "written_1h")

    def __init__(self, usage: Usage) -> None:
        self.plain = usage.input_tokens - usage.cached_tokens - usage.cache_write_tokens
        self.cached = usage.cached_tokens
        self.written = usage.cache_write_tokens - usage.cache_write_1h_tokens
        self.written_1h = usage.cache_write_1h_tokens

    def take(self, count: int, rates: Rates, new: int | None, cached: int | None) -> int:
        """Take tokens of another kind than text out of the input and return their product with their rates."""
        if not count:
            return 0
        as_new = rates.input if new is None else new
        if cached is None:
            cached = rates.cached_input if new is None else as_new
        fresh = min(count, self.plain)
        reused = min(count - fresh, self.cached)
        stored = min(count - fresh - reused, self.written)
        stored_1h = count - fresh - reused - stored
        self.plain -= fresh
        self.cached -= reused
        self.written -= stored
        self.written_1h -= stored_1h
        return (
            as_new * fresh
            + cached * reused
            + max(as_new, rates.cache_write) * stored
            + max(as_new, rates.hour_write) * stored_1h
        )


def _per_mtok(product: int) -> int:
    return -(-product // _MTOK)
