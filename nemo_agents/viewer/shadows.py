"""What limits in mode `shadow` would have done: in a word for a call, in a sentence for a run. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from nemo_agents.admin import wire
from nemo_agents.viewer.text import plural
from nemo_agents.viewer.verdict import Part

__all__ = ["shadow_hint", "shadow_name", "shadow_names"]

_ENDS_A_RUN: Final = frozenset({"budget", "loop", "max_calls"})  # a refused rate lets the run try again


def shadow_name(shadowed: wire.Shadowed) -> str:
    """Return what to call a limit that would have refused: `role rpm`, `fleet budget`, `run loop`."""
    return " ".join(part for part in (shadowed.scope, shadowed.limit or shadowed.code) if part)


def shadow_names(call: wire.CallRow) -> str:
    """Return the limits that would have refused a call, each once, with commas between; empty where none would."""
    return ", ".join(dict.fromkeys(shadow_name(each) for each in call.shadow))


def shadow_hint(detail: wire.RunDetail) -> tuple[Part, ...]:
    """Say which limits in shadow mode would have refused calls of a run, and where first; nothing where none would."""
    found: dict[tuple[str | None, str], list[wire.CallRow]] = {}
    for call in detail.calls:
        for key in dict.fromkeys((each.scope, each.limit or each.code) for each in call.shadow):
            found.setdefault(key, []).append(call)
    parts: list[Part] = []
    for (scope, limit), calls in found.items():
        parts.append(Part(text="; " if parts else "In shadow mode, "))
        parts += _clause(scope, limit, calls, grouped=detail.run.grouped)
    return (*parts, Part(text=".")) if parts else ()


def _clause(scope: str | None, limit: str, calls: Sequence[wire.CallRow], *, grouped: bool) -> list[Part]:
    who = "loop detection" if limit == "loop" else f"the {scope}'s {limit}" if scope else f"a limit ({limit})"
    if not grouped:
        return [Part(text=f"{who} would have refused this call")]
    at = Part(text=f"call {calls[0].seq}", call=calls[0].request_id)
    if limit in _ENDS_A_RUN:
        return [Part(text=f"{who} would have stopped this run at "), at]
    more = f" and {plural(len(calls) - 1, 'more call')}" if len(calls) > 1 else ""
    return [Part(text=f"{who} would have refused "), at, Part(text=more)]
