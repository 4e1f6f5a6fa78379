"""The list of tasks, and what it is narrowed to."""

import json
from typing import Any

from django import forms
from django.db.models import Case, F, Q, QuerySet, TextField, When
from django.db.models.functions import Cast, Left
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.views.decorators.http import conditional_page, require_safe

from tasks_app.models import PHASES, TaskRecord
from tasks_app.pages.shell import VIEW, is_live, page_or_part, staff_with
from tasks_app.recording import current_app

#: Rows of a page, and characters of a value shown in it.
ROWS, SHOWN = 50, 300
#: What a row shows.
LISTED = (
    "task_id", "name", "state", "queue", "attempt", "retries", "eta", "publish_at", "parked_at", "limit_key",
    "created_at", "started_at", "finished_at", "cancel_at", "result_preview", "exc_type",
)  # fmt: skip


class TaskFilter(forms.Form):
    """What the list of tasks is narrowed to; whatever is not valid is not asked for."""

    phase = forms.ChoiceField(choices=[(phase, phase) for phase in PHASES], required=False)
    q = forms.CharField(max_length=255, required=False)
    before = forms.IntegerField(min_value=1, max_value=2**63 - 1, required=False)


@require_safe
@staff_with(VIEW)
@conditional_page
def task_list(request: HttpRequest) -> HttpResponse:
    form = TaskFilter(request.GET)
    form.is_valid()
    asked = form.cleaned_data
    if asked.get("q") and not is_live(request) and TaskRecord.objects.filter(task_id=asked["q"]).exists():
        return redirect("tasks:detail", asked["q"])
    records = list(_found(asked)[: ROWS + 1])
    context = {
        "title": "Tasks",
        "asked": asked,
        "phases": PHASES,
        "records": records[:ROWS],
        "has_older": len(records) > ROWS,
        "names": sorted(name for name in current_app.tasks if not name.startswith("celery.")),
    }
    return page_or_part(request, "tasks_app/task_list.html", "tasks_app/_task_rows.html", context)


def _found(asked: dict[str, Any]) -> QuerySet[TaskRecord]:
    starts = {f"{name}_start": Left(name, SHOWN) for name in ("args", "kwargs", "exc_message")}
    shown = Case(When(options__contains='repr"', then=F("options")))  # read where there may be something to be shown
    records = TaskRecord.objects.only(*LISTED).annotate(**starts, shown=shown)
    if asked.get("phase"):
        records = records.filter(PHASES[asked["phase"]])
    if name := asked.get("q"):
        records = records.filter(name=name) if name in current_app.tasks else _mentioning(records, name)
    if asked.get("before"):
        records = records.filter(pk__lt=asked["before"])
    return records


def _mentioning(records: QuerySet[TaskRecord], text: str) -> QuerySet[TaskRecord]:
    """Those with `text` in their name, or in their arguments, which are kept as JSON that is plain ASCII."""
    encoded = json.dumps(text)[1:-1]
    records = records.annotate(**{f"{name}_text": Cast(name, TextField()) for name in ("args", "kwargs")})
    return records.filter(Q(name__icontains=text) | Q(args_text__contains=encoded) | Q(kwargs_text__contains=encoded))
