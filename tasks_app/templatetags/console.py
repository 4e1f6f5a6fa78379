import re
from datetime import datetime, timedelta
from typing import Any

from django import template
from django.urls import NoReverseMatch, reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe

from tasks_app import moments
from tasks_app.models import TaskRecord

register = template.Library()

UNITS = {"d": timedelta(days=1), "h": timedelta(hours=1), "min": timedelta(minutes=1), "s": timedelta(seconds=1)}


@register.simple_tag(takes_context=True)
def site_link(context: template.Context, name: str, words: str, exact: bool = False) -> SafeString | str:
    """A link to the page of this name, marked where the page shown is that, or below it; "" where there is none."""
    try:
        path = reverse(name)
    except NoReverseMatch:
        return ""
    here = context["request"].path
    is_here = here == path if exact else here.startswith(path)
    return format_html('<a href="{}"{}>{}</a>', path, mark_safe(' aria-current="page"') if is_here else "", words)


@register.simple_tag
def moment(at: datetime | None) -> str:
    """A time relative to now, exact on hover: `in 4 min`."""
    if at is None:
        return ""
    return format_html('<time datetime="{}" title="{}">{}</time>', at.isoformat(), exact(at), relative(at))


@register.filter
def exact(at: datetime) -> str:
    at = timezone.localtime(at)
    return f"{at:%a %Y-%m-%d %H:%M:%S}.{at.microsecond // 1000:03} {at:%Z}"


def relative(at: datetime) -> str:
    distance = at - moments.now()
    if abs(distance) < timedelta(seconds=1):
        return "now"
    return f"in {span(distance)}" if distance > timedelta(0) else f"{span(-distance)} ago"


@register.filter
def span(length: timedelta | None) -> str:
    """A length of time in its largest unit: `340 ms`, `1.2 s`, `4 min`."""
    if length is None:
        return ""
    for unit, size in UNITS.items():
        if length >= size:
            amount = length / size
            return f"{amount:.1f} {unit}" if unit == "s" and amount < 10 else f"{int(amount)} {unit}"
    return f"{max(length, timedelta(0)) / timedelta(milliseconds=1):.0f} ms"


@register.filter
def thousands(count: int) -> str:
    return f"{count:,}"


@register.inclusion_tag("tasks_app/_state.html")
def state(record: TaskRecord) -> dict[str, str]:
    """A task's state: colour, icon and word."""
    return {"phase": record.phase}


@register.filter
def outcome(attempt: dict[str, Any]) -> str:
    """What became of a run that did not finish its task."""
    if attempt["exc_type"] == "WorkerLostError":
        return "lost"
    if not attempt["exc_type"] and attempt["exc_message_start"].startswith("its worker was told to end"):
        return "handed back"
    return "retried"


@register.filter
def why(attempt: dict[str, Any]) -> str:
    """The start of what it ended with: `ValueError: no ledger`."""
    return ": ".join(filter(None, (attempt["exc_type"], attempt["exc_message_start"])))


@register.filter
def readable(encoded: str) -> str:
    """The start of a JSON text, with the characters that its escapes stand for."""
    plain = _ESCAPES.sub(_unescaped, encoded)
    return plain.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


#: A character's escape, whole or cut off. Other pairs are passed over: after two backslashes, `u0041` is text.
_ESCAPES = re.compile(r"(\\[^u])|\\(?:u([0-9a-f]{4})|u?[0-9a-f]{0,3}$)")


def _unescaped(found: re.Match[str]) -> str:
    pair, code = found.groups()
    return pair or (chr(int(code, 16)) if code else "")


@register.filter
def call(record: TaskRecord) -> str:
    """The arguments as one would write them, short: `1, "a", key=2`."""
    shown = getattr(record, "shown", None) or {}  # what its submitter wants to be shown, as Celery's `argsrepr`
    words = shown.get("argsrepr") or readable(record.args_start).removeprefix("[").removesuffix("]")
    named = shown.get("kwargsrepr") or readable(record.kwargs_start)
    return ", ".join(part for part in (words, "" if named == "{}" else named) if part)
