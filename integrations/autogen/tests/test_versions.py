"""Who owns `import autogen`, and what is said of an installation that cannot work."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import nemo_agents_autogen
import pytest
from nemo_agents_autogen import versions
from nemo_agents_autogen.versions import Owner, classic_of
from shapes import DISTRIBUTIONS, distribution_of

from nemo_agents import AgentRole
from nemo_agents.adapters import AdapterError


def owner(name: str, version: str, *, owns: bool = True, present: bool = True) -> Owner:
    return Owner(name=name, version=version, owns=owns, present=present)


@pytest.mark.parametrize("name", ["autogen", "pyautogen"])
def test_one_whole_owner_is_it(name):
    """Distributions beside it that do not contain the package change nothing."""
    others = [owner("ag2", "1.2.1", owns=False), owner("autogen-agentchat", "0.7.5", owns=False)]
    assert classic_of([owner(name, "0.14.1"), *others]) == name


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([], ["no installed distribution", "pip install 'autogen[openai]>=0.14.1,<1'"]),
        ([owner("pyautogen", "0.10.0", owns=False)], ["pyautogen 0.10.0 does not contain it", "pip install"]),
        (
            [owner("autogen", "0.14.1"), owner("ag2", "0.14.0")],
            ["autogen 0.14.1 and ag2 0.14.0 both own", "pip uninstall -y autogen ag2"],
        ),
        ([owner("autogen", "0.14.1", present=False)], ["its files are gone", "pip uninstall -y autogen"]),
        ([owner("ag2", "0.14.0")], ["`import autogen` is ag2 0.14.0", "pip uninstall -y ag2"]),
    ],
    ids=["none", "proxy", "two", "hollow", "old ag2"],
)
def test_what_cannot_work_is_said_with_the_way_out(found, said):
    """The error names what is installed and the commands that mend it."""
    with pytest.raises(AdapterError) as caught:
        classic_of(found)
    for words in said:
        assert words in str(caught.value)


def test_a_hollow_installation_is_seen_on_disk(tmp_path, monkeypatch):
    """A distribution whose record names the package, without its files, is not taken for a whole one."""
    info = tmp_path / "pyautogen-0.2.35.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pyautogen\nVersion: 0.2.35\n")
    (info / "RECORD").write_text("autogen/__init__.py,,\npyautogen-0.2.35.dist-info/METADATA,,\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert versions._found("pyautogen") == Owner(name="pyautogen", version="0.2.35", owns=True, present=False)
    (tmp_path / "autogen").mkdir()
    Path(tmp_path / "autogen" / "__init__.py").touch()
    assert versions._found("pyautogen") == Owner(name="pyautogen", version="0.2.35", owns=True, present=True)


@pytest.mark.parametrize("shape", sorted(DISTRIBUTIONS))
def test_a_missing_framework_is_said_at_the_first_call(shape):
    """In a lane without the framework the adapter is imported all the same, and its function says what to install."""
    function = {"agentchat": "chat_model", "classic": "llm_config", "ag2": "ag2_config"}[shape]
    if distribution_of(shape) is not None:
        pytest.skip(f"this lane has {distribution_of(shape)}")
    with pytest.raises(AdapterError, match="pip install"):
        getattr(nemo_agents_autogen, function)(AgentRole("researcher", models=["gpt-4o-mini"]))


def test_every_range_holds_for_what_is_installed():
    """The distributions of this lane are in the ranges that the adapter states, by the SDK's own check."""
    from nemo_agents.adapters import check_versions

    here = {}
    for name, wanted in nemo_agents_autogen.FRAMEWORK.items():
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        here[name] = wanted
    assert here, "a lane of this adapter has at least one of its frameworks"
    check_versions("autogen", here)


def test_nothing_of_a_framework_is_imported_with_the_adapter():
    """`import nemo_agents_autogen` alone loads neither a framework nor openai."""
    import subprocess
    import sys

    code = (
        "import nemo_agents_autogen, sys; "
        "print([m for m in ('autogen', 'autogen_core', 'autogen_ext', 'ag2', 'openai') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
