"""One task: what it was given, what became of it, and the buttons that act on it."""

import json
from collections.abc import Callable
from typing import Any

from django.contrib import messages
from django.db import DEFAULT_DB_ALIAS, transaction
from django.db.models import QuerySet
from django.db.models.functions import Left
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404, redirect
from django.template.defaultfilters import pluralize
from django.views.decorators.http import conditional_page, require_POST, require_safe
from django_celery_results.models import TaskResult

from tasks_app import states
from tasks_app.client import CeleryClient
from tasks_app.history import log
from tasks_app.models import TaskRecord, TaskStep
from tasks_app.pages.shell import CHANGE, STOP_POLLING, VIEW, is_live, page_or_part, staff_with
from tasks_app.pages.tasks import LISTED
from tasks_app.pages.tracebacks import frames
from tasks_app.queues import unread
from tasks_app.steps import is_to_come, still_to_come

#: Characters of a value shown at first.
SHOWN = 10_000
#: Runs before the last one, and other tasks of its workflow, that a task's page lists.
ATTEMPTS, FAMILY = 20, 50


@require_safe
@staff_with(VIEW)
@conditional_page
def task_detail(request: HttpRequest, task_id: str) -> HttpResponse:
    record = TaskRecord.objects.select_related("replay_of").filter(task_id=task_id).first()
    if record is None:
        return _step_to_come(request, get_object_or_404(TaskStep, task_id=task_id))
    result = TaskResult.objects.using(DEFAULT_DB_ALIAS).filter(task_id=task_id).first()
    traceback = result.traceback if result else None
    family = list(_family(record)[: FAMILY + 1])
    still_open = TaskRecord.objects.in_workflow(record.root_id).unfinished()
    has_open_family = bool(family) and still_open.exists()
    context = {
        "title": record.name,
        "record": record,
        "args": _shown(_arguments(record, "args")),
        "kwargs": _shown(_arguments(record, "kwargs")),
        "result": _shown(_pretty(result.result)) if result and record.state == states.SUCCESS else None,
        "traceback": _shown(traceback) if traceback else None,
        "frames": frames(_ends(traceback)) if traceback else [],
        "attempts": _attempts(record),
        "unread": unread([record.queue]) if record.phase == "queued" else [],
        "family": family[:FAMILY],
        "has_more_family": len(family) > FAMILY,
        "has_open_family": has_open_family,
        "to_come": still_to_come(record.root_id)[:FAMILY] if record.is_unfinished or has_open_family else [],
        "can_revoke_family": has_open_family and still_open.filter(cancel_at=None).exists(),
        "earlier": TaskRecord.objects.filter(name=record.name, pk__lt=record.pk).only(*LISTED)[:8],
        "run": getattr(record, "schedule_run", None),
        "can_change": request.user.has_perm(CHANGE),
    }
    response = page_or_part(request, "tasks_app/task_detail.html", "tasks_app/_task_live.html", context)
    if is_live(request) and not (record.is_unfinished or has_open_family):
        response.status_code = STOP_POLLING
    return response


def _step_to_come(request: HttpRequest, step: TaskStep) -> HttpResponse:
    """The page of a task that has no record yet: what it comes after."""
    context = {
        "title": step.name,
        "step": step,
        "may_come": is_to_come(step),
        "before": TaskRecord.objects.filter(task_id=step.after_id).first(),
        "family": TaskRecord.objects.in_workflow(step.root_id).only(*LISTED)[:FAMILY],
        "can_change": request.user.has_perm(CHANGE),
    }
    return page_or_part(request, "tasks_app/step.html", "tasks_app/_step.html", context)


@require_safe
@staff_with(VIEW)
def task_value(request: HttpRequest, task_id: str, what: str) -> HttpResponse:
    """A value in full, as a file."""
    record = get_object_or_404(TaskRecord, task_id=task_id)
    if what in ("args", "kwargs"):
        text = _arguments(record, what)
    else:
        result = get_object_or_404(TaskResult.objects.using(DEFAULT_DB_ALIAS), task_id=task_id)
        text = _pretty(result.result) if what == "result" else result.traceback or ""
    response = HttpResponse(text.encode("utf-8", "backslashreplace"), content_type="text/plain; charset=utf-8")
    response["Content-Disposition"] = f'attachment; filename="{what}.txt"'
    return response


@transaction.non_atomic_requests
@require_POST
@staff_with(CHANGE)
def revoke(request: HttpRequest, task_id: str) -> HttpResponse:
    if not TaskRecord.objects.filter(task_id=task_id).exists():
        return _revoke_step(request, task_id)

    def act(client: CeleryClient, before: TaskRecord) -> str:
        return _said_of_revoke(before, client.revoke(task_id), "its body can see it and end; it is not retried.")

    return _act(request, task_id, act)


def _revoke_step(request: HttpRequest, task_id: str) -> HttpResponse:
    get_object_or_404(TaskStep, task_id=task_id)
    if CeleryClient().revoke(task_id) == states.REVOKED:
        log(request.user, [_acted_on(task_id)], "Revoked before it came")
        messages.success(request, "1 task revoked: it will not start.")
    else:
        messages.warning(request, "0 tasks revoked: its workflow had ended already.")
    return redirect("tasks:detail", task_id)


@transaction.non_atomic_requests
@require_POST
@staff_with(CHANGE)
def terminate(request: HttpRequest, task_id: str) -> HttpResponse:
    def act(client: CeleryClient, before: TaskRecord) -> str:
        return _said_of_revoke(before, client.revoke(task_id, terminate=True), "its worker kills its process.")

    return _act(request, task_id, act)


@transaction.non_atomic_requests
@require_POST
@staff_with(CHANGE)
def revoke_workflow(request: HttpRequest, task_id: str) -> HttpResponse:
    def act(client: CeleryClient, before: TaskRecord) -> str:
        count = client.revoke_workflow(task_id)
        return f"{count} task{pluralize(count)} revoked or asked to stop."

    return _act(request, task_id, act)


@require_POST
@staff_with(CHANGE)
def rerun(request: HttpRequest, task_id: str) -> HttpResponse:
    record = _acted_on(task_id)
    with transaction.atomic():
        result = CeleryClient().rerun(task_id)
        log(request.user, [record], f"Run again as {result.id}")
    messages.success(request, "1 task started: it is the one shown here.")
    return redirect("tasks:detail", result.id)


def _act(request: HttpRequest, task_id: str, act: Callable[[CeleryClient, TaskRecord], str]) -> HttpResponseRedirect:
    # Not in one transaction, a request's neither: while a broker that is away is waited for, the leases of its rows
    # could not be renewed.
    record = _acted_on(task_id)
    said = act(CeleryClient(), record)
    log(request.user, [record], said)
    messages.success(request, said)
    return redirect("tasks:detail", task_id)


def _acted_on(task_id: str) -> TaskRecord:
    return get_object_or_404(TaskRecord.objects.only("task_id", "name", "state"), task_id=task_id)


def _said_of_revoke(before: TaskRecord, state: str | None, asked: str) -> str:
    if before.is_waiting and state == states.REVOKED:
        return "1 task revoked: it will not start."
    if before.is_unfinished and state in (states.STARTED, states.REVOKED):
        return f"1 task asked to stop: {asked}"
    return f"0 tasks revoked: it had finished already ({state})."


def _arguments(record: TaskRecord, what: str) -> str:
    """Arguments to be shown: as JSON, or as their submitter wants them to be (Celery's `argsrepr`, `kwargsrepr`)."""
    given = record.options.get(f"{what}repr") if isinstance(record.options, dict) else None
    return str(given) if given is not None else json.dumps(getattr(record, what), indent=2, ensure_ascii=False)


def _family(record: TaskRecord) -> QuerySet[TaskRecord]:
    """The other tasks of its workflow, and what it started."""
    others = TaskRecord.objects.in_workflow(record.root_id).exclude(pk=record.pk)
    return others.only(*LISTED, "parent_id", "group_id")


def _attempts(record: TaskRecord) -> list[dict[str, Any]]:
    """The runs before the last one, the newest of them, in their order, and of what is long the starts."""
    starts = {f"{name}_start": Left(name, SHOWN) for name in ("exc_message", "traceback")}
    newest = record.attempts.order_by("-attempt").values("attempt", "finished_at", "exc_type", **starts)
    return [dict(row) for row in newest[:ATTEMPTS]][::-1]


def _pretty(encoded: str | None) -> str:
    try:
        return json.dumps(json.loads(encoded or "null"), indent=2, ensure_ascii=False)
    except ValueError:
        return encoded or ""


def _ends(text: str) -> str:
    """`text` without its middle where it is long: a traceback is read from both ends."""
    if len(text) <= SHOWN:
        return text
    return f"{text[: SHOWN // 2]}\n…\n{text[-SHOWN // 2 :]}"


def _shown(text: str) -> dict[str, str | int]:
    text = text.encode("utf-8", "backslashreplace").decode()
    return {"text": text[:SHOWN], "cut": max(len(text) - SHOWN, 0)}
