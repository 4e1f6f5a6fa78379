"""django-celery-results: its backend, whose private methods have public names here. (Imports its models.)"""

from typing import Any

from django_celery_results.backends.database import DatabaseBackend

from tasks_app.seams import Seam
from tasks_app.seams.celery import Backend

_BACKEND = "django_celery_results.backends.database:DatabaseBackend"
_HOOKS = "Celery calls a backend by private methods. A backend of the console's own, or public hooks, would end it."
NAMES = (
    Seam(
        _BACKEND,
        "_store_result",
        "(self, task_id, result, status, traceback=…, request=…, using=…)",
        "Closing a record with its result",
        _HOOKS,
    ),
    Seam(_BACKEND, "_get_task_meta_for", "(self, task_id)", "The state of a result", _HOOKS),
    Seam(_BACKEND, "_forget", "(self, task_id)", "`forget` of a result", _HOOKS),
    Seam(_BACKEND, "_get_meta_from_request", "(self, request=…)", "The mark of an ignored result", _HOOKS),
    Seam(_BACKEND, "_get_extended_properties", "(self, request, traceback)", "`result_extended`", _HOOKS),
)


class ResultsBackend(Backend, DatabaseBackend):
    def _store_result(
        self,
        task_id: str,
        result: Any,
        status: str,
        traceback: str | None = None,
        request: Any = None,
        using: Any = None,
    ) -> Any:
        return self.keep(task_id, result, status, traceback, request, using)

    def keep(
        self,
        task_id: str,
        result: Any,
        status: str,
        traceback: str | None = None,
        request: Any = None,
        using: Any = None,
    ) -> Any:
        """Store a state of a task with what it has returned or raised, encoded; returns that."""
        return super()._store_result(task_id, result, status, traceback, request, using)

    def _get_task_meta_for(self, task_id: str) -> dict[str, Any]:
        return self.meta_for(task_id)

    def meta_for(self, task_id: str) -> dict[str, Any]:
        """What is known of a task."""
        return super()._get_task_meta_for(task_id)

    def _forget(self, task_id: str) -> None:
        self.drop(task_id)

    def drop(self, task_id: str) -> None:
        """Delete what is stored of a task."""
        super()._forget(task_id)

    def _get_meta_from_request(self, request: Any = None) -> dict[str, Any]:
        return self.meta_from(request)

    def meta_from(self, request: Any) -> dict[str, Any]:
        """What is stored of a run beside its result."""
        return super()._get_meta_from_request(request)

    def extended_properties(self, request: Any, traceback: str | None) -> dict[str, Any]:
        """What `result_extended` adds to that."""
        return self._get_extended_properties(request, traceback)
