"""Guardrails applied to a request: one walk for all, every verdict recorded, refusals that quote nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Protocol

from nemo_agents.errors import Code
from nemo_agents.policy.guardrails import injection, pii
from nemo_agents.policy.guardrails.texts import Source, TooDeepError, Visit, rewrite
from nemo_agents.policy.guardrails.values import Outcome, Rule, UnknownGuardrailError, Verdict
from nemo_agents.policy.refusal import Refusal

__all__ = ["BUILTIN", "apply_to_request", "guardrail_refusal"]

BUILTIN: Final[Mapping[str, Rule]] = MappingProxyType(
    {
        pii.NAME: Rule(
            name=pii.NAME,
            action="redact",
            description="Replaces e-mail, card, IBAN, US SSN, phone and IPv4 values by numbered labels.",
        ),
        injection.NAME: Rule(
            name=injection.NAME,
            action="block",
            description="Refuses requests that carry known patterns of prompt injection. Not a protection.",
        ),
    }
)

_ALLOWED: Final = {name: Verdict(action="allow", guardrail=name) for name in BUILTIN}

# Where `prompt-injection-detect` looks for everything, and where the wording is imperative by nature.
_OTHERS_WORDS: Final = frozenset({Source.USER, Source.TOOL, Source.INPUT, Source.VALUE})
_STRUCTURE_ONLY: Final = frozenset({Source.DEFINITION, Source.FIXED})


def apply_to_request(body: dict[str, Any], guardrails: Sequence[str]) -> Outcome:
    """Apply guardrails by name to a request's JSON and return what may go on.

    The body is never changed in place. Every guardrail reads the texts as they came in and all are evaluated,
    so that a blocked request is redacted as well before anyone logs it. A body too deep to be read is
    blocked. Raises UnknownGuardrailError.
    """
    names = tuple(dict.fromkeys(guardrails))
    for name in names:
        if name not in BUILTIN:
            raise UnknownGuardrailError(name)
    checks = [_CHECKS[name]() for name in names]
    try:
        new = rewrite(body, _all(checks)) if checks else body
    except TooDeepError:
        verdicts = tuple(Verdict(action="block", guardrail=name, kinds=("nested-too-deep",)) for name in names)
        return Outcome(body=body, verdicts=verdicts, blocked=verdicts[0])
    verdicts = tuple(_verdict(name, check.kinds) for name, check in zip(names, checks, strict=True))
    blocked = next((verdict for verdict in verdicts if verdict.action == "block"), None)
    return Outcome(body=new, verdicts=verdicts, blocked=blocked)


def guardrail_refusal(verdict: Verdict) -> Refusal:
    """Return the answer to a blocked request: which guardrail and what kind, never the text it found."""
    kinds = ", ".join(kind.replace("-", " ") for kind in verdict.kinds)
    return Refusal(
        status=400,
        code=Code.GUARDRAIL_BLOCKED,
        message=(
            f"Guardrail {verdict.guardrail} blocked this request (found: {kinds}); nothing was sent to a model. "
            "Remove the offending part from the user, tool or input texts and send the request anew."
        ),
        limit=verdict.guardrail,
    )


class _Check(Protocol):
    """One guardrail on one request: reads every text and says what may stand in its place."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """What was found so far, sorted."""

    def visit(self, text: str, source: Source) -> str:
        """Read a text."""


class _Redacting:
    __slots__ = ("_redactor",)

    def __init__(self) -> None:
        self._redactor = pii.Redactor()

    @property
    def kinds(self) -> tuple[str, ...]:
        return self._redactor.kinds

    def visit(self, text: str, source: Source) -> str:
        return text if source is Source.FIXED else self._redactor.redact(text)


class _Detecting:
    __slots__ = ("_kinds",)

    def __init__(self) -> None:
        self._kinds: set[str] = set()

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(sorted(self._kinds))

    def visit(self, text: str, source: Source) -> str:
        if source in _OTHERS_WORDS:
            self._kinds.update(injection.detect(text))
        elif source in _STRUCTURE_ONLY:
            self._kinds.update(injection.detect_structural(text))
        return text


def _all(checks: Sequence[_Check]) -> Visit:
    """Let every guardrail read a text as it came in; what one of them puts in its place goes on."""
    if len(checks) == 1:
        return checks[0].visit

    def visit(text: str, source: Source) -> str:
        new = text
        for check in checks:
            said = check.visit(text, source)
            if said is not text:
                new = said
        return new

    return visit


def _verdict(name: str, kinds: tuple[str, ...]) -> Verdict:
    return Verdict(action=BUILTIN[name].action, guardrail=name, kinds=kinds) if kinds else _ALLOWED[name]


_CHECKS: Final[Mapping[str, Callable[[], _Check]]] = {pii.NAME: _Redacting, injection.NAME: _Detecting}
