"""Schedules in the admin: what is saved, previewed, run and paused there, and what its history says."""

from datetime import UTC, datetime, timedelta

import pytest
from django.contrib.admin.models import LogEntry
from django.urls import reverse
from django.utils import timezone

from scheduling_app.ledger import firing, planning
from scheduling_app.models import Calendar, Schedule, ScheduleRun
from scheduling_app.timing import kinds
from tasks_app.models import TaskRecord
from tests.scheduling_app.admin.test_forms import VECTORS, filled

pytestmark = pytest.mark.django_db

ADD = "/admin/scheduling_app/schedule/add/"
LIST = "/admin/scheduling_app/schedule/"
PREVIEW = "/admin/scheduling_app/schedule/preview/"


def change_url(schedule: Schedule) -> str:
    return reverse("admin:scheduling_app_schedule_change", args=[schedule.pk])


@pytest.fixture
def schedule():
    return make()


def make(name="nightly", **fields) -> Schedule:
    fields = {"task": "sample.echo", "args": ["hello"], "cron": "0 3 * * *"} | fields
    schedule = Schedule.objects.create(name=name, **fields)
    planning.plan_changed()
    return Schedule.objects.get(pk=schedule.pk)


@pytest.fixture
def admin_user(django_user_model):
    """A superuser without a password: hashing one would cost more than the test."""
    return django_user_model.objects.create(username="admin", is_staff=True, is_superuser=True)


@pytest.fixture
def staff(django_user_model, client):
    """A client signed in as staff with these permissions on schedules."""
    from django.contrib.auth.models import Permission

    def sign_in(*actions: str):
        user = django_user_model.objects.create(username="staff", is_staff=True)
        names = [f"{action}_schedule" for action in actions]
        user.user_permissions.set(Permission.objects.filter(codename__in=names))
        client.force_login(user)
        return client

    return sign_in


def act(client, action: str, *schedules: Schedule, **answers: str):
    chosen = [schedule.pk for schedule in schedules]
    response = client.post(LIST, {"action": action, "_selected_action": chosen} | answers, follow=True)
    return [str(message) for message in response.context["messages"]]


def test_a_schedule_is_added(admin_client):
    response = admin_client.post(ADD, filled(name="Nächtlicher Lauf ☾"), follow=True)
    assert response.redirect_chain[-1][0] == LIST
    assert "Nächtlicher Lauf ☾" in response.text
    assert Schedule.objects.get().cron == "0 3 * * *"


@pytest.mark.parametrize("expression", [each["expr"] for each in VECTORS["invalid"]])
def test_an_invalid_expression_shows_the_form_again_with_the_error_at_its_field(admin_client, expression):
    response = admin_client.post(ADD, filled(cron=expression))
    assert response.status_code == 200
    assert list(response.context["adminform"].form.errors) == ["cron"]
    assert 'id="id_cron_error"' in response.text
    assert not Schedule.objects.exists()


@pytest.mark.parametrize(
    "changes",
    [{"name": "x" * 1000}, {"name": " "}, {"args": "{'a': 1}"}, {"args": "[1,2"}, {"args": "NaN"}, {"name": "\x00"}],
)
def test_what_cannot_be_stored_is_no_server_error(admin_client, changes):
    assert admin_client.post(ADD, filled(**changes)).status_code == 200
    assert not Schedule.objects.exists()


def test_markup_in_a_schedule_is_text_everywhere(admin_client):
    markup = "<img src=x onerror=alert(1)>"
    hostile = make(name=markup, description=markup, args=[markup], task=markup, cron="0 3 * * *")
    pages = [LIST, change_url(hostile), f"{LIST}?q={markup}", f"{change_url(hostile)[:-7]}delete/"]
    for text in [admin_client.get(url).text for url in pages] + act(admin_client, "pause", hostile):
        assert "<img src=x" not in text.replace(f"({markup})", "")


def test_the_list_tells_state_words_times_and_outcomes(admin_client, schedule):
    make("paused", enabled=False)
    make("done", kind="date", cron="", run_at=timezone.now() - timedelta(days=1))
    firing.run_now(schedule)
    text = admin_client.get(LIST).text
    assert text.count(">at 03:00<") == 2
    for said in ("on", "paused", "finished"):
        assert f'data-state="{said}"' in text
    record = TaskRecord.objects.get()
    assert reverse("tasks:detail", args=[record.task_id]) in text


@pytest.mark.parametrize("state", ["on", "paused", "finished", "planning", "problem"])
def test_each_state_can_be_filtered(admin_client, state):
    make("on")
    make("paused", enabled=False)
    make("finished", kind="date", cron="", run_at=timezone.now() - timedelta(days=1))
    make("problem", cron="0 0 31 2 *")
    Schedule.objects.create(name="planning", task="sample.noop", cron="* * * * *")
    shown = admin_client.get(LIST, {"state": state}).context["cl"].result_list
    assert [each.name for each in shown] == [state]


def test_the_list_costs_the_same_with_more_rows(admin_client, django_assert_max_num_queries):
    for number in range(30):
        firing.run_now(make(f"schedule {number}"))
    with django_assert_max_num_queries(12):
        admin_client.get(LIST)


@pytest.mark.parametrize("query", ["q=%00", "task=%00", "state=%00", "kind=x", "o=99"])
def test_odd_addresses_of_the_list_are_no_server_error(admin_client, query):
    assert admin_client.get(f"{LIST}?{query}").status_code in (200, 302)


def test_run_now_uses_the_schedules_own_settings_and_changes_nothing_else(admin_client):
    schedule = make(queue="celery_queue", priority=2, expires_after=60, args=[], kwargs={"value": 7}, enabled=False)
    other = make("other")
    assert act(admin_client, "run_now", schedule) == ["1 started (nightly)"]
    record = TaskRecord.objects.get()
    assert (record.name, record.args, record.kwargs) == ("sample.echo", [], {"value": 7})
    assert (record.queue, record.priority) == ("celery_queue", 2)
    assert timedelta(seconds=50) < record.expires - timezone.now() <= timedelta(seconds=60)
    run = ScheduleRun.objects.get()
    assert (run.schedule, run.reason, run.detail, run.record) == (schedule, "manual", "by admin", record)
    assert list(Schedule.objects.order_by("pk").values()) == list_values(schedule, other)


def list_values(*schedules: Schedule) -> list[dict]:
    return [{field.attname: getattr(each, field.attname) for field in each._meta.concrete_fields} for each in schedules]


def test_run_now_on_three_runs_each_once(admin_client):
    three = [make(f"schedule {number}") for number in range(3)]
    assert act(admin_client, "run_now", *three) == ["3 started"]
    assert sorted(ScheduleRun.objects.values_list("schedule", flat=True)) == [each.pk for each in three]


def test_pause_and_resume_say_numbers_and_leave_a_history(admin_client, admin_user):
    one, two = make("one"), make("two", enabled=False)
    assert act(admin_client, "pause", one, two) == ["1 paused (one), 1 was so already."]
    assert not Schedule.objects.filter(enabled=True).exists()
    assert act(admin_client, "resume", one, two, missed="none") == ["2 resumed."]
    entries = LogEntry.objects.filter(object_id=one.pk).order_by("pk").values_list("user", "change_message")
    assert list(entries) == [(admin_user.pk, "Paused."), (admin_user.pk, "Resumed.")]
    assert [entry.change_message for entry in LogEntry.objects.filter(object_id=two.pk)] == ["Resumed."]


def test_resuming_fires_nothing_and_plans_from_now(admin_client):
    schedule = make(cron="* * * * *")
    act(admin_client, "pause", schedule)
    planning.plan_changed()
    act(admin_client, "resume", schedule, missed="none")
    planning.plan_changed()
    assert firing.fire_due() == 0
    assert Schedule.objects.get().next_fire_at > timezone.now()


def test_resuming_asks_first_what_becomes_of_missed_times(admin_client):
    schedule = make("<b>paused</b>", enabled=False)
    running = make("running")
    for answers in ({}, {"missed": "some"}):
        assert act(admin_client, "resume", running, **answers) == ["0 resumed, 1 was so already."], "nothing to ask"
    page = admin_client.post(LIST, {"action": "resume", "_selected_action": [schedule.pk, running.pk]})
    assert "1 schedule to resume: &lt;b&gt;paused&lt;/b&gt;." in page.text
    assert f'name="_selected_action" value="{schedule.pk}"' in page.text
    assert page.text.count('name="missed"') == 3
    again = {"action": "resume", "_selected_action": [schedule.pk], "missed": "some"}
    assert "not one of the available choices" in admin_client.post(LIST, again).text
    schedule.refresh_from_db()
    assert schedule.enabled is False


def test_a_copy_is_paused_and_has_a_name_of_its_own(admin_client):
    original = make("x" * 200, args=[1], overlap="skip", owner="shop", headers={"a": 1})
    firing.run_now(original)
    act(admin_client, "duplicate", original)
    said = act(admin_client, "duplicate", original)
    names = list(Schedule.objects.order_by("pk").values_list("name", flat=True))
    assert names[1:] == ["x" * 193 + " (copy)", "x" * 191 + " (copy 2)"]
    assert said == [f"1 copied, paused: {names[2]}."]
    copied = Schedule.objects.get(name=names[1])
    assert (copied.args, copied.overlap, copied.headers) == ([1], "skip", {"a": 1})
    assert (copied.enabled, copied.owner, copied.runs.count()) == (False, "", 0)
    assert LogEntry.objects.get(object_id=copied.pk).change_message == f"Copied from {original.name}."


def test_a_backfill_is_of_one_schedule(admin_client, schedule):
    chosen = {"action": "backfill", "_selected_action": [schedule.pk]}
    assert admin_client.post(LIST, chosen).url == reverse("schedules:backfill_choose", args=[schedule.pk])
    assert act(admin_client, "backfill", schedule, make("other")) == ["Choose one schedule: a backfill is of one."]


def test_the_form_of_one_that_is_declared_in_code_says_where_and_shows_what_it_does(admin_client):
    schedule = make(owner="shop", args=[1], headers={"a": 1})
    page = admin_client.get(change_url(schedule))
    assert "Declared in the code of <code>shop</code>" in page.text
    assert page.text.count('class="schedule-time"') == 10
    enabled = [name for name, field in page.context["adminform"].form.fields.items() if not field.disabled]
    assert enabled == ["enabled"]
    url = reverse("admin:scheduling_app_schedule_preview", args=[schedule.pk])
    assert admin_client.post(url, {}).text.count('class="schedule-time"') == 10
    admin_client.post(change_url(schedule), filled(cron="1 1 1 1 1"))
    assert Schedule.objects.get().cron == "0 3 * * *"


def test_editing_keeps_a_schedule_paused_and_moves_no_time(admin_client):
    schedule = make(enabled=False, description="")
    sent = {key: value for key, value in filled(name="nightly", args='["new"]').items() if key != "enabled"}
    assert admin_client.post(change_url(schedule), sent).status_code == 302
    after = Schedule.objects.get()
    assert (after.args, after.enabled, after.changed_at) == (["new"], False, None)
    assert after.next_fire_at == schedule.next_fire_at


def test_a_schedule_that_paused_itself_while_its_form_was_open_stays_paused(admin_client):
    schedule = make(description="")
    form = admin_client.get(change_url(schedule)).text
    assert 'name="initial-enabled" value="True"' in form
    Schedule.objects.filter(pk=schedule.pk).set_enabled(False, "Its last run failed.")
    sent = filled(name="nightly", args='["new"]') | {
        "enabled": "on",
        "initial-enabled": "True",
    }
    assert admin_client.post(change_url(schedule), sent).status_code == 302
    after = Schedule.objects.get()
    assert (after.args, after.enabled, after.note) == (["new"], False, "Its last run failed.")
    assert admin_client.post(change_url(schedule), sent | {"initial-enabled": "False"}).status_code == 302
    assert Schedule.objects.get().enabled


def test_the_history_names_the_changed_fields(admin_client, schedule):
    admin_client.post(change_url(schedule), filled(name="nightly", cron="0 4 * * *"))
    assert "Cron" in LogEntry.objects.get().get_change_message()


def test_the_change_form_shows_the_last_runs_and_what_comes(admin_client, schedule):
    firing.run_now(schedule, by="someone")
    text = admin_client.get(change_url(schedule)).text
    assert "by someone" in text
    assert text.count('class="schedule-time"') == 10
    assert reverse("schedules:run", args=[schedule.pk]) in text


def test_the_change_form_is_bounded_for_a_long_history(admin_client, schedule):
    now = timezone.now()
    ScheduleRun.objects.bulk_create(
        ScheduleRun(schedule=schedule, scheduled_for=now - timedelta(minutes=n), outcome="skipped", reason="misfire")
        for n in range(100)
    )
    assert len(admin_client.get(change_url(schedule)).context["runs"]) == 20


def test_the_preview_shows_the_times_that_fire(admin_client, time_machine_at):
    time_machine_at(datetime(2026, 3, 28, 12, tzinfo=UTC))
    text = admin_client.post(PREVIEW, {"kind": "cron", "cron": "30 2 * * *", "timezone": "Europe/Berlin"}).text
    assert "at 02:30" in text
    assert text.count('class="schedule-time"') == 10
    assert "2026-03-29 03:00" in text
    assert "does not exist, runs right after the gap" in text


@pytest.fixture
def time_machine_at():
    import time_machine

    travellers = []

    def travel(moment: datetime):
        travellers.append(time_machine.travel(moment, tick=False))
        travellers[-1].start()

    yield travel
    for traveller in travellers:
        traveller.stop()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"kind": "cron", "cron": "60 * * * *", "timezone": "UTC"}, "minute: 60 is not between 0 and 59"),
        ({"kind": "cron", "cron": "* * * * *", "timezone": "Mars"}, "is not a time zone"),
        ({"kind": "interval", "every": "0", "unit": "hours", "timezone": "UTC"}, "Every"),
        ({"kind": "date", "run_at": "2020-01-01T00:00", "timezone": "UTC"}, "It would not run"),
        ({"kind": "cron", "cron": "\x00<b>", "timezone": "UTC"}, "Null characters"),
        ({}, "Kind"),
    ],
)
def test_the_preview_says_what_is_wrong(admin_client, data, says):
    response = admin_client.post(PREVIEW, data)
    assert response.status_code == 200
    assert says in response.text
    assert "schedule-time" not in response.text


def test_the_preview_of_an_interval_counts_from_where_firing_does(admin_client):
    schedule = make(kind="interval", cron="", every=7, unit="hours")
    created_at = timezone.now().replace(second=7) - timedelta(days=3, minutes=11)  # seconds show where there are any
    Schedule.objects.filter(pk=schedule.pk).update(created_at=created_at)
    Schedule.objects.filter(pk=schedule.pk).update(changed_at=timezone.now())
    planning.plan_changed()
    due = Schedule.objects.get().next_fire_at
    url = reverse("admin:scheduling_app_schedule_preview", args=[schedule.pk])
    text = admin_client.post(url, {"kind": "interval", "every": "7", "unit": "hours", "timezone": "UTC"}).text
    assert f"{due:%Y-%m-%d %H:%M:%S}" in text


def test_the_preview_shows_the_jitter_that_firing_adds(admin_client):
    schedule = make(jitter=600)
    url = reverse("admin:scheduling_app_schedule_preview", args=[schedule.pk])
    text = admin_client.post(url, {"kind": "cron", "cron": "0 3 * * *", "timezone": "UTC", "jitter": "600"}).text
    due = schedule.next_fire_at
    starts = kinds.jittered(schedule.pk, due, 600, due + timedelta(days=1))
    assert f"{starts:%H:%M:%S}" in text
    new = admin_client.post(PREVIEW, {"kind": "cron", "cron": "0 3 * * *", "timezone": "UTC", "jitter": "600"}).text
    assert "up to 600 s later" in new


def test_the_preview_says_what_the_policies_do_as_they_are_typed(admin_client):
    calendar = Calendar.objects.create(name="<b>Nights</b>")
    calendar.windows.create(cron="0 2 * * *", minutes=120)
    text = admin_client.post(
        PREVIEW, filled(overlap="cancel", blackout=calendar.pk, max_runs="2", max_retries="1")
    ).text
    assert "the next time cancels what is unfinished, and runs" in text
    assert text.count("skipped: in a window of &lt;b&gt;Nights&lt;/b&gt;") == 10
    assert "A run that fails is repeated up to once, at once." in text
    assert "It is finished when it has fired twice" in text


def test_a_form_with_an_error_elsewhere_still_shows_what_it_can(admin_client):
    text = admin_client.post(PREVIEW, filled(expires_after="x", soft_time_limit="9", time_limit="9")).text
    assert text.count('class="schedule-time"') == 10
    assert "Enter a whole number." in text
    assert "Must be below the time limit" in text
    assert "is killed after" not in text
    assert "by the next due time" not in text, "which depends on the field that is wrong"
    text = admin_client.post(PREVIEW, filled(cron="61 * * * *", overlap="skip")).text
    assert "While an earlier run is unfinished, the next time is skipped." in text


def test_the_preview_is_for_staff_who_may_view_or_add(client, staff):
    data = {"kind": "cron", "cron": "* * * * *", "timezone": "UTC"}
    assert client.post(PREVIEW, data).status_code == 302
    assert staff("view").post(PREVIEW, data).status_code == 200


def test_the_preview_can_be_asked_for_by_get_and_by_those_who_only_add(staff):
    text = staff("add").get(PREVIEW, {"kind": "cron", "cron": "@daily", "timezone": "UTC"}).text
    assert "at 00:00" in text
    assert text.count('class="schedule-time"') == 10


def test_those_who_only_add_get_the_form(staff):
    client = staff("add")
    assert client.get(ADD).status_code == 200
    client.post(ADD, filled())
    assert Schedule.objects.get().name == "Nightly"


def test_the_preview_is_refused_without_permission(staff):
    assert staff().post(PREVIEW, {}).status_code == 403


def test_viewers_are_led_to_the_schedules_page_and_are_offered_no_action(staff, schedule):
    client = staff("view")
    assert client.get(change_url(schedule)).url == reverse("schedules:detail", args=[schedule.pk])
    assert client.post(change_url(schedule), filled(cron="1 1 1 1 1")).status_code == 302
    assert '<option value="pause">' not in client.get(LIST).text
    client.post(LIST, {"action": "pause", "_selected_action": [schedule.pk]})
    assert Schedule.objects.get().enabled is True
    assert Schedule.objects.get().cron == "0 3 * * *"


def test_a_schedule_with_many_runs_is_deleted_in_numbers(admin_client, schedule):
    now = timezone.now()
    ScheduleRun.objects.bulk_create(
        ScheduleRun(schedule=schedule, scheduled_for=now - timedelta(minutes=n), outcome="skipped", reason="misfire")
        for n in range(50)
    )
    url = reverse("admin:scheduling_app_schedule_delete", args=[schedule.pk])
    page = admin_client.get(url)
    assert ("schedule runs", 50) in page.context["model_count"]
    admin_client.post(url, {"post": "yes"})
    assert not ScheduleRun.objects.exists()
    assert "nightly" in LogEntry.objects.get().object_repr


def test_deleting_selected_ones_works(admin_client, schedule):
    other = make("other")
    admin_client.post(LIST, {"action": "delete_selected", "_selected_action": [schedule.pk], "post": "yes"})
    assert list(Schedule.objects.all()) == [other]
