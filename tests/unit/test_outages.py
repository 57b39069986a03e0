"""How a fault that comes again and again is logged."""

from __future__ import annotations

from structlog.testing import CapturingLogger

from nemo_agents.gateway.outages import Complaints, Outage


def test_of_a_flood_of_errors_one_a_second_is_logged_with_their_number():
    log = CapturingLogger()
    complaints = Complaints(log, "store unavailable")
    for tick in range(30):
        complaints.add(clock_s=lambda tick=tick: 5.0 + tick / 10, request_id=f"req-{tick}")
    assert [(call.kwargs["request_id"], call.kwargs["count"]) for call in log.calls] == [
        ("req-0", 1),
        ("req-10", 10),
        ("req-20", 10),
    ]
    assert {(call.method_name, *call.args) for call in log.calls} == {("error", "store unavailable")}


def test_an_outage_is_logged_once_until_it_is_over():
    log = CapturingLogger()
    outage = Outage(log, "sweep failed")
    outage.over()
    for _ in range(3):
        outage.met(OSError("the disk is full"))
    for _ in range(3):
        outage.over()
    outage.met(OSError("again"))
    assert [(call.method_name, *call.args) for call in log.calls] == [
        ("warning", "sweep failed"),
        ("info", "over: sweep failed"),
        ("warning", "sweep failed"),
    ]
    assert log.calls[0].kwargs == {"error": "the disk is full"}
