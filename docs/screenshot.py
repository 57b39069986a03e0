"""Make the pictures in docs/images: a real gateway, real runs against the sandbox, a real browser.

`python docs/screenshot.py` writes them. It needs a Chromium; `CHROMIUM=/path` names another than the one that is found.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from playwright.sync_api import Browser, sync_playwright

from nemo_agents import Fleet, Step
from nemo_agents.admin import observe
from nemo_agents.testing import LocalGateway, running_gateway

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
WIDTH: Final = 1280
HEIGHT_MAX: Final = 1000
BYTES_MAX: Final = 300_000
FLAGS: Final = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
QUESTION: Final = "What is a CRDT, and when is it the wrong choice?"
CLAUDE: Final = "claude-3-5-sonnet-20241022"

# The first model of the group is overloaded once, so that the run shows a fallback.
SANDBOX: Final[dict[str, Any]] = {
    "latency_ms": 40,
    "script": [
        {"model": "o3-mini", "contains": "Plan", "status": 503, "error": "overloaded", "latency_ms": 420},
        {"model": CLAUDE, "contains": "Plan", "output_tokens": 320, "latency_ms": 1100},
    ],
}


def say(step: Step, model: str, prompt: str, *, took_ms: int, tokens: int, **options: Any) -> str:
    """Ask a model for an answer that takes this long and has this many tokens."""
    streamed = options.get("stream") is True
    script = {"output_tokens": tokens, "latency_ms": 220 if streamed else took_ms}
    if streamed:
        script["chunk_delay_ms"] = max(1, (took_ms - 220) // max(1, tokens // 5))
    answer = step.openai().chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": prompt}],
        max_tokens=tokens + 200,
        extra_body={"nemo_sandbox": script},
        **options,
    )
    if streamed:
        return "".join(part.choices[0].delta.content or "" for part in answer if part.choices)
    return answer.choices[0].message.content or ""


def research(fleet: Fleet) -> str:
    """Answer a question in five steps, one of them with a step inside, one with a fallback; return the run's id."""
    with fleet.run(f"answer: {QUESTION}", budget="$0.05", max_calls=50) as run:
        with run.step("plan", role="orchestrator") as step:
            # Not scripted by the request: the rule above shall have its say.
            step.openai().chat.completions.create(
                model="fast-reasoning",
                messages=[{"role": "user", "content": f"Plan in three steps how to answer: {QUESTION}"}],
                max_tokens=800,
            )
        with run.step("research", role="researcher") as step:
            prompt = f"Collect what answers: {QUESTION} Ask anna@example.com if unsure."
            notes = say(step, "gpt-4o-mini", prompt, took_ms=1900, tokens=640)
            with run.step("embed notes", role="embeddings") as inner:
                inner.openai().embeddings.create(
                    model="text-embedding-3-small",
                    input=notes,
                    extra_body={"nemo_sandbox": {"latency_ms": 160}},
                )
            say(step, "gpt-4o-mini", "Which of these notes contradict each other?", took_ms=900, tokens=210)
        with run.step("synthesize", role="writer") as step:
            draft = say(step, CLAUDE, f"Answer from the notes: {QUESTION}", took_ms=2600, tokens=900, stream=True)
        with run.step("critique", role="critic") as step:
            say(step, "gpt-4o-mini", f"Name the weakest claim: {draft[:400]}", took_ms=700, tokens=180)
    return run.id


def capped(fleet: Fleet) -> str:
    """Write drafts until the run's own budget says no; return the run's id."""
    with fleet.run("write drafts until satisfied", budget="$0.03") as run, run.step("draft", role="writer") as step:
        for n in range(1, 20):
            say(step, CLAUDE, f"Draft {n}: a better essay about CRDTs.", took_ms=350, tokens=480)
    return run.id


def others(fleet: Fleet) -> None:
    """Make a few runs more, so that the list is one."""
    for name, took_ms in (("summarise release notes", 300), ("triage inbox", 450), ("check citations", 250)):
        with fleet.run(name, budget="$0.10") as run, run.step("read", role="researcher") as step:
            say(step, "gpt-4o-mini", f"Task: {name}.", took_ms=took_ms, tokens=150)
    with fleet.run("runaway loop", max_calls=3) as run, run.step("loop", role="orchestrator") as step:
        while True:
            say(step, "fast-reasoning", "Are we there yet?", took_ms=60, tokens=20)


@contextmanager
def played() -> Iterator[tuple[LocalGateway, str, str]]:
    """Run a gateway on which everything above has happened."""
    with (
        tempfile.TemporaryDirectory(prefix="nemo-pictures-") as folder,
        running_gateway(Path(folder), settings={"sandbox_script": SANDBOX}) as gateway,
    ):
        fleet = gateway.provision(Fleet.from_file(ROOT / "examples" / "research_crew" / "fleet.py"))
        fleet["critic"].openai()  # the openai package is loaded before anything is timed
        others(fleet)
        stopped = capped(fleet)
        yield gateway, research(fleet), stopped


def take(browser: Browser, gateway: LocalGateway, path: str, name: str) -> None:
    """Save a page as `<name>-light.png` and `<name>-dark.png`."""
    with gateway.admin() as client:
        address = client.run(observe.viewer_link(path))
    for look in ("light", "dark"):
        context = browser.new_context(color_scheme=look, viewport={"width": WIDTH, "height": 400})
        page = context.new_page()
        page.goto(address, wait_until="networkidle")
        height = min(HEIGHT_MAX, int(page.evaluate("document.documentElement.scrollHeight")))
        file = IMAGES / f"{name}-{look}.png"
        page.screenshot(path=file, full_page=True, clip={"x": 0, "y": 0, "width": WIDTH, "height": height})
        context.close()
        size = file.stat().st_size
        if size > BYTES_MAX:
            raise RuntimeError(f"{file.name} has {size} bytes, more than {BYTES_MAX}: show less of the page")
        print(f"{file.relative_to(ROOT)}  {WIDTH} x {height}  {size // 1000} kB")


def main() -> int:
    """Play, take the pictures, and return the exit status."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        print("no Chromium here: install one, or name it in CHROMIUM", file=sys.stderr)
        return 1
    IMAGES.mkdir(exist_ok=True)
    with played() as (gateway, answered, stopped), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        take(browser, gateway, f"/runs/{answered}", "run")
        take(browser, gateway, f"/runs/{stopped}", "stopped")
        take(browser, gateway, "/runs", "runs")
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
