"""The project's Celery app: records every task in Postgres before it is published."""

import os

from tasks_app.outbox import RecordingCelery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "taskconsole.settings")

app = RecordingCelery("taskconsole")
app.config_from_object("django.conf:settings", namespace="CELERY")
# The Django fixup reads this one by its full name. Without it, it closes the database connection around every task.
app.conf["CELERY_DB_REUSE_MAX"] = 1_000_000_000
