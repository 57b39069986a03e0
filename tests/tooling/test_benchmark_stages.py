"""Where a request's processor time goes: the map from functions to stages, and its arithmetic."""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@cache
def functions_below(module: str) -> frozenset[str]:
    """The functions of a module, or of a package and all below it; none where there is no such module."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return frozenset()
    origin = Path(spec.origin)
    files = origin.parent.rglob("*.py") if origin.name == "__init__.py" else [origin]
    nodes = (node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    return frozenset(node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def test_everything_that_the_map_names_exists():
    """What was renamed or moved would silently count as `event loop and the rest`."""
    import stagemap

    assert [name for name in stagemap.MODULES if not functions_below(name)] == []
    gone = [f"{name}: {module}" for module, name in stagemap.FUNCTIONS if name not in functions_below(module)]
    assert gone == []
    assert {*stagemap.MODULES.values(), *stagemap.FUNCTIONS.values()} < set(stagemap.STAGES)


def test_the_innermost_function_that_is_known_decides():
    import stagemap as m

    inner = ("json.decoder", "decode")
    keep = ("nemo_agents.gateway.stores.writer", "keep")
    close = ("nemo_agents.gateway.stores.sql", "close_call")
    guard = ("nemo_agents.gateway.dataplane", "_guard")
    assert m.stage_of([inner, keep, close]) == m.SETTLE
    assert m.stage_of([("nemo_agents.gateway.stores.writer", "_resolve")]) == m.HOLD
    assert m.stage_of([("nemo_agents.policy.guardrails.engine", "anything"), guard]) == m.GUARD
    assert m.stage_of([("nemo_agents.policy.texts", "anything"), guard]) == m.GUARD
    assert m.stage_of([inner, ("asyncio.events", "_run")]) == m.ELSEWHERE
    assert m.stage_of([]) == m.ELSEWHERE


def test_a_module_of_a_similar_name_is_not_meant():
    import stagemap

    assert stagemap.stage_of_function("nemo_agents.gateway.quotes", "anything") is None


def test_costs_are_for_each_request_and_add_up():
    import stagemap as m
    from stages import WRITER, Snapshot, costs

    before = Snapshot(
        process_ns=1_000, loop_ns=500, stages={m.READ: 100, m.HOLD: 300}, threads={WRITER: 400, "gone": 7}, samples=1
    )
    after = Snapshot(
        process_ns=2_001_000,
        loop_ns=1_200_500,
        stages={m.READ: 300_100, m.HOLD: 900_300},
        threads={WRITER: 600_400, "reader": 5},
        samples=9,
    )
    each = costs("plain", after.since(before), 100)
    assert (each.samples, each.requests) == (8, 100)
    assert each.stages[m.READ] == pytest.approx(3.0)
    assert each.stages[m.HOLD] == pytest.approx(9.0)
    assert each.writer_us == pytest.approx(6.0)
    assert each.others_us == pytest.approx(2.0)
    assert each.total_us == pytest.approx(20.0)
    assert sum(each.stages.values()) + each.writer_us + each.others_us == pytest.approx(each.total_us)


def test_what_came_after_the_last_sample_is_spread_over_the_stages():
    import stagemap as m
    from stages import Snapshot, costs

    used = Snapshot(process_ns=4_000, loop_ns=4_000, stages={m.READ: 500, m.HOLD: 1_500}, threads={}, samples=2)
    each = costs("plain", used, 1)
    assert (each.stages[m.READ], each.stages[m.HOLD]) == (1.0, 3.0)


def test_a_window_without_samples_still_says_what_the_whole_cost():
    from stages import Snapshot, costs, stage_table

    used = Snapshot(process_ns=4_000, loop_ns=3_000, stages={}, threads={}, samples=0)
    each = costs("plain", used, 2)
    assert (sum(each.stages.values()), each.others_us, each.total_us) == (0.0, 0.5, 2.0)
    assert "1 requests" not in stage_table([each])
    assert "2 requests and 0 samples" in stage_table([each])


def test_the_profiler_puts_the_loops_time_where_it_was_spent(tmp_path):
    """A program that works in one known function, and waits in another: the waiting costs nothing."""
    import subprocess
    import sys

    program = f"""
import os, signal, sys, time
sys.path.insert(0, {str(ROOT / "benchmarks")!r})
from pathlib import Path
from stageprobe import Sampler
Sampler(Path(sys.argv[1])).start()
known = {{"__name__": "nemo_agents.gateway.limiter.memory", "time": time}}
exec('''
def admit():
    until = time.thread_time() + 0.3
    while time.thread_time() < until:
        pass
''', known)
waiting = {{"__name__": "nemo_agents.gateway.quote", "time": time}}
exec("def quote(): time.sleep(0.1)", waiting)
known["admit"]()
waiting["quote"]()
os.kill(os.getpid(), signal.SIGUSR1)
"""
    snapshot = tmp_path / "snapshot.json"
    subprocess.run([sys.executable, "-c", program, str(snapshot)], check=True, timeout=60)
    import json

    import stagemap as m

    found = json.loads(snapshot.read_text(encoding="utf-8"))
    assert found["number"] == 1
    assert found["samples"] >= 10
    assert found["stages"][m.ADMIT] >= 0.25e9
    assert found["stages"][m.QUOTE] <= 0.05e9
    assert found["loop_ns"] >= found["stages"][m.ADMIT]
