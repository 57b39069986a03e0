"""The secrets of a gateway's home: made once, whole or not at all, and read by nobody else."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from nemo_agents.errors import SettingsError
from nemo_agents.gateway.homefiles import open_home

NAMES = {"admin.key", "pepper", "viewer.token"}

DIES = """
import os, sys
from pathlib import Path
from nemo_agents.gateway.homefiles import open_home
setattr(os, sys.argv[2], lambda *_, **__: os._exit(9))
open_home(Path(sys.argv[1]))
"""


def revealed(home):
    secrets = open_home(home)
    return [secret.reveal() for secret in (secrets.admin_key, secrets.pepper, secrets.viewer_token)]


def test_the_first_start_makes_what_every_later_one_reads(tmp_path):
    home = tmp_path / "new" / "home"
    made = revealed(home)
    assert revealed(home) == made
    assert len(set(made)) == 3
    assert {path.name for path in home.iterdir()} == NAMES
    assert {path.stat().st_mode & 0o777 for path in home.iterdir()} == {0o600}
    assert home.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("during", ["fsync", "link", "fdopen"])
def test_a_start_that_dies_while_it_writes_leaves_nothing_in_the_way(tmp_path, during):
    died = subprocess.run([sys.executable, "-c", DIES, str(tmp_path), during], check=False, timeout=60)
    assert died.returncode == 9
    assert not {path.name for path in tmp_path.iterdir()} & NAMES
    assert revealed(tmp_path) == revealed(tmp_path)


def test_starts_at_the_same_time_agree(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: revealed(tmp_path), range(32)))
    assert all(secrets == made[0] for secrets in made)
    assert {path.name for path in tmp_path.iterdir()} == NAMES


def test_a_secret_that_cannot_be_written_leaves_no_draft(tmp_path, monkeypatch):
    def full(_handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SettingsError, match="No space left on device"):
        open_home(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_secret_that_others_can_read_or_that_is_cut_short_is_refused(tmp_path):
    revealed(tmp_path)
    (tmp_path / "pepper").chmod(0o644)
    with pytest.raises(SettingsError, match="others can read this secret"):
        open_home(tmp_path)
    (tmp_path / "pepper").chmod(0o600)
    (tmp_path / "pepper").write_text("short\n")
    with pytest.raises(SettingsError, match="is empty or cut short"):
        open_home(tmp_path)


def test_a_link_in_a_secrets_place_is_not_followed(tmp_path):
    (tmp_path / "pepper").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SettingsError, match="others can read this secret"):
        open_home(tmp_path)
    assert not (tmp_path / "elsewhere").exists()


def test_what_the_environment_gives_replaces_the_files_and_is_not_written_down(tmp_path):
    """Gateways that share a database are given the same secrets, wherever their homes are."""
    given = {
        "admin_key": "sk-nemo-admin-given",
        "pepper": "a pepper for them all",
        "viewer_token": "a token for them all",
    }
    secrets = open_home(tmp_path, **given)
    assert {name: getattr(secrets, name).reveal() for name in given} == given
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "gateway.db").write_text("")
    assert open_home(tmp_path, pepper=given["pepper"]).pepper.reveal() == given["pepper"]


@pytest.mark.parametrize(("name", "variable"), [("pepper", "NEMO_PEPPER"), ("viewer_token", "NEMO_VIEWER_TOKEN")])
def test_a_given_secret_that_can_be_guessed_is_refused_and_not_repeated(tmp_path, name, variable):
    with pytest.raises(SettingsError, match=f"{variable} must be a random text") as refused:
        open_home(tmp_path, **{name: "hunter2"})
    assert "hunter2" not in str(refused.value)
