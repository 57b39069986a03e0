"""What an answer to the question for models means, and what is said about it."""

from __future__ import annotations

import json

import pytest

from nemo_agents.gateway.providers import ProviderConfig
from nemo_agents.gateway.upstream.reach import Look, judge, neighbours, say
from nemo_agents.secret import Secret

KEY = "sk-canary-0123456789"
CORP = ProviderConfig(name="corp", base_url="https://llm.example.com/v1", api_key=Secret(KEY), key_env="CORP_KEY")
OPEN = ProviderConfig(name="corp", base_url="https://llm.example.com/v1")
SILENT = ProviderConfig(name="corp", base_url="https://llm.example.com/v1", api_key=Secret(KEY), lists_models=False)


@pytest.mark.parametrize(
    ("body", "models"),
    [
        ({"object": "list", "data": [{"id": "a"}, {"id": "b"}]}, ("a", "b")),
        ({"data": [{"id": "models/gemini-2.5-pro"}]}, ("gemini-2.5-pro",)),
        ({"data": None}, ()),
        ({"models": [{"name": "c"}]}, ("c",)),
        ([{"id": "d"}, "e", {"no": "id"}, 7], ("d", "e")),
    ],
)
def test_lists_of_every_kind_are_read(body, models):
    assert judge(200, {}, json.dumps(body).encode()) == Look(outcome="listed", models=models)


@pytest.mark.parametrize(
    ("status", "headers", "raw", "outcome", "detail"),
    [
        (200, {"content-type": "text/html; charset=utf-8"}, b"<html>", "page", "text/html"),
        (200, {}, b"\xff", "page", "something that is not JSON"),
        (200, {}, b"[" * 100_000, "page", "something that is not JSON"),
        (200, {}, b'{"data": "none"}', "page", "JSON without a list of models"),
        (301, {"location": "https://user:secret@there.example.com:8443/v1/models?key=secret"}, b"", "redirect", None),
        (302, {"location": "/login?next=secret"}, b"", "redirect", "/login"),
        (302, {}, b"", "redirect", "nowhere"),
        (401, {}, b"", "key", "401"),
        (403, {}, b"", "key", "403"),
        (400, {}, b'[{"error": {"message": "API key not valid."}}]', "key", "400"),
        (400, {}, b"{}", "status", "400"),
        (404, {}, b"", "missing", "404"),
        (405, {}, b"", "missing", "405"),
        (503, {}, b"", "status", "503"),
    ],
)
def test_other_answers_are_told_apart(status, headers, raw, outcome, detail):
    found = judge(status, headers, raw)
    assert found == Look(outcome=outcome, detail=detail or "https://there.example.com:8443/v1/models")


@pytest.mark.parametrize(
    ("config", "look", "level", "what", "remedy"),
    [
        (CORP, Look(outcome="listed", models=("a",)), "ok", "lists 1 model", ""),
        (CORP, Look(outcome="unasked"), "ok", "own process", ""),
        (SILENT, Look(outcome="missing", detail="404"), "ok", "no list of models", ""),
        (CORP, Look(outcome="missing", detail="404"), "warn", "404 to /models", "compare base_url"),
        (CORP, Look(outcome="key", detail="401"), "fail", "the key from CORP_KEY is not accepted", "into CORP_KEY"),
        (OPEN, Look(outcome="key", detail="401"), "fail", "it wants a key", "api_key_env"),
        (CORP, Look(outcome="redirect", detail="https://x/"), "fail", "redirects to https://x/", "name it"),
        (CORP, Look(outcome="page", detail="text/html"), "fail", "text/html", "ends in /v1"),
        (CORP, Look(outcome="status", detail="503"), "warn", "503", "try again"),
        (CORP, Look(outcome="fault", detail="corp (h:1): no TLS connection: x"), "fail", "no TLS", "certificate"),
    ],
)
def test_what_was_found_is_said_with_what_to_do_about_it(config, look, level, what, remedy):
    finding = say(look, config)
    assert (finding.provider, finding.level) == ("corp", level)
    assert what in finding.what
    assert remedy in finding.remedy
    assert bool(finding.remedy) == (level != "ok")
    assert KEY not in str(finding)


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("", ["/v1", "/openai/v1", "/api/v1"]),
        ("/v1/v1", ["/v1/v1/openai/v1", "/v1/v1/api/v1", "/v1", "/v1/v1", "/v1/openai/v1", "/v1/api/v1"]),
        ("/openai", ["/openai/v1", "/openai/openai/v1", "/openai/api/v1", ""]),
    ],
)
def test_the_places_near_a_wrong_one(prefix, expected):
    found = list(neighbours(prefix))
    assert prefix not in found
    assert found == [place for place in expected if place != prefix]
