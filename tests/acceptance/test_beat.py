"""Celery Beat beside the console: `manage.py celery beat` with django-celery-beat's DatabaseScheduler."""

from django_celery_beat.models import IntervalSchedule, PeriodicTask

from tasks_app.models import TaskRecord
from tests.acceptance.processes import Manage, eventually


def test_beats_entries_static_or_not_are_recorded_and_arrive_on_the_cron_queue(committed, worker):
    every = IntervalSchedule.objects.create(every=1, period="seconds")
    PeriodicTask.objects.create(name="stored", task="sample.echo", args='["stored"]', interval=every)
    beat = Manage(
        "celery", "beat", "--pidfile=", "--max-interval", "1", DJANGO_SETTINGS_MODULE="tests.sample.beat_settings"
    )
    with beat:
        for name in ("stored", "static"):
            sent = TaskRecord.objects.filter(name="sample.echo", options__contains=name, state="SUCCESS")
            record = eventually(sent.first, 30, name)
            assert (record.args, record.queue) == ([name], "cron_queue")
        beat.kill()  # now and then Celery Beat hangs on SIGTERM
    PeriodicTask.objects.all().delete()
