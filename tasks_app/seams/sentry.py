"""sentry-sdk: what it does to Celery's own `send_task`, done to one that does not call that."""

import sys
from collections.abc import Callable
from typing import Any

from tasks_app.seams import Seam

NAMES = (
    Seam(
        "sentry_sdk.integrations.celery:",
        "_wrap_task_run",
        "(f)",
        "Sentry's trace of a task that is sent by its name",
        "Its integration replaces Celery's methods, which ours override. Its public headers API would replace this.",
    ),
)


def traced(send: Callable[..., Any]) -> Callable[..., Any]:
    """What sends a task, `send(app, name, …)`, as Sentry's integration would have it; itself where there is none."""
    sentry = sys.modules.get("sentry_sdk.integrations.celery")
    return sentry._wrap_task_run(send) if sentry else send
