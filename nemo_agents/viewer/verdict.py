"""The verdict: one sentence that says how a run ended and why, with the steps and calls it speaks of.

Pure. The page makes links of the parts; the command line joins their texts; `told` is what the admin API answers. A
step is named by the number that it has on the run's page, and by its label.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from nemo_agents.admin import wire
from nemo_agents.errors import Code
from nemo_agents.money import format_nanos
from nemo_agents.viewer.steporder import steps_in_order
from nemo_agents.viewer.suspects import GoodRun, suspects_of
from nemo_agents.viewer.text import duration, percent, plural, shorten

__all__ = ["PROBLEM_STATES", "Part", "Verdict", "cause", "name_of", "told", "why"]

PROBLEM_STATES: Final = frozenset({"refused", "failed", "abandoned"})
"""States of a call that gave its caller no answer."""

_MESSAGE_LENGTH: Final = 300
_BIG_SHARE: Final = 0.4  # a step that spent this much of a run is worth a clause
_WASTE_SHARE: Final = 0.1  # so is this much of a run's cost that bought no answer
_OWED_SHARE: Final = 0.5  # of a step's cost, from which on its fallbacks are what made it dear
_CALLER_LEFT: Final = 499  # the status of a call whose client went away
_LEFT: Final = {  # who left an abandoned call: as a sentence, and after "2 calls were"
    "caller": ("the caller hung up before the answer was complete", "left by the caller"),
    "unsent": ("the caller hung up before the call was sent", "left by the caller before being sent"),
    "shutdown": (
        "the gateway was shut down, or the caller hung up, before the answer was complete",
        "cut short as the gateway was shut down or the caller hung up",
    ),
    "gateway": (
        "the gateway lost sight of this call, as after a crash or a restart",
        "lost from the gateway's sight",
    ),
}
_ENDS: Final = {
    "length": ("1 answer was cut off at its token limit", "{} answers were cut off at their token limit"),
    "content_filter": ("1 answer was withheld by the provider", "{} answers were withheld by the provider"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A piece of the sentence; `call` (a request id) or `step` (a label) is what it speaks of, if anything."""

    text: str
    call: str | None = None
    step: str | None = None
    strong: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How a run ended.

    `culprit` is the request id of the call to look at first, if there is one. `suspects` are calls that may have
    spoiled the result, where no error explains the end.
    """

    state: str
    parts: tuple[Part, ...]
    culprit: str | None = None
    suspects: tuple[wire.Suspect, ...] = ()

    @property
    def text(self) -> str:
        """The sentence without its links."""
        return "".join(part.text for part in self.parts)


def name_of(run: wire.RunRow) -> str:
    """Return what to call a run: its name, else `unnamed run`, or `single call` for an ungrouped one."""
    if run.name:
        return run.name
    return "unnamed run" if run.grouped else "single call"


def why(
    detail: wire.RunDetail,
    contents: Mapping[str, wire.CallContent] | None = None,
    *,
    now_us: int | None = None,
    good: GoodRun | None = None,
) -> Verdict:
    """Explain a run.

    `contents` is what its calls said, by request id: of those in `suspects.texts_wanted`, as far as it was kept.
    `now_us` (microseconds since the epoch) is used for a run that still goes on; `good` is a run of the same name that
    went well, to compare models and parameters with.
    """
    verdict = _verdict(detail, now_us)
    explained = verdict.state in ("running", "stopped") or (verdict.state == "failed" and verdict.culprit is not None)
    return verdict if explained else replace(verdict, suspects=suspects_of(detail, contents or {}, good=good))


def told(detail: wire.RunDetail, verdict: Verdict) -> wire.Why:
    """Return the verdict of a run as the admin API tells it."""
    run = detail.run
    by = run.stopped_by if verdict.state in ("stopped", "failed") else None
    call = next((call for call in detail.calls if call.request_id == verdict.culprit), None)
    values = {("budget", "run"): run.budget_nanos, ("max_calls", "run"): run.max_calls}
    return wire.Why(
        run_id=run.run_id,
        state=verdict.state,
        sentence=verdict.text,
        parts=[wire.WhyPart(text=part.text, call=part.call, step=part.step) for part in verdict.parts],
        kind=by.kind if by else None,
        code=by.code if by else call.code if call else None,
        scope=by.scope if by else None,
        limit=by.limit if by else None,
        value=values.get((by.kind, by.scope or "")) if by else None,
        step=(by.step if by else None) or (call.step if call else None),
        request_id=verdict.culprit,
        suspects=list(verdict.suspects),
    )


def _verdict(detail: wire.RunDetail, now_us: int | None) -> Verdict:
    match detail.run.state:
        case "stopped":
            return _stopped(detail)
        case "failed":
            return _failed(detail)
        case "recovered":
            return _recovered(detail)
        case "ok":
            return _ok(detail)
        case "running":
            return _running(detail, now_us)
        case "lost":
            return _lost(detail)
        case other:
            parts = (Part(text=other, strong=True), Part(text=f": {_sums(detail.run, len(detail.steps))}."))
            return Verdict(state=other, parts=parts)


def cause(run: wire.RunRow) -> str:
    """Return the cause of a run's end in a few words, for a table; empty where nothing is to be explained."""
    by = run.stopped_by if run.state in ("stopped", "failed") else None
    if by is not None and by.kind == "stopped":
        return shorten("stopped by hand" + (f" during {by.step}" if by.step else ""), 120)
    if by is not None:
        return shorten(_reason(by, run, None, it="a call") + (f" at {by.step}" if by.step else ""), 120)
    if run.error:
        return shorten(run.error, 120)
    if run.state == "recovered":
        return f"{plural(run.errors, 'call')} had no answer, the run went on"
    if run.state == "lost":
        return "no end was reported"
    return ""


# --- stopped ----------------------------------------------------------------------------------------------
def _stopped(detail: wire.RunDetail) -> Verdict:
    by = detail.run.stopped_by
    if by.kind == "stopped" if by is not None else any(_was_cut(call) for call in detail.calls):
        return _stopped_by_hand(detail)
    call = _stopping_call(detail)
    step = (by.step if by else None) or (call.step if call else None)
    parts = [Part(text="Stopped", strong=True), *_place(detail, step, call), Part(text=": ")]
    if by is None:
        parts.append(Part(text=_problem(call) if call else "no cause was reported"))
    else:
        parts.append(Part(text=_reason(by, detail.run, call)))
    if by is None or by.kind in ("budget", "max_calls"):
        parts += _left(detail.run)
        parts += _spender(detail)
        waste = _wasted(detail)
        parts += [Part(text="; "), *waste] if waste else []
    parts.append(Part(text="."))
    return Verdict(state="stopped", parts=tuple(parts), culprit=call.request_id if call else None)


def _stopped_by_hand(detail: wire.RunDetail) -> Verdict:
    """Tell a stop by what it met: the calls in flight that it cut, else the calls that had been made."""
    cut = [call for call in detail.calls if _was_cut(call)]
    late = [call for call in detail.calls if call.state == "refused" and _is_of_a_hand(call)]
    parts = [Part(text="Stopped by hand", strong=True)]
    if cut:
        step = cut[0].step
        if step:
            parts += [Part(text=" during "), _step(detail, step, strong=True), Part(text=", ")]
        else:
            parts.append(Part(text=" during "))
        more = f" and {plural(len(cut) - 1, 'more call')}" if len(cut) > 1 else ""
        parts.append(Part(text=f"call {cut[0].seq}", call=cut[0].request_id, strong=True))
        parts.append(Part(text=f"{more} (cut)"))
    else:
        made = max(0, detail.run.calls - len(late))
        parts.append(Part(text=f" after {plural(made, 'call')}" if made else " before its first call"))
    if late:
        were = "was" if len(late) == 1 else "were"
        refused = Part(text=f"{plural(len(late), 'later call')} {were} refused", call=late[0].request_id)
        parts += [Part(text="; "), refused]
    parts.append(Part(text="."))
    culprit = next((call.request_id for call in (*cut, *late)), None)
    return Verdict(state="stopped", parts=tuple(parts), culprit=culprit)


def _was_cut(call: wire.CallRow) -> bool:
    """Whether a call was in flight when its run was stopped by hand: it had been sent, so it was not refused."""
    return call.state == "failed" and _is_of_a_hand(call)


def _is_of_a_hand(call: wire.CallRow) -> bool:
    return call.code == Code.RUN_STOPPED and call.limit != "max_calls"


def _stopping_call(detail: wire.RunDetail) -> wire.CallRow | None:
    by = detail.run.stopped_by
    if by is not None and by.request_id is not None:
        return next((call for call in detail.calls if call.request_id == by.request_id), None)
    refused = [call for call in detail.calls if call.state == "refused"]
    if by is not None:
        refused = [call for call in refused if call.code == by.code]
    return refused[-1] if refused else None


def _reason(by: wire.StoppedBy, run: wire.RunRow, call: wire.CallRow | None, *, it: str = "this call") -> str:
    """Say which limit, guardrail or person ended a run; `it` is what was refused. No full stop."""
    if by.code == Code.LOOP_DETECTED:
        return "the same request came again and again, which looks like a loop"
    match by.kind:
        case "budget":
            return _budget_reason(by, run, call, it)
        case "rate":
            return f"the {by.limit or 'rate'} limit of the {by.scope or 'key'} was reached"
        case "guardrail":
            names = by.limit or (", ".join(call.guardrails) if call else "")
            return f"guardrail {names} blocked {it}" if names else f"a guardrail blocked {it}"
        case "max_calls":
            most = f"all of its {plural(run.max_calls, 'call')}" if run.max_calls is not None else "all of its calls"
            return f"the run has used {most}"
        case _:
            message = shorten(by.message, _MESSAGE_LENGTH).rstrip(".")
            return f"{by.code}, {message}" if message else by.code


def _budget_reason(by: wire.StoppedBy, run: wire.RunRow, call: wire.CallRow | None, it: str) -> str:
    whose = {
        "run": "the run's budget",
        "role": f"the budget of role {call.role}" if call and call.role else "the role's budget",
        "fleet": f"the budget of fleet {run.fleet}" if run.fleet else "the fleet's budget",
    }.get(by.scope or "", "a budget")
    if by.scope == "run" and run.budget_nanos is not None:
        whose += f" {format_nanos(run.budget_nanos)}"
    if by.code == Code.BUDGET_EXHAUSTED:
        return f"{whose} did not allow {it}"
    if by.code == Code.REQUEST_EXCEEDS_BUDGET:
        return f"{it} could cost more than all of {whose}"
    if by.code == Code.BUDGET_HELD:
        return f"{whose} was held by calls still in flight"
    return f"{whose} did not allow {it} ({by.code})"


def _left(run: wire.RunRow) -> list[Part]:
    if run.budget_nanos is None or run.stopped_by is None or run.stopped_by.scope != "run":
        return []
    left = run.budget_nanos - run.cost_nanos
    return [Part(text=f", {format_nanos(left)} of it was left")] if left > 0 else []


def _spender(detail: wire.RunDetail) -> list[Part]:
    total = sum(step.cost_nanos for step in detail.steps)
    spending = [step for step in detail.steps if step.cost_nanos > 0]
    if len(spending) < 2:
        return []
    most = max(spending, key=lambda step: step.cost_nanos)
    if most.cost_nanos < _BIG_SHARE * total:
        return []
    share = percent(most.cost_nanos, max(total, detail.run.cost_nanos))
    spent = Part(text=f" spent {share}{_because(most, detail.calls)}")
    return [Part(text="; "), _step(detail, most.step), spent]


def _because(step: wire.StepRow, calls: Sequence[wire.CallRow]) -> str:
    """Say that a step was dear as its calls fell back, where these made half of its cost or more."""
    moved = [call for call in calls if call.step == step.step and _fell_back(call)]
    if not moved or sum(call.cost_nanos or 0 for call in moved) < _OWED_SHARE * step.cost_nanos:
        return ""
    first = moved[0].attempt_rows[0]
    met = f"answered {first.status}" if first.status else "gave no answer"
    return f" because {first.model} {met} and fell back to {_server(moved[0])}"


def _wasted(detail: wire.RunDetail) -> list[Part]:
    """Tell what share of a run's cost bought no answer: calls without one, and attempts before the last."""
    waste: dict[str, int] = {}
    for call in detail.calls:
        lost = (call.cost_nanos or 0) if call.state in PROBLEM_STATES else 0
        if call.state == "ok":
            lost = sum(attempt.cost_nanos or 0 for attempt in call.attempt_rows[:-1])
        if lost:
            waste[call.request_id] = lost
    total = sum(waste.values())
    if not total or total < _WASTE_SHARE * detail.run.cost_nanos:
        return []
    dearest = max(waste, key=waste.__getitem__)
    share = percent(total, max(total, detail.run.cost_nanos))
    return [Part(text=f"{share} of the cost bought no answer", call=dearest)]


# --- failed -----------------------------------------------------------------------------------------------
def _failed(detail: wire.RunDetail) -> Verdict:
    call = _failing_call(detail)
    if call is not None:
        parts = [Part(text="Failed", strong=True), *_place(detail, call.step, call), Part(text=f": {_problem(call)}")]
        parts += [Part(text=_attempts_clause(call)), Part(text=".")]
        if detail.run.error and (not call.error or call.error.rstrip(". ") not in detail.run.error):
            parts.append(Part(text=f" The application ended with {_sentence(detail.run.error)}."))
        return Verdict(state="failed", parts=tuple(parts), culprit=call.request_id)
    step = next((step for step in reversed(detail.steps) if step.state == "failed"), None)
    error = (step.error if step else None) or detail.run.error or "no error was reported"
    parts = [Part(text="Failed", strong=True), *_place(detail, step.step if step else None, None)]
    parts.append(Part(text=f": {_sentence(error)}."))
    if detail.calls and not any(each.state in PROBLEM_STATES for each in detail.calls):
        all_of = "The one call" if len(detail.calls) == 1 else f"All {len(detail.calls):,} calls"
        parts.append(Part(text=f" {all_of} to models succeeded, so look at the application."))
    return Verdict(state="failed", parts=tuple(parts))


def _failing_call(detail: wire.RunDetail) -> wire.CallRow | None:
    """Return the last call without an answer, unless a later one of its step and model made up for it."""
    problems = [call for call in detail.calls if call.state in PROBLEM_STATES]
    if not problems or problems[-1].request_id in _made_up_for(detail.calls):
        return None
    return problems[-1]


def _attempts_clause(call: wire.CallRow) -> str:
    if len(call.attempt_rows) < 2:
        return ""
    tries = ", ".join(f"{row.model} {row.status or row.error or 'no answer'}" for row in call.attempt_rows[:6])
    more = ", \N{HORIZONTAL ELLIPSIS}" if len(call.attempt_rows) > 6 else ""
    return f", after {plural(len(call.attempt_rows), 'attempt')} ({tries}{more})"


# --- recovered, ok, running, lost -------------------------------------------------------------------------
def _recovered(detail: wire.RunDetail) -> Verdict:
    problems = [call for call in detail.calls if call.state in PROBLEM_STATES]
    parts = [Part(text="Recovered", strong=True), Part(text=": ")]
    if problems:
        parts += _overcome(problems, _made_up_for(detail.calls))
    moved = _fallbacks(detail.calls)
    if moved:
        parts += [Part(text="; " if problems else ""), *moved]
    if not problems and not moved:
        parts.append(Part(text="problems were reported and handled"))
    waste = _wasted(detail)
    parts += [Part(text="; "), *waste] if waste else []
    parts.append(Part(text=f". {_capital(_sums(detail.run, len(detail.steps)))}."))
    return Verdict(state="recovered", parts=tuple(parts), culprit=problems[0].request_id if problems else None)


def _overcome(problems: Sequence[wire.CallRow], made_up: frozenset[str]) -> list[Part]:
    """Tell what a run went through, kind by kind; one that did not succeed later keeps its kind from saying so."""
    later: list[Part] = []
    not_later: list[Part] = []
    for label, number in Counter(_label(call) for call in problems).items():
        alike = [call for call in problems if _label(call) == label]
        were = "was " if number == 1 else "were "
        passive = "" if label.startswith("failed") else were
        part = Part(text=f"{plural(number, 'call')} {passive}{label}", call=alike[0].request_id)
        (later if all(call.request_id in made_up for call in alike) else not_later).append(part)
    told = [*_joined(later), Part(text=" and later succeeded")] if later else []
    if not_later:
        told += [Part(text="; ")] if later else []
        told += [*_joined(not_later), Part(text=", and the run went on")]
    return told


def _ok(detail: wire.RunDetail) -> Verdict:
    parts = [Part(text="OK", strong=True), Part(text=f": {_sums(detail.run, len(detail.steps))}")]
    for note in (_fallbacks(detail.calls), _odd_ends(detail.calls), _wasted(detail)):
        if note:
            parts += [Part(text="; "), *note]
    parts.append(Part(text="."))
    return Verdict(state="ok", parts=tuple(parts))


def _running(detail: wire.RunDetail, now_us: int | None) -> Verdict:
    run = detail.run
    last = detail.calls[-1] if detail.calls else None
    took = f" for {duration(now_us - run.started_us)}" if now_us is not None else ""
    step = next((step.step for step in reversed(detail.steps) if step.state == "running"), None)
    parts = [Part(text=f"Running{took}", strong=True), *_place(detail, (last and last.step) or step, last)]
    parts.append(Part(text=f": {plural(run.calls, 'call')} so far, {_spent(run)}"))
    problems = sum(call.state in PROBLEM_STATES for call in detail.calls)
    if problems:
        parts.append(Part(text=f", {plural(problems, 'call')} without an answer"))
    parts.append(Part(text="."))
    return Verdict(state="running", parts=tuple(parts), culprit=last.request_id if last else None)


def _lost(detail: wire.RunDetail) -> Verdict:
    last = detail.calls[-1] if detail.calls else None
    parts = [Part(text="Lost", strong=True), Part(text=": the application reported no end; ")]
    if last is None:
        parts.append(Part(text="it made no call."))
        return Verdict(state="lost", parts=tuple(parts))
    ended = "is still open" if last.state == "open" else _problem(last) if last.state in PROBLEM_STATES else "succeeded"
    parts += [Part(text="its last call,"), *_place(detail, last.step, last), Part(text=f", {ended}. ")]
    parts.append(Part(text=f"{_capital(_sums(detail.run, len(detail.steps)))}."))
    return Verdict(state="lost", parts=tuple(parts), culprit=last.request_id)


def _fallbacks(calls: Sequence[wire.CallRow]) -> list[Part]:
    moved = [call for call in calls if _fell_back(call)]
    if not moved:
        return []
    first = moved[0]
    failed, served = first.attempt_rows[0].model, _server(first)
    text = f"{plural(len(moved), 'call')} fell back from {failed} to {served}"
    same = all((call.attempt_rows[0].model, _server(call)) == (failed, served) for call in moved)
    return [
        Part(
            text=text if same else f"{plural(len(moved), 'call')} fell back to another model",
            call=first.request_id,
        )
    ]


def _fell_back(call: wire.CallRow) -> bool:
    return call.state == "ok" and any(attempt.reason == "fallback" for attempt in call.attempt_rows)


def _server(call: wire.CallRow) -> str:
    """Return the model that served a call that fell back."""
    return call.model_served or call.attempt_rows[-1].model


def _odd_ends(calls: Sequence[wire.CallRow]) -> list[Part]:
    told = []
    for reason, (one, many) in _ENDS.items():
        cut = [call for call in calls if call.finish_reason == reason]
        if cut:
            told.append(Part(text=one if len(cut) == 1 else many.format(len(cut)), call=cut[0].request_id))
    return _joined(told)


# --- words ------------------------------------------------------------------------------------------------
def _step(detail: wire.RunDetail, step: str, *, strong: bool = False) -> Part:
    """Write `step 3 critique`; without a number where nobody reported the step."""
    number = next((n for n, (row, _) in enumerate(steps_in_order(detail.steps), 1) if row.step == step), None)
    return Part(text=f"step {step}" if number is None else f"step {number} {step}", step=step, strong=strong)


def _place(detail: wire.RunDetail, step: str | None, call: wire.CallRow | None) -> list[Part]:
    """Write ` at step 3 critique, call 7` with links."""
    parts = [Part(text=" at "), _step(detail, step, strong=True)] if step else []
    if call is not None:
        parts += [
            Part(text=", " if parts else " at "),
            Part(text=f"call {call.seq}", call=call.request_id, strong=True),
        ]
    return parts


def _problem(call: wire.CallRow) -> str:
    """Say what became of a call that has no answer. No full stop."""
    if call.state == "abandoned":
        return f"{_LEFT[_abandoned_by(call)][0]}{_last_word(call)}{_charged(call)}"
    if call.code == Code.GATEWAY_STOPPING:
        return f"the gateway was shut down before the answer was complete{_charged(call)}"
    code = call.code or (f"HTTP {call.status}" if call.status else call.state)
    error = _sentence(call.error) if call.error else ""
    return f"{code}, {error}" if error else code


def _label(call: wire.CallRow) -> str:
    if call.state == "abandoned":
        return _LEFT[_abandoned_by(call)][1]
    what = f"{call.status or 'no status'} ({call.limit or call.code or call.state})"
    return f"refused with {what}" if call.state == "refused" else f"failed with {what}"


def _abandoned_by(call: wire.CallRow) -> str:
    """Return who left an abandoned call: a key of `_LEFT`.

    The gateway writes 499 while it lives to see the end. It closes a call without a status when it finds it open
    after a crash or restart, or past the time of its hold.
    """
    if call.status != _CALLER_LEFT:
        return "gateway"
    if "shut down" in (call.error or ""):
        return "shutdown"
    return "unsent" if "before the call was sent" in (call.error or "") else "caller"


def _last_word(call: wire.CallRow) -> str:
    """Say what the last attempt met, where a call was lost between two attempts."""
    error = call.attempt_rows[-1].error if call.attempt_rows else None
    lost_on_the_way = _abandoned_by(call) == "gateway" and error and "lost sight" not in error
    return f"; its last attempt had met: {_sentence(error)}" if error and lost_on_the_way else ""


def _charged(call: wire.CallRow) -> str:
    if call.usage_source != "hold" or not call.cost_nanos:
        return ""
    return f"; it was charged at its hold, {format_nanos(call.cost_nanos)}"


def _made_up_for(calls: Iterable[wire.CallRow]) -> frozenset[str]:
    """Return the calls without an answer that were made up for, by request id.

    Each needs a success of its own: a later call of the same step that asked the same model and got an answer.
    """
    spare: Counter[tuple[str | None, str | None]] = Counter()
    made_up = set()
    for call in sorted(calls, key=lambda call: (call.started_us, call.seq), reverse=True):
        of = (call.step, call.model_asked)
        if call.state == "ok":
            spare[of] += 1
        elif call.state in PROBLEM_STATES and spare[of] > 0:
            spare[of] -= 1
            made_up.add(call.request_id)
    return frozenset(made_up)


def _joined(parts: Sequence[Part]) -> list[Part]:
    joined: list[Part] = []
    for index, part in enumerate(parts):
        if index:
            joined.append(Part(text=" and " if index == len(parts) - 1 else ", "))
        joined.append(part)
    return joined


def _sums(run: wire.RunRow, steps: int) -> str:
    calls = plural(run.calls, "call")
    where = f" in {plural(steps, 'step')}" if steps else ""
    took = f", {duration(run.ended_us - run.started_us)}" if run.ended_us is not None else ""
    return f"{calls}{where}, {format_nanos(run.cost_nanos)}{took}"


def _spent(run: wire.RunRow) -> str:
    spent = format_nanos(run.cost_nanos)
    if run.budget_nanos is None:
        return spent
    return f"{spent} of {format_nanos(run.budget_nanos)} ({percent(run.cost_nanos, run.budget_nanos)})"


def _sentence(text: str) -> str:
    return shorten(text, _MESSAGE_LENGTH).rstrip(". ")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
