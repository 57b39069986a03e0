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

from nemo_agents.policy.guardrails import normalise
from nemo_agents.policy.guardrails.patterns import (
    BLOCK_AT,
    NATIVE,
    PATTERNS,
    SQUEEZED,
    STRUCTURAL,
    STRUCTURAL_NEEDS,
    WINDOW,
    Pattern,
)
from nemo_agents.policy.guardrails.prefilter import EVERYTHING, PREFILTER, Prefilter
from nemo_agents.policy.guardrails.values import Finding

__all__ = ["NAME", "detect", "detect_structural"]

NAME: Final = "prompt-injection-detect"
_HITS_MAX: Final = 64  # per pattern and text: enough for any window, bounded for any input
_NATIVE_NEEDS: Final = tuple(need for pattern in NATIVE for need in pattern.needs)


def detect(text: str, prefilter: Prefilter | None = PREFILTER) -> tuple[str, ...]:
    """Return the kinds of injection for which the text would be blocked, sorted; empty when it may pass.

    `prefilter` decides where to look closely and changes no answer; None looks everywhere.
    """
    shown = normalise.shown(text) if prefilter else None
    signs = prefilter.signs(shown.data) if prefilter and shown else EVERYTHING
    # of plain characters none becomes one of another script, but by lower case
    foreign = not text.isascii() if shown is None else shown.foreign and _needed(text.lower(), _NATIVE_NEEDS)
    if not (signs or foreign):
        return ()
    visible = normalise.visible(text, plain=shown is not None)
    native = normalise.native(visible.text) if signs.patterns or signs.structural or foreign else ""
    folded = normalise.folded(native)
    # words cut by invisible characters make every other sign weigh more
    extra = 1 if visible.split_words else 0
    if prefilter and shown is None:
        signs = prefilter.signs(folded.encode("utf-8", "surrogatepass"), extra=extra)
    kinds = {"hidden-text"} if visible.tags else set()
    kinds.update(pattern.kind for pattern in signs.structural if _matches(folded, pattern))
    readings: list[tuple[str, tuple[Pattern, ...], tuple[str, ...]]] = [(folded, signs.patterns, ())]
    if signs.encoded:
        readings.append((normalise.decoded(visible.text), (*PATTERNS, *STRUCTURAL), ("encoded",)))
    if signs.spaced:
        readings.append((normalise.squeezed(visible.text), SQUEEZED, ()))
    if foreign and not native.isascii():
        readings.append((native, NATIVE, ()))
    for reading, patterns, also in readings:
        if reading and (found := _over_threshold(reading, patterns, extra)):
            kinds.update(found, also, ("split-words",) if extra else ())
    return tuple(sorted(kinds))


def detect_structural(text: str) -> tuple[str, ...]:
    """Return the structural kinds only: for descriptions of tools, whose wording is often imperative."""
    # their literals have no white space: lower case is all that folding does to plain ASCII
    if text.isascii() and ";base64," not in text and ("<" not in text or not _needed(text.lower(), STRUCTURAL_NEEDS)):
        return ()
    visible = normalise.visible(text)
    folded = normalise.folded(normalise.native(visible.text))
    kinds = {"hidden-text"} if visible.tags else set()
    kinds.update(pattern.kind for pattern in STRUCTURAL if _matches(folded, pattern))
    return tuple(sorted(kinds))


def _needed(text: str, needs: Iterable[str]) -> bool:
    return any(need in text for need in needs)


def _matches(text: str, pattern: Pattern) -> bool:
    return _needed(text, pattern.needs) and pattern.regex.search(text) is not None


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
    if not _needed(text, pattern.needs):
        return
    for count, match in enumerate(pattern.regex.finditer(text)):
        if count >= _HITS_MAX:
            return
        yield Finding(rule=NAME, kind=pattern.kind, start=match.start(), end=match.end())
