from django.urls import path, re_path

from tasks_app import views

app_name = "tasks"
# A task's id may be any text, slashes included: what is done to one stands before it in the address.
urlpatterns = [
    path("", views.overview, name="overview"),
    path("parts/", views.parts_alive, name="parts"),
    path("tasks/", views.task_list, name="list"),
    path("tasks/-/revoke/<path:task_id>", views.revoke, name="revoke"),
    path("tasks/-/terminate/<path:task_id>", views.terminate, name="terminate"),
    path("tasks/-/rerun/<path:task_id>", views.rerun, name="rerun"),
    re_path(r"^tasks/-/(?P<what>args|kwargs|result)/(?P<task_id>.+)$", views.task_value, name="value"),
    path("tasks/<path:task_id>", views.task_detail, name="detail"),
]
