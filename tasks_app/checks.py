"""What `manage.py check` finds in the Celery apps of this process; workers and schedulers say it when they start."""

import difflib
import logging
import sys
from typing import Any

from celery import Celery
from django.apps import apps
from django.conf import global_settings, settings
from django.core.checks import CheckMessage, Error, Warning, register, run_checks
from django.db import DEFAULT_DB_ALIAS, connections, router

from tasks_app.conf import KNOWN
from tasks_app.outbox import RecordingCelery
from tasks_app.seams.celery import active_apps, unbound_tasks

#: The tags of this console's checks, of those that need no database.
TASKS, SCHEDULING = "tasks", "scheduling"
#: The tasks that Celery brings along.
BUILT_IN = {
    "celery.accumulate", "celery.backend_cleanup", "celery.chain", "celery.chord", "celery.chord_unlock",
    "celery.chunks", "celery.group", "celery.map", "celery.ping", "celery.starmap",
}  # fmt: skip


def say_found(logger: logging.Logger) -> None:
    """Log what this console's own checks find; what starts goes on. A worker with one bad task is better than none."""
    try:
        messages = run_checks(tags=[TASKS, SCHEDULING])
    except Exception:
        logger.exception("The checks of tasks and schedules could not be made")
        return
    for found in messages:
        if not found.is_silenced():
            logger.log(found.level, "%s", found)


@register(TASKS)
def tasks_are_recorded(app_configs: Any, **_: Any) -> list[CheckMessage]:
    """What another app than a RecordingCelery sends runs unrecorded."""
    hint = "Make the app by tasks_app.outbox.RecordingCelery, or silence this check where that is meant."
    found: list[CheckMessage] = []
    recorded = {name for app in _recording_apps() for name in app.tasks}
    for app in _apps():
        if not isinstance(app, RecordingCelery):
            own = sorted(_own_tasks(app) | app.tasks.keys() - recorded - BUILT_IN)
            what = f" ({', '.join(own)})" if own else ""
            words = f"The Celery app {app.main!r} is no RecordingCelery: what it sends{what} runs unrecorded."
            found.append(Warning(words, hint=hint, id="tasks_app.W002"))
    return found


def _own_tasks(app: Celery) -> set[str]:
    """The names of the tasks that this app was asked to make; not of those that it shares with the other apps.

    (Celery gives all to all. What an app was asked for it knows until it binds them; then, what their modules hold.)
    """
    made = unbound_tasks(app)
    app.finalize()
    made += [getattr(sys.modules.get(task.__module__), type(task).__name__, None) for task in app.tasks.values()]
    return {task.name for task in made if getattr(task, "app", None) is app} - BUILT_IN


@register(TASKS)
def limits_and_uniqueness_can_be_kept(app_configs: Any, **_: Any) -> list[CheckMessage]:
    from tasks_app import limits, uniqueness

    tasks = [task for app in _recording_apps() for task in app.tasks.values()]
    problems = {
        (task.name, problem) for task in tasks for problem in (*limits.problems(task), *uniqueness.problems(task))
    }
    return [Error(f"Task {name}: {problem}.", id="tasks_app.E002") for name, problem in sorted(problems)]


@register(TASKS)
def broker_can_be_asked(app_configs: Any, **_: Any) -> list[CheckMessage]:
    from tasks_app import broker

    hint = "Use a broker that speaks the Redis protocol; or silence this check, if you need none of that."
    found = {" ".join(broker.not_promised(app)) for app in _recording_apps()}
    return [
        Warning(f"The console promises less with this broker. {words}", hint=hint, id="tasks_app.W003")
        for words in sorted(found)
        if words
    ]


@register(TASKS)
def settings_are_known_and_can_be(app_configs: Any, **_: Any) -> list[CheckMessage]:
    found: list[CheckMessage] = []
    for name, each in KNOWN.items():
        value = getattr(settings, name, each.default)
        if not each.fits(value):
            words = f"The setting {name} must be {each.must_be}, not {value!r:.80}."
            found.append(Error(words, hint=f"By default it is {each.default!r}.", id="tasks_app.E003"))
    for name in sorted(set(filter(str.isupper, dir(settings))) - KNOWN.keys() - set(dir(global_settings))):
        if close := difflib.get_close_matches(name, KNOWN, 1, cutoff=0.85):
            words = f"The setting {name} is none of the console's: did you mean {close[0]}?"
            found.append(Warning(words, hint="docs/settings.md lists them all.", id="tasks_app.W004"))
    return found


@register(TASKS)
def records_are_in_postgres(app_configs: Any, **_: Any) -> list[CheckMessage]:
    if connections[DEFAULT_DB_ALIAS].vendor == "postgresql":
        return []
    words = "The console keeps its records in Postgres, and the default database is none."
    return [Error(words, hint='Use the engine "django.db.backends.postgresql" for it.', id="tasks_app.E005")]


@register(TASKS)
def rows_are_written_where_they_are_read(app_configs: Any, **_: Any) -> list[CheckMessage]:
    """All in the default database, whatever routers say of reads: a record and its result change in one transaction."""
    from tasks_app.models import WhereWritten

    ours = [model for model in apps.get_models() if isinstance(model._default_manager, WhereWritten)]
    elsewhere = [
        model._meta.label
        for model in (*ours, *apps.get_app_config("django_celery_results").get_models())
        if router.db_for_write(model) != DEFAULT_DB_ALIAS or not router.allow_migrate_model(DEFAULT_DB_ALIAS, model)
    ]
    if not elsewhere:
        return []
    words = f"A router of DATABASE_ROUTERS keeps {', '.join(elsewhere)} out of the default database."
    return [Error(words, hint="Let it leave them there, at least for writes and migrations.", id="tasks_app.E006")]


@register(TASKS)
def results_close_their_records(app_configs: Any, **_: Any) -> list[CheckMessage]:
    """The result backend is what writes a record's end: with another one, tasks run and are never seen to end."""
    from tasks_app.backend import RecordBackend

    hint = 'Set its result_backend to "tasks_app.backend:RecordBackend", which is the default where nothing is set.'
    return [
        Error(f"The Celery app {app.main!r} keeps its results elsewhere: its tasks would never be seen to end.",
              hint=hint, id="tasks_app.E004")
        for app in _recording_apps()
        if not isinstance(app.backend, RecordBackend)
    ]  # fmt: skip


def _apps() -> list[Celery]:
    """The Celery apps of this process, in a fixed order."""
    return sorted(active_apps(), key=lambda app: (str(app.main), id(app)))


def _recording_apps() -> list[RecordingCelery]:
    """Of these those that record, with their tasks bound."""
    apps = [app for app in _apps() if isinstance(app, RecordingCelery)]
    for app in apps:
        app.finalize()
    return apps
