"""Timings in their zones: intervals, dates, bounds, jitter and previews. Expressions are in test_cron."""

from datetime import UTC, datetime, timedelta
from itertools import islice
from zoneinfo import ZoneInfo

import pytest

from scheduling_app.jobstore import trigger_for
from scheduling_app.timing.kinds import (
    Cron,
    Date,
    Interval,
    TimingError,
    jittered,
    parse_every,
    preview,
)

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


def at(text):
    """`2025-03-08T05:00`, in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def times(timing, after, count):
    return [f"{time:%Y-%m-%dT%H:%M}" for time in islice(timing.times_after(at(after)), count)]


def error(make, *args, **kwargs):
    with pytest.raises(TimingError) as caught:
        make(*args, **kwargs)
    return caught.value.field, str(caught.value)


# --- Zones and bounds ---------------------------------------------------------------------------------


DST_CASES = [
    ("0,15,30 2 * * *", "America/New_York", "2025-03-09T06:00", "2025-03-09T07:00 2025-03-10T06:00"),
    ("0 2,3 * * *", "America/New_York", "2025-03-09T06:00", "2025-03-09T07:00 2025-03-10T06:00"),
    ("0 30 2 * * *", "America/New_York", "2025-03-09T06:00", "2025-03-09T07:00 2025-03-10T06:30"),
    ("30 1 * * *", "America/New_York", "2025-11-02T06:10", "2025-11-03T06:30"),
    ("*/30 1 1 11 *", "America/New_York", "2025-11-02T06:45", "2026-11-01T05:00 2026-11-01T05:30"),
    ("0 12 * * *", "Pacific/Apia", "2011-12-29T00:00", "2011-12-29T22:00 2011-12-30T22:00"),
    ("0 12 30 12 *", "Pacific/Apia", "2011-12-01T00:00", "2012-12-29T22:00"),
    ("0 0 * * *", "Pacific/Apia", "2011-12-29T10:01", "2011-12-30T10:00 2011-12-31T10:00"),
]


@pytest.mark.parametrize(("expression", "zone", "after", "expected"), DST_CASES)
def test_wall_times_live_through_the_turns_of_the_clock(expression, zone, after, expected):
    expected = expected.split()
    assert times(Cron(expression, zone), after, len(expected)) == expected


def test_an_interval_of_minutes_does_not_notice_the_repeated_hour():
    timing = Interval(5, "minutes", at("2022-11-06T00:00"), "America/Los_Angeles")
    found = list(islice(timing.times_after(at("2022-11-06T08:50")), 4))
    assert found == [at("2022-11-06T08:50") + n * 5 * MINUTE for n in (1, 2, 3, 4)]


@pytest.mark.parametrize("name", ["", "Berlin", "europe/berlin", "Europe", "/etc/localtime", "../UTC", None])
def test_a_zone_that_is_not_an_iana_name_is_refused(name):
    assert error(Cron, "* * * * *", name)[0] == "timezone"


def test_a_misspelt_zone_is_answered_with_a_proposal():
    assert error(Date, at("2025-01-01T00:00"), "europe/berlin")[1].endswith("did you mean Europe/Berlin?")


def test_start_and_end_are_within_the_bounds_and_in_order():
    start, end = at("2025-01-01T09:00"), at("2025-01-03T09:00")
    timing = Cron("0 9 * * *", start_at=start, end_at=end)
    assert list(timing.times_after(at("2024-06-01T00:00"))) == [start, start + DAY, end]
    assert error(Cron, "0 9 * * *", start_at=end, end_at=start)[0] == "end_at"
    assert error(Cron, "0 9 * * *", start_at=datetime(2025, 1, 1))[0] == "start_at"


def test_moments_of_one_zone_are_told_apart_in_a_repeated_hour():
    first, second = (at(f"2025-11-02T0{hour}:30").astimezone(ZoneInfo("America/New_York")) for hour in (5, 6))
    assert Date(second).next_after(first) == at("2025-11-02T06:30")
    assert Cron("30 * * * *", start_at=first, end_at=second).next_after(first) == at("2025-11-02T06:30")
    assert error(Cron, "30 * * * *", start_at=second, end_at=first)[0] == "end_at"
    assert jittered(1, first, 3600, second) > at("2025-11-02T05:30")


def test_a_timing_ends_with_the_calendar():
    assert list(Cron("0 0 1 1 *").times_after(at("9998-06-01T00:00"))) == [at("9999-01-01T00:00")]


def test_a_naive_moment_is_not_guessed_at():
    with pytest.raises(ValueError, match="aware"):
        Cron("* * * * *").next_after(datetime(2025, 1, 1))


def test_intervals_and_dates_describe_themselves():
    anchor = at("2026-03-01T08:00")
    assert Interval(5, "minutes", anchor).describe() == "every 5 minutes"
    assert Interval(90, "seconds", anchor).describe() == "every 90 seconds"
    assert Interval(1, "weeks", anchor).describe() == "every week"
    assert Date(anchor, "Europe/Berlin").describe() == "once at 2026-03-01 09:00 Europe/Berlin"


# --- Intervals and dates ------------------------------------------------------------------------------


def test_an_interval_counts_from_its_anchor_and_does_not_drift():
    anchor = at("2025-01-01T00:00") + timedelta(seconds=7)
    timing = Interval(90, "seconds", anchor)
    assert timing.next_after(anchor - DAY) == anchor
    assert timing.next_after(anchor) == anchor + timedelta(seconds=90)
    later = timing.next_after(at("2035-01-01T00:00"))
    assert (later - anchor) % timedelta(seconds=90) == timedelta(0)


def test_hours_are_real_hours_across_the_turns():
    timing = Interval(6, "hours", at("2025-03-29T12:00"), "Europe/Berlin")
    assert times(timing, "2025-03-29T18:00", 3) == [
        "2025-03-30T00:00",
        "2025-03-30T06:00",
        "2025-03-30T12:00",
    ]


def test_days_keep_their_wall_time_across_the_turns():
    timing = Interval(1, "days", at("2025-03-28T08:00"), "Europe/Berlin")
    assert times(timing, "2025-03-29T00:00", 2) == ["2025-03-29T08:00", "2025-03-30T07:00"]
    assert times(timing, "2025-10-25T00:00", 2) == ["2025-10-25T07:00", "2025-10-26T08:00"]


def test_weeks_keep_their_wall_time_too():
    timing = Interval(2, "weeks", at("2025-03-17T08:00"), "Europe/Berlin")
    assert times(timing, "2025-03-17T08:00", 2) == ["2025-03-31T07:00", "2025-04-14T07:00"]


def test_a_day_whose_time_is_skipped_runs_right_after_the_gap():
    timing = Interval(1, "days", at("2025-03-07T07:30"), "America/New_York")
    assert times(timing, "2025-03-08T08:00", 2) == ["2025-03-09T07:00", "2025-03-10T06:30"]


def test_a_day_whose_time_comes_twice_runs_in_the_first_pass():
    timing = Interval(1, "days", at("2025-10-31T05:30"), "America/New_York")
    assert times(timing, "2025-11-01T06:00", 2) == ["2025-11-02T05:30", "2025-11-03T06:30"]
    assert times(timing, "2025-11-02T06:10", 1) == ["2025-11-03T06:30"]


def test_an_anchor_in_the_second_pass_is_the_first_time_itself():
    timing = Interval(1, "days", at("2025-11-02T06:30"), "America/New_York")
    assert times(timing, "2025-11-01T00:00", 2) == ["2025-11-02T06:30", "2025-11-03T06:30"]


def test_a_day_that_a_zone_left_out_has_no_run():
    timing = Interval(1, "days", at("2011-12-28T19:00"), "Pacific/Apia")
    assert times(timing, "2011-12-28T19:00", 2) == ["2011-12-29T19:00", "2011-12-30T19:00"]


def test_a_time_that_a_gap_skips_is_what_the_clocks_show_instead():
    skipped = datetime(2025, 3, 9, 2, 30, tzinfo=ZoneInfo("America/New_York"))
    assert Date(skipped, "America/New_York").describe() == "once at 2025-03-09 03:30 America/New_York"
    timing = Interval(1, "days", skipped, "America/New_York")
    assert times(timing, "2025-03-09T00:00", 2) == ["2025-03-09T07:30", "2025-03-10T07:30"]


def test_an_interval_with_an_odd_length_is_refused():
    anchor = at("2025-01-01T00:00")
    assert error(Interval, 0, "days", anchor)[0] == "every"
    assert error(Interval, True, "days", anchor)[0] == "every"
    assert error(Interval, 1.5, "days", anchor)[0] == "every"
    assert error(Interval, 10**30, "seconds", anchor)[0] == "every"
    assert error(Interval, 1, "months", anchor)[0] == "unit"
    assert error(Interval, 1, "days", datetime(2025, 1, 1))[0] == "start_at"


def test_a_date_comes_once():
    timing = Date(at("2025-01-01T00:00"))
    assert list(timing.times_after(at("2024-01-01T00:00"))) == [at("2025-01-01T00:00")]
    assert timing.next_after(at("2025-01-01T00:00")) is None
    assert error(Date, datetime(2025, 1, 1))[0] == "run_at"
    assert error(Date, None)[0] == "run_at"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30s", (30, "seconds")),
        ("90m", (90, "minutes")),
        (" 2 h ", (2, "hours")),
        ("1d", (1, "days")),
        ("1w", (1, "weeks")),
    ],
)
def test_an_interval_can_be_written_short(text, expected):
    assert parse_every(text) == expected


@pytest.mark.parametrize("text", ["", "5", "m", "0m", "-5m", "1.5h", "5M", "5y", "\u0663m", "999999999w"])
def test_a_short_interval_that_says_nothing_is_refused(text):
    assert error(parse_every, text)[0] == "every"


# --- Jitter, previews and APScheduler -----------------------------------------------------------------


def test_jitter_is_the_same_for_the_same_run_everywhere():
    due = at("2025-01-01T00:00")
    berlin = due.astimezone(ZoneInfo("Europe/Berlin"))
    expected = due + timedelta(microseconds=3_860_631)
    assert jittered(7, due, 60, None) == jittered("7", berlin, 60, None) == expected


def test_jitter_spreads_runs_over_its_whole_range_and_not_beyond():
    due = at("2025-01-01T00:00")
    offsets = sorted(jittered(key, due, 60, None) - due for key in range(1000))
    assert timedelta(0) <= offsets[0] < timedelta(seconds=1)
    assert timedelta(seconds=59) < offsets[-1] < timedelta(seconds=60)
    assert len(set(offsets)) == 1000
    assert len({jittered(7, due + n * HOUR, 60, None).second for n in range(100)}) > 20


def test_jitter_never_reaches_the_following_time():
    due, following = at("2025-01-01T00:00"), at("2025-01-01T00:00") + timedelta(seconds=10)
    assert all(due <= jittered(key, due, 3600, following) < following for key in range(1000))
    assert jittered(7, due, 60, due) == jittered(7, due, 0, None) == due


def notes(timing, after, count):
    return [(f"{time.local:%d %H:%M}", time.note) for time in preview(timing, at(after), count)]


@pytest.mark.parametrize(
    "timing",
    [
        Cron("30 2 * * *", "America/New_York"),
        Interval(1, "days", at("2025-03-01T07:30"), "America/New_York"),
    ],
)
def test_a_preview_says_where_a_run_moves_past_the_gap(timing):
    assert notes(timing, "2025-03-08T05:00", 3) == [
        ("08 02:30", ""),
        ("09 03:00", "clocks go forward: 02:30 does not exist, runs right after the gap"),
        ("10 02:30", ""),
    ]


def test_a_preview_does_not_mark_what_is_due_right_after_the_gap_anyway():
    assert notes(Cron("0 3 * * *", "America/New_York"), "2025-03-08T20:00", 1) == [("09 03:00", "")]
    assert notes(Cron("*/30 * * * *", "America/New_York"), "2025-03-09T06:30", 1) == [("09 03:00", "")]


@pytest.mark.parametrize(
    "timing",
    [
        Cron("30 1 * * *", "America/New_York"),
        Interval(1, "days", at("2025-10-01T05:30"), "America/New_York"),
    ],
)
def test_a_preview_says_where_a_time_comes_twice_and_runs_once(timing):
    assert notes(timing, "2025-11-01T16:00", 2) == [
        ("02 01:30", "clocks go back: runs once, in the first pass"),
        ("03 01:30", ""),
    ]


@pytest.mark.parametrize(
    "timing",
    [
        Cron("*/30 * * * *", "America/New_York"),
        Interval(30, "minutes", at("2025-10-01T00:00"), "America/New_York"),
    ],
)
def test_a_preview_tells_the_two_passes_apart(timing):
    assert notes(timing, "2025-11-02T04:40", 5) == [
        ("02 01:00", "clocks go back: first pass"),
        ("02 01:30", "clocks go back: first pass"),
        ("02 01:00", "clocks go back: second pass"),
        ("02 01:30", "clocks go back: second pass"),
        ("02 02:00", ""),
    ]


def test_a_preview_shows_utc_and_the_zone_and_stops_where_the_timing_ends():
    (only,) = preview(Date(at("2025-06-01T12:00"), "Asia/Kolkata"), at("2025-01-01T00:00"), 10)
    assert (only.at, f"{only.local:%H:%M}", only.note) == (at("2025-06-01T12:00"), "17:30", "")
    assert only.at.tzinfo is UTC


def test_the_trigger_counts_now_itself_when_nothing_ran_before():
    trigger, now = trigger_for(Cron("*/5 * * * *")), at("2025-01-01T00:05")
    assert trigger.get_next_fire_time(None, now) == now
    assert trigger.get_next_fire_time(None, now + timedelta(microseconds=1)) == at("2025-01-01T00:10")


def test_the_trigger_goes_on_after_the_previous_time():
    trigger, now = trigger_for(Cron("*/5 * * * *")), at("2025-01-01T00:05")
    assert trigger.get_next_fire_time(now, now) == at("2025-01-01T00:10")
    assert trigger.get_next_fire_time(at("2025-01-01T00:20"), now) == at("2025-01-01T00:25")


def test_the_trigger_is_right_where_the_scheduler_keeps_local_time():
    right_after_the_gap = at("2025-03-09T07:00").astimezone(ZoneInfo("America/New_York"))
    trigger = trigger_for(Cron("*/5 * * * *", "America/New_York"))
    assert trigger.get_next_fire_time(None, right_after_the_gap) == right_after_the_gap


def test_the_trigger_steps_over_what_was_missed():
    missed, now = at("2025-01-01T00:00"), at("2025-01-09T12:03")
    assert trigger_for(Cron("*/5 * * * *")).get_next_fire_time(missed, now) == at("2025-01-09T12:05")
    assert trigger_for(Date(missed)).get_next_fire_time(None, now) is None
