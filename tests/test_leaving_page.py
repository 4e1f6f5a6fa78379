"""The script of docs/leaving.md makes rows of Celery Beat that fire when the schedules did, or says why not."""

import re
from datetime import UTC, datetime, timedelta
from itertools import islice

import pytest
from django.conf import settings
from django.utils import timezone
from django_celery_beat.models import IntervalSchedule, PeriodicTask

from scheduling_app.models import Schedule
from scheduling_app.sources.beat_times import beat_times, notes_on

PAGE = (settings.BASE_DIR / "docs" / "leaving.md").read_text()
(SCRIPT,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
OTHER_TIMES = "Beat would fire at other times."
SAID = {
    "cron": "fits",
    "since long": "fits",
    "each minute": "fits",
    "strict": "fits It loses overlap, max_retries.",
    "interval": "fits",
    "weeks": "fits",
    "once": "fits",
    "paused": "fits",
    "seconds": "ValueError: zip() argument 2 is longer than argument 1",
    "either day": OTHER_TIMES,
    "sunday": "ValueError: Invalid end range: 7 > 6.",
    "last day": "ValueError: Invalid weekday literal 'L'.",
}


@pytest.fixture
def schedules(db):
    common = {"task": "sample.echo", "args": [1], "kwargs": {"a": "b"}, "timezone": "UTC"}
    anchor = datetime(2026, 1, 5, 7, 30, 10, tzinfo=UTC)
    for fields in (
        {"name": "cron", "cron": "30 2 * * mon-fri", "queue": "reports", "priority": 3, "expires_after": 60},
        {"name": "since long", "cron": "0 8 1 * *", "start_at": anchor},
        {
            "name": "each minute",
            "cron": "* * * * *",
            "end_at": timezone.now().replace(microsecond=0) + timedelta(hours=1),
        },
        {"name": "strict", "cron": "0 */6 * * *", "overlap": "skip", "max_retries": 3, "timezone": "Asia/Tokyo"},
        {"name": "interval", "kind": "interval", "every": 90, "unit": "minutes", "start_at": anchor},
        {"name": "weeks", "kind": "interval", "every": 2, "unit": "weeks", "start_at": anchor},
        {"name": "paused", "kind": "interval", "every": 1, "unit": "days", "enabled": False},
        {"name": "once", "kind": "date", "run_at": timezone.now() + timedelta(days=1)},
        {"name": "seconds", "cron": "*/10 * * * * *"},
        {"name": "either day", "cron": "0 0 13 * fri"},
        {"name": "sunday", "cron": "0 0 * * 7"},
        {"name": "last day", "cron": "0 0 L * *"},
    ):
        Schedule.objects.create(**common | fields)


def test_it_says_of_each_whether_beat_can_do_it_and_changes_nothing(schedules, capsys):
    exec(SCRIPT, {})
    assert dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines()) == SAID
    assert not PeriodicTask.objects.exists()


def test_what_it_makes_fires_when_the_schedule_did(schedules):
    PeriodicTask.objects.create(
        name="once", task="old", interval=IntervalSchedule.objects.create(every=1, period="days")
    )
    exec(SCRIPT.replace("WRITE = False", "WRITE = True"), {})
    made = {task.name: task for task in PeriodicTask.objects.all()}
    assert made.keys() == {name for name, said in SAID.items() if said.startswith("fits")}
    now = timezone.now()
    assert not made.pop("paused").enabled  # Beat counts an interval from when it is switched on
    for schedule in Schedule.objects.filter(name__in=made):
        expected = [at.replace(microsecond=0) for at in islice(schedule.timing().times_after(now), 20)]
        assert list(islice(beat_times(made[schedule.name], now), 20)) == expected, schedule.name
        assert notes_on(made[schedule.name], now) == []  # nothing that Beat would do besides
    cron = made["cron"]
    assert (cron.queue, cron.priority, cron.expire_seconds) == ("reports", 3, 60)
    assert (cron.task, cron.args, cron.kwargs) == ("sample.echo", "[1]", '{"a": "b"}')
