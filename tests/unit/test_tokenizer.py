from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_agents.gateway.tokenizer import LONG_TEXT_BYTES, InputBounds, encoding_of
from nemo_agents.policy.pricing import bytes_read, input_tokens_bound

unhurried = settings(deadline=None)  # a busy machine is not a failure


@pytest.fixture(scope="module")
def bounds():
    pytest.importorskip("bpe_openai", reason="the extra `tokenizer` is not installed")
    found = InputBounds("tokenizer")
    found.load()
    return found


def chat(*texts):
    return {"messages": [{"role": "user", "content": text} for text in texts]}


def bound(bounds, body, *, provider="openai", model="gpt-4o"):
    return bounds.input_tokens(provider, model, body, bytes_read(body))


_texts = st.lists(
    st.one_of(
        st.text(max_size=300),
        st.text(st.sampled_from("abc \n\t\"\\'{}<|>012\u00e9\u4e2d\U0001f600"), max_size=300),
        st.binary(max_size=200).map(lambda raw: raw.decode("latin-1")),
        st.sampled_from(["the quick brown fox ", "<|endoftext|>", "\x00", "a\u0300", "    ", "\r\n"]).map(
            lambda t: t * 40
        ),
    ),
    max_size=4,
)


@unhurried
@given(_texts, st.sampled_from(["gpt-4o", "gpt-4", "gpt-99"]))
def test_the_bound_is_above_the_count_and_never_above_the_bytes(bounds, texts, model):
    """More than the tokens of every text and what frames them; at most the bound by bytes, which is proven."""
    body = chat(*texts)
    found = bound(bounds, body, model=model)
    assert found <= input_tokens_bound(body)
    counter = bounds._counters[encoding_of("openai", model) or "o200k_base"]
    assert found >= sum(counter.count(text) for text in texts) + 4 * len(texts) + 3


def test_a_count_lowers_the_bound(bounds):
    body = chat("A budget is a promise about money that nobody has spent yet. " * 20)
    assert bound(bounds, body) < input_tokens_bound(body) / 2
    for provider, model in (("anthropic", "claude-sonnet-4-5"), ("openai", "gpt-99"), ("groq", "gpt-4o")):
        assert bound(bounds, body, provider=provider, model=model) == input_tokens_bound(body)


def test_what_is_no_text_and_what_is_long_is_bounded_by_bytes(bounds):
    odd = chat("\ud800" * 100)
    assert bound(bounds, odd) == input_tokens_bound(odd)
    long = chat("word " * LONG_TEXT_BYTES)
    assert bound(bounds, long) == input_tokens_bound(long)
    picture = "data:image/png;base64," + "A" * LONG_TEXT_BYTES
    seen = {"messages": [{"content": [{"type": "image_url", "image_url": {"url": picture}}]}]}
    size = bytes_read(seen) - len(picture)
    assert bounds.input_tokens("openai", "gpt-4o", seen, size) == input_tokens_bound(seen, size)


@pytest.mark.parametrize(
    ("provider", "model", "encoding"),
    [
        ("openai", "gpt-4o-mini-2024-07-18", "o200k_base"),
        ("openai", "GPT-4.1-nano", "o200k_base"),
        ("openai", "ft:gpt-4o-mini:org::id", "o200k_base"),
        ("openai", "o3-mini", "o200k_base"),
        ("azure", "gpt-5", "o200k_base"),
        ("openai", "gpt-5.9", None),
        ("openai", "gpt-4-turbo", "cl100k_base"),
        ("openai", "gpt-3.5-turbo-0125", "cl100k_base"),
        ("openai", "text-embedding-3-small", "cl100k_base"),
        ("openai", "gpt-40", None),
        ("openai", "whatever", None),
        ("mistral", "gpt-4o", None),
    ],
)
def test_whose_tokenizer_is_known(provider, model, encoding):
    assert encoding_of(provider, model) == encoding


def test_bytes_alone_load_nothing_and_bound_all():
    strict = InputBounds("bytes")
    strict.load()
    assert not strict.wanted
    body = chat("some text " * 50)
    assert bound(strict, body) == input_tokens_bound(body)


def test_without_the_package_auto_means_bytes_and_tokenizer_says_what_is_missing(monkeypatch):
    for name in ("bpe_openai", "bpe_openai._bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    assert not InputBounds("auto").wanted
    demanding = InputBounds("tokenizer")
    with pytest.raises(ImportError):
        demanding.load()
    body = chat("text")
    assert bound(demanding, body) == input_tokens_bound(body)
