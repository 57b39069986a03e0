"""A header says one thing on one line, whatever a label holds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nemo_agents.gateway.answers import json_head, send_json

_values = st.dictionaries(st.sampled_from(["x-nemo-run-id", "x-nemo-shadow", "x-nemo-provider"]), st.text(max_size=30))


def lines_of(head: bytes) -> list[bytes]:
    assert head.endswith(b"\r\n")
    return head.removesuffix(b"\r\n").split(b"\r\n")


@given(_values)
def test_no_value_breaks_out_of_its_line(headers):
    first, second, *others = lines_of(json_head(b"{}", headers))
    assert (first, second) == (b"content-type: application/json", b"content-length: 2")
    assert [line.partition(b": ")[0].decode() for line in others] == list(headers)
    for line in others:
        assert not any(octet < 0x20 or octet == 0x7F for octet in line)


@given(_values)
async def test_both_ways_to_send_an_answer_say_the_same(headers):
    sent = []

    async def send(message):
        sent.append(message)

    await send_json(send, 200, {"a": 1}, headers)
    start, body = sent
    assert body["body"] == b'{"a":1}'
    assert [name + b": " + value for name, value in start["headers"]] == lines_of(json_head(body["body"], headers))


def test_what_can_be_printed_goes_out_as_it_is():
    assert lines_of(json_head(b"", {"x-nemo-provider": "Käse 1%", "x-nemo-run-id": "日"}))[2:] == [
        "x-nemo-provider: Käse 1%".encode("latin-1"),
        b"x-nemo-run-id: ?",
    ]
