"""The pages over HTTP: access, headers, filters, paging, and text that stays text."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from html.parser import HTMLParser
from typing import Any
from urllib.parse import quote

import httpx
import msgspec
import pytest
import pytest_asyncio
import viewer_scenarios as v
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from nemo_agents.admin import wire
from nemo_agents.secret import Secret
from nemo_agents.viewer.app import viewer_app
from nemo_agents.viewer.paths import viewer_routes
from nemo_agents.viewer.reader import ReadFailed
from nemo_agents.viewer.text import cost_column, visible
from nemo_agents.viewer.verdict import PROBLEM_STATES

BASE = "http://127.0.0.1:4141"
ALL_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


def app_of(reader: v.MemoryReader, **given: Any) -> Starlette:
    return viewer_app(reader, token=Secret(v.TOKEN), now_us=lambda: v.NOW_US, **given)


def client_of(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url=BASE)


@contextlib.asynccontextmanager
async def signed_in(reader: v.MemoryReader, **given: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with signed_in_to(app_of(reader, **given)) as client:
        yield client


@contextlib.asynccontextmanager
async def signed_in_to(app: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app) as client:
        assert (await client.get("/runs", params={"token": v.TOKEN})).status_code == 303
        yield client


@pytest.fixture(scope="module")
def shared_app() -> Starlette:
    """One viewer over every scenario, for tests that only look: its templates are compiled once."""
    return app_of(v.reader())


@pytest.fixture(scope="module")
def hostile() -> tuple[Starlette, v.MemoryReader]:
    """A viewer whose reader each test fills anew."""
    reader = v.MemoryReader([])
    return app_of(reader), reader


@pytest_asyncio.fixture
async def client(shared_app: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    async with signed_in_to(shared_app) as made:
        yield made


def run_id(scenario: str) -> str:
    return v.SCENARIOS[scenario]().run.run_id


class Page(HTMLParser):
    """A page's elements and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


# --- access -------------------------------------------------------------------------------------------------
async def test_the_token_becomes_a_cookie_and_leaves_the_address() -> None:
    async with client_of(app_of(v.reader())) as fresh:
        answer = await fresh.get(f"/logs?q=role%3Awriter&token={v.TOKEN}&before=3")
        assert answer.status_code == 303
        assert answer.headers["location"] == "/logs?q=role%3Awriter&before=3"
        cookie = answer.headers["set-cookie"]
        assert cookie.startswith("nemo_viewer=")
        assert {"HttpOnly", "Path=/", "SameSite=strict"} <= set(cookie.split("; "))
        assert v.TOKEN not in cookie
        assert (await fresh.get("/logs")).status_code == 200


@pytest.mark.parametrize(
    "path", ["/", "/runs", "/runs/last", "/roles", "/logs", "/nothing", "/runs?token=wrong", "/runs?token="]
)
async def test_without_token_or_cookie_every_page_asks_for_it(path: str) -> None:
    reader = v.reader()
    async with client_of(app_of(reader)) as fresh:
        answer = await fresh.get(path)
    assert answer.status_code == 401
    assert "nemo-agents view" in answer.text
    assert reader.asked == []
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("cookie", ["", "0" * 64, v.TOKEN, "\u00e9".encode().decode("latin-1")])
async def test_a_made_up_cookie_opens_nothing(cookie: str) -> None:
    async with client_of(app_of(v.reader())) as fresh:
        assert (
            await fresh.get("/runs", headers={b"cookie": f"nemo_viewer={cookie}".encode("latin-1")})
        ).status_code == 401


async def test_a_wrong_token_is_refused_even_with_a_good_cookie(client: httpx.AsyncClient) -> None:
    assert (await client.get("/runs?token=wrong")).status_code == 401


async def test_a_cookie_of_another_token_opens_nothing(client: httpx.AsyncClient) -> None:
    other = viewer_app(v.reader(), token=Secret("another"), now_us=lambda: v.NOW_US)
    async with client_of(other) as stranger:
        stranger.cookies = client.cookies
        assert (await stranger.get("/runs")).status_code == 401


def test_an_empty_token_is_refused_at_the_start() -> None:
    with pytest.raises(ValueError, match="empty"):
        viewer_app(v.reader(), token=Secret(""))


@pytest.mark.parametrize(
    "path", ["//evil.example/x", "/\\evil.example", "///evil.example", "/%09/evil.example", "/%5Cevil.example"]
)
async def test_the_redirect_stays_on_this_host(path: str) -> None:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": httpx.URL("http://x/" + path[1:]).path if "%" in path else path,
        "query_string": f"token={v.TOKEN}".encode(),
        "headers": [(b"host", b"127.0.0.1")],
        "scheme": "http",
        "server": ("127.0.0.1", 80),
        "root_path": "",
    }
    await app_of(v.reader())(scope, None, send)  # type: ignore[arg-type]
    location = dict(sent[0]["headers"])[b"location"].decode()
    assert httpx.URL(BASE).join(location).host == "127.0.0.1"
    assert location[0] == "/"
    assert location[1:2] not in ("/", "\\", "\t")


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:4141", "127.0.0.1", "127.0.0.1:1", "[::1]", "[::1]:4141", "box.lan:80"]
)
async def test_our_host_names_are_answered(host: str) -> None:
    async with signed_in(v.reader(), allowed_hosts=("box.lan",)) as client:
        answer = await client.get("/runs", headers={"host": host})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost:4141@evil.example",
        "localhost.",
        "",
        "[::2]",
        "0.0.0.0",
        "localhost:x",
        "box.lan",
    ],
)
async def test_other_host_names_are_misdirected(client: httpx.AsyncClient, host: str) -> None:
    for path in ("/runs", f"/runs?token={v.TOKEN}", "/static/viewer.css"):
        answer = await client.get(path, headers={"host": host})
        assert answer.status_code == 421
        assert "set-cookie" not in answer.headers


async def test_allowed_hosts_can_be_a_function() -> None:
    async with signed_in(v.reader(), allowed_hosts=lambda name: name.endswith(".lan")) as client:
        assert (await client.get("/runs", headers={"host": "box.LAN:9"})).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
async def test_only_reading_methods(client: httpx.AsyncClient, method: str) -> None:
    for path in ("/runs", "/roles", "/static/x", "/nothing"):
        answer = await client.request(method, path)
        assert answer.status_code == 405
        assert answer.headers["allow"] == "GET, HEAD"


# --- headers ------------------------------------------------------------------------------------------------
async def test_every_answer_carries_the_security_headers() -> None:
    reader = v.reader()
    async with signed_in(reader) as client, client_of(app_of(v.reader())) as stranger:
        answers = [
            await client.get(path)
            for path in (
                "/",
                "/runs",
                "/runs/last",
                f"/runs/{run_id('ok')}",
                "/roles",
                "/logs",
                "/nothing",
                "/runs/nothing",
                "/runs?q=bad",
                "/runs?before=x",
                "/static/none.css",
                f"/runs?token={v.TOKEN}",
            )
        ]
        answers += [
            await stranger.get("/runs"),
            await client.post("/runs"),
            await client.get("/runs", headers={"host": "evil"}),
        ]
        answers += [await client.head("/runs"), await client.get("/runs/")]
        reader.fails = ReadFailed("disk I/O error")
        answers.append(await client.get("/runs"))
        reader.fails = RuntimeError("a secret of the inside")
        answers.append(await client.get("/runs"))
    assert [answer.status_code for answer in answers] == [
        303,
        200,
        303,
        200,
        200,
        200,
        404,
        404,
        400,
        400,
        404,
        303,
        401,
        405,
        421,
        200,
        404,
        503,
        500,
    ]
    for answer in answers:
        assert ALL_HEADERS.items() <= dict(answer.headers).items()
        assert answer.headers["cache-control"] == "no-store"
        assert "a secret of the inside" not in answer.text
        assert "disk I/O error" not in answer.text


async def test_static_files_are_hashed_and_immutable(client: httpx.AsyncClient) -> None:
    page = Page((await client.get("/runs")).text)
    paths = [given.get("href") or given.get("src") for tag, given in page.elements if tag in ("link", "script")]
    assert len(paths) == 3
    client.cookies.clear()
    for path in paths:
        assert path is not None
        answer = await client.get(path, headers={"range": "bytes=0-3"})
        assert answer.status_code == 200  # no ranges: the whole file
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert ALL_HEADERS.items() <= dict(answer.headers).items()
        assert len(answer.content) > 100
        assert len(answer.content) <= 4096 or not path.endswith(".js")
    assert (await client.get("/static/..%2fapp.py")).status_code in (401, 404)


# --- pages --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("scenario", list(v.SCENARIOS))
async def test_each_run_has_a_page_with_its_verdict_first(client: httpx.AsyncClient, scenario: str) -> None:
    from nemo_agents.viewer.verdict import why

    detail = v.SCENARIOS[scenario]()
    answer = await client.get(f"/runs/{detail.run.run_id}")
    assert answer.status_code == 200
    page = Page(answer.text)
    assert " ".join(why(detail, now_us=v.NOW_US).text.split()) in page.text
    ids = [given["id"] for _, given in page.elements if "id" in given]
    assert len(ids) == len(set(ids))
    first_page = [row for n, row in enumerate(detail.calls, 1) if n <= 200 or row.state in PROBLEM_STATES]
    assert {f"call-{row.request_id}" for row in first_page} == {each for each in ids if each.startswith("call-")}
    targets = [given["href"] for _, given in page.elements if (given.get("href") or "").startswith(("#", "?"))]
    assert {target.partition("#")[2] for target in targets if target and "#" in target} <= set(ids)


async def test_a_selected_call_is_open_and_marked(client: httpx.AsyncClient) -> None:
    detail = v.ok()
    chosen = detail.calls[2].request_id
    html = (await client.get(f"/runs/{detail.run.run_id}", params={"call": chosen})).text
    elements = Page(html).elements
    at = next(index for index, (_, given) in enumerate(elements) if given.get("id") == f"call-{chosen}")
    assert elements[at][1]["aria-current"] == "true"
    assert elements[at + 1][0] == "details"
    assert "open" in elements[at + 1][1]
    assert sum(tag == "details" and "open" in given for tag, given in elements) == 1


async def test_a_prefix_or_last_leads_to_the_runs_own_address(client: httpx.AsyncClient) -> None:
    for asked in ("last", run_id("ok")[:10]):
        answer = await client.get(f"/runs/{asked}?scale=step")
        assert (answer.status_code, answer.headers["location"]) == (303, f"/runs/{run_id('ok')}?scale=step")


@pytest.mark.parametrize("asked", ["unknown", "x" * 10_000, "%00", "..%2f..%2fetc", "%ff"])
async def test_an_unknown_run_is_not_found_with_a_hint(client: httpx.AsyncClient, asked: str) -> None:
    answer = await client.get(f"/runs/{asked}")
    assert answer.status_code == 404
    assert "No such" in answer.text


async def test_a_huge_run_stays_a_page_that_a_browser_takes(client: httpx.AsyncClient) -> None:
    detail = v.huge()
    answer = await client.get(f"/runs/{detail.run.run_id}")
    assert len(answer.content) < 3_000_000
    assert "Read its prompt and answer" in answer.text
    late = detail.calls[450].request_id
    one = await client.get(f"/runs/{detail.run.run_id}", params={"call": late})
    assert "Every character of it" in one.text


# --- a run of several pages ---------------------------------------------------------------------------------
def calls_on(page: Page) -> list[int]:
    """The numbers of the calls on a page, in its order."""
    ids = [given.get("id") or "" for _, given in page.elements]
    return [int(each.rpartition("_")[2]) for each in ids if each.startswith("call-")]


def link_to(page: Page, path: str) -> str:
    return next(href for _, given in page.elements if (href := given.get("href") or "").startswith(path))


@pytest.mark.parametrize(
    ("query", "first", "last"),
    [
        ("", 1, 200),
        ("?from=201", 201, 400),
        ("?from=399", 201, 400),
        ("?from=1401", 1_401, 1_500),
        ("?from=99999999999999999999", 1_401, 1_500),
        ("?from=0", 1, 200),
        ("?from=-5", 1, 200),
        ("?from=x", 1, 200),
        ("?from=%C2%B2", 1, 200),
    ],
)
async def test_a_long_run_is_shown_page_by_page_with_its_problems(
    client: httpx.AsyncClient, query: str, first: int, last: int
) -> None:
    problems = (350, 351, 900, 1_403)
    answer = await client.get(f"/runs/{run_id('long_run')}{query}")
    page = Page(answer.text)
    assert calls_on(page) == sorted({*range(first, last + 1), *problems})
    assert len(answer.content) < 500_000
    assert "sums are over all 1,500 calls" in page.text
    named = [given for tag, given in page.elements if given.get("aria-current") == "page" and tag == "strong"]
    assert len(named) == 2  # above and below the calls
    assert f"{first}\N{EN DASH}{last}" in page.text


async def test_links_lead_through_all_pages_of_a_long_run(client: httpx.AsyncClient) -> None:
    seen: set[int] = set()
    path = f"/runs/{run_id('long_run')}"
    page = Page((await client.get(path)).text)
    seen.update(calls_on(page))
    for start in range(201, 1_500, 200):
        page = Page((await client.get(path + link_to(page, f"?from={start}"))).text)
        seen.update(calls_on(page))
    assert seen == set(range(1, 1_501))


async def test_the_sums_of_a_step_are_over_its_calls_on_all_pages(client: httpx.AsyncClient) -> None:
    for query in ("", "?from=801"):
        page = Page((await client.get(f"/runs/{run_id('long_run')}{query}")).text)
        for step in v.long_run().steps:
            assert f"∑ {cost_column(step.cost_nanos)}" in page.text
    assert "100 calls on other pages" in page.text  # of a step whose calls are all elsewhere
    assert "99 more calls on other pages" in page.text  # of one whose problem is here
    assert link_to(page, "?from=1001#step-11")


async def test_a_link_to_a_call_opens_the_page_that_has_it(client: httpx.AsyncClient) -> None:
    chosen = v.long_run().calls[776].request_id
    path = f"/runs/{run_id('long_run')}"
    page = Page((await client.get(path, params={"call": chosen})).text)
    assert set(range(601, 801)) <= set(calls_on(page))
    assert any(given.get("id") == f"call-{chosen}" and given.get("aria-current") for _, given in page.elements)
    assert "Every character of it" in page.text
    moved = Page((await client.get(path, params={"call": chosen, "from": "1"})).text)
    assert {1, 200, 777} <= set(calls_on(moved))
    assert 776 not in calls_on(moved)
    assert link_to(moved, "?scale=run") == f"?scale=run&call={chosen}&from=1"


async def test_a_run_of_nothing_but_refusals_stays_a_small_page() -> None:
    detail = v.long_run(problems=range(1, 1_501))
    async with signed_in(v.MemoryReader([detail])) as client:
        page = Page((await client.get(f"/runs/{detail.run.run_id}?from=601")).text)
    assert len(calls_on(page)) == 300
    assert "100 problems of other pages are here too, 1,200 more problems not" in page.text


async def test_steps_of_other_pages_are_left_out_when_there_are_many() -> None:
    detail = v.long_run(600, problems=(150,))
    for row in detail.calls:
        row.step = f"turn {row.seq}"
    detail = v.detail("recovered", detail.calls)
    detail.steps[449].parent = "turn 7"  # is shown with its child
    detail.steps[9].parent = "turn 8"
    async with signed_in(v.MemoryReader([detail])) as client:
        page = Page((await client.get(f"/runs/{detail.run.run_id}?from=401")).text)
    steps = [given["id"] for _, given in page.elements if (given.get("id") or "").startswith("step-")]
    assert len(steps) == 202
    labels = {f"turn {n}" for n in (7, 150, *range(401, 601))}
    assert {label for label in (f"turn {n}" for n in range(1, 601)) if f"{label} " in page.text} == labels
    assert "steps600" in page.text
    assert "398 steps without a call here left out" in page.text


async def test_a_short_run_has_no_pages(client: httpx.AsyncClient) -> None:
    html = (await client.get(f"/runs/{run_id('ok')}?from=201")).text
    assert "calls-pager" not in html
    assert len(calls_on(Page(html))) == 6


async def test_long_texts_are_cut_until_asked_for_in_full() -> None:
    detail = v.ok()
    reader = v.MemoryReader([detail])
    chosen = detail.calls[0].request_id
    reader.contents[chosen] = wire.CallContent(request_id=chosen, prompt=["lorem " * 100_000])
    async with signed_in(reader) as client:
        sizes = [
            len((await client.get(f"/runs/{detail.run.run_id}{query}")).content)
            for query in ("", f"?call={chosen}", f"?call={chosen}&full=1")
        ]
    assert sizes[0] < 100_000
    assert 200_000 < sizes[1] < 400_000
    assert sizes[2] > 600_000


async def test_content_that_was_not_kept_is_said_to_be_so() -> None:
    reader = v.MemoryReader([v.ok()])
    reader.contents.clear()
    async with signed_in(reader) as client:
        html = (await client.get(f"/runs/{run_id('ok')}")).text
    assert html.count("What this call said was not kept.") == 6


async def test_messages_roles_and_tool_calls_are_shown(client: httpx.AsyncClient) -> None:
    page = Page((await client.get(f"/runs/{run_id('nested')}")).text)
    for words in (
        "You are a careful analyst.",
        "calls web_search",
        '"query": "heat pump sales EU"',
        "temperature",
        "2 tools offered",
    ):
        assert words in page.text


async def test_roles_show_spend_against_budget(client: httpx.AsyncClient) -> None:
    page = Page((await client.get("/roles")).text)
    assert "$97.82 of $170 per day spent" in page.text
    assert "$71.40 of $80/day" in page.text
    assert "30 / 30" in page.text
    assert "This fleet has no roles." in page.text
    for words in (
        "$71.40 of $60/day · 119 % ◌ shadow",
        "$312 of $900/month Europe/Amsterdam · 35 %",
        "resets in 10 h",
        "▲ spike 4.2x: $12.60 in the last hour, usually $3",
        "64k / 100k ◌ shadow",
        "gpt-4o: rpm 3 / 10",
        "rpm 42 / 300",
        "budget.exhausted research-crew The budget of role writer is spent: $20 of $20 per day (100%).",
    ):
        assert words in page.text, words
    assert page.text.index("budget.exhausted") < page.text.index("spend.spike")  # newest first


async def test_a_run_says_what_limits_in_shadow_mode_would_have_done(client: httpx.AsyncClient) -> None:
    detail = v.shadowed()
    page = Page((await client.get(f"/runs/{detail.run.run_id}")).text)
    assert (
        "In shadow mode, the role's rpm would have refused call 3 and 1 more call; the fleet's budget would have "
        "stopped this run at call 4; loop detection would have stopped this run at call 5." in page.text
    )
    assert page.text.count("◌ shadow: role rpm") == 2
    assert "would have been refused by run loop: The same request came 8 times in 60 seconds." in page.text
    logs = Page((await client.get("/logs", params={"q": f"run:{detail.run.run_id}"})).text)
    assert logs.text.count("◌ shadow: role rpm") == 2
    plain = Page((await client.get("/runs/" + v.ok().run.run_id)).text)
    assert "shadow" not in plain.text


async def test_empty_stores_say_what_to_do() -> None:
    async with signed_in(v.MemoryReader([])) as client:
        for path in ("/runs", "/logs", "/roles"):
            answer = await client.get(path)
            assert answer.status_code == 200
            assert "yet." in answer.text


# --- filters and paging -------------------------------------------------------------------------------------
async def test_the_filter_line_reaches_the_reader(client: httpx.AsyncClient) -> None:
    page = Page((await client.get("/runs", params={"q": "state:stopped status:402"})).text)
    assert "01b7e2c3" in page.text
    assert "00a1b2c3" not in page.text
    page = Page((await client.get("/logs", params={"q": "status:429 role:researcher since:1h state:refused"})).text)
    assert page.text.count("rate_limit_exceeded") == 2


async def test_a_bad_filter_is_told_and_asks_nothing_of_the_store() -> None:
    reader = v.reader()
    async with signed_in(reader) as client:
        for path in ("/runs", "/logs"):
            answer = await client.get(path, params={"q": "sttae:stopped"})
            assert answer.status_code == 400
            assert "is no term of this filter" in answer.text
            assert 'value="sttae:stopped"' in answer.text
    assert reader.asked == []


async def test_pages_follow_each_other_without_gap_or_repeat() -> None:
    detail = v.huge()
    async with signed_in(v.MemoryReader([detail])) as client:
        seen: list[str] = []
        path: str | None = "/logs"
        while path is not None:
            elements = Page((await client.get(path)).text).elements
            seen += [str(given["href"]) for tag, given in elements if tag == "a" and "?call=" in str(given.get("href"))]
            path = next((given["href"] for _, given in elements if given.get("rel") == "next"), None)
    assert len(seen) == len(set(seen)) == 500


async def test_single_calls_can_be_told_from_runs(client: httpx.AsyncClient) -> None:
    runs = Page((await client.get("/runs", params={"q": "is:run"})).text).text
    single = Page((await client.get("/runs", params={"q": "is:single"})).text).text
    assert ("market-brief" in runs, "13000000" in runs) == (True, False)
    assert ("market-brief" in single, "13000000" in single) == (False, True)


async def test_a_rare_match_is_looked_for_a_few_pages_and_then_offered_onwards() -> None:
    details = [v.single() for _ in range(1_000)]
    reader = v.MemoryReader(details)
    async with signed_in(reader) as client:
        answer = await client.get("/runs", params={"q": "is:run"})
    assert len(reader.asked) == 10
    assert "Search older" in answer.text


# --- beside other paths -------------------------------------------------------------------------------------
async def test_the_viewer_lives_beside_other_routes() -> None:
    async def models(request: object) -> PlainTextResponse:
        return PlainTextResponse("models")

    app = Starlette(routes=[Route("/v1/models", models), *viewer_routes(app_of(v.reader()))])
    async with client_of(app) as client:
        assert (await client.get("/v1/models")).text == "models"
        assert (await client.get("/v1/nothing")).text == "Not Found"
        assert (await client.post("/runs")).headers["allow"] == "GET, HEAD"
        assert (await client.get("/runs", params={"token": v.TOKEN})).status_code == 303
        assert (await client.get(f"/runs/{run_id('ok')}")).status_code == 200


async def test_the_viewer_can_be_mounted_under_a_prefix() -> None:
    app = Starlette(routes=[Mount("/view", app_of(v.reader()))])
    async with client_of(app) as client:
        moved = await client.get("/view/runs", params={"token": v.TOKEN})
        assert moved.headers["location"] == "/view/runs"
        page = Page((await client.get("/view/runs")).text)
        links = [
            str(given.get("href") or given.get("src") or given.get("action"))
            for tag, given in page.elements
            if tag in ("a", "link", "script", "form")
        ]
        assert all(link.startswith(("/view/", "#")) for link in links)
        for link in (link for link in links if link != "#main"):
            assert (await client.get(link)).status_code == 200


# --- text is text -------------------------------------------------------------------------------------------
HOSTILE = [
    "<script>window.__pwned=1</script>",
    "</script><script>window.__pwned=1</script>",
    "<img src=x onerror=window.__pwned=1>",
    '"><img src=x onerror=window.__pwned=1>',
    "'><svg/onload=window.__pwned=1>",
    "</title><script>window.__pwned=1</script>",
    "</textarea><script>window.__pwned=1</script>",
    "</style><script>window.__pwned=1</script>",
    "</pre></code></div></details><h1>hi",
    "<!--",
    "--><script>window.__pwned=1</script>",
    "<![CDATA[",
    "]]><script>1</script>",
    "<iframe srcdoc='<script>1</script>'>",
    "<iframe src=javascript:window.__pwned=1>",
    "javascript:window.__pwned=1",
    "data:text/html,<script>1</script>",
    "<a href=javascript:window.__pwned=1>x</a>",
    "<form action=//evil.example><input name=x>",
    "<base href=//evil.example/>",
    "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "<link rel=stylesheet href=//evil.example/x.css>",
    "<style>*{display:none}</style>",
    "<svg><animate onbegin=window.__pwned=1 attributeName=x>",
    "<math><mi//xlink:href='data:x,1'>",
    "<details open ontoggle=window.__pwned=1>",
    "<object data=//evil.example>",
    "<embed src=//evil.example>",
    "<body onload=1>",
    "![x](https://evil.example/?q=1)",
    "[x](javascript:window.__pwned=1)",
    "{{ 7*7 }}{% raw %}",
    "{{ config.__class__ }}",
    "${7*7}",
    "&lt;script&gt;",
    "&#60;script&#62;window.__pwned=1",
    "\\u003cscript\\u003e",
    "+ADw-script+AD4-",
    '" autofocus onfocus=window.__pwned=1 x="',
    "' style='x:expression(1)",
    "`onmouseover=window.__pwned=1`",
    "a\x00<script>1</script>",
    "\x1b]8;;http://evil.example\x07x\x1b]8;;\x07",
    "\u202e<script>1</script>\u202c",
    "\ud83d<b>lone</b>",
    "../../etc/passwd",
    "%3Cscript%3E",
    "a\r\nset-cookie: x=1",
    '?call=x#y&z="<b>',
    "<x\tonclick\n=\r1>",
    "x" * 3_000,
]


def poisoned(value: Any, payload: str) -> Any:
    """Replace every text in a wire value; shapes, keys and the states of the contract stay."""
    if isinstance(value, msgspec.Struct):
        fixed = {"state", "run_id", "request_id", "prompt", "params", "answer"}
        changed = {
            name: poisoned(getattr(value, name), payload) for name in value.__struct_fields__ if name not in fixed
        }
        return msgspec.structs.replace(value, **changed)
    if isinstance(value, str):
        return payload
    if isinstance(value, list):
        return [poisoned(each, payload) for each in value]
    return value


def poisoned_run(payload: str) -> wire.RunDetail:
    detail = poisoned(v.failed_upstream(), payload)
    detail.run.stopped_by = wire.StoppedBy(
        kind=payload, code=payload, scope=payload, limit=payload, step=payload, message=payload
    )
    for number, row in enumerate(detail.calls):
        row.request_id = f"{payload}-{number}"
        row.shadow = [wire.Shadowed(code=payload, scope=payload, limit=payload, message=payload)]
    detail.run.run_id = "poisoned"
    for row in detail.calls:
        row.run_id = "poisoned"
    for number, step in enumerate(detail.steps):  # labels are unique
        step.step, step.parent = f"{payload}{number}", None
    return detail


def poisoned_content(request_id: str, payload: str) -> wire.CallContent:
    every_shape: list[Any] = [
        payload,
        {"role": payload, "content": payload, "name": payload},
        {"role": "user", "content": [{"type": "text", "text": payload}, {"type": payload, payload: payload}, payload]},
        {"role": "assistant", "tool_calls": [{"id": payload, "function": {"name": payload, "arguments": payload}}]},
        {"role": "tool", "tool_call_id": payload, "content": payload},
        {payload: payload},
    ]
    params = {
        payload: payload,
        "stop": [payload],
        "tools": [{"type": "function", "function": {"name": payload, "description": payload}}],
    }
    return wire.CallContent(request_id=request_id, prompt=every_shape, params=params, answer=every_shape[3])


ALLOWED = {
    "html",
    "head",
    "meta",
    "title",
    "link",
    "script",
    "body",
    "a",
    "header",
    "nav",
    "main",
    "footer",
    "details",
    "summary",
    "p",
    "kbd",
    "svg",
    "defs",
    "pattern",
    "rect",
    "path",
    "line",
    "text",
    "h1",
    "h2",
    "h3",
    "h4",
    "code",
    "pre",
    "span",
    "section",
    "strong",
    "dl",
    "dt",
    "dd",
    "div",
    "figure",
    "figcaption",
    "ol",
    "ul",
    "li",
    "table",
    "caption",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "time",
    "form",
    "label",
    "input",
    "button",
    "br",
}


def check_harmless(html: str) -> Page:
    page = Page(html)
    for tag, given in page.elements:
        assert tag in ALLOWED
        assert not [name for name in given if name.startswith("on") or name in ("style", "srcdoc", "formaction")]
        for name in ("href", "src", "action"):
            assert name not in given or str(given[name])[:1] in ("/", "#", "?")
            assert not str(given.get(name, "")).startswith(("//", "/\\"))
        if tag == "script":
            assert set(given) == {"type", "src"}
    assert sum(tag == "script" for tag, _ in page.elements) == 1
    assert sum(tag == "meta" for tag, _ in page.elements) == 3
    return page


def states_of(make: Callable[[], wire.RunDetail]) -> Iterator[wire.RunDetail]:
    for state in ("failed", "stopped", "recovered"):
        detail = make()
        detail.run.state = state
        yield detail


@pytest.mark.parametrize("payload", HOSTILE, ids=[str(number) for number in range(len(HOSTILE))])
async def test_hostile_text_is_shown_and_never_run(payload: str, hostile: tuple[Starlette, v.MemoryReader]) -> None:
    app, reader = hostile
    reader.details, reader.fleets, reader.events = [], poisoned(v.fleets(), payload), poisoned(v.events(), payload)
    shown = " ".join(visible(payload).split())
    async with signed_in_to(app) as client:
        for detail in states_of(lambda: poisoned_run(payload)):
            reader.details = [detail]
            reader.contents = {row.request_id: poisoned_content(row.request_id, payload) for row in detail.calls}
            chosen = quote(detail.calls[0].request_id.encode("utf-8", "replace"), safe="")
            first = detail.run.state == "failed"
            paths = [
                "/runs/poisoned",
                "/runs",
                *(("/logs", "/roles", f"/runs/poisoned?call={chosen}") if first else ()),
            ]
            for path in paths:
                answer = await client.get(path)
                assert answer.status_code == 200
                page = check_harmless(answer.text)
                if "<" in payload:
                    assert payload not in answer.text
                if path == "/runs/poisoned" or (len(payload) < 40 and "\r" not in payload):
                    assert shown in page.text  # tables shorten what is longer


@pytest.mark.parametrize(
    "payload", [each for each in HOSTILE if "\ud83d" not in each][:40], ids=lambda each: str(HOSTILE.index(each))
)
async def test_hostile_addresses_and_filters_are_shown_and_never_run(client: httpx.AsyncClient, payload: str) -> None:
    for path in ("/runs", "/logs"):
        answer = await client.get(path, params={"q": payload, "call": payload})
        assert answer.status_code == 400
        check_harmless(answer.text)
    for path in (f"/runs/{quote(payload, safe='')}", f"/{quote(payload, safe='')}"):
        answer = await client.get(path)
        assert answer.status_code in (404, 400)
        check_harmless(answer.text)
    answer = await client.get(f"/runs/{run_id('ok')}", params={"call": payload, "scale": payload, "full": payload})
    assert answer.status_code == 200
    check_harmless(answer.text)
    client.cookies.clear()
    answer = await client.get("/runs", params={"x": payload, payload: "1"})
    assert answer.status_code == 401
    check_harmless(answer.text)


async def test_five_hundred_calls_are_rendered_quickly(client: httpx.AsyncClient) -> None:
    started = time.process_time()
    await client.get(f"/runs/{run_id('huge')}")
    assert time.process_time() - started < 3.0  # measured 0.1 s to 0.3 s; a quadratic page would be far above


async def test_a_run_without_an_error_names_what_may_have_spoiled_it(client: httpx.AsyncClient) -> None:
    detail = v.fallback()
    page = Page((await client.get(f"/runs/{detail.run.run_id}")).text)
    assert "call 6 edit The answer was cut off at its token limit." in page.text
    assert "call 4 write claude-3-5-sonnet-20241022 answered in place of o3-mini" in page.text
