"""A run as one file to read anywhere: the page of the run with its style in it, and nothing to fetch."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources

from markupsafe import Markup

from nemo_agents.admin import wire
from nemo_agents.viewer.rendering import make_environment
from nemo_agents.viewer.runview import arrange

__all__ = ["standalone_page"]


def standalone_page(detail: wire.RunDetail, contents: Mapping[str, wire.CallContent], *, now_us: int) -> str:
    """Return the page of a run with all its calls and their texts uncut, without a script or an address.

    `contents` is what its calls said, by request id, as far as it may be shown.
    """
    style = (resources.files(__package__) / "static" / "viewer.css").read_text(encoding="utf-8")
    environment = make_environment(asset_names={})
    view = arrange(detail, contents, now_us=now_us, whole=True)
    return environment.get_template("run.html").render(
        layout="standalone.html",
        style=Markup(style),  # noqa: S704 - the package's own file, in which no text of a stranger is
        base="",
        here="/runs",
        query=_nowhere,
        view=view,
        now_us=now_us,
        selected=None,
        selected_span=None,
        start=None,
        scale_asked=None,
    )


def _nowhere(**_parameters: object) -> str:
    """Return no query: in a file there is one page, and links lead to its own places."""
    return ""
