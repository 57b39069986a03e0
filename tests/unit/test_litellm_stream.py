"""A stream of LiteLLM's is let go of however its reader leaves it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nemo_agents.gateway.ports import ProviderRequest, ProviderResponse
from nemo_agents.gateway.upstream.litellm_provider import LiteLlmProvider

# As much of the package as a call touches: `acompletion` returns an iterator of chunks around the far side's stream.
PACKAGE = """
telemetry = True
input_callback, success_callback, failure_callback, callbacks = [], [], [], []
closed = []


class _Stream:
    def __init__(self, words, how):
        self._words = iter(words)
        setattr(self, how, self._close)

    def __aiter__(self):
        return self

    async def __anext__(self):
        word = next(self._words, None)
        if word is None:
            raise StopAsyncIteration
        return word

    async def _close(self):
        closed.append(self)


class _Chunk:
    def __init__(self, word):
        self._word = word

    def model_dump(self, **_):
        return {"id": "c", "choices": [{"index": 0, "delta": {"content": self._word}}]}


class _Answer:
    chunks = ()
    received_finish_reason = None

    def __init__(self, stream):
        self.completion_stream = stream

    def __aiter__(self):
        return self

    async def __anext__(self):
        return _Chunk(await anext(self.completion_stream))


async def acompletion(*, model, **_):
    return _Answer(_Stream(["one", "two"], model))
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A package of that name and a release that is not known for anything."""
    (tmp_path / "litellm.py").write_text(PACKAGE)
    info = tmp_path / "litellm-9.9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: litellm\nVersion: 9.9.9\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "litellm", raising=False)
    for name in ("LITELLM_LOCAL_MODEL_COST_MAP", "LITELLM_MODE"):
        monkeypatch.setenv(name, "set by the test, and taken back after it")


async def opened(how: str) -> tuple[ProviderResponse, list[Any]]:
    """Begin a stream whose far side is closed in this way; return it, and what has been closed."""
    provider = LiteLlmProvider()
    body = b'{"model": "%b", "messages": [], "stream": true}' % how.encode()
    response = await provider.send(ProviderRequest(path="/chat/completions", body=body, stream=True))
    closed: list[Any] = provider._module.closed
    return response, closed


@pytest.mark.parametrize("how", ["aclose", "close"])
@pytest.mark.parametrize("events", [0, 1, 3])
@pytest.mark.usefixtures("package")
async def test_the_far_side_is_closed_whenever_the_reader_leaves(how: str, events: int) -> None:
    response, closed = await opened(how)
    for _ in range(events):
        assert (await anext(response.chunks)).startswith(b"data: ")
    await response.aclose()
    assert closed
