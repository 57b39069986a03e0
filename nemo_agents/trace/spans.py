"""Spans of agents, tasks and tools in a run, kept in bounded memory and sent to the gateway behind the run's back.

Nothing here raises into an agent or makes it wait, whatever the thread: what cannot be kept is dropped and counted.
"""

from __future__ import annotations

import json
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextvars import Token
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Final, Self

from nemo_agents.errors import AdminError, GatewayUnreachable
from nemo_agents.policy.keys import hide_keys
from nemo_agents.trace import answers, context, propagate
from nemo_agents.trace.context import Answer, Place
from nemo_agents.trace.otlp import AttributeValue, SpanKind, SpanRecord

__all__ = ["SPANS_MAX", "TEXT_BYTES_MAX", "Span", "SpanKind", "Spans", "as_text", "shown_text"]

SPANS_MAX: Final = 10_000  # open or waiting to be sent
TEXT_BYTES_MAX: Final = 32_768  # of one input or output
_SLACK_BYTES: Final = 256  # a key across the cut is whole until it is hidden
_CUT: Final = "…"
_WAITING_BYTES_MAX: Final = 64 * 1024 * 1024  # of all inputs, outputs and attributes that wait
_NAME_LENGTH_MAX: Final = 200
_BATCH_MAX: Final = 500
_BATCH_BYTES_MAX: Final = 1024 * 1024
_EVERY_S: Final = 1.0
_COME_BACK: Final = 503  # the status of a gateway that has too much to do, or no database, for a moment
_NEVER_ENDED: Final = "nemo.span.never_ended"  # set where the run was over before the span was closed

Send = Callable[[Sequence[SpanRecord]], None]


@dataclass(slots=True, kw_only=True)
class _Open:
    parent_id: str
    kind: SpanKind
    name: str
    step: str | None
    role: str | None
    started_us: int
    input: str | None
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)


class Spans:
    """The spans of one run; `run.spans`. Every method may be called from any thread, and none raises or waits.

    `dropped` counts spans that were lost because there were too many, or because the gateway did not take them;
    `send_error` is what it said last.
    """

    def __init__(self, run: Place, *, send: Send, clock_us: Callable[[], int], new_span_id: Callable[[], str]) -> None:
        self._run = run
        self._send = send
        self._clock_us = clock_us
        self._new_span_id = new_span_id
        self.dropped = 0
        self.send_error: Exception | None = None
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._open: dict[str, _Open] = {}
        self._waiting: deque[SpanRecord] = deque()
        self._waiting_bytes = 0
        self._sender: threading.Thread | None = None
        self._ended = False

    def open(
        self,
        kind: SpanKind,
        name: str,
        *,
        parent_id: str | None = None,
        step: str | None = None,
        role: str | None = None,
        input: object = None,  # noqa: A002 - the attribute's name
        attributes: Mapping[str, AttributeValue] | None = None,
    ) -> str:
        """Begin a span and return its id: 16 hex digits.

        It lies under the span of this id, by default at the current place of this run; `step` (a label) and `role`
        are by default those of what it lies under. `input` is a text or anything that JSON can say, cut at 32 KB.
        """
        span_id = self._new_span_id()
        try:
            around = self._place(step)
            span = _Open(
                parent_id=around.span_id if parent_id is None else parent_id,
                kind=kind,
                name=_name(name),
                step=step,
                role=role,
                started_us=self._clock_us(),
                input=as_text(input),
                attributes=_kept(attributes or {}),
            )
            self._begin(span_id, span, around)
        except Exception as exc:  # noqa: BLE001 - telling about a run never breaks the run
            self._lose(exc)
        return span_id

    def close(self, span_id: str, *, output: object = None, error: BaseException | str | None = None) -> None:
        """End a span; an id that is not open (any more) is nothing. `error` makes it a failed one."""
        try:
            told = answers.describe(error) if isinstance(error, BaseException) else error
            self._end(span_id, output=as_text(output), error=None if told is None else answers.shown(told) or "failed")
        except Exception as exc:  # noqa: BLE001 - telling about a run never breaks the run
            self._lose(exc)

    def link(self, request_id: str, parent_id: str) -> None:
        """Say that a model call belongs under a span; `request_id` is `x-nemo-request-id` of its answer."""
        try:
            now_us = self._clock_us()
            with self._alive():
                if self._ended:
                    self.dropped += 1
                    return
                under = self._open.get(parent_id)
                link = SpanRecord(
                    span_id=self._new_span_id(),
                    parent_id=parent_id,
                    kind="other",
                    name="model call",
                    step=None if under is None else under.step,
                    role=None if under is None else under.role,
                    started_us=now_us,
                    ended_us=now_us,
                    request_id=request_id,
                )
                self._wait_in_line(link)
                self._start()
        except Exception as exc:  # noqa: BLE001 - telling about a run never breaks the run
            self._lose(exc)

    def finish(self, *, error: str | None = None) -> threading.Thread | None:
        """End the recording, with every span that is still open; `error` is what the run died of.

        What waits is sent in the background: join the thread that is returned. None when there is nothing to send.
        """
        with self._alive():
            now_us = self._clock_us()
            for span_id, span in self._open.items():
                record = _ended(span_id, span, ended_us=now_us, output=None, error=error)
                self._wait_in_line(replace(record, attributes={**record.attributes, _NEVER_ENDED: True}))
            self._open.clear()
            self._ended = True
            self._changed.notify_all()
            return self._sender

    # --- under the lock ---
    def _alive(self) -> threading.Condition:
        if self._pid != os.getpid():
            self._reset()  # a fork: the thread and what waits are the parent's, and its lock may be held for ever
        return self._changed

    def _begin(self, span_id: str, span: _Open, around: Place) -> None:
        with self._alive():
            under = self._open.get(span.parent_id)
            if span.step is None:
                span.step = around.step_label if under is None else under.step
            if span.role is None:
                span.role = around.role if under is None else under.role
            if self._ended or self._run.over or not self._has_room():
                self.dropped += 1
                return
            self._open[span_id] = span
            self._start()

    def _end(self, span_id: str, *, output: str | None, error: str | None) -> None:
        now_us = self._clock_us()
        with self._alive():
            span = self._open.pop(span_id, None)
            if span is not None:
                self._wait_in_line(_ended(span_id, span, ended_us=now_us, output=output, error=error))

    def _has_room(self) -> bool:
        if len(self._open) + len(self._waiting) < SPANS_MAX:
            return True
        return self._drop_oldest()

    def _drop_oldest(self) -> bool:
        if not self._waiting:
            return False
        self._waiting_bytes -= _size(self._waiting.popleft())
        self.dropped += 1
        return True

    def _make_room(self) -> None:
        while self._waiting_bytes > _WAITING_BYTES_MAX or len(self._open) + len(self._waiting) > SPANS_MAX:
            if not self._drop_oldest():
                return

    def _wait_in_line(self, record: SpanRecord) -> None:
        self._waiting.append(record)
        self._waiting_bytes += _size(record)
        self._make_room()
        if len(self._waiting) >= _BATCH_MAX:
            self._changed.notify_all()

    def _start(self) -> None:
        if self._sender is None:
            self._sender = threading.Thread(target=self._work, name=f"nemo-spans-{self._run.run_id}", daemon=True)
            try:
                self._sender.start()
            except RuntimeError:  # no thread to be had: spans wait for one, and the oldest are dropped
                self._sender = None
                raise

    # --- the sender's thread ---
    def _work(self) -> None:
        went_well = True
        while True:
            with self._changed:
                if not self._ended and (len(self._waiting) < _BATCH_MAX or not went_well):
                    self._changed.wait(_EVERY_S)
                last = self._ended
                batch = self._take()
                if not batch and last:
                    return
            if batch:
                went_well = self._deliver(batch, last=last)

    def _take(self) -> list[SpanRecord]:
        batch: list[SpanRecord] = []
        size = 0
        while self._waiting and len(batch) < _BATCH_MAX:
            following = _size(self._waiting[0])
            if batch and size + following > _BATCH_BYTES_MAX:
                break
            batch.append(self._waiting.popleft())
            size += following
        self._waiting_bytes -= size
        return batch

    def _deliver(self, batch: Sequence[SpanRecord], *, last: bool) -> bool:
        """Send a batch; keep it for later when the gateway cannot take it now, except at the run's end."""
        try:
            self._send([_presentable(span) for span in batch])
        except (GatewayUnreachable, AdminError) as exc:
            if last or (isinstance(exc, AdminError) and exc.status != _COME_BACK):
                self._lose(exc, spans=len(batch))
                return False
            self.send_error = exc
            with self._changed:
                self._waiting.extendleft(reversed(batch))
                self._waiting_bytes += sum(map(_size, batch))
                self._make_room()
            return False
        except Exception as exc:  # noqa: BLE001 - telling about a run never breaks the run
            self._lose(exc, spans=len(batch))
            return False
        self.send_error = None
        return True

    def _lose(self, exc: Exception, *, spans: int = 1) -> None:
        self.send_error = exc
        self.dropped += spans

    def _place(self, step: str | None) -> Place:
        """Return the current place in this run, or the step of this label where that is in another; else the run."""
        place = context.here()
        if place is None or place.run_id != self._run.run_id:
            place = self._run
        return place if step is None or place.step_label == step else self._run.at(step)


class Span:
    """A span as a block: `with run.span("tool", "web_search", input=query) as span`.

    Calls that are made inside lie under it. What is put into `output` is kept; an exception that leaves the block
    makes the span a failed one, and goes on. `sys.exit(0)` is no failure, nor is a stream that was not read to its end.
    """

    def __init__(
        self,
        run: Place,
        spans: Spans,
        kind: SpanKind,
        name: str,
        *,
        role: str | None = None,
        input: object = None,  # noqa: A002 - the attribute's name
        attributes: Mapping[str, AttributeValue] | None = None,
    ) -> None:
        self.kind = kind
        self.name = name
        self.output: object = None
        self._run = run
        self._spans = spans
        self._told: dict[str, Any] = {"role": role, "input": input, "attributes": attributes}
        self._role = role
        self._around: Place = run
        self._span_id: str | None = None
        self._open = False
        self._token: Token[Place | None] | None = None

    def __repr__(self) -> str:
        return f"Span({self.kind!r}, {self.name!r})"

    @property
    def id(self) -> str:
        """The span's id: 16 hex digits. Raises RuntimeError before the block is entered."""
        if self._span_id is None:
            raise RuntimeError(f"enter the span first: with run.span({self.kind!r}, {self.name!r}) as span")
        return self._span_id

    def __enter__(self) -> Self:
        if self._span_id is not None:
            raise RuntimeError(f"the span {self.name} was entered before; a second pass is a span of its own")
        place = context.here()
        self._around = place if place is not None and place.run_id == self._run.run_id else self._run
        self._span_id = self._spans.open(self.kind, self.name, **self._told)
        self._told.clear()  # the input is kept as text
        self._open = True
        self._token = context.enter(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        if self._token is not None:
            context.leave(self._token)
        well = exc is None or isinstance(exc, GeneratorExit) or answers.is_plain_exit(exc)
        self._spans.close(self.id, output=self.output, error=None if well else exc)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, exc, trace)

    # --- where calls happen (trace.context.Place) ---
    @property
    def gateway_url(self) -> str:
        """The gateway that the run lives on."""
        return self._run.gateway_url

    @property
    def around(self) -> Place:
        """The step, span or run that this span was entered in."""
        return self._around

    @property
    def over(self) -> bool:
        """Whether the run has ended."""
        return self._run.over

    @property
    def run_id(self) -> str:
        """The id of the run."""
        return self._run.run_id

    @property
    def step_label(self) -> str | None:
        """The label of the step that the span lies in."""
        return self._around.step_label

    @property
    def role(self) -> str | None:
        """The role that was named, else that of what the span lies in."""
        return self._role or self._around.role

    @property
    def span_id(self) -> str:
        """The span's id while it is open; then that of what it lies in."""
        return self.id if self._open else self._around.span_id

    def headers(self) -> Mapping[str, str]:
        """Return the headers of a call made in this span."""
        return propagate.under_span(self._around.headers(), self.span_id)

    def left_s(self) -> float | None:
        """Return the seconds until the step's deadline."""
        return self._around.left_s()

    def at(self, step: str | None) -> Place:
        """Return the step of this run with that label, or the run."""
        return self._run.at(step)

    def sends(self) -> int:
        """Count a request that is about to go out, and return its number."""
        return self._around.sends()

    def saw(self, answer: Answer) -> None:
        """Take note of an answer to a call made in this span."""
        self._around.saw(answer)


def as_text(value: object) -> str | None:
    """Return what is kept of an input or output: the text itself, else JSON; a little more than will be sent of it."""
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=_plain)
    return _cut(text, TEXT_BYTES_MAX + _SLACK_BYTES)


def shown_text(text: str) -> str:
    """Return a text without anything that looks like a key, cut at `TEXT_BYTES_MAX` bytes of UTF-8."""
    return _cut(_sendable(text), TEXT_BYTES_MAX)


def _cut(text: str, bytes_max: int) -> str:
    if len(text) * 4 <= bytes_max:
        return text
    data = text[: bytes_max + 1].encode("utf-8", "replace")
    if len(data) <= bytes_max:
        return text
    return data[: bytes_max - len(_CUT.encode())].decode("utf-8", "ignore") + _CUT


def _sendable(text: str) -> str:
    """Return a text without anything that looks like a key, and without halves of characters, which no UTF-8 has."""
    return hide_keys(text if text.isascii() else text.encode("utf-8", "replace").decode())


def _kept(attributes: Mapping[str, AttributeValue]) -> dict[str, AttributeValue]:
    """Return attributes that are sure to be sendable: all but numbers of 64 bits as texts, cut like an input."""
    return {
        _name(name): value if isinstance(value, float) or _is_int64(value) else as_text(str(value)) or ""
        for name, value in attributes.items()
    }


def _is_int64(value: object) -> bool:
    return isinstance(value, int) and value.bit_length() < 64


def _plain(value: object) -> object:
    """Return something that JSON can say for an object that it cannot: pydantic's models by their own dump."""
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        return dump(mode="json")
    return str(value)


def _ended(span_id: str, span: _Open, *, ended_us: int, output: str | None, error: str | None) -> SpanRecord:
    return SpanRecord(
        span_id=span_id,
        parent_id=span.parent_id,
        kind=span.kind,
        name=span.name,
        step=span.step,
        role=span.role,
        started_us=span.started_us,
        ended_us=max(span.started_us, ended_us),
        input=span.input,
        output=output,
        error=error,
        attributes=span.attributes,
    )


def _name(name: str) -> str:
    line = " ".join(str(name).split())
    return line if len(line) <= _NAME_LENGTH_MAX else line[: _NAME_LENGTH_MAX - 1] + "…"


def _size(record: SpanRecord) -> int:
    texts = (value for value in record.attributes.values() if isinstance(value, str))
    return len(record.input or "") + len(record.output or "") + sum(map(len, texts))


def _presentable(span: SpanRecord) -> SpanRecord:
    """Return the span as it may be sent; done here because to look for keys in long texts takes time."""
    return replace(
        span,
        name=_sendable(span.name),
        step=None if span.step is None else _sendable(span.step),
        role=None if span.role is None else _sendable(span.role),
        error=None if span.error is None else _sendable(span.error),
        input=None if span.input is None else shown_text(span.input),
        output=None if span.output is None else shown_text(span.output),
        attributes={
            _sendable(name): shown_text(value) if isinstance(value, str) else value
            for name, value in span.attributes.items()
        },
    )
