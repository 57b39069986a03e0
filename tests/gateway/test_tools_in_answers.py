"""A role's list of tools holds for what the model calls: in every wire, plain and streamed, however it is cut."""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import anthropic
import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted_wires import (
    INPUT_TOKENS,
    JSON,
    OUTPUT_TOKENS,
    TEXT_BLOCK,
    TEXT_ITEM,
    Provider,
    block,
    chat,
    chat_call,
    chat_call_deltas,
    chat_stream,
    data,
    message,
    message_stream,
    named,
    response,
    response_item,
    response_stream,
    running_provider,
)

from nemo_agents.testing import LocalGateway, running_gateway

ALLOWED, FORBIDDEN = "web_search", "delete_everything"
COST_NANOS = INPUT_TOKENS * 1_000 + OUTPUT_TOKENS * 2_000
PRICE = {"input_per_mtok": "1", "output_per_mtok": "2"}
WIRES = {"native": ["chat", "responses", "messages", "completions"], "chatonly": ["chat"]}
ASKS: dict[str, dict[str, Any]] = {
    "chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "responses": {"input": "hi"},
    "messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 50},
}


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with running_provider() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalGateway]:
    one = {"base_url": provider.base_url}
    options = {
        "sandbox": "off",
        "providers": {name: {**one, "wires": wires} for name, wires in WIRES.items()},
        "prices": {f"{name}/m": PRICE for name in WIRES},
        "log_level": "error",
        "retries": 0,
    }
    with running_gateway(tmp_path_factory.mktemp("tools") / "home", settings=options) as running:
        yield running


@dataclass(kw_only=True)
class Bench:
    """A gateway, a provider, and a key of a role with a list of tools (None: without one)."""

    gateway: LocalGateway
    provider: Provider
    http: httpx.Client
    fleet: str = field(default_factory=lambda: f"fleet-{uuid.uuid4().hex[:8]}")

    def ok(self, method: str, path: str, body: Any = None, **params: Any) -> Any:
        headers = {"authorization": f"Bearer {self.gateway.admin_key.reveal()}"}
        answer = self.http.request(method, path, json=body, params=params or None, headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def key(self, tools: list[str] | None = None, **fields: Any) -> str:
        declared = {"role": "researcher"} if tools is None else {"role": "researcher", "tools": tools}
        named_so = {"key_alias": uuid.uuid4().hex, "team_id": self.fleet, "models": ["native/*", "chatonly/*"]}
        return str(self.ok("POST", "/key/generate", {**named_so, "metadata": {"nemo": declared}, **fields})["key"])

    def ask(self, key: str, path: str, model: str = "native/m", **body: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}", "x-nemo-run-id": f"run-{self.fleet}"}
        return self.http.post(f"/v1/{path}", json={"model": model, **ASKS[path], **body}, headers=headers)

    def row(self) -> dict[str, Any]:
        """The one call of the test's fleet, once the books are closed."""
        self.http.get("/health/ready").raise_for_status()
        (row,) = self.ok("GET", "/nemo/logs", fleet=self.fleet, limit=10)["calls"]
        found: dict[str, Any] = row
        return found


@pytest.fixture
def bench(gateway: LocalGateway, provider: Provider) -> Iterator[Bench]:
    with httpx.Client(base_url=gateway.url, trust_env=False, timeout=30) as http:
        ready = Bench(gateway=gateway, provider=provider, http=http)
        yield ready
        assert ready.ok("GET", "/nemo/ledger/verify") == {"problems": []}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way to call a tool: what a provider answers plainly and as a stream, with and without text before it.

    `called` is what the refusal names.
    """

    path: str
    plain: bytes
    alone: list[bytes]
    after_text: list[bytes]
    called: str
    model: str = "native/m"


def _chat_case(name: str, called: str, said: dict[str, Any], *deltas: dict[str, Any], model: str = "native/m") -> Case:
    return Case(
        path="chat/completions",
        plain=chat(said),
        alone=chat_stream(*deltas),
        after_text=chat_stream({"content": "Let me see."}, *deltas),
        called=called,
        model=model,
    )


def _deltas(name: str) -> list[dict[str, Any]]:
    return chat_call_deltas([name], ['{"a": ', '"secret-arguments"}'])


def _legacy(name: str) -> list[dict[str, Any]]:
    return [{"function_call": {"name": name, "arguments": ""}}, {"function_call": {"arguments": '"secret-arguments"'}}]


def _responses(item: dict[str, Any], called: str) -> Case:
    return Case(
        path="responses",
        plain=json.dumps(response(item)).encode(),
        alone=response_stream(item),
        after_text=response_stream(TEXT_ITEM, item),
        called=called,
    )


def _messages(each: dict[str, Any], called: str) -> Case:
    return Case(
        path="messages",
        plain=json.dumps(message(each)).encode(),
        alone=message_stream(each),
        after_text=message_stream(TEXT_BLOCK, each),
        called=called,
    )


def _translated(path: str) -> Case:
    return Case(
        path=path,
        plain=chat({"tool_calls": [chat_call(FORBIDDEN)]}),
        alone=chat_stream(*_deltas(FORBIDDEN)),
        after_text=chat_stream({"content": "Let me see."}, *_deltas(FORBIDDEN)),
        called=FORBIDDEN,
        model="chatonly/m",
    )


_ONE = {"index": 0, "id": "c", "type": "custom", "custom": {"name": FORBIDDEN, "input": "secret-arguments"}}
_BUILTIN = {"index": 0, "id": "c", "type": "builtin_function", "function": {"name": ALLOWED, "arguments": "secret-arg"}}
_MCP = {**response_item(ALLOWED, "mcp_call"), "server_label": "files"}
_SEARCH = {"id": "ws_1", "type": "web_search_call", "status": "completed", "action": {"query": "secret-arguments"}}
CASES = {
    "chat": _chat_case("chat", FORBIDDEN, {"tool_calls": [chat_call(FORBIDDEN)]}, *_deltas(FORBIDDEN)),
    "chat, the second of two": _chat_case(
        "second",
        FORBIDDEN,
        {"tool_calls": [chat_call(ALLOWED, "{}"), chat_call(FORBIDDEN)]},
        {"tool_calls": [{"index": 0, **chat_call(ALLOWED, "{}")}, {"index": 1, **chat_call(FORBIDDEN), "id": "b"}]},
    ),
    "chat, a name in pieces": _chat_case(
        "pieces",
        "web_delete",
        {"tool_calls": [chat_call("web_delete")]},
        *chat_call_deltas(["web_", "delete"], ['"secret-arguments"']),
    ),
    "chat, a name that never comes": _chat_case(
        "nameless", "", {"tool_calls": [chat_call("")]}, *chat_call_deltas([""], ['"secret-arguments"'])
    ),
    "chat, a custom tool": _chat_case("custom", FORBIDDEN, {"tool_calls": [_ONE]}, {"tool_calls": [_ONE]}),
    "chat, a tool of the provider's": _chat_case(
        "builtin", "builtin_function", {"tool_calls": [_BUILTIN]}, {"tool_calls": [_BUILTIN]}
    ),
    "chat, a function of before": _chat_case(
        "legacy",
        FORBIDDEN,
        {"function_call": {"name": FORBIDDEN, "arguments": '"secret-arguments"'}},
        *_legacy(FORBIDDEN),
    ),
    "responses": _responses(response_item(FORBIDDEN), FORBIDDEN),
    "responses, a custom tool": _responses(response_item(FORBIDDEN, "custom_tool_call"), FORBIDDEN),
    "responses, a search by the provider": _responses(_SEARCH, "web_search_call"),
    "responses, a server of the provider's": _responses(_MCP, "mcp_call"),
    "messages": _messages(block(FORBIDDEN), FORBIDDEN),
    "messages, a tool of the server's": _messages(block(ALLOWED, "server_tool_use"), "server_tool_use"),
    "messages, a server of the provider's": _messages(block(ALLOWED, "mcp_tool_use"), "mcp_tool_use"),
    "responses told as chat": _translated("responses"),
    "messages told as chat": _translated("messages"),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


def is_refused(bench: Bench, case: Case, answer: httpx.Response) -> None:
    assert answer.status_code == 403, answer.text
    assert answer.headers["x-nemo-error-code"] == "tool_not_allowed"
    assert answer.headers["x-should-retry"] == "false"
    assert float(answer.headers["x-nemo-request-cost"]) * 1e9 == pytest.approx(COST_NANOS)
    error = answer.json()["error"]
    assert error["code"] == "tool_not_allowed"
    assert (repr(case.called) if case.called else "without a name") in error["message"]
    assert "researcher" in error["message"]
    assert ALLOWED in error["message"]
    assert "secret-arg" not in answer.text
    paid_and_logged(bench)


def paid_and_logged(bench: Bench) -> None:
    """The provider was asked once, and billed; the log says what was refused, and the run shows it."""
    assert len(bench.provider.bodies) == 1
    row = bench.row()
    assert (row["state"], row["status"], row["code"]) == ("refused", 403, "tool_not_allowed")
    assert (row["scope"], row["limit"]) == ("role", "tools")
    assert (row["input_tokens"], row["output_tokens"], row["cost_nanos"]) == (INPUT_TOKENS, OUTPUT_TOKENS, COST_NANOS)
    run = bench.ok("GET", f"/nemo/runs/run-{bench.fleet}", fleet=bench.fleet)
    assert json.dumps(run).count('"tool_not_allowed"') >= 1


# --- refused ----------------------------------------------------------------------------------------------------------
def test_a_plain_answer_that_calls_another_tool_is_refused_and_paid_for(bench: Bench, case: Case):
    key = bench.key([ALLOWED])
    bench.provider.says(case.plain, content_type=JSON)
    is_refused(bench, case, bench.ask(key, case.path, case.model))


def test_a_stream_that_has_shown_nothing_is_refused_plainly(bench: Bench, case: Case):
    key = bench.key([ALLOWED])
    bench.provider.says(*case.alone)
    is_refused(bench, case, bench.ask(key, case.path, case.model, stream=True))


def test_a_stream_that_has_shown_text_ends_with_the_wire_s_own_error(bench: Bench, case: Case):
    """The call's arguments do not go out, and the code of the refusal does."""
    key = bench.key([ALLOWED])
    bench.provider.says(*case.after_text)
    answer = bench.ask(key, case.path, case.model, stream=True)
    if answer.status_code != 200:  # the text and the call were read at once, before anything had gone out
        is_refused(bench, case, answer)
        return
    last = answer.text.strip().split("\n\n")[-1]
    assert '"tool_not_allowed"' in last
    assert answer.text.count('"tool_not_allowed"') == last.count('"tool_not_allowed"')
    assert "Let me see." in answer.text
    assert "secret-arg" not in answer.text
    assert "[DONE]" not in answer.text
    paid_and_logged(bench)


def test_a_role_without_tools_may_call_none(bench: Bench):
    key = bench.key([])
    bench.provider.says(chat({"tool_calls": [chat_call(ALLOWED)]}), content_type=JSON)
    answer = bench.ask(key, "chat/completions")
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "tool_not_allowed")
    assert "it declares: none" in answer.json()["error"]["message"]


def test_a_refused_answer_is_counted(bench: Bench):
    def counted() -> str:
        metrics = bench.http.get("/metrics", headers={"authorization": f"Bearer {bench.gateway.admin_key.reveal()}"})
        return "\n".join(
            line for line in metrics.text.splitlines() if "tool_not_allowed" in line and bench.fleet in line
        )

    key = bench.key([ALLOWED])
    assert counted() == ""
    bench.provider.says(chat({"tool_calls": [chat_call(FORBIDDEN)]}), content_type=JSON)
    bench.ask(key, "chat/completions")
    assert counted().endswith(" 1.0")


def test_a_refused_answer_is_not_kept_for_who_asks_the_same(bench: Bench):
    key = bench.key([ALLOWED], metadata={"nemo": {"role": "researcher", "tools": [ALLOWED], "cache_ttl_s": 60}})
    bench.provider.says(chat({"tool_calls": [chat_call(FORBIDDEN)]}), content_type=JSON)
    assert bench.ask(key, "chat/completions").status_code == 403
    bench.provider.says(chat({"content": "fine"}), content_type=JSON)
    again = bench.ask(key, "chat/completions")
    assert again.json()["choices"][0]["message"]["content"] == "fine"


# --- passed -----------------------------------------------------------------------------------------------------------
PASSES: dict[str, tuple[str, list[bytes]]] = {
    "chat": ("chat/completions", chat_stream(*_deltas(ALLOWED))),
    "chat, two calls": (
        "chat/completions",
        chat_stream(*_deltas(ALLOWED), *chat_call_deltas(["fetch", "_url"], ["{}"], index=1)),
    ),
    "chat, all calls at one place": (
        "chat/completions",
        chat_stream(
            {"tool_calls": [{"index": 0, **chat_call(ALLOWED), "id": "a"}]},
            {"tool_calls": [{"index": 0, **chat_call("fetch_url"), "id": "b"}]},
        ),
    ),
    "chat, arguments before the name": (
        "chat/completions",
        chat_stream(
            {"tool_calls": [{"index": 0, "id": "a", "function": {"arguments": "{"}}]},
            {"tool_calls": [{"index": 0, "function": {"name": ALLOWED, "arguments": "}"}}]},
        ),
    ),
    "chat, a function of before": ("chat/completions", chat_stream(*_legacy(ALLOWED))),
    "chat, text": ("chat/completions", chat_stream({"content": "Let "}, {"content": f"me {FORBIDDEN}"})),
    "responses": ("responses", response_stream(TEXT_ITEM, response_item(ALLOWED))),
    "responses, a custom tool": ("responses", response_stream(response_item(ALLOWED, "custom_tool_call"))),
    "messages": ("messages", message_stream(TEXT_BLOCK, block(ALLOWED))),
}


@pytest.mark.parametrize("passes", PASSES.values(), ids=PASSES)
def test_a_stream_of_declared_calls_is_byte_for_byte_what_came(bench: Bench, passes: tuple[str, list[bytes]]):
    path, events = passes
    key = bench.key([ALLOWED, "fetch_url"])
    bench.provider.says(*events)
    extra = {"stream_options": {"include_usage": True}} if path == "chat/completions" else {}
    answer = bench.ask(key, path, stream=True, **extra)
    assert answer.status_code == 200
    assert answer.content == b"".join(events)
    assert bench.row()["state"] == "ok"


@pytest.mark.parametrize("path", ASKS)
def test_a_role_without_a_list_may_call_anything(bench: Bench, path: str):
    case = next(each for each in CASES.values() if each.path == path)
    key = bench.key(None)
    bench.provider.says(case.plain, content_type=JSON)
    assert bench.ask(key, path).content == case.plain
    bench.provider.says(*case.alone)
    assert "secret-arguments" in bench.ask(key, path, stream=True).text


@pytest.mark.parametrize("path", ["responses", "messages"])
def test_a_declared_call_is_told_in_another_wire(bench: Bench, path: str):
    key = bench.key([ALLOWED])
    bench.provider.says(
        *chat_stream({"content": "Let me see."}, *chat_call_deltas(["web_", "search"], ['{"a":', "1}"]))
    )
    told = bench.ask(key, path, "chatonly/m", stream=True).text
    assert f'"name":"{ALLOWED}"' in told
    assert "tool_not_allowed" not in told
    assert bench.row()["state"] == "ok"


# --- streams that do not go as they should ----------------------------------------------------------------------------
def test_an_error_that_comes_while_a_name_is_waited_for_is_told(bench: Bench):
    key = bench.key([ALLOWED])
    begun = chat_stream({"content": "Let me see."}, *chat_call_deltas(["web_"], ["{"]))[:4]
    bench.provider.says(*begun, data({"error": {"message": "it broke", "code": "oops"}}))
    answer = bench.ask(key, "chat/completions", stream=True)
    assert answer.status_code == 200
    assert "it broke" in answer.text.strip().split("\n\n")[-1]
    assert "web_" not in answer.text


def test_a_stream_that_breaks_behind_a_forbidden_call_stays_refused(bench: Bench):
    """Nobody knows what it cost: it is charged at its hold."""
    key = bench.key([ALLOWED], max_budget=1, budget_duration="1d")
    bench.provider.says(*chat_stream(*_deltas(FORBIDDEN), done=False)[:3])
    answer = bench.ask(key, "chat/completions", stream=True, max_tokens=50)
    assert answer.status_code == 403
    assert "x-nemo-request-cost" not in answer.headers
    row = bench.row()
    assert (row["code"], row["usage_source"]) == ("tool_not_allowed", "hold")
    assert row["cost_nanos"] > 50 * 2_000


def test_events_that_cannot_be_read_reach_nobody_who_has_a_list(bench: Bench):
    """Another reader of JSON might read a call in what this one does not: NaN is a number to some."""
    key = bench.key([ALLOWED])
    call = json.dumps({"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, **chat_call(FORBIDDEN)}]}}]})
    events = chat_stream({"content": "hi"})
    bench.provider.says(*events[:2], b'data: {"n": NaN, ' + call[1:].encode() + b"\n\n", *events[2:])
    answer = bench.ask(key, "chat/completions", stream=True)
    assert FORBIDDEN not in answer.text
    assert '"hi"' in answer.text


def test_a_name_that_is_waited_for_too_long_is_none(bench: Bench):
    key = bench.key([ALLOWED])
    pieces = [{"tool_calls": [{"index": 0, "function": {"arguments": "x" * 300_000}}]} for _ in range(5)]
    bench.provider.says(*chat_stream(*pieces))
    answer = bench.ask(key, "chat/completions", stream=True, max_tokens=50_000)
    assert answer.status_code == 403
    assert "without a name" in answer.json()["error"]["message"]


# --- however it is cut ------------------------------------------------------------------------------------------------
def _cut(stream: bytes, places: list[int]) -> list[bytes]:
    ends = [0, *sorted({place % len(stream) for place in places}), len(stream)]
    return [stream[start:end] for start, end in itertools.pairwise(ends) if end > start]


_STREAMS: dict[str, tuple[Callable[[list[str]], list[bytes]], str]] = {
    "chat": (
        lambda names: chat_stream(*[d for i, n in enumerate(names) for d in _named_delta(n, i)]),
        "chat/completions",
    ),
    "responses": (lambda names: response_stream(TEXT_ITEM, *map(response_item, names)), "responses"),
    "messages": (lambda names: message_stream(TEXT_BLOCK, *map(block, names)), "messages"),
}


_NAMES = st.lists(st.sampled_from([ALLOWED, "web_searches", FORBIDDEN]), min_size=1, max_size=4)


def _named_delta(name: str, index: int) -> list[dict[str, Any]]:
    half = len(name) // 2
    return chat_call_deltas([name[:half], name[half:]], ['{"a": ', '"secret-arguments"}'], index)


@pytest.mark.parametrize("wire", _STREAMS)
@given(names=_NAMES, places=st.lists(st.integers(0, 1 << 20), max_size=12))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_however_a_stream_is_cut_a_forbidden_call_never_passes(
    gateway: LocalGateway, provider: Provider, wire: str, names: list[str], places: list[int]
):
    """And a declared one is byte for byte what came."""
    build, path = _STREAMS[wire]
    stream = b"".join(build(names))
    with httpx.Client(base_url=gateway.url, trust_env=False, timeout=30) as http:
        bench = Bench(gateway=gateway, provider=provider, http=http)
        key = bench.key([ALLOWED])
        provider.says(*_cut(stream, places))
        extra = {"stream_options": {"include_usage": True}} if wire == "chat" else {}
        answer = bench.ask(key, path, stream=True, **extra)
    if all(name == ALLOWED for name in names):
        assert answer.content == stream
        return
    first = next(n for n, name in enumerate(names) if name != ALLOWED)
    assert "tool_not_allowed" in answer.text
    assert answer.text.count("secret-arguments") <= 3 * first  # a response tells the arguments of each call twice
    assert FORBIDDEN not in answer.text.replace(repr(FORBIDDEN), "")
    if answer.status_code == 200:
        head = answer.content[: answer.content.rindex(b"tool_not_allowed")]
        told = max(head.rfind(b"\n\n"), 0)
        assert stream.startswith(answer.content[:told])


# --- what clients raise -----------------------------------------------------------------------------------------------
def test_openai_s_client_raises_the_code_from_an_answer_and_from_a_stream(bench: Bench):
    client = openai.OpenAI(base_url=f"{bench.gateway.url}/v1", api_key=bench.key([ALLOWED]), max_retries=2)
    asked: Any = {"model": "native/m", **ASKS["chat/completions"]}
    bench.provider.says(chat({"tool_calls": [chat_call(FORBIDDEN)]}), content_type=JSON)
    with pytest.raises(openai.PermissionDeniedError) as plain:
        client.chat.completions.create(**asked)
    assert (plain.value.code, len(bench.provider.bodies)) == ("tool_not_allowed", 1)
    bench.provider.says(*chat_stream({"content": "Let me see."}, *_deltas(FORBIDDEN)))
    with pytest.raises(openai.APIError) as streamed:
        list(client.chat.completions.create(stream=True, **asked))
    assert (streamed.value.code, len(bench.provider.bodies)) == ("tool_not_allowed", 1)


def test_anthropic_s_client_raises_the_code_from_an_answer_and_from_a_stream(bench: Bench):
    client = anthropic.Anthropic(base_url=bench.gateway.url, api_key=bench.key([ALLOWED]), max_retries=2)
    asked: Any = {"model": "native/m", **ASKS["messages"]}
    bench.provider.says(json.dumps(message(block(FORBIDDEN))).encode(), content_type=JSON)
    with pytest.raises(anthropic.PermissionDeniedError) as plain:
        client.messages.create(**asked)
    assert "tool_not_allowed" in str(plain.value.body)
    bench.provider.says(*message_stream(TEXT_BLOCK, block(FORBIDDEN)))
    with pytest.raises(anthropic.APIStatusError) as streamed:
        list(client.messages.create(stream=True, **asked))
    assert "tool_not_allowed" in str(streamed.value.body)
    assert len(bench.provider.bodies) == 1


def test_steps_of_calls_that_no_item_announced_are_refused_or_wait(bench: Bench):
    """A provider may leave the announcement out: what follows is no less a call."""
    key = bench.key([ALLOWED])
    item = response_item(ALLOWED)
    end = response_stream(item)[-1]
    step = {"output_index": 0, "item_id": "fc_1", "delta": "{}"}
    bench.provider.says(named({"type": "response.function_call_arguments.delta", **step}), end)
    assert bench.ask(key, "responses", stream=True).status_code == 200
    for kind in ("response.mcp_call_arguments.delta", "response.web_search_call.searching"):
        bench.provider.says(named({"type": kind, **step}), response_stream(TEXT_ITEM)[-1])
        assert bench.ask(key, "responses", stream=True).status_code == 403
