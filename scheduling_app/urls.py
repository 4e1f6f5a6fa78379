from django.urls import path

from scheduling_app.pages import backfills, schedules

app_name = "schedules"
urlpatterns = [
    path("", schedules.schedule_list, name="list"),
    path("next/", schedules.next_firings, name="next"),
    path("<int:pk>/", schedules.schedule_detail, name="detail"),
    path("<int:pk>/run/", schedules.run, name="run"),
    path("<int:pk>/pause/", schedules.pause, name="pause"),
    path("<int:pk>/resume/", schedules.resume, name="resume"),
    path("<int:pk>/backfill/", backfills.choose, name="backfill_choose"),
    path("<int:pk>/backfill/start/", backfills.start, name="backfill_start"),
    path("backfills/<int:pk>/", backfills.detail, name="backfill"),
    path("backfills/<int:pk>/pause/", backfills.pause, name="backfill_pause"),
    path("backfills/<int:pk>/resume/", backfills.resume, name="backfill_resume"),
    path("backfills/<int:pk>/cancel/", backfills.cancel, name="backfill_cancel"),
]
