"""The pages of the schedules: what runs when, and what became of it.

A page's live part is its own address, asked for by htmx.
"""

from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any

from django.contrib import messages
from django.db.models import Count, Q, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseBadRequest
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.http import conditional_page, require_POST, require_safe

from scheduling_app import actions
from scheduling_app.ledger.marks import Mark, runs_of
from scheduling_app.models import Backfill, Schedule
from scheduling_app.pages.forms import ResumeForm, RunFilter, ScheduleFilter
from scheduling_app.pages.preview import preview_of
from scheduling_app.pages.progress import progress_of
from scheduling_app.states import STATE_WORDS, STATES, ScheduleRow, rows_of
from tasks_app import moments
from tasks_app.pages.shell import is_live, page_or_part, staff_with

VIEW, CHANGE, ADD = (f"scheduling_app.{action}_schedule" for action in ("view", "change", "add"))
#: On one page.
SCHEDULES, RUNS = 50, 50
#: Schedules in the overview's list of what fires next, and backfills on a schedule's page.
NEXT, BACKFILLS = 5, 3


@require_safe
@staff_with(VIEW)
@conditional_page
def schedule_list(request: HttpRequest) -> HttpResponse:
    form = ScheduleFilter(request.GET)
    form.is_valid()  # what is not valid is not asked for
    asked = form.cleaned_data
    found = _matching(asked.get("q"), asked.get("state")).defer("args", "kwargs", "description")
    schedules, has_earlier, has_later = _page(found, asked.get("after"), asked.get("before"))
    context = {
        "rows": rows_of(schedules),
        "has_earlier": has_earlier,
        "has_later": has_later,
        "asked": asked,
        "can_change": request.user.has_perm(CHANGE),
        "can_add": request.user.has_perm(ADD),
    }
    if not is_live(request):
        context |= {"title": "Schedules", "states": _counts(asked.get("q"))}
    return page_or_part(request, "scheduling_app/schedule_list.html", "scheduling_app/_schedule_rows.html", context)


@require_safe
@staff_with(VIEW)
@conditional_page
def schedule_detail(request: HttpRequest, pk: int) -> HttpResponse:
    schedule = get_object_or_404(Schedule.objects.select_related("blackout"), pk=pk)
    runs, before, has_older = runs_asked_for(request, schedule)
    context = {
        "title": schedule.name,
        "row": rows_of([schedule])[0],
        "schedule": schedule,
        "preview": preview_of(schedule, moments.now()),
        "runs": runs,
        "before": before,
        "has_older": has_older,
        "backfills": progress_of(schedule.backfills.all()[:BACKFILLS]),
        "can_change": request.user.has_perm(CHANGE),
    }
    return page_or_part(request, "scheduling_app/schedule_detail.html", "scheduling_app/_schedule_live.html", context)


def runs_asked_for(request: HttpRequest, source: Schedule | Backfill) -> tuple[list[Mark], datetime | None, bool]:
    """A page of the runs of a schedule or a backfill, the time they are before, and whether there are older ones."""
    form = RunFilter(request.GET)
    before = form.cleaned_data["before"] if form.is_valid() else None
    runs = runs_of(source, RUNS + 1, before)
    return runs[:RUNS], before, len(runs) > RUNS


@require_safe
@staff_with(VIEW)
@conditional_page
def next_firings(request: HttpRequest) -> HttpResponse:
    """What fires next, over all schedules."""
    schedules = Schedule.objects.filter(STATES["on"]).order_by("next_fire_at")[:NEXT]
    return render(request, "scheduling_app/_next.html", {"rows": [ScheduleRow(schedule) for schedule in schedules]})


@require_POST
@staff_with(CHANGE)
def run(request: HttpRequest, pk: int) -> HttpResponse:
    return _act(request, pk, actions.run_now)


@require_POST
@staff_with(CHANGE)
def pause(request: HttpRequest, pk: int) -> HttpResponse:
    return _act(request, pk, actions.pause)


@require_POST
@staff_with(CHANGE)
def resume(request: HttpRequest, pk: int) -> HttpResponse:
    form = ResumeForm(request.POST)
    if not form.is_valid():
        return HttpResponseBadRequest("missed: none, latest or all")
    return _act(request, pk, partial(actions.resume, missed=form.cleaned_data["missed"]))


def _act(request: HttpRequest, pk: int, action: Callable[[QuerySet[Schedule], Any], str]) -> HttpResponse:
    schedule = get_object_or_404(Schedule, pk=pk)
    messages.success(request, action(Schedule.objects.filter(pk=schedule.pk), request.user))
    back = request.POST.get("next", "")
    if not url_has_allowed_host_and_scheme(back, {request.get_host()}, request.is_secure()):
        back = reverse("schedules:detail", args=[pk])
    return redirect(back)


def _matching(text: str | None, state: str | None) -> QuerySet[Schedule]:
    schedules = Schedule.objects.all()
    if text:
        schedules = schedules.filter(Q(name__icontains=text) | Q(task__icontains=text) | Q(description__icontains=text))
    return schedules.filter(STATES[state]) if state else schedules


def _page(schedules: QuerySet[Schedule], after: str | None, before: str | None) -> tuple[list[Schedule], bool, bool]:
    """A page in the order of names, and whether there are earlier and later ones."""
    if before:
        rows = list(schedules.filter(name__lt=before).order_by("-name")[: SCHEDULES + 1])
        return rows[:SCHEDULES][::-1], len(rows) > SCHEDULES, True
    if after:
        schedules = schedules.filter(name__gt=after)
    rows = list(schedules.order_by("name")[: SCHEDULES + 1])
    return rows[:SCHEDULES], bool(after), len(rows) > SCHEDULES


def _counts(text: str | None) -> list[tuple[str, str, int]]:
    """Each state with its word, and how many schedules are in it."""
    counts = {state: Count("pk", filter=condition) for state, condition in STATES.items()}
    counted = _matching(text, None).aggregate(**counts)
    return [(state, word, counted[state]) for state, word in STATE_WORDS.items()]
