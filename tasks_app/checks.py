"""What `manage.py check` finds in the Celery apps of this process; workers and schedulers say it when they start."""

import logging
from collections.abc import Iterator

from celery import Celery, _state
from django.core.checks import CheckMessage, Error, Warning, register, run_checks

from tasks_app.outbox import RecordingCelery

#: The tags of this console's checks, of those that need no database.
TASKS, SCHEDULING = "tasks", "scheduling"


def say_found(logger: logging.Logger) -> None:
    """Log what this console's own checks find; what starts goes on. A worker with one bad task is better than none."""
    for found in run_checks(tags=[TASKS, SCHEDULING]):
        if not found.is_silenced():
            logger.log(found.level, "%s", found)


@register(TASKS)
def tasks_are_recorded(app_configs, **_) -> list[CheckMessage]:
    """What another app than a RecordingCelery sends runs unrecorded."""
    recorded = {name for app in _apps(RecordingCelery) for name in app.tasks}
    hint = "Make the app by tasks_app.outbox.RecordingCelery, or silence this check where that is meant."
    found: list[CheckMessage] = []
    for app in _apps(Celery):
        if not isinstance(app, RecordingCelery):
            own = sorted(name for name in app.tasks if name not in recorded and not name.startswith("celery."))
            what = f"Task {', '.join(own)}" if own else "What is sent"
            found.append(
                Warning(f"{what} by the Celery app {app.main!r} runs unrecorded.", hint=hint, id="tasks_app.W002")
            )
    return found


@register(TASKS)
def limits_and_uniqueness_can_be_kept(app_configs, **_) -> list[CheckMessage]:
    from tasks_app import limits, uniqueness

    tasks = [task for app in _apps(RecordingCelery) for task in app.tasks.values()]
    problems = {
        (task.name, problem) for task in tasks for problem in (*limits.problems(task), *uniqueness.problems(task))
    }
    return [Error(f"Task {name}: {problem}.", id="tasks_app.E002") for name, problem in sorted(problems)]


@register(TASKS)
def broker_can_be_asked(app_configs, **_) -> list[CheckMessage]:
    from tasks_app import broker

    hint = "Use a broker that speaks the Redis protocol; or silence this check, if you need none of that."
    found = {" ".join(broker.not_promised(app)) for app in _apps(RecordingCelery)}
    return [
        Warning(f"The console promises less with this broker. {words}", hint=hint, id="tasks_app.W003")
        for words in sorted(found)
        if words
    ]


def _apps(kind: type[Celery]) -> Iterator[Celery]:
    """The Celery apps of this process, with their tasks bound, in a fixed order."""
    for app in sorted(_state._get_active_apps(), key=lambda app: (str(app.main), id(app))):
        if isinstance(app, kind):
            app.finalize()
            yield app
