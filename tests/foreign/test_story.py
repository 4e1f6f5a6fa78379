"""The console in somebody else's project: one story, in a project as it comes, and in one where all is otherwise."""

import re
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from tests.acceptance.processes import eventually
from tests.foreign.shop import Shop, Visitor

VARIATIONS = {
    "as projects come": {},
    "all is otherwise": {
        "SHOP_USE_TZ": "0",
        "SHOP_TIME_ZONE": "Europe/Berlin",
        "SHOP_LANGUAGE": "de",
        "SHOP_SCRIPT_NAME": "/ops-app",
        "SHOP_NAMESPACE": "SHOP_CELERY",
        "SHOP_ADMIN": "plain",
        "SHOP_SECOND_APP": "1",
        "SHOP_REPLICA": "shop_replica",
        "SHOP_LOGIN_URL": "/ops-app/office/login/",
    },
}
#: What the schedule's form is sent with.
SCHEDULE = {
    **{"task": "orders.tasks.report", "args": '["hourly"]', "kwargs": "{}", "headers": "{}", "kind": "interval"},
    **{"every": "1", "unit": "hours", "enabled": "on", "initial-enabled": "on", "jitter": "0"},
    **{"catch_up": "latest", "misfire_grace_time": "3600", "overlap": "skip", "max_instances": "1"},
}


@pytest.fixture(scope="module", params=VARIATIONS.values(), ids=VARIATIONS.keys())
def shop(request, make_shop) -> Shop:
    return make_shop(**request.param)


@pytest.fixture(scope="module")
def visitor(shop: Shop) -> Visitor:
    return shop.open()


@pytest.fixture(scope="module")
def signed_in(visitor: Visitor) -> Visitor:
    page = visitor.sign_in(f"{visitor.prefix}/ops/")
    assert page.status == 200, page.text
    assert page.url == f"{visitor.prefix}/ops/"
    return visitor


def test_the_checks_have_nothing_to_say(shop):
    said = shop.manage(
        "check", "--database", "default", "--fail-level", "WARNING", fails="SHOP_SECOND_APP" in shop.environment
    )
    if "SHOP_SECOND_APP" in shop.environment:
        assert "'partners' is no RecordingCelery" in said
        assert "1 issue" in said


def test_no_migration_is_missing(shop):
    shop.manage("makemigrations", "--check", "--dry-run")


def test_a_task_sent_in_a_request_runs_after_it_and_its_page_says_so(shop, signed_in):
    task_id = signed_in.get("/order/kettle/").text
    shop.record("orders.tasks.mail_customer")
    page = signed_in.get(f"/ops/tasks/{task_id}")
    assert page.status == 200
    assert "kettle is on its way from harbour" in page.text
    assert shop.record("orders.tasks.mail_customer")["queue"] == "mail"


def test_what_a_failed_request_sent_is_taken_back_with_it(shop, signed_in):
    before = shop.rows("SELECT count(*) FROM tasks_app_taskrecord")
    assert signed_in.get("/order/teapot/").status == 500
    assert shop.rows("SELECT count(*) FROM tasks_app_taskrecord") == before


def test_times_on_a_page_are_those_of_the_projects_zone(shop, signed_in):
    signed_in.get("/order/clock/")
    record = shop.record("orders.tasks.report", "PENDING")
    page = signed_in.get(f"/ops/tasks/{record['task_id']}")
    assert "in 59 min" in page.text
    assert f'<time datetime="{record["eta"].astimezone(UTC).isoformat()}"' in page.text
    zone = ZoneInfo(shop.environment.get("SHOP_TIME_ZONE", "UTC"))
    assert f">{record['eta'].astimezone(zone):%a %Y-%m-%d %H:%M:%S}" in page.text


def test_a_task_that_waits_is_revoked(shop, signed_in):
    signed_in.get("/order/lamp/")
    record = shop.record("orders.tasks.report", "PENDING")
    page = signed_in.press(signed_in.get(f"/ops/tasks/{record['task_id']}"), "/revoke/")
    assert "1 task revoked" in page.text
    assert shop.record("orders.tasks.report", "REVOKED")["task_id"] == record["task_id"]


def test_every_page_answers_under_the_projects_own_policy(signed_in):
    for path in ("", "parts/", "tasks/", "tasks/?phase=succeeded&q=ship", "schedules/", "schedules/next/"):
        page = signed_in.get(f"/ops/{path}")
        assert page.status == 200, f"{path}: {page.text[:2000]}"
        assert page.headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert not re.findall(r"<[^>]*\s(?:on\w+|style)=[^>]*>|<style|<script(?![^>]*\ssrc=)", page.text), path


@pytest.fixture(scope="module")
def schedule(shop: Shop, signed_in: Visitor) -> dict:
    """One that was made in the project's own admin, due once it is."""
    address = "/office/scheduling_app/schedule/add/"
    form = signed_in.get(address)
    assert form.status == 200, form.text
    assert "The shop's office" in form.text
    token = form.text.partition('name="csrfmiddlewaretoken" value="')[2].partition('"')[0]
    due = datetime.now(UTC) - timedelta(hours=1) + timedelta(seconds=2)
    answer = signed_in.post(
        signed_in.prefix + address, csrfmiddlewaretoken=token, name="hourly report", timezone="UTC",
        start_at=f"{due:%Y-%m-%dT%H:%M:%S}", **SCHEDULE,
    )  # fmt: skip
    (made,) = shop.rows("SELECT * FROM scheduling_app_schedule") or [answer.text]
    return made


def test_a_schedule_of_the_projects_admin_fires_and_shows_its_run(shop, signed_in, schedule):
    fired = shop.record("orders.tasks.report")
    assert fired["queue"] == "slow"
    page = signed_in.get(f"/ops/schedules/{schedule['id']}/")
    assert fired["task_id"][:8] in page.text
    assert "succeeded" in page.text
    listed = signed_in.get("/office/scheduling_app/schedule/")
    assert "hourly report" in listed.text
    assert signed_in.get(f"/office/scheduling_app/schedule/{schedule['id']}/change/").status == 200


def test_a_schedule_is_run_by_hand_paused_and_resumed(shop, signed_in, schedule):
    def state() -> bool:
        return shop.rows("SELECT enabled FROM scheduling_app_schedule")[0]["enabled"]

    page = signed_in.get(f"/ops/schedules/{schedule['id']}/")
    ran = signed_in.press(page, "/run/")
    assert "1 started" in ran.text
    signed_in.press(page, "/pause/")
    assert not state()
    signed_in.press(signed_in.get(f"/ops/schedules/{schedule['id']}/"), "/resume/")
    assert state()
    said = "SELECT change_message FROM django_admin_log WHERE change_message LIKE 'Run by hand%%'"
    eventually(lambda: shop.rows(said), 5, "the history of what was done")


def test_the_terminal_acts_as_an_account_of_the_projects_own_model(shop, schedule):
    assert "hourly report" in shop.manage("schedules", "list")
    assert "hourly report: started" in shop.manage("schedules", "run", "hourly report")
    assert shop.rows("SELECT 1 FROM accounts_member WHERE email LIKE '%%@terminal'")


def test_the_ledger_holds(shop, schedule):
    shop.manage("doctor", "--ledger")


def test_the_projects_own_pages_are_as_they_were(signed_in):
    assert "orders at the harbour" in signed_in.get("/").text
    assert "tasks_app" not in signed_in.get("/").text
    office = signed_in.get("/office/")
    assert "The shop's office" in office.text
    assert "console.css" not in office.text
    assert "/office/django_celery_beat/" in office.text


def test_the_projects_own_tests_pass(shop):
    assert " passed" in shop.run_pytest()
