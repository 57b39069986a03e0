"""The event splitter: same events and same bytes, wherever the network cuts them."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_agents.policy.sse import SseEvent, SseSplitter, SseTooLarge


def split(*chunks: bytes, **limits: int) -> list[SseEvent]:
    splitter = SseSplitter(**limits)
    events = [event for chunk in chunks for event in splitter.feed(chunk)]
    return events + splitter.end()


def by_the_book(stream: bytes) -> list[tuple[bytes | None, str | None]]:
    """The standard's algorithm, written as plainly as it is there: whole text in, dispatched events out."""
    text = stream.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    events: list[tuple[bytes | None, str | None]] = []
    data: list[bytes] = []
    event = None
    for line in text.split(b"\n")[:-1]:
        if not line:
            if data:
                events.append((b"\n".join(data), event))
            data, event = [], None
            continue
        field, colon, value = line.partition(b":")
        value = value[1:] if colon and value[:1] == b" " else value
        if field == b"data":
            data.append(value)
        elif field == b"event":
            event = value.decode("utf-8", "replace")
    return events


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_every_line_end_gives_the_same_data(end):
    stream = end.join(
        [b"event: note", b"data: one", b"data:two", b"data", b"", b": hello", b"", b"data: [DONE]", b"", b""]
    )
    first, comment, done = split(stream)
    assert (first.data, first.event) == (b"one\ntwo\n", "note")
    assert (comment.data, comment.raw) == (None, b": hello" + end + end)
    assert done == SseEvent(data=b"[DONE]", event=None, raw=b"data: [DONE]" + end + end)


def test_events_come_out_as_soon_as_their_blank_line_is_in():
    splitter = SseSplitter()
    assert splitter.feed(b"data: a\n") == []
    assert [event.data for event in splitter.feed(b"\nda")] == [b"a"]
    assert [event.data for event in splitter.feed(b"ta: b\r\n\r\n")] == [b"b"]
    assert splitter.end() == []


def test_a_carriage_return_waits_for_its_line_feed():
    splitter = SseSplitter()
    assert splitter.feed(b"data: a\r\n\r") == []
    assert [event.raw for event in splitter.feed(b"\n")] == [b"data: a\r\n\r\n"]


def test_only_one_space_after_the_colon_belongs_to_the_format():
    assert [event.data for event in split(b"data:  x\n\n")] == [b" x"]


def test_an_empty_data_field_is_data():
    assert [event.data for event in split(b"data:\n\n")] == [b""]


def test_a_byte_order_mark_is_kept_in_raw_and_not_in_the_field():
    stream = b"\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\n"
    first, second = split(*[bytes([byte]) for byte in stream])
    assert (first.data, first.raw) == (b"a", b"\xef\xbb\xbfdata: a\n\n")
    assert second.data is None  # in the middle of a stream it makes another field name


def test_an_event_without_its_blank_line_is_handed_out_as_incomplete():
    (event,) = split(b'data: {"usage": 1}\ndata: ha')
    assert (event.data, event.complete) == (b'{"usage": 1}\nha', False)
    assert split(b"data: x\r")[0].complete is False
    assert split(b"\xef\xbb\xbfdata: x")[0].data == b"x"


@given(
    st.lists(
        st.sampled_from(
            [
                b"\n",
                b"\r",
                b"\r\n",
                b"data",
                b"data:",
                b"data: x",
                b"event: e\xff",
                b":",
                b": c",
                b" ",
                b"id: 1",
                b"\xef\xbb\xbf",
            ]
        )
        | st.binary(max_size=5),
        max_size=40,
    ).map(b"".join),
    st.data(),
)
def test_any_chunking_gives_the_same_events_and_loses_no_byte(stream, draw):
    whole = split(stream)
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert split(*pieces) == whole
    assert split(*[bytes([byte]) for byte in stream]) == whole
    assert b"".join(event.raw for event in whole) == stream
    assert [(e.data, e.event) for e in whole if e.complete and e.data is not None] == by_the_book(stream)
    assert all(event.complete for event in whole[:-1])


@pytest.mark.parametrize("cut", [1, 7, 1000])
@pytest.mark.parametrize(
    ("stream", "fits"),
    [
        (b"data: 0123\n\n", True),  # a line of exactly ten bytes
        (b"data: 0123\r\n\r\n", True),
        (b"data: 01234\n\n", False),
        (b"data: 01234", False),
        (b"a\n" * 9 + b"a\n\n", False),  # an event of 21 bytes in short lines
        (b"a\n" * 9 + b"\n", True),
        (b"a\n" * 11, False),
    ],
)
def test_limits_hold_wherever_the_stream_is_cut(stream, fits, cut):
    pieces = [stream[at : at + cut] for at in range(0, len(stream), cut)]
    if fits:
        assert b"".join(e.raw for e in split(*pieces, line_limit_bytes=10, event_limit_bytes=20)) == stream
    else:
        with pytest.raises(SseTooLarge):
            split(*pieces, line_limit_bytes=10, event_limit_bytes=20)


def test_whole_events_before_a_too_long_one_are_not_lost():
    splitter = SseSplitter(line_limit_bytes=10)
    assert [event.data for event in splitter.feed(b"data: a\n\n" + b"x" * 50)] == [b"a"]
    for _ in range(2):
        with pytest.raises(SseTooLarge, match="10 bytes"):
            splitter.feed(b"\n\n")
    with pytest.raises(SseTooLarge):
        splitter.end()


@pytest.mark.parametrize(
    "chunks",
    [
        [b"\r" * 200_000],
        [b"\n" * 200_000],
        [b"x\r" * 100_000],
        [b"x"] * 200_000,
        [b"data: " + b"x" * 900_000] + [b"y"] * 50_000,
    ],
    ids=["crs", "lfs", "cr-lines", "single-bytes", "long-line-in-drops"],
)
def test_no_stream_is_slow_out_of_proportion(chunks):
    """A quadratic scan of these would take minutes; linear ones take a fraction of a second."""
    before = time.process_time()
    split(*chunks)
    assert time.process_time() - before < 10
