import os

from celery import Celery, Task

from tasks_app.outbox import RecordingCelery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")


class ShopTask(Task):
    """The shop's own base of all tasks: each message says which branch it is from."""

    abstract = True

    def apply_async(self, args=None, kwargs=None, **options):
        options["headers"] = {"branch": "harbour", **(options.get("headers") or {})}
        return super().apply_async(args, kwargs, **options)


namespace = os.environ.get("SHOP_NAMESPACE", "CELERY")
app = RecordingCelery("shop", task_cls=ShopTask)
app.config_from_object("django.conf:settings", namespace=namespace)
app.autodiscover_tasks()

if os.environ.get("SHOP_SECOND_APP"):
    # Another team's workers, which know nothing of the console. The last app made is Celery's current one.
    partners = Celery("partners", broker=os.environ["REDIS_URL"])
    partners.conf.task_default_queue = "partners"
