"""The gateway's settings: defaults, file, overrides, and one clear error for each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_agents.errors import SettingsError
from nemo_agents.gateway.settings import Settings, load_settings


def test_a_missing_file_gives_the_defaults(tmp_path):
    settings = load_settings(tmp_path)
    assert (settings.host, settings.port, settings.sandbox) == ("127.0.0.1", 4141, "auto")
    assert settings.home == tmp_path


def test_overrides_count_over_the_file_and_none_does_not_override(tmp_path):
    (tmp_path / "gateway.toml").write_text(
        '[gateway]\nport = 5000\nsandbox = "off"\nidle_timeout_s = 3\nallowed_hosts = ["gw.example"]\n'
        '[providers.corp]\nbase_url = "https://llm.example/v1"\n[sandbox]\nlatency_ms = 5\n'
    )
    settings = load_settings(tmp_path, overrides={"port": 6000, "sandbox": None})
    assert (settings.port, settings.sandbox, settings.idle_timeout_s) == (6000, "off", 3.0)
    assert settings.allowed_hosts == ("gw.example",)
    assert settings.providers == {"corp": {"base_url": "https://llm.example/v1"}}
    assert settings.sandbox_script == {"latency_ms": 5}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[gateway]\nprot = 1", "unknown setting `prot`"),
        ("[gatway]\nport = 1", "unknown table [gatway]"),
        ('[gateway]\nport = "4141"', "`port` in [gateway] is '4141'; it must be a whole number"),
        ("[gateway]\nport = true", "must be a whole number"),
        ("[gateway]\nport = 70000", "port must be between 0 and 65535, not 70000"),
        ('[gateway]\nsandbox = "maybe"', "must be 'auto' or 'on' or 'off'"),
        ('[gateway]\nallowed_hosts = "gw"', "must be a list of strings"),
        ('[gateway]\nidle_timeout_s = "1s"', "must be a number of seconds"),
        ("[gateway]\nidle_timeout_s = 0", "idle_timeout_s must be more than 0 seconds"),
        ("[gateway]\nmax_body_bytes = 0", "max_body_bytes must be at least 1"),
        ('[gateway]\nhost = "0.0.0.0"', "list the names they use in `allowed_hosts`"),
        ("providers = 3", "[providers] must be a table"),
        ("[gateway", "cannot be read as TOML"),
    ],
)
def test_a_mistake_in_the_file_is_one_line_that_says_what_would_be_right(tmp_path, text, said):
    (tmp_path / "gateway.toml").write_text(text)
    with pytest.raises(SettingsError) as refused:
        load_settings(tmp_path)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_named_configuration_file_must_exist(tmp_path):
    with pytest.raises(SettingsError, match="no such configuration file"):
        load_settings(tmp_path, config=Path(tmp_path / "other.toml"))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_loopback_needs_no_allowed_hosts(tmp_path, host):
    assert Settings(home=tmp_path, host=host).host == host
