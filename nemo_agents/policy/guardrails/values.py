"""What guardrails are made of and what they say. No value here carries a text that was found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Action", "Finding", "Outcome", "Rule", "UnknownGuardrailError", "Verdict"]

Action = Literal["allow", "redact", "block"]


class UnknownGuardrailError(LookupError):
    """A name that no guardrail has; the gateway answers 400 `guardrail_not_found`."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"no guardrail is called {name!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One guardrail by name, and what it does when it finds something."""

    name: str
    action: Literal["redact", "block"]
    description: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Where a rule found something of a kind: offsets in characters, `end` exclusive. Never the text itself."""

    rule: str
    kind: str
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What one guardrail says about one request. `kinds` are sorted and empty when it allows."""

    action: Action
    guardrail: str
    kinds: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """What the request log says: the name alone when it allowed, else `name: action`."""
        return self.guardrail if self.action == "allow" else f"{self.guardrail}: {self.action}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The request as it may go on, and what was said about it.

    `body` is the very object that came in when nothing was redacted, a new one otherwise. `verdicts` has one
    entry per guardrail in the order asked; `blocked` is the first that blocks.
    """

    body: dict[str, Any] = field(repr=False)
    verdicts: tuple[Verdict, ...]
    blocked: Verdict | None = None
