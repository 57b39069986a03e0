"""`nemo-agents demo`: what it shows, that it spends nothing, and how it ends."""

from __future__ import annotations

import re
import signal
import threading

import httpx
import pytest
from cli_shell import ANSI, TRANSCRIPT, finish, plain, read_until

CANARY = "sk-canary-3f9a77c1e0"


@pytest.fixture
def demo_shell(shell):
    """A machine on which a provider's key is found, and on which any call that left would fail."""
    return shell.given(OPENAI_API_KEY=CANARY, OPENAI_BASE_URL="http://127.0.0.1:9/v1", TMPDIR=str(shell.folder))


def parts_of(out):
    pieces = re.split(r"^(\d)\. ", out, flags=re.MULTILINE)[1:]
    return dict(zip(map(int, pieces[::2]), pieces[1::2], strict=True))


def test_it_shows_its_eight_parts_offline_and_leaves_nothing(demo_shell):
    done = demo_shell.run("demo")
    assert (done.code, done.err) == (0, "")
    assert CANARY not in done.out
    parts = parts_of(done.out)
    assert sorted(parts) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert re.search(r"listening on http://127\.0\.0\.1:\d+", parts[1])
    assert "sandbox" in parts[1]
    assert "found OPENAI_API_KEY, not used: `nemo-agents demo --real`" in parts[1]
    for role in ("orchestrator", "researcher", "writer", "critic", "embeddings"):
        assert f"  + {role} " in parts[2]
        assert f"\n{role} " in parts[7]
    assert "7 to create. Worst case per day: $135 by roles, $170 by fleet." in parts[2]
    assert "planning again finds nothing to change" in parts[2]
    for step in ("plan", "choose tools", "research", "synthesize", "critique"):
        assert f"\n  {step} " in parts[3]
        assert f"── {step} (" in parts[6]
    assert re.search(r"run [0-9a-f]{8} ended ok: 6 calls, \$0\.\d+", parts[3])
    assert "stopped by budget: 402 budget_exhausted" in parts[4]
    assert re.search(r"the program goes on, with [1-9] drafts in run.result and \$0.02\d* spent", parts[4])
    assert re.search(r"429 rate_limit_exceeded after \d+ calls", parts[5])
    assert "Retry in " in parts[5]
    assert "OK: 6 calls in 6 steps" in parts[6]
    assert "Stopped at step 1 draft, call 4" in parts[6]
    assert "30/30" in parts[7]
    assert "ledger: every balance adds up" in parts[7]
    assert re.search(r"^http://127\.0\.0\.1:\d+/runs/[0-9a-f]{32}\?token=\S+$", parts[8], re.MULTILINE)
    lines = [line for line in done.out.splitlines() if "?token=" not in line]
    assert max(map(len, lines)) <= 100
    assert list(demo_shell.folder.glob("nemo-demo-*")) == []


def test_a_step_takes_as_long_as_its_calls_and_the_terminal_has_colours(demo_shell):
    done = demo_shell.in_terminal("demo")
    assert done.code == 0
    assert {"\x1b[32m", "\x1b[31m", "\x1b[1;36m"} <= set(ANSI.findall(done.out))
    step = re.search(r"── plan \(orchestrator\)  ok .*?(\d+)\s(µs|ms|s)\n", plain(done.out))
    assert step, done.out
    assert step[2] != "s"  # it was seconds while the first step paid for loading the openai package


def test_keep_serves_the_run_page_until_interrupted(demo_shell):
    process = demo_shell.start("demo", "--keep")
    out = read_until(process, "Running until you press Ctrl-C.")
    TRANSCRIPT.append(out)
    page_url = re.search(r"^http\S+\?token=\S+$", out, re.MULTILINE)[0]
    with httpx.Client(trust_env=False) as browser:
        signed_in = browser.get(page_url)
        assert signed_in.is_redirect
        page = browser.get(signed_in.next_request.url)
    assert page.status_code == 200
    assert "Stopped" in page.text
    assert "budget" in page.text
    ended = finish(process, signal.SIGINT)
    assert (ended.code, ended.err) == (0, "")
    assert list(demo_shell.folder.glob("nemo-demo-*")) == []


@pytest.mark.parametrize("marker", ["1. The gateway", "  plan  ", "5. A runaway loop"])
def test_an_interrupt_ends_it_with_130_and_no_traceback(demo_shell, marker):
    process = demo_shell.start("demo")
    read_until(process, marker)
    drain = threading.Thread(target=process.stdout.read)  # whatever it prints on its way out
    process.send_signal(signal.SIGINT)
    drain.start()
    err = process.stderr.read()
    drain.join()
    process.wait(60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert err.strip() in ("interrupted", "")
    assert list(demo_shell.folder.glob("nemo-demo-*")) == []


def test_a_folder_of_its_own_is_kept_and_not_used_twice(demo_shell, tmp_path):
    home = tmp_path / "kept"
    assert demo_shell.run("demo", "--home", home).code == 0
    assert (home / "gateway.db").exists()
    said = demo_shell.run("demo", "--home", home).error()
    assert f"nemo-agents gateway --home {home}" in said
