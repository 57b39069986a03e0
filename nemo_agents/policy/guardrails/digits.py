"""Which kinds of personal data a text may hold: a few look-ups in its digits, capitals and marks.

Every answer is wider than the pattern that it stands before: a kind that is not suspected is not there. Reading the
bytes by tables takes about a hundredth of the time that the patterns take.
"""

from __future__ import annotations

import re
from typing import Final, Literal

__all__ = ["EVERY_KIND", "Kind", "Kinds", "suspected"]

Kind = Literal["email", "card", "iban", "ssn", "phone-plus", "phone-00", "phone-american", "phone-announced", "ipv4"]
Kinds = frozenset[Kind]

EVERY_KIND: Final[Kinds] = frozenset(
    {"email", "card", "iban", "ssn", "phone-plus", "phone-00", "phone-american", "phone-announced", "ipv4"}
)
_NONE: Final[Kinds] = frozenset()

# A domain's first label and a beginning of the next; an address but for its first octet. Both start with a literal,
# which the `re` module skips to.
_AT_DOMAIN: Final = re.compile(r"@[A-Za-z0-9-]{1,63}\.[A-Za-z0-9-]")
_OCTETS: Final = re.compile(r"\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]")


def _table(**classes: str) -> bytes:
    """Return a table for bytes.translate: every byte of a class becomes its sign, the others stay."""
    table = bytearray(range(256))
    for sign, members in classes.items():
        for char in members:
            table[ord(char)] = ord({"digit": "0", "capital": "A"}[sign])
    return bytes(table)


_ARABIC: Final = "0123456789"
_CAPITALS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_DIGITS: Final = _table(digit=_ARABIC)
_DIGITS_AND_CAPITALS: Final = _table(digit=_ARABIC, capital=_CAPITALS)
_ALIKE: Final = _table(digit=_ARABIC + _CAPITALS)
# What may stand between the digits of a number. The last two bytes are those of a no-break space in UTF-8.
_BETWEEN: Final = b" .()/-\xc2\xa0"
_SPACES: Final = b" -\xc2\xa0"
# Numbers of an American phone end so, once its area code has lost its brackets.
_AMERICAN: Final = tuple(f"000{first}000{last}0000".encode() for first in ("", *" .-") for last in " .-")
_ANNOUNCING: Final = (b"phone", b"tel", b"mobile", b"cell", b"fax", b"whatsapp", b"call", b"tlf", b"movil")


def suspected(text: str) -> Kinds:
    """Return the kinds that the text may hold."""
    raw = text.encode("utf-8", "surrogatepass")
    kinds: set[Kind] = set()
    if b"@" in raw and _AT_DOMAIN.search(text):
        kinds.add("email")
    signs = raw.translate(_DIGITS_AND_CAPITALS)
    if b"0" not in signs:
        return frozenset(kinds) if kinds else _NONE
    if b"AA00" in signs and b"0" * 15 in raw.translate(_ALIKE, b" -"):  # the shortest IBAN has 15 characters
        kinds.add("iban")
    if b"0.0" in signs and _OCTETS.search(text):
        kinds.add("ipv4")
    if b"0" * 9 in raw.translate(_DIGITS, _BETWEEN):  # every other number has nine digits or more
        kinds |= _numbers(text, raw, signs)
    return frozenset(kinds) if kinds else _NONE


def _numbers(text: str, raw: bytes, signs: bytes) -> set[Kind]:
    kinds: set[Kind] = set()
    if b"0" * 13 in raw.translate(_DIGITS, _SPACES):
        kinds.add("card")
    if b"000-00-0000" in signs or b"000 00 0000" in signs:
        kinds.add("ssn")
    if b"+0" in signs:
        kinds.add("phone-plus")
    if b"00" in raw:
        kinds.add("phone-00")
    if _any_in(_AMERICAN, signs.translate(None, b"()")):
        kinds.add("phone-american")
    # beyond ASCII there are letters that only a pattern knows to be a capital or a small one
    if not text.isascii() or _any_in(_ANNOUNCING, raw.lower()):
        kinds.add("phone-announced")
    return kinds


def _any_in(parts: tuple[bytes, ...], whole: bytes) -> bool:
    return any(part in whole for part in parts)
