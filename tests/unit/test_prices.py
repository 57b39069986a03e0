from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from importlib.metadata import version

import pytest
from genai_prices import Usage as TheirUsage
from genai_prices.data_snapshot import get_snapshot

from nemo_agents.errors import SettingsError
from nemo_agents.gateway.prices import PriceBook, declared_prices
from nemo_agents.policy.pricing import Price, PriceTier, cost_nanos
from nemo_agents.policy.usage import Usage

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
FREE = Price(input=0, cached_input=0, cache_write=0, output=0, version="configuration")
MTOK = 10**9


@pytest.fixture(scope="module")
def book():
    return PriceBook(now=lambda: NOON)


def price(*, cached=None, written=None, tiers=(), **rates):
    return Price(
        input=rates["input"],
        cached_input=rates["input"] if cached is None else cached,
        cache_write=rates["input"] if written is None else written,
        output=rates["output"],
        tiers=tiers,
        version=f"genai-prices {version('genai-prices')}",
    )


@pytest.mark.parametrize(
    ("provider", "model", "expected"),
    [
        ("openai", "gpt-4o-mini", price(input=150_000_000, cached=75_000_000, output=600_000_000)),
        ("openai", "o3-mini", price(input=1_100_000_000, cached=550_000_000, output=4_400_000_000)),
        (
            "anthropic",
            "claude-3-5-sonnet-20241022",
            price(input=3 * MTOK, cached=300_000_000, written=3_750_000_000, output=15 * MTOK),
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
    assert book.price(provider, model) == expected
    assert book.price("sandbox", f"{provider}/{model}") == expected
    assert book.price("sandbox", model) == expected


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
        ("openai", "gpt-audio"),
    ],
)
def test_what_cannot_be_priced_is_none(book, provider, model):
    assert book.price(provider, model) is None


def test_every_price_of_the_table_is_exact_and_agrees_with_the_package():
    """For each model that has a price here, three calls of different size cost what the package itself computes."""
    book = PriceBook(now=lambda: NOON)
    priced = 0
    for provider in get_snapshot().providers:
        for model in provider.models:
            ours = book.load()._convert(model)
            if ours is None:
                continue
            row = model.get_prices(NOON)
            if row.output_reasoning_mtok is not None:
                continue  # reasoning is charged at the dearer of two rates, on purpose
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
