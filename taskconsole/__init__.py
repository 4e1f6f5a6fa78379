"""The wiring: settings, the Celery app, URLs, and `manage.py up`."""

from taskconsole.celery import app as celery_app

__all__ = ["celery_app"]
