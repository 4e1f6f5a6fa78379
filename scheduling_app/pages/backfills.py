"""The pages of backfills: which due times of a range are to run, and how far that is."""

from collections.abc import Callable
from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.views.decorators.http import conditional_page, require_POST, require_safe

from scheduling_app import actions
from scheduling_app.ledger.backfill import BackfillError
from scheduling_app.models import Backfill, Schedule
from scheduling_app.pages.forms import BackfillForm, RangeForm
from scheduling_app.pages.progress import progress_of
from scheduling_app.pages.schedules import CHANGE, VIEW, runs_asked_for
from scheduling_app.timing import clocks
from tasks_app.pages.shell import STOP_POLLING, is_live, page_or_part, staff_with, whole_page

#: Due times that a preview lists, and backfills of a schedule.
TIMES, BACKFILLS = 200, 50


@require_safe
@staff_with(CHANGE)
def choose(request: HttpRequest, pk: int) -> HttpResponse:
    """A range, and what the ledger has for its due times."""
    schedule = get_object_or_404(Schedule, pk=pk)
    asked = request.GET if "start_at" in request.GET else None
    return _chosen(request, schedule, RangeForm(asked, schedule=schedule))


@require_POST
@staff_with(CHANGE)
def start(request: HttpRequest, pk: int) -> HttpResponse:
    schedule = get_object_or_404(Schedule, pk=pk)
    form = BackfillForm(request.POST, schedule=schedule)
    if form.is_valid():
        choices = {name: form.cleaned_data[name] for name in ("which", "newest_first", "concurrency")}
        try:
            begun = actions.start_backfill(schedule, form.times, request.user, **choices)
        except BackfillError as error:
            form.add_error("which", str(error))
        else:
            messages.success(request, f"Backfill {begun.pk} started: {begun.total:,} due times.")
            return redirect("schedules:backfill", begun.pk)
    return _chosen(request, schedule, RangeForm(request.POST, schedule=schedule), form)


def _chosen(
    request: HttpRequest, schedule: Schedule, form: RangeForm, choices: BackfillForm | None = None
) -> HttpResponse:
    """The page, with a preview where the range is valid; `choices` are those that were refused."""
    is_previewed = form.is_bound and form.is_valid()
    if is_previewed:
        same_range = {name: form[name].value() for name in form.fields}
        choices = choices or BackfillForm(schedule=schedule, initial=same_range)
        choices.count(form.times)
    zone = clocks.zone(schedule.timezone) if is_previewed else None
    context = {
        "title": f"Backfill {schedule.name}",
        "schedule": schedule,
        "form": form,
        "choices": choices if is_previewed else None,
        "times": [(time, time.at.astimezone(zone)) for time in form.times[:TIMES]],
        "total": len(form.times),
        "more": max(len(form.times) - TIMES, 0),
        "backfills": progress_of(schedule.backfills.all()[:BACKFILLS]),
        "can_change": True,
    }
    return whole_page(request, "scheduling_app/backfill_choose.html", context)


@require_safe
@staff_with(VIEW)
@conditional_page
def detail(request: HttpRequest, pk: int) -> HttpResponse:
    """How far a backfill is, and what became of its due times."""
    backfill = get_object_or_404(Backfill.objects.select_related("schedule"), pk=pk)
    runs, before, has_older = runs_asked_for(request, backfill)
    progress = progress_of([backfill])[0]
    context = {
        "title": f"Backfill {backfill.pk} of {backfill.schedule}",
        "schedule": backfill.schedule,
        "progress": progress,
        "runs": runs,
        "before": before,
        "has_older": has_older,
        "can_change": request.user.has_perm(CHANGE),
    }
    response = page_or_part(
        request, "scheduling_app/backfill_detail.html", "scheduling_app/_backfill_live.html", context
    )
    if is_live(request) and not progress.is_live:
        response.status_code = STOP_POLLING
    return response


@require_POST
@staff_with(CHANGE)
def pause(request: HttpRequest, pk: int) -> HttpResponse:
    return _act(request, pk, actions.pause_backfill)


@require_POST
@staff_with(CHANGE)
def resume(request: HttpRequest, pk: int) -> HttpResponse:
    return _act(request, pk, actions.resume_backfill)


@require_POST
@staff_with(CHANGE)
def cancel(request: HttpRequest, pk: int) -> HttpResponse:
    return _act(request, pk, actions.cancel_backfill)


def _act(request: HttpRequest, pk: int, action: Callable[[Backfill, Any], str]) -> HttpResponse:
    backfill = get_object_or_404(Backfill.objects.select_related("schedule"), pk=pk)
    messages.success(request, action(backfill, request.user))
    return redirect("schedules:backfill", pk)
