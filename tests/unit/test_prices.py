from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from importlib.metadata import version
from importlib.resources import files

import pytest
from genai_prices import Usage as TheirUsage
from genai_prices.data_snapshot import get_snapshot

from nemo_agents.errors import SettingsError
from nemo_agents.gateway.prices import PriceBook, declared_prices
from nemo_agents.policy.pricing import IMAGE_TOKENS_MAX, UNKNOWN_TIER_FACTOR, Price, PriceTier, ServiceTier, cost_nanos
from nemo_agents.policy.usage import Usage

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
FREE = Price(input=0, cached_input=0, cache_write=0, output=0, version="configuration")
MTOK = 10**9


@pytest.fixture(scope="module")
def book():
    return PriceBook(now=lambda: NOON)


def price(*, cached=None, written=None, **fields):
    """A price of the table, but for what other tests look at: its version, its image tokens, its service tiers."""
    given = {"cached_input": cached, "cache_write": written}
    own = {name: value for name, value in given.items() if value is not None}
    return Price(**{"cached_input": fields["input"], "cache_write": fields["input"], **fields, **own}, version="")


def plain(found):
    return replace(
        found, version="", image_tokens_max=IMAGE_TOKENS_MAX, image_tokens_low=IMAGE_TOKENS_MAX, service_tiers=()
    )


@pytest.mark.parametrize(
    ("provider", "model", "expected"),
    [
        ("openai", "gpt-4o-mini", price(input=150_000_000, cached=75_000_000, output=600_000_000)),
        ("openai", "o3-mini", price(input=1_100_000_000, cached=550_000_000, output=4_400_000_000)),
        (
            "anthropic",
            "claude-3-5-sonnet-20241022",
            price(input=3 * MTOK, cached=300_000_000, written=3_750_000_000, output=15 * MTOK, cache_write_1h=6 * MTOK),
        ),
        (
            "gemini",
            "gemini-1.5-pro",
            price(
                input=1_250_000_000,
                output=5 * MTOK,
                tiers=(
                    PriceTier(
                        above=128_000,
                        input=2_500_000_000,
                        cached_input=2_500_000_000,
                        cache_write=2_500_000_000,
                        output=10 * MTOK,
                    ),
                ),
            ),
        ),
        ("openai", "text-embedding-3-small", price(input=20_000_000, output=0)),
    ],
)
def test_exact_prices(book, provider, model, expected):
    found = book.price(provider, model)
    assert plain(found) == expected
    assert book.price("sandbox", f"{provider}/{model}") == found
    assert book.price("sandbox", model) == found


def test_a_price_says_which_table_it_is_from(book):
    name, package, digest, day = book.price("openai", "gpt-4o").version.split()
    assert (name, package) == ("genai-prices", version("genai-prices"))
    assert digest == hashlib.sha256(files("genai_prices").joinpath("data.py").read_bytes()).hexdigest()[:12]
    assert date(2025, 1, 1) < date.fromisoformat(day) <= NOON.date()


def test_components_beside_text(book):
    sonnet = book.price("anthropic", "claude-sonnet-4-5")
    assert sonnet.cache_write_1h == 2 * sonnet.input
    spoken = book.price("openai", "gpt-audio")
    assert spoken.audio_output > spoken.output
    assert spoken.audio_input > spoken.input
    flash = book.price("gemini", "gemini-2.0-flash")
    assert flash.audio_input > flash.input
    assert flash.cached_audio is not None


def test_service_tiers_of_the_table(book):
    tiers = {tier.name: tier for tier in book.price("openai", "gpt-4.1").service_tiers}
    assert {"default", "priority"} <= set(tiers)
    assert tiers["default"].input == book.price("openai", "gpt-4.1").input
    assert tiers["priority"].input > tiers["default"].input
    sonnet = book.price("anthropic", "claude-sonnet-4-5")
    claude = {tier.name: tier for tier in sonnet.service_tiers}
    assert claude["batch"].output * 2 == claude["priority"].output == sonnet.output


def test_no_published_service_tier_is_dearer_than_the_factor_for_unknown_ones(book):
    seen = 0
    for _, _, found in book.load().models():
        for tier in found.service_tiers if found else ():
            seen += 1
            for rate in ("input", "cached_input", "cache_write", "output"):
                assert getattr(tier, rate) <= UNKNOWN_TIER_FACTOR * getattr(found, rate), (found, tier)
    assert seen > 50


@pytest.mark.parametrize(
    ("provider", "model", "most", "low"),
    [
        ("openai", "gpt-4o", 85 + 8 * 170, 85),
        ("openai", "gpt-4o-mini", 2833 + 8 * 5667, 2833),
        ("openai", "gpt-4.1", 85 + 8 * 170, 85),
        ("openai", "gpt-4.1-mini", 3779, 3779),
        ("openai", "o3", 75 + 8 * 150, 75),
        ("openai", "o3-mini", IMAGE_TOKENS_MAX, IMAGE_TOKENS_MAX),
        ("anthropic", "claude-3-5-sonnet-20241022", 3279, 3279),
        ("gemini", "gemini-2.0-flash", IMAGE_TOKENS_MAX, IMAGE_TOKENS_MAX),
    ],
)
def test_the_most_tokens_of_an_image(book, provider, model, most, low):
    found = book.price(provider, model)
    assert (found.image_tokens_max, found.image_tokens_low) == (most, low)


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("openai", "gpt-99"),
        ("openai", ""),
        ("openai", "x" * 10_000),
        ("ollama", "llama3.3"),
        ("nobody", "gpt-4o"),
        ("sandbox", "no-such-model"),
        ("sandbox", "sandbox/gpt-4o"),
        ("gemini", "gemini-2.5-flash-image"),
        ("aws", "amazon.nova-2-sonic-v1:0"),
    ],
)
def test_what_cannot_be_priced_is_none(book, provider, model):
    assert book.price(provider, model) is None


def test_every_price_of_the_table_is_exact_and_agrees_with_the_package():
    """For each model that has a price here, three calls of different size cost what the package itself computes."""
    book = PriceBook(now=lambda: NOON)
    theirs = {"gemini": "google", "xai": "x-ai"}
    ours_by_name = {(theirs.get(name, name), model): found for name, model, found in book.load().models()}
    priced = 0
    for provider in get_snapshot().providers:
        for model in provider.models:
            ours = ours_by_name[provider.id, model.id]
            if ours is None:
                continue
            row = model.get_prices(NOON)
            priced += 1
            for tokens_in, answer in ((1000, 500), (150_000, 2000), (300_000, 1)):
                tokens_out = 0 if row.output_mtok is None else answer
                theirs = row.calc_price(TheirUsage(input_tokens=tokens_in, output_tokens=tokens_out))["total_price"]
                nanos = cost_nanos(ours, Usage(input_tokens=tokens_in, output_tokens=tokens_out))
                assert 0 <= nanos - theirs * 10**9 < 1, (provider.id, model.id, tokens_in)
    assert priced > 1000


@pytest.mark.parametrize(
    ("model", "provider"),
    [
        ("gpt-4o-mini", "openai"),
        ("GPT-4o", "openai"),
        ("o3-mini", "openai"),
        ("gpt-99-not-yet-priced", "openai"),
        ("ft:gpt-4o-mini:org::id", "openai"),
        ("text-embedding-3-small", "openai"),
        ("claude-3-5-sonnet-20241022", "anthropic"),
        ("gemini-1.5-pro", "gemini"),
        ("gemini-embedding-001", "gemini"),
        ("mistral-large-latest", "mistral"),
        ("mistral-embed", "mistral"),
        ("deepseek-chat", "deepseek"),
        ("grok-4", "xai"),
        ("llama-3.3-70b-versatile", "groq"),
        ("no-such-model", None),
        ("", None),
        ("gpt-" + "x" * 10_000, None),
    ],
)
def test_whose_model_it_is(book, model, provider):
    assert book.provider_of(model) == provider


def test_a_declared_price_counts_over_the_table():
    assert PriceBook(now=lambda: NOON).provider_of("llama3.3") is None
    book = PriceBook(now=lambda: NOON, declared={"ollama/llama3.3": FREE, "gpt-4o": FREE})
    assert book.price("ollama", "llama3.3") == FREE
    assert book.price("sandbox", "ollama/llama3.3") == FREE
    assert book.provider_of("llama3.3") == "ollama"
    assert book.price("openai", "gpt-4o") == FREE
    assert book.price("openai", "gpt-4o-mini") != FREE


def test_a_price_can_be_declared_for_all_models_of_a_provider():
    book = PriceBook(now=lambda: NOON, declared={"ollama/*": FREE})
    assert book.price("ollama", "llama3.3") == FREE
    assert book.price("sandbox", "ollama/llama3.3") == FREE
    assert book.price("openai", "llama3.3") is None


def test_a_relay_charges_like_the_provider_it_names():
    book = PriceBook(now=lambda: NOON, priced_as={"corp": "openai"})
    assert book.price("corp", "gpt-4o-mini") == book.price("openai", "gpt-4o-mini")


def test_prices_that_depend_on_the_time_follow_the_clock():
    times = [datetime(2026, 11, 24, 12, tzinfo=UTC), datetime(2026, 11, 24, 20, tzinfo=UTC)]
    book = PriceBook(now=lambda: times[0])
    day = book.price("deepseek", "deepseek-chat")
    times.pop(0)
    night = book.price("deepseek", "deepseek-chat")
    assert day is not None
    assert night is not None
    assert (day.input, night.input) == (270_000_000, 135_000_000)


def test_names_from_clients_are_not_kept_for_ever(book):
    snapshot = get_snapshot()
    kept = (len(snapshot._lookup_cache), len(snapshot._provider_cache), len(snapshot._provider_misses))
    for n in range(50):
        book.provider_of(f"gpt-4o-mini-{n}")
        book.price("openai", f"gpt-4o-mini-{n}")
        book.provider_of(f"unknown-{n}")
    assert (len(snapshot._lookup_cache), len(snapshot._provider_cache), len(snapshot._provider_misses)) == kept
    assert book.load()._find.cache_info().maxsize is not None
    assert book._owner.cache_info().maxsize is not None


def test_prices_from_the_configuration():
    tables = {
        "ollama/llama3.3": {"input_per_mtok": 0, "output_per_mtok": 0},
        "corp/large": {
            "input_per_mtok": 0.1,
            "output_per_mtok": "2.5",
            "cached_input_per_mtok": Decimal("0.05"),
            "per_request": 0.001,
        },
    }
    prices = declared_prices({"prices": tables})
    assert prices["ollama/llama3.3"] == FREE
    assert prices["corp/large"] == Price(
        input=100_000_000,
        cached_input=50_000_000,
        cache_write=100_000_000,
        output=2_500_000_000,
        request_nanos=1_000_000,
        version="configuration",
    )
    assert PriceBook(declared=prices).price("corp", "large") == prices["corp/large"]
    assert declared_prices({}) == {}


def test_every_component_can_be_declared():
    table = {
        "input_per_mtok": 2,
        "output_per_mtok": 8,
        "cached_input_per_mtok": 1,
        "cache_write_per_mtok": 3,
        "cache_write_1h_per_mtok": 4,
        "reasoning_per_mtok": 9,
        "audio_input_per_mtok": 40,
        "cached_audio_per_mtok": 20,
        "audio_output_per_mtok": 80,
        "image_input_per_mtok": 5,
        "cached_image_per_mtok": 0,
        "per_request": "0.01",
        "per_image": 0.002,
        "image_tokens_max": 1000,
        "image_tokens_low": 100,
        "tiers": [{"above": 200_000, "input_per_mtok": 4, "output_per_mtok": 16}],
        "service_tiers": {
            "flex": {"multiplier": 0.5},
            "Priority": {"input_per_mtok": 4, "output_per_mtok": 16, "tiers": []},
        },
    }
    found = declared_prices({"prices": {"corp/large": table}})["corp/large"]
    rates = {"input": 2, "output": 8, "cached_input": 1, "cache_write": 3, "cache_write_1h": 4, "reasoning": 9}
    rates |= {"audio_input": 40, "cached_audio": 20, "audio_output": 80, "image_input": 5, "cached_image": 0}
    long_input = PriceTier(above=200_000, input=4 * MTOK, output=16 * MTOK, cached_input=4 * MTOK, cache_write=4 * MTOK)
    half = {name: value * MTOK // 2 for name, value in rates.items()}
    half_long = PriceTier(above=200_000, input=2 * MTOK, output=8 * MTOK, cached_input=2 * MTOK, cache_write=2 * MTOK)
    assert found == Price(
        **{name: value * MTOK for name, value in rates.items()},
        request_nanos=10_000_000,
        image_nanos=2_000_000,
        image_tokens_max=1000,
        image_tokens_low=100,
        tiers=(long_input,),
        service_tiers=(
            ServiceTier(name="flex", **half, tiers=(half_long,)),
            ServiceTier(name="priority", input=4 * MTOK, output=16 * MTOK, cached_input=4 * MTOK, cache_write=4 * MTOK),
        ),
        version="configuration",
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"reasoning_per_mtok": "x"}, '[prices."m"] reasoning_per_mtok: must be dollars per million tokens'),
        ({"per_image": -1}, '[prices."m"] per_image: must be dollars per image'),
        ({"image_tokens_max": 1.5}, '[prices."m"] image_tokens_max: must be a whole number of tokens'),
        ({"image_tokens_max": True}, "(got True)"),
        ({"image_tokens_max": 5, "image_tokens_low": 6}, "image_tokens_low: must be at most image_tokens_max, 5"),
        ({"tiers": 3}, '[prices."m"] tiers: must be a list'),
        ({"tiers": [3]}, '[prices."m"] tiers[0]: must be a table'),
        ({"tiers": [{"input_per_mtok": 1, "output_per_mtok": 1}]}, '[prices."m"] tiers[0] above: must be'),
        ({"tiers": [{"above": 1, "output_per_mtok": 1}]}, '[prices."m"] tiers[0] input_per_mtok: is missing'),
        (
            {"tiers": [{"above": 9, "input_per_mtok": 1, "output_per_mtok": 1}] * 2},
            '[prices."m"] tiers[1] above: must be more than that of the tier before, 9',
        ),
        ({"service_tiers": []}, '[prices."m"] service_tiers: must be tables by name'),
        ({"service_tiers": {"flex": 0.5}}, '[prices."m"] service_tiers.flex: must be a table'),
        ({"service_tiers": {"flex": {"multiplier": -1}}}, "service_tiers.flex multiplier: must be from 0 to 1000"),
        ({"service_tiers": {"flex": {"input_per_mtok": 1}}}, "service_tiers.flex output_per_mtok: is missing"),
        ({"service_tiers": {"flex": {"multiplier": 1, "x": 1}}}, "service_tiers.flex x: no such field"),
    ],
)
def test_bad_components_are_named(more, said):
    with pytest.raises(SettingsError) as refused:
        declared_prices({"prices": {"m": {"input_per_mtok": 1, "output_per_mtok": 1, **more}}})
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("prices", "said"),
    [
        ([], "prices: must be tables"),
        ({"m": 3}, '[prices."m"]: must be a table'),
        ({"m": {"input_per_mtok": 1}}, '[prices."m"] output_per_mtok: is missing'),
        ({"m": {"input_per_mtok": 1, "output_per_mtok": 1, "inptu": 2}}, '[prices."m"] inptu: no such field'),
        (
            {"m": {"input_per_mtok": -1, "output_per_mtok": 1}},
            '[prices."m"] input_per_mtok: must be dollars per million tokens',
        ),
        ({"m": {"input_per_mtok": True, "output_per_mtok": 1}}, "(got True)"),
        ({"m": {"input_per_mtok": "cheap", "output_per_mtok": 1}}, "(got 'cheap')"),
        ({"m": {"input_per_mtok": float("nan"), "output_per_mtok": 1}}, "(got nan)"),
        ({"m": {"input_per_mtok": float("inf"), "output_per_mtok": 1}}, "(got inf)"),
        ({"m": {"input_per_mtok": 1, "output_per_mtok": 1, "per_request": -1}}, "dollars per request"),
    ],
)
def test_bad_prices_are_named(prices, said):
    with pytest.raises(SettingsError) as refused:
        declared_prices({"prices": prices})
    assert said in str(refused.value)
