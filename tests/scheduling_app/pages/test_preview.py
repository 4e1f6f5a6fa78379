"""What a schedule would do: the times that are shown are those that fire, and each policy says what it does."""

import time
from datetime import UTC, datetime, timedelta

import pytest
from django.utils import timezone

from scheduling_app.ledger import firing
from scheduling_app.models import Calendar, Schedule, ScheduleRun, Window
from scheduling_app.pages.preview import PREVIEWED, preview_of
from scheduling_app.sources.fields import sentences
from tasks_app.models import TaskRecord
from tests.scheduling_app.admin.test_schedules import make

pytestmark = pytest.mark.django_db

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def nights():
    """From 2 to 4 in the morning in Berlin, and the whole of 3 March."""
    calendar = Calendar.objects.create(name="Nights", timezone="Europe/Berlin")
    calendar.windows.create(cron="0 2 * * *", minutes=120)
    calendar.windows.create(start_at=datetime(2026, 3, 3, tzinfo=UTC), end_at=datetime(2026, 3, 4, tzinfo=UTC))
    return calendar


def hourly(**fields) -> Schedule:
    return make(cron="30 * * * *", timezone="Europe/Berlin", **fields)


def test_times_in_a_window_are_marked_as_skipped(nights):
    times = preview_of(hourly(blackout=nights), datetime(2026, 3, 2, 0, tzinfo=UTC)).times
    assert [(f"{time.due.local:%H:%M}", time.is_skipped) for time in times[:4]] == [
        ("01:30", False), ("02:30", True), ("03:30", True), ("04:30", False),
    ]  # fmt: skip
    assert times[1].note == "skipped: in a window of Nights"
    assert times[1].starts_at is None


def test_times_in_a_window_are_shown_where_they_move_to(nights):
    schedule = hourly(blackout=nights, blackout_action="defer")
    times = preview_of(schedule, datetime(2026, 3, 2, 0, tzinfo=UTC)).times
    assert times[1].note == "runs Mon 04:00, after a window of Nights"
    assert times[1].starts_at == datetime(2026, 3, 2, 3, tzinfo=UTC)


@pytest.mark.parametrize("action", ["skip", "defer"])
def test_what_is_shown_of_a_window_is_what_firing_does(action):
    now = timezone.now()
    calendar = Calendar.objects.create(name="Now")
    calendar.windows.create(start_at=now - timedelta(hours=1), end_at=now + timedelta(hours=1))
    minutely = {"kind": "interval", "cron": "", "every": 1, "unit": "minutes"}
    schedule = make(blackout=calendar, blackout_action=action, jitter=30, **minutely)
    shown = preview_of(schedule, now - timedelta(minutes=1)).times[0]
    Schedule.objects.update(next_fire_at=shown.due.at)
    firing.fire_due()
    run = ScheduleRun.objects.get()
    assert (run.outcome == "skipped") is shown.is_skipped
    starts = [record.eta for record in TaskRecord.objects.all()]
    assert starts == ([] if shown.is_skipped else [shown.starts_at])


def test_the_times_end_with_the_runs_that_are_left(nights):
    schedule = hourly(max_runs=5)
    Schedule.objects.update(fired_count=2)
    schedule.refresh_from_db()
    preview = preview_of(schedule, NOW)
    assert (len(preview.times), preview.is_over_after) == (3, True)
    schedule.max_runs = 2
    assert preview_of(schedule, NOW).times == []
    schedule.max_runs = 2 + PREVIEWED
    assert (len(preview_of(schedule, NOW).times), preview_of(schedule, NOW).is_over_after) == (PREVIEWED, True)
    schedule.max_runs = None
    assert (len(preview_of(schedule, NOW).times), preview_of(schedule, NOW).is_over_after) == (PREVIEWED, False)


def test_a_time_that_is_skipped_uses_no_run_up(nights):
    schedule = hourly(max_runs=2, blackout=nights)
    times = preview_of(schedule, datetime(2026, 3, 2, 0, tzinfo=UTC)).times
    assert [time.is_skipped for time in times] == [False, True, True, False]


def test_a_calendar_that_is_at_fault_is_told():
    calendar = Calendar.objects.create(name="Broken")
    calendar.windows.create(cron="61 * * * *", minutes=1)
    preview = preview_of(hourly(blackout=calendar), NOW)
    assert preview.times == []
    assert preview.complaints == [("Not during", "cron: minute: 61 is not between 0 and 59")]


def test_a_timing_that_is_at_fault_is_told_beside_the_policies():
    preview = preview_of(Schedule(cron="61 * * * *", overlap="skip"), NOW)
    assert preview.complaints == [("Cron", "minute: 61 is not between 0 and 59")]
    assert "Overlap" in [each.name for each in preview.sentences]


@pytest.mark.parametrize(
    ("fields", "name", "says"),
    [
        ({}, "Missed times", "only the latest of the missed times runs, at most 1 hour late."),
        ({"misfire_grace_time": None}, "Missed times", "only the latest of the missed times runs, however late it is."),
        (
            {"catch_up": "all", "misfire_grace_time": 90},
            "Missed times",
            "at most 90 seconds late, oldest first; the latest",
        ),
        ({"catch_up": "none"}, "Missed times", "not made up for"),
        ({}, "Overlap", "at each of its times, whatever earlier runs do"),
        ({"overlap": "skip"}, "Overlap", "While an earlier run is unfinished, the next time is skipped."),
        (
            {"overlap": "queue_one", "max_instances": 2},
            "Overlap",
            "While 2 earlier runs are unfinished, one time waits",
        ),
        ({"overlap": "queue_all"}, "Overlap", "each for its turn, 100 at most"),
        ({"overlap": "cancel"}, "Overlap", "cancels what is unfinished"),
        ({"misfire_grace_time": 7200}, "Expiry", "within 2 hours, or by the next due time if that is later"),
        ({"misfire_grace_time": None}, "Expiry", "as long as it takes"),
        ({"expires_after": 86400}, "Expiry", "within 1 day is revoked"),
        ({"soft_time_limit": 60}, "Time limits", "A run gets SoftTimeLimitExceeded after 1 minute."),
        ({"soft_time_limit": 1, "time_limit": 2}, "Time limits", "after 1 second and is killed after 2 seconds."),
        ({"max_retries": 1, "retry_backoff": 5}, "Retries", "up to once, after 5 seconds."),
        ({"max_retries": 3, "retry_backoff": 5}, "Retries", "up to 3 times, after 5 seconds, then after twice as long"),
        ({"max_retries": 2}, "Retries", "up to twice, at once."),
        ({"pause_after_failures": 1}, "Failures", "When its last run has failed, it pauses itself"),
        ({"pause_after_failures": 3}, "Failures", "When its last 3 runs have all failed"),
        ({"max_runs": 1}, "End", "finished when it has fired once"),
        ({"due_kwarg": "at"}, "Due time", "is given the due time as at"),
    ],
)
def test_each_policy_says_in_a_sentence_what_it_does(fields, name, says):
    assert says in {each.name: each.text for each in sentences(Schedule(**fields))}[name]


def test_a_policy_that_a_schedule_has_not_says_nothing():
    assert [each.name for each in sentences(Schedule())] == ["Missed times", "Overlap", "Expiry"]


def test_the_sentence_of_a_calendar_names_it_and_what_becomes_of_times(nights):
    assert "the calendar Nights is skipped" in sentences(Schedule(blackout=nights))[-1].text
    moved = sentences(Schedule(blackout=nights, blackout_action="defer"))[-1]
    assert "the calendar Nights runs when the window ends" in moved.text


def test_a_preview_beside_a_calendar_that_leaves_no_time_costs_little():
    calendar = Calendar.objects.create(name="closed", timezone="Europe/Berlin")
    Window.objects.bulk_create(Window(calendar=calendar, cron=f"{n % 60} * * * *", minutes=60) for n in range(100))
    schedule = Schedule(name="x", task="sample.noop", cron="* * * * *", blackout=calendar, blackout_action="defer")
    started_at = time.process_time()
    found = preview_of(schedule, timezone.now())
    assert all(each.is_skipped for each in found.times)
    assert len(found.times) == 10
    assert time.process_time() - started_at < 3
