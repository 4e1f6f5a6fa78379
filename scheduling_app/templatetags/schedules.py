from django import template
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import mark_safe

from scheduling_app.outlook import Mark
from tasks_app.templatetags.console import exact

register = template.Library()

SHAPES = {
    state: mark_safe(f'<svg viewBox="0 0 12 12" aria-hidden="true">{shape}</svg>')  # noqa: S308
    for state, shape in {
        "SUCCESS": '<circle cx="6" cy="6" r="4.5" class="fill"/>',
        "FAILURE": '<path d="M2 2l8 8M10 2l-8 8" class="line"/>',
        "STARTED": '<path d="M3 1.5l7 4.5-7 4.5z" class="fill"/>',
        "RETRY": '<path d="M10 6a4 4 0 1 1-1.5-3.1M10 1v2.5H7.5" class="line"/>',
        "REVOKED": '<rect x="2.5" y="2.5" width="7" height="7" class="line"/>',
        "SKIPPED": '<path d="M2 6h8" class="line"/>',
        "PENDING": '<circle cx="6" cy="6" r="4" class="line"/>',
    }.items()
}
_MARK = '<span class="schedule-mark" data-state="{0}" role="img" aria-label="{1}" title="{1}">{2}</span>'
_LINK = '<a class="schedule-mark" data-state="{0}" href="{1}" title="{2}" aria-label="{2}">{3}</a>'


@register.simple_tag
def outcome(mark: Mark) -> str:
    """A mark for what became of a run, in a shape of its own, that leads to its task."""
    said = f"{mark.word}, {mark.reason}: due {exact(mark.scheduled_for)}" + (f". {mark.detail}" if mark.detail else "")
    shape = SHAPES.get(mark.state, SHAPES["PENDING"])
    if mark.state in ("SKIPPED", "FIRED"):
        return format_html(_MARK, mark.state, said, shape)
    return format_html(_LINK, mark.state, reverse("tasks:detail", args=[mark.task_id]), said, shape)
