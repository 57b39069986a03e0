from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nemo_agents.durations import is_time_zone, time_zones
from nemo_agents.policy.periods import DURATION_OF, period_at, period_name, span_seconds

unhurried = settings(deadline=None)  # a busy machine is not a failure


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def us(*at, tz=UTC, fold=0):
    return round(datetime(*at, tzinfo=tz, fold=fold).timestamp() * 1_000_000)


NOW = us(2026, 11, 24, 13, 30)


@pytest.mark.parametrize(
    ("duration", "period_id", "starts", "resets"),
    [
        ("1d", "2026-11-24", us(2026, 11, 24), us(2026, 11, 25)),
        ("7d", "2026-W48", us(2026, 11, 23), us(2026, 11, 30)),
        ("1mo", "2026-11", us(2026, 11, 1), us(2026, 12, 1)),
        ("30d", "2026-11", us(2026, 11, 1), us(2026, 12, 1)),
        ("6h", "6h@2026-11-24T12:00:00Z", us(2026, 11, 24, 12), us(2026, 11, 24, 18)),
        ("90s", "90s@2026-11-24T13:30:00Z", NOW, NOW + 90_000_000),
    ],
)
def test_periods_of_an_afternoon(duration, period_id, starts, resets):
    period = period_at(duration, NOW)
    assert (period.id, period.starts_us, period.resets_us) == (period_id, starts, resets)


def test_a_total_never_ends():
    period = period_at(None, NOW)
    assert (period.id, period.resets_us) == ("total", None)
    assert period == period_at(None, NOW + 10**15)


def test_a_period_ends_just_before_the_next_begins():
    midnight = us(2026, 11, 25)
    assert period_at("1d", midnight - 1).id == "2026-11-24"
    assert period_at("1d", midnight).id == "2026-11-25"


def test_calendar_edges():
    assert period_at("1d", us(2028, 2, 29, 12)).id == "2028-02-29"
    assert period_at("1mo", us(2028, 2, 29, 12)).resets_us == us(2028, 3, 1)
    assert period_at("1mo", us(2026, 12, 31, 23)).resets_us == us(2027, 1, 1)
    assert period_at("7d", us(2027, 1, 1)).id == "2026-W53"
    assert period_at("7d", us(2024, 12, 30)).id == "2025-W01"


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Europe/Amsterdam", (2026, 3, 29), 23),
        ("Europe/Amsterdam", (2026, 10, 25), 25),
        ("Australia/Lord_Howe", (2026, 10, 4), 23.5),
        ("America/Sao_Paulo", (2018, 11, 4), 23),  # has no 00:00
        ("Asia/Kathmandu", (2026, 6, 1), 24),
        ("Pacific/Apia", (2011, 12, 29), 24),  # followed by the 31st
        ("Australia/Lord_Howe", (2026, 4, 5), 24.5),
        ("America/Sao_Paulo", (2018, 2, 17), 25),
        ("Africa/Cairo", (2026, 4, 24), 23),  # has no 00:00
        ("Europe/Amsterdam", (2028, 2, 29), 24),
        ("Asia/Kathmandu", (1986, 1, 1), 23.75),  # the offset went from 5:30 to 5:45
    ],
)
def test_days_are_as_long_as_they_are(zone, day, hours):
    tz = ZoneInfo(zone)
    period = period_at("1d", us(*day, 12, tz=tz), tz=tz)
    assert period.id == "{}-{:02}-{:02}".format(*day)
    assert period.resets_us is not None
    assert (period.resets_us - period.starts_us) / 3_600_000_000 == hours


@pytest.mark.parametrize(
    ("zone", "duration", "at", "period_id", "span"),
    [
        ("Europe/Amsterdam", "1mo", (2026, 2, 28, 23), "2026-02", ((2026, 2, 1), (2026, 3, 1))),
        ("Europe/Amsterdam", "1mo", (2028, 2, 29, 23), "2028-02", ((2028, 2, 1), (2028, 3, 1))),
        ("Europe/Amsterdam", "1mo", (2026, 3, 29, 3), "2026-03", ((2026, 3, 1), (2026, 4, 1))),
        ("Europe/Amsterdam", "1mo", (2026, 4, 30, 23), "2026-04", ((2026, 4, 1), (2026, 5, 1))),
        ("Europe/Amsterdam", "1mo", (2026, 12, 31, 23), "2026-12", ((2026, 12, 1), (2027, 1, 1))),
        ("Europe/Amsterdam", "7d", (2026, 3, 29, 23), "2026-W13", ((2026, 3, 23), (2026, 3, 30))),
        ("Europe/Amsterdam", "7d", (2027, 1, 1), "2026-W53", ((2026, 12, 28), (2027, 1, 4))),
        ("Asia/Kathmandu", "7d", (2021, 1, 3, 23), "2020-W53", ((2020, 12, 28), (2021, 1, 4))),
        ("Asia/Kathmandu", "1d", (2026, 6, 1), "2026-06-01", ((2026, 6, 1), (2026, 6, 2))),
        ("Pacific/Apia", "7d", (2011, 12, 31), "2011-W52", ((2011, 12, 26), (2012, 1, 2))),
        ("Pacific/Apia", "1mo", (2011, 12, 31), "2011-12", ((2011, 12, 1), (2012, 1, 1))),
    ],
)
def test_weeks_and_months_follow_the_calendar_of_their_zone(zone, duration, at, period_id, span):
    tz = ZoneInfo(zone)
    period = period_at(duration, us(*at, tz=tz), tz=tz)
    assert (period.id, period.starts_us, period.resets_us) == (period_id, *(us(*day, tz=tz) for day in span))


@pytest.mark.parametrize(("written", "same"), [("720m", "12h"), ("1440m", "24h"), ("48h", "2d"), ("60s", "1m")])
def test_a_time_written_in_smaller_units_is_the_same_period(written, same):
    assert period_at(written, NOW) == period_at(same, NOW)


@pytest.mark.parametrize(("written", "same"), [("24h", "1d"), ("168h", "7d")])
@pytest.mark.parametrize("zone", ["UTC", "America/Sao_Paulo"])
def test_a_day_or_week_written_in_hours_is_the_same_period(written, same, zone):
    """Or else a tool that writes the one for the other would open a fresh budget."""
    tz, now_us = ZoneInfo(zone), us(2026, 11, 24, 1)
    assert period_at(written, now_us, tz=tz) == period_at(same, now_us, tz=tz)
    assert period_name(written) == period_name(same)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1), ("90s", 90), ("30m", 1_800), ("24h", 86_400), ("7d", 604_800), ("2w", 1_209_600), ("999999s", 999_999)],
)
def test_a_time_span_has_that_many_seconds(text, seconds):
    assert span_seconds(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "0s", "07d", "-1h", "1 h", "1.5h", "1y", "1mo", "h", "24", "24H", "1000000s", "1d\n", "٣d"]
)
def test_any_other_text_is_no_time_span(text):
    assert span_seconds(text) is None


@pytest.mark.parametrize("duration", ["2w", "0d", "day", ""])
def test_no_budget_has_such_a_period(duration):
    with pytest.raises(ValueError, match="not a budget duration"):
        period_at(duration, 0)


def test_a_skipped_midnight_begins_at_the_jump():
    tz = ZoneInfo("America/Sao_Paulo")
    period = period_at("1d", us(2018, 11, 4, 12, tz=tz), tz=tz)
    assert period.starts_us == us(2018, 11, 4, 3)  # 01:00 local, the first instant of that date


def test_a_skipped_date_has_no_period():
    tz = ZoneInfo("Pacific/Apia")
    last_of_29th = period_at("1d", us(2011, 12, 29, 23, tz=tz), tz=tz)
    assert last_of_29th.resets_us is not None
    assert period_at("1d", last_of_29th.resets_us, tz=tz).id == "2011-12-31"


def test_a_midnight_inside_a_jump_begins_at_the_jump():
    """Toronto skipped from 23:30 to 00:30 in 1919: the jump, and not the midnight that never was, begins the date."""
    tz = ZoneInfo("America/Toronto")
    period = period_at("1d", us(1919, 3, 31, 12, tz=tz), tz=tz)
    start = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=period.starts_us)
    assert start.astimezone(tz).strftime("%F %T.%f") == "1919-03-31 00:30:00.000000"
    before = (start - timedelta(microseconds=1)).astimezone(tz)
    assert before.strftime("%F %T.%f") == "1919-03-30 23:29:59.999999"


def test_a_date_that_comes_twice_keeps_its_periods_in_order():
    """Goose Bay set its clocks back from 00:01 to 23:01 of the day before."""
    tz = ZoneInfo("America/Goose_Bay")
    minute_us = 60_000_000
    start = us(2010, 11, 6, 22, tz=tz)
    ids = [period_at("1d", start + minute * minute_us, tz=tz).id for minute in range(300)]
    assert ids == sorted(ids)
    assert set(ids) == {"2010-11-06", "2010-11-07"}


ZONES = [
    "UTC",
    "Europe/Amsterdam",
    "Australia/Lord_Howe",
    "America/Sao_Paulo",
    "Pacific/Apia",
    "America/Goose_Bay",
    "Asia/Kathmandu",
    "Africa/Cairo",
]
_durations = st.sampled_from(["1d", "7d", "1mo", "30d", "6h", "2d", "45m", "7s", "24h", "14d"])
_instants = st.integers(us(1990, 1, 1), us(2040, 1, 1))


@unhurried
@given(_durations, st.sampled_from(ZONES), _instants)
@example("1d", "America/Goose_Bay", us(2010, 11, 7, 3, 1))
@example("1d", "Pacific/Apia", us(2011, 12, 30, 10))
def test_periods_tile_time(duration, zone, now_us):
    """An instant lies in its period; the next period begins where it ends, has another and a later id."""
    tz = ZoneInfo(zone)
    period = period_at(duration, now_us, tz=tz)
    assert period.resets_us is not None
    assert period.starts_us <= now_us < period.resets_us
    assert period_at(duration, period.starts_us, tz=tz) == period
    assert period_at(duration, period.resets_us - 1, tz=tz) == period
    following = period_at(duration, period.resets_us, tz=tz)
    assert following.starts_us == period.resets_us
    assert following.id > period.id


@unhurried
@given(_durations, _instants, st.integers(0, 10**13))
def test_ids_never_go_back(duration, now_us, later_us):
    assert period_at(duration, now_us).id <= period_at(duration, now_us + later_us).id


def offset_changes(tz, since, until):
    """Find the instants, in microseconds, at which a zone's offset changes, by halving between months that differ."""

    def offset(at_us):
        return (EPOCH + timedelta(microseconds=at_us)).astimezone(tz).utcoffset()

    step = 30 * 86_400_000_000
    for before in range(since, until, step):
        low, high = before, before + step
        if offset(low) == offset(high):
            continue
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if offset(middle) == offset(low) else (low, middle)
        yield high


def assert_periods_meet(duration, tz, now_us):
    period = period_at(duration, now_us, tz=tz)
    assert period.starts_us <= now_us < period.resets_us
    before, after = period_at(duration, period.starts_us - 1, tz=tz), period_at(duration, period.resets_us, tz=tz)
    assert before.resets_us == period.starts_us
    assert after.starts_us == period.resets_us
    assert before.id < period.id < after.id


@pytest.mark.parametrize("letter", sorted({zone[:1] for zone in time_zones()}))
def test_periods_tile_time_in_every_zone(letter):
    """No gap and no overlap, and an id never comes again, at instants spread over a century and at offset changes."""
    for n, zone in enumerate(sorted(name for name in time_zones() if name.startswith(letter))):
        tz = ZoneInfo(zone)
        spread = range(us(1971, 1, 1) + n * 86_399_999_999, us(2090, 1, 1), 7 * 365 * 86_400_000_000 + 12_345_678)
        for now_us in spread:
            for duration in ("1d", "7d", "1mo"):
                assert_periods_meet(duration, tz, now_us)
        for change_us in offset_changes(tz, us(2005, 1, 1), us(2032, 1, 1)):
            assert_periods_meet("1d", tz, change_us - 1)
            assert_periods_meet("1d", tz, change_us)


def test_names():
    assert {name: period_name(duration) for name, duration in DURATION_OF.items()} == {
        name: name for name in DURATION_OF
    }
    assert period_name("30d") == "month"
    assert period_name("6h") == "6h"


@pytest.mark.parametrize("duration", ["", "1", "d", "0d", "-1d", "1.5h", "1y", "2mo", "1 d", "1d\n", "01d", "9999999s"])
def test_bad_durations_are_refused(duration):
    with pytest.raises(ValueError, match="not a budget duration"):
        period_at(duration, NOW)
    with pytest.raises(ValueError, match="not a budget duration"):
        period_name(duration)


def test_every_time_zone_of_the_database_is_one_and_no_other_name():
    assert {"UTC", "Europe/Amsterdam", "America/Argentina/Buenos_Aires", "Etc/GMT+5"} <= time_zones()
    assert not any(
        is_time_zone(name) for name in ("Factory", "localtime", "posix/UTC", "Europe/Amsterdam\n", "CET ", ".")
    )
