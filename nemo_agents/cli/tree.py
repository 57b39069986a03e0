"""One run as a tree for a terminal: verdict, steps by parent, spans, calls with status, model, tokens and cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from nemo_agents.admin.wire import CallContent, CallRow, RunDetail, SpanRow, StepRow
from nemo_agents.cli.output import STATE_STYLES, one_line
from nemo_agents.money import format_nanos
from nemo_agents.viewer import text
from nemo_agents.viewer.calls import cost_in_all, other_model, reason_of, unknown_costs
from nemo_agents.viewer.content import Block, Message, content_of
from nemo_agents.viewer.shadows import shadow_hint, shadow_names
from nemo_agents.viewer.spantree import KIND_MARKS, tree_of
from nemo_agents.viewer.verdict import name_of, why

__all__ = ["call_text", "message_text", "print_run", "run_tree", "served_by"]

_FOLD_FROM = 4  # so many calls alike, one after the other, are one line on a terminal
_ERROR_CHARS = 200
_DEPTH_MAX = 20  # of spans in spans
_SAID_CHARS = 400  # of what a span took or gave, where contents are shown


def print_run(
    to: Console,
    detail: RunDetail,
    contents: Mapping[str, CallContent] | None = None,
    *,
    fold: bool | None = None,
) -> None:
    """Print a run. `fold` puts calls alike that follow one another on one line.

    By default that is done on a terminal, unless the contents of calls are shown.
    """
    fold = to.is_terminal and contents is None if fold is None else fold
    to.print(run_tree(detail, contents, fold=fold))


def run_tree(detail: RunDetail, contents: Mapping[str, CallContent] | None, *, fold: bool = False) -> Tree:
    """Return the tree of a run. With `contents`, even of no call, what spans took and gave is shown as well."""
    tree = Tree(_head(detail), guide_style="dim")
    branches = _Branches(detail=detail, contents=contents, fold=fold)
    branches.add_steps(tree)
    known = {step.step for step in detail.steps}
    branches.add_rows(
        tree,
        [call for call in detail.calls if call.step not in known],
        [span for span in detail.spans if span.step not in known],
    )
    return tree


def _head(detail: RunDetail) -> Text:
    run = detail.run
    style = STATE_STYLES.get(run.state, "")
    head = Text()
    head.append(one_line(name_of(run)), style="bold")
    head.append(f"  {text.short_id(run.run_id)}", style="dim")
    head.append(f"  {run.state}", style=style)
    cap = f" of {format_nanos(run.budget_nanos)}" if run.budget_nanos is not None else ""
    head.append(f"\n{format_nanos(run.cost_nanos)}{cap}", style="bold")
    head.append(f" · {text.plural(run.calls, 'call')} · {_tokens(run.input_tokens, run.output_tokens)}")
    if unknown := unknown_costs(detail.calls):
        head.append(f" · {text.plural(unknown, 'call')} of unknown cost", style="bold")
    head.append(f"\n{one_line(why(detail).text)}", style=style)
    hint = "".join(part.text for part in shadow_hint(detail))
    if hint:
        head.append(f"\n{one_line(hint)}", style="yellow")
    return head


class _Branches:
    """Adds steps and calls to a tree."""

    def __init__(self, *, detail: RunDetail, contents: Mapping[str, CallContent] | None, fold: bool) -> None:
        self._detail = detail
        self._contents = contents or {}
        self._with_texts = contents is not None
        self._fold = fold
        self._shown: set[str] = set()

    def add_steps(self, tree: Tree) -> None:
        """Add every step once, under its parent; one whose parents go in a circle hangs at the root."""
        labels = {step.step for step in self._detail.steps}
        for step in self._detail.steps:
            if step.parent not in labels:
                self._add_step(tree, step)
        for step in self._detail.steps:
            self._add_step(tree, step)

    def _add_step(self, branch: Tree, step: StepRow) -> None:
        if step.step in self._shown:
            return
        self._shown.add(step.step)
        calls = [call for call in self._detail.calls if call.step == step.step]
        node = branch.add(_step_text(step, calls))
        self.add_rows(node, calls, [span for span in self._detail.spans if span.step == step.step])
        for inner in self._detail.steps:
            if inner.parent == step.step:
                self._add_step(node, inner)

    def add_rows(self, branch: Tree, calls: Sequence[CallRow], spans: Sequence[SpanRow]) -> None:
        """Add calls and spans, each under the span that it is in."""
        way = [branch]
        beside: list[CallRow] = []  # calls one after the other, of one depth
        depth = 0
        for node in tree_of(calls, spans):
            own = min(node.depth, _DEPTH_MAX)
            if beside and (own != depth or isinstance(node.item, SpanRow)):
                self._add_calls(way[depth], beside)
                beside = []
            depth = own
            if isinstance(node.item, SpanRow):
                del way[depth + 1 :]
                way.append(self._add_span(way[depth], node.item))
            else:
                beside.append(node.item)
        self._add_calls(way[depth], beside)

    def _add_span(self, branch: Tree, span: SpanRow) -> Tree:
        line = Text(f"{KIND_MARKS.get(span.kind, '·')} {one_line(span.kind)} ", style="dim")
        line.append(one_line(span.name), style="bold not dim")
        if span.role:
            line.append(f" ({one_line(span.role)})")
        if span.state != "ok":
            line.append(f"  {span.state}", style=f"not dim {STATE_STYLES.get(span.state, '')}")
        if span.ended_us is not None:
            line.append(f"  {text.duration(span.ended_us - span.started_us)}")
        if span.error:
            line.append(f"\n{one_line(text.shorten(span.error, _ERROR_CHARS))}", style="not dim red")
        node = branch.add(line)
        for what, said in (("input", span.input), ("output", span.output)) if self._with_texts else ():
            if said:
                node.add(Text(f"{what}: ", style="dim").append(text.visible(text.shorten(said, _SAID_CHARS))))
        return node

    def _add_calls(self, branch: Tree, calls: Sequence[CallRow]) -> None:
        for alike in _folded(calls) if self._fold else ([call] for call in calls):
            if len(alike) > 1:
                branch.add(_alike_text(alike))
            else:
                self._add_call(branch, alike[0])

    def _add_call(self, branch: Tree, call: CallRow) -> None:
        line = call_text(call)
        if call.error and call.state != "ok":
            line.append(f"\n{one_line(text.shorten(call.error, _ERROR_CHARS))}", style="red")
        for each in call.shadow:
            line.append(f"\nwould have been refused: {one_line(text.shorten(each.message or each.code, _ERROR_CHARS))}")
            line.stylize("yellow", len(line) - len(line.plain.rpartition("\n")[2]))
        node = branch.add(line)
        if len(call.attempt_rows) > 1:
            for attempt in call.attempt_rows:
                why_here = "" if attempt.n == 1 else f" {one_line(reason_of(attempt))}"
                what = f"attempt {attempt.n}{why_here}  {attempt.provider}/{one_line(attempt.model)}"
                error = f"  {one_line(text.shorten(attempt.error, 100))}" if attempt.error else ""
                node.add(Text(f"{what}  {attempt.status or '-'}  {text.cost(attempt.cost_nanos)}{error}", style="dim"))
        content = self._contents.get(call.request_id)
        if content is not None:
            said = content_of(content)
            for message in (*said.prompt, *said.answer):
                node.add(message_text(message))


def call_text(call: CallRow) -> Text:
    """Return one call on one line: status, model, tokens, cost, time, and the code of what went wrong."""
    line = Text()
    line.append(f"{call.status or '-'} ", style=STATE_STYLES.get(call.state, ""))
    line.append_text(_model_text(call))
    if call.input_tokens is not None or call.output_tokens is not None:
        line.append(f"  {_tokens(call.input_tokens, call.output_tokens)}")
    if call.cost_nanos is None or call.cost_nanos or call.state == "ok":
        line.append(f"  {text.cost(call.cost_nanos)}")
    line.append(f"  {text.duration(call.latency_us)}", style="dim")
    if call.code:
        limit = " ".join(dict.fromkeys(part for part in (call.scope, call.limit) if part))
        line.append(f"  {one_line(call.code)}{f' ({one_line(limit)})' if limit else ''}", style="red")
    return _with_shadows(line, call)


def _with_shadows(line: Text, call: CallRow) -> Text:
    names = shadow_names(call)
    return line.append(f"  ◌ shadow: {one_line(names)}", style="yellow") if names else line


def _model_text(call: CallRow) -> Text:
    line = Text(one_line(call.model_asked or call.endpoint))
    served = served_by(call)
    return line.append(f" → {one_line(served)}", style="dim") if served else line


def served_by(call: CallRow) -> str | None:
    """Return who served a call, `openai`, or with what where that is not what was asked for: `openai/o3-mini`.

    An answer that was given again was served by nobody: `cached`.
    """
    if not call.provider or not call.model_served:
        return None
    if call.provider == "cache":
        return "cached"
    other = other_model(call)
    return call.provider if other is None else f"{call.provider}/{other}"


def _step_text(step: StepRow, calls: Sequence[CallRow]) -> Text:
    line = Text()
    line.append(one_line(step.step), style="bold")
    if step.role:
        line.append(f" ({one_line(step.role)})", style="dim")
    line.append(f"  {step.state}", style=STATE_STYLES.get(step.state, ""))
    cost = step.cost_nanos or cost_in_all(calls)
    line.append(f"  {text.cost(cost)}  {_tokens(step.input_tokens, step.output_tokens)}")
    if step.ended_us is not None:
        line.append(f"  {text.duration(step.ended_us - step.started_us)}", style="dim")
    return line


def _folded(calls: Sequence[CallRow]) -> Iterator[list[CallRow]]:
    for _, group in groupby(calls, key=_likeness):
        alike = list(group)
        plain = alike[0].state == "ok" and alike[0].attempts <= 1
        if plain and len(alike) >= _FOLD_FROM:
            yield alike
        else:
            yield from ([call] for call in alike)


def _likeness(call: CallRow) -> tuple[str | int | bool | None, ...]:
    served = (call.model_asked, call.model_served, call.provider)
    return (call.state, call.status, *served, call.attempts > 1, shadow_names(call))


def _alike_text(calls: Sequence[CallRow]) -> Text:
    line = Text()
    line.append(f"{calls[0].status or '-'} ", style=STATE_STYLES.get(calls[0].state, ""))
    line.append_text(_model_text(calls[0]))
    line.append(f"  {text.plural(len(calls), 'call')}", style="bold")
    line.append(f"  {_tokens(sum(c.input_tokens or 0 for c in calls), sum(c.output_tokens or 0 for c in calls))}")
    line.append(f"  {text.cost(cost_in_all(calls))}")
    times = [call.latency_us for call in calls if call.latency_us is not None]
    if times:
        line.append(f"  {text.duration(min(times))} to {text.duration(max(times))}", style="dim")
    return _with_shadows(line, calls[0])


def message_text(message: Message) -> Text:
    """Return what a message says, with its hidden characters made visible."""
    said = [_block(block) for block in message.blocks] or [""]
    return Text(f"{one_line(message.role)}: ", style="dim").append(text.visible("\n".join(said)))


def _block(block: Block) -> str:
    if block.kind == "tool_call":
        return f"calls {block.title} {block.body}"
    if block.kind == "tool_result":
        return f"result of {block.title}: {block.body}"
    return block.body


def _tokens(input_tokens: int | None, output_tokens: int | None) -> str:
    return f"{text.count(input_tokens)} in, {text.count(output_tokens)} out"
