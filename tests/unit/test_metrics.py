"""What is counted with every call: the numbers, their labels, and that they never become too many."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from nemo_agents.gateway.metrics import CallFacts, Family, Histogram, Metrics, Sample, result_of
from nemo_agents.gateway.metrics.exposition import CONTENT_TYPE, write
from nemo_agents.gateway.metrics.families import BOUNDS_US
from nemo_agents.gateway.stores.base import CallEnd

FACTS = CallFacts(
    fleet="crew",
    role="writer",
    endpoint="chat",
    outcome="ok",
    duration_us=30_000,
    ttft_us=20_000,
    provider="openai",
    model="gpt-4o",
    input_tokens=7,
    output_tokens=5,
    cost_nanos=1_500_000_000,
)


def page(metrics):
    """What a scrape reads: every sample by its name and labels."""
    text = write(list(metrics.families())).decode()
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(metrics, name, **labels):
    return page(metrics).get((name, *sorted(labels.items())))


def known(_provider, _model):
    return True


def test_a_call_is_counted_in_everything_that_it_is_about():
    metrics = Metrics(known)
    metrics.call_ended(FACTS)
    metrics.call_ended(FACTS)
    role = {"fleet": "crew", "role": "writer"}
    model = {"provider": "openai", "model": "gpt-4o"}
    assert value(metrics, "nemo_requests_total", **role, endpoint="chat", outcome="ok") == 2
    assert value(metrics, "nemo_tokens_total", **role, **model, direction="input") == 14
    assert value(metrics, "nemo_tokens_total", **role, **model, direction="output") == 10
    assert value(metrics, "nemo_cost_dollars_total", **role, **model) == 3.0
    assert value(metrics, "nemo_request_duration_seconds_sum", **role, endpoint="chat") == pytest.approx(0.06)
    assert value(metrics, "nemo_request_duration_seconds_count", **role, endpoint="chat") == 2
    assert value(metrics, "nemo_request_duration_seconds_bucket", **role, endpoint="chat", le="0.05") == 2
    assert value(metrics, "nemo_request_duration_seconds_bucket", **role, endpoint="chat", le="0.025") == 0
    assert value(metrics, "nemo_time_to_first_token_seconds_bucket", **model, le="0.025") == 2


def test_a_record_of_the_log_says_the_same_as_its_facts():
    one, other = Metrics(known), Metrics(known)
    one.call_ended(FACTS)
    end = CallEnd(
        request_id="r",
        ended_us=130_000,
        state="ok",
        status=200,
        model_served="gpt-4o",
        provider="openai",
        ttft_us=20_000,
        input_tokens=7,
        output_tokens=5,
        cost_nanos=1_500_000_000,
    )
    other.logged(end, endpoint="chat", fleet="crew", role="writer", started_us=100_000)
    assert counted(page(one)) == counted(page(other))


def counted(samples):
    return {name: number for name, number in samples.items() if name[0].startswith("nemo_")}


def test_a_refusal_is_counted_by_its_code_and_scope_and_uses_no_model():
    metrics = Metrics(known)
    end = CallEnd(request_id="r", ended_us=9, state="refused", status=402, code="budget_exhausted", scope="role")
    metrics.logged(end, endpoint="chat", fleet="crew", role="writer", started_us=1)
    metrics.refused("invalid_api_key", None, None, None)
    role = {"fleet": "crew", "role": "writer"}
    assert value(metrics, "nemo_refusals_total", **role, code="budget_exhausted", scope="role") == 1
    assert value(metrics, "nemo_refusals_total", fleet="", role="", code="invalid_api_key", scope="") == 1
    assert value(metrics, "nemo_requests_total", **role, endpoint="chat", outcome="refused") == 1
    assert not [name for name, *_ in page(metrics) if name.startswith("nemo_tokens")]


def test_a_hit_is_a_cached_call_and_no_provider_s():
    metrics = Metrics(known)
    end = CallEnd(request_id="r", ended_us=9, state="ok", status=200, provider="cache", model_served="x", ttft_us=3)
    metrics.logged(end, endpoint="chat", fleet="crew", role="writer", started_us=1)
    metrics.cache_looked("crew", "writer", saved_nanos=2_000_000_000)
    metrics.cache_looked("crew", "writer", saved_nanos=None)
    role = {"fleet": "crew", "role": "writer"}
    assert value(metrics, "nemo_requests_total", **role, endpoint="chat", outcome="cached") == 1
    assert value(metrics, "nemo_cache_lookups_total", **role, result="hit") == 1
    assert value(metrics, "nemo_cache_lookups_total", **role, result="miss") == 1
    assert value(metrics, "nemo_cache_saved_dollars_total", **role) == 2.0
    assert not [labels for labels in page(metrics) if ("provider", "cache") in labels]


def test_attempts_say_why_they_were_made_and_how_they_ended():
    metrics = Metrics(known)
    metrics.attempt_ended("openai", "gpt-4o", "rate_limited", 1_000_000)
    metrics.attempt_ended("openai", "gpt-4o", "server_error", 1_000_000, reason="retry")
    metrics.attempt_ended("gemini", "pro", "ok", 2_000_000, reason="fallback")
    openai = {"provider": "openai", "model": "gpt-4o"}
    assert value(metrics, "nemo_attempts_total", **openai, reason="first", result="rate_limited") == 1
    assert value(metrics, "nemo_attempts_total", **openai, reason="retry", result="server_error") == 1
    gemini = {"provider": "gemini", "model": "pro"}
    assert value(metrics, "nemo_attempts_total", **gemini, reason="fallback", result="ok") == 1
    assert value(metrics, "nemo_attempt_duration_seconds_sum", **openai) == 2.0


@pytest.mark.parametrize(
    ("status", "timed_out", "sent", "result"),
    [
        (None, False, False, "unreachable"),
        (None, False, True, "broken"),
        (None, True, True, "timeout"),
        (429, False, True, "rate_limited"),
        (404, False, True, "client_error"),
        (503, False, True, "server_error"),
        (204, False, True, "broken"),
    ],
)
def test_how_an_attempt_failed(status, timed_out, sent, result):
    assert result_of(status, timed_out=timed_out, sent=sent) == result


# --- bounds -------------------------------------------------------------------------------------------------------
def test_a_model_that_nobody_knows_is_other():
    metrics = Metrics(lambda _, model: model == "gpt-4o")
    metrics.attempt_ended("openai", "made-up-by-a-caller", "ok", 1)
    metrics.attempt_ended("openai", "gpt-4o", "ok", 1)
    models = {dict(labels)["model"] for name, *labels in page(metrics) if name == "nemo_attempts_total"}
    assert models == {"other", "gpt-4o"}


def test_the_sandbox_is_counted_by_what_it_stands_for_as_in_the_log():
    metrics = Metrics(known)
    metrics.attempt_ended("sandbox", "openai/gpt-4o", "ok", 1)
    metrics.attempt_ended("sandbox", "gpt-4o", "ok", 1)
    labels = {"provider": "sandbox", "model": "gpt-4o", "reason": "first", "result": "ok"}
    assert value(metrics, "nemo_attempts_total", **labels) == 2


def test_a_model_that_its_provider_refuses_is_other_until_it_has_answered():
    metrics = Metrics(known)
    metrics.attempt_ended("openai", "gpt-4o-typo", "client_error", 1)
    labels = {"provider": "openai", "reason": "first", "result": "client_error"}
    assert value(metrics, "nemo_attempts_total", model="other", **labels) == 1
    metrics.attempt_ended("openai", "gpt-4o", "server_error", 1)
    metrics.attempt_ended("openai", "gpt-4o", "client_error", 1)
    assert value(metrics, "nemo_attempts_total", model="gpt-4o", **labels) == 1


def test_however_many_names_there_are_the_page_stays_small_and_nothing_is_lost():
    metrics = Metrics(known, roles_max=10, models_max=10, series_max=60)
    for n in range(1000):
        metrics.call_ended(
            CallFacts(
                fleet=f"fleet-{n}",
                role="r",
                endpoint="chat",
                outcome="ok",
                duration_us=n,
                ttft_us=n,
                provider="p",
                model=f"m-{n % 500}",
                input_tokens=1,
            )
        )
        metrics.attempt_ended("p", f"m-{n}", "ok", n)
        metrics.refused(f"code-{n}", None, "crew", None)
        metrics.cache_looked(f"fleet-{n}", None, saved_nanos=None)
    found = page(metrics)
    for name, most in (("nemo_requests_total", 11), ("nemo_refusals_total", 61), ("nemo_attempts_total", 11)):
        numbers = [number for (found_name, *_), number in found.items() if found_name == name]
        assert len(numbers) <= most, name
        assert sum(numbers) == 1000, name
    assert len(found) < 1500
    inputs = [
        n for (name, *labels), n in found.items() if name == "nemo_tokens_total" and ("direction", "input") in labels
    ]
    assert sum(inputs) == 1000


@given(st.lists(st.integers(0, 300_000_000), max_size=30))
def test_a_bucket_holds_what_is_at_most_its_bound(times):
    histogram = Histogram()
    for took_us in times:
        histogram.observe(took_us)
    family = Family(name="t_seconds", kind="histogram", help="h", samples=(Sample(labels=(), value=histogram),))
    text = write([family]).decode()
    (parsed,) = [each for each in text_string_to_metric_families(text) if each.name == "t_seconds"]
    buckets = {s.labels["le"]: s.value for s in parsed.samples if s.name == "t_seconds_bucket"}
    for bound in BOUNDS_US:
        assert buckets[str(bound / 1e6)] == sum(took_us <= bound for took_us in times)
    assert buckets["+Inf"] == len(times)


def test_names_that_would_break_the_format_are_escaped():
    metrics = Metrics(known)
    metrics.refused("c", None, 'a"b\\c\nd', "r")
    assert value(metrics, "nemo_refusals_total", fleet='a"b\\c\nd', role="r", code="c", scope="") == 1


def test_the_page_is_text_format_0_0_4():
    assert CONTENT_TYPE == "text/plain; version=0.0.4; charset=utf-8"
    text = write(list(Metrics(known).families())).decode()
    assert "# TYPE nemo_requests_total counter" in text
    assert "# TYPE nemo_request_duration_seconds histogram" in text
