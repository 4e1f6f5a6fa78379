"""The pages of backfills: which due times of a range are to run, how far that is, and who may do what."""

from datetime import UTC, datetime, timedelta

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from scheduling_app.ledger import backfill
from scheduling_app.ledger.waiting import release_waiting
from scheduling_app.models import Backfill, Schedule, ScheduleRun
from scheduling_app.pages import backfills
from scheduling_app.pages.progress import progress_of
from tasks_app.models import TaskRecord
from tasks_app.states import READY_STATES
from tests.scheduling_app.admin.test_schedules import make
from tests.scheduling_app.pages import test_schedules as pages
from tests.scheduling_app.pages.test_schedules import HTMX, detail, said

pytestmark = pytest.mark.django_db
signed_in, operator = pages.signed_in, pages.operator

DAY = datetime(2026, 3, 2, tzinfo=UTC)
RANGE = {"start_at": "2026-03-02T01:00", "end_at": "2026-03-02T06:00"}
START = RANGE | {"which": "missing", "newest_first": "", "concurrency": "2"}


@pytest.fixture
def schedule():
    """Every hour in Berlin, where the range above is from 0 to 5 o'clock UTC: six due times."""
    return make(cron="0 * * * *", timezone="Europe/Berlin")


def page(schedule: Schedule) -> str:
    return reverse("schedules:backfill_choose", args=[schedule.pk])


def begin(schedule: Schedule) -> str:
    return reverse("schedules:backfill_start", args=[schedule.pk])


def url(begun: Backfill, action: str = "") -> str:
    return reverse(f"schedules:backfill{action and f'_{action}'}", args=[begun.pk])


def add_run(schedule: Schedule, hour: int, outcome: str = "skipped", reason: str = "misfire", state: str = "") -> None:
    task_id = f"task-of-{hour}"
    if state:
        ended = {"finished_at": timezone.now()} if state in READY_STATES else {}
        TaskRecord.objects.create(task_id=task_id, name="sample.echo", root_id=task_id, queue="q", state=state, **ended)
    ScheduleRun.objects.create(
        schedule=schedule,
        scheduled_for=DAY + timedelta(hours=hour),
        outcome="fired" if state else outcome,
        reason="due" if state else reason,
        record_id=task_id if state else None,
    )


def started(schedule: Schedule, **options) -> Backfill:
    times = backfill.due_times(schedule, DAY, DAY + timedelta(hours=5))
    return backfill.start(schedule, times, **options)


# Choosing


def test_a_range_of_the_past_day_is_proposed_and_nothing_is_asked_for_yet(operator, schedule):
    response = operator.get(page(schedule))
    assert response.context["choices"] is None
    proposed = response.context["form"]
    assert proposed["end_at"].value() - proposed["start_at"].value() == timedelta(days=1)
    assert "Europe/Berlin" in response.text


def test_the_preview_shows_what_the_ledger_has_and_how_many_each_choice_would_run(operator, schedule):
    add_run(schedule, 0, state="SUCCESS")
    add_run(schedule, 1, state="FAILURE")
    add_run(schedule, 2)
    add_run(schedule, 3, state="STARTED")
    response = operator.get(page(schedule), RANGE)
    shown = [(f"{local:%H:%M}", time.mark and time.mark.phase) for time, local in response.context["times"]]
    assert shown == [
        ("01:00", "succeeded"), ("02:00", "failed"), ("03:00", "skipped"), ("04:00", "running"), ("05:00", None),
        ("06:00", None),
    ]  # fmt: skip
    for words in ("Those that did not run: 3", "Those that failed: 1", "All of them: 5"):
        assert words in response.text
    assert reverse("tasks:detail", args=["task-of-1"]) in response.text
    assert not Backfill.objects.exists()


def test_a_long_preview_is_cut_and_says_how_much_is_missing(operator, schedule, monkeypatch):
    monkeypatch.setattr(backfills, "TIMES", 2)
    response = operator.get(page(schedule), RANGE)
    assert len(response.context["times"]) == 2
    assert "And 4 more." in response.text
    assert "6 due times" in response.text


def test_what_the_ledger_no_longer_keeps_is_said_to_be_so_and_not_taken_for_missing(operator, schedule, settings):
    settings.SCHEDULE_RUNS_KEPT = 1
    add_run(schedule, 4, state="SUCCESS")
    text = operator.get(page(schedule), RANGE).text
    assert text.count("no longer kept") == 4
    assert "Those that did not run: 1" in text


@pytest.mark.parametrize(
    ("changes", "field", "says"),
    [
        ({"start_at": "yesterday"}, "start_at", "Write a date and a time"),
        ({"end_at": ""}, "end_at", "required"),
        ({"end_at": "2026-03-01T00:00"}, "end_at", "ends before it starts"),
        ({"start_at": "1990-01-01T00:00"}, "end_at", "More than 10,000 due times: choose a shorter range."),
        ({"start_at": "2999-01-01T00:00", "end_at": "2999-01-01T00:00"}, "end_at", "in the future"),
        ({"start_at": "2025-03-30T02:30"}, "start_at", "does not exist on that day"),
        ({"start_at": "\x00"}, "start_at", "Write a date and a time"),
    ],
)
def test_a_range_that_cannot_be_is_refused_at_its_field(operator, schedule, changes, field, says):
    response = operator.get(page(schedule), RANGE | changes)
    assert response.status_code == 200
    assert list(response.context["form"].errors) == [field]
    assert says in response.context["form"].errors[field][0]
    assert response.context["choices"] is None
    assert operator.post(begin(schedule), START | changes).status_code == 200
    assert not Backfill.objects.exists()


@pytest.mark.parametrize("fields", [{"timezone": "Mars"}, {"cron": "61 * * * *"}])
def test_a_schedule_at_fault_has_no_due_times(operator, schedule, fields):
    Schedule.objects.update(**fields)
    response = operator.get(page(schedule), RANGE)
    assert response.status_code == 200
    assert response.context["form"].errors


def test_a_range_without_due_times_says_so_and_offers_no_start(operator, schedule):
    response = operator.get(page(schedule), {"start_at": "2026-03-02T01:10", "end_at": "2026-03-02T01:20"})
    assert "It has none in this range." in response.text
    assert begin(schedule) not in response.text


# Starting


def test_a_start_makes_the_chosen_ones_wait_and_leads_to_their_progress(operator, schedule):
    add_run(schedule, 0, state="SUCCESS")
    response = operator.post(begin(schedule), START | {"newest_first": "on"}, follow=True)
    begun = Backfill.objects.get()
    assert response.redirect_chain == [(url(begun), 302)]
    assert said(response) == [f"Backfill {begun.pk} started: 5 due times."]
    assert (begun.which, begun.newest_first, begun.concurrency, begun.created_by) == ("missing", True, 2, "someone")
    assert begun.runs.filter(outcome="waiting").count() == 5
    assert LogEntry.objects.get().change_message == (
        f"Backfill {begun.pk} started: 5 due times from 2026-03-02 01:00:00 UTC to 2026-03-02 05:00:00 UTC, "
        "those that did not run."
    )
    assert "0 of 5 done" in response.text


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"concurrency": "0"}, "concurrency"),
        ({"concurrency": "99999"}, "concurrency"),
        ({"which": "some"}, "which"),
        ({"which": "failed"}, "which"),
    ],
)
def test_a_choice_that_cannot_be_is_refused_beside_the_preview(operator, schedule, changes, field):
    response = operator.post(begin(schedule), START | changes)
    assert list(response.context["choices"].errors) == [field]
    assert len(response.context["times"]) == 6
    assert not Backfill.objects.exists()
    assert not LogEntry.objects.exists()


# Progress


def test_the_page_tells_how_far_it_is_by_outcome(operator, schedule):
    begun = started(schedule, concurrency=3, by="someone")
    release_waiting()
    now = timezone.now()
    outcomes = [("SUCCESS", now), ("FAILURE", now), ("STARTED", None)]
    for record, (state, finished_at) in zip(TaskRecord.objects.order_by("pk"), outcomes, strict=True):
        TaskRecord.objects.filter(pk=record.pk).update(state=state, started_at=now, finished_at=finished_at)
    response = operator.get(url(begun))
    progress = response.context["progress"]
    assert dict(progress.phases) == {"succeeded": 1, "failed": 1, "running": 1, "waiting": 3}
    assert (progress.done, progress.unfinished, progress.waiting) == (2, 1, 3)
    assert "2 of 6 done" in response.text
    assert '<progress max="6" value="2"' in response.text
    assert [mark.scheduled_for.hour for mark in response.context["runs"]] == [5, 4, 3, 2, 1, 0]


def test_the_live_part_is_asked_for_until_nothing_is_left_to_wait_for(operator, schedule):
    begun = started(schedule, concurrency=6)
    live = operator.get(url(begun), headers=HTMX)
    assert live.status_code == 200
    assert "<html" not in live.text
    assert operator.get(url(begun), headers={**HTMX, "If-None-Match": live["ETag"]}).status_code == 304
    release_waiting()
    operator.post(url(begun, "cancel"))
    assert operator.get(url(begun), headers=HTMX).status_code == 200, "its tasks are unfinished"
    TaskRecord.objects.update(state="SUCCESS", finished_at=timezone.now())
    assert operator.get(url(begun), headers=HTMX).status_code == 286


def test_one_that_does_not_begin_asks_for_a_scheduler(operator, schedule):
    begun = started(schedule)
    assert "Does a scheduler run?" not in operator.get(url(begun)).text
    Backfill.objects.update(created_at=timezone.now() - timedelta(minutes=1))
    assert "Does a scheduler run?" in operator.get(url(begun)).text
    release_waiting()
    assert "Does a scheduler run?" not in operator.get(url(begun)).text


def test_it_is_paused_resumed_and_cancelled(operator, schedule):
    begun = started(schedule)
    pk = begun.pk
    assert said(operator.post(url(begun, "pause"), follow=True)) == [f"Backfill {pk} paused: what runs goes on."]
    assert Backfill.objects.get().state == "paused"
    assert said(operator.post(url(begun, "pause"), follow=True)) == [f"Backfill {pk} was not paused: it is paused."]
    assert said(operator.post(url(begun, "resume"), follow=True)) == [f"Backfill {pk} resumed: its next times run."]
    assert Backfill.objects.get().state == "running"
    cancelled = operator.post(url(begun, "cancel"), follow=True)
    assert said(cancelled) == [f"Backfill {pk} cancelled: 6 times are left as they were."]
    assert said(operator.post(url(begun, "resume"), follow=True)) == [
        f"Backfill {pk} was not resumed: it is cancelled."
    ]
    assert [entry.change_message for entry in LogEntry.objects.order_by("pk")] == [
        f"Backfill {pk} {did}." for did in ("paused", "resumed", "cancelled")
    ]
    assert not ScheduleRun.objects.filter(outcome="waiting").exists()
    assert progress_of([begun])[0].elsewhere == 6


@pytest.mark.parametrize(
    ("state", "offered"),
    [("running", ["pause", "cancel"]), ("paused", ["resume", "cancel"]), ("cancelled", []), ("finished", [])],
)
def test_a_button_is_shown_where_it_would_do_something(operator, schedule, state, offered):
    begun = started(schedule)
    Backfill.objects.update(state=state)
    text = operator.get(url(begun)).text
    assert [name for name in ("pause", "resume", "cancel") if url(begun, name) in text] == offered


def test_the_backfills_of_a_schedule_are_listed_with_their_progress_by_one_query(
    operator,
    schedule,
    django_assert_num_queries,
):
    first, second = started(schedule), started(make("other", cron="0 * * * *"), by="someone")
    release_waiting()
    TaskRecord.objects.update(state="SUCCESS", finished_at=timezone.now())
    with django_assert_num_queries(1):
        assert [progress.done for progress in progress_of([first, second])] == [1, 1]
    for text in (operator.get(detail(schedule)).text, operator.get(page(schedule)).text):
        assert url(first) in text
        assert url(second) not in text
        assert "1 of 6" in text


# Who may


@pytest.mark.parametrize("name", ["pause", "resume", "cancel"])
def test_actions_take_a_post_with_a_token_from_those_who_may_change(signed_in, schedule, name):
    begun = started(schedule)
    Backfill.objects.update(state="paused" if name == "resume" else "running")
    refused(signed_in("view"), url(begun, name), {})
    assert Backfill.objects.get().state != "cancelled"
    assert not LogEntry.objects.exists()


def test_a_start_takes_a_post_with_a_token_from_those_who_may_change(signed_in, schedule):
    refused(signed_in("view"), begin(schedule), START)
    assert not Backfill.objects.exists()
    assert not ScheduleRun.objects.exists()


def refused(viewer: Client, address: str, sent: dict) -> None:
    assert Client().post(address, sent).url.startswith("/admin/login/")
    assert viewer.get(address).status_code == 405
    assert viewer.post(address, sent).status_code == 403
    strict = Client(enforce_csrf_checks=True)
    strict.cookies = viewer.cookies
    assert strict.post(address, sent).status_code == 403


def test_those_who_may_change_need_a_token_too(operator, schedule):
    strict = Client(enforce_csrf_checks=True)
    strict.cookies = operator.cookies
    begun = started(schedule)
    assert strict.post(begin(schedule), START).status_code == 403
    assert strict.post(url(begun, "cancel")).status_code == 403
    assert Backfill.objects.get().state == "running"


def test_viewers_see_progress_and_no_buttons_and_choose_nothing(signed_in, schedule):
    begun = started(schedule)
    client = signed_in("view")
    text = client.get(url(begun)).text
    assert "0 of 6 done" in text
    assert url(begun, "pause") not in text
    assert client.get(page(schedule)).status_code == 403
    assert page(schedule) not in client.get(detail(schedule)).text


def test_pages_ask_to_sign_in_and_are_refused_without_the_permission(client, signed_in, schedule):
    addresses = [page(schedule), url(started(schedule))]
    for address in addresses:
        assert client.get(address).url.startswith("/admin/login/")
    signed_in()
    for address in addresses:
        assert client.get(address).status_code == 403


@pytest.mark.parametrize("address", ["/schedules/99/backfill/", "/schedules/backfills/99999999999999999999/"])
def test_what_is_gone_is_not_found(operator, address):
    assert operator.get(address).status_code == 404


def test_markup_in_names_and_details_is_text(operator):
    markup = '"><script>alert(1)</script>'
    schedule = make(markup, cron="0 * * * *")
    add_run(schedule, 1)
    ScheduleRun.objects.update(detail=markup)
    begun = started(schedule, by=markup)
    hostile = RANGE | {"start_at": markup}
    for response in (
        operator.get(page(schedule), RANGE),
        operator.get(page(schedule), hostile),
        operator.get(url(begun)),
    ):
        assert "&quot;&gt;&lt;script&gt;alert(1)" in response.text
        assert "<script>alert" not in response.text
    response = operator.post(url(begun, "pause"), follow=True)
    assert "<script>alert" not in response.text
