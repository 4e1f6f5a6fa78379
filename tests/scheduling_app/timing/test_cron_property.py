"""Cron against the slow walk of tests/walk.py: every zone whose clocks were turned, random expressions.

A failure prints a call of `check` that repeats it.
"""

from bisect import bisect_right
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from itertools import islice
from random import Random
from zoneinfo import ZoneInfo

import pytest

from scheduling_app.timing.kinds import Cron, TimingError
from tests.scheduling_app.timing.test_cron import BEHAVIOURS, VECTORS
from tests.walk import (
    DAY,
    HOUR,
    MINUTE,
    MONTHS,
    NICKNAMES,
    SECOND,
    WEEK,
    WEEKDAYS,
    Expression,
    every,
    shifts,
    utc,
    walk,
)

FIELDS = [(0, 59, []), (0, 23, []), (1, 31, []), (1, 12, MONTHS), (0, 7, WEEKDAYS)]


def check(expression, zone, start, end, shift, step=MINUTE):
    """In the stretch from `start` to `end` the engine has the times of the walk; `shift` is where to look closely."""
    expected = Expression(expression).times(walk(zone, utc(start), utc(end), step))
    case = f"check({expression!r}, {zone!r}, {start!r}, {end!r}, {shift!r}{', SECOND' if step == SECOND else ''})"
    compare(Cron(expression, zone), expected, utc(start), utc(end), utc(shift), case)


def compare(timing, expected, start, end, shift, case):
    """`timing` has the `expected` times from any moment on, and within any bounds."""
    rng = Random(case)
    for now, count in moments(rng, start, end, shift, timing.zone):
        coming = expected[bisect_right(expected, now.astimezone(UTC)) :][:count]
        found = [time for time in islice(timing.times_after(now), len(coming) + 1) if time < end][:count]
        assert found == coming, f"{case} after {now!r}"
    if expected:
        index = rng.randrange(len(expected))
        within = expected[index : index + 5]
        early, late = (rng.choice([timedelta(0), timedelta(microseconds=1), SECOND, HOUR]) for _ in range(2))
        start_at, end_at = max(within[0] - early, expected[0]), min(within[-1] + late, expected[-1])
        allowed = [time for time in expected if start_at <= time <= end_at]
        bounded = replace(timing, start_at=start_at, end_at=end_at)
        found = list(islice(bounded.times_after(start - WEEK), len(allowed) + 1))
        assert found == allowed, f"{case} from {start_at} to {end_at}"


def moments(rng, start, end, shift, zone):
    """(now, how many times to compare): in UTC or in the zone, within both passes, and in gaps, that never were."""
    yield start, 150
    near = min(4 * HOUR, shift - start, end - shift)
    for around in (shift, shift - timedelta(microseconds=1), *(shift + rng.uniform(-1, 1) * near for _ in range(5))):
        yield around, 5
        yield around.astimezone(zone), 1
    yield (shift - MINUTE).astimezone(zone) + rng.random() * HOUR, 1  # in wall time, so maybe within the gap
    for _ in range(3):
        yield start + rng.random() * (end - start), 10


def expression_near(rng, wall):
    """Five fields of every form, often such that they name the wall time or one close to it."""
    if rng.random() < 0.05:
        return rng.choice([str.lower, str.upper, str.title])(rng.choice(list(NICKNAMES)))
    near = rng.choice([0, 15, 30, 45, wall.minute]), wall.hour, wall.day, wall.month, wall.isoweekday()
    minute, hour, day, month, weekday = (
        field(rng, *limits, number) for limits, number in zip(FIELDS, near, strict=True)
    )
    return " ".join(
        [
            minute,
            hour,
            day if rng.random() < 0.4 else "*",
            month if rng.random() < 0.2 else "*",
            weekday if rng.random() < 0.4 else "*",
        ]
    )


def field(rng, low, high, names, near):
    return ",".join(item(rng, low, high, names, near) for _ in range(rng.choice([1, 1, 1, 1, 2, 3])))


def item(rng, low, high, names, near):
    first, last = sorted(rng.choice([near, near, rng.randint(low, high)]) for _ in range(2))
    step = rng.choice([1, 2, 3, 5, 7, 10, 20, 30, 90])
    forms = ["*", f"*/{step}", f"{first}-{last}", f"{first}-{last}/{step}", f"{first}/{step}", *[str(first)] * 4]
    if names and last < len(names):
        first, last = (rng.choice([number, names[number], names[number].upper()]) for number in (first, last))
        forms += [f"{first}", f"{first}-{last}", f"{first}-{last}/{step}"]
    if names == WEEKDAYS:
        forms += [f"{first}#{rng.randint(1, 5)}", f"{near}L", f"{near}#{rng.randint(1, 5)}"]
    if high == 31:
        forms += ["L", "l", "LW"]
    return rng.choice(forms)


def can_come(expression):
    """As the walk finds; the engine must refuse what cannot."""
    if Expression(expression).can_come():
        return True
    with pytest.raises(TimingError, match="no date ever matches"):
        Cron(expression)
    return False


def stretch(shift, before=DAY, after=2 * DAY):
    """What `check` takes: start, end and shift."""
    return tuple(f"{moment:%Y-%m-%dT%H:%M}" for moment in (shift - before, shift + after, shift))


def test_the_walk_itself_gives_the_written_cases():
    for case in [*VECTORS["vectors"], *BEHAVIOURS["vectors"]]:
        start, *expected = map(datetime.fromisoformat, [case["start"], *case["expected_next"]])
        if expected[-1] - start < 15 * DAY:
            steps = walk(case["tz"], start.replace(second=0) - DAY, expected[-1] + MINUTE)
            assert [time for time in Expression(case["expr"]).times(steps) if time > start] == expected, case


def test_cron_agrees_with_the_walk_around_the_shifts_of_every_zone():
    for zone, shift in shifts():
        rng = Random(f"{zone} {shift}")
        for _ in range(7):
            expression = expression_near(rng, (shift + rng.uniform(-2, 1.5) * HOUR).astimezone(ZoneInfo(zone)))
            if can_come(expression):
                check(expression, zone, *stretch(shift))


def test_cron_with_seconds_agrees_with_the_walk_around_the_shifts():
    for zone, shift in Random(1).sample(shifts(), 60):
        rng = Random(f"seconds {zone} {shift}")
        for _ in range(4):
            near = (shift + rng.uniform(-1.5, 1) * HOUR).astimezone(ZoneInfo(zone))
            five = expression_near(rng, near)
            expression = five if five.startswith("@") else f"{field(rng, 0, 59, [], near.second)} {five}"
            if can_come(expression):
                check(expression, zone, *stretch(shift, 100 * MINUTE, 100 * MINUTE), SECOND)


def test_cron_agrees_with_the_walk_where_months_and_years_end():
    zones = ["UTC", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe", "Pacific/Apia"]
    for number in range(40):
        rng = Random(f"months {number}")
        zone, month = rng.choice(zones), rng.choice([1, 2, 3, 3, 3, 5, 11])
        end_of_month = datetime(rng.choice([2023, 2024, 2028, 2100]), month, 1)
        for _ in range(8):
            expression = expression_near(rng, end_of_month + rng.uniform(-1, 1) * DAY)
            if can_come(expression):
                check(expression, zone, *stretch(end_of_month, before=2 * DAY))


def test_the_days_of_an_expression_are_those_of_a_walk_through_the_calendar():
    for number in range(1000):
        rng = Random(f"days {number}")
        first = date(2000, 1, 1) + rng.randrange(36525) * DAY
        day, month, weekday = (field(rng, *limits, rng.randint(*limits[:2])) for limits in FIELDS[2:])
        expression = f"30 12 {rng.choice(['*', day])} {month} {rng.choice(['*', weekday])}"
        if can_come(expression):
            walked = Expression(expression)
            expected = list(islice(filter(walked.names_day, every(DAY, first, first + 50 * 366 * DAY)), 3))
            found = islice(Cron(expression).times_after(utc(f"{first}")), len(expected))
            assert [time.date() for time in found] == expected, (expression, first)
