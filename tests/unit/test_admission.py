"""What a role with a tool list may offer to a model, and what a run that takes no further call is told."""

from __future__ import annotations

import pytest

from nemo_agents.policy.admission import check_tools, run_refusal
from nemo_agents.policy.keys import Grant
from nemo_agents.policy.ledger import RunRefused
from nemo_agents.policy.pricing import PROVIDER_TOOL_FIELDS, content_boundable


def grant(tools):
    return Grant(grant_id="g", alias="researcher", role="researcher", fleet="crew", tools=tools, secrets=())


def function(name):
    return {"type": "function", "function": {"name": name}}


@pytest.mark.parametrize("field", PROVIDER_TOOL_FIELDS)
@pytest.mark.parametrize("value", [{}, [], 0, False, {"a": 1}], ids=repr)
def test_a_provider_s_own_tool_is_one_that_the_role_does_not_declare(field, value):
    """Also an empty object switches it on, and none of them can be declared: they have no name of the role's."""
    for tools in ((), ("search",), (field,)):
        refusal = check_tools({"tools": [], field: value}, grant(tools))
        assert refusal is not None
        assert (refusal.status, refusal.code, refusal.param) == (403, "tool_not_allowed", field)
        assert field in refusal.message
    assert check_tools({field: None}, grant(("search",))) is None
    assert check_tools({field: value}, grant(None)) is None
    assert content_boundable({field: value}) == field


@pytest.mark.parametrize(
    ("offered", "passes"),
    [
        ({}, True),
        ({"tools": None, "functions": None}, True),
        ({"tools": []}, True),
        ({"tools": [function("search")]}, True),
        ({"tools": [{"function": {"name": "search"}}]}, True),
        ({"functions": [{"name": "search"}]}, True),
        ({"tools": [function("search"), function("shell")]}, False),
        ({"tools": [{"type": "web_search"}]}, False),
        ({"tools": [{"type": "web_search", "function": {"name": "search"}}]}, False),
        ({"tools": [{"type": None, "function": {"name": "search"}}]}, False),
        ({"tools": ["search"]}, False),
        ({"functions": ["search"]}, False),
    ],
)
def test_tools_are_those_that_the_role_declares(offered, passes):
    refusal = check_tools(offered, grant(("search",)))
    assert (refusal is None) is passes
    if refusal is not None:
        assert (refusal.status, refusal.code, refusal.param) == (403, "tool_not_allowed", "tools")
    assert check_tools(offered, grant(None)) is None


@pytest.mark.parametrize(("max_calls", "words"), [(1, "its one call"), (2, "all of its 2 calls")])
def test_a_run_that_has_used_its_calls_is_told_so_in_good_grammar(max_calls, words):
    refusal = run_refusal(RunRefused(why="max_calls", max_calls=max_calls))
    assert refusal.message == f"This run has used {words}. Start a new run to go on."
    assert (refusal.status, refusal.code, refusal.limit) == (403, "run_stopped", "max_calls")
