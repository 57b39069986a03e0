"""The events of the providers' streams, and the pace of those that come bit by bit."""

from __future__ import annotations

import json
from typing import Final

MARK: Final = "first-token"
"""The text of the first token: where it is seen, the first token has arrived, however a server wraps it."""
FIRST_S: Final = 0.05
"""How long the provider thinks before the first token."""
GAP_S: Final = 0.025
PIECES: Final = 20
WHOLE_S: Final = FIRST_S + (PIECES - 1) * GAP_S
"""How long a stream takes at least."""


def events(pieces: int) -> list[bytes]:
    """Return a stream of so many tokens: the role and the first of them at once, the last with end and usage."""
    tokens = [MARK, *(f" word-{number}" for number in range(1, pieces))]
    found = [_chunk({"content": token}) for token in tokens]
    found[0] = _chunk({"role": "assistant", "content": ""}) + found[0]
    usage = {"prompt_tokens": 180, "completion_tokens": pieces, "total_tokens": 180 + pieces}
    found[-1] += _chunk({}, finish_reason="stop") + _event({"choices": [], "usage": usage}) + b"data: [DONE]\n\n"
    return found


def _chunk(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
    return _event({"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]})


def _event(fields: dict[str, object]) -> bytes:
    base = {"id": "chatcmpl-bench", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": "gpt-bench"}
    return b"data: " + json.dumps(base | fields).encode() + b"\n\n"
