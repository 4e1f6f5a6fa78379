"""The forms of a schedule: what could not run, or not as meant, is refused here, with the field named.

Fields that belong to another kind of timing are cleared, whatever they hold: a form that hides them must not fail
because of them. Times are typed as the clocks of the schedule's own zone show them.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, tzinfo

from celery import current_app
from django import forms
from django.conf import settings
from django.core.exceptions import ValidationError
from django.utils import timezone
from django.utils.html import format_html

from scheduling_app import clocks
from scheduling_app.fields import ArgumentsField, WallTimeField
from scheduling_app.models import Schedule, default_timezone
from scheduling_app.outlook import STATE_WORDS, Preview, upcoming
from scheduling_app.signatures import misfit, parameters_of, registered_tasks
from scheduling_app.triggers import Timing, TimingError

Kind = Schedule.Kind

TIMING = ("kind", "cron", "every", "unit", "run_at", "timezone", "start_at", "end_at")
#: Of these, the ones that only some kinds have; what they are without.
KINDS_OF = {
    "cron": [Kind.CRON],
    "every": [Kind.INTERVAL],
    "unit": [Kind.INTERVAL],
    "run_at": [Kind.DATE],
    "start_at": [Kind.CRON, Kind.INTERVAL],
    "end_at": [Kind.CRON, Kind.INTERVAL],
}
CLEARED = {"cron": "", "unit": Schedule.Unit.MINUTES}
#: How many coming times are previewed.
PREVIEWED = 10
#: Seconds in a day: more jitter than that is a mistake.
MOST_JITTER = 86_400


class TimingForm(forms.ModelForm):
    """When a schedule fires. Once valid, `timing` is what the schedulers go by."""

    run_at = WallTimeField(required=False, help_text="In the time zone below.")
    timezone = forms.CharField(
        label="Time zone",
        max_length=64,
        initial=default_timezone,
        help_text="Whose clocks it goes by, such as Europe/Berlin.",
        widget=forms.TextInput(attrs={"list": "zones", "spellcheck": "false", "autocomplete": "off"}),
    )
    start_at = WallTimeField(
        label="From", required=False, help_text="Not before; an interval counts from it. In the time zone."
    )
    end_at = WallTimeField(label="Until", required=False, help_text="Not after. In the time zone.")
    jitter = forms.IntegerField(
        required=False,
        min_value=0,
        max_value=MOST_JITTER,
        initial=0,
        help_text="Seconds: each run starts up to this much later.",
    )

    class Meta:
        model = Schedule
        fields = [*TIMING, "jitter"]
        widgets = {
            "kind": forms.RadioSelect,
            "cron": forms.TextInput(
                attrs={"spellcheck": "false", "autocomplete": "off", "placeholder": "0 9 * * mon-fri"}
            ),
        }
        help_texts = {
            "cron": "Minute, hour, day of month, month, day of week (0 and 7 are Sunday). Six fields: seconds first.",
        }

    def __init__(self, *args, now: datetime | None = None, **kwargs):
        super().__init__(*args, **{"label_suffix": "", **kwargs})
        self.now = now or timezone.now()
        self.timing: Timing | None = None
        for name, field in self.fields.items():
            if isinstance(field, WallTimeField) and isinstance(self.initial.get(name), datetime):
                self.initial[name] = _wall(self.initial[name], self.initial["timezone"])

    @property
    def timing_changed(self) -> bool:
        return self.instance.pk is None or not set(TIMING).isdisjoint(self.changed_data)

    def preview(self) -> Preview:
        """The coming times of what the form now says, or of what it was opened with."""
        errors: Mapping[str, Sequence] = self.errors
        timing, jitter = self.timing, self.instance.jitter
        if self.is_bound:
            jitter = self.cleaned_data.get("jitter", 0)
        elif self.instance.pk:
            try:
                timing = self.instance.timing()
            except TimingError as error:
                errors = {error.field: [str(error)]}
        named = [name for name in (*TIMING, "jitter") if name in errors]
        if named or timing is None:
            return Preview(complaints=[(str(self[name].label), str(said)) for name in named for said in errors[name]])
        times = upcoming(timing, self.now, PREVIEWED, key=self.instance.pk, jitter=jitter)
        return Preview(timing, times, jitter)

    def clean_jitter(self) -> int:
        return self.cleaned_data["jitter"] or 0

    def _get_validation_exclusions(self):
        # That a kind has what it needs is said here at the field; the model's constraint would say it once more.
        return super()._get_validation_exclusions() | {"kind"}  # type: ignore[misc]

    def clean(self):
        super().clean()
        if kind := self.cleaned_data.get("kind"):
            self._clear_other_kinds(kind)
            self._place_times()
            if self.errors.keys().isdisjoint(TIMING):
                self._clean_timing()
        return self.cleaned_data

    def _clear_other_kinds(self, kind: str) -> None:
        for name, kinds in KINDS_OF.items():
            if kind not in kinds:
                self.errors.pop(name, None)
                self.cleaned_data[name] = CLEARED.get(name)

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
        wall = self.cleaned_data[name]
        placed = wall if wall.tzinfo else wall.replace(tzinfo=zone)
        if not wall.tzinfo and placed.astimezone(UTC).astimezone(zone).replace(tzinfo=None) != wall:
            raise ValidationError(f"{wall:%H:%M} does not exist on that day in {zone}: the clocks go forward over it.")
        return placed

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


class ScheduleForm(TimingForm):
    """All of a schedule, as people define it."""

    task = forms.ChoiceField()
    args = ArgumentsField(list, label="Arguments", help_text="A JSON list, in the order of the task's parameters.")
    kwargs = ArgumentsField(dict, label="Keyword arguments", help_text="A JSON object, by the parameters' names.")
    queue = forms.ChoiceField(required=False)
    priority = forms.IntegerField(required=False, min_value=0, max_value=9)
    expires_after = forms.IntegerField(
        required=False, min_value=1, help_text="Seconds that a run may wait for a worker; then it is revoked."
    )
    misfire_grace_time = forms.IntegerField(
        label="Late by at most",
        required=False,
        min_value=1,
        initial=3600,
        help_text="Seconds; a time missed by more is recorded, not run. Blank: any.",
    )
    max_instances = forms.IntegerField(
        label="Unfinished at most",
        required=False,
        min_value=1,
        help_text="Runs; with so many unfinished, the next is skipped. Blank: any.",
    )

    class Meta(TimingForm.Meta):
        fields = [
            *("name", "description", "task", "args", "kwargs", "queue", "priority", "enabled"),
            *TimingForm.Meta.fields,
            *("catch_up", "misfire_grace_time", "max_instances", "expires_after"),
        ]
        widgets = TimingForm.Meta.widgets | {"description": forms.Textarea(attrs={"rows": 1})}
        labels = {"enabled": "On", "catch_up": "After missed times"}
        help_texts = TimingForm.Meta.help_texts | {"catch_up": "Times that passed while no scheduler ran."}

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._offer_tasks(self.initial.get("task"))
        self._offer_queues(self.initial.get("queue"))
        default = current_app.conf.task_default_priority
        self.fields["priority"].help_text = f"0 is the most urgent, 9 the least. Blank: {default}."

    def _offer_tasks(self, stored: str | None) -> None:
        choices = [(name, f"{name}{parameters_of(task)}") for name, task in registered_tasks().items()]
        if stored and stored not in dict(choices):
            choices.append((stored, f"{stored} (not registered)"))
            self.fields["task"].help_text = format_html(
                '<strong class="schedule-warning">⚠ No task {} is registered now: what is fired would fail.</strong> '
                "Is its app in INSTALLED_APPS or EXTRA_APPS?",
                stored,
            )
        self._offer("task", [("", "Choose a task"), *choices])

    def _offer_queues(self, stored: str | None) -> None:
        names = sorted({*current_app.amqp.queues, *filter(None, [stored])})
        self._offer("queue", [("", f"{settings.CRON_QUEUE} (default)"), *((name, name) for name in names)])

    def _offer(self, name: str, choices: list[tuple[str, str]]) -> None:
        field = self.fields[name]
        assert isinstance(field, forms.ChoiceField)
        field.choices = choices

    def _get_validation_exclusions(self):
        # A TextField's own cleaning would make Python's repr of a list.
        return super()._get_validation_exclusions() | {"args", "kwargs"}

    def clean(self):
        super().clean()
        call = [self.cleaned_data[name] for name in ("task", "args", "kwargs") if name in self.cleaned_data]
        if len(call) == 3 and (complaint := misfit(*call)):
            self.add_error(*complaint)
        if self.timing and self.timing_changed and self.timing.next_after(self.now) is None:
            at = next(name for name in ("run_at", "end_at", "start_at", "kind") if self.cleaned_data[name])
            self.add_error(at, "past: it would not run")
        return self.cleaned_data


def _wall(moment: datetime, zone: str) -> datetime:
    try:
        return moment.astimezone(clocks.zone(zone)).replace(tzinfo=None, microsecond=0)
    except TimingError:  # written by SQL; the form says so at the field
        return moment.replace(tzinfo=None, microsecond=0)


class ScheduleFilter(forms.Form):
    """What of the list is asked for, in its address: text, state, and the name that the page starts after or before."""

    q = forms.CharField(required=False, max_length=200)
    state = forms.ChoiceField(required=False, choices=STATE_WORDS.items())
    after = forms.CharField(required=False, max_length=200, strip=False)
    before = forms.CharField(required=False, max_length=200, strip=False)


class RunFilter(forms.Form):
    """Which of a schedule's runs are asked for: those due before a time."""

    before = forms.DateTimeField(required=False)
