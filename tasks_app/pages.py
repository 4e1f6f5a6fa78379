"""What the console's pages have in common: who may see them, and their live parts.

A page's live part is its own address, asked for by htmx: the same view answers with a fragment.
"""

from collections.abc import Callable, Iterable
from typing import Any

from django.contrib import admin
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth.decorators import user_passes_test
from django.core.exceptions import PermissionDenied
from django.db.models import Model
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.cache import patch_cache_control, patch_vary_headers


def staff_with(permission: str = "") -> Callable:
    """Let in signed-in staff with this permission; others are sent to log in, or refused if they are."""

    def may_enter(user) -> bool:
        if user.is_authenticated and not (user.is_staff and (not permission or user.has_perm(permission))):
            raise PermissionDenied
        return user.is_authenticated

    return user_passes_test(may_enter)


def is_live(request: Any) -> bool:
    """Whether htmx asks for the page's live part."""
    return bool(request.htmx) and not request.htmx.history_restore_request


def page_or_part(request: HttpRequest, page: str, part: str, context: dict) -> HttpResponse:
    """Render the whole page in the site's shell, or its live part alone."""
    if is_live(request):
        response = render(request, part, context)
    else:
        response = render(request, page, admin.site.each_context(request) | context)
    patch_vary_headers(response, ["HX-Request"])
    patch_cache_control(response, private=True, no_cache=True)
    return response


def log(user, rows: Iterable[Model], words: str) -> None:
    """Write what someone did to these rows into their history, in the current transaction."""
    LogEntry.objects.log_actions(user.pk, rows, CHANGE, change_message=words)
