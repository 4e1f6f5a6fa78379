from django.urls import path, register_converter

from tasks_app.pages import overview, task, tasks


class TaskId:
    """Any text that can be a task's id: slashes and line ends included."""

    regex = "(?s:.+)"

    def to_python(self, value: str) -> str:
        if "\x00" in value:
            raise ValueError("No text in Postgres has a NUL.")
        return value

    def to_url(self, value: str) -> str:
        return value


class TaskPart:
    """What of a task can be downloaded in full."""

    regex = "args|kwargs|result|traceback"
    to_python = to_url = staticmethod(str)


register_converter(TaskId, "task_id")
register_converter(TaskPart, "task_part")

app_name = "tasks"
# A task's id may be any text: what is done to one stands before it in the address.
urlpatterns = [
    path("", overview.overview, name="overview"),
    path("parts/", overview.parts_alive, name="parts"),
    path("tasks/", tasks.task_list, name="list"),
    path("tasks/-/revoke/<task_id:task_id>", task.revoke, name="revoke"),
    path("tasks/-/terminate/<task_id:task_id>", task.terminate, name="terminate"),
    path("tasks/-/revoke-workflow/<task_id:task_id>", task.revoke_workflow, name="revoke_workflow"),
    path("tasks/-/rerun/<task_id:task_id>", task.rerun, name="rerun"),
    path("tasks/-/<task_part:what>/<task_id:task_id>", task.task_value, name="value"),
    path("tasks/<task_id:task_id>", task.task_detail, name="detail"),
]
