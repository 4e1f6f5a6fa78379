"""Cron expressions: the written cases, what they mean, what is refused, and words for them."""

import json
from datetime import datetime
from itertools import islice
from pathlib import Path
from time import thread_time

import pytest

from scheduling_app.timing.kinds import Cron
from tests.scheduling_app.timing.test_kinds import error, times

DATA = Path(__file__).parents[2] / "data"
VECTORS = json.loads((DATA / "cron_vectors.json").read_text())
BEHAVIOURS = json.loads((DATA / "time_behaviours.json").read_text())


def check(case):
    found = Cron(case["expr"], case["tz"]).times_after(datetime.fromisoformat(case["start"]))
    expected = [datetime.fromisoformat(time) for time in case["expected_next"]]
    assert list(islice(found, len(expected))) == expected


@pytest.mark.parametrize("case", VECTORS["vectors"], ids=lambda case: f"{case['expr']} {case['tz']} {case['start']}")
def test_a_cron_vector_gives_its_five_times(case):
    check(case)


@pytest.mark.parametrize("case", BEHAVIOURS["vectors"], ids=lambda case: case["case"])
def test_a_behaviour_gives_its_times(case):
    check(case)


@pytest.mark.parametrize("case", VECTORS["invalid"], ids=lambda case: case["why"])
def test_an_invalid_expression_is_refused_quickly_and_at_its_field(case):
    started = thread_time()
    field, _ = error(Cron, case["expr"])
    assert field == "cron"
    assert thread_time() - started < 0.5


def test_a_day_field_that_starts_with_a_star_is_not_restricted():
    assert times(Cron("0 0 */2 * 1"), "2025-06-01T00:00", 3) == [
        "2025-06-09T00:00",
        "2025-06-23T00:00",
        "2025-07-07T00:00",
    ]


def test_a_list_is_unrestricted_only_if_it_starts_with_the_star():
    assert times(Cron("0 0 *,13 * 5"), "2025-06-10T00:00", 2) == ["2025-06-13T00:00", "2025-06-20T00:00"]
    assert times(Cron("0 0 13,* * 5"), "2025-06-10T00:00", 2) == ["2025-06-11T00:00", "2025-06-12T00:00"]


@pytest.mark.parametrize(
    ("days", "expected"),
    [
        ("L * *", ["05-31", "06-30", "07-31", "08-31"]),
        ("L 2 *", ["2026-02-28", "2027-02-28", "2028-02-29"]),
        ("LW * *", ["05-30", "06-30", "07-31", "08-29"]),
        ("l,15 * *", ["05-15", "05-31", "06-15", "06-30"]),
        ("L * 1", ["05-05", "05-12", "05-19", "05-26", "05-31"]),
        ("L * */2", ["05-31", "07-31", "08-31"]),
        ("* * 5L", ["05-30", "06-27", "07-25", "08-29"]),
        ("* * 0L", ["05-25", "06-29", "07-27", "08-31"]),
        ("* * 7l", ["05-25", "06-29", "07-27", "08-31"]),
        ("* * 1#1", ["05-05", "06-02", "07-07", "08-04"]),
        ("* * Sun#1", ["05-04", "06-01", "07-06", "08-03"]),
        ("* * 7#1", ["05-04", "06-01", "07-06", "08-03"]),
        ("* * 4#5", ["05-29", "07-31", "10-30"]),
        ("* * 1#1,3#3", ["05-05", "05-21", "06-02", "06-18"]),
        ("* * 1#1,5L,6", ["05-03", "05-05", "05-10", "05-17", "05-24", "05-30", "05-31"]),
        ("13 * 1#1", ["05-05", "05-13", "06-02", "06-13"]),
        ("*/2 * 1#1", ["05-05", "07-07", "09-01"]),
    ],
)
def test_last_days_and_nth_weekdays(days, expected):
    found = times(Cron(f"0 12 {days}"), "2025-05-01T00:00", len(expected))
    assert found == [f"{day if len(day) > 5 else f'2025-{day}'}T12:00" for day in expected]


# --- What is refused, and in which words --------------------------------------------------------------


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
        ("0 0 L/2 * *", "day of month: 'L/2' is none of 1 to 31, L or LW"),
        ("0 0 L-3 * *", "day of month: 'L-3' is none of 1 to 31, L or LW"),
        ("0 0 15W * *", "day of month: '15W' is none of 1 to 31, L or LW"),
        ("0 0 ? * 1", "day of month: '?' is none of 1 to 31, L or LW"),
        ("0 0 * * friL", "day of week: 'friL' must be a weekday's number and L: 5L is the last Friday"),
        ("0 0 * * 1-3#2", "day of week: '1-3#2' must be a weekday, # and 1 to 5: 1#2 is the second Monday"),
        ("H 0 * * *", "minute: 'H' is none of 0 to 59"),
        ("* * * * \u017fun", "day of week: '\u017fun' is none of 0 to 7, or sun to sat"),
        ("@reboot", "@reboot is refused: schedules fire by the clock, not at a start"),
        (
            "CRON_TZ=Europe/Berlin 0 9 * * *",
            "TZ= and CRON_TZ= are refused: choose the time zone in its own field",
        ),
    ],
)
def test_a_refusal_names_the_part_that_is_wrong(expression, message):
    assert error(Cron, expression) == ("cron", message)


@pytest.mark.parametrize("expression", ["* * * *", "@fortnightly", "9" * 10_000 + " * * * *", None])
def test_what_is_no_expression_at_all_is_refused_too(expression):
    assert error(Cron, expression)[0] == "cron"


@pytest.mark.parametrize("expression", ["0 0 30 2 *", "0 0 31 2 */2", "0 0 */15 * 1#2", "0 0 */9 2 1#5"])
def test_a_date_that_never_comes_is_refused_quickly(expression):
    started = thread_time()
    assert error(Cron, expression)[1].startswith("day of month: no date ever matches")
    assert thread_time() - started < 0.1


@pytest.mark.parametrize(
    ("expression", "after", "expected"),
    [
        ("0 0 29 2 *", "2096-03-01T00:00", "2104-02-29T00:00"),
        ("0 0 29 2 */7", "2072-01-01T00:00", "2088-02-29T00:00"),
        ("0 0 * 2 1#5", "2072-03-01T00:00", "2112-02-29T00:00"),
        ("0 0 * 2 4#5", "2000-01-01T00:00", "2024-02-29T00:00"),
    ],
)
def test_a_rare_date_is_found_however_far_away(expression, after, expected):
    assert times(Cron(expression), after, 1) == [expected]


@pytest.mark.parametrize("expression", ["1-11-11/2 * * * *", "5-5/10/2 * * * *", "5-5/1\u0663 * * * *"])
def test_what_only_looks_like_a_range_of_one_number_is_refused(expression):
    assert error(Cron, expression)[1].startswith("minute: ")


@pytest.mark.parametrize(
    ("expression", "same"),
    [
        ("5-5/10 * * * *", "5 * * * *"),
        ("05-5/10,7 * * * *", "5,7 * * * *"),
        ("0 0 1 jan-1/3 *", "0 0 1 1 *"),
        ("0 0 * * Mon-mon/2", "0 0 * * 1"),
        ("0 0 * * sun-0/2", "0 0 * * 0"),
    ],
)
def test_a_range_of_one_with_a_step_is_that_one(expression, same):
    after = "2025-01-01T00:00"
    assert times(Cron(expression), after, 4) == times(Cron(same), after, 4)


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
