"""A text as a model would understand it: hidden characters out, look-alikes folded, simple encodings undone."""

from __future__ import annotations

import base64
import binascii
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

__all__ = ["Shown", "Visible", "decoded", "folded", "native", "one_space", "shown", "squeezed", "visible"]

# Tag characters spell invisible ASCII (Unicode 16, 23.9); their one honest use is a flag after U+1F3F4.
_FLAG: Final = re.compile("\U0001f3f4[\U000e0020-\U000e007e]{1,8}\U000e007f")
_TAGS: Final = re.compile("[\U000e0000-\U000e007f]+")
_SELECTORS: Final = re.compile("[\U000e0100-\U000e01ef]{4,}")  # bytes smuggled as variation selectors
_ZERO_WIDTH: Final = re.compile("[\u00ad\u034f\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]+")
_SPLIT_WORD: Final = re.compile("[A-Za-z][\u00ad\u034f\u180e\u200b\u200c\u200d\u2060-\u2064\ufeff]+[A-Za-z]")
_MARKS: Final = re.compile("[\u0300-\u036f]+")
# Letters that look like Latin ones (a selection of Unicode's confusables), after lower-casing.
_LOOK_ALIKES: Final = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u04bb\u0501\u051b\u0475\u043a\u043c\u0442\u0432\u043d\u0437"
    "\u03b1\u03b2\u03b3\u03b5\u03b7\u03b9\u03ba\u03bd\u03bf\u03c1\u03c4\u03c5\u03c7\u03c9\u0131\u0261\u2019\u2018\u02bc",
    "aeopcyxijshdqvkmtbh3abyenikvoptuxwig'''",
)
_SPACED: Final = re.compile(r"(?<![^\W_])(?:[a-z0-9][ ._*|~-]{1,3}){7,}[a-z0-9](?![^\W_])")
_BETWEEN: Final = re.compile(r"[^a-z0-9]+")
_BASE64_MIN: Final = 24
_BASE64: Final = re.compile(rf"(?<![A-Za-z0-9+/_=-])[A-Za-z0-9+/_-]{{{_BASE64_MIN},}}={{0,2}}(?![A-Za-z0-9+/_=-])")
_DATA_URL: Final = re.compile(r"data:[\w/+.;=-]{0,200};base64,[A-Za-z0-9+/=_-]*")


# Characters that are normalised and folded one by one: none is a combining mark, none composes with what follows, none
# is hidden, and Greek sigma is not among them, whose small form depends on its place.
_PLAIN: Final = (
    "\xa0-\xac\xae-\u02af\u0370-\u03a2\u03a4-\u03f8\u03fa-\u0482\u048a-\u052f\u2010-\u2027\u202f-\u205e\u20a0-\u20c0\u2100-\u218b"
    "\u2190-\u2bff\u3000-\u3029\u3030-\u303f\u3041-\u3096\u309b-\u30fe\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\ufe0f\uff01-\uff5e"
    "\U0001f1e6-\U0001f1ff\U0001f300-\U0001f3f3\U0001f3f5-\U0001faff"
)
_NOT_PLAIN: Final = re.compile(f"[^{_PLAIN}]")
_FOREIGN: Final = re.compile("[\u0400-\u052f\u3041-\u9fff]")  # scripts of `patterns.NATIVE`
_ASCII: Final = bytes(range(128))
_REPLACED_MAX: Final = 24  # from here on a translation of every character is faster than a replacement for each


@dataclass(frozen=True, slots=True, kw_only=True)
class Visible:
    """A text without what nobody sees, in NFKC; what was spelled by hidden characters is at its end."""

    text: str = field(repr=False)
    tags: bool = False
    split_words: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What `Prefilter` reads of a text; `foreign` says that some of it is in a script that folding garbles."""

    data: bytes = field(repr=False)
    foreign: bool = False


def visible(text: str, *, plain: bool = False) -> Visible:
    """Take data URLs and hidden characters out of a text and say which there were.

    A text that `shown` has found `plain` has neither.
    """
    if plain:
        return Visible(text=text if text.isascii() else unicodedata.normalize("NFKC", text))
    seen = _DATA_URL.sub(" ", text) if ";base64," in text else text
    if text.isascii():
        return Visible(text=seen)
    without_flags = _FLAG.sub("", seen)
    hidden = "".join(_untag(match[0]) for match in _TAGS.finditer(without_flags))
    tags = _TAGS.search(without_flags) is not None or _SELECTORS.search(seen) is not None
    split_words = _SPLIT_WORD.search(seen) is not None
    # two ligatures that NFKC makes into 18 and 8 characters: no text should grow that much
    without_flags = without_flags.replace("\ufdfa", " ").replace("\ufdfb", " ")
    seen = _ZERO_WIDTH.sub("", _SELECTORS.sub("", _TAGS.sub("", without_flags)))
    seen = unicodedata.normalize("NFKC", f"{seen} {hidden}" if hidden else seen)
    return Visible(text=seen, tags=tags, split_words=split_words)


def native(text: str) -> str:
    """Return a visible text in lower case with single spaces."""
    return one_space(text.lower())


def folded(text: str) -> str:
    """Return a native text with Latin letters where they were imitated and without accents."""
    return text if text.isascii() else _MARKS.sub("", unicodedata.normalize("NFKD", text)).translate(_LOOK_ALIKES)


def squeezed(text: str) -> str:
    """Return the spaced-out words of a visible text, each written together."""
    return " ".join(_BETWEEN.sub("", match[0]) for match in _SPACED.finditer(folded(text.lower())))


def decoded(text: str) -> str:
    """Return what base64 hides in a visible text, in lower case with single spaces."""
    # no white space is in a token: looking at long words only is faster than looking everywhere
    words = [word for word in text.split() if len(word) >= _BASE64_MIN]
    return one_space(" . ".join(plain for word in words for plain in _decode(word)).lower())


def one_space(text: str) -> str:
    """Return the text with one space for every run of white space."""
    words = " ".join(text.split())
    if not words:
        return " " if text else ""
    return f"{' ' if text[0].isspace() else ''}{words}{' ' if text[-1].isspace() else ''}"


def shown(text: str) -> Shown | None:
    """Return what `Prefilter` reads: folded where that makes ASCII of something, and no more than that.

    None when the text has to be made visible first: it has a data URL, hidden characters, or some whose normal form
    depends on others beside them.
    """
    if ";base64," in text:
        return None
    if text.isascii():
        return Shown(data=text.encode())
    # Without its ASCII a text is short, and so is the list of what to look at one by one.
    beyond = text.encode("utf-8", "surrogatepass").translate(None, _ASCII).decode("utf-8", "surrogatepass")
    if _NOT_PLAIN.search(beyond):
        return None
    changes = {char: new for char in set(beyond) if (new := _folded_char(char)) != char}
    if len(changes) > _REPLACED_MAX:
        text = text.translate({ord(char): new for char, new in changes.items()})
    else:
        for char, new in changes.items():
            text = text.replace(char, new)
    return Shown(data=text.encode(), foreign=_FOREIGN.search(beyond) is not None)


@lru_cache(maxsize=4096)
def _folded_char(char: str) -> str:
    """Fold a plain character; one of which that makes no ASCII stays, as its bytes are as good as any other's."""
    new = folded(native(unicodedata.normalize("NFKC", char)))
    return new if any(c.isascii() for c in new) else char


def _untag(run: str) -> str:
    return "".join(chr(ord(c) - 0xE0000) for c in run if 0xE0020 <= ord(c) <= 0xE007E)


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
