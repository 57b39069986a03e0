"""The verdict sentence, scenario by scenario."""

import msgspec
import pytest
import viewer_scenarios as v

from nemo_agents.admin import wire
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
                "Stopped at step edit, call 6: the run's budget $0.05 did not allow this call, $0.0071 of it was left; "
                "step research spent 72 %."
            ),
        ),
        (
            "failed_upstream",
            (
                "Failed at step write, call 4: upstream_error, every attempt failed; the last said: overloaded_error: "
                "Overloaded, after 3 attempts (o3-mini 500, o3-mini 500, claude-3-5-sonnet-20241022 529). "
                "The application ended with UpstreamFailed: the gateway answered 502."
            ),
        ),
        (
            "failed_in_application",
            (
                "Failed at step research: ValueError: no table in the model's answer. "
                "All 2 calls to models succeeded, so look at the application."
            ),
        ),
        (
            "recovered",
            "Recovered: 2 calls were refused with 429 (rpm) and later succeeded. 5 calls in 2 steps, $0.0184, 8.7 s.",
        ),
        (
            "running",
            "Running for 2 min 00 s at step write, call 4: 4 calls so far, $0.0321 of $0.10 (32 %).",
        ),
        ("rate_limited", "Stopped at step plan, call 12: the tpm limit of the role was reached."),
        (
            "guardrail_block",
            "Stopped at step write, call 3: guardrail prompt-injection-detect blocked this call.",
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
            "Stopped at step critique, call 5: the run has used all of its 4 calls; step research spent 73 %.",
        ),
        (
            "lost",
            (
                "Lost: the application reported no end; its last call, at step research, call 3, succeeded. "
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
        ({"kind": "stopped", "code": "run_stopped"}, "it was stopped by hand"),
        (
            {"kind": "access", "code": "key_revoked", "message": "this key is revoked."},
            "key_revoked, this key is revoked",
        ),
        ({"kind": "error", "code": "internal_error"}, "internal_error"),
    ],
)
def test_each_kind_of_stop_is_told_in_words(by: dict[str, str], told: str) -> None:
    detail = v.stopped_by_budget()
    detail.run.stopped_by = wire.StoppedBy(**by, request_id=detail.calls[-1].request_id)
    assert told in said(detail)


def test_a_stop_without_a_cause_speaks_of_the_last_refused_call() -> None:
    detail = v.stopped_by_budget()
    detail.run.stopped_by = None
    verdict = why(detail)
    assert verdict.text.startswith("Stopped at step edit, call 6: budget_exhausted, the run's budget $0.05 does not")
    assert verdict.culprit == detail.calls[-1].request_id


def test_links_lead_to_the_step_and_the_call_that_the_words_name() -> None:
    detail = v.stopped_by_budget()
    parts = {part.text: part for part in why(detail).parts}
    assert parts["call 6"].call == detail.calls[5].request_id
    assert parts["step edit"].step == "edit"
    assert parts["step research"].step == "research"


def test_a_failure_that_was_made_up_for_is_not_blamed() -> None:
    detail = v.recovered()
    detail.run.state, detail.run.error = "failed", "KeyError: 'table'"
    assert said(detail).startswith("Failed: KeyError: 'table'.")


def test_problems_without_a_later_success_are_not_called_succeeded() -> None:
    detail = v.recovered()
    del detail.calls[-1]
    assert "and the run went on without an answer" in said(detail)


@pytest.mark.parametrize("state", ["ok", "stopped", "failed", "recovered", "running", "lost", "a-state-of-tomorrow"])
def test_a_run_without_calls_or_steps_still_has_a_verdict(state: str) -> None:
    detail = v.detail(state, [], steps=[])
    assert why(detail).text.endswith(".")
    assert isinstance(cause(detail.run), str)


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
