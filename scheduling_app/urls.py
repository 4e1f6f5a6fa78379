from django.urls import path

from scheduling_app import views

app_name = "schedules"
urlpatterns = [
    path("", views.schedule_list, name="list"),
    path("next/", views.next_firings, name="next"),
    path("<int:pk>/", views.schedule_detail, name="detail"),
    path("<int:pk>/run/", views.run, name="run"),
    path("<int:pk>/pause/", views.pause, name="pause"),
    path("<int:pk>/resume/", views.resume, name="resume"),
]
