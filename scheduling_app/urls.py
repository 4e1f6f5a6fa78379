from django.urls import path

from scheduling_app import backfill_views, views

app_name = "schedules"
urlpatterns = [
    path("", views.schedule_list, name="list"),
    path("next/", views.next_firings, name="next"),
    path("<int:pk>/", views.schedule_detail, name="detail"),
    path("<int:pk>/run/", views.run, name="run"),
    path("<int:pk>/pause/", views.pause, name="pause"),
    path("<int:pk>/resume/", views.resume, name="resume"),
    path("<int:pk>/backfill/", backfill_views.choose, name="backfill_choose"),
    path("<int:pk>/backfill/start/", backfill_views.start, name="backfill_start"),
    path("backfills/<int:pk>/", backfill_views.detail, name="backfill"),
    path("backfills/<int:pk>/pause/", backfill_views.pause, name="backfill_pause"),
    path("backfills/<int:pk>/resume/", backfill_views.resume, name="backfill_resume"),
    path("backfills/<int:pk>/cancel/", backfill_views.cancel, name="backfill_cancel"),
]
