"""Timings against the written cases, and cron against an oracle that walks every minute."""

import json
import random
from datetime import UTC, date, datetime, timedelta
from functools import cache
from itertools import islice, pairwise, takewhile
from pathlib import Path
from time import perf_counter
from zoneinfo import ZoneInfo

import pytest

from scheduling_app.triggers import (
    Cron,
    Date,
    Interval,
    TimingError,
    jittered,
    parse_every,
    preview,
    trigger_for,
)

VECTORS = json.loads((Path(__file__).parent / "data" / "cron_vectors.json").read_text())
SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def at(text):
    """`2025-03-08T05:00`, in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def times(timing, after, count):
    return [f"{time:%Y-%m-%dT%H:%M}" for time in islice(timing.times_after(at(after)), count)]


def error(make, *args, **kwargs):
    with pytest.raises(TimingError) as caught:
        make(*args, **kwargs)
    return caught.value.field, str(caught.value)


# --- The written cases --------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", VECTORS["vectors"], ids=lambda v: f"{v['expr']} {v['tz']} {v['start']}")
def test_a_cron_vector_gives_its_five_times(vector):
    found = Cron(vector["expr"], vector["tz"]).times_after(datetime.fromisoformat(vector["start"]))
    expected = [datetime.fromisoformat(time) for time in vector["expected_next"]]
    assert list(islice(found, len(expected))) == expected


@pytest.mark.parametrize("case", VECTORS["invalid"], ids=lambda case: case["why"])
def test_an_invalid_expression_is_refused_quickly_and_at_its_field(case):
    started = perf_counter()
    field, _ = error(Cron, case["expr"])
    assert field == "cron"
    assert perf_counter() - started < 0.5


@pytest.mark.parametrize(
    ("expression", "after", "expected"),
    [
        ("30 4 * * 0", "2025-06-10T00:00", ["2025-06-15T04:30", "2025-06-22T04:30", "2025-06-29T04:30"]),
        ("30 4 * * 7", "2025-06-10T00:00", ["2025-06-15T04:30", "2025-06-22T04:30", "2025-06-29T04:30"]),
        ("30 7 * * 4", "2025-06-10T00:00", ["2025-06-12T07:30", "2025-06-19T07:30"]),
        (
            "15 10,12 * * 1,7",
            "2025-06-10T00:00",
            ["2025-06-15T10:15", "2025-06-15T12:15", "2025-06-16T10:15", "2025-06-16T12:15"],
        ),
        ("0 6 * * 6-7", "2025-06-10T00:00", ["2025-06-14T06:00", "2025-06-15T06:00", "2025-06-21T06:00"]),
    ],
)
def test_weekday_numbers_follow_crontab(expression, after, expected):
    assert times(Cron(expression), after, len(expected)) == expected


@pytest.mark.parametrize(
    ("expression", "after", "days", "clock"),
    [
        ("0 9 13 * fri", "2026-01-01T00:00", ["01-02", "01-09", "01-13", "01-16", "01-23"], "T09:00"),
        ("30 4 1,15 * 5", "2025-06-10T00:00", ["06-13", "06-15", "06-20", "06-27", "07-01"], "T04:30"),
        ("0 22 1-7 * 6", "2025-06-01T00:00", ["06-01", "06-02", "06-03", "06-04", "06-05"], "T22:00"),
        ("0 0 30 2 1", "2025-01-15T00:00", ["02-03", "02-10", "02-17", "02-24"], "T00:00"),
    ],
)
def test_either_of_two_restricted_day_fields_is_enough(expression, after, days, clock):
    assert times(Cron(expression), after, len(days)) == [f"{after[:4]}-{day}{clock}" for day in days]


def test_a_day_field_that_starts_with_a_star_is_not_restricted():
    assert times(Cron("0 0 */2 * 1"), "2025-06-01T00:00", 3) == [
        "2025-06-09T00:00",
        "2025-06-23T00:00",
        "2025-07-07T00:00",
    ]


DST_CASES = [
    # 4: the repeated autumn hour
    (
        "30 * * * *",
        "Europe/Helsinki",
        "2017-10-29T01:45",
        "2017-10-29T02:30 2017-10-29T03:30 2017-10-29T04:30",
    ),
    (
        "*/5 * * * *",
        "Europe/Zurich",
        "2023-10-29T00:50",
        "2023-10-29T00:55 2023-10-29T01:00 2023-10-29T01:05 2023-10-29T01:10",
    ),
    # 5: days of 23 and 25 hours
    ("0 0 * * 1-5", "America/Chicago", "2021-03-12T06:00", "2021-03-15T05:00 2021-03-16T05:00"),
    ("0 12 * * 0", "Europe/Berlin", "2022-03-24T11:00", "2022-03-27T10:00 2022-04-03T10:00"),
    ("0 6 * * *", "Europe/Berlin", "2022-10-28T10:00", "2022-10-29T04:00 2022-10-30T05:00 2022-10-31T05:00"),
    ("0 3 * * *", "Europe/Moscow", "2017-09-22T09:00", "2017-09-23T00:00 2017-09-24T00:00 2017-09-25T00:00"),
    ("1 12 * * *", "Europe/Rome", "2021-04-07T21:00", "2021-04-08T10:01 2021-04-09T10:01 2021-04-10T10:01"),
    ("0 12 * * 1", "Europe/Amsterdam", "2013-10-21T22:00", "2013-10-28T11:00 2013-11-04T11:00"),
    # 6: fixed times at the switch
    (
        "30 2 * * *",
        "America/New_York",
        "2025-03-08T05:00",
        "2025-03-08T07:30 2025-03-09T07:00 2025-03-10T06:30",
    ),
    ("0 0 * * *", "America/Sao_Paulo", "2018-11-03T03:00", "2018-11-04T03:00 2018-11-05T02:00"),
    ("30 1 * * *", "America/New_York", "2025-11-01T16:00", "2025-11-02T05:30 2025-11-03T06:30"),
    (
        "*/15 * * * *",
        "America/New_York",
        "2025-11-02T05:40",
        "2025-11-02T05:45 2025-11-02T06:00 2025-11-02T06:15 2025-11-02T06:30 2025-11-02T06:45",
    ),
    ("0 9 * * *", "America/New_York", "2025-03-08T20:00", "2025-03-09T13:00"),
    ("0 9 * * *", "America/New_York", "2025-11-01T12:00", "2025-11-01T13:00 2025-11-02T14:00"),
    # and beyond the cases
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


# --- Expressions: what is refused, and in which words -------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("60 * * * *", "minute: 60 is not between 0 and 59"),
        ("61 * * * * *", "second: 61 is not between 0 and 59"),
        ("* 5,24 * * *", "hour: 24 is not between 0 and 23"),
        ("*/0 * * * *", "minute: the step in '*/0' must be a number from 1 up"),
        ("30-10 * * * *", "minute: the range 30-10 runs backwards"),
        ("0 0 * * sat-sun", "day of week: the range sat-sun runs backwards; Sunday can be 7"),
        ("* * * FOO *", "month: 'FOO' is none of 1 to 12, or jan to dec"),
        ("0 0 * * 1#6", "day of week: '1#6' must be a weekday, # and 1 to 5: 1#2 is the second Monday"),
        ("0 0 L/2 * *", "day of month: 'L/2' is none of 1 to 31"),
        ("* * * * \u017fun", "day of week: '\u017fun' is none of 0 to 7, or sun to sat"),
        ("@reboot", "@reboot is refused: schedules fire by the clock, not at a start"),
    ],
)
def test_a_refusal_names_the_part_that_is_wrong(expression, message):
    assert error(Cron, expression) == ("cron", message)


@pytest.mark.parametrize("expression", ["* * * *", "@fortnightly", "9" * 10_000 + " * * * *", None])
def test_what_is_no_expression_at_all_is_refused_too(expression):
    assert error(Cron, expression)[0] == "cron"


@pytest.mark.parametrize("expression", ["0 0 30 2 *", "0 0 31 2 */2", "0 0 */15 * 1#2", "0 0 */9 2 1#5"])
def test_a_date_that_never_comes_is_refused_quickly(expression):
    started = perf_counter()
    assert error(Cron, expression)[1].startswith("day of month: no date ever matches")
    assert perf_counter() - started < 0.1


@pytest.mark.parametrize(
    ("expression", "after", "expected"),
    [
        ("0 0 29 2 *", "2096-03-01T00:00", "2104-02-29T00:00"),
        ("0 0 29 2 */7", "2072-01-01T00:00", "2088-02-29T00:00"),
        ("0 0 * 2 1#5", "2072-03-01T00:00", "2112-02-29T00:00"),
    ],
)
def test_a_rare_date_is_found_across_the_year_2100(expression, after, expected):
    assert times(Cron(expression), after, 1) == [expected]


@pytest.mark.parametrize("expression", ["1-11-11/2 * * * *", "5-5/10/2 * * * *", "5-5/1\u0663 * * * *"])
def test_what_only_looks_like_a_range_of_one_number_is_refused(expression):
    assert error(Cron, expression)[1].startswith("minute: ")


def test_a_range_of_one_number_with_a_step_is_that_number():
    assert times(Cron("5-5/10 * * * *"), "2025-01-01T00:00", 2) == ["2025-01-01T00:05", "2025-01-01T01:05"]


def test_the_nicknames_stand_for_their_expressions():
    first = {name: times(Cron(name), "2025-06-10T10:30", 1)[0] for name in ("@hourly", "@Daily", "@weekly")}
    assert first == {
        "@hourly": "2025-06-10T11:00",
        "@Daily": "2025-06-11T00:00",
        "@weekly": "2025-06-15T00:00",
    }
    assert times(Cron("@monthly"), "2025-06-10T10:30", 1) == ["2025-07-01T00:00"]
    assert times(Cron("@yearly"), "2025-06-10T10:30", 1) == times(Cron("@annually"), "2025-06-10T10:30", 1)
    assert times(Cron("@midnight"), "2025-06-10T10:30", 1) == ["2025-06-11T00:00"]


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


# --- Words --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("* * * * *", "every minute"),
        ("*/5 * * * *", "every 5 minutes"),
        ("*/7 * * * *", "*/7 * * * *"),
        ("*/10 * * * * *", "every 10 seconds"),
        ("15 * * * *", "every hour at minute 15"),
        ("0 9 * * *", "at 09:00"),
        ("00 09 * * *", "at 09:00"),
        ("0 9 * * mon-fri", "at 09:00, Monday to Friday"),
        ("30 17,8 * * 6,0", "at 08:30 and 17:30, Saturday and Sunday"),
        ("0 9 * * 1-3,7", "at 09:00, Monday to Wednesday and Sunday"),
        ("0 9 L * *", "at 09:00 on the last day of the month"),
        ("0 9 1 jan *", "at 09:00 on 1 January"),
        ("@daily", "at 00:00"),
        ("@monthly", "at 00:00 on day 1 of the month"),
        ("0 0 13 * 5", "0 0 13 * 5"),
        ("0 */2 * * *", "0 */2 * * *"),
        ("0 9 * * 5L", "0 9 * * 5L"),
        ("*/5 9-17 * * 1-5", "*/5 9-17 * * 1-5"),
    ],
)
def test_cron_has_words_only_where_they_cannot_be_wrong(expression, words):
    assert Cron(expression).describe() == words


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


# --- The oracle: every minute, one after the other ----------------------------------------------------

ZONES = [
    "Africa/Cairo",
    "Africa/Casablanca",
    "America/Caracas",
    "America/Havana",
    "America/New_York",
    "America/Nuuk",
    "America/Santiago",
    "America/Sao_Paulo",
    "Antarctica/Casey",  # shifts of three hours
    "Antarctica/Troll",  # two hours
    "Antarctica/Vostok",
    "Asia/Gaza",
    "Asia/Kathmandu",
    "Asia/Pyongyang",
    "Asia/Tehran",
    "Australia/Lord_Howe",  # half an hour
    "Europe/Berlin",
    "Europe/Dublin",
    "Pacific/Apia",  # and a day, in 2011
    "Pacific/Chatham",
]
NAMES = {"sun": 0, "mon": 1, "tue": 2, "wed": 3, "thu": 4, "fri": 5, "sat": 6}


@cache
def shifts(zone):
    """The instants between 2015 and 2030 at which the zone's clocks change (any one where none do)."""
    offset = lambda moment: moment.astimezone(ZoneInfo(zone)).utcoffset()  # noqa: E731
    found = []
    for day in minutes(at("2015-01-01T00:00"), at("2031-01-01T00:00"), DAY):
        if offset(day) != offset(day + DAY):
            found.append(next(t for t in minutes(day, day + DAY + MINUTE) if offset(t) != offset(day)))
    return found + [at("2011-12-30T10:00")] * 8 * (zone == "Pacific/Apia") or [at("2024-05-05T00:00")]


def minutes(start, end, step=MINUTE):
    while start < end:
        yield start
        start += step


@cache
def walk(zone, start, end, step):
    info = ZoneInfo(zone)
    return [(t, t.astimezone(info).replace(tzinfo=None, fold=0)) for t in minutes(start, end, step)]


def values(part, low, high):
    """The numbers one field stands for, by the manual page alone."""
    found = set()
    for item in part.split(","):
        span, _, step = item.partition("/")
        first, _, last = span.partition("-")
        first, last = (str(low), str(high)) if first == "*" else (first, last or first)
        first, last = (int(NAMES.get(value.lower(), value)) for value in (first, last))
        found |= {n for n in range(first, last + 1) if (n - first) % int(step or 1) == 0}
    return found


class Oracle:
    def __init__(self, expression):
        parts = expression.split()
        second, self.minute, self.hour, self.day, month, self.weekday = ["0"] * (6 - len(parts)) + parts
        self.clock = values(second, 0, 59), values(self.minute, 0, 59), values(self.hour, 0, 23)
        self.months, self.days = values(month, 1, 12), values(self.day, 1, 31)
        self.weekdays = {n % 7 for n in values(self.weekday, 0, 7)}
        self.matches_date = cache(self._matches_date)

    def _matches_date(self, day: date):
        both = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        either = not self.day.startswith("*") and not self.weekday.startswith("*")
        return day.month in self.months and (any(both) if either else all(both))

    def matches(self, wall):
        second, minute, hour = self.clock
        in_clock = wall.minute in minute and wall.hour in hour and wall.second in second
        return in_clock and self.matches_date(wall.date())

    def times(self, zone, start, end, step):
        fixed = not self.minute.startswith("*") and not self.hour.startswith("*")
        found, held_back_until = [], datetime.min
        steps = walk(zone, start, end, step)
        for (_, before), (moment, wall) in pairwise(steps):
            shift = wall - before - step
            ruled = fixed and timedelta(0) < abs(shift) <= 3 * HOUR
            if ruled and shift < timedelta(0):
                held_back_until = before + step
            runs = self.matches(wall) and wall >= held_back_until
            if ruled and shift > timedelta(0):
                runs = runs or any(map(self.matches, minutes(before + step, wall, step)))
            if runs:
                found.append(moment)
        return found


def random_field(rng, low, high, near):
    pick = lambda: rng.choice([rng.randint(low, high), near])  # noqa: E731
    match rng.randrange(8):
        case 0 | 1:
            return "*"
        case 2:
            return f"*/{rng.choice([2, 3, 5, 7, 10, 15, 20, 30])}"
        case 3:
            first, last = sorted((pick(), pick()))
            return f"{first}-{last}" + rng.choice(["", "", "/2", "/5"])
        case 4:
            return ",".join(str(pick()) for _ in range(rng.randint(2, 4)))
    return str(pick())


def random_expression(rng, near):
    """Five fields, often close to the wall time `near`."""
    weekday = rng.choice([random_field(rng, 0, 7, near.isoweekday()), "mon-fri", "SUN"])
    return " ".join(
        [
            random_field(rng, 0, 59, rng.choice([0, 15, 30, 45])),
            random_field(rng, 0, 23, near.hour),
            random_field(rng, 1, 31, near.day) if rng.random() < 0.4 else "*",
            random_field(rng, 1, 12, near.month) if rng.random() < 0.2 else "*",
            weekday if rng.random() < 0.4 else "*",
        ]
    )


def random_cases(seed, count):
    """(rng, expression, zone, turn): expressions that can match, at a turn of the zone's clocks."""
    rng = random.Random(seed)
    while count:
        zone = rng.choice(ZONES)
        turn = rng.choice(shifts(zone))
        near = turn - rng.choice([-15, 0, 15, 30, 45, 60, 75, 90]) * MINUTE
        expression = random_expression(rng, near.astimezone(ZoneInfo(zone)))
        if can_match(expression):
            yield rng, expression, zone, turn
            count -= 1


def can_match(expression):
    try:
        return bool(Cron(expression))
    except TimingError:
        return False


def agree(rng, expression, zone, start, end, step):
    expected = Oracle(expression).times(zone, start, end, step)
    timing = Cron(expression, zone)
    found = list(takewhile(lambda time: time < end, timing.times_after(start)))
    assert found == expected, (expression, zone)
    for moment in [start + rng.random() * (end - start) for _ in range(5)]:
        first = next((time for time in expected if time > moment), end)
        assert min(timing.next_after(moment), end) == first, (expression, zone, moment)


@pytest.mark.parametrize("seed", range(15))
def test_cron_agrees_with_a_walk_through_every_minute_around_the_turns(seed):
    for rng, expression, zone, turn in random_cases(seed, 100):
        agree(rng, expression, zone, turn - 25 * HOUR, turn + 30 * HOUR, MINUTE)


def test_cron_with_seconds_agrees_with_a_walk_through_every_second():
    for rng, expression, zone, turn in random_cases(seed=99, count=60):
        with_seconds = f"{random_field(rng, 0, 59, 30)} {expression}"
        agree(rng, with_seconds, zone, turn - 100 * MINUTE, turn + 100 * MINUTE, SECOND)
