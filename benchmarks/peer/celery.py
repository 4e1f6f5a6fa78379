import os

from celery import Celery

app = Celery("peer")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.conf.imports = ["benchmarks.project.tasks"]
# Celery's Django fixup reads this by its full name; without it, it closes the database connection around every task.
if os.environ.get("PEER_KEEPS_CONNECTION"):
    app.conf["CELERY_DB_REUSE_MAX"] = 1_000_000_000
