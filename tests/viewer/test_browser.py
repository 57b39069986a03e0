"""The pages in a real Chromium: light, dark, narrow, hostile, and with JavaScript switched off."""

from __future__ import annotations

import contextlib
import shutil
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import test_viewer_pages as pages
import uvicorn
import viewer_scenarios as v
from playwright.sync_api import Browser, BrowserContext, Page, Request, sync_playwright

from nemo_agents.secret import Secret
from nemo_agents.viewer.app import viewer_app
from nemo_agents.viewer.verdict import why

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light", "viewport": {"width": 1440, "height": 900}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1440, "height": 900}},
    "narrow": {"color_scheme": "light", "viewport": {"width": 375, "height": 812}},
    "narrow-dark": {"color_scheme": "dark", "viewport": {"width": 375, "height": 812}},
    "middle": {"color_scheme": "light", "viewport": {"width": 820, "height": 900}},
    "no-script": {"color_scheme": "light", "viewport": {"width": 1440, "height": 900}, "java_script_enabled": False},
}
HOSTILE = (
    "<img src=//evil.example/x onerror=window.__pwned=1><script>window.__pwned=1</script>\u202e\x1b[31m" + "w" * 200
)

# Contrast by WCAG 2.2, 1.4.3, over every text on the page; returns what falls short of 4.5.
CONTRAST = """() => {
  const number = (text) => { const m = text.match(/[\\d.]+/g).map(Number); return [m[0], m[1], m[2], m[3] ?? 1]; };
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const paint = (el) => number(getComputedStyle(el).backgroundColor);
  const ground = (el) => { while (paint(el)[3] < 0.99) el = el.parentElement; return paint(el); };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), bad = new Set();
  while (walker.nextNode()) {
    const node = walker.currentNode, el = node.parentElement;
    if (!node.data.trim() || !el.checkVisibility() || el.closest(".hidden, .skip, noscript")) continue;
    const style = getComputedStyle(el), ink = el.closest("svg") ? style.fill : style.color;
    const [a, b] = [light(number(ink)), light(ground(el))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) bad.add(`${el.tagName}.${el.getAttribute("class")} ${ratio.toFixed(2)} ${node.data.trim()}`);
  }
  return [...bad];
}"""


@dataclass
class Watched:
    """A browser context with all that it complained about or asked for."""

    context: BrowserContext
    base: str
    complaints: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    page: Page = field(init=False)

    def __post_init__(self) -> None:
        page = self.page = self.context.new_page()
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        page.on("request", self.note)

    def note(self, request: Request) -> None:
        if not request.url.startswith(self.base):
            self.foreign.append(request.url)

    def open(self, path: str) -> Page:
        answer = self.page.goto(self.base + path)
        assert answer is not None
        assert answer.status == 200
        return self.page


@contextlib.contextmanager
def serve(reader: v.MemoryReader) -> Iterator[str]:
    """A real server on a free loopback port."""
    app = viewer_app(reader, token=Secret(v.TOKEN), now_us=lambda: v.NOW_US)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    with serve(v.reader()) as address:
        yield address


@contextlib.contextmanager
def watched(browser: Browser, base: str, look: str) -> Iterator[Watched]:
    context = browser.new_context(**LOOKS[look])
    try:
        made = Watched(context=context, base=base)
        made.open(f"/runs?token={v.TOKEN}")
        yield made
        assert made.complaints == []  # a violated content security policy is told here
        assert made.foreign == []
    finally:
        context.close()


def overflow(page: Page) -> int:
    return int(page.evaluate("document.documentElement.scrollWidth - innerWidth"))


def path_of(scenario: str) -> str:
    return f"/runs/{v.SCENARIOS[scenario]().run.run_id}"


@pytest.mark.parametrize("look", ["light", "dark", "narrow", "narrow-dark", "middle"])
def test_pages_fit_and_can_be_read(browser: Browser, base: str, look: str) -> None:
    call = v.nested().calls[2].request_id
    paths = [
        "/runs",
        "/logs?q=state:refused",
        "/roles",
        path_of("shadowed"),
        f"{path_of('nested')}?call={call}",
        path_of("failed_upstream"),
    ]
    with watched(browser, base, look) as made:
        for path in [*paths, path_of("stopped_by_budget"), path_of("fallback"), path_of("guardrail_block")]:
            page = made.open(path)
            assert overflow(page) <= 0, path
            assert page.evaluate(CONTRAST) == [], path
            assert page.title().endswith("nemo-agents")
            assert page.locator("main h1").count() == 1


@pytest.mark.parametrize("look", ["light", "no-script", "narrow"])
@pytest.mark.parametrize("scenario", ["stopped_by_budget", "running", "recovered"])
def test_the_verdict_is_in_sight_at_once(browser: Browser, base: str, look: str, scenario: str) -> None:
    with watched(browser, base, look) as made:
        page = made.open(path_of(scenario))
        verdict = page.get_by_role("region", name="Verdict")
        assert " ".join(verdict.inner_text().split()) == " ".join(
            why(v.SCENARIOS[scenario](), now_us=v.NOW_US).text.split()
        )
        box = verdict.bounding_box()
        assert box is not None
        assert box["y"] + box["height"] < LOOKS[look]["viewport"]["height"] / 2


def test_without_javascript_a_call_opens_and_links_lead_on(browser: Browser, base: str) -> None:
    with watched(browser, base, "no-script") as made:
        page = made.open("/runs?q=state:stopped")
        page.get_by_role("link", name="market-brief").first.click()
        page.get_by_role("link", name="call 6").click()
        assert "?call=" in page.url
        assert page.get_by_text("budget_exhausted").first.is_visible()
        closed = page.locator(".call details:not([open]) > summary").first
        body = page.locator(".call .body").first
        assert not body.is_visible()
        closed.click()
        assert body.is_visible()
        page.get_by_role("link", name="Request log").click()
        page.get_by_label("Filter", exact=True).fill("status:429")
        page.get_by_role("button", name="Apply").click()
        assert page.url.endswith("/logs?q=status%3A429")
        assert page.get_by_role("row").count() > 1


def test_without_javascript_links_lead_through_the_pages_of_a_long_run(browser: Browser, base: str) -> None:
    with watched(browser, base, "no-script") as made:
        page = made.open(path_of("long_run"))
        assert page.evaluate("document.documentElement.scrollHeight") < 12_000
        calls = v.long_run().calls
        assert page.locator(f"#call-{calls[0].request_id}").is_visible()
        assert not page.locator(f"#call-{calls[500].request_id}").count()
        page.get_by_role("navigation", name="Calls", exact=True).get_by_role("link", name="600").click()
        page.locator(f"#call-{calls[500].request_id}").wait_for()
        assert page.url.endswith("?from=401")
        assert page.locator(f"#call-{calls[349].request_id}").is_visible()  # a problem of another page
        number = page.locator(f"#call-{calls[1_402].request_id} .seq").bounding_box()
        assert number is not None
        assert number["height"] < 24  # one line
        page.locator("#step-1").get_by_role("link", name="100 calls on other pages").click()
        page.locator(f"#call-{calls[0].request_id}").wait_for()
        assert page.url.endswith("?from=1#step-1")
        page.get_by_role("link", name="4 calls were refused with 429 (rpm)").click()
        page.locator(f"#call-{calls[349].request_id}.selected .body").wait_for()


LONG_NAMES = ("compare every claim of the draft with the sources that were found on the web", "w" * 70)


@pytest.mark.parametrize("look", ["light", "narrow-dark"])
@pytest.mark.parametrize("name", LONG_NAMES)
def test_a_number_stands_beside_a_long_name_and_a_long_cause_is_cut(browser: Browser, look: str, name: str) -> None:
    detail = v.failed_in_application()
    for row in (*detail.steps, *detail.calls):
        row.step = name
    for call in detail.calls:
        call.model_asked = call.model_served = name
    detail.run.error = " ".join(LONG_NAMES)
    with serve(v.MemoryReader([detail])) as address, watched(browser, address, look) as made:
        page = made.open(f"/runs/{detail.run.run_id}")
        for number, text in ((".step-row .seq", ".label"), ("summary .seq", ".model")):
            left, right = page.locator(number).first.bounding_box(), page.locator(text).first.bounding_box()
            assert left is not None
            assert right is not None
            assert abs(left["y"] - right["y"]) < 6
            assert left["x"] + left["width"] <= right["x"]
        assert overflow(page) <= 0
        cause = made.open("/runs").locator(".c-cause .clamp")
        box = cause.bounding_box()
        assert box is not None
        assert box["height"] < 4 * 18  # three lines
        assert box["width"] > 200
        assert cause.get_attribute("title") == cause.text_content()
        assert overflow(page) <= 0


def test_keys_move_and_find_problems(browser: Browser, base: str) -> None:
    with watched(browser, base, "light") as made:
        page = made.open(path_of("failed_upstream"))
        focused = "document.activeElement.closest('.call')?.id ?? document.activeElement.id"
        calls = [f"call-{row.request_id}" for row in v.failed_upstream().calls]
        page.keyboard.press("j")
        page.keyboard.press("j")
        assert page.evaluate(focused) == calls[1]
        page.keyboard.press("k")
        assert page.evaluate(focused) == calls[0]
        page.keyboard.press("e")
        assert page.evaluate(focused) == calls[3]
        page.keyboard.press("?")
        assert page.locator("#keys").get_attribute("open") is not None
        page.goto(base + "/runs")
        page.keyboard.press("/")
        assert page.evaluate(focused) == "q"
        page.keyboard.type("jk?")
        assert page.locator("#q").input_value() == "jk?"


def test_a_running_run_is_reloaded_and_keeps_what_is_open(browser: Browser, base: str) -> None:
    with watched(browser, base, "light") as made:
        page = made.open(path_of("running"))
        page.locator(".call summary.row").first.click()
        with page.expect_navigation(timeout=10_000):
            pass
        assert page.locator(".call details").first.get_attribute("open") is not None


@pytest.mark.parametrize("look", ["light", "narrow"])
def test_hostile_text_runs_nothing_and_breaks_no_layout(browser: Browser, look: str) -> None:
    detail = pages.poisoned_run(HOSTILE)
    reader = v.MemoryReader([detail], pages.poisoned(v.fleets(), HOSTILE))
    reader.events = pages.poisoned(v.events(), HOSTILE)
    reader.contents = {row.request_id: pages.poisoned_content(row.request_id, HOSTILE) for row in detail.calls}
    with serve(reader) as address, watched(browser, address, look) as made:
        for path in ("/runs", "/logs", "/roles", "/runs/poisoned"):
            page = made.open(path)
            page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
            assert page.evaluate("window.__pwned") is None
            assert overflow(page) <= 0, path
            assert page.get_by_text("<img src=//evil.example/x").first.is_visible()


def test_five_hundred_calls_are_usable(browser: Browser, base: str) -> None:
    with watched(browser, base, "light") as made:
        page = made.open(path_of("huge"))
        timing = page.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
        assert timing < 10_000  # measured 0.4 s to 1 s on two shared cores
        page.keyboard.press("j")
        assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
        assert overflow(page) <= 0
