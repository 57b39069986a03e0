"""The gateway's settings: defaults, file, overrides, and one clear error for each mistake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict
from redis.asyncio.connection import parse_url

from nemo_agents.errors import SettingsError
from nemo_agents.gateway.addresses import PASSWORD_OF, password_of, with_password
from nemo_agents.gateway.rim import SystemClock
from nemo_agents.gateway.settings import Settings, load_settings
from nemo_agents.gateway.shared import open_limiter, open_store


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


SECRET = "s3cr3t/@:%?"
QUOTED = "s3cr3t%2F%40%3A%25%3F"


@pytest.mark.parametrize(
    ("setting", "url", "shown"),
    [
        (
            "database",
            f"postgresql://nemo:{QUOTED}@db:5432/nemo?sslmode=require",
            "postgresql://nemo@db:5432/nemo?sslmode=require",
        ),
        ("database", f"postgres://nemo:{QUOTED}@a:1,b:2/nemo", "postgres://nemo@a:1,b:2/nemo"),
        (
            "database",
            f"postgresql://nemo@db/nemo?password={QUOTED}&connect_timeout=3",
            "postgresql://nemo@db/nemo?connect_timeout=3",
        ),
        ("database", f"postgresql:///nemo?host=/run/pg&password={QUOTED}", "postgresql:///nemo?host=/run/pg"),
        ("cache", f"redis://:{QUOTED}@cache:6379/1", "redis://cache:6379/1"),
        ("cache", f"rediss://user:{QUOTED}@[::1]:6379", "rediss://user@[::1]:6379"),
    ],
)
def test_a_password_in_an_address_is_taken_out_of_sight_and_put_back_for_the_driver(tmp_path, setting, url, shown):
    settings = Settings(home=tmp_path, **{setting: url})
    password = getattr(settings, f"{setting}_password")
    assert getattr(settings, setting) == shown
    assert password.reveal() == SECRET
    for text in (repr(settings), str(settings), f"{settings}"):
        assert SECRET not in text
        assert QUOTED not in text
    full = with_password(shown, password)
    assert str(full) == shown
    assert QUOTED in full.reveal()
    assert Settings(home=tmp_path, **{setting: full.reveal()}) == settings  # whichever way it came


@pytest.mark.parametrize("url", ["postgresql://nemo@db/nemo", "postgresql:///nemo"])
def test_an_address_without_a_password_takes_one_from_the_environment(tmp_path, url):
    settings = Settings(home=tmp_path, database=url)
    assert settings.database == url
    assert settings.database_password is None
    environ = {"NEMO_DATABASE_PASSWORD": SECRET}
    assert password_of("database", settings.database_password, environ).reveal() == SECRET
    assert password_of("database", None, {}) is None
    in_address = Settings(home=tmp_path, database=f"postgresql://nemo:{QUOTED}x@db/nemo").database_password
    assert password_of("database", in_address, environ).reveal() == SECRET + "x"


@pytest.mark.parametrize(
    ("setting", "url", "said"),
    [
        ("database", "mysql://nemo:hunter2@db/nemo", "postgresql://"),
        ("database", "nemo:hunter2@db", "postgresql://"),
        ("database", "host=db password=hunter2", "postgresql://"),
        ("database", "postgresql://[hunter2", "postgresql://"),
        ("database", "postgresql://", "names a host"),
        ("cache", "memcached://:hunter2@cache", "redis://"),
        ("cache", "hunter2", "redis://"),
    ],
)
def test_an_address_that_is_none_is_refused_and_not_repeated(tmp_path, setting, url, said):
    """It may hold a password, and errors end up in logs."""
    with pytest.raises(SettingsError) as refused:
        Settings(home=tmp_path, **{setting: url})
    assert said in str(refused.value)
    assert "hunter2" not in str(refused.value)
    assert "\n" not in str(refused.value)
    (tmp_path / "gateway.toml").write_text(f'[gateway]\n{setting} = ["{url}"]')
    with pytest.raises(SettingsError) as refused:
        load_settings(tmp_path)
    assert "hunter2" not in str(refused.value)


ADDRESSES = [
    ("database", "postgresql://nemo:{}@db:5432/nemo?sslmode=require"),
    ("database", "postgres://nemo:{}@a:1,[::1]:2/nemo"),
    ("database", "postgresql://nemo@db/nemo?password={}&connect_timeout=3"),
    ("database", "postgresql://nemo@db/nemo?connect_timeout=3&sslpassword={}"),
    ("database", "postgresql:///nemo?host=db&passfile={}"),
    ("cache", "redis://:{}@cache:6379/1"),
    ("cache", "rediss://user:{}@[::1]:6379"),
    ("cache", "rediss://cache/0?ssl_password={}"),
    ("cache", "valkey://cache/0?db=2&password={}"),
    ("cache", "unix://:{}@/run/redis.sock?db=2"),
]


def _shown(setting: str, url: str) -> list[str]:
    """All that a gateway with this address ever says of it; the text of the refusal if it is refused."""
    try:
        settings = Settings(home=Path("home"), **{setting: url})
        store = open_store(settings, {}, SystemClock())
        limiter = open_limiter(settings, {}, store)
    except SettingsError as error:
        return [str(error)]
    said = [repr(settings), settings.database, settings.cache]
    return [*said, store._address.label if setting == "database" else str(limiter._link)]


REFUSALS = [
    *(_shown("database", f"postgresql://nemo:{bad}@db/nemo") for bad in ("/", "[")),
    *(_shown("cache", f"redis://:{bad}@cache/0") for bad in ("/", "[")),
]


@given(st.sampled_from(ADDRESSES), st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1))
@example(ADDRESSES[0], "pass/word")
@example(ADDRESSES[0], "pass#word")
@example(ADDRESSES[0], "pass?word")
@example(ADDRESSES[0], "1234/word")
@example(ADDRESSES[0], "1234?word")
@example(ADDRESSES[0], "1234#word")
@example(ADDRESSES[2], "pass&word")
@example(ADDRESSES[2], "pass&word=more")
@example(ADDRESSES[3], "pass&word=more")
@example(ADDRESSES[5], "pass/word")
@example(ADDRESSES[8], "pass#word")
@example(ADDRESSES[8], "&")
@example(ADDRESSES[3], "%80")
@example(ADDRESSES[2], "&x=1")
@example(ADDRESSES[9], "pass/word")
def test_nothing_that_is_shown_depends_on_the_password_and_a_quoted_one_arrives(address, password):
    """Not even when a password is written as it is, with characters that end a part of an address."""
    setting, template = address
    usual = _shown(setting, template.format("hunter2"))
    assert "hunter2" not in "".join(usual)
    quoted = template.format(quote(password, safe=""))
    assert _shown(setting, quoted) == usual
    assert _shown(setting, template.format(password)) in [
        usual,
        *REFUSALS,
        _shown(setting, template.format("")),  # what is left of one that begins with the end of a parameter
        _shown(setting, template.format("&no_such=1")),
        _shown(setting, template.format("x&no_such=1")),
    ]
    settings = Settings(home=Path("home"), **{setting: quoted})
    secrets = (getattr(settings, f"{setting}_password"), getattr(settings, f"{setting}_hidden"))
    read = conninfo_to_dict if setting == "database" else parse_url
    full = with_password(getattr(settings, setting), *secrets).reveal().replace("valkey:", "redis:")
    assert password in read(full).values()


@pytest.mark.parametrize("password", ["pa/ss", "pa#ss", "pa?ss", "12/34", "12#34", "12?34"])
@pytest.mark.parametrize(("setting", "template"), [ADDRESSES[0], ADDRESSES[5]])
def test_a_password_that_must_be_quoted_is_refused_with_the_remedy(tmp_path, setting, template, password):
    with pytest.raises(SettingsError, match="%2F %23 %3F %40") as refused:
        Settings(home=tmp_path, **{setting: template.format(password)})
    assert PASSWORD_OF[setting] in str(refused.value)
    assert "\n" not in str(refused.value)


def test_webhooks_and_providers_are_not_shown(tmp_path):
    """A receiver's path and a provider's headers may be secrets."""
    webhooks = {"ops": {"url": "https://hooks.example/T0/s3cr3t"}}
    providers = {"corp": {"base_url": "https://llm.example/v1", "headers": {"x-key": "s3cr3t"}}}
    assert "s3cr3t" not in repr(Settings(home=tmp_path, webhooks=webhooks, providers=providers))


WITHOUT_DRIVER = """
import subprocess
import sys
from pathlib import Path
setting, url, driver, home = sys.argv[1:]
sys.modules[driver] = None
from nemo_agents.errors import SettingsError
from nemo_agents.gateway.server import build
from nemo_agents.gateway.settings import Settings
build(Settings(home=Path(home)), {})  # nobody needs a driver that no setting names
try:
    build(Settings(home=Path(home), **{setting: url}), {})
except SettingsError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("setting", "url", "driver"),
    [("database", "postgresql://db/nemo", "psycopg"), ("cache", "redis://cache", "redis")],
)
def test_a_driver_that_is_not_installed_is_named_with_its_remedy(tmp_path, setting, url, driver):
    argv = [sys.executable, "-c", WITHOUT_DRIVER, setting, url, driver, str(tmp_path / "home")]
    said = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout
    assert f"{setting} needs a driver that is not installed ({driver} is missing)" in said
    assert "pip install 'nemo-agents[postgres,redis]'" in said
