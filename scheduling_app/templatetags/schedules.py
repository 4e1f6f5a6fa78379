from datetime import datetime, timedelta

from django import template
from django.utils import timezone
from django.utils.html import format_html

register = template.Library()

UNITS = (
    ("d", timedelta(days=1)),
    ("h", timedelta(hours=1)),
    ("min", timedelta(minutes=1)),
    ("s", timedelta(seconds=1)),
)


@register.simple_tag
def moment(at: datetime) -> str:
    """A time relative to now, exact on hover: `in 4 min`."""
    local = timezone.localtime(at)
    return format_html(
        '<time datetime="{}" title="{:%a %Y-%m-%d %H:%M:%S %Z}">{}</time>',
        at.isoformat(),
        local,
        relative(at - timezone.now()),
    )


def relative(distance: timedelta) -> str:
    """A distance from now in words, in its largest unit."""
    if abs(distance) < timedelta(seconds=1):
        return "now"
    amount = span(abs(distance))
    return f"in {amount}" if distance > timedelta(0) else f"{amount} ago"


@register.filter
def span(length: timedelta) -> str:
    """A length of time in its largest unit; below ten of them with a decimal where that is seconds."""
    for unit, size in UNITS:
        if length >= size:
            amount = length / size
            return f"{amount:.1f} {unit}" if unit == "s" and amount < 10 else f"{int(amount)} {unit}"
    return f"{length.total_seconds():.1f} s"
