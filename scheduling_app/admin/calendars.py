"""Calendars in the admin: when the schedules that name one do not run."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, tzinfo
from functools import cached_property
from heapq import merge
from itertools import islice
from typing import Any

from django import forms
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.db.models import Count, QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.loader import render_to_string

from scheduling_app.form_fields import WallTimeField, placed, wall, zones
from scheduling_app.models import Calendar, Window
from scheduling_app.seams.django import PartlyValidated
from scheduling_app.timing import clocks
from scheduling_app.timing.blackout import Dated, Recurring, check_number, window
from scheduling_app.timing.clocks import TimingError
from tasks_app import moments

#: Coming windows, and schedules in the way of a deletion, that a page lists.
COMING, NAMED = 5, 20
#: What says when a window is, in the order in which blackout.window() takes it.
FIELDS = ("cron", "minutes", "start_at", "end_at")


class CalendarForm(forms.ModelForm):
    class Meta:
        model = Calendar
        fields = ["name", "timezone", "description"]
        labels = {"timezone": "Time zone"}
        help_texts = {"timezone": "Whose clocks its windows go by, such as Europe/Berlin."}
        widgets = {
            "timezone": forms.TextInput(attrs={"list": "zones", "spellcheck": "false", "autocomplete": "off"}),
            "description": forms.Textarea(attrs={"rows": 1}),
        }

    def clean_timezone(self) -> str:
        name = self.cleaned_data["timezone"]
        try:
            clocks.zone(name)
        except TimingError as error:
            raise ValidationError(str(error)) from error
        return name


class WindowForm(PartlyValidated):
    """A window: recurring, or dated, in its calendar's zone."""

    # What a window needs is said here at the field; the model's constraint would say it once more.
    checked_here = frozenset({"cron"})
    start_at = WallTimeField(label="From", required=False)
    end_at = WallTimeField(label="Until", required=False)

    class Meta:
        model = Window
        fields = FIELDS
        labels = {"cron": "Each time of (cron)", "minutes": "For minutes"}
        widgets = {"cron": forms.TextInput(attrs={"spellcheck": "false", "autocomplete": "off"})}

    def __init__(self, *args: Any, zone: str, stored_zone: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: The calendar's zone, as it now is, and as it was when the times were stored.
        self.zone, self.stored_zone = zone, stored_zone
        for name in ("start_at", "end_at"):
            if isinstance(self.initial.get(name), datetime):
                self.initial[name] = wall(self.initial[name], stored_zone)

    def has_changed(self) -> bool:
        """Also with its calendar's zone, if it is dated: what was typed stays, what it means does not."""
        return super().has_changed() or (self.instance.start_at is not None and self.zone != self.stored_zone)

    def clean(self) -> dict[str, Any]:
        super().clean()
        if not self.errors:
            try:
                self._place_times(clocks.zone(self.zone))
                if not self.errors:
                    window(self.zone, *(self.cleaned_data[name] for name in FIELDS))
            except TimingError as error:
                if error.field in self.fields:  # the zone is the calendar's, which says so
                    self.add_error(error.field, str(error))
        return self.cleaned_data

    def _place_times(self, zone: tzinfo) -> None:
        for name in ("start_at", "end_at"):
            if self.zone == self.stored_zone and self.instance.pk and name not in self.changed_data:
                self.cleaned_data[name] = getattr(self.instance, name)  # exact, as a form does not show it
            elif moment := self.cleaned_data[name]:
                try:
                    self.cleaned_data[name] = placed(moment, zone)
                except ValidationError as error:
                    self.add_error(name, error)


class Windows(forms.BaseInlineFormSet):
    """The windows of a calendar, whose zone they are typed in."""

    def clean(self) -> None:
        super().clean()
        if not any(self.errors):
            kept = [
                form.cleaned_data for form in self.forms if form.cleaned_data and not form.cleaned_data.get("DELETE")
            ]
            try:
                check_number([tuple(each[name] for name in FIELDS) for each in kept])
            except TimingError as error:
                raise ValidationError(f"{error.field}: {error}") from error

    @cached_property
    def stored_zone(self) -> str:
        stored = Calendar.objects.filter(pk=self.instance.pk).values_list("timezone", flat=True)
        return stored.first() or self.instance.timezone

    def get_form_kwargs(self, index: int | None) -> dict[str, Any]:
        zones = {"zone": self.instance.timezone, "stored_zone": self.stored_zone}
        return {**super().get_form_kwargs(index), **zones}


class WindowInline(admin.TabularInline):
    model = Window
    form = WindowForm
    formset = Windows
    extra = 1


class CalendarAdmin(admin.ModelAdmin):
    form = CalendarForm
    inlines = [WindowInline]
    fields = ["name", "timezone", "description", "coming", "used_by"]
    readonly_fields = ["coming", "used_by"]
    list_display = ["name", "timezone", "windows_count", "schedules_count"]
    search_fields = ["name", "description"]

    def changeform_view(
        self, request: HttpRequest, object_id: str | None = None, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        return super().changeform_view(request, object_id, form_url, (extra_context or {}) | {"zones": zones()})

    def get_fields(self, request: HttpRequest, obj: Calendar | None = None) -> Any:
        return self.fields if obj else self.fields[:3]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Calendar]:
        counts = {
            "count_of_windows": Count("windows", distinct=True),
            "count_of_schedules": Count("schedules", distinct=True),
        }
        return super().get_queryset(request).annotate(**counts)

    @admin.display(description="Windows")
    def windows_count(self, calendar: Any) -> int:
        return calendar.count_of_windows

    @admin.display(description="Schedules")
    def schedules_count(self, calendar: Any) -> int:
        return calendar.count_of_schedules

    @admin.display(description="Next windows")
    def coming(self, calendar: Calendar) -> str:
        context: dict[str, Any] = {"calendar": calendar}
        try:
            zone = clocks.zone(calendar.timezone)
            found = coming(calendar.blackout().windows, moments.now(), COMING)
            context["windows"] = [(start.astimezone(zone), end.astimezone(zone)) for start, end in found]
        except TimingError as error:
            context["problem"] = f"{error.field}: {error}"
        return render_to_string("admin/scheduling_app/calendar/_coming.html", context)

    @admin.display(description="Schedules")
    def used_by(self, calendar: Calendar) -> str:
        schedules = calendar.schedules.only("name")
        more = max(calendar.count_of_schedules - NAMED, 0)  # type: ignore[attr-defined]
        context = {"schedules": schedules[:NAMED], "more": more}
        return render_to_string("admin/scheduling_app/calendar/_schedules.html", context)

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> tuple[Any, ...]:
        """Refused, with names, where schedules go by one of them; not a list of all that would go."""
        in_use = [schedule for calendar in objs for schedule in calendar.schedules.only("name")[: NAMED + 1]]
        protected = [f"Schedule: {schedule}" for schedule in in_use[:NAMED]]
        if len(in_use) > NAMED:
            protected.append("and more")
        counts = {Calendar._meta.verbose_name_plural: len(objs)}
        return [str(calendar) for calendar in objs], counts, set(), protected


def coming(windows: Iterable[Dated | Recurring], now: datetime, count: int) -> list[tuple[datetime, datetime]]:
    """The windows that are on or to come, as (start, end), the earliest first."""
    return list(islice(merge(*(_spans(each, now) for each in windows)), count))


def _spans(each: Dated | Recurring, now: datetime) -> Iterator[tuple[datetime, datetime]]:
    if isinstance(each, Dated):
        if each.end_at > now:
            yield each.start_at.astimezone(UTC), each.end_at.astimezone(UTC)
        return
    for start in each.starts.times_after(now - each.length):
        yield start, start + each.length
