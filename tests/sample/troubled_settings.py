"""The project's settings, with one thing that each kind of check finds."""

from celery import Celery, shared_task

from taskconsole.settings import *  # noqa: F403

plain = Celery("plain", set_as_current=False, fixups=[])


@shared_task(name="troubled.limited", concurrency_limit=-1)
def limited():
    pass
