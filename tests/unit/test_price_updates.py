from __future__ import annotations

import asyncio
import http.server
import json
import stat
import threading
from datetime import UTC, datetime
from decimal import Decimal

import pytest
import structlog
from genai_prices.types import TieredPrices

from nemo_agents.gateway import priceupdates
from nemo_agents.gateway.pricefile import PriceTableError, check_against, read_table
from nemo_agents.gateway.prices import PriceBook
from nemo_agents.gateway.priceupdates import DocumentPriceStore, FilePriceStore, PriceUpdates, fetch_table
from nemo_agents.policy.pricing import cost_nanos
from nemo_agents.policy.usage import Usage

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


def model(name="m", **prices):
    return {"id": name, "match": {"equals": name}, "prices": prices or {"input_mtok": 1, "output_mtok": 2.5}}


def table(*models, provider="openai", **more):
    return json.dumps([{"id": provider, "name": "P", "api_pattern": "p", "models": list(models), **more}]).encode()


def book():
    return PriceBook(now=lambda: NOON)


pytestmark = pytest.mark.usefixtures("whole_log")


def updates(tmp_path, of=None, **more):
    return PriceUpdates(of or book(), FilePriceStore(tmp_path / "prices.json"), **more)


# --- the format ---------------------------------------------------------------------------------------------------
def test_a_table_is_read_exactly():
    raw = table(
        {
            "id": "m",
            "match": {"or": [{"equals": "m"}, {"and": [{"starts_with": "m-"}, {"regex": "m-\\d+$"}]}]},
            "prices": [
                {"prices": {"input_mtok": "0.1", "output_mtok": 0.3}},
                {
                    "constraint": {"start_date": "2026-11-01"},
                    "prices": {"input_mtok": {"base": 0.2, "tiers": [{"start": 9, "price": 1}]}, "output_mtok": 0.6},
                },
                {
                    "constraint": {"start_time": "16:30:00Z", "end_time": "00:30:00Z"},
                    "prices": {"input_mtok": 0.05, "output_mtok": 0.1},
                },
            ],
            "price_variants": [{"when": {"service_tier": "flex"}, "prices": {"input_mtok": 0.01}}],
        },
        model("image-only", output_image_mtok=None, images=None) | {"prices": {"audio_hours": 0.3}},
        model_match={"contains": "m"},
        fallback_model_providers=["anthropic"],
        extractors=[{"root": "usage", "mappings": []}],
    )
    (provider,) = read_table(raw)
    first, second = provider.models
    assert first.is_match("m-7")
    assert not first.is_match("m-x")
    noon, night = first.get_prices(NOON), first.get_prices(NOON.replace(hour=17))
    assert noon.input_mtok == TieredPrices(base=Decimal("0.2"), tiers=noon.input_mtok.tiers)
    assert noon.output_mtok == Decimal("0.6")
    assert night.input_mtok == Decimal("0.05")
    assert first.get_prices(NOON, {"service_tier": "flex"}).input_mtok == Decimal("0.01")
    assert second.prices.audio_hours == Decimal("0.3")


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "The table is not JSON"),
        (b"\xff\xfe", "The table is not JSON"),
        (b"[" * 100_000, "The table is not JSON"),
        (b"{}", "must be a list of providers"),
        (b"[3]", "provider 1: must be an object (got '3')"),
        (b'[{"models": []}]', "provider 1, id: must be a text"),
        (table(), "The table has no model"),
        (b"[]", "The table is an empty list"),
        (b'[{"id": "a", "models": 3}]', "a, models: must be a list"),
        (table(3), "openai, model 1: must be an object"),
        (table({"prices": {}}), "openai, model 1, id: must be a text"),
        (table({"id": "m"}), "openai, m, prices: must be an object"),
        (table({"id": "m", "prices": []}), "openai, m, prices: is empty"),
        (table(model(output_mtok=1)), "openai, m, input_mtok: is missing"),
        (table(model(input_mtok=-1)), "openai, m, input_mtok: must be dollars from 0 to a million (got '-1')"),
        (table(model(input_mtok=10**7)), "openai, m, input_mtok: must be dollars"),
        (table(model(input_mtok=True)), "openai, m, input_mtok: must be dollars"),
        (table(model(input_mtok="cheap")), "openai, m, input_mtok: must be dollars from 0 to a million (got 'cheap')"),
        (table(model(input_mtok=[1])), "openai, m, input_mtok: must be dollars"),
        (b'[{"id":"a","models":[{"id":"m","prices":{"input_mtok":NaN}}]}]', "The table is not JSON"),
        (table(model(inptu_mtok=1)), "openai, m, inptu_mtok: no such price"),
        (table(model(input_mtok={"base": 1})), "openai, m, input_mtok, tiers: must be a list"),
        (
            table(model(input_mtok={"base": 1, "tiers": [{"start": 1.5, "price": 1}]})),
            "openai, m, input_mtok, tiers: each begins at another whole number",
        ),
        (
            table(model(input_mtok={"base": 1, "tiers": [{"start": 1, "price": -1}]})),
            "openai, m, input_mtok: must be dollars",
        ),
        (table(model() | {"match": {"equals": "m", "regex": "x"}}), "openai, m, match: must be one rule"),
        (table(model() | {"match": {"regex": "("}}), "openai, m, match, regex:"),
        (table(model() | {"match": {"sounds_like": "m"}}), "openai, m, match, sounds_like: no such rule"),
        (table(model() | {"match": {"or": []}}), "openai, m, match, or: must be a list"),
        (table(model() | {"match": {"equals": 3}}), "openai, m, match, equals: must be a text"),
        (table(model() | {"price_variants": {}}), "openai, m, price_variants: must be a list"),
        (
            table(model() | {"price_variants": [{"when": {}, "prices": {}}]}),
            "openai, m, price_variants, when: must map",
        ),
        (
            table(model() | {"prices": [{"constraint": {"start_date": "soon"}, "prices": {"input_mtok": 1}}]}),
            "openai, m, constraint: must be a start_date",
        ),
        (table(model(), model()), "openai: models: m is there twice"),
        (table(model(), fallback_model_providers="x"), "openai, fallback_model_providers: must be a list"),
    ],
)
def test_what_is_wrong_with_a_table_is_named(raw, said):
    with pytest.raises(PriceTableError) as refused:
        read_table(raw)
    assert said in str(refused.value)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    ("former", "new", "fine"),
    [
        ({"input_mtok": 1}, {"input_mtok": 999}, True),
        ({"input_mtok": 1}, {"input_mtok": 1000}, False),
        ({"input_mtok": 1}, {"input_mtok": 0.001}, False),
        ({"input_mtok": 1}, {"input_mtok": 0.0011}, True),
        ({"input_mtok": 1}, {"input_mtok": 0}, False),
        ({"input_mtok": 0}, {"input_mtok": 5}, True),
        ({"input_mtok": 1}, {"input_mtok": 1, "output_mtok": 9000}, True),
        ({"input_mtok": 1}, {"input_mtok": {"base": 1000, "tiers": []}}, False),
    ],
)
def test_prices_a_thousand_times_off_are_refused(former, new, fine):
    before, after = read_table(table(model(**former))), read_table(table(model(**new)))
    if fine:
        check_against(before, after)
    else:
        with pytest.raises(PriceTableError, match=r"openai, m, input_mtok: .* 1000 times off the former 1"):
            check_against(before, after)


# --- a table that comes while requests run ------------------------------------------------------------------------
async def test_a_given_table_counts_at_once_and_after_a_restart(tmp_path):
    prices = book()
    former = prices.price("openai", "gpt-4o")
    version = await updates(tmp_path, prices).give(table(model()), source="file t.json", force=True)
    found = prices.price("openai", "m")
    assert found.version == version
    assert (found.input, found.output) == (10**9, 2_500_000_000)
    assert prices.price("openai", "gpt-4o") is None
    assert cost_nanos(former, Usage(input_tokens=10**6)) == former.input, "what was quoted before stays as it was"
    assert stat.S_IMODE((tmp_path / "prices.json").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["prices.json"]

    again = book()
    later = updates(tmp_path, again)
    assert await later.refresh()
    assert again.price("openai", "m") == found
    assert again.load().source == "file t.json"
    assert later.given == NOON
    assert not await later.refresh(), "nothing new is there"


async def test_the_version_names_what_was_given_hash_and_date(tmp_path):
    version = await updates(tmp_path).give(table(model()), source="t", force=True)
    name, source, digest, day = version.split()
    assert (name, source, day, len(digest)) == ("given", "t", "2026-11-24", 12)
    other = await updates(tmp_path).give(table(model("n")), source="t", force=True)
    assert other.split()[2] != digest


@pytest.mark.parametrize("force", [False, True])
async def test_a_bad_table_changes_nothing(tmp_path, force):
    prices = book()
    changing = updates(tmp_path, prices)
    await changing.give(table(model()), source="t", force=True)
    kept, found = (tmp_path / "prices.json").read_bytes(), prices.price("openai", "m")
    with pytest.raises(PriceTableError):
        await changing.give(table(model(), model("n", input_mtok=-1)), source="t", force=force)
    assert prices.price("openai", "m") is found
    assert (tmp_path / "prices.json").read_bytes() == kept


async def test_a_price_a_thousand_times_off_needs_force(tmp_path):
    changing = updates(tmp_path)
    await changing.give(table(model()), source="t", force=True)
    with pytest.raises(PriceTableError, match="force"):
        await changing.give(table(model(input_mtok=5000)), source="t")
    await changing.give(table(model(input_mtok=5000)), source="t", force=True)


async def test_a_table_that_lacks_models_of_the_former_one_needs_force(tmp_path):
    prices = book()
    changing = updates(tmp_path, prices)
    with pytest.raises(PriceTableError, match=r"\d+ models disappear, e\.g\. .+ with `force`"):
        await changing.give(table(model()), source="t")
    assert prices.price("openai", "gpt-4o") is not None
    await changing.give(table(model(), model("n")), source="t", force=True)
    with pytest.raises(PriceTableError, match="1 model disappears: openai/n"):
        await changing.give(table(model()), source="t")
    covered = model() | {"match": {"or": [{"equals": "m"}, {"equals": "n"}]}}
    await changing.give(table(covered), source="t")  # another row has a price for that name
    assert prices.price("openai", "n") is not None


async def test_a_table_that_cannot_be_kept_does_not_count(tmp_path):
    prices = book()
    changing = PriceUpdates(prices, FilePriceStore(tmp_path / "missing" / "prices.json"))
    with pytest.raises(OSError, match="missing"):
        await changing.give(table(model()), source="t", force=True)
    assert prices.price("openai", "m") is None
    assert prices.price("openai", "gpt-4o") is not None


async def test_reset_returns_to_the_packages_own_table(tmp_path):
    prices = book()
    own = prices.load().version
    changing = updates(tmp_path, prices)
    await changing.give(table(model()), source="t", force=True)
    assert await changing.reset() == own
    assert prices.price("openai", "gpt-4o") is not None
    again = book()
    assert not await updates(tmp_path, again).refresh()
    assert again.price("openai", "m") is None


@pytest.mark.parametrize(
    "damage", [b"{", b"null", b"\x00" * 50, b'{"source": "t", "given": "2026-11-24T00:00:00Z"}', None]
)
async def test_a_damaged_file_is_one_line_in_the_log_and_the_packages_table_counts(tmp_path, damage):
    await updates(tmp_path).give(table(model()), source="t", force=True)
    path = tmp_path / "prices.json"
    path.write_bytes(path.read_bytes()[:-30] if damage is None else damage)
    prices = book()
    starting = updates(tmp_path, prices)
    with structlog.testing.capture_logs() as lines:
        assert not await starting.refresh()
        assert not await starting.refresh()
    assert [line["log_level"] for line in lines] == ["error"]
    assert prices.price("openai", "gpt-4o") is not None
    assert await starting.give(table(model()), source="t", force=True), "a good table mends it"
    assert prices.price("openai", "m") is not None


async def test_a_file_that_cannot_be_read_is_logged(tmp_path):
    (tmp_path / "prices.json").mkdir()
    with structlog.testing.capture_logs() as lines:
        assert not await updates(tmp_path).refresh()
    assert len(lines) == 1


class Documents:
    """A store that two gateways share."""

    def __init__(self):
        self.kept = {}

    async def document(self, name):
        return self.kept.get(name)

    async def put_document(self, name, body):
        self.kept[name] = body


async def test_gateways_that_share_a_store_share_the_table():
    shared = Documents()
    here, there = book(), book()
    giving, following = (PriceUpdates(one, DocumentPriceStore(shared)) for one in (here, there))
    assert not await following.refresh()
    await giving.give(table(model()), source="t", force=True)
    assert await following.refresh()
    assert there.price("openai", "m") == here.price("openai", "m")
    await giving.reset()
    assert await following.refresh()
    assert there.price("openai", "m") is None


async def test_look_ups_never_see_half_a_table(tmp_path):
    """While tables come and go, a price is whole: that of the one, that of the other, never a mixture."""
    prices = book()
    changing = updates(tmp_path, prices)
    wanted = {(10**9, 2 * 10**9), (3 * 10**9, 4 * 10**9)}
    tables = [table(model(input_mtok=i, output_mtok=o)) for i, o in ((1, 2), (3, 4))]
    await changing.give(tables[0], source="t", force=True)
    seen, done = set(), threading.Event()

    def look():
        while not done.is_set():
            found = prices.price("openai", "m")
            seen.add((found.input, found.output))
            prices.provider_of("m")

    looking = asyncio.create_task(asyncio.to_thread(look))
    for turn in range(30):
        await changing.give(tables[turn % 2], source="t")
    done.set()
    await looking
    assert seen <= wanted


# --- the daily table ----------------------------------------------------------------------------------------------
@pytest.fixture
def site():
    """A web server on this machine that answers with `site.answers` in turn, the last one for ever."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            status, body = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
            server.asked += 1
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.answers, server.asked = [(200, table(model()))], 0
    server.url = f"http://127.0.0.1:{server.server_port}/data.json"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


async def test_a_fetched_table_counts(tmp_path, site):
    prices = book()
    assert await updates(tmp_path, prices, update_url=site.url).fetch()
    assert prices.price("openai", "m") is not None
    assert prices.load().source == "update"
    assert prices.load().version.startswith("genai-prices ")


@pytest.mark.parametrize("answer", [(500, b""), (302, b""), (200, b"<html>"), (200, table(model(input_mtok=-1)))])
async def test_a_failed_fetch_is_logged_and_changes_nothing(tmp_path, site, answer):
    site.answers = [answer]
    prices = book()
    with structlog.testing.capture_logs() as lines:
        assert not await updates(tmp_path, prices, update_url=site.url).fetch()
    assert [line["log_level"] for line in lines] == ["warning"]
    assert prices.price("openai", "gpt-4o") is not None
    assert not list(tmp_path.iterdir())


async def test_a_table_without_end_is_not_read(site, monkeypatch):
    monkeypatch.setattr(priceupdates, "TABLE_BYTES_MAX", 1000)
    site.answers = [(200, b"x" * 1001)]
    with pytest.raises(ValueError, match="larger than 1000 bytes"):
        await fetch_table(site.url)


async def test_the_table_is_fetched_once_a_day_and_an_hour_after_a_failure(tmp_path, site):
    """The loop runs on a clock of its own: each look moves it on by half an hour."""
    times = [NOON]
    site.answers = [(500, b""), (200, table(model()))]
    asked = []
    turns = iter(range(60))

    async def half_an_hour(_seconds):
        asked.append(site.asked)
        times[0] = datetime.fromtimestamp(times[0].timestamp() + 1800, tz=UTC)
        if next(turns, None) is None:
            raise asyncio.CancelledError

    keeping = updates(tmp_path, PriceBook(now=lambda: times[0]), update_url=site.url, sleep=half_an_hour)
    with structlog.testing.capture_logs(), pytest.raises(asyncio.CancelledError):
        await keeping.keep_current(daily=True)
    first_seen = [asked.index(count) for count in (1, 2, 3)]
    assert first_seen == [0, 2, 50]
    assert max(asked) == 3


async def test_without_daily_updates_nothing_is_ever_fetched(tmp_path, site):
    await updates(tmp_path, update_url=site.url).keep_current(daily=False)
    assert site.asked == 0
