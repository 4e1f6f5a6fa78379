from collections.abc import Callable
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import PermissionDenied
from django.db.models import Count, Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.template.loader import render_to_string
from django.urls import URLPattern, path, reverse
from django.utils.decorators import method_decorator
from django.views.decorators.http import require_http_methods

from scheduling_app import actions
from scheduling_app.admin.calendars import CalendarAdmin
from scheduling_app.admin.forms import PlanForm, ScheduleForm
from scheduling_app.form_fields import zones
from scheduling_app.ledger.marks import runs_of
from scheduling_app.models import Calendar, Schedule, ScheduleRun
from scheduling_app.pages.forms import ResumeForm
from scheduling_app.sources.fields import GROUPS
from scheduling_app.states import STATE_WORDS, STATES, ScheduleRow, rows_of

#: Runs shown below a schedule's form; its own page has all of them.
RUNS = 20
#: Schedules that a question or an answer about many of them names.
NAMED = 10


class StateFilter(admin.SimpleListFilter):
    title = parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return list(STATE_WORDS.items())

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(STATES.get(self.value() or "", Q()))


class ScheduleList(ChangeList):
    """The list, whose rows know their last outcomes."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        self.result_list = list(self.result_list)
        for row in rows_of(self.result_list):
            row.schedule.row = row  # type: ignore[attr-defined]


def column(description: str, template: str, ordering: str | None = None) -> Callable[..., str]:
    """A column of the list, drawn as on the schedules' own page."""

    @admin.display(description=description, ordering=ordering)
    def cell(self: Any, schedule: Schedule) -> str:
        return render_to_string(f"scheduling_app/{template}", {"row": schedule.row})  # type: ignore[attr-defined]

    return cell


admin.site.register(Calendar, CalendarAdmin)


@admin.register(Schedule)
class ScheduleAdmin(admin.ModelAdmin):
    """Here schedules are made and edited; what they did is on their own pages."""

    form = ScheduleForm
    fieldsets = [(title, {"fields": [field.name for field in group]}) for title, group in GROUPS.items()]
    list_display = ["state", "name", "timing", "next_run", "last_run", "last_outcomes"]
    list_display_links = ["name"]
    list_filter = [StateFilter, "enabled", "kind", "task"]
    list_per_page = 50
    search_fields = ["name", "task", "description"]
    actions = ["run_now", "pause", "resume", "backfill", "duplicate"]

    state = column("State", "_state_cell.html")
    timing = column("When", "_words.html")
    next_run = column("Next run", "_next_run.html", ordering="next_fire_at")
    last_run = column("Last run", "_last_run.html", ordering="last_fire_at")
    last_outcomes = column("Last outcomes", "_marks.html")

    class Media:
        js = ["scheduling_app/schedules.js"]

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return ScheduleList

    def get_urls(self) -> list[URLPattern]:
        preview = self.admin_site.admin_view(self.preview)
        return [
            path("preview/", preview, name="scheduling_app_schedule_preview"),
            path("<int:pk>/preview/", preview, name="scheduling_app_schedule_preview"),
            *super().get_urls(),
        ]

    @method_decorator(require_http_methods(["GET", "POST"]))
    def preview(self, request: HttpRequest, pk: int | None = None) -> HttpResponse:
        """The part of the form that tells what its timing means, as it stands while one types."""
        if not (self.has_view_permission(request) or self.has_add_permission(request)):
            raise PermissionDenied
        schedule = get_object_or_404(Schedule, pk=pk) if pk else None
        form = PlanForm(request.POST or request.GET, instance=schedule)
        context = {"preview": form.preview(), "shows_sentences": True}
        return render(request, "scheduling_app/_preview.html", context)

    def _address(self, page: str, *args: object) -> str:
        """Of a page of this admin, on its own site."""
        return reverse(f"admin:scheduling_app_schedule_{page}", args=args, current_app=self.admin_site.name)

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        if any("\x00" in value for value in request.GET.values()):  # no text in Postgres has one, and Django would ask
            return redirect(self._address("changelist"))
        return super().changelist_view(request, extra_context)

    def changeform_view(
        self, request: HttpRequest, object_id: str | None = None, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        return super().changeform_view(request, object_id, form_url, (extra_context or {}) | {"zones": zones()})

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        schedule = self.get_object(request, object_id)
        if schedule and self.has_view_permission(request, schedule):
            if not self.has_change_permission(request, schedule):
                return redirect("schedules:detail", schedule.pk)
            extra_context = (extra_context or {}) | {"row": ScheduleRow(schedule), "runs": runs_of(schedule, RUNS)}
        return super().change_view(request, object_id, form_url, extra_context)

    def save_model(self, request: HttpRequest, obj: Schedule, form: Any, change: bool) -> None:
        """A schedule that paused itself while its form was open stays paused, unless the form is about that."""
        kept = {"enabled"} - set(form.changed_data)
        obj.save(update_fields=[name for name in form.fields if name not in kept] if change else None)

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> tuple[Any, ...]:
        """In numbers: an old schedule has more runs than a page can list."""
        runs = ScheduleRun.objects.filter(schedule__in=[schedule.pk for schedule in objs]).aggregate(n=Count("pk"))["n"]
        counts = {Schedule._meta.verbose_name_plural: len(objs), ScheduleRun._meta.verbose_name_plural: runs}
        return [str(schedule) for schedule in objs], counts, set(), []

    @admin.action(description="Run now", permissions=["change"])
    def run_now(self, request: HttpRequest, schedules: QuerySet[Schedule]) -> None:
        messages.success(request, actions.run_now(schedules, request.user))

    @admin.action(description="Pause", permissions=["change"])
    def pause(self, request: HttpRequest, schedules: QuerySet[Schedule]) -> None:
        messages.success(request, actions.pause(schedules, request.user))

    @admin.action(description="Resume", permissions=["change"])
    def resume(self, request: HttpRequest, schedules: QuerySet[Schedule]) -> HttpResponse | None:
        """Asks what becomes of the times missed meanwhile, and then does it."""
        form, paused = ResumeForm(request.POST if "missed" in request.POST else None), schedules.filter(enabled=False)
        if form.is_valid() or not paused.exists():
            missed = form.cleaned_data["missed"] if form.is_valid() else actions.Missed.NONE
            messages.success(request, actions.resume(schedules, request.user, missed))
            return None
        context = self.admin_site.each_context(request) | {
            "title": "Resume",
            "subtitle": None,
            "form": form,
            "total": paused.count(),
            "schedules": [schedule.name for schedule in paused[:NAMED]],
            "selected": request.POST.getlist(ACTION_CHECKBOX_NAME),
            "select_across": request.POST.get("select_across", "0"),
        }
        return render(request, "admin/scheduling_app/schedule/resume.html", context)

    @admin.action(description="Backfill", permissions=["change"])
    def backfill(self, request: HttpRequest, schedules: QuerySet[Schedule]) -> HttpResponse | None:
        chosen = list(schedules[:2])
        if len(chosen) == 1:
            return redirect("schedules:backfill_choose", chosen[0].pk)
        messages.error(request, "Choose one schedule: a backfill is of one.")
        return None

    @admin.action(description="Duplicate, paused", permissions=["add"])
    def duplicate(self, request: HttpRequest, schedules: QuerySet[Schedule]) -> HttpResponse | None:
        copies = actions.duplicate(schedules, request.user)
        messages.success(request, f"{len(copies)} copied, paused: {', '.join(each.name for each in copies[:NAMED])}.")
        if len(copies) == 1 and self.has_change_permission(request):
            return redirect(self._address("change", copies[0].pk))
        return None
