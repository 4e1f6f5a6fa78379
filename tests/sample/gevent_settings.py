"""The project's settings, with a pool that the console does not work with."""

from taskconsole.settings import *  # noqa: F403

CELERY_WORKER_POOL = "gevent"
