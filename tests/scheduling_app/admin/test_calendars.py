"""Calendars in the admin: their windows, in their own zone, and that one in use is not deleted."""

from datetime import UTC, datetime, timedelta

import pytest
from django.urls import reverse
from django.utils import timezone

from scheduling_app.admin.calendars import coming
from scheduling_app.models import Calendar, Schedule, Window
from tests.scheduling_app.admin import test_schedules
from tests.scheduling_app.admin.test_schedules import make

pytestmark = pytest.mark.django_db
admin_user = test_schedules.admin_user

ADD = "/admin/scheduling_app/calendar/add/"
LIST = "/admin/scheduling_app/calendar/"


def change_url(calendar: Calendar) -> str:
    return reverse("admin:scheduling_app_calendar_change", args=[calendar.pk])


def filled(*windows: dict, **changes) -> dict:
    """What a browser sends for a calendar with these windows."""
    sent = {"name": "Maintenance", "timezone": "Europe/Berlin", "description": ""} | changes
    sent |= {"windows-TOTAL_FORMS": len(windows), "windows-INITIAL_FORMS": sum("id" in each for each in windows)}
    for number, window in enumerate(windows):
        whole = {"cron": "", "minutes": "", "start_at": "", "end_at": ""} | window
        sent |= {f"windows-{number}-{name}": value for name, value in whole.items()}
    return sent


def errors(client, *windows: dict, **changes) -> list[list[str]]:
    """The fields of each window that are refused."""
    response = client.post(ADD, filled(*windows, **changes))
    assert response.status_code == 200
    assert not Calendar.objects.exists()
    return [list(each) for each in response.context["inline_admin_formsets"][0].formset.errors]


def stored(calendar: Calendar, **changes) -> dict:
    """The form of a calendar with one window, sent back with these changes of that."""
    window = calendar.windows.get()
    return {"id": window.pk, "calendar": calendar.pk} | changes


def test_a_calendar_is_added_with_its_windows_in_its_zone(admin_client):
    windows = [
        {"cron": "0 2 * * sun", "minutes": "180"},
        {"start_at": "2031-12-24T00:00", "end_at": "2031-12-27T00:00"},
    ]
    assert admin_client.post(ADD, filled(*windows)).status_code == 302
    recurring, dated = Window.objects.all()
    assert (recurring.cron, recurring.minutes, recurring.start_at) == ("0 2 * * sun", 180, None)
    assert dated.start_at == datetime(2031, 12, 23, 23, tzinfo=UTC)
    assert dated.calendar.blackout().free_from(dated.start_at) == dated.end_at


@pytest.mark.parametrize(
    ("window", "fields"),
    [
        ({"cron": "61 * * * *", "minutes": "5"}, ["cron"]),
        ({"cron": "0 0 30 2 *", "minutes": "5"}, ["cron"]),
        ({"cron": "0 2 * * *"}, ["minutes"]),
        ({"cron": "0 2 * * *", "minutes": "0"}, ["minutes"]),
        ({"cron": "0 2 * * *", "minutes": "99999999999"}, ["minutes"]),
        ({"minutes": "5"}, ["minutes"]),
        ({"start_at": "2031-12-24T00:00"}, ["cron"]),
        ({"start_at": "2031-12-24T00:00", "end_at": "2031-12-24T00:00"}, ["end_at"]),
        ({"start_at": "2031-03-30T02:30", "end_at": "2031-03-31T00:00"}, ["start_at"]),
        ({"cron": "0 2 * * *", "minutes": "5", "end_at": "2031-12-24T00:00"}, ["cron"]),
        ({"cron": "\x00", "minutes": "5"}, ["cron"]),
        ({"start_at": "tomorrow", "end_at": "2031-03-31T00:00"}, ["start_at"]),
    ],
)
def test_a_window_that_cannot_be_is_refused_at_its_field(admin_client, window, fields):
    assert errors(admin_client, window) == [fields]


def test_a_zone_that_is_none_is_refused_at_its_field(admin_client):
    response = admin_client.post(ADD, filled({"cron": "0 2 * * *", "minutes": "5"}, timezone="Europe/Berln"))
    assert "did you mean Europe/Berlin" in response.context["adminform"].form.errors["timezone"][0]
    assert not Calendar.objects.exists()


def test_an_edit_of_something_else_leaves_times_exact(admin_client):
    calendar = Calendar.objects.create(name="Maintenance", timezone="Europe/Berlin")
    second_pass = datetime(2031, 10, 26, 1, 30, 0, 123456, tzinfo=UTC)
    calendar.windows.create(start_at=second_pass, end_at=datetime(2031, 10, 27, tzinfo=UTC))
    shown = admin_client.get(change_url(calendar)).text
    assert 'value="2031-10-26T02:30:00"' in shown
    sent = stored(calendar, start_at="2031-10-26T02:30:00", end_at="2031-10-28T00:00:00")
    assert admin_client.post(change_url(calendar), filled(sent)).status_code == 302
    assert Window.objects.get().start_at == second_pass
    assert Window.objects.get().end_at == datetime(2031, 10, 27, 23, tzinfo=UTC)


def test_another_zone_moves_the_windows_with_it(admin_client):
    calendar = Calendar.objects.create(name="Maintenance", timezone="Europe/Berlin")
    calendar.windows.create(start_at=datetime(2031, 7, 1, 7, tzinfo=UTC), end_at=datetime(2031, 7, 1, 8, tzinfo=UTC))
    sent = stored(calendar, start_at="2031-07-01T09:00:00", end_at="2031-07-01T10:00:00")
    admin_client.post(change_url(calendar), filled(sent, timezone="Asia/Tokyo"))
    assert Window.objects.get().start_at == datetime(2031, 7, 1, 0, tzinfo=UTC)


def test_the_form_shows_the_next_windows_and_who_goes_by_it(admin_client):
    calendar = Calendar.objects.create(name="<b>Nights</b>", timezone="Europe/Berlin")
    calendar.windows.create(cron="0 2 * * *", minutes=60)
    make("<i>nightly</i>", blackout=calendar)
    text = admin_client.get(change_url(calendar)).text
    assert text.count(" 02:00 to 03:00</li>") == 5
    assert "&lt;i&gt;nightly&lt;/i&gt;</a>" in text
    assert "<b>Nights" not in text
    assert "<i>nightly" not in text


def test_the_form_shows_what_is_wrong_with_a_window(admin_client):
    calendar = Calendar.objects.create(name="Broken")
    calendar.windows.create(cron="61 * * * *", minutes=60)
    assert "cron: minute: 61 is not between 0 and 59" in admin_client.get(change_url(calendar)).text


def test_the_next_windows_are_those_that_are_on_or_come_the_earliest_first():
    now = datetime(2026, 3, 2, 2, 30, tzinfo=UTC)
    calendar = Calendar.objects.create(name="Two")
    calendar.windows.create(cron="0 2 * * *", minutes=60)
    for days in (-1, 1):
        start = now + timedelta(days=days)
        calendar.windows.create(start_at=start, end_at=start + timedelta(hours=1))
    starts = [start for start, _ in coming(calendar.blackout().windows, now, 3)]
    assert starts == [datetime(2026, 3, day, 2, minute, tzinfo=UTC) for day, minute in ((2, 0), (3, 0), (3, 30))]


@pytest.mark.parametrize("in_bulk", [False, True])
def test_one_that_is_used_is_not_deleted_and_the_schedules_are_named(admin_client, in_bulk):
    calendar = Calendar.objects.create(name="Used")
    make("<b>nightly</b>", blackout=calendar)
    url = LIST if in_bulk else reverse("admin:scheduling_app_calendar_delete", args=[calendar.pk])
    chosen = {"action": "delete_selected", "_selected_action": [calendar.pk]} if in_bulk else {}
    answer = admin_client.post(url, chosen | {"post": "yes"})
    assert "Schedule: &lt;b&gt;nightly&lt;/b&gt;" in answer.text
    assert Calendar.objects.exists()
    Schedule.objects.all().delete()
    admin_client.post(url, chosen | {"post": "yes"})
    assert not Calendar.objects.exists()


def test_a_page_names_so_many_schedules_and_says_that_there_are_more(admin_client):
    calendar = Calendar.objects.create(name="Used")
    Schedule.objects.bulk_create(
        Schedule(name=f"number {n}", task="sample.noop", cron="* * * * *", blackout=calendar) for n in range(30)
    )
    assert "and 10 more" in admin_client.get(change_url(calendar)).text
    page = admin_client.post(reverse("admin:scheduling_app_calendar_delete", args=[calendar.pk]), {"post": "yes"})
    assert page.text.count("Schedule: number") == 20
    assert "and more" in page.text


def test_the_list_counts_windows_and_schedules(admin_client):
    calendar = Calendar.objects.create(name="Counted")
    for hour in range(3):
        calendar.windows.create(cron=f"0 {hour} * * *", minutes=1)
    for name in "ab":
        make(name, blackout=calendar)
    text = admin_client.get(LIST).text
    assert '<td class="field-windows_count">3</td><td class="field-schedules_count">2</td>' in text


def test_calendars_have_permissions_of_their_own(client, django_user_model):
    client.force_login(django_user_model.objects.create(username="staff", is_staff=True))
    assert client.get(LIST).status_code == 403
    assert client.post(ADD, filled()).status_code == 403


def test_a_schedule_of_the_past_day_is_no_window(admin_client):
    calendar = Calendar.objects.create(name="Past")
    now = timezone.now()
    calendar.windows.create(start_at=now - timedelta(days=2), end_at=now - timedelta(days=1))
    assert "Its schedules run at all of their times." in admin_client.get(change_url(calendar)).text
