"""What a message may carry besides its task's arguments."""

from collections.abc import Mapping
from typing import Any

from celery import current_app

from tasks_app.exceptions import InvalidSubmission


def check_headers(headers: Any) -> None:
    """Raises InvalidSubmission for headers that are no mapping, or that Celery's protocol has names for."""
    if not isinstance(headers, Mapping):
        raise InvalidSubmission(f"headers must be an object, not {type(headers).__name__}.")
    celerys = {*current_app.amqp.create_task_message("id", "name", (), {}).headers, "compression", "hostname"}
    if taken := sorted(celerys & headers.keys()):
        raise InvalidSubmission(f"headers: {', '.join(taken)}: set by Celery or the console itself. Use another name.")
