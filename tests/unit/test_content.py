from __future__ import annotations

import base64
import struct

import pytest

from nemo_agents.policy.content import AUDIO_TOKENS_PER_S, TEXT_ONLY, Content, content_boundable, content_of

PIXEL = "data:image/png;base64,iVBORw0KGgo="


def message(*parts):
    return {"messages": [{"role": "user", "content": list(parts)}]}


def wav(seconds, *, hz=8000, channels=1, bits=8, coding=1):
    rate = hz * channels * bits // 8
    head = (
        b"RIFF" + struct.pack("<I", 36) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, coding, channels, hz, rate, 1, bits)
    )
    return head + b"data" + struct.pack("<I", seconds * rate) + bytes(seconds * rate)


def sound(raw, coding):
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(raw).decode(), "format": coding}}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (message({"type": "image_url", "image_url": {"url": PIXEL}}), Content(images=1, media_bytes=len(PIXEL))),
        (
            message({"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}}),
            Content(images=1, images_low=1, media_bytes=len(PIXEL)),
        ),
        (message({"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "high"}}), Content(images=1)),
        (message({"type": "image_url", "image_url": PIXEL}), Content(images=1, media_bytes=len(PIXEL))),
        (
            message({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}),
            Content(images=1, media_bytes=4),
        ),
        (
            message(
                {"type": "tool_result", "content": [{"type": "image", "source": {"type": "base64", "data": "AAAA"}}]}
            ),
            Content(images=1, media_bytes=4),
        ),
        (
            message(
                {"type": "image", "source": {"type": "base64", "data": "AAAA"}},
                {
                    "type": "tool_result",
                    "content": [{"type": "image", "source": {"type": "base64", "data": "AAAAAAAA"}}],
                },
            ),
            Content(images=2, media_bytes=12),
        ),
        ({"system": [{"type": "text", "text": "t", "cache_control": {"ttl": "1h"}}]}, Content(long_cache=True)),
        ({"tools": [{"type": "bash_20250124", "cache_control": {"ttl": "1h"}}]}, Content(long_cache=True)),
        ({"service_tier": "standard_only", "messages": []}, Content(service_tier="standard_only")),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f", "detail": "low"}]}]},
            Content(images=1, images_low=1),
        ),
        (
            message({"type": "text", "text": "t", "cache_control": {"type": "ephemeral", "ttl": "1h"}}),
            Content(long_cache=True),
        ),
        (message({"type": "text", "text": "t", "cache_control": {"ttl": None}}), TEXT_ONLY),
        ({"service_tier": "Priority", "messages": []}, Content(service_tier="priority")),
        ({"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "wav"}}, Content(audio_output=True)),
    ],
)
def test_what_is_beside_text_is_counted(body, expected):
    assert content_of(body) == expected
    assert content_boundable(body) is None


@pytest.mark.parametrize(
    ("raw", "coding", "seconds"),
    [
        (wav(3), "wav", 3),
        (wav(2, hz=24_000, channels=2, bits=16), "wav", 2),
        (b"\xff\xf3" + bytes(9_998), "mp3", 10),
        (b"ID3\x04" + bytes(4_996), "mp3", 5),
    ],
)
def test_sound_is_bounded_by_its_length(raw, coding, seconds):
    """As many tokens as its seconds can be at the slowest rate of its coding, and a header's worth more at most."""
    found = content_of(message(sound(raw, coding)))
    assert found.unbounded is None
    assert seconds * AUDIO_TOKENS_PER_S <= found.audio_tokens <= seconds * AUDIO_TOKENS_PER_S + 2
    assert found.media_bytes == len(base64.b64encode(raw))


@pytest.mark.parametrize(
    "part",
    [
        sound(b"OggS" + bytes(500), "opus"),
        sound(b"fLaC" + bytes(500), "flac"),
        sound(b"OggS" + bytes(500), "mp3"),
        sound(b"OggS" + bytes(500), "wav"),
        sound(wav(1, coding=0x31), "wav"),  # a coding whose rate is not constant
        sound(wav(1, hz=0), "wav"),
        sound(b"", "mp3"),
        {"type": "input_audio", "input_audio": {"data": "no base64!", "format": "mp3"}},
        {"type": "input_audio", "input_audio": {"data": None, "format": "mp3"}},
        {"type": "input_audio", "input_audio": {"url": "https://x/y.mp3", "format": "mp3"}},
        {"type": "input_audio"},
    ],
)
def test_sound_of_unknown_length_is_not_bounded(part):
    assert content_boundable(message(part)) == "messages[0].content[0].input_audio"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
        {"type": "image_url", "image_url": {"url": PIXEL, "detail": 3}},
        {"type": "image_url", "image_url": {"url": 3, "detail": ["low"]}},
        {"type": "image_url", "image_url": None},
    ],
)
def test_an_image_elsewhere_needs_a_declared_detail(part):
    assert content_boundable(message(part)) == "messages[0].content[0].image_url"


def test_an_image_by_reference_in_anthropics_spelling_is_not_bounded():
    for source in ({"type": "url", "url": "https://x"}, {"type": "base64", "data": 3}, None):
        assert content_boundable(message({"type": "image", "source": source})) == "messages[0].content[0].image"


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": "text"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "t"}]}, {"role": "x", "content": None}]},
        {"messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": "1", "type": "function"}]}]},
        {"messages": [{"content": [{"type": "text", "text": "t", "cache_control": {"type": "ephemeral"}}]}]},
        {"messages": [], "tools": [{"type": "function", "function": {"name": "f"}}, {"name": "anthropic"}]},
        {"input": "text", "service_tier": "flex"},
        {"input": [1, 2, 3]},
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": "t"}]}]},
        {"input": [{"type": "function_call_output", "call_id": "1", "output": "42"}]},
        {"prompt": ["a", "b"], "modalities": ["text"], "audio": None},
        {"prompt": [[1, 2], [3]], "suffix": "end", "best_of": 2},
        {"system": [{"type": "text", "text": "t"}], "thinking": {"type": "enabled", "budget_tokens": 1024}},
        {
            "messages": [
                {"content": [{"type": "thinking", "signature": "s"}, {"type": "redacted_thinking", "data": "x"}]}
            ]
        },
        {"messages": [{"content": [{"type": "tool_result", "content": [{"type": "text", "text": "t"}]}]}]},
        {"tools": [{"type": None, "name": "f"}, {"type": "custom", "name": "g"}, {"type": "bash_20250124"}]},
        {"tools": [{"type": "text_editor_20250728"}, {"type": "memory_20250818"}, {"type": "computer_20250124"}]},
        {"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}, {"type": "clear_thinking_20251015"}]}},
        {"context_management": {}, "inference_geo": "global"},
        {"output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {}}}},
    ],
)
def test_text_is_boundable(body):
    assert content_boundable(body) is None


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (
            {"messages": [{"content": "t"}, {"content": [{"type": "image_url", "image_url": {"url": "https://x"}}]}]},
            "messages[1].content[0].image_url",
        ),
        (
            {"messages": [{"content": [{"type": "text"}, {"type": "image_url", "image_url": {"url": "data:,"}}]}]},
            "messages[0].content[1].image_url",
        ),
        ({"messages": [{"content": [{"type": "input_audio"}]}]}, "messages[0].content[0].input_audio"),
        ({"messages": [{"content": [{"type": "file", "file": {}}]}]}, "messages[0].content[0].file"),
        (
            {"messages": [{"content": [{"type": "tool_result", "content": [{"type": "image"}]}]}]},
            "messages[0].content[0].content[0].image",
        ),
        ({"messages": [{"content": [{"type": ["odd"]}]}]}, "messages[0].content[0]"),
        ({"messages": [{"content": {"type": "image_url"}}]}, "messages[0].content.image_url"),
        ({"tools": [{"type": {}}]}, "tools[0]"),
        ({"input": [{"type": []}]}, "input[0]"),
        ({"messages": [{"role": "assistant", "audio": {"id": "a"}}]}, "messages[0].audio"),
        ({"messages": [{"content": [{"cache_control": {"ttl": "24h"}}]}]}, "messages[0].content[0].cache_control"),
        ({"cache_control": {"ttl": 7}}, "cache_control"),
        ({"tools": [{"type": "function"}, {"type": "web_search"}]}, "tools[1]"),
        ({"tools": [{"type": "function", "cache_control": {"ttl": "1d"}}]}, "tools[0].cache_control"),
        ({"input": [{"type": "item_reference", "id": "i"}]}, "input[0]"),
        ({"input": [{"content": [{"type": "input_image"}]}]}, "input[0].content[0].input_image"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"previous_response_id": "r"}, "previous_response_id"),
        ({"web_search_options": {"search_context_size": "low"}}, "web_search_options"),
        ({"prediction": {"type": "content"}}, "prediction"),
        ({"models": ["a", "b"]}, "models"),
        ({"service_tier": ["odd"]}, "service_tier"),
        ({"modalities": ["text", "image"]}, "modalities"),
        ({"modalities": [["text"]]}, "modalities"),
        ({"modalities": ["text"], "audio": {"voice": "alloy"}}, "audio"),
        (
            {"messages": [{"content": [{"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AA"}}]}]},
            "messages[0].content[0].video_url",
        ),
        ({"system": [{"type": "image"}]}, "system[0].image"),
        ({"system": [{"type": "document", "source": {"type": "text", "data": "t"}}]}, "system[0].document"),
        ({"messages": [{"content": [{"type": "document", "source": {}}]}]}, "messages[0].content[0].document"),
        (
            {"messages": [{"content": [{"type": "tool_result", "content": [{"type": "document"}]}]}]},
            "messages[0].content[0].content[0].document",
        ),
        (
            {
                "messages": [
                    {"content": [{"type": "tool_result", "content": [{"type": "image", "source": {"type": "url"}}]}]}
                ]
            },
            "messages[0].content[0].content[0].image",
        ),
        ({"messages": [{"content": [{"type": "container_upload"}]}]}, "messages[0].content[0].container_upload"),
        (
            {"messages": [{"content": [{"type": "web_search_tool_result"}]}]},
            "messages[0].content[0].web_search_tool_result",
        ),
        ({"tools": [{"name": "f"}, {"type": "web_search_20250305"}]}, "tools[1]"),
        ({"tools": [{"type": "bash_20250124"}, {"type": "bash_code_execution_20250825"}]}, "tools[1]"),
        ({"tools": [{"type": "code_execution_20250825"}]}, "tools[0]"),
        ({"tools": [{"type": "tool_search_tool_bm25_20251119"}]}, "tools[0]"),
        ({"tools": [{"type": "mcp_toolset"}]}, "tools[0]"),
        ({"tools": [{"type": "computer_toolset_20260801"}]}, "tools[0]"),
        ({"fallbacks": [{"model": "m"}]}, "fallbacks"),
        ({"inference_geo": "us"}, "inference_geo"),
        ({"context_management": {"edits": [{"type": "clear_x"}, {"type": "compact_20260112"}]}}, "context_management"),
        ({"context_management": {"edits": {"type": ["clear_"]}}}, "context_management"),
        ({"context_management": [{"type": "compaction", "compact_threshold": 1000}]}, "context_management"),
        ({"context_management": "auto"}, "context_management"),
    ],
)
def test_what_text_does_not_bound_is_named(body, named):
    assert content_boundable(body) == named


BESIDE_TEXT = [
    "audio",
    "cached_content",
    "container",
    "conversation",
    "extra_body",
    "fallbacks",
    "inference_geo",
    "mcp_servers",
    "modalities",
    "models",
    "plugins",
    "prediction",
    "previous_response_id",
    "search_parameters",
    "speed",
    "web_search_options",
]


@pytest.mark.parametrize("field", BESIDE_TEXT)
@pytest.mark.parametrize("value", [{}, [], 0, False, ""], ids=repr)
def test_an_empty_switch_is_a_switch(field, value):
    """An empty `web_search_options` switches web search on: only null is as good as absent."""
    text = {"messages": [{"role": "user", "content": "t"}], "tools": []}
    assert content_boundable({**text, field: value}) == field
    assert content_boundable({**text, field: None}) is None


def test_a_spoken_answer_without_content_is_still_one():
    assert content_boundable({"messages": [{"role": "assistant", "audio": {}}]}) == "messages[0].audio"
    assert content_boundable({"messages": [{"role": "assistant", "audio": None}]}) is None


def test_content_nested_without_end_is_not_followed():
    content = [{"type": "text"}]
    for _ in range(5000):
        content = [{"type": "tool_result", "content": content}]
    named = content_boundable({"messages": [{"content": content}]})
    assert named is not None
    assert named.startswith("messages[0].content[0].content")
    assert len(named) < 100
