"""The project's settings, with a static entry for Celery Beat."""

from taskconsole.settings import *  # noqa: F403

CELERY_BEAT_SCHEDULE = {"static": {"task": "sample.echo", "schedule": 1.0, "args": ["static"]}}
