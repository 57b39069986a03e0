"""What the gateway makes of each fault of a provider: the expectations of the tests, and a page of the reference.

python tests/faults/faults_table.py          writes docs/reference/provider-faults.md
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

__all__ = ["FAULTS", "PAGE", "Fault", "Outcome", "page"]

PAGE: Final = Path(__file__).parents[2] / "docs" / "reference" / "provider-faults.md"
Charged = Literal["nothing", "hold", "usage"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What comes of a fault. `asked` is how often one deployment is asked, with the setting `retries` at 1.

    `event`: the answer has begun, so that the status is 200, and an error event ends it. `goes_on`: in a model group
    the next deployment answers instead. `absent`: there is no such fault here, and the answer is a proper one.
    """

    status: int
    code: str | None = None
    asked: int = 1
    charged: Charged
    event: bool = False
    goes_on: bool = False
    absent: bool = False

    @property
    def answer(self) -> str:
        """What the client gets, as the page says it."""
        if self.absent:
            return "-"
        if self.event:
            return "200, then an error event"
        return f"{self.status} `{self.code}`" if self.code else str(self.status)

    @property
    def failed(self) -> bool:
        """Whether the client is told of a failure."""
        return self.event or self.code is not None


GOOD: Final = Outcome(status=200, charged="usage")
NONE: Final = Outcome(status=200, charged="usage", absent=True)
UNCOUNTED: Final = Outcome(status=200, charged="hold")
UNREACHED: Final = Outcome(status=502, code="upstream_error", asked=2, charged="nothing", goes_on=True)
BROKEN: Final = Outcome(status=502, code="upstream_error", charged="hold", goes_on=True)
LATE: Final = Outcome(status=504, code="upstream_timeout", charged="hold", goes_on=True)
CUT: Final = Outcome(status=200, code="upstream_error", charged="hold", event=True)
REFUSED: Final = UNREACHED  # in the provider's own words, which say as much
NOT_NOW: Final = Outcome(status=502, code="upstream_error", charged="nothing", goes_on=True)
HIDDEN: Final = Outcome(status=502, code="upstream_error", asked=2, charged="hold", goes_on=True)
LIMITED: Final = Outcome(status=429, code="rate_limit_exceeded", charged="nothing", goes_on=True)
NO_ANSWER: Final = Outcome(status=502, code="upstream_error", charged="hold")
NO_KEY: Final = Outcome(status=502, code="upstream_error", charged="nothing")
CLIENTS: Final = Outcome(status=400, code="invalid_request", charged="nothing")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A fault: the model that shows it, what it is, and what comes of it."""

    model: str
    what: str
    plain: Outcome
    stream: Outcome

    def outcome(self, *, stream: bool) -> Outcome:
        """What comes of it in a plain answer or in a stream."""
        return self.stream if stream else self.plain


def _of(table: Mapping[str, tuple[str, Outcome] | tuple[str, Outcome, Outcome]]) -> tuple[Fault, ...]:
    return tuple(
        Fault(model=name if "/" in name else f"faulty/{name}", what=what, plain=plain, stream=(*stream, plain)[0])
        for name, (what, plain, *stream) in table.items()
    )


FAULTS: Final[Mapping[str, tuple[Fault, ...]]] = {
    "No connection": _of(
        {
            "refused/ok": ("the connection is refused", UNREACHED),
            "nowhere/ok": ("its host has no address", UNREACHED),
            "metadata/ok": ("its address is that of a cloud's instance metadata", UNREACHED),
            "speaks-no-tls/ok": ("no TLS, where its address says `https`", UNREACHED),
            "untrusted/ok": ("a certificate that nobody trusts", UNREACHED),
            "wants-tls/ok": ("TLS, where its address says `http`", BROKEN),
        }
    ),
    "Before the head of its answer": _of(
        {
            "hang": ("nothing, for longer than `first_byte_timeout_s`", LATE),
            "drop-before-head": ("closes the connection", BROKEN),
            "reset-before-head": ("resets the connection", BROKEN),
            "not-http": ("speaks another protocol", BROKEN),
            "http-2": ("answers in HTTP/2", BROKEN),
            "http-1.0": ("answers in HTTP/1.0, and ends by closing", GOOD),
            "interim-few": ("sends interim answers (1xx) first", GOOD),
            "interim-flood": ("sends interim answers without an end", BROKEN),
            "switch-protocols": ("101", BROKEN),
            "huge-header": ("a header of 1 MB", BROKEN),
            "endless-header": ("a header without an end", BROKEN),
            "many-headers": ("10,000 headers", BROKEN),
        }
    ),
    "In the middle of its answer": _of(
        {
            "hang-after-head": ("nothing more after the head", LATE),
            "drop-after-head": ("closes the connection after the head", BROKEN),
            "reset-after-head": ("resets the connection after the head", BROKEN),
            "hang-mid-body": ("nothing more, for longer than `idle_timeout_s`", LATE, CUT),
            "drop-mid-body": ("closes the connection", BROKEN, CUT),
            "reset-mid-body": ("resets the connection", BROKEN, CUT),
            "half-event": ("closes the connection within an event", BROKEN, CUT),
            "half-first-event": ("closes the connection within its first piece", BROKEN),
            "role-drop": ("a stream that closes after its first chunk, which says nothing yet", NONE, BROKEN),
            "role-hang": ("a stream that says nothing after its first chunk", NONE, LATE),
            "role-error": ("a stream with an error event after its first chunk", NONE, BROKEN),
            "sse-error-event": ("an error event in the middle of a stream", NONE, CUT),
            "dribble": ("one byte at a time, each soon enough", GOOD),
        }
    ),
    "Framing": _of(
        {
            "length-too-long": ("announces more bytes than come", BROKEN, CUT),
            "length-too-short": ("announces fewer bytes than come", BROKEN, CUT),
            "length-negative": ("announces a negative length", BROKEN),
            "length-twice": ("announces two lengths", BROKEN),
            "length-and-chunked": ("announces a length and chunks", BROKEN),
            "length-huge": ("announces more than 64 MB", BROKEN),
            "chunk-size-bad": ("a chunk size that is no number", BROKEN),
            "chunk-size-huge": ("a chunk size beyond 64 bits", BROKEN),
            "chunk-extension-endless": ("a chunk extension without an end", BROKEN),
            "coding-unknown": ("another transfer coding than `chunked`", BROKEN),
            "gzip": ("a compressed answer", BROKEN),
            "gzip-bomb": ("a compressed gigabyte of zeros", BROKEN),
            "gzip-unsaid": ("a compressed answer that does not say so", BROKEN),
            "two-answers": ("a second answer behind the first", GOOD),
            "tiny-chunks": ("100,000 chunks of a byte or two", GOOD),
            "endless-line": ("a line of 1 GB (a plain answer may have 64 MB, a line of a stream 1 MB)", BROKEN),
            "huge-line": ("a line of 2 MB in the middle of a stream", NONE, CUT),
        }
    ),
    "What it says": _of(
        {
            "not-json": ("a web page", BROKEN),
            "empty-body": ("nothing, with status 200", BROKEN),
            "error-200": ("an error with status 200", BROKEN),
            "error-first": ("an error; in a stream, as its first event", BROKEN),
            "bad-utf8": (
                "bytes that are not UTF-8: a plain answer cannot be read, an event is passed on",
                BROKEN,
                GOOD,
            ),
            "broken-json": ("JSON that ends too early: an event is passed on", BROKEN, UNCOUNTED),
            "nested-json": ("100,000 lists within each other: an event is passed on", BROKEN, UNCOUNTED),
            "not-an-object": ("JSON that is no object: an event is passed on", BROKEN, UNCOUNTED),
            "null-choices": ("`choices` that are null: passed on", GOOD),
            "wrong-kind": (
                "a stream to a plain request; a plain answer to a stream's, which is passed on",
                BROKEN,
                GOOD,
            ),
            "untyped": ("no content type: a stream cannot be told then", GOOD, BROKEN),
            "done-missing": ("a stream without `[DONE]`", NONE, GOOD),
            "done-twice": ("a stream with two", NONE, GOOD),
            "done-drop": ("a stream that is not closed in order after `[DONE]`", NONE, GOOD),
            "usage-missing": ("no usage", UNCOUNTED),
            "usage-text": ("usage as texts", UNCOUNTED),
            "usage-negative": ("negative usage", UNCOUNTED),
            "usage-huge": ("more usage than there can be", UNCOUNTED),
            "usage-list": ("usage as a list", UNCOUNTED),
        }
    ),
    "Statuses": _of(
        {
            "error-500": ("500 in its own words", REFUSED),
            "error-503": ("503 in its own words", REFUSED),
            "timeout-408": ("408 in its own words", REFUSED),
            "proxy-500": ("500 as a page, by something in between", HIDDEN),
            "proxy-503": ("503 as a page, likewise", HIDDEN),
            "unavailable-seconds": ("503 with a `Retry-After` of more than 8 seconds", NOT_NOW),
            "unavailable-date": ("503 with a `Retry-After` that is a date, which is not read", REFUSED),
            "rate-limited-60": ("429 with a `Retry-After` of more than 8 seconds, which the client is told", LIMITED),
            "unauthorized": ("401: the gateway's credentials", NO_KEY),
            "bad-request": ("400: the request itself; the provider's own words are the answer", CLIENTS),
            "accepted": ("202: something may have been set going", NO_ANSWER),
            "no-content": ("204", NO_ANSWER),
            "redirect-metadata": ("a redirect, to wherever: none is followed", NO_ANSWER),
        }
    ),
}

_HEAD: Final = """\
# What providers get wrong

<!-- Generated by tests/faults/faults_table.py, by which the tests go. -->

What comes of a provider's fault, with the default settings and one deployment. *Charged* is what the ledger posts for
such an attempt: nothing, what its usage says, or the hold where nobody knows (see [errors](errors.md) for the codes).
*Asked* is how often the deployment is asked before the client is told. *Next* says whether in a model group the next
deployment answers instead, and the client notices nothing: never after a stream has shown something.

An error that is a whole answer lists its `attempts`. A provider's 400 comes in the provider's own words. Whatever a
provider sends, the gateway reads at most 64 KB of headers and framing, 64 MB of a plain answer, and 1 MB of a line
of a stream; nothing is unpacked, and no redirect is followed. Five failures in a row, or a 429 that says how long, put
a deployment into its cooldown: 5 seconds, doubled up to 60 while its probes fail.
"""


def page() -> str:
    """Return the page of the reference."""
    return "\n".join([_HEAD, *_tables()])


def _tables() -> Iterator[str]:
    for heading, faults in FAULTS.items():
        yield f"## {heading}\n"
        yield "| fault | plain | stream | asked | charged | next |\n|---|---|---|---|---|---|"
        for fault in faults:
            both = [one for one in (fault.plain, fault.stream) if not one.absent]
            asked = _either(*(str(one.asked) if one.failed else "1" for one in both))
            charged = _either(*(one.charged for one in both))
            goes_on = _either(*("yes" if one.goes_on else "no" if one.failed else "-" for one in both))
            yield f"| {fault.what} | {fault.plain.answer} | {fault.stream.answer} | {asked} | {charged} | {goes_on} |"
        yield ""


def _either(*found: str) -> str:
    return found[0] if len(set(found)) == 1 else f"{found[0]}; stream: {found[1]}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE.name}\n")
