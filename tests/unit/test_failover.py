"""What happens after an attempt that gave no answer, and what a provider's refusal was about."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_agents.policy.failover import (
    WAIT_MS_MAX,
    Fallback,
    Fault,
    GiveUp,
    Limits,
    Retry,
    Tried,
    after,
    back_off_ms,
    kind_of_refusal,
    may_go_on,
)
from nemo_agents.policy.routing import Target
from nemo_agents.policy.selection import LAST, Choice

NOW = 1_000_000_000
OVERLOADED = Fault(status=503)
LIMITED = Fault(status=429)
NOT_CONNECTED = Fault(status=None, sent=False)
BROKEN = Fault(status=None)


def choice(name, stage=0, **fields):
    return Choice(target=Target(provider="openai", model=name, deployment=name, **fields), stage=stage)


A, B, C = choice("a"), choice("b"), choice("c", 1)


def tried(*pairs, ago_ms=0):
    return [Tried(choice=one, fault=fault, at_us=NOW - ago_ms * 1000) for one, fault in pairs]


def decide(pairs, left=(), *, retries=0, attempts=4, fallback_on=(), deadline_ms=None, jitter=1.0, **more):
    return after(
        tried(*pairs) if not more.get("tried") else more["tried"],
        list(left),
        Limits(attempts=attempts, retries=retries, fallback_on=frozenset(fallback_on)),
        now_us=NOW,
        deadline_us=None if deadline_ms is None else NOW + deadline_ms * 1000,
        jitter=jitter,
        cooling=more.get("cooling", lambda _: False),
    )


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529, None])
def test_the_next_deployment_is_asked(status):
    assert decide([(A, Fault(status=status))], [B]) == Fallback(choice=B)
    assert decide([(A, Fault(status=status))], [C]) == Fallback(choice=C)


@pytest.mark.parametrize("status", [202, 302, 400, 401, 402, 403, 404, 413, 422])
def test_what_says_the_same_everywhere_ends_it(status):
    assert decide([(A, Fault(status=status))], [B, C], retries=3) == GiveUp(why="refused")


@pytest.mark.parametrize("fault", [OVERLOADED, LIMITED, NOT_CONNECTED, Fault(status=408), Fault(status=409)])
def test_a_deployment_that_is_alone_is_asked_again(fault):
    assert decide([(A, fault)], retries=1) == Retry(choice=A, wait_ms=250)
    assert decide([(A, fault), (A, fault)], retries=1) == GiveUp(why="nobody")
    assert decide([(A, fault)]) == GiveUp(why="nobody")


@pytest.mark.parametrize("fault", [BROKEN, Fault(status=None, timed_out=True)])
def test_what_may_have_been_served_is_not_sent_there_twice(fault):
    assert decide([(A, fault)], retries=3) == GiveUp(why="nobody")
    assert decide([(A, fault)], [B], retries=3) == Fallback(choice=B)


# --- which first
def test_another_one_of_the_tier_goes_before_asking_the_same_again():
    assert decide([(A, OVERLOADED)], [B, C], retries=2) == Fallback(choice=B)


def test_the_tier_is_asked_again_before_the_next_tier_is():
    assert decide([(A, OVERLOADED)], [C], retries=1) == Retry(choice=A, wait_ms=250)
    assert decide([(A, OVERLOADED), (A, OVERLOADED)], [C], retries=1) == Fallback(choice=C)
    assert decide([(A, OVERLOADED)], [C]) == Fallback(choice=C)


def test_of_those_asked_already_it_is_the_one_with_the_least_wait():
    before = [
        Tried(choice=A, fault=OVERLOADED, at_us=NOW - 200_000),
        Tried(choice=B, fault=OVERLOADED, at_us=NOW),
    ]
    assert decide([], [], retries=1, tried=before) == Retry(choice=A, wait_ms=50)
    long_ago = [
        Tried(choice=A, fault=OVERLOADED, at_us=NOW - 900_000),
        Tried(choice=B, fault=OVERLOADED, at_us=NOW),
    ]
    assert decide([], [], retries=1, tried=long_ago) == Retry(choice=A, wait_ms=0)


def test_a_429_is_not_waited_out_while_others_are_left():
    assert decide([(A, LIMITED)], [C], retries=3) == Fallback(choice=C)
    assert decide([(A, LIMITED), (B, OVERLOADED)], [C], retries=1) == Retry(choice=B, wait_ms=250)
    assert decide([(B, OVERLOADED), (A, LIMITED)], [C], retries=1) == Fallback(choice=C)


def test_what_is_cooling_down_is_not_asked_again_while_others_are_left():
    cooling = {"a"}
    again = {"cooling": lambda target: target.model in cooling, "retries": 1}
    assert decide([(A, OVERLOADED)], [C], **again) == Fallback(choice=C)
    assert decide([(A, OVERLOADED)], **again) == Retry(choice=A, wait_ms=250)
    cooled = choice("b", LAST)
    assert decide([(A, OVERLOADED)], [cooled], retries=1) == Retry(choice=A, wait_ms=250)
    assert decide([(A, OVERLOADED)], [cooled]) == Fallback(choice=cooled)


def test_nothing_sent_for_reasons_of_our_own_is_the_next_one_s_turn():
    assert decide([(A, None)], [C], retries=3) == Fallback(choice=C)
    assert decide([(A, None)], retries=3) == GiveUp(why="nobody")
    assert decide([(A, None), (B, OVERLOADED)], retries=1) == Retry(choice=B, wait_ms=250)


# --- bounds
def test_attempts_are_bounded_in_all():
    assert decide([(A, OVERLOADED)], [B], attempts=1) == GiveUp(why="attempts")
    assert decide([(A, OVERLOADED)] * 4, [B], retries=9) == GiveUp(why="attempts")


def test_nobody_waits_beyond_the_client_s_deadline():
    assert decide([(A, OVERLOADED)], retries=1, deadline_ms=251) == Retry(choice=A, wait_ms=250)
    assert decide([(A, OVERLOADED)], retries=1, deadline_ms=250) == GiveUp(why="time")
    assert decide([(A, OVERLOADED)], [C], retries=1, deadline_ms=250) == Fallback(choice=C)
    assert decide([(A, OVERLOADED)], [B], deadline_ms=0) == GiveUp(why="time")


@pytest.mark.parametrize(
    ("asked_for_ms", "deadline_ms", "expected"),
    [
        (3_000, None, Retry(choice=A, wait_ms=3_000)),
        (3_000, 3_001, Retry(choice=A, wait_ms=3_000)),
        (3_000, 3_000, GiveUp(why="time")),
        (WAIT_MS_MAX, None, Retry(choice=A, wait_ms=WAIT_MS_MAX)),
        (WAIT_MS_MAX + 1, None, GiveUp(why="nobody")),
        (10, None, Retry(choice=A, wait_ms=250)),
    ],
)
def test_a_provider_s_own_word_on_when_to_come_back_is_kept(asked_for_ms, deadline_ms, expected):
    fault = Fault(status=429, retry_after_ms=asked_for_ms)
    assert decide([(A, fault)], retries=1, deadline_ms=deadline_ms) == expected


def test_a_provider_that_asks_for_too_long_is_left_for_the_next_tier():
    patient = Fault(status=503, retry_after_ms=3_000)
    assert decide([(A, patient)], [C], retries=1) == Retry(choice=A, wait_ms=3_000)
    assert decide([(A, patient)], [C], retries=1, deadline_ms=2_000) == Fallback(choice=C)


def test_waits_double_and_spread():
    assert [back_off_ms(n, 1.0) for n in range(1, 8)] == [250, 500, 1_000, 2_000, 4_000, 8_000, 8_000]
    assert [back_off_ms(n, 0.0) for n in range(1, 4)] == [125, 250, 500]
    assert back_off_ms(10**9, 1.0) == 8_000


# --- refusals of the request
@pytest.mark.parametrize("kind", ["context_window", "content_filter"])
def test_a_refusal_of_the_request_falls_back_where_the_group_says_so(kind):
    fault = Fault(status=400, kind=kind)
    assert decide([(A, fault)], [B], fallback_on=[kind]) == Fallback(choice=B)
    assert decide([(A, fault)], [B]) == GiveUp(why="refused")
    other = {"context_window": "content_filter", "content_filter": "context_window"}[kind]
    assert decide([(A, fault)], [B], fallback_on=[other]) == GiveUp(why="refused")
    assert decide([(A, fault)], retries=3, fallback_on=[kind]) == GiveUp(why="nobody")


def test_after_too_long_only_a_larger_one_is_asked():
    fault = Fault(status=400, kind="context_window")
    small, same, large = (choice(str(n), context_tokens=n) for n in (8, 16, 32))
    unknown = choice("unknown")
    first = choice("first", context_tokens=16)
    on = {"fallback_on": ["context_window"]}
    assert decide([(first, fault)], [small, same, large, unknown], **on) == Fallback(choice=large)
    assert decide([(first, fault)], [small, unknown, large], **on) == Fallback(choice=unknown)
    assert decide([(first, fault)], [small, same], **on) == GiveUp(why="nobody")
    assert decide([(unknown, fault)], [small], **on) == Fallback(choice=small)


# --- what may follow
CHOICES = [choice(name, stage) for name, stage in (("a", 0), ("b", 0), ("c", 1), ("d", 2))]
FAULTS = st.builds(
    Fault,
    status=st.sampled_from([None, 400, 403, 408, 409, 429, 500, 503]),
    kind=st.sampled_from([None, None, "context_window", "content_filter"]),
    retry_after_ms=st.none() | st.integers(0, 20_000),
    sent=st.booleans(),
)


@given(
    st.lists(st.tuples(st.sampled_from(CHOICES), FAULTS), min_size=1, max_size=6),
    st.integers(1, 6),
    st.integers(0, 3),
    st.none() | st.integers(0, 9_000),
    st.floats(0, 1),
)
def test_whatever_follows_is_within_every_bound(pairs, attempts, retries, deadline_ms, jitter):
    left = [one for one in CHOICES if one not in [done for done, _ in pairs]]
    limits = Limits(attempts=attempts, retries=retries, fallback_on=frozenset({"context_window"}))
    decided = decide(
        pairs,
        left,
        attempts=attempts,
        retries=retries,
        fallback_on=["context_window"],
        deadline_ms=deadline_ms,
        jitter=jitter,
    )
    assert not isinstance(decided, Fallback) or decided.choice in left
    if isinstance(decided, Retry):
        done = [one for one, _ in pairs]
        assert 1 <= done.count(decided.choice) <= retries
        assert 0 <= decided.wait_ms <= WAIT_MS_MAX
        assert deadline_ms is None or decided.wait_ms < deadline_ms
    if not isinstance(decided, GiveUp):
        assert len(pairs) < attempts
        assert may_go_on(tried(*pairs[:-1]), pairs[-1][0], left, limits)  # a stream had held back for it


def test_nothing_is_held_back_for_an_attempt_that_cannot_come():
    none = Limits(attempts=4, retries=0)
    assert not may_go_on([], A, [], none)
    assert may_go_on([], A, [B], none)
    assert may_go_on([], A, [], Limits(attempts=4, retries=1))
    assert not may_go_on(tried((A, OVERLOADED)), A, [], Limits(attempts=4, retries=1))
    assert may_go_on(tried((B, OVERLOADED), (A, OVERLOADED)), A, [], Limits(attempts=4, retries=1))
    assert not may_go_on([], A, [B], Limits(attempts=1, retries=1))


# --- the words of providers
def openai(message, code=None, kind="invalid_request_error", **more) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": "messages", "code": code, **more}}


TOO_LONG = [
    openai(
        "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens.",
        "context_length_exceeded",
    ),
    openai("Your input exceeds the context window of this model. Please adjust your input and try again."),
    {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": "prompt is too long: 9 tokens > 8 maximum"},
    },
    {
        "type": "error",
        "error": {
            "type": "invalid_request_error",
            "message": "input length and `max_tokens` exceed context limit: 188059 + 20000 > 200000, decrease input",
        },
    },
    [
        {
            "error": {
                "code": 400,
                "message": "The input token count (1196265) exceeds the maximum number of tokens allowed (1048575).",
                "status": "INVALID_ARGUMENT",
            }
        }
    ],
    {
        "object": "error",
        "message": "Prompt contains 40046 tokens and 0 draft tokens, "
        "too large for model with 32768 maximum context length",
        "type": "invalid_request_error",
        "code": 3051,
    },
    {
        "object": "error",
        "message": "This model's maximum context length is 8192 tokens. However, you requested 27022 tokens "
        "(22926 in the messages, 4096 in the completion). Please reduce the length of the messages or completion.",
        "type": "BadRequestError",
        "param": None,
        "code": 400,
    },
    openai("The decoder prompt (length 5951) is longer than the maximum model length of 4096.", 400, "BadRequestError"),
    openai("Please reduce the length of the messages or completion.", "context_length_exceeded"),
    {
        "code": "Client specified an invalid argument",
        "error": "This model's maximum prompt length is 131072 but the request contains 149617 tokens.",
    },
    openai("This endpoint's maximum context length is 8192 tokens. However, you requested about 12000 tokens", 400),
]
NOT_ALLOWED = [
    openai("Your request was rejected as a result of our safety system.", "content_policy_violation"),
    openai("Invalid prompt: your prompt was flagged as potentially violating our usage policy.", "invalid_prompt"),
    openai(
        "The response was filtered due to the prompt triggering Azure OpenAI's content management policy.",
        "content_filter",
        None,
        status=400,
        innererror={"code": "ResponsibleAIPolicyViolation"},
    ),
    openai("…", None, None, innererror={"code": "ResponsibleAIPolicyViolation"}),
    {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": "Output blocked by content filtering policy"},
    },
    openai("Content Exists Risk", "invalid_request_error"),
    [{"error": {"code": 400, "message": "blocked", "status": "PROHIBITED_CONTENT"}}],
]


@pytest.mark.parametrize("body", TOO_LONG)
def test_too_long_in_the_words_of_each_provider(body):
    assert kind_of_refusal(400, body) == "context_window"


@pytest.mark.parametrize("body", NOT_ALLOWED)
def test_not_allowed_in_the_words_of_each_provider(body):
    assert kind_of_refusal(400, body) == "content_filter"


def test_xai_refuses_what_is_said_with_a_403():
    body = {
        "code": "The caller does not have permission to execute the specified operation",
        "error": "Content violates usage guidelines. Failed check: SAFETY_CHECK_TYPE_BIO",
    }
    assert kind_of_refusal(403, body) == "content_filter"


@pytest.mark.parametrize("status", [None, 200, 401, 404, 408, 409, 429, 500, 503])
def test_only_a_refusal_of_the_request_is_one(status):
    """Too many tokens a minute is a limit, and a provider's 5xx is its own."""
    for body in (*TOO_LONG, *NOT_ALLOWED):
        assert kind_of_refusal(status, body) is None


@pytest.mark.parametrize(
    "body",
    [
        None,
        "prompt is too long",
        [],
        [3],
        {},
        {"error": None},
        {"error": {}},
        {"error": {"message": None, "code": ["content_filter"]}},
        openai("Invalid 'temperature': decimal above maximum value.", "decimal_above_max_value"),
        openai("Invalid 'user': string too long. maximum context length is 64", "string_above_max_length"),
        openai("Invalid prompt: messages must not be empty", "invalid_prompt"),
        openai("Unknown field: 'content_filter'", "unknown_parameter"),
        openai("max_tokens is too large: 100000. This model supports at most 16384 completion tokens"),
        openai("x" * 5_000 + " prompt is too long"),
        {"type": "error", "error": {"type": "request_too_large", "message": "Request exceeds the maximum size"}},
        {"detail": "prompt is too long"},
    ],
)
def test_anything_else_is_none(body):
    assert kind_of_refusal(400, body) is None
