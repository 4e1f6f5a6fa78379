"""Intervals against counting, and where they keep wall time against the slow walk of tests/walk.py.

A failure prints a call that repeats it.
"""

from dataclasses import replace
from datetime import UTC
from random import Random
from zoneinfo import ZoneInfo

from scheduling_app.timing.kinds import Cron, Interval, jittered
from tests.scheduling_app.timing.test_cron_property import compare, stretch
from tests.walk import DAY, HOUR, MINUTE, SECOND, every, shifts, utc, walk

LENGTHS = {"seconds": SECOND, "minutes": MINUTE, "hours": HOUR, "days": DAY, "weeks": 7 * DAY}


def check_real(count, unit, anchor, zone, start, end, shift):
    """Seconds, minutes and hours: counted from the anchor, clocks aside."""
    timing = Interval(count, unit, utc(anchor), zone)
    expected = [time for time in every(count * LENGTHS[unit], utc(anchor), utc(end)) if time > utc(start)]
    case = f"check_real({count}, {unit!r}, {anchor!r}, {zone!r}, {start!r}, {end!r}, {shift!r})"
    compare(timing, expected, utc(start), utc(end), utc(shift), case)


def check_wall(count, unit, anchor, zone, start, end, shift):
    """Days and weeks: a job with a fixed time, from the anchor on."""
    timing = Interval(count, unit, utc(anchor), zone)
    length, wall_of_anchor = count * LENGTHS[unit], utc(anchor).astimezone(ZoneInfo(zone)).replace(tzinfo=None)
    named = set(every(length, wall_of_anchor, utc(end).replace(tzinfo=None) + DAY))
    walked = {at for at, wall in walk(zone, utc(start), utc(end)).own_clock if wall in named and at > utc(anchor)}
    expected = [time for time in sorted({utc(anchor), *walked}) if time > utc(start)]
    case = f"check_wall({count}, {unit!r}, {anchor!r}, {zone!r}, {start!r}, {end!r}, {shift!r})"
    compare(timing, expected, utc(start), utc(end), utc(shift), case)


def test_days_and_weeks_agree_with_the_walk_around_the_shifts():
    for zone, shift in Random(5).sample(shifts(), 200):
        rng = Random(f"days {zone} {shift}")
        for _ in range(5):
            count, unit = rng.choice([(1, "days"), (1, "days"), (2, "days"), (7, "days"), (1, "weeks"), (3, "weeks")])
            past = rng.choice([0, 1, 1, 2, 50]) * count * LENGTHS[unit]
            anchor = shift - past + rng.choice([rng.uniform(-2, 2) * HOUR, rng.uniform(-30, 40) * HOUR])
            check_wall(count, unit, f"{anchor:%Y-%m-%dT%H:%M}", zone, *stretch(shift))


def test_seconds_minutes_and_hours_are_counted_whatever_the_clocks_do():
    for zone, shift in Random(2).sample(shifts(), 100):
        rng = Random(f"seconds {zone} {shift}")
        units = {"seconds": [7, 90, 3601], "minutes": [1, 45, 1441], "hours": [1, 6, 25]}
        for unit, counts in units.items():
            anchor = (shift - rng.uniform(-1, 4) * DAY).replace(microsecond=0, tzinfo=None).isoformat()
            check_real(rng.choice(counts), unit, anchor, zone, *stretch(shift))


def test_a_restart_or_an_anchor_written_otherwise_moves_nothing():
    for zone, shift in Random(3).sample(shifts(), 100):
        rng, info = Random(f"restart {zone} {shift}"), ZoneInfo(zone)
        wall = (shift - HOUR).astimezone(info).replace(fold=rng.randint(0, 1)) + rng.uniform(0, 2) * HOUR
        unit, now = rng.choice(list(LENGTHS)), shift + rng.uniform(-1, 3) * DAY
        timing = Interval(rng.randint(1, 3), unit, wall, zone)
        stored = replace(timing, anchor=wall.astimezone(UTC))
        due = timing.next_after(now)
        following = timing.next_after(due)
        for _ in range(5):
            moment = due + rng.random() * (following - due)
            assert timing.next_after(moment) == stored.next_after(moment) == following, (timing, moment)


def test_jitter_keeps_runs_apart_and_in_order():
    for zone, shift in Random(4).sample(shifts(), 100):
        rng = Random(f"jitter {zone} {shift}")
        timing = rng.choice(
            [Cron("*/20 * * * *", zone), Cron("0,59 1-3 * * *", zone), Interval(7, "seconds", shift, zone)]
        )
        due, jitter, key = timing.next_after(shift - 2 * HOUR), rng.choice([1, 5, 3600, 86400]), rng.randrange(10**6)
        for _ in range(20):
            following = timing.next_after(due)
            start = jittered(key, due, jitter, following)
            assert due <= start < min(following, due + jitter * SECOND)
            assert start == jittered(str(key), due.astimezone(ZoneInfo(zone)), jitter, following)
            due = following
