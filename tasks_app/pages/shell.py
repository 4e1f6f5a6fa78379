"""What the console's pages have in common: who may see them, and their live parts.

A page's live part is its own address, asked for by htmx: the same view answers with a fragment.
"""

from collections.abc import Callable

from django.contrib import admin
from django.contrib.auth.decorators import user_passes_test
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.cache import patch_cache_control, patch_vary_headers
from django_htmx.middleware import HtmxDetails

VIEW, CHANGE = "tasks_app.view_taskrecord", "tasks_app.change_taskrecord"
#: The answer at which htmx asks no more.
STOP_POLLING = 286


def staff_with(permission: str = "") -> Callable:
    """Let in signed-in staff with this permission; others are sent to log in, or refused if they are."""

    def may_enter(user) -> bool:
        if user.is_authenticated and not (user.is_staff and (not permission or user.has_perm(permission))):
            raise PermissionDenied
        return user.is_authenticated

    return user_passes_test(may_enter)


def is_live(request: HttpRequest) -> bool:
    """Whether htmx asks for the page's live part."""
    asked = HtmxDetails(request)  # not `request.htmx`: a project need not have the middleware
    return bool(asked) and not asked.history_restore_request


def page_or_part(request: HttpRequest, page: str, part: str, context: dict) -> HttpResponse:
    """Render the whole page in the site's shell, or its live part alone."""
    if is_live(request):
        response = render(request, part, context | {"is_live": True})
    else:
        response = render(request, page, admin.site.each_context(request) | context)
    patch_vary_headers(response, ["HX-Request"])
    patch_cache_control(response, private=True, no_cache=True)
    return response
