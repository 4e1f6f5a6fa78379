"""The forms of the pages: a query string is checked like any other input."""

from django import forms

from tasks_app.models import PHASES


class TaskFilter(forms.Form):
    """What the list of tasks is narrowed to; whatever is not valid is not asked for."""

    phase = forms.ChoiceField(choices=[(phase, phase) for phase in PHASES], required=False)
    q = forms.CharField(max_length=255, required=False)
    before = forms.IntegerField(min_value=1, max_value=2**63 - 1, required=False)
