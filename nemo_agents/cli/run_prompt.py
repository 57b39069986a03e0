"""`runs prompt`: what one call of a run said, and of that what is new."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nemo_agents.cli.connect import admin_client, gateway_options
from nemo_agents.cli.finding import find_run, read_contents
from nemo_agents.cli.output import console, one_line, print_json
from nemo_agents.errors import NemoError

if TYPE_CHECKING:
    from rich.console import Console

    from nemo_agents.admin.wire import CallRow, RunDetail
    from nemo_agents.viewer.content import Content, Message

__all__ = ["prompt_run"]


@click.command("prompt")
@click.argument("run_id", default="last")
@click.argument("call_id", metavar="[SEQ|REQUEST_ID]", required=False)
@click.option(
    "--all", "everything", is_flag=True, help="Also the messages that the call before had, parameters and tools."
)
@click.option("--answer", "with_answer", is_flag=True, help="Also what the model answered.")
@gateway_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with everything.")
def prompt_run(
    run_id: str,
    call_id: str | None,
    gateway_url: str | None,
    home: Path | None,
    *,
    everything: bool,
    with_answer: bool,
    as_json: bool,
) -> None:
    """Print the prompt of one call, as it was sent: what is new since the call before it in its step.

    The call is named by its number in the run or by its request id; by default it is the one that `runs why` speaks of,
    else the last.
    """
    from nemo_agents.viewer.content import content_of

    with admin_client(gateway_url, home) as client:
        detail = find_run(client, run_id)
        call = _chosen(detail, call_id)
        before = _before(detail, call)
        kept = read_contents(client, [each.request_id for each in (call, before) if each is not None])
    own = kept[call.request_id]
    said = content_of(own, previous=kept[before.request_id] if before is not None else None)
    if as_json:
        print_json({"call": call, "content": own, "repeated": said.repeated, "previous": before and before.request_id})
        return
    to = console()
    _print_head(to, call)
    if not said.prompt and not said.answer:
        to.print("Its content was not kept, or it has none.", style="dim")
        return
    if everything:
        _print_parameters(to, said)
    hidden = 0 if everything else said.repeated
    if hidden and before is not None:
        to.print(_folded(hidden, before), style="dim", soft_wrap=True)
    _print_messages(to, said.prompt[hidden:])
    if with_answer:
        to.print("answer" if said.answer else "no answer", style="bold")
        _print_messages(to, said.answer)


def _chosen(detail: RunDetail, call_id: str | None) -> CallRow:
    from nemo_agents.viewer.verdict import why

    if not detail.calls:
        raise NemoError(f"the run {detail.run.run_id} has made no call.")
    if call_id is None:
        culprit = why(detail).culprit
        return next((call for call in detail.calls if call.request_id == culprit), detail.calls[-1])
    for call in detail.calls:
        if call_id in (str(call.seq), call.request_id):
            return call
    raise NemoError(
        f"the run {detail.run.run_id} has no call {call_id!r}: name one by its number, "
        f"1 to {detail.calls[-1].seq}, or by its request id."
    )


def _before(detail: RunDetail, call: CallRow) -> CallRow | None:
    return next((each for each in reversed(detail.calls) if each.step == call.step and each.seq < call.seq), None)


def _folded(hidden: int, before: CallRow) -> str:
    messages = "1 message" if hidden == 1 else f"{hidden} messages"
    return f"{messages} as in call {before.seq} of this step (--all shows them)"


def _print_head(to: Console, call: CallRow) -> None:
    from rich.text import Text

    from nemo_agents.cli.tree import call_text

    head = Text(f"call {call.seq}  ", style="bold")
    if call.step:
        head.append(f"{one_line(call.step)}  ", style="not bold")
    to.print(head.append_text(call_text(call)), soft_wrap=not to.is_terminal)
    to.print(call.request_id, style="dim")


def _print_parameters(to: Console, said: Content) -> None:
    from rich.text import Text

    from nemo_agents.viewer.text import visible

    for name, value in said.params:
        to.print(Text(f"{one_line(name)}: ", style="dim").append(visible(value)), soft_wrap=not to.is_terminal)
    for tool in said.tools:
        to.print(Text(f"tool {one_line(tool.title)}", style="dim"), soft_wrap=not to.is_terminal)


def _print_messages(to: Console, messages: Sequence[Message]) -> None:
    from nemo_agents.cli.tree import message_text

    for message in messages:
        to.print(message_text(message), soft_wrap=not to.is_terminal)
