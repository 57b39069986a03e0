"""Guardrails applied to a request: one walk for each, every verdict recorded, refusals that quote nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from nemo_agents.errors import Code
from nemo_agents.policy.guardrails import injection, pii
from nemo_agents.policy.guardrails.texts import Source, TooDeepError, rewrite
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

# Where `prompt-injection-detect` looks for everything, and where the wording is imperative by nature.
_OTHERS_WORDS: Final = frozenset({Source.USER, Source.TOOL, Source.INPUT, Source.VALUE})
_STRUCTURE_ONLY: Final = frozenset({Source.DEFINITION, Source.FIXED})

_Check = Callable[[dict[str, Any]], tuple[dict[str, Any], tuple[str, ...]]]


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
    verdicts = []
    redacted = body
    for name in names:
        rule = BUILTIN[name]
        try:
            new, kinds = _CHECKS[name](body)
        except TooDeepError:
            verdicts.append(Verdict(action="block", guardrail=name, kinds=("nested-too-deep",)))
            continue
        if rule.action == "redact":
            redacted = new
        verdicts.append(Verdict(action=rule.action if kinds else "allow", guardrail=name, kinds=kinds))
    blocked = next((verdict for verdict in verdicts if verdict.action == "block"), None)
    return Outcome(body=redacted, verdicts=tuple(verdicts), blocked=blocked)


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


def _redact(body: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    redactor = pii.Redactor()
    new = rewrite(body, lambda text, source: text if source is Source.FIXED else redactor.redact(text))
    return new, redactor.kinds


def _detect(body: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    kinds: set[str] = set()

    def look(text: str, source: Source) -> str:
        if source in _OTHERS_WORDS:
            kinds.update(injection.detect(text))
        elif source in _STRUCTURE_ONLY:
            kinds.update(injection.detect_structural(text))
        return text

    rewrite(body, look)
    return body, tuple(sorted(kinds))


_CHECKS: Final[Mapping[str, _Check]] = {pii.NAME: _redact, injection.NAME: _detect}
