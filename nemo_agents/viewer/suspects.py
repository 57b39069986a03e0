"""What may have spoiled the result of a run that met no error: calls to look at, the strongest suspicion first.

Pure. Everything is read from records and contents; what was not kept is not guessed. Each rule would rather miss a
fault than suspect a sound call.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from nemo_agents.admin import wire
from nemo_agents.viewer.calls import other_model
from nemo_agents.viewer.content import Content, Message, content_of
from nemo_agents.viewer.text import shorten

__all__ = ["GoodRun", "suspects_of", "texts_wanted"]

MOST_TEXTS: Final = 40  # of the last calls, whose contents are looked at
MOST_SUSPECTS: Final = 10
_MOST_OF_A_KIND: Final = 3
_LAST: Final = 10  # what is added to the weight of the last call: its answer is likeliest the result
_TIMES: Final = 3  # so often the same answer is no accident
_LENGTH: Final = 80

# How a model begins that refuses; in the first words alone, as an answer may well quote such a phrase.
_REFUSAL: Final = re.compile(
    r"(?:i['\u2019]?m (?:very |really )?sorry|i am sorry|sorry|(?:i )?apologi[sz]e),? (?:but )?i "
    r"(?:can(?:no|['\u2019])t|am (?:not able|unable)|won['\u2019]t)\b"
    r"|i (?:can(?:no|['\u2019])t|am unable to|won['\u2019]t) "
    r"(?:help|assist|comply|fulfil|provide (?:that|this|assistance)|do that|discuss)",
    re.IGNORECASE,
)
# How the text of a tool begins that failed: a traceback, the name of an exception, or the word.
_TOOL_ERROR: Final = re.compile(
    r"traceback \(most recent call last\)|(?:[\w.]*(?:Error|Exception)|error|failed|exception)\b\s*[:(]"
    r"|error (?:executing|calling|running|while|in|invoking)\b|\{\s*\"error\"\s*:\s*(?!null|false|\"\"|\[\]|\{\})",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GoodRun:
    """A run of the same name that went well, with what its calls said."""

    detail: wire.RunDetail
    contents: Mapping[str, wire.CallContent]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Said:
    """A call that got an answer, and what it said where that was kept."""

    row: wire.CallRow
    kept: wire.CallContent | None
    content: Content | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    kind: str
    weight: int
    sentence: str
    row: wire.CallRow


def texts_wanted(detail: wire.RunDetail) -> list[str]:
    """Return the request ids of the calls whose contents `suspects_of` looks at."""
    if detail.run.state in ("running", "stopped"):
        return []
    return [call.request_id for call in _answered(detail)[-MOST_TEXTS:]]


def suspects_of(
    detail: wire.RunDetail, contents: Mapping[str, wire.CallContent], *, good: GoodRun | None = None
) -> tuple[wire.Suspect, ...]:
    """Return what may have spoiled the result, at most ten, the strongest first.

    `contents` holds what calls said, by request id; `good` is a run to compare models and parameters with.
    """
    calls = _answered(detail)
    wanted = {call.request_id for call in calls[-MOST_TEXTS:]}
    said = [_said(call, contents.get(call.request_id) if call.request_id in wanted else None) for call in calls]
    found = [*_ends(said), *_answers(said), *_tools(said), *_repeated(said), *_lost(said), *_servers(said)]
    if good is not None:
        found += _changed(said, good)
    last = calls[-1].request_id if calls else None
    ranked = sorted(_merged(found, last), key=lambda each: (-each.weight, each.seq, each.kind))
    of_kind = Counter[str]()
    told: list[wire.Suspect] = []
    for each in ranked:
        of_kind[each.kind] += 1
        if of_kind[each.kind] <= _MOST_OF_A_KIND:
            told.append(each)
    return tuple(told[:MOST_SUSPECTS])


def _answered(detail: wire.RunDetail) -> list[wire.CallRow]:
    return [call for call in detail.calls if call.state == "ok"]


def _said(row: wire.CallRow, kept: wire.CallContent | None) -> _Said:
    return _Said(row=row, kept=kept, content=content_of(kept) if kept is not None else None)


def _merged(found: Sequence[_Found], last: str | None) -> Iterator[wire.Suspect]:
    """Tell one suspicion of a kind and step, by its strongest call; the rest is a number behind it."""
    groups: dict[tuple[str, str | None], list[_Found]] = {}
    for each in found:
        groups.setdefault((each.kind, each.row.step), []).append(each)
    for (kind, step), alike in groups.items():
        chosen = max(alike, key=lambda each: (each.row.request_id == last, each.weight, -each.row.seq))
        others = len({each.row.request_id for each in alike} - {chosen.row.request_id})
        more = f" (and {others} more)" if others else ""
        yield wire.Suspect(
            kind=kind,
            weight=min(100, chosen.weight + (_LAST if chosen.row.request_id == last else 0)),
            sentence=f"{chosen.sentence}{more}.",
            request_id=chosen.row.request_id,
            seq=chosen.row.seq,
            step=step,
        )


def _ends(said: Sequence[_Said]) -> Iterator[_Found]:
    for each in said:
        reason = each.row.finish_reason
        if reason == "length":
            yield _Found(kind="cut_off", weight=75, sentence="The answer was cut off at its token limit", row=each.row)
        elif reason == "content_filter":
            yield _Found(kind="withheld", weight=85, sentence="The provider withheld the answer", row=each.row)


# --- answers ----------------------------------------------------------------------------------------------
def _answers(said: Sequence[_Said]) -> Iterator[_Found]:
    for each in said:
        if each.content is None or not each.content.answer or each.kept is None:
            continue
        answer = each.content.answer
        text, refusal = _text_of(answer), _refusal_of(answer)
        calls_tool = any(block.kind == "tool_call" for message in answer for block in message.blocks)
        if refusal or _REFUSAL.match(text):
            quoted = shorten(refusal or text, _LENGTH)
            weight = 85 if refusal else 65
            yield _Found(kind="refusal", weight=weight, sentence=f'The model refused: "{quoted}"', row=each.row)
        elif not text and not calls_tool and _is_plain(answer):
            yield _Found(kind="empty", weight=75, sentence="The answer was empty", row=each.row)
        elif text and not calls_tool and _asks_json(each.kept.params) and not _is_json(text):
            sentence = f'JSON was asked for, and the answer is none: "{shorten(text, _LENGTH)}"'
            yield _Found(kind="not_json", weight=80, sentence=sentence, row=each.row)


def _text_of(answer: Sequence[Message]) -> str:
    blocks = [block for message in answer for block in message.blocks]
    return "\n".join(block.body for block in blocks if block.kind == "text" and not block.title).strip()


def _refusal_of(answer: Sequence[Message]) -> str:
    blocks = [block for message in answer for block in message.blocks]
    return "\n".join(block.body for block in blocks if block.kind == "text" and block.title == "refusal").strip()


def _is_plain(answer: Sequence[Message]) -> bool:
    """Whether there is nothing but text in it: pictures, vectors and the like are not empty."""
    return all(block.kind == "text" for message in answer for block in message.blocks)


def _asks_json(params: Mapping[str, Any]) -> bool:
    """Whether Chat Completions' `response_format`, or Responses' `text.format`, asks for JSON."""
    text = params.get("text")
    asked = params.get("response_format") or (text.get("format") if isinstance(text, dict) else None)
    return isinstance(asked, dict) and asked.get("type") in ("json_object", "json_schema")


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


# --- what went into a call --------------------------------------------------------------------------------
def _tools(said: Sequence[_Said]) -> Iterator[_Found]:
    """Yield what a tool told as an error, at the first call that was given it."""
    seen: set[str] = set()
    for each in said:
        for raw, message in zip(_raw(each), each.content.prompt if each.content else (), strict=False):
            for flagged, text in _results(raw, message):
                if not (flagged or _TOOL_ERROR.match(text.lstrip())) or text in seen:
                    continue
                seen.add(text)
                told = f': "{shorten(text, _LENGTH)}"' if text.strip() else ""
                sentence = f"A tool's error was given to the model{told}"
                yield _Found(kind="tool_error", weight=75 if flagged else 60, sentence=sentence, row=each.row)


def _raw(each: _Said) -> Sequence[Any]:
    return each.kept.prompt if each.kept is not None else ()


def _results(raw: Any, message: Message) -> Iterator[tuple[bool, str]]:
    """Yield what tools gave back in a message, and whether it is marked as an error."""
    parts = raw.get("content") if isinstance(raw, dict) else None
    marks = (
        [isinstance(part, dict) and part.get("is_error") is True for part in parts] if isinstance(parts, list) else []
    )
    whole = isinstance(raw, dict) and raw.get("is_error") is True
    is_tool = message.role in ("tool", "function")
    aligned = len(marks) == len(message.blocks)
    for index, block in enumerate(message.blocks):
        if block.kind == "tool_result" or (is_tool and block.kind == "text"):
            yield whole or (aligned and marks[index]), block.body


def _repeated(said: Sequence[_Said]) -> Iterator[_Found]:
    """Yield the call that gave an answer of its step for the third time, if there is one."""
    times: dict[tuple[str | None, str], int] = {}
    at: dict[tuple[str | None, str], wire.CallRow] = {}
    for each in said:
        if each.content is None or not each.content.answer:
            continue
        blocks = [(b.kind, b.title, b.body.strip()) for m in each.content.answer for b in m.blocks]
        if not any(body or title for _, title, body in blocks):
            continue
        key = (each.row.step, repr(blocks))
        times[key] = times.get(key, 0) + 1
        if times[key] == _TIMES:
            at[key] = each.row
    for key, row in at.items():
        sentence = f"The same answer came {times[key]} times in this step"
        yield _Found(kind="repeated", weight=70, sentence=sentence, row=row)


def _lost(said: Sequence[_Said]) -> Iterator[_Found]:
    """Yield calls whose conversation goes on with messages of the one before it missing.

    It goes on where both have an answer or a tool's result in common; two conversations that only begin alike do not.
    """
    last: dict[str | None, _Said] = {}
    for each in said:
        if each.kept is None or not each.kept.prompt:
            continue
        before = last.get(each.row.step)
        last[each.row.step] = each
        if before is None or before.kept is None or _end_us(before.row) > each.row.started_us:
            continue
        here = each.kept.prompt
        common = _in_common(before.kept.prompt, here)
        missing = len(before.kept.prompt) - len(common)
        if missing and any(_is_reply(message) for message in common):
            sentence = (
                f"{missing} message{'s' if missing > 1 else ''} of the call before "
                f"(call {before.row.seq}) {'are' if missing > 1 else 'is'} missing in its prompt"
            )
            yield _Found(kind="lost_context", weight=50, sentence=sentence, row=each.row)


def _in_common(before: Sequence[Any], here: Sequence[Any]) -> list[Any]:
    """Return the messages of a prompt that another has as well; most stand where they stood: it looks there first."""
    return [said for at, said in enumerate(before) if (at < len(here) and here[at] == said) or said in here]


def _is_reply(message: Any) -> bool:
    return isinstance(message, dict) and (
        message.get("role") in ("assistant", "tool", "function") or message.get("type") == "function_call_output"
    )


def _end_us(call: wire.CallRow) -> int:
    return call.started_us + (call.latency_us or 0)


# --- how a call was served --------------------------------------------------------------------------------
def _servers(said: Sequence[_Said]) -> Iterator[_Found]:
    for each in said:
        row = each.row
        changed = [name.partition(":")[0] for name in row.guardrails if name.endswith(": redact")]
        if changed:
            what = "Guardrail" if len(changed) == 1 else "Guardrails"
            sentence = f"{what} {', '.join(changed)} changed the prompt"
            yield _Found(kind="redacted", weight=45, sentence=sentence, row=row)
        if any(attempt.reason == "fallback" for attempt in row.attempt_rows):
            first, served = row.attempt_rows[0].model, row.model_served or row.attempt_rows[-1].model
            if served != first:
                asked = f" (asked for as {row.model_asked})" if row.model_asked and other_model(row) else ""
                sentence = f"{served} answered in place of {first}{asked}"
                yield _Found(kind="other_model", weight=40, sentence=sentence, row=row)


def _changed(said: Sequence[_Said], good: GoodRun) -> Iterator[_Found]:
    """Yield the first call of each step that was served by another model, or at another temperature, than before."""
    before: dict[str | None, _Said] = {}
    for call in _answered(good.detail):
        before.setdefault(call.step, _said(call, good.contents.get(call.request_id)))
    seen: set[str | None] = set()
    for each in said:
        was = before.get(each.row.step)
        if was is None or each.row.step in seen:
            continue
        seen.add(each.row.step)
        now = (each.row.model_served, _temperature(each))
        then = (was.row.model_served, _temperature(was))
        differences = [
            f"{what} {_word(new)}, in the good run {_word(old)}"
            for what, new, old in (("the model is", now[0], then[0]), ("the temperature is", now[1], then[1]))
            if new != old and (what == "the model is" or (each.kept is not None and was.kept is not None))
        ]
        if differences:
            text = "; ".join(differences)
            yield _Found(kind="changed", weight=45, sentence=text[:1].upper() + text[1:], row=each.row)


def _temperature(each: _Said) -> Any:
    return each.kept.params.get("temperature") if each.kept is not None else None


def _word(value: Any) -> str:
    return "not set" if value is None else shorten(str(value), _LENGTH)
