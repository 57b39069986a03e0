"""A text as a model would understand it: hidden characters out, look-alikes folded, simple encodings undone."""

from __future__ import annotations

import base64
import binascii
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

__all__ = ["Views", "normalise"]

# Tag characters spell invisible ASCII (Unicode 16, 23.9); their one honest use is a flag after U+1F3F4.
_FLAG: Final = re.compile("\U0001f3f4[\U000e0020-\U000e007e]{1,8}\U000e007f")
_TAGS: Final = re.compile("[\U000e0000-\U000e007f]+")
_SELECTORS: Final = re.compile("[\U000e0100-\U000e01ef]{4,}")  # bytes smuggled as variation selectors
_ZERO_WIDTH: Final = re.compile("[\u00ad\u034f\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]+")
_SPLIT_WORD: Final = re.compile("[A-Za-z][\u00ad\u034f\u180e\u200b\u200c\u200d\u2060-\u2064\ufeff]+[A-Za-z]")
_SPACE: Final = re.compile(r"\s+")
_MARKS: Final = re.compile("[\u0300-\u036f]+")
# Letters that look like Latin ones (a selection of Unicode's confusables), after lower-casing.
_LOOK_ALIKES: Final = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u04bb\u0501\u051b\u0475\u043a\u043c\u0442\u0432\u043d\u0437"
    "\u03b1\u03b2\u03b3\u03b5\u03b7\u03b9\u03ba\u03bd\u03bf\u03c1\u03c4\u03c5\u03c7\u03c9\u0131\u0261\u2019\u2018\u02bc",
    "aeopcyxijshdqvkmtbh3abyenikvoptuxwig'''",
)
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
