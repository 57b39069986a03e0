"""What of a text is worth a closer look: every pattern, made wider, in one automaton that reads it once.

A widened pattern matches wherever the exact one would and costs a few nanoseconds a byte: RE2 reads each byte once,
whatever the text, where the `re` module tries every pattern at every place. The exact patterns run only for what is
suspected, so verdicts do not depend on whether RE2 is installed; without it, everything is suspected.

A widened pattern reads UTF-8 of a text that has not been normalised any further than `normalise.shown` does: any white
space stands for one space, capital letters for small ones, and every byte of a character beyond ASCII for a letter.
RE2 has no assertions but word boundaries; the only one in use, at the end of a pattern, is left out.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from nemo_agents.policy.guardrails.patterns import BLOCK_AT, PATTERNS, STRUCTURAL, Pattern

__all__ = ["EVERYTHING", "PREFILTER", "Prefilter", "Signs", "widened"]

_BASE64: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/_-"
_WHITE: Final = r"\t-\r\x1c-\x20"  # what `\s` is in ASCII
_BEYOND_ASCII: Final = r"\x80-\xff"
_TOKEN: Final = re.compile(
    r"(?P<ahead>\(\?=[^\n]*\$\)\Z)|(?P<set>\[\^?\]?(?:\\.|[^\]\\])*\])|(?P<escape>\\.)|(?P<count>\{\d+,\d+\})"
    r"|(?P<open>\((?:\?:)?)|(?P<close>\))|(?P<some>[?*+|])|(?P<char>.)",
    re.DOTALL,
)
_ENCODING: Final = bytes.maketrans(_BASE64, b"a" * len(_BASE64))
_LONG: Final = b"a" * 24  # what base64 needs
_SPACED: Final = rf"(?:[a-z0-9](?:[._*|~-]|[{_WHITE}]+){{1,3}}){{7}}[a-z0-9]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Signs:
    """What may be in a text: patterns, structural patterns, base64, spaced-out words. Never what is surely not."""

    patterns: tuple[Pattern, ...] = ()
    structural: tuple[Pattern, ...] = ()
    encoded: bool = False
    spaced: bool = False

    def __bool__(self) -> bool:
        return bool(self.patterns or self.structural or self.encoded or self.spaced)


EVERYTHING: Final = Signs(patterns=PATTERNS, structural=STRUCTURAL, encoded=True, spaced=True)
_NOTHING: Final = Signs()
_ENCODED: Final = Signs(encoded=True)


def widened(regex: str) -> str:
    """Return a pattern of RE2 that matches where the given one does, on a text before it is normalised.

    Understands what the patterns of `prompt-injection-detect` are written with and no more.
    """
    parts: list[str] = []
    # Whether what was just read may end with a letter of any script, or hold one: RE2 knows a boundary only beside
    # letters of ASCII, so a boundary is left out there. `before` is the same in front of what was just read.
    before = any_script = False
    groups: list[tuple[bool, int]] = []
    for token in _TOKEN.finditer(regex):
        piece = token[0]
        match token.lastgroup:
            case "ahead":
                continue
            case "escape" if piece == r"\b":
                parts += [] if any_script else [piece]
            case "set":
                before, any_script = any_script, piece.startswith("[^") or r"\w" in piece
                parts.append(_widened_set(piece))
            case "escape" if piece == r"\w":
                before, any_script = any_script, True
                parts.append(rf"[\w{_BEYOND_ASCII}]")
            case "count":
                any_script |= before
                parts.append("+" if piece.startswith("{1,") else _widened_count(piece, parts[-1]))
            case "open":
                groups.append((any_script, len(parts)))
                parts.append(piece)
            case "close":
                before, start = groups.pop()
                any_script = any(_BEYOND_ASCII in part or "[^" in part for part in parts[start:])
                parts.append(piece)
            case "some":
                any_script |= before
                parts.append(piece)
            case _:
                before, any_script = any_script, False
                parts.append(rf"(?:[{_WHITE}]+)" if piece == " " else piece)
    return "".join(parts)


def _widened_set(piece: str) -> str:
    inner = piece[1:-1]
    if inner.startswith("^"):  # a run of white space was one character of those it lets through
        return piece if r"\s" in inner else f"(?:[{_WHITE}]+|[{inner}{_WHITE}])"
    inner = inner.replace(r"\w", rf"\w{_BEYOND_ASCII}")
    return f"(?:[{_WHITE}]+|[{inner.replace(' ', '')}])" if " " in inner else f"[{inner}]"


def _widened_count(piece: str, counted: str) -> str:
    """Leave the count of groups, which keeps what is wide apart; of single characters there may be any number."""
    return piece if counted == ")" else "*"


class Prefilter:
    """Widened patterns, compiled. `compiled` makes a search of a pattern, as RE2's `compile` with its options does."""

    __slots__ = ("_one", "_spaced", "_strong", "_weak")

    def __init__(self, compiled: Callable[[str], Callable[[bytes], Any]]) -> None:
        # Weak patterns on their own do not block. Two automatons have far fewer states than one for both.
        heavy = [pattern for pattern in (*PATTERNS, *STRUCTURAL) if pattern.weight >= BLOCK_AT]
        light = [pattern for pattern in PATTERNS if pattern.weight < BLOCK_AT]
        self._one = {id(pattern): compiled(widened(pattern.regex.pattern)) for pattern in (*PATTERNS, *STRUCTURAL)}
        self._strong = compiled(_either(heavy))
        self._weak = compiled(f"{_either(light)}|{_SPACED}")
        self._spaced = compiled(_SPACED)

    def signs(self, shown: bytes, *, extra: int = 0) -> Signs:
        """Return what may be in a text; `extra` is the weight that it has whatever its patterns weigh."""
        strong, weak = self._strong(shown), self._weak(shown)
        encoded = _LONG in shown.translate(_ENCODING)
        if not (strong or weak):
            return _ENCODED if encoded else _NOTHING
        among = [pattern for pattern in PATTERNS if (strong if pattern.weight >= BLOCK_AT else weak)]
        found = tuple(pattern for pattern in among if self._one[id(pattern)](shown))
        return Signs(
            patterns=found if extra + sum(pattern.weight for pattern in found) >= BLOCK_AT else (),
            structural=tuple(pattern for pattern in STRUCTURAL if self._one[id(pattern)](shown)) if strong else (),
            encoded=encoded,
            spaced=weak is not None and self._spaced(shown) is not None,
        )


def _either(patterns: Sequence[Pattern]) -> str:
    return "|".join(f"(?:{widened(pattern.regex.pattern)})" for pattern in patterns)


def _with_re2() -> Prefilter | None:
    try:
        re2 = importlib.import_module("re2")
    except ImportError:
        return None
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1  # bytes as they are
    options.case_sensitive = False
    options.never_capture = True
    options.log_errors = False  # an automaton that grows too large gives way to a slower way to the same answer
    return Prefilter(lambda pattern: re2.compile(pattern.encode(), options).search)


PREFILTER: Final = _with_re2()
