"""What the console is compared with: a project with plain Celery, on the same database and broker."""

from benchmarks.peer.celery import app as celery_app

__all__ = ["celery_app"]
