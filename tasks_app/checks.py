from celery import current_app
from django.core.checks import Error, Warning, register


@register()
def tasks_are_recorded(app_configs, **_):
    """Each task must have the base class that claims it, or it would run unrecorded."""
    from tasks_app.execution import ConsoleTask

    return [
        Error(
            f"Task {name} is not a ConsoleTask: it would run without a claim.",
            hint="Leave out its `base`, or derive that from tasks_app.execution.ConsoleTask.",
            id="tasks_app.E001",
        )
        for name, task in sorted(current_app._tasks.items())
        if not isinstance(task, ConsoleTask)
    ]


@register()
def limits_and_uniqueness_can_be_kept(app_configs, **_):
    from tasks_app import limits, uniqueness

    return [
        Error(f"Task {name}: {problem}.", id="tasks_app.E002")
        for name, task in sorted(current_app._tasks.items())
        for problem in (*limits.problems(task), *uniqueness.problems(task))
    ]


@register()
def claims_are_not_skipped(app_configs, **_):
    from tasks_app.execution import ConsoleTask

    return [
        Warning(
            f"Task {name} overrides before_start, where a run is claimed.",
            hint="Call super().before_start(task_id, args, kwargs) first; silence this check once you do.",
            id="tasks_app.W001",
        )
        for name, task in sorted(current_app._tasks.items())
        if type(task).before_start is not ConsoleTask.before_start
    ]
