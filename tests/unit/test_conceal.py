"""Credentials are not in what a provider says went wrong."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_agents.gateway.upstream.conceal import Concealed, conceal, in_environment, spellings

KEY = "sk-provider/canary+0123456789"


async def pieces_of(raw: bytes, sizes: list[int]):
    at = 0
    for size in sizes:
        yield raw[at : at + size]
        at += size
    yield raw[at:]


async def told(raw: bytes, sizes: list[int], *values: str) -> bytes:
    return b"".join([piece async for piece in Concealed(pieces_of(raw, sizes), spellings(values))])


@pytest.mark.parametrize(
    "said",
    [
        f"Incorrect API key provided: {KEY}.",
        json.dumps({"headers": {"authorization": f"Bearer {KEY}"}}),
        json.dumps({"key": KEY}).replace("/", "\\/"),
        "GET https://api.example.com/models?key=sk-provider%2Fcanary%2B0123456789",
    ],
)
async def test_a_key_is_concealed_in_every_spelling(said):
    answer = (await told(said.encode(), [], f"Bearer {KEY}")).decode()
    assert "canary" not in answer
    assert "[concealed]" in answer


@given(st.binary(max_size=60), st.binary(max_size=60), st.lists(st.integers(0, 40), max_size=12))
async def test_a_key_is_concealed_wherever_the_chunks_are_cut(before, after, sizes):
    """What is around it comes back byte by byte, whether it is text or not."""
    assert await told(before + KEY.encode() + after, sizes, KEY) == before + b"[concealed]" + after


@given(st.binary(max_size=200), st.lists(st.integers(0, 40), max_size=12))
async def test_what_holds_no_key_stays_as_it_is(raw, sizes):
    assert await told(raw, sizes, KEY) == raw


def test_a_short_value_is_no_secret():
    assert spellings(["Bearer x", "", "no-store"[:7]]) == ()


def test_the_environments_secrets_are_told_by_their_names():
    credentials = in_environment(
        {"GEMINI_API_KEY": "AIza-canary-1", "HOME": "/home/somebody", "AWS_SECRET_ACCESS_KEY": KEY}
    )
    assert conceal(f"AIza-canary-1 {KEY} /home/somebody", credentials) == "[concealed] [concealed] /home/somebody"


async def test_closing_closes_the_body():
    closed = []

    async def body():
        try:
            yield b"12345678901234567890"
        finally:
            closed.append(True)

    concealed = Concealed(body(), ("12345678",))
    assert await anext(concealed)
    await concealed.aclose()
    assert closed == [True]
