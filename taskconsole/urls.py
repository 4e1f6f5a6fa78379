"""All pages of the console: `path("console/", include("taskconsole.urls"))`, under any prefix."""

from django.urls import include, path

urlpatterns = [
    path("schedules/", include("scheduling_app.urls")),
    path("", include("tasks_app.urls")),
]
