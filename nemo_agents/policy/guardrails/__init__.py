"""The built-in guardrails: checks on what a model would read, as pure functions over the request's JSON.

`pii-filter` replaces personal data that has a checkable form; `prompt-injection-detect` refuses requests that
carry known patterns of prompt injection. Both find *known patterns* and are not a protection: a patient
attacker gets past any such list, and names, places and addresses are not found at all. What limits the damage
is what a role may do: its tools, its budget, its models.
"""

from __future__ import annotations

from nemo_agents.policy.guardrails.engine import BUILTIN, apply_to_request, guardrail_refusal
from nemo_agents.policy.guardrails.values import (
    Action,
    Finding,
    Outcome,
    Rule,
    UnknownGuardrailError,
    Verdict,
)

__all__ = [
    "BUILTIN",
    "Action",
    "Finding",
    "Outcome",
    "Rule",
    "UnknownGuardrailError",
    "Verdict",
    "apply_to_request",
    "guardrail_refusal",
]
