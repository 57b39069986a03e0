"""The HTTP clients that are put under an `openai` client of somebody else's."""

from __future__ import annotations

import asyncio
import copy

import openai
import pytest
from nemo_agents_autogen.wire import AsyncKeyedHttp, KeyedHttp, Retrying

from nemo_agents import AgentRole, Fleet, Member
from nemo_agents.errors import BudgetExceeded, GatewayUnreachable, NemoError, RateLimited, UpstreamFailed
from nemo_agents.secret import Secret
from nemo_agents.testing import scripted_provider
from nemo_agents.testing.conformance.bench import closed_port
from nemo_agents.trace.waiting import Sleeper

KEY = "sk-nemo-0123456789abcdef0123456789abcdef"


class Asker:
    """Asks a server that stands for the gateway, blocking or awaiting, and notes the waits instead of waiting."""

    def __init__(self, origin, way, *, max_retries=2):
        self.waits = []

        async def asleep(wait_s):
            self.waits.append(wait_s)

        self.member = Member(
            role=AgentRole("researcher", models=["swift"]),
            gateway_url=origin,
            find_key=lambda: Secret(KEY, mask="sk-…"),
            sleeper=Sleeper(sleep=self.waits.append, asleep=asleep),
        )
        self.way = way
        retrying = Retrying(max_retries=max_retries)
        common = {"api_key": self.member.key_stand_in, "base_url": self.member.base_url, "max_retries": 0}
        if way == "sync":
            self.http = KeyedHttp(self.member, self.member.http_client(), retrying)
            self.client = openai.OpenAI(http_client=self.http, **common)
        else:
            self.http = AsyncKeyedHttp(self.member, self.member.async_http_client(), retrying)
            self.client = openai.AsyncOpenAI(http_client=self.http, **common)

    def ask(self, **options):
        answer = self.client.chat.completions.create(
            model="swift", messages=[{"role": "user", "content": "hello"}], **options
        )
        if self.way == "async":

            async def finish():
                return await answer

            answer = asyncio.run(finish())
        return answer


@pytest.fixture(params=["sync", "async"])
def way(request):
    return request.param


@pytest.fixture
def provider():
    with scripted_provider() as provider:
        yield provider


def test_the_key_goes_out_and_is_nowhere_else(provider, way):
    """The server gets the role's key; the client and its HTTP client do not show it, and a copy is the same object."""
    asker = Asker(provider.origin, way)
    asker.ask()
    assert provider.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert KEY not in repr(asker.http) + repr(vars(asker.client))
    assert copy.deepcopy({"http_client": asker.http})["http_client"] is asker.http


def test_a_rate_is_waited_out_as_told(provider, way):
    """The wait is the header's, and the same request goes out again."""
    provider.fail(429, code="rate_limit_exceeded", retry_after_s=7).say("at last")
    asker = Asker(provider.origin, way)
    assert asker.ask().choices[0].message.content == "at last"
    assert asker.waits == [7.0]
    first, second = provider.requests
    assert first.body == second.body


@pytest.mark.parametrize(
    ("status", "code", "retry_after_s", "error", "waits"),
    [
        (429, "rate_limit_exceeded", 0.5, RateLimited, [0.5, 0.5]),
        (429, "rate_limit_exceeded", 500, RateLimited, []),
        (429, "loop_detected", 0.5, RateLimited, []),
        (402, "budget_exhausted", None, BudgetExceeded, []),
        (500, None, None, UpstreamFailed, []),
        (502, "upstream_error", None, UpstreamFailed, []),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_told_at_once_and_what_after_which_waits(
    provider, way, stream, *, status, code, retry_after_s, error, waits
):
    """A refusal has its type, from the library's own error, in plain calls and in streams."""
    for _ in range(5):
        provider.fail(status, code=code, retry_after_s=retry_after_s)
    asker = Asker(provider.origin, way)
    with pytest.raises(error) as caught:
        asker.ask(stream=stream)
    assert asker.waits == waits
    assert len(provider.requests) == 1 + len(waits)
    assert caught.value.status == status
    assert type(caught.value.__cause__).__name__ == "HTTPStatusError"


def test_a_gateway_that_is_down_is_tried_again(way):
    """A lost connection is tried again after the SDK's own waits, and is GatewayUnreachable in the end."""
    with closed_port() as origin:
        asker = Asker(origin, way)
        with pytest.raises(GatewayUnreachable, match="nemo-agents gateway"):
            asker.ask()
    assert asker.waits == [0.5, 1.0]


def test_an_error_of_the_sdk_is_raised_as_it_is(provider, way):
    """What the SDK raises while it sends, as for a run that is over, is neither retried nor wrapped."""

    class OverError(NemoError):
        pass

    asker = Asker(provider.origin, way)

    class Inner:
        def send(self, _request, **_options):
            raise OverError("over")

    class AsyncInner:
        async def send(self, _request, **_options):
            raise OverError("over")

    http = (
        KeyedHttp(asker.member, Inner(), Retrying(max_retries=2))
        if way == "sync"
        else AsyncKeyedHttp(asker.member, AsyncInner(), Retrying(max_retries=2))
    )
    asker.client = asker.client.copy(http_client=http)
    with pytest.raises(OverError):
        asker.ask()
    assert asker.waits == []


def test_the_deadline_of_a_run_at_another_gateway_is_none_of_this_calls(provider, way, tmp_path):
    """A wait is bounded by the step that the call belongs to, and it belongs to none of that run's."""
    asker = Asker(provider.origin, way)
    provider.fail(429, code="rate_limit_exceeded", retry_after_s=30)
    declared = Fleet("crew", roles=[AgentRole("researcher", models=["swift"])])
    with (
        closed_port() as url,
        declared.connect(url, home=tmp_path, environ={}).run("r") as run,
        run.step("s", "researcher", timeout_s=5),
    ):
        asker.ask()
    assert asker.waits == [30]
