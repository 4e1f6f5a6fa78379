"""The one room for what is not ours: every private name of a library that the console uses, overrides or replaces.

One module a library, each with its names in a table, and a public name of ours for each:

    celery      canvases, the app, a task's header, a worker's request, results, backends
    kombu       the Redis transport's channel and messages, connections, compressions
    results     django-celery-results' backend
    psycopg     a statement, step by step
    django      the guard of its database against event loops
    asgiref     the thread that runs a coroutine's synchronous code
    sentry      what Sentry does to what sends a task
    python      an HTTP connection's socket

(`scheduling_app/seams.py` is the same for APScheduler, cronsim and Django's forms.) A seam knows its library and
nothing of the console: what overrides a private method calls a public one of the same class, which the console
overrides in its turn. tests/tasks_app/test_seams.py holds each table against the installed libraries, and finds private
names that are used past this room. Imported before Django's apps are loaded, but for `results`: no models here.
"""

import inspect
import re
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

#: A shape for what is no method: it is there, whatever it is; or it is kept by the instances that its owner makes.
THERE, KEPT = "there", "kept"


@dataclass(frozen=True)
class Seam:
    """A private name of a library, and what rests on it."""

    #: `module:owner`, or `module:` where the module has it itself.
    owner: str
    name: str
    #: THERE, KEPT, or its parameters as `(self, task_id, request=…)`. At their end `…` stands for any optional ones:
    #: what we call may get more of them, what we override may not.
    shape: str
    #: What of the console breaks with it, as the subject of a sentence.
    serves: str
    #: Why there is no public way, and what will be one.
    why: str

    def problem(self) -> str:
        """Why the installed library has not what is expected, in a sentence; "" where it has."""
        found = self._found()
        if found == self.shape or (self.shape.endswith("…)") and _is_longer(found, self.shape)):
            return ""
        return f"{self.owner}.{self.name}: expected {self.shape}, found {found}. {self.serves} breaks. {self.why}"

    def _found(self) -> str:
        try:
            owner = resolve_name(self.owner)
        except (ImportError, AttributeError) as error:
            return f"nothing ({error})"
        if self.shape == KEPT:
            return KEPT if _keeps(owner, self.name) else "nothing that is so named"
        if not hasattr(owner, self.name):
            return "nothing"
        return THERE if self.shape == THERE else _parameters(getattr(owner, self.name))


def _keeps(owner: Any, name: str) -> bool:
    return hasattr(owner, name) or re.search(rf"\b{name}\b", inspect.getsource(owner)) is not None


def _parameters(function: Any) -> str:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return f"a {type(function).__name__}"
    return f"({', '.join(map(_parameter, parameters))})"


def _parameter(parameter: inspect.Parameter) -> str:
    name = str(parameter.replace(annotation=parameter.empty, default=parameter.empty))  # with its stars
    return name if parameter.default is parameter.empty else f"{name}=…"


def _is_longer(found: str, expected: str) -> bool:
    """Whether it is what is expected, with nothing but optional parameters after that."""
    head = expected.removesuffix("…)").removesuffix(", ")
    more = found.removesuffix(")").removeprefix(head)
    return found.startswith(head) and all("=" in each or "*" in each for each in more.split(",") if each.strip())
