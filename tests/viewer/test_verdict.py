"""The verdict sentence, scenario by scenario."""

from typing import Any

import msgspec
import pytest
import viewer_scenarios as v

from nemo_agents.admin import wire
from nemo_agents.viewer.shadows import shadow_hint
from nemo_agents.viewer.text import NARROW_SPACE
from nemo_agents.viewer.verdict import cause, why


def said(detail: wire.RunDetail) -> str:
    return why(detail, now_us=v.NOW_US).text.replace(NARROW_SPACE, " ")


@pytest.mark.parametrize(
    ("scenario", "sentence"),
    [
        ("ok", "OK: 6 calls in 5 steps, $0.0491, 16.7 s."),
        (
            "stopped_by_budget",
            (
                "Stopped at step 5 edit, call 6: the run's budget $0.05 did not allow this call, $0.0071 of it was "
                "left; step 2 research spent 72 %."
            ),
        ),
        (
            "failed_upstream",
            (
                "Failed at step 3 write, call 4: upstream_error, every attempt failed; the last said: "
                "overloaded_error: Overloaded, after 3 attempts "
                "(o3-mini 500, o3-mini 500, claude-3-5-sonnet-20241022 529). "
                "The application ended with UpstreamFailed: the gateway answered 502."
            ),
        ),
        (
            "failed_in_application",
            (
                "Failed at step 2 research: ValueError: no table in the model's answer. "
                "All 2 calls to models succeeded, so look at the application."
            ),
        ),
        (
            "recovered",
            "Recovered: 2 calls were refused with 429 (rpm), and the run went on. 5 calls in 2 steps, $0.0184, 8.7 s.",
        ),
        (
            "running",
            "Running for 2 min 00 s at step 3 write, call 4: 4 calls so far, $0.0321 of $0.10 (32 %).",
        ),
        ("rate_limited", "Stopped at step 1 plan, call 12: the tpm limit of the role was reached."),
        (
            "guardrail_block",
            "Stopped at step 3 write, call 3: guardrail prompt-injection-detect blocked this call.",
        ),
        (
            "fallback",
            (
                "OK: 6 calls in 5 steps, $0.0491, 16.7 s; 1 call fell back from o3-mini to claude-3-5-sonnet-20241022; "
                "1 answer was cut off at its token limit."
            ),
        ),
        ("huge", "OK: 500 calls in 11 steps, $2.6782, 1 min 40 s."),
        (
            "max_calls",
            "Stopped at step 4 critique, call 5: the run has used all of its 4 calls; step 2 research spent 73 %.",
        ),
        (
            "lost",
            (
                "Lost: the application reported no end; its last call, at step 2 research, call 3, succeeded. "
                "3 calls in 2 steps, $0.0321."
            ),
        ),
        ("single", "OK: 1 call, $0.00211, 850 ms."),
    ],
)
def test_each_scenario_is_told_in_one_sentence(scenario: str, sentence: str) -> None:
    assert said(v.SCENARIOS[scenario]()) == sentence


@pytest.mark.parametrize(
    ("by", "told"),
    [
        ({"kind": "budget", "code": "budget_exhausted", "scope": "role"}, "the budget of role writer did not allow"),
        ({"kind": "budget", "code": "budget_exhausted", "scope": "fleet"}, "the budget of fleet research-crew did not"),
        ({"kind": "budget", "code": "request_exceeds_budget", "scope": "run"}, "could cost more than all of the run's"),
        ({"kind": "budget", "code": "budget_held", "scope": "run"}, "was held by calls still in flight"),
        (
            {"kind": "access", "code": "key_revoked", "message": "this key is revoked."},
            "key_revoked, this key is revoked",
        ),
        ({"kind": "error", "code": "internal_error"}, "internal_error"),
        (
            {"kind": "loop", "code": "loop_detected", "scope": "run", "limit": "loop"},
            "the same request came again and again, which looks like a loop",
        ),
    ],
)
def test_each_kind_of_stop_is_told_in_words(by: dict[str, str], told: str) -> None:
    detail = v.stopped_by_budget()
    detail.run.stopped_by = wire.StoppedBy(**by, request_id=detail.calls[-1].request_id)
    assert told in said(detail)


def test_limits_in_shadow_mode_are_told_by_the_call_that_each_would_have_refused_first() -> None:
    detail = v.shadowed()
    parts = shadow_hint(detail)
    assert "".join(part.text for part in parts) == (
        "In shadow mode, the role's rpm would have refused call 3 and 1 more call; the fleet's budget would have "
        "stopped this run at call 4; loop detection would have stopped this run at call 5."
    )
    assert [part.call for part in parts if part.call] == [detail.calls[n].request_id for n in (2, 3, 4)]
    detail.run.grouped = False
    detail.calls = detail.calls[4:]
    assert "".join(part.text for part in shadow_hint(detail)) == (
        "In shadow mode, loop detection would have refused this call."
    )
    assert shadow_hint(v.ok()) == ()


def test_a_stop_without_a_cause_speaks_of_the_last_refused_call() -> None:
    detail = v.stopped_by_budget()
    detail.run.stopped_by = None
    verdict = why(detail)
    assert verdict.text.startswith("Stopped at step 5 edit, call 6: budget_exhausted, the run's budget $0.05 does not")
    assert verdict.culprit == detail.calls[-1].request_id


def test_links_lead_to_the_step_and_the_call_that_the_words_name() -> None:
    detail = v.stopped_by_budget()
    parts = {part.text: part for part in why(detail).parts}
    assert parts["call 6"].call == detail.calls[5].request_id
    assert parts["step 5 edit"].step == "edit"
    assert parts["step 2 research"].step == "research"


def test_a_failure_that_was_made_up_for_is_not_blamed() -> None:
    detail = v.recovered()
    detail.run.state, detail.run.error = "failed", "KeyError: 'table'"
    assert said(detail).startswith("Failed: KeyError: 'table'.")


def budget_refusals(number: int, successes: int) -> wire.RunDetail:
    """A loop that was refused, and then asked so often that this many calls succeeded."""
    calls = [
        v.refused(seq, "budget_exhausted", 402, limit="budget", scope="role", step="loop")
        for seq in range(1, number + 1)
    ]
    calls += [v.call(number + 1 + n, step="loop") for n in range(successes)]
    return v.detail("recovered", calls)


@pytest.mark.parametrize(
    ("number", "successes", "told"),
    [
        (88, 1, "Recovered: 88 calls were refused with 402 (budget), and the run went on. "),
        (88, 87, "Recovered: 88 calls were refused with 402 (budget), and the run went on. "),
        (88, 88, "Recovered: 88 calls were refused with 402 (budget) and later succeeded. "),
        (1, 1, "Recovered: 1 call was refused with 402 (budget) and later succeeded. "),
        (2, 0, "Recovered: 2 calls were refused with 402 (budget), and the run went on. "),
    ],
)
def test_only_as_many_successes_make_up_for_calls_without_an_answer(number: int, successes: int, told: str) -> None:
    assert said(budget_refusals(number, successes)).startswith(told)


@pytest.mark.parametrize("elsewhere", [{"step": "write"}, {"model_asked": "gpt-4o"}, {"started_us": v.START - 1}])
def test_a_success_elsewhere_or_before_makes_up_for_nothing(elsewhere: dict[str, Any]) -> None:
    detail = budget_refusals(1, 1)
    for name, value in elsewhere.items():
        setattr(detail.calls[1], name, value)
    assert "refused with 402 (budget), and the run went on. " in said(detail)


def test_kinds_of_problems_that_ended_differently_are_told_apart() -> None:
    detail = budget_refusals(2, 2)
    broken = {"state": "failed", "status": 502, "code": "upstream_error", "step": "plan"}
    calls = [*detail.calls, *(v.call(seq, **broken) for seq in (5, 6))]
    assert said(v.detail("recovered", calls)).startswith(
        "Recovered: 2 calls were refused with 402 (budget) and later succeeded; "
        "2 calls failed with 502 (upstream_error), and the run went on; 50 % of the cost bought no answer. "
    )


# --- stopped by hand ----------------------------------------------------------------------------------------
BY_HAND = wire.StoppedBy(kind="stopped", code="run_stopped", scope="run", limit="stopped")
CUT: dict[str, Any] = {"state": "failed", "status": 403, "code": "run_stopped", "error": "This run was stopped."}


def stopped_by_hand(*after: wire.CallRow, by: wire.StoppedBy | None = BY_HAND) -> wire.RunDetail:
    calls = v.pipeline("run_20a8e2c3d4e5f620", 3)
    for row in after:
        row.run_id = calls[0].run_id
    return v.detail("stopped", [*calls, *after], stopped_by=by)


@pytest.mark.parametrize("by", [BY_HAND, msgspec.structs.replace(BY_HAND, step="write", request_id="x"), None])
def test_a_stop_by_hand_names_the_call_that_it_cut(by: wire.StoppedBy | None) -> None:
    detail = stopped_by_hand(v.call(4, step="write", **CUT), by=by)
    verdict = why(detail)
    assert verdict.text == "Stopped by hand during step 3 write, call 4 (cut)."
    assert verdict.culprit == detail.calls[3].request_id
    parts = {part.text: part for part in verdict.parts}
    assert (parts["step 3 write"].step, parts["call 4"].call) == ("write", detail.calls[3].request_id)


def test_a_stop_by_hand_that_cut_several_calls_and_refused_more_says_so() -> None:
    late = [v.refused(seq, "run_stopped", 403, limit="stopped", scope="run") for seq in (6, 7)]
    detail = stopped_by_hand(v.call(4, step=None, **CUT), v.call(5, step=None, **CUT), *late)
    assert said(detail) == "Stopped by hand during call 4 and 1 more call (cut); 2 later calls were refused."


def test_a_stop_by_hand_between_calls_says_how_many_there_were() -> None:
    assert said(stopped_by_hand()) == "Stopped by hand after 3 calls."
    late = v.refused(4, "run_stopped", 403, limit="stopped", scope="run")
    assert said(stopped_by_hand(late)) == "Stopped by hand after 3 calls; 1 later call was refused."
    assert said(v.detail("stopped", [], stopped_by=BY_HAND)) == "Stopped by hand before its first call."


def test_a_cause_by_hand_fits_a_table() -> None:
    assert cause(stopped_by_hand().run) == "stopped by hand"
    by = msgspec.structs.replace(BY_HAND, step="write")
    assert cause(stopped_by_hand(by=by).run) == "stopped by hand during write"


# --- abandoned calls ----------------------------------------------------------------------------------------
LOST_SIGHT = "the gateway lost sight of this call; it is charged at its hold"


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (
            {"status": None, "error": LOST_SIGHT, "usage_source": "hold", "cost_nanos": 164_000},
            (
                "the gateway lost sight of this call, as after a crash or a restart; "
                "it was charged at its hold, $0.000164."
            ),
        ),
        (
            {"status": None, "error": LOST_SIGHT, "usage_source": "hold", "cost_nanos": 0},
            "the gateway lost sight of this call, as after a crash or a restart.",
        ),
        (
            {"status": 499, "error": "the client left before the end", "usage_source": "provider"},
            "the caller hung up before the answer was complete.",
        ),
        (
            {
                "status": 499,
                "code": "upstream_error",
                "error": "The provider's stream broke off: the client left, and the provider did not finish in time.",
                "usage_source": "hold",
                "cost_nanos": 5_000_000,
            },
            "the caller hung up before the answer was complete; it was charged at its hold, $0.005.",
        ),
        (
            {
                "status": 499,
                "error": "the gateway was shut down, or the client left",
                "usage_source": "hold",
                "cost_nanos": 5_000_000,
            },
            (
                "the gateway was shut down, or the caller hung up, before the answer was complete; "
                "it was charged at its hold, $0.005."
            ),
        ),
        (
            {"status": 499, "error": "the client went away before the call was sent", "cost_nanos": 0},
            "the caller hung up before the call was sent.",
        ),
    ],
)
def test_an_abandoned_call_is_told_by_who_left_it(row: dict[str, Any], told: str) -> None:
    calls = v.pipeline("run_21a8e2c3d4e5f621", 2)
    calls.append(v.call(3, run_id=calls[0].run_id, step="write", state="abandoned", **row))
    detail = v.detail("failed", calls, error=row["error"])
    assert said(detail) == f"Failed at step 3 write, call 3: {told}"


def test_a_call_that_ended_with_the_gateway_says_so() -> None:
    given = {"state": "failed", "status": 503, "code": "gateway_stopping", "error": "The gateway is stopping."}
    row = v.call(1, usage_source="hold", cost_nanos=5_000_000, **given)
    assert said(v.detail("failed", [row])) == (
        "Failed at step 1 plan, call 1: the gateway was shut down before the answer was complete; "
        "it was charged at its hold, $0.005."
    )


def test_a_call_that_was_lost_between_two_attempts_says_what_the_first_met() -> None:
    calls = v.pipeline("run_22a8e2c3d4e5f622", 2)
    given = {"state": "abandoned", "status": None, "error": "overloaded", "usage_source": "hold", "cost_nanos": 0}
    calls.append(v.call(3, run_id=calls[0].run_id, step="write", **given))
    assert said(v.detail("failed", calls)).endswith(
        "the gateway lost sight of this call, as after a crash or a restart; its last attempt had met: overloaded."
    )


@pytest.mark.parametrize(
    ("status", "error", "told"),
    [
        (None, LOST_SIGHT, "2 calls were lost from the gateway's sight, and the run went on;"),
        (499, "the client left before the end", "2 calls were left by the caller, and the run went on;"),
    ],
)
def test_a_run_that_went_on_after_abandoned_calls_says_who_left_them(status: int, error: str, told: str) -> None:
    lost = [v.call(seq, state="abandoned", status=status, error=error, step="plan") for seq in (1, 2)]
    assert f"Recovered: {told}" in said(v.detail("recovered", [*lost, v.call(3, step="write")]))


@pytest.mark.parametrize("state", ["ok", "stopped", "failed", "recovered", "running", "lost", "a-state-of-tomorrow"])
def test_a_run_without_calls_or_steps_still_has_a_verdict(state: str) -> None:
    detail = v.detail(state, [], steps=[])
    assert why(detail).text.endswith(".")
    assert isinstance(cause(detail.run), str)


def test_a_refusal_is_no_cause_of_a_run_that_went_on() -> None:
    run = v.stopped_by_budget().run
    run.state = "recovered"
    assert cause(run) == "1 call had no answer, the run went on"


def test_the_verdict_does_not_change_the_run() -> None:
    detail = v.failed_upstream()
    before = msgspec.json.encode(detail)
    why(detail, now_us=v.NOW_US)
    assert msgspec.json.encode(detail) == before


@pytest.mark.parametrize(
    ("scenario", "words"),
    [
        ("ok", ""),
        ("stopped_by_budget", "the run's budget $0.05 did not allow a call at edit"),
        ("recovered", "2 calls had no answer, the run went on"),
        ("failed_in_application", "ValueError: no table in the model's answer"),
        ("lost", "no end was reported"),
    ],
)
def test_the_cause_fits_a_table(scenario: str, words: str) -> None:
    assert cause(v.SCENARIOS[scenario]().run) == words
