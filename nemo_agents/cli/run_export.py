"""`runs export`: one run as a file, for other programs and for people without the gateway."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nemo_agents.cli.connect import admin_client, gateway_options
from nemo_agents.cli.finding import find_run, read_contents
from nemo_agents.cli.output import safe_json
from nemo_agents.errors import NemoError

if TYPE_CHECKING:
    from nemo_agents.admin.wire import CallContent, RunDetail, Why

__all__ = ["export_run"]

FORMAT = "nemo-agents-run/1"
"""What the first line or field of an export names; another number means another shape."""


@click.command("export")
@click.argument("run_id", default="last")
@click.option(
    "--format",
    "form",
    type=click.Choice(["json", "ndjson", "html", "otlp"]),
    default="json",
    show_default=True,
    help="One document, one line per record, one page to read, or OTLP/JSON spans.",
)
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="The file; without it, standard output."
)
@click.option("--no-content", is_flag=True, help="Leave out prompts, answers, and what spans took and gave.")
@gateway_options
def export_run(
    run_id: str,
    gateway_url: str | None,
    home: Path | None,
    *,
    form: str,
    output: Path | None,
    no_content: bool,
) -> None:
    """Write one run: its record, verdict, steps, spans, calls, and what they said.

    A file is made readable for its owner alone, as prompts may hold what is nobody else's business.
    """
    from nemo_agents.admin import observe

    with admin_client(gateway_url, home) as client:
        detail = find_run(client, run_id)
        why = client.run(observe.why(detail.run.run_id, fleet=detail.run.fleet))
        contents = {} if no_content else read_contents(client, [call.request_id for call in detail.calls])
    if no_content:
        detail = _without_texts(detail)
        why = _without_quotes(why)
    _write(output, _document(form, detail, contents, why), plain=form != "html")


def _document(form: str, detail: RunDetail, contents: Mapping[str, CallContent], why: Why) -> str:
    import msgspec

    if form == "html":
        from nemo_agents.viewer.standalone import standalone_page

        return standalone_page(detail, contents, now_us=time.time_ns() // 1_000)
    if form == "otlp":
        from nemo_agents.viewer.spanexport import spans_of_run

        return msgspec.json.encode(spans_of_run(detail, contents)).decode() + "\n"
    if form == "ndjson":
        return "".join(msgspec.json.encode(line).decode() + "\n" for line in _lines(detail, contents, why))
    whole = {"format": FORMAT, "why": why, **_fields(detail), "contents": list(contents.values())}
    return msgspec.json.format(msgspec.json.encode(whole), indent=2).decode() + "\n"


def _fields(detail: RunDetail) -> dict[str, Any]:
    return {"run": detail.run, "steps": detail.steps, "spans": detail.spans, "calls": detail.calls}


def _lines(detail: RunDetail, contents: Mapping[str, CallContent], why: Why) -> Iterator[dict[str, Any]]:
    yield {"type": "run", "format": FORMAT, "run": detail.run}
    yield {"type": "why", "why": why}
    yield from ({"type": "step", "step": step} for step in detail.steps)
    yield from ({"type": "span", "span": span} for span in detail.spans)
    for call in detail.calls:
        yield {"type": "call", "call": call}
        if call.request_id in contents:
            yield {"type": "content", "content": contents[call.request_id]}


def _without_texts(detail: RunDetail) -> RunDetail:
    from msgspec.structs import replace

    return replace(detail, spans=[replace(span, input=None, output=None, attributes={}) for span in detail.spans])


def _without_quotes(why: Why) -> Why:
    """Leave out the words of suspects: some quote an answer or a tool."""
    from msgspec.structs import replace

    return replace(why, suspects=[replace(each, sentence="") for each in why.suspects])


def _write(output: Path | None, text: str, *, plain: bool) -> None:
    if output is None:
        click.echo(safe_json(text) if plain else text, nl=False)
        return
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except OSError as error:
        raise NemoError(f"{output} cannot be written: {error.strerror}. Name another file with -o.") from error
    click.echo(f"Wrote {output}", err=True)
