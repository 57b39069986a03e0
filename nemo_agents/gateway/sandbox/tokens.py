"""How the sandbox counts: a fixed rule of thumb over UTF-8, not a tokenizer.

A text is a quarter of its bytes, rounded up; a message costs 4 more and the reply's start 3, as in OpenAI's published
recipe for counting chat messages. A prompt never counts more tokens than its messages have bytes as JSON.
"""

from __future__ import annotations

import json
from typing import Any, Final

__all__ = ["count", "count_prompt", "dump", "take"]

_PER_MESSAGE: Final = 4
_PRIMING: Final = 3
_IMAGE: Final = 85  # OpenAI's price of a low-detail image


def dump(value: Any) -> str:
    """Return compact JSON. Raises ValueError for NaN and infinities."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def count(text: str) -> int:
    """Return the tokens of a text."""
    return -(-_size(text) // 4)


def take(text: str, tokens: int) -> str:
    """Return the longest beginning of a text that is no more than so many tokens."""
    return text.encode("utf-8", "replace")[: tokens * 4].decode("utf-8", "ignore")


def count_prompt(messages: list[dict[str, Any]], tools: Any = None) -> int:
    """Return the tokens of a chat prompt with its tools."""
    total = _PRIMING + (count(dump(tools)) if tools else 0)
    total += sum(_PER_MESSAGE + _message(message) for message in messages)
    return min(total, _size(dump(messages)))


def _message(message: dict[str, Any]) -> int:
    total = _content(message.get("content")) + sum(
        count(value) for key in ("name", "refusal") if isinstance(value := message.get(key), str)
    )
    return total + sum(count(dump(message[key])) for key in ("tool_calls", "function_call") if message.get(key))


def _content(content: Any) -> int:
    if isinstance(content, str):
        return count(content)
    if not isinstance(content, list):
        return 0
    return sum(count(p["text"]) if isinstance(p.get("text"), str) else _IMAGE for p in content if isinstance(p, dict))


def _size(text: str) -> int:
    return len(text.encode("utf-8", "replace"))
