"""Templates: autoescaped without exception, and every text made visible before it is escaped."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import quote, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from nemo_agents.admin import wire
from nemo_agents.viewer import text
from nemo_agents.viewer.calls import other_model, reason_of
from nemo_agents.viewer.shadows import shadow_name
from nemo_agents.viewer.spantree import KIND_MARKS
from nemo_agents.viewer.verdict import cause, name_of

__all__ = ["STATE_MARKS", "make_environment", "query", "term"]

STATE_MARKS: Final = {
    "ok": "✓",
    "recovered": "↻",
    "failed": "✕",
    "stopped": "■",
    "running": "▶",
    "lost": "?",
    "refused": "⊘",
    "abandoned": "\N{ANTICLOCKWISE OPEN CIRCLE ARROW}",
    "open": "▶",
    "active": "✓",
    "blocked": "■",
    "expired": "✕",
}
"""A sign beside the word, so that no state is told by colour alone."""


def term(key: str, value: str) -> str:
    """Write one term of a filter line."""
    return f'{key}:"{value}"' if any(c.isspace() for c in value) and '"' not in value else f"{key}:{value}"


def query(**parameters: object) -> str:
    """Write a query string with its question mark; empty and absent parameters are left out."""
    given = {key: str(value) for key, value in parameters.items() if value not in (None, "", False)}
    return f"?{urlencode(given, errors='replace')}" if given else ""


def make_environment(*, asset_names: dict[str, str]) -> Environment:
    """Make the template environment; `asset_names` says under which name each static file is served."""
    environment = Environment(
        loader=PackageLoader("nemo_agents.viewer"),
        autoescape=True,  # for every template whatever its name; no template says |safe
        finalize=_finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters.update(
        age=text.age,
        cause=cause,
        clock=text.clock,
        cost=text.cost,
        cost_column=text.cost_column,
        count=text.count,
        duration=text.duration,
        name=name_of,
        other_model=other_model,
        path=_path,
        percent=text.percent,
        plural=text.plural,
        reason_of=reason_of,
        short_id=text.short_id,
        shadow_name=shadow_name,
        shorten=text.shorten,
        stamp=text.stamp,
        stamp_iso=text.stamp_iso,
        until=text.until,
    )
    environment.globals.update(
        asset_names=asset_names,
        call_fragment=_call_fragment,
        kind_marks=KIND_MARKS,
        layout="base.html",
        marks=STATE_MARKS,
        query=query,
        share=_share,
        term=term,
    )
    return environment


def _finalize(value: Any) -> Any:
    """Make hidden characters visible in every value that a template prints; only macros make markup."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else text.visible(value)


def _path(segment: str) -> str:
    """Quote one segment of a path."""
    return quote(segment.encode("utf-8", "replace"), safe="")


def _call_fragment(call: wire.CallRow) -> str:
    """Return the id of a call's element."""
    return "call-" + _path(call.request_id)


def _share(part: int, whole: int) -> str:
    """Return part of whole as an SVG length, from 0% to 100%."""
    return f"{min(100.0, max(0.0, 100 * part / whole)):.2f}%" if whole > 0 else "0%"
