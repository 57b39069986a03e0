"""The guardrails as one would write them without a thought for time: what the fast way is held to.

Every pattern is tried on the whole of every view of a text, and every guardrail walks over a request by itself.
"""

from __future__ import annotations

import base64
import binascii
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from nemo_agents.policy.guardrails import Outcome, Verdict, pii
from nemo_agents.policy.guardrails.digits import EVERY_KIND
from nemo_agents.policy.guardrails.engine import BUILTIN
from nemo_agents.policy.guardrails.normalise import _LOOK_ALIKES
from nemo_agents.policy.guardrails.patterns import BLOCK_AT, NATIVE, PATTERNS, SQUEEZED, STRUCTURAL, WINDOW, Pattern
from nemo_agents.policy.guardrails.texts import Source, rewrite
from nemo_agents.policy.guardrails.values import Finding

# Tag characters spell invisible ASCII (Unicode 16, 23.9); their one honest use is a flag after U+1F3F4.
_FLAG: Final = re.compile("\U0001f3f4[\U000e0020-\U000e007e]{1,8}\U000e007f")
_TAGS: Final = re.compile("[\U000e0000-\U000e007f]+")
_SELECTORS: Final = re.compile("[\U000e0100-\U000e01ef]{4,}")  # bytes smuggled as variation selectors
_ZERO_WIDTH: Final = re.compile("[\u00ad\u034f\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]+")
_SPLIT_WORD: Final = re.compile("[A-Za-z][\u00ad\u034f\u180e\u200b\u200c\u200d\u2060-\u2064\ufeff]+[A-Za-z]")
_SPACE: Final = re.compile(r"\s+")
_MARKS: Final = re.compile("[\u0300-\u036f]+")
_SPACED: Final = re.compile(r"(?<![^\W_])(?:[a-z0-9][ ._*|~-]{1,3}){7,}[a-z0-9](?![^\W_])")
_BETWEEN: Final = re.compile(r"[^a-z0-9]+")
_BASE64: Final = re.compile(r"(?<![A-Za-z0-9+/_=-])[A-Za-z0-9+/_-]{24,}={0,2}(?![A-Za-z0-9+/_=-])")
_DATA_URL: Final = re.compile(r"data:[\w/+.;=-]{0,200};base64,[A-Za-z0-9+/=_-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """The ways to read one text, all lower case.

    `folded` has single spaces and Latin letters where they were imitated; `native` is the same before
    folding, None for plain ASCII. `squeezed` are spaced-out words written together, `decoded`
    what base64 hid.
    """

    folded: str = field(repr=False)
    native: str | None = field(default=None, repr=False)
    squeezed: str = field(default="", repr=False)
    decoded: str = field(default="", repr=False)
    tags: bool = False
    split_words: bool = False


def normalise(text: str) -> Views:
    """Return every view of the text."""
    tags = split_words = False
    visible = _DATA_URL.sub(" ", text) if ";base64," in text else text
    if not text.isascii():
        without_flags = _FLAG.sub("", visible)
        hidden = "".join(_untag(match[0]) for match in _TAGS.finditer(without_flags))
        tags = _TAGS.search(without_flags) is not None or _SELECTORS.search(visible) is not None
        split_words = _SPLIT_WORD.search(visible) is not None
        # two ligatures that NFKC makes into 18 and 8 characters: no text should grow that much
        without_flags = without_flags.replace("\ufdfa", " ").replace("\ufdfb", " ")
        visible = _ZERO_WIDTH.sub("", _SELECTORS.sub("", _TAGS.sub("", without_flags)))
        visible = unicodedata.normalize("NFKC", f"{visible} {hidden}" if hidden else visible)
    native = _SPACE.sub(" ", visible.lower())
    folded = native if native.isascii() else _fold(native)
    spaced = visible.lower() if native is folded else _fold(visible.lower())
    return Views(
        folded=folded,
        native=None if native.isascii() else native,
        squeezed=" ".join(_BETWEEN.sub("", match[0]) for match in _SPACED.finditer(spaced)),
        decoded=_SPACE.sub(" ", " . ".join(_decode(visible)).lower()),
        tags=tags,
        split_words=split_words,
    )


def _untag(run: str) -> str:
    return "".join(chr(ord(c) - 0xE0000) for c in run if 0xE0020 <= ord(c) <= 0xE007E)


def _fold(text: str) -> str:
    return _MARKS.sub("", unicodedata.normalize("NFKD", text)).translate(_LOOK_ALIKES)


def _decode(text: str) -> Iterator[str]:
    """One round of base64 over long tokens; only what decodes to printable words counts."""
    for match in _BASE64.finditer(text):
        token = match[0].rstrip("=").translate({ord("-"): "+", ord("_"): "/"})
        try:
            plain = base64.b64decode(token + "=" * (-len(token) % 4), validate=True).decode()
        except (binascii.Error, ValueError):
            continue
        if " " in plain and all(c.isprintable() or c.isspace() for c in plain):
            yield plain


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
        yield Finding(rule="prompt-injection-detect", kind=pattern.kind, start=match.start(), end=match.end())


def find(text: str) -> list[Finding]:
    return pii._longest(list(pii._candidates(text, EVERY_KIND)), len(text))


class _Redactor(pii.Redactor):
    def redact(self, text: str) -> str:
        pieces, position = [], 0
        for finding in find(text):
            label = self._label(finding.kind, text[finding.start : finding.end])
            pieces += [text[position : finding.start], label]
            position = finding.end
        return "".join([*pieces, text[position:]])


def apply_both(body: dict[str, Any]) -> Outcome:
    redactor, found = _Redactor(), set()
    new = rewrite(body, lambda text, source: text if source is Source.FIXED else redactor.redact(text))

    def look(text: str, source: Source) -> str:
        if source in {Source.USER, Source.TOOL, Source.INPUT, Source.VALUE}:
            found.update(detect(text))
        elif source in {Source.DEFINITION, Source.FIXED}:
            found.update(detect_structural(text))
        return text

    rewrite(body, look)
    verdicts = tuple(
        Verdict(action=BUILTIN[name].action if kinds else "allow", guardrail=name, kinds=kinds)
        for name, kinds in ((pii.NAME, redactor.kinds), ("prompt-injection-detect", tuple(sorted(found))))
    )
    return Outcome(body=new, verdicts=verdicts, blocked=verdicts[1] if found else None)
