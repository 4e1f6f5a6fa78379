"""This site's: the console at the top, the admin beside it."""

from django.contrib import admin
from django.urls import include, path

admin.site.enable_nav_sidebar = False  # the console's own navigation is on every page

urlpatterns = [
    path("admin/", admin.site.urls),
    path("", include("taskconsole.urls")),
]
