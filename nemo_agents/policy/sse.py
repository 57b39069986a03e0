"""Split a stream of server-sent events as its bytes arrive, at whatever places the network cut them.

The wire format is WHATWG HTML, section 9.2.6 "Interpreting an event stream": lines end in LF, CRLF or CR, an
event ends at a blank line. Every event carries its exact bytes, so that one which nobody changes is passed on
byte for byte, comments and odd line ends included.
"""

from __future__ import annotations

from typing import Final

import msgspec

__all__ = ["SseEvent", "SseSplitter", "SseTooLarge"]

LINE_LIMIT_BYTES: Final = 1 << 20
EVENT_LIMIT_BYTES: Final = 4 << 20

_BOM: Final = b"\xef\xbb\xbf"
_CR: Final = 0x0D


class SseTooLarge(Exception):  # noqa: N818 - a limit that was passed
    """A line or an event of the stream is longer than allowed; the rest of the stream cannot be trusted."""


class SseEvent(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One event, or a stretch without one (comments, stray blank lines).

    `data` is None where there is no `data` field: a comment, a bare `event:`. `raw` is every byte of it, the
    blank line included. `complete` is False only for what was left when the stream ended without a blank
    line; a browser would discard that, an accountant should look at it. (A struct, because a stream makes one
    per token.)
    """

    data: bytes | None
    event: str | None
    raw: bytes
    complete: bool = True


class SseSplitter:
    """Feed it chunks, take events: the same ones wherever the chunks were cut.

    When a limit is passed, events that were whole before are still handed out; the next call raises
    SseTooLarge, and so does every later one.
    """

    __slots__ = (
        "_at_start",
        "_buffer",
        "_data",
        "_event",
        "_event_limit",
        "_line_limit",
        "_line_start",
        "_too_large",
    )

    def __init__(self, *, line_limit_bytes: int = LINE_LIMIT_BYTES, event_limit_bytes: int = EVENT_LIMIT_BYTES) -> None:
        self._line_limit = line_limit_bytes
        self._event_limit = event_limit_bytes
        self._buffer = bytearray()  # always begins where an event begins
        self._line_start = 0
        self._at_start = True  # nothing but a byte order mark may have gone by
        self._data: list[bytes] | None = None
        self._event: str | None = None
        self._too_large: str | None = None

    def feed(self, chunk: bytes) -> list[SseEvent]:
        """Return the events that `chunk` completes. Raises SseTooLarge."""
        self._raise_if_too_large()
        # Everything before the old end is known to hold no line end, but for a CR that waited for its LF.
        scan = max(self._line_start, len(self._buffer) - 1)
        self._buffer += chunk
        events = self._split(scan, ended=False)
        if self._too_large is None:
            self._check_pending()
        if not events:
            self._raise_if_too_large()
        return events

    def end(self) -> list[SseEvent]:
        """Return what is left when the stream ends; the last event may be incomplete. Raises SseTooLarge."""
        self._raise_if_too_large()
        events = self._split(max(self._line_start, len(self._buffer) - 1), ended=True)
        if self._buffer and self._too_large is None:
            line = bytes(self._buffer[self._line_start :])
            if line:
                self._take_line(line)
            events.append(self._emit(bytes(self._buffer), complete=False))
            self._buffer.clear()
            self._line_start = 0
        if not events:
            self._raise_if_too_large()
        return events

    def _split(self, scan: int, *, ended: bool) -> list[SseEvent]:
        buffer, line_start = self._buffer, self._line_start
        events: list[SseEvent] = []
        event_start = 0
        size = len(buffer)
        # The next LF and CR are looked up only when passed: a stream of CRs alone must not be searched for
        # LFs anew at every line.
        lf = buffer.find(b"\n", scan)
        cr = buffer.find(b"\r", scan)
        while True:
            if cr >= 0 and (lf < 0 or cr < lf):
                line_end = cr
                if cr + 1 == size and not ended:
                    break  # an LF that belongs to this line end may still come
                next_line = cr + 2 if lf == cr + 1 else cr + 1
            elif lf >= 0:
                line_end, next_line = lf, lf + 1
            else:
                break
            if line_end - line_start > self._line_limit:
                self._too_large = self._line_message()
                break
            line = bytes(buffer[line_start:line_end])
            if self._at_start and line_end > line_start:
                line = line.removeprefix(_BOM)
            self._at_start = False
            if line:
                self._take_line(line)
            elif next_line - event_start > self._event_limit:
                self._too_large = self._event_message()
                break
            else:
                events.append(self._emit(bytes(buffer[event_start:next_line]), complete=True))
                event_start = next_line
            line_start = next_line
            if 0 <= lf < next_line:
                lf = buffer.find(b"\n", next_line)
            if 0 <= cr < next_line:
                cr = buffer.find(b"\r", next_line)
        del buffer[:event_start]
        self._line_start = line_start - event_start
        return events

    def _take_line(self, line: bytes) -> None:
        if self._at_start:  # only from `end`: a stream that is one unfinished line
            line = line.removeprefix(_BOM)
        name, _, value = line.partition(b":")
        if name == b"data":
            if self._data is None:
                self._data = []
            self._data.append(value.removeprefix(b" "))
        elif name == b"event":
            self._event = value.removeprefix(b" ").decode("utf-8", "replace")

    def _emit(self, raw: bytes, *, complete: bool) -> SseEvent:
        data, event = self._data, self._event
        self._data = self._event = None
        joined = None if data is None else data[0] if len(data) == 1 else b"\n".join(data)
        return SseEvent(data=joined, event=event, raw=raw, complete=complete)

    def _check_pending(self) -> None:
        """Note that the unfinished line or event is already too long, whatever comes."""
        size = len(self._buffer)
        waiting_cr = 1 if size > self._line_start and self._buffer[-1] == _CR else 0
        if size - waiting_cr - self._line_start > self._line_limit:
            self._too_large = self._line_message()
        elif size > self._event_limit:
            self._too_large = self._event_message()

    def _raise_if_too_large(self) -> None:
        if self._too_large is not None:
            raise SseTooLarge(self._too_large)

    def _line_message(self) -> str:
        return f"a line of the event stream is longer than {self._line_limit} bytes"

    def _event_message(self) -> str:
        return f"an event of the stream is longer than {self._event_limit} bytes"
