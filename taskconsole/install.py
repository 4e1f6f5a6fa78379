"""What a project lacks to have the console, as changes of its own files. Nothing is written: people apply a diff.

It is read from the project as it runs, so that settings in several files, or made by code, are judged by what they come
to; where the place to change is not found in the source, the lines to add stand at the end of it.
"""

import ast
import difflib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

from celery import Celery
from django.apps import apps
from django.conf import settings
from django.urls import NoReverseMatch, reverse

from tasks_app.outbox import DEFAULTS, RecordingCelery
from tasks_app.seams.celery import active_apps

#: In their order: tasks_app stands on those before it.
APPS = ("django_celery_results", "django_htmx", "tasks_app", "scheduling_app", "taskconsole")
URLS = 'path("console/", include("taskconsole.urls")),'


@dataclass(frozen=True)
class Change:
    """A file of the project as it is, and as it should be."""

    file: Path
    before: str
    after: str

    def diff(self) -> str:
        name = os.path.relpath(self.file)
        lines = (self.before.splitlines(keepends=True), self.after.splitlines(keepends=True))
        return "".join(difflib.unified_diff(*lines, f"a/{name}", f"b/{name}"))


def missing() -> list[Change]:
    """The changes that a project still needs, one for each file; none where the console is installed."""
    texts: dict[Path, str] = {}
    for file, edit in _edits():
        texts[file] = edit(texts.get(file) or file.read_text())
    return [Change(file, file.read_text(), text) for file, text in texts.items() if text != file.read_text()]


def _edits() -> Iterator[tuple[Path, Callable[[str], str]]]:
    if names := [name for name in APPS if not apps.is_installed(name)]:
        yield _settings_file(), lambda text: _with_items(text, "INSTALLED_APPS", [f'"{name}",' for name in names])
    for app in _plain_apps():
        if file := _file_of(app):
            yield file, _with_recording_app
    try:
        reverse("tasks:overview")
    except NoReverseMatch:
        yield _file(settings.ROOT_URLCONF), lambda text: _with_include(_with_items(text, "urlpatterns", [URLS]))
    for app in active_apps():
        backend = app.conf.result_backend
        if backend and backend != DEFAULTS["result_backend"] and _file_of(app):
            key = f"{app.namespace}_RESULT_BACKEND" if app.namespace else "result_backend"
            yield _settings_file(), partial(_with_value, name=key, value=f'"{DEFAULTS["result_backend"]}"')


def _plain_apps() -> list[Celery]:
    return [app for app in active_apps() if not isinstance(app, RecordingCelery)]


def _settings_file() -> Path:
    return _file(settings.SETTINGS_MODULE)


def _file(module: str) -> Path:
    return Path(inspect.getfile(import_module(module)))


def _file_of(app: Celery) -> Path | None:
    """The project's file that makes this app: the module that has it under a name and calls `Celery`."""
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if not file or "site-packages" in file or all(value is not app for value in vars(module).values()):
            continue
        if "Celery(" in Path(file).read_text():
            return Path(file)
    return None


def _with_items(text: str, name: str, items: list[str]) -> str:
    """`text` with items at the end of the list of that name; in a list that is added to it, where there is none."""
    lines = text.splitlines(keepends=True)
    found = _assigned(text, name)
    if isinstance(found, ast.List | ast.Tuple) and found.end_lineno and found.end_lineno > found.lineno:
        at = found.end_lineno - 1
        last = found.elts[-1].end_lineno if found.elts else None
        if last and not lines[last - 1].rstrip().split("#")[0].rstrip().endswith(","):
            lines[last - 1] = lines[last - 1].rstrip() + ",\n"
        return "".join([*lines[:at], *(f"    {item}\n" for item in items), *lines[at:]])
    added = "".join(f"    {item}\n" for item in items)
    return f"{text.rstrip()}\n\n{name} = [\n    *{name},\n{added}]\n"  # also where it is a tuple


def _with_value(text: str, name: str, value: str) -> str:
    """`text` with this value under that name: in its place, or at the end."""
    found = _assigned(text, name)
    if found is None:
        return f"{text.rstrip()}\n{name} = {value}\n"
    lines = text.splitlines(keepends=True)
    return "".join([*lines[: found.lineno - 1], f"{name} = {value}\n", *lines[(found.end_lineno or found.lineno) :]])


def _with_include(text: str) -> str:
    for node in ast.parse(text).body:
        if isinstance(node, ast.ImportFrom) and node.module == "django.urls":
            names = {each.name for each in node.names}
            lines = text.splitlines(keepends=True)
            imported = f"from django.urls import {', '.join(sorted(names | {'include', 'path'}))}\n"
            return "".join([*lines[: node.lineno - 1], imported, *lines[(node.end_lineno or node.lineno) :]])
    return f"from django.urls import include, path\n{text}"


def _with_recording_app(text: str) -> str:
    """`text` with `RecordingCelery` where `Celery` is called, imported in its place where nothing else names that."""
    text = re.sub(r"(?<![\w.])(?:celery\.)?Celery\(", "RecordingCelery(", text)
    plain, ours = "from celery import Celery\n", "from tasks_app.outbox import RecordingCelery\n"
    if plain in text and not re.search(r"\bCelery\b", text.replace(plain, "")):
        return text.replace(plain, ours)
    imports = [node for node in ast.parse(text).body if isinstance(node, ast.Import | ast.ImportFrom)]
    at = next(node.end_lineno or node.lineno for node in imports if "celery" in ast.unparse(node))
    lines = text.splitlines(keepends=True)
    return "".join([*lines[:at], ours, *lines[at:]])


def _assigned(text: str, name: str) -> ast.expr | None:
    """The value that a module gives to a name at its top, the last one."""
    found = None
    for node in ast.parse(text).body:
        targets = _targets(node)
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            found = node.value  # type: ignore[attr-defined]
    return found


def _targets(node: ast.stmt) -> Iterator[ast.expr]:
    match node:
        case ast.Assign():
            yield from node.targets
        case ast.AnnAssign():
            yield node.target
