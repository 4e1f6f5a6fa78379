"""The forms of a schedule: what could not run, or not as meant, is refused here, with the field named.

Fields that do not apply, those of another kind of timing among them, are cleared, whatever they hold: a form that hides
them must not fail because of them. Times are typed as the clocks of the schedule's own zone show them.
"""

from collections.abc import Iterable
from contextlib import suppress
from copy import copy
from datetime import datetime, tzinfo
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.urls import NoReverseMatch, reverse
from django.utils.html import format_html

from scheduling_app.form_fields import ArgumentsField, WallTimeField, placed, wall
from scheduling_app.models import Calendar, Schedule, default_timezone
from scheduling_app.pages.preview import Preview, preview_of
from scheduling_app.seams.django import PartlyValidated
from scheduling_app.signatures import parameters_of, registered_tasks
from scheduling_app.sources.fields import FIELDS, Field, Part, label_of, names, rule_complaints, sentences
from scheduling_app.sources.rules import BLANK, TIMING, Complaint, call_complaints, past_complaint
from scheduling_app.timing import clocks
from scheduling_app.timing.clocks import TimingError
from scheduling_app.timing.kinds import Timing
from tasks_app import moments
from tasks_app.conf import APPS_SETTING, conf
from tasks_app.recording import current_app

Kind = Schedule.Kind


def number(field: Field) -> forms.IntegerField:
    """A field of a whole number, or blank."""
    initial = field.column.get_default()
    return forms.IntegerField(required=False, min_value=field.least, max_value=field.most, initial=initial)


class PlanForm(PartlyValidated):
    """When a schedule fires, and by which policies. Once valid, `timing` is what the schedulers go by."""

    # That a kind has what it needs is said here at the field; the model's constraint would say it once more.
    checked_here = frozenset({"kind"})
    run_at = WallTimeField(required=False)
    timezone = forms.CharField(
        max_length=64,
        initial=default_timezone,
        widget=forms.TextInput(attrs={"list": "zones", "spellcheck": "false", "autocomplete": "off"}),
    )
    start_at = WallTimeField(required=False)
    end_at = WallTimeField(required=False)
    blackout = forms.ModelChoiceField(Calendar.objects, required=False, empty_label="Any time is fine")
    blackout_action = forms.ChoiceField(choices=Schedule.BlackoutAction, required=False)

    class Meta:
        model = Schedule
        fields = names(Part.TIMING, Part.POLICY)
        widgets = {
            "kind": forms.RadioSelect,
            "cron": forms.TextInput(
                attrs={"spellcheck": "false", "autocomplete": "off", "placeholder": "0 9 * * mon-fri"}
            ),
            "due_kwarg": forms.TextInput(
                attrs={"spellcheck": "false", "autocomplete": "off", "placeholder": "scheduled_for"}
            ),
        }

    def __init__(self, *args: Any, now: datetime | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **{"label_suffix": "", **kwargs})
        self.now = now or moments.now()
        self.timing: Timing | None = None
        for name in self.fields:
            self._describe(FIELDS[name])
            if isinstance(self.fields[name], WallTimeField) and isinstance(self.initial.get(name), datetime):
                self.initial[name] = wall(self.initial[name], self.initial["timezone"])

    def _describe(self, described: Field) -> None:
        """Make a field of the form what the table says of it."""
        if described.least is not None:
            self.fields[described.name] = number(described)
        field = self.fields[described.name]
        field.label, field.help_text = label_of(described.name), described.help
        field.disabled = bool(self.instance.owner) and described.name != "enabled"
        if described.only_if:
            field.widget.attrs["data-only-if"] = described.only_if.as_json()

    @property
    def timing_changed(self) -> bool:
        return self.instance.pk is None or not set(TIMING).isdisjoint(self.changed_data)

    def preview(self) -> Preview:
        """What a schedule would do as the form now says, or of what it was opened with."""
        shown = [name for name in names(Part.TIMING, Part.POLICY) if name in self.errors]
        errors = {name: [str(each) for each in self.errors[name]] for name in shown}
        schedule = copy(self.instance)  # which has what is valid
        if not schedule.pk:
            if not self.is_bound:
                return Preview(sentences=sentences(schedule))
            schedule.created_at = self.now
        return preview_of(schedule, self.now, errors)

    def clean_jitter(self) -> int:
        return self.cleaned_data["jitter"] or 0

    def clean_max_instances(self) -> int:
        return self.cleaned_data["max_instances"] or 1

    def clean_blackout_action(self) -> str:
        return self.cleaned_data["blackout_action"] or Schedule.BlackoutAction.SKIP

    def clean(self) -> dict[str, Any]:
        super().clean()
        self._clear_what_does_not_apply()
        self._complain(rule_complaints(self._given()))
        if self.cleaned_data.get("kind"):
            self._place_times()
            if self.errors.keys().isdisjoint(TIMING):
                self._clean_timing()
        return self.cleaned_data

    def _given(self) -> Schedule:
        """A schedule of what is valid, for the rules that hold whatever road a definition comes by."""
        return Schedule(**{name: value for name, value in self.cleaned_data.items() if value is not None})

    def _complain(self, complaints: Iterable[Complaint]) -> None:
        for name, said in complaints:
            self.add_error(name, said)

    def _clear_what_does_not_apply(self) -> None:
        given = self.cleaned_data
        for name, field in FIELDS.items():
            if field.only_if and not field.only_if.holds(given):
                self.errors.pop(name, None)
                given[name] = field.column.get_default()

    def _place_times(self) -> None:
        """Give the typed wall times their zone."""
        names = [name for name in ("run_at", "start_at", "end_at") if self.cleaned_data.get(name)]
        try:
            zone = clocks.zone(self.cleaned_data.get("timezone", ""))
        except TimingError as error:
            if "timezone" not in self.errors:
                self.add_error("timezone", str(error))
            for name in names:
                del self.cleaned_data[name]
            return
        for name in names:
            try:
                self.cleaned_data[name] = self._placed(name, zone)
            except ValidationError as error:
                self.add_error(name, error)

    def _placed(self, name: str, zone: tzinfo) -> datetime:
        # What was not touched stays exact: a form shows neither microseconds nor the pass of a repeated hour.
        if self.instance.pk and {name, "timezone"}.isdisjoint(self.changed_data):
            return getattr(self.instance, name)
        return placed(self.cleaned_data[name], zone)

    def _clean_timing(self) -> None:
        schedule = Schedule(**{name: self.cleaned_data[name] for name in TIMING})
        schedule.created_at = self.instance.created_at if self.instance.pk else self.now
        if schedule.kind == Kind.DATE and schedule.run_at is None:
            self.add_error("run_at", "Say when: a date and a time.")
            return
        try:
            self.timing = schedule.timing()
        except TimingError as error:
            self.add_error(error.field, str(error))


class ScheduleForm(PlanForm):
    """All of a schedule, as people define it. One that is declared in code can be switched on and off here, no more."""

    # A TextField's own cleaning would make Python's repr of a list.
    checked_here = PlanForm.checked_here | {"args", "kwargs", "headers"}
    task = forms.ChoiceField()
    args = ArgumentsField(list)
    kwargs = ArgumentsField(dict)
    headers = ArgumentsField(dict)
    queue = forms.ChoiceField(required=False)

    class Meta(PlanForm.Meta):
        fields = names(*Part)
        widgets = PlanForm.Meta.widgets | {"description": forms.Textarea(attrs={"rows": 1})}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["name"].error_messages["required"] = BLANK
        self._offer_tasks(self.initial.get("task"))
        self._offer_queues(self.initial.get("queue"))
        default = current_app.conf.task_default_priority
        self.fields[
            "priority"
        ].help_text = f"0 is most urgent, 9 least. Blank: {'none' if default is None else default}."
        self.fields["enabled"].show_hidden_initial = True  # what it was when the form was opened: see the admin's save
        with suppress(NoReverseMatch):  # on an admin site without them
            self.fields["blackout"].help_text = format_html(
                'A <a href="{}" target="_blank">calendar</a> of when it is not to run.',
                reverse("admin:scheduling_app_calendar_changelist"),
            )

    def _offer_tasks(self, stored: str | None) -> None:
        choices = [(name, f"{name}{parameters_of(task)}") for name, task in registered_tasks().items()]
        if stored and stored not in dict(choices):
            choices.append((stored, f"{stored} (not registered)"))
            self.fields["task"].help_text = format_html(
                '<strong class="schedule-warning">⚠ No task {} is registered now: its times are skipped.</strong> '
                "Is its app in {}?",
                stored,
                APPS_SETTING,
            )
        self._offer("task", [("", "Choose a task"), *choices])

    def _offer_queues(self, stored: str | None) -> None:
        names = sorted({*current_app.amqp.queues, *filter(None, [stored])})
        default = f"{conf.CRON_QUEUE} (default)" if conf.CRON_QUEUE else "Where its task goes by default"
        self._offer("queue", [("", default), *((name, name) for name in names)])

    def _offer(self, name: str, choices: list[tuple[str, str]]) -> None:
        field = self.fields[name]
        assert isinstance(field, forms.ChoiceField)
        field.choices = choices

    def clean(self) -> dict[str, Any]:
        super().clean()
        if not self.instance.owner and {"task", "args", "kwargs", "due_kwarg"} <= self.cleaned_data.keys():
            self._complain(call_complaints(self._given(), self.initial.get("task", "")))
        if self.timing and self.timing_changed:
            given = self._given()
            given.created_at = self.instance.created_at if self.instance.pk else self.now
            self._complain(filter(None, [past_complaint(given, None, self.now)]))
        return self.cleaned_data
