"""Form fields of a schedule that Django has not: JSON that says where it is wrong, and wall times without a zone."""

import json
from datetime import datetime, tzinfo
from functools import cache
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils.dateparse import parse_datetime

from scheduling_app.json_text import LONGEST_JSON, JSONTextError, read_json
from scheduling_app.timing import clocks
from tasks_app.storable import printable

_SHAPES: dict[type, str] = {list: 'a JSON list, such as [1, "two"]', dict: 'a JSON object, such as {"name": 1}'}


class ArgumentsField(forms.CharField):
    """A JSON list or object, as the text of it; nothing typed means an empty one."""

    widget = forms.Textarea(attrs={"rows": 2, "spellcheck": "false", "class": "schedule-json"})

    def __init__(self, shape: type, **kwargs: Any) -> None:
        super().__init__(required=False, initial=shape, max_length=LONGEST_JSON, strip=False, **kwargs)
        self.shape = shape

    def to_python(self, value: Any) -> Any:
        if isinstance(value, self.shape):  # what a field holds that cannot be edited
            return value
        text = super().to_python(value) or ""
        if not text.strip():
            return self.shape()
        try:
            parsed = read_json(text)
        except JSONTextError as error:
            raise ValidationError(str(error), code="invalid") from error
        if not isinstance(parsed, self.shape):
            raise ValidationError(f"Write {_SHAPES[self.shape]}, not {_what(parsed)}.")
        return parsed

    def clean(self, value: Any) -> Any:
        if not isinstance(value, self.shape):
            self.run_validators(value or "")  # the length and NUL are those of the text
        return self.to_python(value)

    def prepare_value(self, value: Any) -> Any:
        return value if isinstance(value, str) else printable(json.dumps(value, ensure_ascii=False))

    def has_changed(self, initial: Any, data: Any) -> bool:
        if self.disabled:
            return False
        try:
            return json.dumps(self.to_python(data)) != json.dumps(initial)  # where 1, 1.0 and true are not equal
        except ValidationError:
            return True


class WallTimeField(forms.DateTimeField):
    """A time as clocks show it: naive, for the form to place in a zone; aware only where an offset was sent."""

    widget = forms.DateTimeInput(format="%Y-%m-%dT%H:%M:%S", attrs={"type": "datetime-local"})

    def prepare_value(self, value: Any) -> Any:
        return value

    def to_python(self, value: Any) -> datetime | None:
        if value in self.empty_values:
            return None
        try:
            moment = value if isinstance(value, datetime) else parse_datetime(str(value).strip())
        except ValueError:
            moment = None
        if moment is None:
            raise ValidationError("Write a date and a time, such as 2026-03-01 09:00.", code="invalid")
        if not 1970 <= moment.year < 9999:
            raise ValidationError("The year must be between 1970 and 9998.", code="invalid")
        return moment


@cache
def zones() -> list[str]:
    """The time zones that forms propose."""
    return sorted(clocks.names())


def wall(moment: datetime, zone: str) -> datetime:
    """What the clocks of a zone show at a moment, to the second."""
    try:
        return clocks.wall(clocks.zone(zone), moment).replace(microsecond=0)
    except clocks.TimingError:  # written by SQL; the form says so at the field
        return moment.replace(tzinfo=None, microsecond=0)


def placed(moment: datetime, zone: tzinfo) -> datetime:
    """A wall time in its zone; one that was sent with an offset keeps that. Raises ValidationError."""
    if moment.tzinfo:
        return moment
    found = moment.replace(tzinfo=zone)
    if said := clocks.skipped(found):
        raise ValidationError(said)
    return found


def _what(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
