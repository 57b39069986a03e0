from __future__ import annotations

import traceback

import pytest

from nemo_agents.errors import SettingsError
from nemo_agents.gateway.providers import KEY_ENV_OF, ProviderConfig, discover
from nemo_agents.secret import Secret

KEY = "sk-test-0123456789abcdef"


def test_nothing_without_keys():
    assert discover({}, {}) == {}
    assert discover({"OPENAI_API_KEY": "  "}, {}) == {}


@pytest.mark.parametrize(
    ("name", "variable", "base_url", "max_tokens_field"),
    [
        ("openai", "OPENAI_API_KEY", "https://api.openai.com/v1", "max_completion_tokens"),
        ("anthropic", "ANTHROPIC_API_KEY", "https://api.anthropic.com/v1", "max_tokens"),
        ("gemini", "GEMINI_API_KEY", "https://generativelanguage.googleapis.com/v1beta/openai", "max_tokens"),
        ("gemini", "GOOGLE_API_KEY", "https://generativelanguage.googleapis.com/v1beta/openai", "max_tokens"),
        ("groq", "GROQ_API_KEY", "https://api.groq.com/openai/v1", "max_completion_tokens"),
        ("mistral", "MISTRAL_API_KEY", "https://api.mistral.ai/v1", "max_tokens"),
        ("deepseek", "DEEPSEEK_API_KEY", "https://api.deepseek.com/v1", "max_tokens"),
        ("xai", "XAI_API_KEY", "https://api.x.ai/v1", "max_completion_tokens"),
        ("together", "TOGETHER_API_KEY", "https://api.together.xyz/v1", "max_tokens"),
        ("fireworks", "FIREWORKS_API_KEY", "https://api.fireworks.ai/inference/v1", "max_tokens"),
        ("openrouter", "OPENROUTER_API_KEY", "https://openrouter.ai/api/v1", "max_tokens"),
    ],
)
def test_a_key_in_the_environment_is_enough(name, variable, base_url, max_tokens_field):
    assert discover({variable: f" {KEY}\n"}, {}) == {
        name: ProviderConfig(
            name=name,
            base_url=base_url,
            api_key=Secret(KEY),
            key_env=variable,
            max_tokens_field=max_tokens_field,
        )
    }
    assert name in KEY_ENV_OF


def test_gemini_prefers_its_own_variable():
    found = discover({"GEMINI_API_KEY": "first", "GOOGLE_API_KEY": "second"}, {})
    assert found["gemini"].api_key == Secret("first")


def test_openai_base_url_is_respected_and_the_configuration_is_stronger():
    environ = {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": "https://eu.api.openai.com/v1/"}
    assert discover(environ, {})["openai"].base_url == "https://eu.api.openai.com/v1"
    config = {"providers": {"openai": {"base_url": "http://127.0.0.1:9/v1"}}}
    assert discover(environ, config)["openai"].base_url == "http://127.0.0.1:9/v1"
    with pytest.raises(SettingsError, match="OPENAI_BASE_URL: plain http"):
        discover({"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": "http://proxy.corp/v1"}, {})


def test_a_configured_known_provider_still_needs_its_key():
    assert discover({}, {"providers": {"openai": {"base_url": "https://eu.api.openai.com/v1"}}}) == {}


def test_ollama_is_offered_when_it_answers_or_is_configured():
    asked = []

    def answers(base_url):
        asked.append(base_url)
        return True

    assert discover({}, {}, probe=answers)["ollama"] == ProviderConfig(
        name="ollama", base_url="http://127.0.0.1:11434/v1"
    )
    assert asked == ["http://127.0.0.1:11434/v1"]
    assert discover({}, {}, probe=lambda _: False) == {}
    assert discover({}, {}) == {}
    configured = discover({}, {"providers": {"ollama": {"base_url": "http://localhost:1/v1"}}}, probe=answers)
    assert configured["ollama"].base_url == "http://localhost:1/v1"
    assert len(asked) == 1


def test_a_provider_of_any_name(tmp_path):
    key_file = tmp_path / "key"
    key_file.write_text(KEY + "\n")
    config = {
        "providers": {
            "corp": {
                "base_url": "https://llm.example.com/v1/",
                "api_key_env": "CORP_KEY",
                "max_tokens_field": "max_completion_tokens",
                "headers": {"X-Team": "search"},
                "priced_as": "openai",
            },
            "filed": {"base_url": "https://llm.example.com/v1", "api_key_file": str(key_file)},
            "local": {"base_url": "http://[::1]:8000/v1"},
            "lan": {"base_url": "http://10.0.0.7:8000/v1", "allow_insecure": True},
        }
    }
    found = discover({"CORP_KEY": KEY}, config)
    assert found["corp"] == ProviderConfig(
        name="corp",
        base_url="https://llm.example.com/v1",
        api_key=Secret(KEY),
        key_env="CORP_KEY",
        max_tokens_field="max_completion_tokens",
        headers=(("x-team", "search"),),
        priced_as="openai",
    )
    assert found["filed"].api_key == Secret(KEY)
    assert found["local"].api_key is None
    assert found["lan"].base_url == "http://10.0.0.7:8000/v1"


def test_secrets_are_not_shown():
    config = {"providers": {"openai": {"headers": {"x-token": "header-secret"}}}}
    found = discover({"OPENAI_API_KEY": KEY}, config)
    shown = repr(found) + str(found["openai"])
    assert KEY not in shown
    assert "header-secret" not in shown


URL = "https://llm.example.com/v1"


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("text", "[providers.corp]: must be a table"),
        ({}, "[providers.corp] base_url: is missing"),
        ({"base_url": 5}, "[providers.corp] base_url: must be a URL"),
        ({"base_url": "llm.example.com/v1"}, "must begin with https://"),
        ({"base_url": "ftp://llm.example.com"}, "(got 'ftp://llm.example.com')"),
        ({"base_url": "https:///v1"}, "name a host"),
        ({"base_url": "https://llm.example.com:port/v1"}, "is not a URL"),
        ({"base_url": "https://[::1/v1"}, "is not a URL"),
        ({"base_url": URL + "\r\nx: y"}, "must be a URL without spaces"),
        ({"base_url": URL + "?key=" + KEY}, "must not have a query"),
        ({"base_url": URL + "#" + KEY}, "must not have a query"),
        ({"base_url": f"https://user:{KEY}@llm.example.com/v1"}, "must not hold a user or password"),
        ({"base_url": "http://llm.example.com/v1"}, "plain http"),
        ({"base_url": "http://localhost.example.com/v1"}, "allow_insecure = true"),
        ({"base_url": "http://10.0.0.7/v1", "allow_insecure": "yes"}, "must be true or false"),
        ({"base_url": URL, "api_key": KEY}, "[providers.corp] api_key: a key does not belong"),
        ({"base_url": URL, "api_kee": 1}, "[providers.corp] api_kee: no such field"),
        ({"base_url": URL, "api_key_env": KEY}, "must be the name of an environment variable"),
        ({"base_url": URL, "api_key_env": "abcdef0123456789SECRET"}, "environment variable that it names is not set"),
        ({"base_url": URL, "api_key_env": "UNSET"}, "the environment variable UNSET is not set"),
        ({"base_url": URL, "api_key_env": "BROKEN"}, "one word of visible ASCII"),
        ({"base_url": URL, "api_key_env": "SET", "api_key_file": "/x"}, "either api_key_env or api_key_file"),
        ({"base_url": URL, "api_key_file": "relative"}, "absolute path"),
        ({"base_url": URL, "api_key_file": "/nonexistent/key"}, "cannot read /nonexistent/key"),
        ({"base_url": URL, "max_tokens_field": "tokens"}, "max_tokens or max_completion_tokens (got 'tokens')"),
        ({"base_url": URL, "headers": "x"}, "headers: must be a table"),
        ({"base_url": URL, "headers": {"Authorization": KEY}}, "'Authorization' cannot be set here"),
        ({"base_url": URL, "headers": {"a b": "x"}}, "'a b' cannot be set here"),
        ({"base_url": URL, "headers": {"x-a": KEY + "\r\n"}}, "the value of 'x-a'"),
        ({"base_url": URL, "priced_as": 3}, "priced_as: must be the name of a provider"),
    ],
)
def test_bad_tables_are_named_and_keys_are_not(table, said):
    environ = {"SET": "x", "BROKEN": f"{KEY}\nexport X"}
    with pytest.raises(SettingsError) as refused:
        discover(environ, {"providers": {"corp": table}})
    shown = "".join(traceback.format_exception(refused.value, chain=True, limit=0))
    assert said in shown
    assert KEY not in shown
    assert "SECRET" not in shown


@pytest.mark.parametrize(
    ("name", "said"), [("Corp", "lower-case"), ("a/b", "lower-case"), ("", "lower-case"), ("sandbox", "built-in")]
)
def test_bad_names(name, said):
    with pytest.raises(SettingsError, match=said):
        discover({}, {"providers": {name: {"base_url": URL}}})


def test_providers_must_be_tables():
    with pytest.raises(SettingsError, match="must be tables"):
        discover({}, {"providers": "corp"})
    with pytest.raises(SettingsError, match="must be a table"):
        discover({}, {"providers": {"openai": "sk"}})


def test_an_oversized_key_file_is_refused(tmp_path):
    key_file = tmp_path / "key"
    key_file.write_text("k" * 20_000)
    with pytest.raises(SettingsError, match="larger than a key"):
        discover({}, {"providers": {"corp": {"base_url": URL, "api_key_file": str(key_file)}}})
