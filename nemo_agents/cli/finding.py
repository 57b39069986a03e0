"""One run by its id, for the commands that read runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeVar

from nemo_agents.errors import AdminError, NemoError

if TYPE_CHECKING:
    from nemo_agents.admin.calls import Call
    from nemo_agents.admin.wire import CallContent, RunDetail
    from nemo_agents.client import Client

__all__ = ["ask_of_run", "find_run", "read_contents"]

_T = TypeVar("_T")


def find_run(client: Client, run_id: str) -> RunDetail:
    """Read one run by its id, a prefix, or `last`. Raises NemoError that says how to find the right id."""
    from nemo_agents.admin import observe

    return ask_of_run(client, run_id, observe.run(run_id))


def ask_of_run(client: Client, run_id: str, call: Call[_T]) -> _T:
    """Ask something of one run that is named by its id, a prefix, or `last`; see `find_run`."""
    try:
        return client.run(call)
    except AdminError as error:
        if error.status != 404:
            raise
    if run_id == "last":
        raise NemoError(f"there are no runs yet at {client.base_url}.")
    raise NemoError(
        f"there is no run {run_id!r} at {client.base_url}, or several begin so. "
        "`nemo-agents runs list` shows their ids; six characters or more are enough."
    )


def read_contents(client: Client, request_ids: Iterable[str]) -> dict[str, CallContent]:
    """Read what calls said, by request id; empty where it was not kept."""
    from nemo_agents.admin import observe

    return {request_id: client.run(observe.content(request_id)) for request_id in request_ids}
