"""What `manage.py check` says of the console as a part of a project."""

from typing import Any

from django.apps import apps
from django.core.checks import CheckMessage, Error, Warning, register
from django.urls import NoReverseMatch, reverse

from tasks_app.checks import TASKS


@register(TASKS)
def pages_have_an_address(app_configs: Any, **_: Any) -> list[CheckMessage]:
    try:
        reverse("tasks:overview"), reverse("schedules:list")
    except NoReverseMatch:
        hint = 'Add `path("console/", include("taskconsole.urls"))` to the URLs of the project, under any prefix.'
        return [Warning("The console's pages have no address, so nothing can link to them.", hint=hint,
                        id="taskconsole.W001")]  # fmt: skip
    return []


@register(TASKS)
def apps_are_installed(app_configs: Any, **_: Any) -> list[CheckMessage]:
    missing = [name for name in ("tasks_app", "scheduling_app") if not apps.is_installed(name)]
    return [Error(f"{name!r} is not in INSTALLED_APPS.", id="taskconsole.E001") for name in missing]
