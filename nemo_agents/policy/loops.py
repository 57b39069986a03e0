"""Loops: the same request again and again within one run.

Two requests are the same when their normalised bodies are: same model, messages, tools and parameters. What differs
from call to call without changing what is asked for is left out or made alike: gateway fields, how the answer
is delivered, who asks, the seed, the ids that clients generate for tool calls, and white space at the ends of texts.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from nemo_agents.errors import Code
from nemo_agents.policy.budgets import LoopRule
from nemo_agents.policy.refusal import Refusal

__all__ = ["DIGEST_BYTES", "Repeats", "digest", "loop_refusal", "most_repeats", "normalised"]

DIGEST_BYTES: Final = 16
_REPEATS_KEPT_MAX: Final = 100_000
_NOT_ASKED_FOR: Final = frozenset(
    {
        "stream",
        "stream_options",
        "user",
        "safety_identifier",
        "prompt_cache_key",
        "metadata",
        "seed",
        "litellm_metadata",
    }
)
_GENERATED_IDS: Final = frozenset({"id", "tool_call_id", "call_id", "tool_use_id"})
_CONVERSATIONS: Final = ("messages", "input")
_TEXTS: Final = frozenset({"content", "text", "output"})
_encode = msgspec.json.Encoder(order="deterministic").encode


def normalised(body: Mapping[str, Any]) -> bytes:
    """Return the canonical JSON of what a request asks for; equal for two requests that are the same."""
    asked = {
        name: value.strip() if isinstance(value, str) else value
        for name, value in body.items()
        if name not in _NOT_ASKED_FOR and not name.startswith("nemo_")
    }
    names: dict[str, str] = {}
    for conversation in _CONVERSATIONS:
        items = asked.get(conversation)
        if isinstance(items, list):
            asked[conversation] = [_plain(item, names) for item in items]
    return _encode(asked)


def digest(body: Mapping[str, Any]) -> bytes:
    """Return 16 bytes that are equal for two requests exactly when they are the same (SHA-256 of the normalised)."""
    return hashlib.sha256(normalised(body)).digest()[:DIGEST_BYTES]


def _plain(item: Any, names: dict[str, str]) -> Any:
    """Return a message, or a part of one, with its generated ids numbered in the order in which they appear.

    What a tool is called with, or any other foreign object, is never looked into: an `id` there is content.
    """
    if isinstance(item, str):
        return item.strip()
    if not isinstance(item, dict):
        return item
    by_reference = item.get("type") == "item_reference"  # its id is what it says, not a name for it
    plain: dict[str, Any] = {}
    for key, value in item.items():
        if isinstance(value, str):
            if key in _GENERATED_IDS and not by_reference:
                plain[key] = names.setdefault(value, f"#{len(names)}")
            else:
                plain[key] = value.strip() if key in _TEXTS else value
        elif isinstance(value, list) and key in {"content", "tool_calls", "output"}:
            plain[key] = [_plain(part, names) for part in value]
        else:
            plain[key] = value
    return plain


def most_repeats(rule: LoopRule) -> int:
    """Return how often the same request may be made within the rule's time: the next one is the loop."""
    return max(1, rule.repeats - 1)


def loop_refusal(run: str, rule: LoopRule, forgotten_in_us: int) -> Refusal:
    """Return the refusal of the request that makes it a loop. `run` is `<fleet>/<run id>`.

    It says when the same request would pass again, but only to people: a client that waits and sends it again by
    itself would go on with the loop. How often it was refused is not counted, so the count is the least.
    """
    forgotten_in_ms = max(1, -(-forgotten_in_us // 1000))
    run_id = run.rpartition("/")[2]
    return Refusal(
        status=429,
        code=Code.LOOP_DETECTED,
        message=(
            f"The run {run_id} sent the same request (same model, messages, tools and parameters) at least "
            f"{most_repeats(rule) + 1} times within {rule.within_s} s: its agent seems to be in a loop. Change the "
            f"request or end the run; the limit forgets this request in {forgotten_in_ms / 1000:g} s."
        ),
        scope="run",
        limit="loop",
    )


class Repeats:
    """When each request of each run was last made, in memory.

    What nobody repeated within its rule's time is forgotten, and beyond a hundred thousand requests also that which
    has not been repeated for longest. A clock that steps back is read as standing still.
    """

    __slots__ = ("_kept_max", "_made", "_now_us")

    def __init__(self, kept_max: int = _REPEATS_KEPT_MAX) -> None:
        self._kept_max = kept_max
        self._made: OrderedDict[tuple[str, bytes], tuple[int, tuple[int, ...]]] = OrderedDict()
        self._now_us = 0

    def __len__(self) -> int:
        return len(self._made)

    def note(self, now_us: int, run: str, body_digest: bytes, rule: LoopRule) -> Refusal | None:
        """Note a request; return the refusal if it makes a loop. A refused one is not noted, except in mode shadow."""
        retry_from_us, now_us = now_us, max(now_us, self._now_us)
        self._forget(now_us)
        key = (run, body_digest)
        most, within_us = most_repeats(rule), rule.within_s * 1_000_000
        made = self._made.get(key, (0, ()))[1]
        refusal = None
        if len(made) >= most and made[-most] + within_us > now_us:
            refusal = loop_refusal(run, rule, made[-most] + within_us - retry_from_us)
            if rule.mode != "shadow":
                return refusal
        self._made[key] = (now_us + within_us, (*made, now_us)[-most:])
        self._made.move_to_end(key)
        if len(self._made) > self._kept_max:
            self._made.popitem(last=False)
        return refusal

    def _forget(self, now_us: int) -> None:
        self._now_us = now_us
        while self._made:
            oldest = next(iter(self._made))
            if self._made[oldest][0] > now_us:
                return
            del self._made[oldest]
