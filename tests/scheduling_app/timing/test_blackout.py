"""When a calendar leaves time free: by intervals, the same as a walk from window to window, and with a known bound."""

import random
import time
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from scheduling_app.timing import blackout
from scheduling_app.timing.blackout import LONGEST, MOST_RECURRING, Blackout, Dated, Recurring, window
from scheduling_app.timing.clocks import TimingError
from scheduling_app.timing.kinds import Cron

AT = datetime(2026, 3, 2, 12, tzinfo=UTC)
CRONS = (
    *("0 2 * * *", "*/30 * * * *", "30 2 * * sun", "0 0 * * *", "15 1-3 * * *", "0 */2 29-31 3 *", "* * * * sat"),
    *("0 0 1 * *", "0 22 * * mon-fri", "10 30 2 * * *", "*/20 59 23 L * *"),
)


def calendar(*windows: tuple[str, int], zone: str = "UTC", dated=()) -> Blackout:
    return Blackout("c", [*(window(zone, cron, minutes, None, None) for cron, minutes in windows), *dated])


def walked(found: Blackout, at: datetime) -> datetime | None:
    """The first free moment within ten days, by asking each window in turn for all of its starts."""
    give_up_at = at + timedelta(days=10)
    while at < give_up_at:
        ends = [at]
        for each in found.windows:
            if isinstance(each, Dated):
                ends += [each.end_at] if each.start_at <= at < each.end_at else []
                continue
            for start in each.starts.times_after(at - each.length):
                if start > at:
                    break
                ends.append(start + each.length)
        if max(ends) == at:
            return at
        at = max(ends).astimezone(UTC)
    return None


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/Sao_Paulo", "America/Havana", "Pacific/Apia", "UTC"])
@pytest.mark.parametrize("seed", range(2))
def test_it_is_what_a_walk_from_window_to_window_finds(zone, seed):
    chance = random.Random(f"{zone} {seed}")
    # Sao Paulo and Havana turn their clocks at midnight, and Apia left a day out.
    turns = (
        *(datetime(2026, 3, 29, tzinfo=UTC), datetime(2026, 10, 25, tzinfo=UTC), datetime(2018, 11, 4, 3, tzinfo=UTC)),
        *(
            datetime(2018, 2, 18, 2, tzinfo=UTC),
            datetime(2026, 3, 8, 5, tzinfo=UTC),
            datetime(2026, 11, 1, 5, tzinfo=UTC),
        ),
        datetime(2011, 12, 30, 10, tzinfo=UTC),
    )
    for _ in range(12):
        start = chance.choice(turns) + timedelta(minutes=chance.randint(-4000, 2000))
        dated = [Dated(start + timedelta(hours=3), start + timedelta(hours=chance.randint(4, 60)))]
        windows = [(chance.choice(CRONS), chance.choice([1, 29, 60, 90, 1439, 4000])) for _ in range(3)]
        found = calendar(*windows, zone=zone, dated=chance.choice([dated, []]))
        moments = [start + timedelta(minutes=chance.randint(0, 3000)) for _ in range(20)]
        for at in moments:
            free_from, expected = found.free_from(at), walked(found, at)
            is_late = free_from is None or free_from - at >= timedelta(days=10)
            assert is_late if expected is None else free_from == expected, (windows, at)


@pytest.mark.parametrize(
    "windows",
    [
        [("0 0 * * *", 1440)],
        [("* * * * *", 1)],
        [("* * * * * *", 1)],
        [("*/2 * * * *", 1), ("1-59/2 * * * *", 1)],
        [("0 0 1 1 *", LONGEST)],
        [("0 0 * * mon", 1440), ("0 0 * * 2-7", 1440)],
        [(f"{minute} * * * *", 1) for minute in range(60)],
    ],
)
@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin"])
def test_one_that_is_always_closed_is_known_at_once_whatever_its_windows_are(windows, zone):
    found, started_at = calendar(*windows, ("0 12 * * *", 26 * 60), zone=zone), time.process_time()
    times = [AT + number * timedelta(minutes=1) for number in range(1200)]
    assert {found.free_from(at) for at in [*times, *reversed(times)]} == {None}
    assert time.process_time() - started_at < 0.5


def test_a_free_moment_behind_many_windows_in_a_row_is_found():
    found = calendar(("* 0-22 * * *", 1), ("* 23 1-30 * *", 1))
    assert found.free_from(AT) == datetime(2026, 3, 31, 23, tzinfo=UTC)
    found = calendar(("* * * 1-11 *", 1), ("* * 1-23,25-31 12 *", 1))
    assert found.free_from(AT) == datetime(2026, 12, 24, 0, tzinfo=UTC)


def test_a_leap_day_is_found():
    found = calendar(("0 0 * 1,3-12 *", 1440), ("0 0 1-28 2 *", 1440))
    assert found.free_from(AT) == datetime(2028, 2, 29, tzinfo=UTC)


def test_a_dated_window_of_years_ends_when_it_ends():
    dated = Dated(AT - timedelta(days=1), AT + timedelta(days=9000))
    found = calendar(("0 12 * * *", 60), dated=[dated])
    assert found.free_from(AT) == dated.end_at + timedelta(hours=1)
    assert calendar(dated=[dated]).free_from(AT) == dated.end_at


def test_the_windows_of_a_day_count_that_start_while_a_dated_one_is_on():
    dated = Dated(AT + timedelta(minutes=30), AT + timedelta(hours=1, minutes=30))
    found = calendar(("0 12,13 * * *", 45), dated=[dated])
    assert found.free_from(AT) == AT + timedelta(hours=1, minutes=45)


def test_a_thousand_times_in_either_order_cost_little():
    windows = [(f"{minute} * * * {day}", 1) for minute in range(0, 60, 5) for day in ("mon-fri", "sat,sun")]
    found, started_at = calendar(*windows, zone="Europe/Berlin"), time.process_time()
    times = [AT + number * timedelta(minutes=1) for number in range(1000)]
    free = {at for at in times if found.free_from(at) == at}
    assert len(free) == 800
    assert {at for at in reversed(times) if found.free_from(at) == at} == free
    assert time.process_time() - started_at < 0.5


def test_the_stretches_that_were_found_change_no_answer():
    found, chance = calendar(("0 2 * * *", 180), ("0 4 * * *", 90), zone="Europe/Berlin"), random.Random(1)
    for _ in range(300):
        at = AT + timedelta(minutes=chance.randint(0, 50_000))
        fresh = Blackout("c", found.windows)
        assert found.free_from(at) == fresh.free_from(at)


@pytest.mark.parametrize("at", [datetime(9999, 12, 29, tzinfo=UTC), datetime(1, 1, 2, tzinfo=UTC)])
def test_the_ends_of_the_calendar_are_no_error(at):
    assert calendar(("0 0 * * *", 1440)).free_from(at) is None


@pytest.mark.parametrize(
    ("fields", "at_fault"),
    [
        (("0 0 * * *", LONGEST + 1, None, None), "minutes"),
        (("0 0 * * *", 2**31 - 1, None, None), "minutes"),
        (("0 0 * * *", -1, None, None), "minutes"),
        (("0 0 * * *", 1, AT, None), "cron"),
        (("", 1, AT, AT + timedelta(1)), "minutes"),
        (("", None, AT, None), "cron"),
        (("", None, AT, AT), "end_at"),
        (("", None, datetime(2026, 1, 1), AT), "start_at"),
    ],
)
def test_a_window_that_cannot_be_is_refused_with_its_field(fields, at_fault):
    with pytest.raises(TimingError) as refused:
        window("UTC", *fields)
    assert refused.value.field == at_fault


def test_a_calendar_has_so_many_windows_and_no_more():
    many = (("0 0 * * *", 1, None, None),) * (MOST_RECURRING + 1)
    with pytest.raises(TimingError, match="recurring"):
        blackout.blackout("c", "UTC", many)
    dated = tuple(("", None, AT, AT + timedelta(number)) for number in range(1, 1002))
    with pytest.raises(TimingError, match="1,000"):
        blackout.blackout("c", "UTC", dated)


def test_the_union_of_spans_has_none_that_touch():
    spans = [(5, 6), (0, 2), (1, 3), (3, 4), (8, 9)]
    assert blackout.merged(spans) == [(0, 4), (5, 6), (8, 9)]
    assert all(end < start for (_, end), (start, _) in pairwise(blackout.merged(spans)))


def test_a_recurring_window_keeps_its_cron():
    found = window("Europe/Berlin", "0 2 * * *", 60, None, None)
    assert found == Recurring(Cron("0 2 * * *", "Europe/Berlin"), timedelta(hours=1))
