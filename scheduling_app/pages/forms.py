"""The forms of the pages: what of a list is asked for, and which times a backfill is to run."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from django import forms
from django.core.exceptions import ValidationError

from scheduling_app import actions
from scheduling_app.form_fields import WallTimeField, placed, wall
from scheduling_app.ledger import backfill
from scheduling_app.ledger.backfill import BackfillError, DueTime
from scheduling_app.models import Backfill, Schedule
from scheduling_app.states import STATE_WORDS
from scheduling_app.timing import clocks
from scheduling_app.timing.clocks import TimingError
from tasks_app import moments

#: The range of a backfill that is proposed.
PROPOSED = timedelta(days=1)


class ScheduleFilter(forms.Form):
    """What of the list is asked for, in its address: text, state, and the name that the page starts after or before."""

    q = forms.CharField(required=False, max_length=200)
    state = forms.ChoiceField(required=False, choices=STATE_WORDS.items())
    after = forms.CharField(required=False, max_length=200, strip=False)
    before = forms.CharField(required=False, max_length=200, strip=False)


class RunFilter(forms.Form):
    """Which runs are asked for: those due before a time."""

    before = forms.DateTimeField(required=False)


class ResumeForm(forms.Form):
    """What becomes of the times that were missed while a schedule was paused."""

    missed = forms.ChoiceField(
        label="The times missed meanwhile",
        required=False,
        choices=actions.Missed,
        initial=actions.Missed.NONE,
        widget=forms.RadioSelect,
    )

    def clean_missed(self) -> str:
        return self.cleaned_data["missed"] or actions.Missed.NONE


class RangeForm(forms.Form):
    """A range of a schedule's past, as the clocks of its zone show it. Once valid, `times` are its due times."""

    start_at = WallTimeField(label="From")
    end_at = WallTimeField(label="Until", help_text="Both are part of it.")

    def __init__(self, *args: Any, schedule: Schedule, now: datetime | None = None, **kwargs: Any) -> None:
        self.schedule = schedule
        self.times: list[DueTime] = []
        now = now or moments.now()
        proposed = {"start_at": self._shown(now - PROPOSED), "end_at": self._shown(now)}
        super().__init__(*args, **{"label_suffix": "", "initial": proposed, **kwargs})

    def _shown(self, moment: datetime) -> datetime:
        return wall(moment, self.schedule.timezone).replace(second=0)

    def clean(self) -> dict[str, Any]:
        super().clean()
        for name in ("start_at", "end_at"):
            if self.cleaned_data.get(name):
                try:
                    self.cleaned_data[name] = placed(self.cleaned_data[name], clocks.zone(self.schedule.timezone))
                except (ValidationError, TimingError) as error:
                    self.add_error(name, str(error) if isinstance(error, TimingError) else error)
        if not self.errors:
            self._find_times()
        return self.cleaned_data

    def _find_times(self) -> None:
        start, end = self.cleaned_data["start_at"], self.cleaned_data["end_at"]
        try:
            self.times = backfill.due_times(self.schedule, start, end)
        except BackfillError as error:
            self.add_error("end_at", str(error))
        except TimingError as error:
            self.add_error(None, f"Its timing is at fault: {error.field}: {error}")


class BackfillForm(RangeForm):
    """Which times of the range are run, in which order, and how many at once."""

    which = forms.ChoiceField(
        label="Run", choices=Backfill.Which, initial=Backfill.Which.MISSING, widget=forms.RadioSelect
    )
    newest_first = forms.BooleanField(
        label="Order", required=False, widget=forms.Select(choices=[("", "Oldest first"), ("on", "Newest first")])
    )
    concurrency = forms.IntegerField(label="At once", min_value=1, max_value=1000, initial=1)

    def count(self, times: Sequence[DueTime]) -> None:
        """Say with each choice how many of these times it would run."""
        field = self.fields["which"]
        assert isinstance(field, forms.ChoiceField)
        counts = {which: sum(time.is_chosen(which) for time in times) for which in Backfill.Which}
        field.choices = [(which, f"{which.label}: {counts[which]:,}") for which in Backfill.Which]
