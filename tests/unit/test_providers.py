from __future__ import annotations

import traceback

import pytest

from nemo_agents.errors import SettingsError
from nemo_agents.gateway.prices import PriceBook
from nemo_agents.gateway.providers import KEY_ENV_OF, KNOWN, ProviderConfig, discover, what_to_set
from nemo_agents.secret import Secret

KEY = "sk-test-0123456789abcdef"
URL = "https://llm.example.com/v1"
CORP = {"base_url": URL, "api_key_env": "K"}
GEMINI = "https://generativelanguage.googleapis.com/v1beta/openai"
OPENAI_WIRES = "chat responses completions embeddings"


def test_nothing_without_keys():
    assert discover({}, {}) == {}
    assert discover({"OPENAI_API_KEY": "  "}, {}) == {}


@pytest.mark.parametrize(
    ("name", "variable", "base_url", "max_tokens_field", "wires"),
    [
        ("openai", "OPENAI_API_KEY", "https://api.openai.com/v1", "max_completion_tokens", OPENAI_WIRES),
        ("anthropic", "ANTHROPIC_API_KEY", "https://api.anthropic.com/v1", "max_tokens", "chat messages"),
        ("gemini", "GEMINI_API_KEY", GEMINI, "max_tokens", "chat embeddings"),
        ("gemini", "GOOGLE_API_KEY", GEMINI, "max_tokens", "chat embeddings"),
        ("groq", "GROQ_API_KEY", "https://api.groq.com/openai/v1", "max_completion_tokens", "chat responses"),
        ("mistral", "MISTRAL_API_KEY", "https://api.mistral.ai/v1", "max_tokens", "chat embeddings"),
        ("deepseek", "DEEPSEEK_API_KEY", "https://api.deepseek.com/v1", "max_tokens", "chat"),
        ("xai", "XAI_API_KEY", "https://api.x.ai/v1", "max_completion_tokens", "chat responses"),
        ("together", "TOGETHER_API_KEY", "https://api.together.ai/v1", "max_tokens", "chat completions embeddings"),
        ("fireworks", "FIREWORKS_API_KEY", "https://api.fireworks.ai/inference/v1", "max_tokens", OPENAI_WIRES),
        ("openrouter", "OPENROUTER_API_KEY", "https://openrouter.ai/api/v1", "max_tokens", f"messages {OPENAI_WIRES}"),
        ("cohere", "COHERE_API_KEY", "https://api.cohere.ai/compatibility/v1", "max_tokens", "chat embeddings"),
        ("cohere", "CO_API_KEY", "https://api.cohere.ai/compatibility/v1", "max_tokens", "chat embeddings"),
        ("perplexity", "PERPLEXITY_API_KEY", "https://api.perplexity.ai", "max_tokens", "chat"),
    ],
)
def test_a_key_in_the_environment_is_enough(name, variable, base_url, max_tokens_field, wires):
    found = discover({variable: f" {KEY}\n"}, {})
    assert list(found) == [name]
    provider = found[name]
    assert (provider.base_url, provider.api_key, provider.key_env) == (base_url, Secret(KEY), variable)
    assert (provider.max_tokens_field, provider.wires) == (max_tokens_field, frozenset(wires.split()))
    assert name in KEY_ENV_OF


def test_azure_needs_its_endpoint_beside_the_key():
    environ = {"AZURE_OPENAI_API_KEY": KEY}
    assert discover(environ, {}) == {}
    for endpoint in ("https://corp.openai.azure.com/", "https://corp.openai.azure.com/openai/v1/"):
        azure = discover({**environ, "AZURE_OPENAI_ENDPOINT": endpoint}, {})["azure"]
        assert azure.base_url == "https://corp.openai.azure.com/openai/v1"
        assert azure.auth == "api-key"
    with pytest.raises(SettingsError, match="set AZURE_OPENAI_ENDPOINT"):
        discover(environ, {"providers": {"azure": {"priced_as": "openai"}}})
    table = {"base_url": "https://gw.example.com/openai/v1"}
    assert discover(environ, {"providers": {"azure": table}})["azure"].base_url == table["base_url"]


def test_bedrock_is_found_by_its_token_and_region_or_signs_where_that_is_asked_for():
    environ = {"AWS_BEARER_TOKEN_BEDROCK": KEY}
    url = "https://bedrock-runtime.{}.amazonaws.com/openai/v1"
    assert discover(environ, {}) == {}
    found = discover({**environ, "AWS_DEFAULT_REGION": "eu-west-1"}, {})["bedrock"]
    assert (found.base_url, found.auth, found.priced_as) == (url.format("eu-west-1"), "bearer", "aws")
    assert discover({**environ, "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "eu-west-1"}, {})[
        "bedrock"
    ].base_url == url.format("us-east-1")
    signed = discover({}, {"providers": {"bedrock": {"auth": "sigv4", "region": "us-west-2"}}})["bedrock"]
    assert (signed.base_url, signed.region, signed.api_key) == (url.format("us-west-2"), "us-west-2", None)
    for table in ({}, {"auth": "sigv4"}):
        with pytest.raises(SettingsError, match="region: is missing"):
            discover(environ, {"providers": {"bedrock": table}})
    with pytest.raises(SettingsError, match="takes no key"):
        discover({"K": KEY}, {"providers": {"bedrock": {"auth": "sigv4", "region": "x", "api_key_env": "K"}}})


def test_vertex_is_where_its_project_is():
    environ = {"GOOGLE_APPLICATION_CREDENTIALS": "/keys/robot.json", "GOOGLE_CLOUD_PROJECT": "corp-1"}
    anywhere = "https://aiplatform.googleapis.com/v1/projects/corp-1/locations/global/endpoints/openapi"
    found = discover(environ, {})["vertex"]
    assert (found.base_url, found.auth, found.priced_as, found.api_key) == (anywhere, "google", "gemini", None)
    there = "https://europe-west4-aiplatform.googleapis.com/v1/projects/corp-1/locations/europe-west4/endpoints/openapi"
    assert discover({**environ, "GOOGLE_CLOUD_LOCATION": "europe-west4"}, {})["vertex"].base_url == there
    table = {"project": "corp-1", "location": "europe-west4"}
    assert discover({}, {"providers": {"vertex": table}})["vertex"].base_url == there
    assert discover({"GOOGLE_CLOUD_PROJECT": "corp-1"}, {}) == {}  # any machine of Google's has that
    with pytest.raises(SettingsError, match="project: is missing"):
        discover({}, {"providers": {"vertex": {}}})
    with pytest.raises(SettingsError, match="must be a name such as"):
        discover({}, {"providers": {"vertex": {"project": "corp/../x"}}})


def test_models_of_vertex_cost_what_those_of_gemini_do():
    book = PriceBook(priced_as={name: known.priced_as for name, known in KNOWN.items() if known.priced_as})
    flash = book.price("gemini", "gemini-2.5-flash")
    assert flash is not None
    assert book.price("vertex", "google/gemini-2.5-flash") == flash
    assert book.context_tokens("vertex", "google/gemini-2.5-flash") == book.context_tokens("gemini", "gemini-2.5-flash")
    assert book.price("bedrock", "openai.gpt-oss-120b-1:0") == book.price("aws", "openai.gpt-oss-120b-1:0") is not None


def test_litellm_is_only_there_when_it_is_asked_for_and_is_given_no_key():
    assert discover({}, {"providers": {"litellm": {}}})["litellm"].wires == {"chat", "embeddings"}
    with pytest.raises(SettingsError, match="finds addresses and keys by itself"):
        discover({}, {"providers": {"litellm": {"base_url": URL}}})


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


def test_servers_on_this_machine_are_offered_when_they_answer_or_are_configured():
    asked = []

    def answers(base_url, owner):
        asked.append((base_url, owner))
        return True

    found = discover({}, {}, probe=answers)
    assert {name: each.base_url for name, each in found.items()} == {
        "ollama": "http://127.0.0.1:11434/v1",
        "vllm": "http://127.0.0.1:8000/v1",
        "lmstudio": "http://127.0.0.1:1234/v1",
        "llamacpp": "http://127.0.0.1:8080/v1",
    }
    # Whoever listens on the ports that all like must say who it is.
    assert {url: owner for url, owner in asked if owner} == {
        "http://127.0.0.1:8000/v1": "vllm",
        "http://127.0.0.1:8080/v1": "llamacpp",
    }
    assert discover({}, {}, probe=lambda *_: False) == {}
    assert discover({}, {}) == {}
    asked.clear()
    configured = discover({}, {"providers": {"ollama": {"base_url": "http://localhost:1/v1"}}}, probe=answers)
    assert configured["ollama"].base_url == "http://localhost:1/v1"
    assert len(asked) == 3


def test_what_a_table_says_goes_before_what_is_known():
    table = {
        "wires": ["chat", "messages"],
        "auth": "anthropic",
        "on_client_gone": "cancel",
        "first_token_timeout_s": 5,
        "idle_timeout_s": 2.5,
    }
    found = discover({"OPENAI_API_KEY": KEY, "K": KEY}, {"providers": {"openai": table, "corp": {**table, **CORP}}})
    for provider in (found["openai"], found["corp"]):
        assert provider.wires == {"chat", "messages"}
        assert (provider.auth, provider.on_client_gone) == ("anthropic", "cancel")
        assert (provider.first_token_timeout_s, provider.idle_timeout_s) == (5.0, 2.5)


def test_every_known_provider_speaks_chat_and_says_what_it_lacks():
    for name, known in KNOWN.items():
        assert "chat" in known.wires, name
        assert KEY_ENV_OF[name] in what_to_set(name)
    assert what_to_set("azure") == "set AZURE_OPENAI_API_KEY and AZURE_OPENAI_ENDPOINT"
    assert "[providers.corp]" in what_to_set("corp")


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
    assert (found["filed"].api_key, found["filed"].key_file) == (Secret(KEY), key_file)
    assert found["local"].api_key is None
    assert found["lan"].base_url == "http://10.0.0.7:8000/v1"


def test_secrets_are_not_shown():
    config = {"providers": {"openai": {"headers": {"x-token": "header-secret"}}}}
    found = discover({"OPENAI_API_KEY": KEY}, config)
    shown = repr(found) + str(found["openai"])
    assert KEY not in shown
    assert "header-secret" not in shown


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
        ({"base_url": URL + "/chat/completions"}, "Give https://llm.example.com/v1."),
        ({"base_url": URL, "wires": ["chat", "telegraph"]}, "wires: must be a list of chat, responses"),
        ({"base_url": URL, "wires": []}, "wires: must be a list"),
        ({"base_url": URL, "wires": "chat"}, "wires: must be a list"),
        ({"base_url": URL, "auth": "basic"}, "auth: must be bearer or api-key"),
        ({"base_url": URL, "on_client_gone": "shrug"}, "on_client_gone: must be drain or cancel"),
        ({"base_url": URL, "idle_timeout_s": 0}, "idle_timeout_s: must be more than 0 seconds"),
        ({"base_url": URL, "first_token_timeout_s": True}, "first_token_timeout_s: must be more than 0"),
        ({"base_url": URL, "first_token_timeout_s": float("inf")}, "first_token_timeout_s: must be more than 0"),
        ({"base_url": URL, "auth": "sigv4"}, "region: is missing"),
        ({"base_url": URL, "auth": "sigv4", "region": "a b"}, "must be a name such as us-east-1"),
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
