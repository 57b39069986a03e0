"""Known patterns of prompt injection, scored.

Honesty: this detects known patterns; it is not a protection. Measured on texts that no pattern was written from:

=====================================================  ==========  =========
text                                                   texts       blocked
=====================================================  ==========  =========
attacks, bastioncorpus 0.6.0                           118         33 %
jailbreak seeds, spikee 0.9.2                          69          19 %
honest look-alikes of attacks, bastioncorpus 0.6.0     63          0
package documentation, first 8,000 characters          63          0
Python source code, first 8,000 characters             1,200       1
=====================================================  ==========  =========

So it stays silent on most attacks it does not know, by design: a guardrail that cries wolf gets switched off. The few
structural rules (invisible tag characters, chat-template role tokens) are exact and block by themselves. An attack that
is split over several messages or parts, translated, or put in an image is not seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from nemo_agents.policy.guardrails.normalise import Views, normalise
from nemo_agents.policy.guardrails.patterns import (
    BLOCK_AT,
    NATIVE,
    PATTERNS,
    SQUEEZED,
    STRUCTURAL,
    WINDOW,
    Pattern,
)
from nemo_agents.policy.guardrails.values import Finding

__all__ = ["NAME", "detect", "detect_structural"]

NAME: Final = "prompt-injection-detect"
_HITS_MAX: Final = 64  # per pattern and text: enough for any window, bounded for any input


def detect(text: str) -> tuple[str, ...]:
    """Return the kinds of injection for which the text would be blocked, sorted; empty when it may pass."""
    views = normalise(text)
    kinds = set(_structural(views))
    # words cut by invisible characters make every other sign weigh more
    extra = 1 if views.split_words else 0
    readings = [
        (views.folded, PATTERNS, ()),
        (views.decoded, (*PATTERNS, *STRUCTURAL), ("encoded",)),
        (views.squeezed, SQUEEZED, ()),
    ]
    if views.native is not None:
        readings.append((views.native, NATIVE, ()))
    for reading, patterns, also in readings:
        if reading and (found := _over_threshold(reading, patterns, extra)):
            kinds.update(found, also, ("split-words",) if extra else ())
    return tuple(sorted(kinds))


def detect_structural(text: str) -> tuple[str, ...]:
    """Return the structural kinds only: for descriptions of tools, whose wording is often imperative."""
    return tuple(sorted(set(_structural(normalise(text)))))


def _structural(views: Views) -> Iterator[str]:
    if views.tags:
        yield "hidden-text"
    for pattern in STRUCTURAL:
        if any(need in views.folded for need in pattern.needs) and pattern.regex.search(views.folded):
            yield pattern.kind


def _over_threshold(text: str, patterns: Iterable[Pattern], extra: int) -> set[str]:
    """Return the kinds in the first WINDOW characters whose distinct patterns weigh enough together."""
    hits = sorted(
        ((hit.start, n, pattern) for n, pattern in enumerate(patterns) for hit in _hits(text, pattern)),
        key=lambda hit: hit[:2],
    )
    first = 0
    for last, (end, _, _) in enumerate(hits):
        while end - hits[first][0] > WINDOW:
            first += 1
        near = {number: pattern for _, number, pattern in hits[first : last + 1]}
        if extra + sum(pattern.weight for pattern in near.values()) >= BLOCK_AT:
            return {pattern.kind for pattern in near.values()}
    return set()


def _hits(text: str, pattern: Pattern) -> Iterator[Finding]:
    if not any(need in text for need in pattern.needs):
        return
    for count, match in enumerate(pattern.regex.finditer(text)):
        if count >= _HITS_MAX:
            return
        yield Finding(rule=NAME, kind=pattern.kind, start=match.start(), end=match.end())
