"""What the console's pages have in common: who may see them, and their live parts.

A page's live part is its own address, asked for by htmx: the same view answers with a fragment.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from typing import Any

from django.conf import global_settings, settings
from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import NoReverseMatch, is_valid_path, reverse
from django.utils.cache import patch_cache_control, patch_vary_headers
from django_htmx.middleware import HtmxDetails

View = Callable[..., HttpResponse]

VIEW, CHANGE = "tasks_app.view_taskrecord", "tasks_app.change_taskrecord"
#: The answer at which htmx asks no more.
STOP_POLLING = 286


def staff_with(permission: str = "") -> Callable[[View], View]:
    """Let in signed-in staff with this permission; others are sent to sign in, or refused if they are."""

    def decorate(view: View) -> View:
        @wraps(view)
        def entered(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
            user = request.user
            if not user.is_authenticated:
                return redirect_to_login(request.get_full_path(), _login_url())
            if not getattr(user, "is_staff", False) or (permission and not user.has_perm(permission)):
                raise PermissionDenied
            return view(request, *args, **kwargs)

        return entered

    return decorate


def _login_url() -> str:
    """LOGIN_URL; the admin's, where a project leaves it as Django has it and there is no such page."""
    if settings.LOGIN_URL == global_settings.LOGIN_URL and not is_valid_path(settings.LOGIN_URL):
        with suppress(NoReverseMatch):
            return reverse("admin:login")
    return settings.LOGIN_URL


def is_live(request: HttpRequest) -> bool:
    """Whether htmx asks for the page's live part."""
    asked = HtmxDetails(request)  # not `request.htmx`: a project need not have the middleware
    return bool(asked) and not asked.history_restore_request


def whole_page(request: HttpRequest, template: str, context: dict[str, Any]) -> HttpResponse:
    """Render a page in its frame; `has_permission` is for a frame that a project makes of its admin's."""
    return render(request, template, {"has_permission": True} | context)


def page_or_part(request: HttpRequest, page: str, part: str, context: dict[str, Any]) -> HttpResponse:
    """Render the whole page in the site's shell, or its live part alone."""
    if is_live(request):
        response = render(request, part, context | {"is_live": True})
    else:
        response = whole_page(request, page, context)
    patch_vary_headers(response, ["HX-Request"])
    patch_cache_control(response, private=True, no_cache=True)
    return response
