"""The checks of the repository find what they are there to find."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

CI = Path(__file__).parents[2] / ".ci"


def load(name: str):
    """Import a script of the repository, which is no package."""
    spec = importlib.util.spec_from_file_location(name, CI / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_dead_links_are_named_with_their_line(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "pic.png").touch()
    (tmp_path / "README.md").write_text(
        "# Top `code` & more\n"
        "[a](docs/a.md#sub-title) [b](docs/b.md) [c](#top-code--more) `[x](nope)` [d](/etc) [e](../x)\n"
        '![i](img.png "t") <img src="pic.png"> [m](mailto:x) [w](https://example.invalid/y)\n'
        "[r][ref] [g](docs/a.md#twice-1) [h](docs/a.md#twice-2)\n"
        "\n"
        "[ref]: docs/a.md#none\n"
        "```\n[x](gone)\n```\n"
    )
    (tmp_path / "docs" / "a.md").write_text("Sub title\n=========\n## Twice\n## Twice\n")
    done = subprocess.run(
        [sys.executable, str(CI / "check_links.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert [line.split(": ")[:2] for line in done.stdout.splitlines()] == [
        ["README.md:2", "'docs/b.md'"],
        ["README.md:2", "'/etc'"],
        ["README.md:2", "'../x'"],
        ["README.md:3", "'img.png'"],
        ["README.md:4", "'docs/a.md#twice-2'"],
        ["README.md:6", "'docs/a.md#none'"],
    ]


HASH = f"    --hash=sha256:{'0' * 64}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"a==1 \\\n{HASH}\n", None),
        (f"a==1 ; sys_platform == 'win32' \\\n{HASH} \\\n{HASH}\n", None),
        ("a==1 \\\nb==2 \\\n" + HASH + "\n", "no hash"),
        ("a==1 \\\n", "no hash"),
        (f"a>=1 \\\n{HASH}\n", "neither an exact version"),
        (f"--index-url https://example.invalid/simple\na==1 \\\n{HASH}\n", "names no place"),
        (f"a @ file:///home/me/a.whl \\\n{HASH}\n", "names no place"),
        (f"litellm==1.0 \\\n{HASH}\n", "must not be installed"),
    ],
)
def test_a_lock_is_exact_hashed_and_names_no_place(tmp_path, monkeypatch, text, said):
    check_lock = load("check_lock")
    monkeypatch.setattr(check_lock, "ROOT", tmp_path)
    (tmp_path / "lock.txt").write_text(text)
    found = list(check_lock.faults(tmp_path / "lock.txt"))
    assert (found == []) if said is None else any(said in fault for fault in found)


def test_a_requirement_that_the_lock_does_not_meet_is_named():
    check_lock = load("check_lock")
    locked = {"a": {"1.5"}, "b-c": {"2.0"}}
    assert list(check_lock.unmet(["a>=1,<2", "B_C"], locked, check_lock.RUNTIME)) == []
    assert len(list(check_lock.unmet(["a>=2", "d"], locked, check_lock.RUNTIME))) == 2
