"""The pages of the tasks: is it healthy, what happened, what about this one, and who may do what."""

import json
import time
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import pytest
from celery import chain, current_app
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission
from django.core.handlers.base import BaseHandler
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import resolve, reverse
from django.utils import timezone
from django.utils.html import escape
from django_celery_results.models import TaskResult
from kombu.exceptions import OperationalError

from scheduling_app.models import Schedule, ScheduleRun
from tasks_app import states
from tasks_app.client import CeleryClient
from tasks_app.exceptions import InvalidSubmission, TaskNotFound
from tasks_app.health import Health
from tasks_app.models import TaskRecord
from tasks_app.pages import overview, task, tasks
from tasks_app.pages.shell import STOP_POLLING
from tasks_app.templatetags.console import readable
from tests.sample.tasks import echo

pytestmark = pytest.mark.django_db

OVERVIEW, LIST, PARTS = reverse("tasks:overview"), reverse("tasks:list"), reverse("tasks:parts")
ACTIONS = ("revoke", "terminate", "revoke_workflow", "rerun")
HTMX = {"HX-Request": "true"}
HOSTILE = [
    "<img src=x onerror=alert(1)>",
    '"><script>alert(2)</script>',
    "</pre><script>alert(3)</script>",
    "javascript:alert(5)",
    "{{ 7|add:7 }}",
]


@pytest.fixture
def signed_in(django_user_model, client):
    def sign_in(*actions: str, is_staff: bool = True):
        user = django_user_model.objects.create(username="someone", is_staff=is_staff)
        names = [f"{action}_taskrecord" for action in actions]
        user.user_permissions.set(Permission.objects.filter(codename__in=names))
        client.force_login(user)
        return client

    return sign_in


@pytest.fixture
def viewer(signed_in):
    return signed_in("view")


@pytest.fixture
def operator(signed_in):
    return signed_in("view", "change")


def add(**fields) -> TaskRecord:
    """A record, by default of a task that waits."""
    task_id = fields.setdefault("task_id", f"task-{TaskRecord.objects.count()}")
    fields = {"name": "sample.echo", "args": ["x"], "queue": "celery_queue", "root_id": task_id} | fields
    if fields.get("state") in states.READY_STATES:
        now = timezone.now()
        fields = {"attempt": 1, "started_at": now - timedelta(seconds=2), "finished_at": now} | fields
    return TaskRecord.objects.create(**fields)


def detail(task_id: str) -> str:
    return reverse("tasks:detail", args=[task_id])


def action(name: str, task_id: str) -> str:
    return reverse(f"tasks:{name}", args=[task_id])


def shown(response) -> list[str]:
    return [record.task_id for record in response.context["records"]]


def running(**fields) -> TaskRecord:
    fields = {"state": states.STARTED, "attempt": 1, "started_at": timezone.now() - timedelta(minutes=1)} | fields
    return add(**fields)


def workflow(*state: str) -> list[TaskRecord]:
    """Tasks of one workflow, in these states."""
    return [add(root_id="task-0", state=each, started_at=timezone.now()) for each in state]


@pytest.fixture
def broadcast(monkeypatch) -> list:
    """What workers are told by the broker, instead of telling them."""
    told: list[tuple[list[str], bool]] = []
    monkeypatch.setattr(
        "celery.app.control.Control.revoke",
        lambda self, ids, *args, terminate=False, **_: told.append((ids, terminate)),
    )
    monkeypatch.setattr("django.db.transaction.on_commit", lambda action: action())  # no test's transaction commits
    return told


def said(response) -> list[str]:
    return [str(message) for message in response.context["messages"]]


# Who may see and do what


@pytest.mark.parametrize("url", [OVERVIEW, PARTS, LIST, detail("x"), "/tasks/-/args/x"])
def test_pages_ask_to_sign_in(client, url):
    response = client.get(url)
    assert response.status_code == 302
    assert response.url.startswith("/admin/login/?next=")


@pytest.mark.parametrize("url", [LIST, detail("x"), "/tasks/-/args/x"])
def test_pages_of_tasks_are_refused_without_the_permission(signed_in, url):
    assert signed_in().get(url).status_code == 403


@pytest.mark.parametrize("url", [OVERVIEW, PARTS, LIST])
def test_pages_are_refused_to_those_who_are_no_staff(signed_in, url):
    assert signed_in("view", "change", is_staff=False).get(url).status_code == 403


@pytest.mark.parametrize("name", ACTIONS)
def test_actions_take_a_post_with_a_token_from_those_who_may_change(signed_in, django_user_model, name):
    record = add()
    url = action(name, record.task_id)
    assert Client().post(url).status_code == 302
    client = signed_in("view")
    assert client.get(url).status_code == 405
    assert client.post(url).status_code == 403
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(django_user_model.objects.create_superuser("root"))
    assert strict.post(url).status_code == 403
    assert not LogEntry.objects.exists()
    assert TaskRecord.objects.get().state == states.PENDING


def test_the_overview_without_the_permission_tells_of_no_task(signed_in):
    add(state=states.FAILURE, exc_type="ValueError", exc_message="the secret of ledger-7")
    text = signed_in().get(OVERVIEW).text
    assert "ledger-7" not in text
    assert "ValueError" not in text
    assert detail("task-0") not in text


def test_buttons_that_would_be_refused_are_not_shown(signed_in):
    add()
    assert "Run it again" not in signed_in("view").get(detail("task-0")).text


# The list


def test_the_list_tells_what_happened(viewer):
    add(state=states.FAILURE, exc_type="ValueError", exc_message="no ledger")
    text = viewer.get(LIST).text
    assert "ValueError: no ledger" in text
    assert f'href="{detail("task-0")}"' in text
    assert 'data-phase="failed"' in text


def test_an_empty_list_says_what_to_do(viewer):
    assert "No tasks yet" in viewer.get(LIST).text
    assert "No task matches" in viewer.get(LIST, {"phase": "failed"}).text


@pytest.mark.parametrize(
    ("phase", "fields"),
    [
        ("scheduled", {"eta": timezone.now() + timedelta(days=1)}),
        ("queued", {}),
        ("limited", {"parked_at": timezone.now(), "limit_key": "mail"}),
        ("running", {"state": states.STARTED, "started_at": timezone.now()}),
        ("retrying", {"state": states.RETRY}),
        ("succeeded", {"state": states.SUCCESS}),
        ("failed", {"state": states.FAILURE}),
        ("revoked", {"state": states.REVOKED}),
        ("ignored", {"state": states.IGNORED}),
        ("rejected", {"state": states.REJECTED}),
    ],
)
def test_the_list_is_filtered_by_what_people_call_a_state(viewer, phase, fields):
    others = [{"state": states.SUCCESS if phase != "succeeded" else states.FAILURE}, {"state": states.STARTED}]
    wanted = add(**fields)
    for other in others[: 1 if phase == "running" else 2]:
        add(**other)
    response = viewer.get(LIST, {"phase": phase})
    assert shown(response) == [wanted.task_id]
    assert wanted.phase == phase
    assert f"</svg>{phase}</span>" in response.text, "a word beside the colour"


def test_the_list_is_filtered_by_name_whole_or_in_part(viewer):
    add(name="sample.echo"), add(name="sample.fail"), add(name="other.sample.echo")
    assert shown(viewer.get(LIST, {"q": "sample.echo"})) == ["task-0"], "a task's name is that task alone"
    assert shown(viewer.get(LIST, {"q": "AMPLE"})) == ["task-2", "task-1", "task-0"]


def test_a_search_looks_at_names_and_arguments_and_says_so(viewer):
    add(name="отчёт.北京"), add(kwargs={"who": "sample.😀"}), add(args=["北京 · Ærø"]), add(args=['a "quoted" 100%_\\'])
    assert shown(viewer.get(LIST, {"q": "北京"})) == ["task-2", "task-0"]
    assert shown(viewer.get(LIST, {"q": "😀"})) == ["task-1"]
    assert shown(viewer.get(LIST, {"q": 'a "quoted" 100%_\\'})) == ["task-3"]
    assert shown(viewer.get(LIST, {"q": "100__"})) == []
    nothing = viewer.get(LIST, {"q": "nowhere"})
    assert shown(nothing) == []
    assert "Names, ids and arguments are searched, not results." in nothing.text
    assert 'value="nowhere"' in nothing.text


def test_the_search_for_an_id_leads_to_its_page_but_never_a_live_part(viewer):
    add(task_id="a/b")
    assert viewer.get(LIST, {"q": "a/b"}).url == detail("a/b")
    assert viewer.get(LIST, {"q": "a/b"}, headers=HTMX).status_code == 200


@pytest.mark.parametrize(
    "query",
    [{"phase": "nope"}, {"q": "\x00"}, {"q": "x" * 400}, {"before": "-1"}, {"before": "9" * 30}, {"before": "zz"}],
)
def test_what_is_not_valid_is_not_asked_for(viewer, query):
    add()
    assert shown(viewer.get(LIST, query)) == ["task-0"]


def test_the_list_is_paged_by_key(viewer, monkeypatch):
    monkeypatch.setattr(tasks, "ROWS", 2)
    records = [add() for _ in range(3)]
    first = viewer.get(LIST)
    assert shown(first) == ["task-2", "task-1"]
    assert f"before={records[1].pk}" in first.text
    older = viewer.get(LIST, {"before": records[1].pk})
    assert shown(older) == ["task-0"]
    assert "every 2s" in first.text
    assert "every 2s" not in older.text, "an older page stays where one reads"


def test_large_arguments_results_and_messages_stay_out_of_the_list(viewer):
    huge = "x" * 5_000_000
    for _ in range(3):
        add(args=[huge], kwargs={"k": huge}, state=states.FAILURE, exc_type="ValueError", exc_message=huge)
    with CaptureQueriesContext(connection) as queries:
        response = viewer.get(LIST)
    assert len(response.content) < 50_000
    tasks = [query["sql"] for query in queries if 'FROM "tasks_app_taskrecord"' in query["sql"]]
    assert len(tasks) == 1
    assert "LEFT(" in tasks[0]


def test_twenty_large_tasks_are_listed_and_opened_fast(viewer):
    words = "北京 Ærø 😀 العربية"
    huge = f"{words} " * 160_000
    assert len(huge.encode()) > 5_000_000
    for _ in range(20):
        record = add(state=states.SUCCESS, result_preview=json.dumps(huge)[:200])
        TaskResult.objects.create(task_id=record.task_id, status="SUCCESS")
    TaskRecord.objects.update(args=[huge])
    TaskResult.objects.update(result=json.dumps(huge, ensure_ascii=False))
    started = time.process_time()
    response = viewer.get(LIST)
    assert time.process_time() - started < 2
    assert len(response.content) < 1_000_000
    assert response.text.count(words) >= 20
    started = time.process_time()
    response = viewer.get(detail("task-7"))
    assert time.process_time() - started < 3
    assert len(response.content) < 100_000
    assert words in response.text
    for what in ("args", "result"):
        assert f'href="{reverse("tasks:value", args=[what, "task-7"])}"' in response.text


def test_what_waits_for_a_slot_says_of_which_limit(viewer):
    add(parked_at=timezone.now() - timedelta(minutes=4), limit_key="customer 7")
    assert "waits for a slot of customer 7" in viewer.get(LIST).text
    text = viewer.get(detail("task-0")).text
    assert "waits for a slot of <code>customer 7</code> since" in text
    assert "shared by <code>customer 7</code>" in text


def test_the_list_tells_which_of_what_runs_was_asked_to_stop(viewer):
    running(cancel_at=timezone.now() - timedelta(minutes=4), exc_type="OSError", exc_message="in the run before")
    text = viewer.get(LIST).text
    assert "asked to stop" in text
    assert "OSError" not in text


def test_the_number_of_queries_does_not_grow_with_the_rows(viewer):
    def count() -> int:
        with CaptureQueriesContext(connection) as queries:
            viewer.get(LIST)
        return len(queries)

    add(state=states.FAILURE, exc_type="E", exc_message="m")
    few = count()
    for _ in range(10):
        add(state=states.FAILURE, exc_type="E", exc_message="m")
    assert count() == few


def test_what_was_typed_reads_as_it_was_typed(viewer):
    word = "北京 Ærø 😀 العربية"
    add(args=[word], kwargs={"ключ": 1})
    text = viewer.get(LIST).text
    assert word in text
    assert "ключ" in text
    assert word in viewer.get(detail("task-0")).text


@pytest.mark.parametrize(
    ("encoded", "plain"),
    [
        (r'"\u5317\u4eac"', '"北京"'),
        (r"\ud83d\ude00", "😀"),
        (r"\ud83d", "�"),
        (r"a\u53", "a"),
        ("a\\", "a"),
        (r"\\u0041", r"\\u0041"),
        (r"\\\u0041", r"\\A"),
        (r"\n\"", r"\n\""),
        ("", ""),
    ],
)
def test_the_start_of_a_json_text_is_made_readable(encoded, plain):
    assert readable(encoded) == plain


# A task's page


@pytest.mark.parametrize("task_id", ["abc", "x" * 300, "a/b", "🦄", "-/nope/x"])
def test_an_unknown_id_is_not_found(operator, task_id):
    assert operator.get(detail(task_id)).status_code == 404
    assert operator.post(action("rerun", task_id)).status_code == 404


@pytest.mark.parametrize("url", ["/tasks/%00", "/tasks/a%00b", "/tasks/%ff", "/tasks/-/nope/x"])
def test_an_address_that_can_be_no_tasks_is_not_found(viewer, url):
    assert viewer.get(url).status_code == 404


@pytest.mark.parametrize(
    "task_id", ["a/b?c=d#e", "line\nbreak\n", "ü 🦄", " ", "%41", "'\"><svg onload=alert(4)>", "a//b/"]
)
def test_any_text_can_be_an_id(operator, task_id):
    add(task_id=task_id)
    url = detail(task_id)
    assert f'href="{escape(url)}"' in operator.get(LIST).text
    assert operator.get(url).context["record"].task_id == task_id
    operator.post(action("revoke", task_id))
    assert TaskRecord.objects.get().state == states.REVOKED


def test_the_timeline_tells_what_happened_and_how_long_it_took(viewer):
    created = timezone.now() - timedelta(minutes=1)
    record = add(
        state=states.SUCCESS,
        created_at=created,
        published_at=created,
        started_at=created + timedelta(seconds=1.2),
        finished_at=created + timedelta(seconds=1.54),
        worker="celery@a",
        worker_pid=77,
        attempt=2,
    )
    record.attempts.create(
        attempt=1,
        state="RETRY",
        worker="w",
        finished_at=created,
        exc_type="OSError",
        exc_message="away",
        traceback="File 1",
    )
    text = viewer.get(detail(record.task_id)).text
    for words in (
        "created",
        "published",
        "run 1, retried",
        "OSError: away",
        "run 2 started",
        "celery@a, process 77",
    ):
        assert words in text
    assert "ran 340 ms" in text


@pytest.mark.parametrize(
    ("exc_type", "message", "word"),
    [
        ("WorkerLostError", "its lease ran out: worker celery@a was lost, or cut off, during the run", "lost"),
        ("", "its worker was told to end, and the run took longer than 60 s", "handed back"),
        ("OSError", "its worker was told to end", "retried"),
        ("", "", "retried"),
    ],
)
def test_a_run_that_did_not_finish_says_why(viewer, exc_type, message, word):
    record = running(attempt=2)
    now = timezone.now()
    record.attempts.create(attempt=1, state="RETRY", finished_at=now, exc_type=exc_type, exc_message=message)
    text = viewer.get(detail("task-0")).text
    assert f"run 1, {word}</span>" in text
    assert ": ".join(filter(None, (exc_type, message))) in text


def test_of_very_many_runs_the_newest_are_listed_and_nothing_long_of_them(viewer, monkeypatch):
    monkeypatch.setattr(task, "ATTEMPTS", 2)
    record = running(attempt=5)
    for n in range(1, 5):
        long = f"{n} {'x' * 1_000_000}"
        record.attempts.create(
            attempt=n, state="RETRY", finished_at=timezone.now(), exc_type="E", exc_message=long, traceback=long
        )
    response = viewer.get(detail("task-0"))
    assert [attempt["attempt"] for attempt in response.context["attempts"]] == [3, 4]
    assert "earlier runs are not listed" in response.text
    assert len(response.content) < 100_000
    record.attempts.filter(attempt__lt=3).delete()
    record.attempts.filter(attempt=3).update(attempt=1)
    assert "earlier runs are not listed" not in viewer.get(detail("task-0")).text


@pytest.mark.parametrize(("lost", "words"), [(0, None), (1, "1 time of 3"), (2, "2 times of 3")])
def test_how_often_it_was_lost_is_said(viewer, lost, words):
    running(lost_count=lost, max_lost=3)
    text = viewer.get(detail("task-0")).text
    assert (f"lost with its worker {words}" in text) if words else ("lost with its worker" not in text)


@pytest.mark.parametrize(
    "note", ["Cut: 3,000,000 characters as JSON, 1,048,576 are kept", "Not JSON, kept as its repr: a set is no JSON"]
)
def test_what_had_to_be_done_to_its_result_is_said(viewer, note):
    add(state=states.SUCCESS, note=note)
    TaskResult.objects.create(task_id="task-0", status="SUCCESS", result='"{1}"')
    text = viewer.get(detail("task-0")).text
    assert note in text.partition("<h2>Result</h2>")[2].partition("</section>")[0]
    add(state=states.FAILURE, exc_type="ValueError", note=note)
    assert viewer.get(detail("task-1")).text.count(note) == 1


def test_its_keys_are_shown_where_it_has_them(viewer):
    plain = add()
    add(idempotency_key="order 7", unique_key="time sample.echo 0f3a", unique_until=plain.created_at)
    add(unique_key="unfinished sample.echo 0f3b")
    text = viewer.get(detail("task-1")).text
    assert "<code>order 7</code>" in text
    assert "<code>time sample.echo 0f3a</code> until <time" in text
    assert "<code>unfinished sample.echo 0f3b</code></dd>" in viewer.get(detail("task-2")).text
    text = viewer.get(detail("task-0")).text
    assert "Idempotency key" not in text
    assert "Unique" not in text


def test_a_task_that_no_worker_knows_says_when_it_is_tried_again(viewer):
    message = "not registered in a worker: 'shop.new'"
    unknown = {"exc_type": "NotRegistered", "exc_message": message}
    at = timezone.now() + timedelta(seconds=40.5)
    add(publish_at=at, **unknown)
    text = viewer.get(detail("task-0")).text
    assert f"no worker knows this task yet: {escape(message)}, tried again <time" in text
    assert "in 40 s" in text
    add(published_at=timezone.now(), **unknown)
    text = viewer.get(detail("task-1")).text
    assert f"no worker knows this task yet: {escape(message)}<" in text
    add(state=states.FAILURE, **unknown)
    assert "yet" not in viewer.get(detail("task-2")).text
    running(**unknown)
    assert "NotRegistered" not in viewer.get(detail("task-3")).text, "one that knows it was found"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (datetime(2026, 3, 1, 10, tzinfo=UTC), '"2026-03-01T10:00:00+00:00"'),
        (date(2026, 3, 1), "2026-03-01"),
        (Decimal("1.10"), '"1.10"'),
        (UUID(int=7), '"00000000000000000000000000000007"'),
        (b"\xff", '"/w=="'),
        (float("nan"), "NaN"),
        (2**70, "1180591620717411303424"),
        ((1, 2), "1,\n    2"),
        ({1: "a"}, '"1": "a"'),
    ],
)
def test_values_that_json_has_no_word_for_are_shown_as_they_travel(viewer, value, words):
    CeleryClient().submit("sample.echo", [value], task_id="task-0")
    assert escape(words) in viewer.get(detail("task-0")).text
    assert shown(viewer.get(LIST)) == ["task-0"]


def test_what_cannot_travel_has_no_page(viewer):
    with pytest.raises(InvalidSubmission):
        CeleryClient().submit("sample.echo", [object()], task_id="never")
    assert viewer.get(detail("never")).status_code == 404
    assert shown(viewer.get(LIST)) == []


def test_its_result_its_arguments_and_its_traceback_are_shown(viewer):
    add(state=states.SUCCESS, args=[{"order": 4711}])
    TaskResult.objects.create(task_id="task-0", status="SUCCESS", result='{"sum": 42}')
    text = viewer.get(detail("task-0")).text
    assert "&quot;order&quot;: 4711" in text
    assert "&quot;sum&quot;: 42" in text


def test_frames_of_libraries_are_folded_away(viewer):
    add(state=states.FAILURE, exc_type="ValueError", exc_message="no")
    TaskResult.objects.create(task_id="task-0", status="FAILURE", traceback=TRACEBACK)
    text = viewer.get(detail("task-0")).text
    assert "1 frame of libraries" in text
    assert "/srv/shop/tasks.py" in text.split("1 frame of libraries")[1].split("</details>")[1]


def test_large_values_are_cut_and_can_be_downloaded_in_full(viewer):
    huge = "y" * 3_000_000
    add(state=states.FAILURE, args=[huge], exc_type="ValueError", exc_message=huge)
    TaskResult.objects.create(task_id="task-0", status="FAILURE", traceback=f"{TRACEBACK}\n{huge} the end")
    response = viewer.get(detail("task-0"))
    assert len(response.content) < 100_000
    assert "/srv/shop/tasks.py" in response.text
    assert "the end" in response.text
    for what in ("args", "traceback"):
        url = reverse("tasks:value", args=[what, "task-0"])
        assert f'href="{url}"' in response.text
        download = viewer.get(url)
        assert len(download.content) > len(huge)
        assert download["Content-Type"] == "text/plain; charset=utf-8"
        assert download["Content-Disposition"].startswith("attachment")


def test_markup_in_what_was_typed_or_returned_stays_text(viewer):
    for hostile in HOSTILE:
        record = add(
            name=hostile,
            args=[hostile],
            kwargs={hostile: {"__html__": hostile}},
            state=states.FAILURE,
            exc_type="ValueError",
            exc_message=hostile,
            queue=hostile,
            worker=hostile,
            note=hostile,
            idempotency_key=hostile,
            unique_key=hostile,
            limit_key=hostile,
            cancel_at=timezone.now(),
            cancel_signal=hostile[:16],
        )
        record.attempts.create(
            attempt=1,
            state="RETRY",
            finished_at=timezone.now(),
            exc_type=hostile,
            exc_message=hostile,
            traceback=hostile,
        )
        TaskResult.objects.create(task_id=record.task_id, status="FAILURE", traceback=hostile)
        done = add(state=states.SUCCESS, root_id=record.task_id, result_preview=json.dumps({"__html__": hostile}))
        TaskResult.objects.create(
            task_id=done.task_id, status="SUCCESS", result=json.dumps({"__html__": hostile, hostile: [hostile]})
        )
        add(name=hostile, exc_type="NotRegistered", exc_message=hostile, root_id=record.task_id)
        add(name=hostile, parked_at=timezone.now(), limit_key=hostile)
        schedule = Schedule.objects.create(name=hostile, description=hostile, task="sample.echo", cron="0 3 * * *")
        ScheduleRun.objects.create(
            schedule=schedule, scheduled_for=timezone.now(), outcome="fired", reason="due", record=record
        )
    pages = [LIST, f"{LIST}?q=%22%3E%3Csvg%20onload=alert(4)%3E", OVERVIEW]
    for url in pages + [detail(record.task_id) for record in TaskRecord.objects.all()]:
        text = viewer.get(url).text
        for markup in ("<img src=x", "<script>alert", "<svg onload", 'href="javascript'):
            assert markup not in text, url
    assert "{{ 7|add:7 }}" in viewer.get(LIST).text


def test_lone_surrogates_are_shown_as_their_escapes(viewer):
    add(args=["\ud800"])
    assert "\\ud800" in viewer.get(detail("task-0")).text
    assert viewer.get(LIST).status_code == 200


def test_its_schedule_its_workflow_and_its_earlier_runs_are_linked(signed_in):
    earlier, root = add(), add(name="sample.fail")
    child = add(root_id=root.task_id, parent_id=root.task_id)
    schedule = Schedule.objects.create(name="nightly", task="sample.echo", cron="0 3 * * *")
    ScheduleRun.objects.create(
        schedule=schedule, scheduled_for=timezone.now(), outcome="fired", reason="due", record=child
    )
    text = signed_in("view").get(detail(child.task_id)).text
    for url in (detail(root.task_id), detail(earlier.task_id), reverse("schedules:detail", args=[schedule.pk])):
        assert f'href="{url}"' in text


def test_of_a_wide_workflow_the_first_are_listed(viewer, monkeypatch):
    monkeypatch.setattr(task, "FAMILY", 2)
    workflow(*[states.SUCCESS] * 3)
    assert "Only the first" not in viewer.get(detail("task-0")).text
    workflow(states.SUCCESS)
    assert "Only the first 2 are listed." in viewer.get(detail("task-0")).text


# Live parts


def test_an_unfinished_task_is_asked_about_until_it_has_ended(operator):
    record = add(state=states.STARTED, started_at=timezone.now())
    assert 'hx-trigger="every 1s"' in operator.get(detail("task-0")).text
    part = operator.get(detail("task-0"), headers=HTMX)
    assert part.status_code == 200
    assert "<html" not in part.text
    assert action("terminate", "task-0") in part.text
    TaskRecord.objects.filter(pk=record.pk).update(state=states.SUCCESS, finished_at=timezone.now())
    last = operator.get(detail("task-0"), headers=HTMX)
    assert last.status_code == STOP_POLLING
    assert action("terminate", "task-0") not in last.text
    assert 'hx-trigger="every 1s"' not in operator.get(detail("task-0")).text


def test_a_page_is_asked_for_until_its_whole_workflow_has_ended(operator):
    _, other = workflow(states.SUCCESS, states.STARTED)
    assert 'hx-trigger="every 1s"' in operator.get(detail("task-0")).text
    part = operator.get(detail("task-0"), headers=HTMX)
    assert part.status_code == 200
    assert action("revoke_workflow", "task-0") in part.text
    TaskRecord.objects.filter(pk=other.pk).update(state=states.SUCCESS, finished_at=timezone.now())
    last = operator.get(detail("task-0"), headers=HTMX)
    assert last.status_code == STOP_POLLING
    assert action("revoke_workflow", "task-0") not in last.text


@pytest.mark.parametrize("url", [LIST, detail("task-0")])
def test_no_change_is_answered_without_a_body(operator, url):
    at = timezone.now() - timedelta(hours=5, minutes=1)
    record = add(created_at=at, state=states.STARTED, started_at=at)
    headers = HTMX | {"If-None-Match": operator.get(url, headers=HTMX)["ETag"]}
    unchanged = operator.get(url, headers=headers)
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    TaskRecord.objects.filter(pk=record.pk).update(queue="another")
    assert operator.get(url, headers=headers).status_code == 200


# Actions


def test_a_waiting_task_is_revoked(operator):
    add()
    response = operator.post(action("revoke", "task-0"), follow=True)
    assert said(response) == ["1 task revoked: it will not start."]
    assert TaskRecord.objects.get().state == states.REVOKED
    assert LogEntry.objects.get().change_message == "1 task revoked: it will not start."


@pytest.mark.parametrize("state", [states.SUCCESS, states.REVOKED])
@pytest.mark.parametrize("name", ["revoke", "terminate"])
def test_a_finished_task_stays_as_it_is(operator, broadcast, name, state):
    add(state=state)
    assert said(operator.post(action(name, "task-0"), follow=True)) == [
        f"0 tasks revoked: it had finished already ({state})."
    ]
    assert TaskRecord.objects.get().state == state


def test_a_running_task_is_asked_to_stop(operator, broadcast):
    running()
    words = "1 task asked to stop: its body can see it and end; it is not retried."
    response = operator.post(action("revoke", "task-0"), follow=True)
    assert said(response) == [words]
    assert broadcast == [(["task-0"], False)]
    record = TaskRecord.objects.get()
    assert (record.state, record.cancel_signal) == (states.STARTED, "")
    assert record.cancel_at is not None
    assert LogEntry.objects.get().change_message == words


def test_terminating_asks_the_workers(operator, broadcast):
    running()
    words = "1 task asked to stop: its worker kills its process."
    assert said(operator.post(action("terminate", "task-0"), follow=True)) == [words]
    assert broadcast == [(["task-0"], True)]
    record = TaskRecord.objects.get()
    assert (record.state, record.cancel_signal) == (states.STARTED, "SIGTERM")
    assert LogEntry.objects.get().change_message == words


def test_buttons_are_those_that_still_do_something(operator):
    def offered(task_id: str) -> list[str]:
        text = operator.get(detail(task_id)).text
        return [name for name in ACTIONS if action(name, task_id) in text]

    add(), running(), running(cancel_at=timezone.now()), add(state=states.SUCCESS)
    running(cancel_at=timezone.now(), cancel_signal="SIGTERM")
    assert offered("task-0") == ["revoke", "rerun"]
    assert offered("task-1") == ["revoke", "terminate", "rerun"]
    assert offered("task-2") == ["terminate", "rerun"]
    assert offered("task-3") == offered("task-4") == ["rerun"]
    text = operator.get(detail("task-1")).text
    assert "Ask to stop" in text
    assert "self.is_cancelled()" in text


@pytest.mark.parametrize(("signal", "words"), [("", "</span>"), ("SIGTERM", ", by SIGTERM</span>")])
def test_what_was_asked_to_stop_says_so_while_it_runs(viewer, signal, words):
    record = running(cancel_at=timezone.now() - timedelta(minutes=4), cancel_signal=signal)
    response = viewer.get(detail("task-0"))
    summary = response.text.partition('<p class="summary">')[2].partition("</p>")[0]
    assert "asked to stop <time" in summary
    assert f"4 min ago</time>{words}" in summary
    now = timezone.now()
    TaskRecord.objects.filter(pk=record.pk).update(state=states.REVOKED, finished_at=now, exc_type="TaskRevokedError")
    text = viewer.get(detail("task-0")).text
    assert "asked to stop <time" not in text
    assert "<span>asked to stop</span> <time" in text, "its timeline keeps it"


@pytest.mark.parametrize("name", ["revoke", "terminate"])
def test_a_broker_that_is_away_breaks_no_action(operator, monkeypatch, name):
    def away(*args, **kwargs):
        raise OperationalError("no route")

    monkeypatch.setattr("celery.app.control.Control.revoke", away)
    running()
    response = operator.post(action(name, "task-0"), follow=True)
    assert said(response)[0].startswith("1 task asked to stop")
    assert TaskRecord.objects.get().cancel_at is not None, "its worker hears of it with its next lease"
    assert LogEntry.objects.count() == 1


def test_a_whole_workflow_is_revoked(operator, broadcast):
    workflow(states.SUCCESS, states.STARTED, states.PENDING, states.RETRY)
    other = add()
    text = operator.get(detail("task-0")).text
    assert "Revoke the workflow" in text
    response = operator.post(action("revoke_workflow", "task-0"), follow=True)
    assert said(response) == ["3 tasks revoked or asked to stop."]
    assert response.redirect_chain[0][0] == detail("task-0")
    assert list(TaskRecord.objects.order_by("pk").values_list("state", flat=True)) == [
        states.SUCCESS, states.STARTED, states.REVOKED, states.REVOKED, states.PENDING,
    ]  # fmt: skip
    assert broadcast == [(["task-1"], False)]
    entry = LogEntry.objects.get()
    assert (entry.object_repr, entry.change_message) == ("sample.echo task-0", "3 tasks revoked or asked to stop.")
    assert said(operator.post(action("revoke_workflow", other.task_id), follow=True)) == [
        "1 task revoked or asked to stop."
    ]


@pytest.mark.parametrize(
    ("found", "is_offered"),
    [
        ([states.PENDING], False),
        ([states.SUCCESS, states.FAILURE], False),
        ([states.SUCCESS, states.PENDING], True),
        ([states.STARTED, states.SUCCESS], True),
    ],
)
def test_only_an_unfinished_workflow_can_be_revoked(operator, found, is_offered):
    for each in workflow(*found):
        assert (action("revoke_workflow", each.task_id) in operator.get(detail(each.task_id)).text) is is_offered


def test_a_workflow_of_which_all_was_asked_to_stop_is_followed_but_not_revoked_again(operator):
    workflow(states.SUCCESS, states.STARTED)
    TaskRecord.objects.filter(task_id="task-1").update(cancel_at=timezone.now())
    text = operator.get(detail("task-0")).text
    assert action("revoke_workflow", "task-0") not in text
    assert 'hx-trigger="every 1s"' in text


def test_who_may_only_view_is_not_offered_to_revoke_a_workflow(viewer):
    workflow(states.SUCCESS, states.PENDING)
    assert "Its workflow" in viewer.get(detail("task-0")).text
    assert action("revoke_workflow", "task-0") not in viewer.get(detail("task-0")).text


def test_a_task_is_run_again_on_its_own(operator, commits):
    due = {"__type__": "datetime", "__value__": "2026-03-01T10:00:00"}
    options = {
        "chain": [{"task": "sample.fail"}],
        "chord": {"task": "sample.fail"},
        "link": [{"task": "sample.fail"}],
        "group_index": 3,
        "time_limit": 9,
        "headers": {"tenant": "a"},
    }
    old = add(
        state=states.FAILURE,
        args=[due],
        kwargs={"k": 1},
        options=options,
        priority=2,
        root_id="r",
        parent_id="p",
        group_id="g",
    )
    with commits():
        response = operator.post(action("rerun", "task-0"), follow=True)
    new = TaskRecord.objects.exclude(pk=old.pk).get()
    assert response.redirect_chain[0][0] == detail(new.task_id)
    assert new.replay_of == old
    assert (new.name, new.args, new.kwargs, new.queue, new.priority) == (
        "sample.echo",
        [due],
        {"k": 1},
        "celery_queue",
        2,
    )
    assert (new.root_id, new.parent_id, new.group_id, new.retries, new.eta) == (new.task_id, None, None, 0, None)
    assert new.options == {"time_limit": 9, "headers": {"tenant": "a"}, "serializer": "json"}
    assert new.published_at is not None
    assert said(response) == ["1 task started: it is the one shown here."]
    assert f'href="{detail("task-0")}"' in response.text
    assert new.task_id in LogEntry.objects.get().change_message
    assert TaskRecord.objects.get(pk=old.pk).state == states.FAILURE


def test_running_an_unknown_task_again_says_so():
    with pytest.raises(TaskNotFound):
        CeleryClient().rerun("nothing")


# The overview


def test_the_overview_counts_tells_of_failures_and_what_waits(viewer):
    add(), add(eta=timezone.now() + timedelta(days=1))
    for _ in range(2):
        add(state=states.FAILURE, exc_type="ValueError", exc_message="no ledger")
    response = viewer.get(OVERVIEW)
    counts = dict(response.context["phases"])
    assert (counts["queued"], counts["scheduled"], counts["failed"], counts["succeeded"]) == (1, 1, 2, 0)
    [group] = response.context["failing"]
    assert (group["count"], group["name"], group["message"]) == (2, "sample.echo", "no ledger")
    assert detail(group["task_id"]) == detail("task-3")
    assert [(queue["queue"], queue["count"]) for queue in response.context["queues"]] == [("celery_queue", 1)]


def test_the_overview_counts_what_waits_for_a_slot(viewer):
    add(parked_at=timezone.now(), limit_key="mail"), add(parked_at=timezone.now(), state=states.RETRY), add()
    response = viewer.get(OVERVIEW)
    assert dict(response.context["phases"]) == {
        "scheduled": 0, "queued": 1, "limited": 2, "running": 0, "retrying": 0,
        "succeeded": 0, "failed": 0, "revoked": 0,
    }  # fmt: skip
    assert f'href="{LIST}?phase=limited"><b>2</b>' in response.text
    assert response.text.count("<small>now</small>") == 5


def test_the_chart_has_its_table(viewer):
    at = timezone.now().replace(second=0, microsecond=0) - timedelta(minutes=5)
    add(state=states.SUCCESS, finished_at=at), add(state=states.FAILURE, finished_at=at)
    response = viewer.get(OVERVIEW)
    [minute] = [minute for minute in response.context["minutes"] if minute.succeeded]
    assert (minute.at, minute.succeeded, minute.failed) == (at, 1, 1)
    assert isinstance(minute.at, datetime)
    assert minute.succeeded_height + minute.failed_height == 100
    assert f"<td>{at:%H:%M} UTC</td>" in response.text


def test_the_overview_asks_nothing_of_the_broker(viewer, monkeypatch):
    monkeypatch.setattr(current_app, "connection_for_write", None)
    assert PARTS in viewer.get(OVERVIEW).text


def test_parts_that_are_down_are_said(viewer, monkeypatch):
    monkeypatch.setattr(overview, "check_celery_health", lambda timeout: Health(False, "The broker does not answer."))
    assert "The broker does not answer." in viewer.get(PARTS).text
    monkeypatch.setattr(overview, "check_celery_health", lambda timeout: Health(True))
    monkeypatch.setattr(overview, "_ping", list)
    assert "python manage.py celery worker" in viewer.get(PARTS).text
    monkeypatch.setattr(overview, "_ping", lambda: ["celery@a"])
    assert 'role="alert"' not in viewer.get(PARTS).text


def test_pages_carry_nothing_inline(operator):
    add(state=states.FAILURE, exc_type="E")
    for url in (OVERVIEW, LIST, detail("task-0"), "/admin/"):
        response = operator.get(url)
        assert "default-src 'self'" in response["Content-Security-Policy"]
        for inline in ("<style", " style=", " onclick=", "<script>"):
            assert inline not in response.text, url


TRACEBACK = """Traceback (most recent call last):
  File "/srv/venv/lib/python3.11/site-packages/celery/app/trace.py", line 453, in trace_task
    R = retval = fun(*args, **kwargs)
  File "/srv/shop/tasks.py", line 12, in pay
    raise ValueError("no")
ValueError: no"""


def test_a_step_to_come_has_a_page_that_tells_its_place_and_can_be_revoked(client, admin_user):
    client.force_login(admin_user)
    result = chain(echo.si(1), echo.si(2), echo.si(3)).apply_async(countdown=60)
    page = client.get(reverse("tasks:detail", args=[result.id])).content.decode()
    assert "Still to come: a later step of a chain" in page
    first = TaskRecord.objects.get()
    assert "Still to come" in client.get(reverse("tasks:detail", args=[first.task_id])).content.decode()
    client.post(reverse("tasks:revoke", args=[result.id]))
    assert TaskRecord.objects.get(task_id=result.id).state == "REVOKED"
    assert client.get(reverse("tasks:detail", args=["nobody"])).status_code == 404


def test_arguments_are_shown_as_their_submitter_wants_them_to_be(client, admin_user):
    client.force_login(admin_user)
    result = echo.apply_async(["canary-secret"], argsrepr="(<hidden>)")
    for address in (
        reverse("tasks:list"),
        reverse("tasks:detail", args=[result.id]),
        reverse("tasks:value", args=["args", result.id]),
    ):
        page = client.get(address).content.decode()
        assert "canary-secret" not in page
        assert "hidden" in page


def test_who_is_not_signed_in_is_sent_to_where_the_project_has_people_sign_in(client, settings):
    for login_url, leads_to in (
        ("/accounts/login/", reverse("admin:login")),  # as Django has it, where there is no such page
        ("https://people.example/sign-in", "https://people.example/sign-in"),
        ("admin:password_change", reverse("admin:password_change")),
    ):
        settings.LOGIN_URL = login_url
        assert client.get(LIST).headers["Location"] == f"{leads_to}?next={LIST}"


def test_a_project_may_have_a_frame_of_its_own(client, admin_user, settings, tmp_path):
    frame = tmp_path / "taskconsole" / "base.html"
    frame.parent.mkdir()
    frame.write_text(
        "<title>Ours: {% block title %}{{ title }}{% endblock %}</title>{% block extrahead %}{% endblock %}"
        "{% block responsive %}{% endblock %}{% block content_title %}{% endblock %}{% block content %}{% endblock %}"
    )
    settings.TEMPLATES = [settings.TEMPLATES[0] | {"DIRS": [tmp_path]}]
    client.force_login(admin_user)
    task_id = echo.delay("canary").id
    schedule = Schedule.objects.create(name="canary schedule", task="sample.echo", kind="cron", cron="0 9 * * *")
    for address, shown in (
        (OVERVIEW, "Waiting in queues"),
        (LIST, "canary"),
        (reverse("tasks:detail", args=[task_id]), "Timeline"),
        (reverse("schedules:list"), "canary schedule"),
        (reverse("schedules:detail", args=[schedule.pk]), "Next ten times"),
        (reverse("schedules:backfill_choose", args=[schedule.pk]), "Show its due times"),
    ):
        page = client.get(address).content.decode()
        assert page.startswith("<title>Ours:"), address
        assert shown in page, address
        assert "dress.css" not in page


def test_no_transaction_of_a_request_is_open_while_the_broker_is_asked(monkeypatch):
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    asking = [PARTS, *(reverse(f"tasks:{name}", args=["1"]) for name in ("revoke", "terminate", "revoke_workflow"))]
    handler = BaseHandler()
    for address in asking:
        view = resolve(address).func
        assert handler.make_view_atomic(view) is view, address
    view = resolve(LIST).func
    assert handler.make_view_atomic(view) is not view
