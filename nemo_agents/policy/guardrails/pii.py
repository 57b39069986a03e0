"""Personal data that has a form which can be checked, found by patterns and validators and replaced.

Found: e-mail addresses, payment cards (issuer, length, Luhn), IBANs (country length, ISO 7064 mod 97-10), US
social security numbers, phone numbers (international and North American forms; national ones only after a
word such as "phone"), IPv4 addresses. Not found: names, places, postal addresses, dates of birth, and
anything spelled out. Every pattern is bounded, so that time grows with the length of the text and no faster.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from nemo_agents.policy.guardrails.digits import Kind, Kinds, suspected
from nemo_agents.policy.guardrails.values import Finding

__all__ = ["NAME", "Redactor", "find"]

NAME: Final = "pii-filter"

_EMAIL: Final = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9-])"
)
_DIGITS: Final = re.compile(r"(?<![\w.])[0-9](?:[ \u00a0-]?[0-9])*(?!\w)")
_GROUP: Final = re.compile(r"[0-9]+")
_IBAN_START: Final = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?=[A-Z0-9 -])")
_SSN: Final = re.compile(
    r"(?<![\w.-])(?!000|666|9)[0-9]{3}(?P<sep>[- ])(?!00)[0-9]{2}(?P=sep)(?!0000)[0-9]{4}(?![\w-])(?!\.[0-9])"
)
_IPV4: Final = re.compile(
    r"(?<![\w.-])(?:(?:25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])\.){3}(?:25[0-5]|2[0-4][0-9]"
    r"|1?[0-9]?[0-9])(?![\w-]|\.[0-9])"
)
_PHONES: Final[Mapping[Kind, re.Pattern[str]]] = {
    # +44 20 7946 0958, +1 (212) 555-0123, 0044 20 7946 0958
    "phone-plus": re.compile(r"(?<![\w+.-])(?P<number>\+[1-9](?:[ .\u00a0()/-]{0,2}[0-9]){8,14})(?![\w])"),
    "phone-00": re.compile(
        r"(?<![\w+.-])(?<![0-9][ -])(?P<number>00[1-9][0-9]{0,2}(?:[ -]\(?[0-9]{2,5}\)?){2,5})(?![\w-])"
    ),
    # (212) 555-0123, 212-555-0123, 1-212-555-0123, 212.555.0123, 212 555-0123; never ten digits in a row
    "phone-american": re.compile(
        r"(?<![\w.+-])(?P<number>(?:1[ .-])?(?:\([2-9][0-9]{2}\)[ -]?|[2-9][0-9]{2}[.-]"
        r"|[2-9][0-9]{2} (?=[0-9]{3}-))"
        r"[2-9][0-9]{2}[ .-][0-9]{4})(?![\w-])(?!\.[0-9])"
    ),
    # national forms and bare digits count only behind a word that announces a phone number
    "phone-announced": re.compile(
        r"(?i:\b(?:phone|tel|telephone|mobile|cell|fax|whatsapp|call|telefon|tlf|movil)\b)[^0-9\n+]{0,20}?"
        r"(?P<number>\(?[0-9](?:[ ./()-]{0,2}[0-9]){8,14})(?![\w-])"
    ),
}
_PIECE: Final = 2048  # characters
# Lengths by country, ISO 13616 registry; a country that is missing here is not an IBAN country we know.
_IBAN_LENGTHS: Final = {
    code: length
    for length, codes in {
        15: "NO",
        16: "BE",
        18: "DK FI FO GL NL SD",
        19: "MK SI",
        20: "AT BA EE KZ LT LU MN XK",
        21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA",
        23: "AE GI IL IQ OM SO TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST",
        26: "IS TR",
        27: "BI DJ FR GR IT MC MR SM",
        28: "AL AZ BY CY DO GT HU LB NI PL SV",
        29: "BR EG PS QA UA",
        30: "JO KW MU YE",
        31: "MT SC",
        32: "LC",
        33: "RU",
    }.items()
    for code in codes.split()
}
# What the groups of a printed card number look like.
_CARD_SHAPES: Final = ((4, 4, 4, 4), (4, 4, 4, 4, 3), (4, 6, 5), (4, 6, 4))
_PRIORITY: Final = ("card", "iban", "email", "ssn", "phone", "ipv4")


def find(text: str, suspect: Callable[[str], Kinds] = suspected) -> list[Finding]:
    """Return what was found, in order and without overlaps: of overlapping findings the longest stays.

    `suspect` says what is worth looking for in a piece of the text and changes no answer.
    """
    kinds = suspect(text)
    if not kinds:
        return []
    candidates: list[Finding] = []
    for start, end in _pieces(text):
        piece = text[start:end]
        inside = kinds if len(piece) == len(text) else suspect(piece)
        candidates += [_finding(f.kind, f.start + start, f.end + start) for f in _candidates(piece, inside)]
    return _longest(candidates, len(text))


def _longest(candidates: list[Finding], size: int) -> list[Finding]:
    candidates.sort(key=lambda f: (f.start - f.end, _PRIORITY.index(f.kind), f.start))
    # Longest first means many intervals of all places; a bytearray answers "is it free" without a quadratic
    # search.
    taken = bytearray(size if candidates else 0)
    kept = []
    for finding in candidates:
        if not any(taken[finding.start : finding.end]):
            taken[finding.start : finding.end] = b"\x01" * (finding.end - finding.start)
            kept.append(finding)
    return sorted(kept, key=lambda f: f.start)


def _pieces(text: str) -> Iterator[tuple[int, int]]:
    """Cut a long text at ends of lines: no pattern reads across one, so that each piece can be looked at alone."""
    start = 0
    while start < len(text):
        cut = text.rfind("\n", start, start + _PIECE) if len(text) - start > _PIECE else -1
        if cut < 0:
            cut = text.find("\n", start + _PIECE)
        end = len(text) if cut < 0 else cut + 1
        yield start, end
        start = end


def _candidates(text: str, kinds: Kinds) -> Iterator[Finding]:
    if "email" in kinds:
        yield from _emails(text)
    if "card" in kinds:
        yield from _cards(text)
    if "iban" in kinds:
        yield from _ibans(text)
    if "ssn" in kinds:
        yield from (_finding("ssn", *match.span()) for match in _SSN.finditer(text))
    yield from _phones(text, kinds)
    if "ipv4" in kinds:
        yield from _addresses(text)


class Redactor:
    """Replaces findings by `<EMAIL_1>`, `<CARD_1>`, …: one numbering per request, same value, same number.

    The values live in this object only, for as long as one request is rewritten; nothing maps labels back.
    """

    __slots__ = ("_numbers", "_seen")

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], str] = {}
        self._numbers: dict[str, int] = {}

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that were replaced so far, sorted."""
        return tuple(sorted(self._numbers))

    def redact(self, text: str) -> str:
        """Return the text with every finding replaced."""
        pieces, position = [], 0
        for finding in find(text):
            pieces += [
                text[position : finding.start],
                self._label(finding.kind, text[finding.start : finding.end]),
            ]
            position = finding.end
        return "".join([*pieces, text[position:]]) if pieces else text

    def _label(self, kind: str, value: str) -> str:
        plain = value.lower() if kind in {"email", "ipv4"} else "".join(c for c in value if c.isalnum()).upper()
        label = self._seen.get((kind, plain))
        if label is None:
            number = self._numbers[kind] = self._numbers.get(kind, 0) + 1
            label = self._seen[kind, plain] = f"<{kind.upper()}_{number}>"
        return label


def _finding(kind: str, start: int, end: int) -> Finding:
    return Finding(rule=NAME, kind=kind, start=start, end=end)


def _emails(text: str) -> Iterator[Finding]:
    if "@" not in text:
        return
    for match in _EMAIL.finditer(text):
        # git@host:path is the address of a repository
        if not (match[0].startswith("git@") and text[match.end() : match.end() + 1] == ":"):
            yield _finding("email", *match.span())


def _cards(text: str) -> Iterator[Finding]:
    for run in _DIGITS.finditer(text):
        if run.end() - run.start() < 13:
            continue
        groups = [group.span() for group in _GROUP.finditer(text, run.start(), run.end())]
        for first, (start, _) in enumerate(groups):
            for span in _card_spans(groups, first):
                if _is_card("".join(text[a:b] for a, b in span)):
                    yield _finding("card", start, span[-1][1])
                    break


def _card_spans(groups: list[tuple[int, int]], first: int) -> Iterator[list[tuple[int, int]]]:
    """Give the groups from `first` on that are together shaped like a card number."""
    sizes = [end - start for start, end in groups[first : first + 5]]
    if 13 <= sizes[0] <= 19:
        yield groups[first : first + 1]
    for shape in _CARD_SHAPES:
        if tuple(sizes[: len(shape)]) == shape:
            yield groups[first : first + len(shape)]
    if first == 0 and 1 < len(groups) <= 19:  # any spacing, when the whole run is the number
        yield groups


def _is_card(digits: str) -> bool:
    return _issuer_fits(digits) and _luhn(digits)


def _issuer_fits(digits: str) -> bool:
    """ISO/IEC 7812 ranges of the large issuers and the lengths they use."""
    size, two, four = len(digits), int(digits[:2]), int(digits[:4])
    if digits[0] == "4":
        return size in {13, 16, 19}
    if 51 <= two <= 55 or 2221 <= four <= 2720:
        return size == 16
    if two in {34, 37}:
        return size == 15
    if two in {36, 38, 39} or 3000 <= four <= 3059:
        return size in {14, 16}
    if two in {35, 60, 62, 64, 65}:
        return 16 <= size <= 19
    return False


def _luhn(digits: str) -> bool:
    """ISO/IEC 7812-1 annex B."""
    total = 0
    for place, char in enumerate(reversed(digits)):
        digit = int(char) * (1 + place % 2)
        total += digit - 9 if digit > 9 else digit
    return total % 10 == 0


def _ibans(text: str) -> Iterator[Finding]:
    for match in _IBAN_START.finditer(text):
        size = _IBAN_LENGTHS.get(match[0][:2])
        if size is None:
            continue
        letters: list[str] = []
        position = match.start()
        while position < len(text) and len(letters) < size:
            char = text[position]
            if char.isascii() and (char.isdigit() or char.isupper()):
                letters.append(char)
            elif char not in " -" or text[position - 1] in " -":
                break
            position += 1
        whole = len(letters) == size and not text[position : position + 1].isalnum()
        if whole and int("".join(str(int(c, 36)) for c in letters[4:] + letters[:4])) % 97 == 1:
            yield _finding("iban", match.start(), position)


def _phones(text: str, kinds: Kinds) -> Iterator[Finding]:
    for kind, pattern in _PHONES.items():
        if kind not in kinds:
            continue
        for match in pattern.finditer(text):
            digits = sum(char.isdigit() for char in match["number"])
            if 9 <= digits <= 17:
                yield _finding("phone", *match.span("number"))


def _addresses(text: str) -> Iterator[Finding]:
    for match in _IPV4.finditer(text):
        # loopback, unspecified, broadcast and netmasks are nobody's address
        if not match[0].startswith(("127.", "0.", "255.")):
            yield _finding("ipv4", *match.span())
