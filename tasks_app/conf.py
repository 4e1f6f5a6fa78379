"""The console's own settings of tasks. All are Django settings of these names; each has a default, none is needed.

They are read when they are used, so `override_settings` works. docs/settings.md lists those of all packages, and
`manage.py check` names those that are misspelt or that cannot be (checks.py).
"""

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

from django.conf import settings

T = TypeVar("T")
Fits = Callable[[Any], bool]
#: All settings of the console, by their names, as far as their packages are imported.
KNOWN: dict[str, "Setting[Any]"] = {}


class Setting(Generic[T]):
    """A Django setting of the attribute's name. `must_be` says what its value is, and `fits` whether one is that."""

    name: str

    def __init__(self, default: T, must_be: str, fits: Fits):
        self.default, self.must_be, self.fits = default, must_be, fits

    def __set_name__(self, owner: type, name: str) -> None:
        self.name, KNOWN[name] = name, self

    @overload
    def __get__(self, conf: None, owner: type) -> "Setting[T]": ...
    @overload
    def __get__(self, conf: object, owner: type) -> T: ...
    def __get__(self, conf: object | None, owner: type) -> "Setting[T] | T":
        return self if conf is None else getattr(settings, self.name, self.default)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e9


def is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1e9


def is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def is_text_or_none(value: Any) -> bool:
    return value is None or is_text(value)


def are_texts(value: Any) -> bool:
    return isinstance(value, list | tuple | set | frozenset) and all(map(is_text, value))


def seconds(default: float) -> Setting[float]:
    return Setting(default, "a number of seconds above 0", is_number)


def count(default: int, of: str) -> Setting[int]:
    return Setting(default, f"a whole number of {of} from 1 up", is_count)


def switch(default: bool) -> Setting[bool]:
    return Setting(default, "True or False", lambda value: isinstance(value, bool))


#: Where a project says what it is made of, and where the console's own site does; for what is said to people.
APPS_SETTING = "INSTALLED_APPS (on the console's own site: EXTRA_APPS)"
QUEUES_SETTING = "Celery's task_queues (on the console's own site: EXTRA_QUEUES)"
DATABASE_SETTING = "DATABASES (on the console's own site: DATABASE_URL)"


class TaskSettings:
    #: For which a run is taken to be alive; renewed each third, after which it is lost.
    TASK_LEASE = seconds(30.0)
    #: After which a task with acks_late=True has failed.
    TASK_MAX_LOST = count(3, "lost runs")
    #: After which a message that nobody claimed is looked for in the broker, and published again if it is lost.
    TASK_CENSUS_GRACE = seconds(60.0)
    #: For which a task that no worker knows waits for one that does.
    TASK_UNREGISTERED_GRACE = seconds(600.0)
    #: From SIGTERM until a worker lets go of what it still runs.
    WORKER_SHUTDOWN_GRACE = seconds(25.0)
    #: As JSON: more arguments are refused.
    TASK_ARGS_MAX_BYTES = count(1_048_576, "bytes")
    #: As JSON: more of a result is cut.
    TASK_RESULT_MAX_BYTES = count(1_048_576, "bytes")
    #: Whether what another producer sent, under an id that has no record, gets one and runs.
    TASK_ADOPT_UNKNOWN = switch(True)
    #: Of what a schedule fires that names no queue, and of what Celery Beat fires where `route_scheduled` is among the
    #: task routes; by default the project's own (CELERY_TASK_DEFAULT_QUEUE).
    CRON_QUEUE: Setting[str | None] = Setting(None, "the name of a queue", is_text_or_none)
    #: Management commands that the task run_command may run.
    RUN_COMMAND_ALLOWED: Setting[list[str]] = Setting([], "a list of the names of management commands", are_texts)
    #: Apps whose models the admin is not to show. They stand before tasks_app in INSTALLED_APPS.
    ADMIN_HIDES: Setting[list[str]] = Setting([], "a list of the labels of apps", are_texts)
    #: Lets the task http_request reach private, loopback and link-local addresses.
    HTTP_REQUEST_ALLOW_PRIVATE = switch(False)


conf = TaskSettings()
