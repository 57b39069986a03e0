"""A nearer bound on a prompt's tokens than its bytes, for the models whose tokenizer is at hand.

`bpe-openai` (the extra `tokenizer`) ships the tables of OpenAI's tokenizers: 75 MB, and about a second to load, which
a thread does at the start. Until then, without the package, for every other model, and for long texts, the number of
bytes is the bound, which is proven; a count only ever lowers it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final, Literal, Protocol

from nemo_agents.policy.pricing import input_tokens_bound
from nemo_agents.policy.requestsize import framing_tokens, text_read

__all__ = ["TOKENIZED", "InputBound", "InputBounds", "installed"]

InputBound = Literal["auto", "bytes", "tokenizer"]

TOKENIZED: Final = frozenset({"openai", "azure"})
"""The providers of the models whose tokenizer is at hand."""
LONG_TEXT_BYTES: Final = 64 * 1024
"""Counting takes about 20 microseconds a kilobyte: more text than this would hold up every other call."""
_SLACK_PERCENT: Final = 115
_SLACK_TOKENS: Final = 64
# Models that OpenAI publishes the tokenizer of (tiktoken's table of models); fine-tuned ones have their base's.
_O200K: Final = re.compile(r"(?:ft:)?(?:gpt-4o|gpt-4\.1|gpt-4\.5|gpt-5(?!\.)|chatgpt-4o|o1|o3|o4-mini)(?![0-9a-z])")
_CL100K: Final = re.compile(
    r"(?:ft:)?(?:gpt-4|gpt-3\.5-turbo|text-embedding-3-(?:small|large)|text-embedding-ada-002)(?![0-9a-z.])"
)


class _Counter(Protocol):
    def count(self, text: str) -> int: ...


def installed() -> bool:
    """Say whether the tokenizer's package is there, without loading it."""
    return find_spec("bpe_openai") is not None


class InputBounds:
    """Bounds the input of requests in one `mode`: `bytes`, `tokenizer`, or `auto` (the tokenizer if installed)."""

    def __init__(self, mode: InputBound = "auto") -> None:
        self._wanted = mode == "tokenizer" or (mode == "auto" and installed())
        self._counters: dict[str, _Counter] = {}

    @property
    def wanted(self) -> bool:
        """Whether there is something to load."""
        return self._wanted

    def load(self) -> None:
        """Load the tables; takes a second, so call it in a thread. Raises ImportError without the package."""
        if not self._wanted or self._counters:
            return
        # The compiled part alone: the package's own front keeps a second copy of every table, in Python objects.
        package = import_module("bpe_openai._bindings")
        self._counters = {name: package.tokenizer_for_encoding(name) for name in ("o200k_base", "cl100k_base")}

    def input_tokens(self, provider: str, model: str, body: Mapping[str, Any], size: int) -> int:
        """Return more tokens than the request's text can be for this model; `size` is its bytes (`bytes_read`).

        Never more than the bound by bytes, and never slow: a long text is bounded by its bytes.
        """
        by_bytes = input_tokens_bound(body, size)
        counter = self._counters.get(encoding_of(provider, model) or "")
        if counter is None or size > LONG_TEXT_BYTES:
            return by_bytes
        try:
            text = text_read(body)
        except UnicodeError:  # lone surrogates are no text
            return by_bytes
        if len(text) > LONG_TEXT_BYTES:  # with images and sound, which `size` may leave out
            return by_bytes
        counted = counter.count(text)
        return min(by_bytes, -(-counted * _SLACK_PERCENT // 100) + _SLACK_TOKENS + framing_tokens(body))


def encoding_of(provider: str, model: str) -> str | None:
    """Return the name of a model's tokenizer, None where it is not known; only OpenAI says which model has which."""
    if provider not in TOKENIZED:
        return None
    name = model.lower()
    if _O200K.match(name):
        return "o200k_base"
    return "cl100k_base" if _CL100K.match(name) else None
