"""Form fields of a schedule that Django has not: JSON that says where it is wrong, and wall times without a zone."""

import json
import math
import re
from datetime import datetime, tzinfo
from functools import cache

from django import forms
from django.core.exceptions import ValidationError
from django.utils.dateparse import parse_datetime

from scheduling_app import clocks
from tasks_app.models import printable

#: How deep arguments may nest: whatever encodes them later does so with a deeper stack than a form's.
DEEPEST = 50
#: Characters of JSON in one field.
LONGEST = 500_000

#: What matters in a JSON text besides its strings.
_TOKEN = re.compile(
    r'"(?:\\.|[^"\\])*"|(?P<open>[\[{])|(?P<close>[\]}])|(?P<constant>-?\b(?:NaN|Infinity)\b)', re.DOTALL
)
_PYTHONS = {"True": "true", "False": "false", "None": "null"}
_SHAPES: dict[type, str] = {list: 'a JSON list, such as [1, "two"]', dict: 'a JSON object, such as {"name": 1}'}


class ArgumentsField(forms.CharField):
    """A JSON list or object, as the text of it; nothing typed means an empty one."""

    widget = forms.Textarea(attrs={"rows": 2, "spellcheck": "false", "class": "schedule-json"})

    def __init__(self, shape: type, **kwargs):
        super().__init__(required=False, initial=shape, max_length=LONGEST, strip=False, **kwargs)
        self.shape = shape

    def to_python(self, value):
        if isinstance(value, self.shape):  # what a field holds that cannot be edited
            return value
        text = super().to_python(value) or ""
        if not text.strip():
            return self.shape()
        _check_tokens(text)
        try:
            parsed = json.loads(text, parse_float=_finite)
        except json.JSONDecodeError as error:
            raise _at(text, error.pos, _hint(text, error)) from error
        except ValueError as error:
            raise ValidationError(f"A number in it is too long: {error}.") from error
        if not isinstance(parsed, self.shape):
            raise ValidationError(f"Write {_SHAPES[self.shape]}, not {_what(parsed)}.")
        return parsed

    def clean(self, value):
        if not isinstance(value, self.shape):
            self.run_validators(value or "")  # the length and NUL are those of the text
        return self.to_python(value)

    def prepare_value(self, value):
        return value if isinstance(value, str) else printable(json.dumps(value, ensure_ascii=False))

    def has_changed(self, initial, data):
        if self.disabled:
            return False
        try:
            return json.dumps(self.to_python(data)) != json.dumps(initial)  # where 1, 1.0 and true are not equal
        except ValidationError:
            return True


class WallTimeField(forms.DateTimeField):
    """A time as clocks show it: naive, for the form to place in a zone; aware only where an offset was sent."""

    widget = forms.DateTimeInput(format="%Y-%m-%dT%H:%M:%S", attrs={"type": "datetime-local"})

    def prepare_value(self, value):
        return value

    def to_python(self, value) -> datetime | None:
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


def _check_tokens(text: str) -> None:
    depth = 0
    for token in _TOKEN.finditer(text):
        depth += (token["open"] is not None) - (token["close"] is not None)
        if token["constant"]:
            raise _at(text, token.start(), f"{token['constant']} is no JSON: write a number or null")
        if depth > DEEPEST:
            raise _at(text, token.start(), f"nested more than {DEEPEST} deep")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValidationError(f"{text[:40]} is too large a number.")
    return number


def _hint(text: str, error: json.JSONDecodeError) -> str:
    found = text[error.pos :]
    if found.startswith("'"):
        return "text stands in double quotes, not in single ones"
    for python, right in _PYTHONS.items():
        if found.startswith(python):
            return f"write {right}, not {python}"
    what = f"{error.msg[0].lower()}{error.msg[1:]}"
    return f"{what}, but it ends here" if not found.strip() else what


def _at(text: str, position: int, what: str) -> ValidationError:
    line = text.count("\n", 0, position) + 1
    column = position - text.rfind("\n", 0, position)
    return ValidationError(f"line {line}, column {column}: {what}", code="invalid")


def _what(value) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
