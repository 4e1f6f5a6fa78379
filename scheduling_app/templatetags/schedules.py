from functools import cache
from typing import Any

from django import template
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from scheduling_app.ledger.marks import Mark
from scheduling_app.sources import drift
from tasks_app.templatetags.console import exact

register = template.Library()


@register.simple_tag
def outcome(mark: Mark) -> SafeString:
    """A small mark for what became of a run, in the colour and shape of its state; it leads to the task."""
    said = f"{mark.phase}, {mark.reason}: due {exact(mark.scheduled_for)}" + (f". {mark.detail}" if mark.detail else "")
    if mark.task_id:
        return format_html(
            '<a href="{}" title="{}">{}</a>', reverse("tasks:detail", args=[mark.task_id]), said, _drawn(mark.phase)
        )
    return format_html('<span title="{}">{}</span>', said, _drawn(mark.phase))


@register.simple_tag
def phase(mark: Mark) -> SafeString:
    """What became of a run: colour, icon and word."""
    return _drawn(mark.phase)


@register.inclusion_tag("scheduling_app/_drift.html")
def drift_banner() -> dict[str, Any]:
    """Which schedules would not run, as far as this process knows by now; nothing where all would."""
    return {"drift": drift.watch.latest()}


@register.simple_tag
def drawn(phase: str) -> SafeString:
    """The same of a phase's name."""
    return _drawn(phase)


@cache
def _drawn(phase: str) -> SafeString:
    """Hundreds of them stand on a page."""
    return render_to_string("tasks_app/_state.html", {"phase": phase})
