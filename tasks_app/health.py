"""Whether the parts that the console stands on answer."""

import threading
from dataclasses import dataclass

from tasks_app.recording import current_app


@dataclass(frozen=True)
class Health:
    """`ok`, and in words what is the matter where it is not."""

    ok: bool
    detail: str = ""


def check_celery_health(timeout: float = 2.0) -> Health:
    """Ask the broker for a connection; the answer comes within `timeout` seconds, whatever the broker does."""
    answers: list[Health] = []

    def ask() -> None:
        try:
            with current_app.connection_for_write() as broker:
                broker.ensure_connection(max_retries=1, timeout=timeout)
            answers.append(Health(True))
        except Exception as error:
            answers.append(Health(False, f"The broker does not answer: {error}"))

    thread = threading.Thread(target=ask, name="celery-health", daemon=True)
    thread.start()
    thread.join(timeout)
    return answers[0] if answers else Health(False, f"The broker has not answered within {timeout:g} s.")
