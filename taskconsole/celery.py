"""This site's Celery app: records every task in Postgres before it is published."""

import os

from tasks_app.outbox import RecordingCelery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "taskconsole.settings")

app = RecordingCelery("taskconsole")
app.config_from_object("django.conf:settings", namespace="CELERY")
