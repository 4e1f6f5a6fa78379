"""The pages of the schedules: what runs when, what became of it, and who may do what."""

from datetime import timedelta

import pytest
from celery import current_app
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from kombu.exceptions import OperationalError

from scheduling_app.ledger import firing
from scheduling_app.models import Backfill, Schedule, ScheduleRun
from scheduling_app.pages import schedules
from tasks_app import states
from tasks_app.models import TaskRecord
from tests.scheduling_app.admin.test_schedules import make

pytestmark = pytest.mark.django_db

LIST, NEXT = reverse("schedules:list"), reverse("schedules:next")
HTMX = {"HX-Request": "true"}


@pytest.fixture
def schedule():
    return make()


@pytest.fixture
def signed_in(django_user_model, client):
    def sign_in(*actions: str, is_staff: bool = True):
        user = django_user_model.objects.create(username="someone", is_staff=is_staff)
        names = [f"{action}_schedule" for action in actions]
        user.user_permissions.set(Permission.objects.filter(codename__in=names))
        client.force_login(user)
        return client

    return sign_in


@pytest.fixture
def operator(signed_in):
    return signed_in("view", "change")


def detail(schedule: Schedule) -> str:
    return reverse("schedules:detail", args=[schedule.pk])


def action(name: str, schedule: Schedule) -> str:
    return reverse(f"schedules:{name}", args=[schedule.pk])


def said(response) -> list[str]:
    return [str(message) for message in response.context["messages"]]


def add_run(schedule: Schedule, minutes_ago: int, **fields) -> ScheduleRun:
    at = timezone.now() - timedelta(minutes=minutes_ago)
    fields = {"outcome": "skipped", "reason": "misfire", "fired_at": at + timedelta(seconds=4)} | fields
    return ScheduleRun.objects.create(schedule=schedule, scheduled_for=at, **fields)


def test_the_list_tells_what_runs_when(operator, schedule):
    add_run(schedule, 1, detail="4000 s late, 3600 s are allowed.")
    text = operator.get(LIST).text
    assert "nightly" in text
    assert "at 03:00" in text
    assert f'datetime="{schedule.next_fire_at.isoformat()}"' in text
    assert "skipped, missed: due" in text
    assert action("run", schedule) in text


def test_an_empty_list_says_what_to_do(operator):
    text = operator.get(LIST).text
    assert "No schedules yet" in text


@pytest.mark.parametrize("url", [LIST, NEXT, "/schedules/1/"])
def test_pages_ask_to_sign_in(client, url):
    response = client.get(url)
    assert response.status_code == 302
    assert response.url.startswith("/admin/login/")


@pytest.mark.parametrize("url", [LIST, NEXT, "/schedules/1/"])
def test_pages_are_refused_without_the_permission(signed_in, url):
    assert signed_in().get(url).status_code == 403


def test_pages_are_refused_to_those_who_are_no_staff(signed_in):
    assert signed_in("view", "change", is_staff=False).get(LIST).status_code == 403


@pytest.mark.parametrize("name", ["run", "pause", "resume"])
def test_actions_take_a_post_with_a_token_from_those_who_may_change(signed_in, schedule, name):
    url = action(name, schedule)
    assert Client().post(url).status_code == 302
    client = signed_in("view")
    assert client.get(url).status_code == 405
    assert client.post(url).status_code == 403
    strict = Client(enforce_csrf_checks=True)
    strict.cookies = client.cookies
    assert strict.post(url).status_code == 403
    assert not ScheduleRun.objects.exists()
    assert not LogEntry.objects.exists()
    assert Schedule.objects.get().enabled


def test_viewers_see_no_buttons_that_would_be_refused(signed_in, schedule):
    client = signed_in("view")
    for url in (LIST, detail(schedule)):
        text = client.get(url).text
        assert "nightly" in text
        assert action("run", schedule) not in text
        assert action("pause", schedule) not in text
        assert "/change/" not in text


def test_run_now_says_what_it_did_and_where_to_look(operator, schedule):
    response = operator.post(action("run", schedule), follow=True)
    assert response.redirect_chain == [(detail(schedule), 302)]
    assert said(response) == ["1 started (nightly)"]
    record = TaskRecord.objects.get()
    assert reverse("tasks:detail", args=[record.task_id]) in response.text
    assert "by someone" in response.text
    assert record.task_id in LogEntry.objects.get().change_message


def test_run_now_succeeds_while_the_broker_is_down(operator, schedule, monkeypatch, commits):
    def away(records):
        raise OperationalError("away")

    monkeypatch.setattr(current_app, "publish", away)
    with commits():
        assert operator.post(action("run", schedule)).status_code == 302
    assert TaskRecord.objects.get().state == states.PENDING


def test_run_now_of_what_cannot_run_says_why(operator, schedule):
    Schedule.objects.update(args={"not": "a list"})
    response = operator.post(action("run", schedule), follow=True)
    assert said(response)[0].startswith("0 started; not nightly: sample.echo: args must be a list")
    assert not TaskRecord.objects.exists()


def test_pause_and_resume(operator, schedule):
    assert said(operator.post(action("pause", schedule), follow=True)) == ["1 paused (nightly)."]
    assert said(operator.post(action("pause", schedule), follow=True)) == ["0 paused, 1 was so already."]
    assert Schedule.objects.get().enabled is False
    assert said(operator.post(action("resume", schedule), follow=True)) == ["1 resumed (nightly)."]
    assert Schedule.objects.get().enabled is True
    assert LogEntry.objects.count() == 2


@pytest.mark.parametrize(
    ("missed", "says", "count"),
    [
        ({}, "1 resumed (nightly).", 0),
        ({"missed": "none"}, "1 resumed (nightly).", 0),
        ({"missed": "latest"}, "1 resumed (nightly). 1 missed time runs now.", 1),
        ({"missed": "all"}, "1 resumed (nightly). 3 missed times run now.", 3),
    ],
)
def test_resume_does_with_the_missed_times_what_it_is_told(operator, missed, says, count):
    schedule = make(kind="interval", cron="", every=1, unit="hours", enabled=False)
    long_ago = timezone.now() - timedelta(hours=3, minutes=30)
    Schedule.objects.update(created_at=long_ago, switched_at=long_ago + timedelta(minutes=1))
    assert said(operator.post(action("resume", schedule), missed, follow=True)) == [says]
    assert schedule.runs.filter(outcome="waiting").count() == count
    backfills = [
        f"Backfill {backfill.pk}" in operator.get(detail(schedule)).text for backfill in Backfill.objects.all()
    ]
    logged = [entry.change_message for entry in LogEntry.objects.order_by("pk")]
    assert len(logged) == 1 + len(backfills)
    assert all(f"of {count} missed while it was paused" in words for words in logged[1:])


def test_resume_refuses_a_choice_that_is_none(operator):
    schedule = make(enabled=False)
    assert operator.post(action("resume", schedule), {"missed": "some"}).status_code == 400
    assert Schedule.objects.get().enabled is False


def test_one_that_paused_itself_says_why_and_offers_to_resume(operator, signed_in, schedule):
    Schedule.objects.set_enabled(False, "Its last 3 runs failed.")
    assert ">Its last 3 runs failed.<" in operator.get(LIST).text
    text = operator.get(detail(schedule)).text
    assert "Its last 3 runs failed." in text
    assert text.count(action("resume", schedule)) == 6, "in the banner and among the buttons, three choices each"
    Schedule.objects.set_enabled(True)
    assert "Its last 3 runs failed." not in operator.get(detail(schedule)).text


def test_an_action_leads_back_to_its_page_and_to_no_other_host(operator, schedule):
    back = f"{LIST}?q=night"
    assert operator.post(action("pause", schedule), {"next": back}).url == back
    assert operator.post(action("pause", schedule), {"next": "https://evil.example/"}).url == detail(schedule)


def test_an_action_on_a_schedule_that_is_gone_is_not_found(operator):
    assert operator.post("/schedules/99/run/").status_code == 404
    assert operator.get("/schedules/99/").status_code == 404
    assert operator.get("/schedules/99999999999999999999/").status_code == 404


def names(response) -> list[str]:
    return [row.schedule.name for row in response.context["rows"]]


def test_the_list_is_paged_by_name_both_ways(operator, monkeypatch):
    monkeypatch.setattr(schedules, "SCHEDULES", 2)
    Schedule.objects.bulk_create(Schedule(name=name, task="sample.noop", cron="* * * * *") for name in "abcde")
    first = operator.get(LIST)
    assert names(first) == ["a", "b"]
    assert "after=b" in first.text
    assert "before=" not in first.text
    assert names(operator.get(LIST, {"after": "b"})) == ["c", "d"]
    last = operator.get(LIST, {"after": "d"})
    assert names(last) == ["e"]
    assert 'rel="next"' not in last.text
    assert names(operator.get(LIST, {"before": "e"})) == ["c", "d"]
    assert names(operator.get(LIST, {"before": "c"})) == ["a", "b"]


@pytest.mark.parametrize("text", ["北京", "😀", "sample.sleep", "gets the"])
def test_text_finds_by_name_task_and_description(operator, text):
    make("plain")
    make("Wetter 北京 😀", task="sample.sleep", description="gets the weather")
    assert names(operator.get(LIST, {"q": text})) == ["Wetter 北京 😀"]


@pytest.mark.parametrize("state", ["on", "paused", "finished", "planning", "problem"])
def test_the_list_can_be_narrowed_to_a_state(operator, state):
    make("on")
    make("paused", enabled=False)
    make("finished", kind="date", cron="", run_at=timezone.now() - timedelta(days=1))
    make("problem", cron="0 0 31 2 *")
    Schedule.objects.create(name="planning", task="sample.noop", cron="* * * * *")
    response = operator.get(LIST, {"state": state})
    assert names(response) == [state]
    assert {name: count for name, _, count in response.context["states"]} == dict.fromkeys(
        ["on", "paused", "finished", "planning", "problem"], 1
    )


def test_a_problem_is_told(operator):
    schedule = make("broken", cron="0 0 31 2 *")
    assert "no date ever matches" in operator.get(detail(schedule)).text
    assert "no date ever matches" in operator.get(LIST).text


def test_a_task_that_is_gone_is_told(operator):
    schedule = make("drifted", task="gone.task")
    assert "Its times are skipped as invalid. " in operator.get(detail(schedule)).text


@pytest.mark.parametrize("query", ["q=%00", "state=x", "after=%00", "before=%00", "q=" + "x" * 1000])
def test_what_is_no_filter_is_not_asked_for(operator, schedule, query):
    response = operator.get(f"{LIST}?{query}")
    assert response.status_code == 200
    assert names(response) == ["nightly"]


def test_a_poll_is_answered_with_the_rows_alone_and_not_again_while_unchanged(operator, schedule):
    first = operator.get(LIST, headers=HTMX)
    assert "nightly" in first.text
    assert "<html" not in first.text
    assert "HX-Request" in first["Vary"]
    again = {**HTMX, "If-None-Match": first["ETag"]}
    assert operator.get(LIST, headers=again).status_code == 304
    Schedule.objects.set_enabled(False)
    assert operator.get(LIST, headers=again).status_code == 200


def test_the_list_costs_the_same_with_more_rows(operator, django_assert_max_num_queries):
    for number in range(30):
        firing.run_now(make(f"schedule {number}"))
    with django_assert_max_num_queries(8):
        operator.get(LIST)


def test_the_detail_page_tells_what_comes_and_what_was(operator, schedule):
    add_run(schedule, 5, detail="4000 s late, 3600 s are allowed.")
    text = operator.get(detail(schedule)).text
    assert text.count('class="schedule-time"') == 10
    assert "4000 s late, 3600 s are allowed." in text
    assert ">missed <" in text
    assert reverse("admin:scheduling_app_schedule_change", args=[schedule.pk]) in text


def test_the_runs_are_paged_by_their_time(operator, schedule, monkeypatch):
    monkeypatch.setattr(schedules, "RUNS", 2)
    runs = [add_run(schedule, minutes) for minutes in (1, 2, 3)]
    first = operator.get(detail(schedule))
    assert [mark.scheduled_for for mark in first.context["runs"]] == [run.scheduled_for for run in runs[:2]]
    assert "before=" in first.text
    older = operator.get(detail(schedule), {"before": runs[1].scheduled_for.isoformat()})
    assert [mark.scheduled_for for mark in older.context["runs"]] == [runs[2].scheduled_for]
    assert operator.get(detail(schedule), {"before": "\x00yesterday"}).status_code == 200


def test_the_ledger_says_what_waits_and_for_what(operator, schedule):
    backfill = Backfill.objects.create(schedule=schedule, start_at=timezone.now(), end_at=timezone.now(), total=2)
    add_run(schedule, 1, outcome="waiting", reason="overlap", detail="1 unfinished, 1 allowed.")
    add_run(schedule, 2, outcome="waiting", reason="backfill", backfill=backfill)
    add_run(schedule, 3, outcome="waiting", reason="misfire", backfill=backfill, detail="4000 s late.")
    response = operator.get(detail(schedule))
    assert [(mark.phase, mark.reason) for mark in response.context["runs"]] == [
        ("waiting", "until an earlier run has ended"),
        ("waiting", "for its turn in a backfill"),
        ("waiting", "for its turn in a backfill; before: missed"),
    ]
    assert 'data-phase="waiting"' in response.text
    assert response.context["row"].last_run_at is None, "what waits has not run"
    assert reverse("schedules:backfill", args=[backfill.pk]) in response.text


def test_the_ledger_says_when_a_run_was_fired_and_how_late(operator, schedule):
    add_run(schedule, 1, outcome="fired", reason="late")
    assert '<td class="number">4.0 s</td>' in operator.get(detail(schedule)).text
    ScheduleRun.objects.update(outcome="skipped")
    assert '<td class="number"></td>' in operator.get(detail(schedule)).text


def test_the_page_tells_policies_in_sentences_and_what_is_declared_where(operator):
    schedule = make(overlap="skip", headers={"tenant": "acme"}, max_runs=3, owner="shop")
    text = operator.get(detail(schedule)).text
    assert "While an earlier run is unfinished, the next time is skipped." in text
    assert "{&quot;tenant&quot;: &quot;acme&quot;}" in text
    assert "0 of 3 times" in text
    assert "the code of <code>shop</code>" in text


def test_a_run_whose_task_was_deleted_still_shows(operator, schedule):
    firing.run_now(schedule)
    TaskRecord.objects.all().delete()
    text = operator.get(detail(schedule)).text
    assert "run by hand" in text


def test_lone_surrogates_and_markup_in_arguments_are_shown_as_text(operator):
    schedule = make(args=["\ud800", "<script>alert(2)</script>"], kwargs={"x": "☾"})
    text = operator.get(detail(schedule)).text
    assert "\\ud800" in text
    assert "<script>alert(2)" not in text
    assert "☾" in text


def test_what_fires_next_comes_soonest_first_and_without_the_paused(operator):
    make("later", cron="0 0 1 1 *")
    make("sooner", cron="* * * * *")
    make("paused", enabled=False)
    response = operator.get(NEXT)
    assert names(response) == ["sooner", "later"]
    assert "<html" not in response.text


def test_nothing_to_fire_is_said(operator):
    assert "Nothing is due" in operator.get(NEXT).text


def test_what_no_scheduler_fired_is_shown_as_overdue(operator, schedule):
    assert "Does one run?" not in operator.get(LIST).text
    Schedule.objects.update(next_fire_at=timezone.now() - timedelta(minutes=3))
    text = operator.get(LIST).text
    assert "Does one run?" in text
    assert "3 min ago" in text


def test_the_shown_coming_times_are_those_that_fire(operator):
    schedule = make(kind="interval", cron="", every=7, unit="minutes")
    coming = operator.get(detail(schedule)).context["preview"].times
    assert coming[0].due.at == schedule.next_fire_at
    Schedule.objects.update(next_fire_at=timezone.now())
    firing.fire_due()
    assert ScheduleRun.objects.get().outcome == "fired"
    assert coming[0].due.at == Schedule.objects.get().next_fire_at


def test_a_poll_of_what_comes_next_is_answered_once(operator):
    make(cron="0 0 1 1 *")
    first = operator.get(NEXT)
    assert operator.get(NEXT, headers={"If-None-Match": first["ETag"]}).status_code == 304
