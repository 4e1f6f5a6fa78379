"""The whole story, in a real browser on real processes."""

import re
from uuid import uuid4

import pytest
from playwright.sync_api import Page, expect

from scheduling_app.models import Schedule
from tasks_app.client import CeleryClient
from tests.acceptance.processes import eventually
from tests.browser.conftest import sign_in

pytestmark = pytest.mark.usefixtures("worker", "scheduler")


def test_from_signing_in_to_a_paused_schedule(page: Page, admin):
    name = f"Every second {uuid4()}"
    sign_in(page, admin)
    page.get_by_role("link", name="Admin").first.click()
    page.get_by_role("row", name="Schedules").get_by_role("link", name="Add").click()
    page.get_by_label("Name").fill(name)
    page.get_by_label("Task", exact=True).select_option("number_sum")
    page.get_by_label("Arguments", exact=True).fill("[20, 22]")
    page.get_by_label("Interval").check()
    page.get_by_label("Every").fill("1")
    page.get_by_label("Unit").select_option("seconds")
    expect(page.locator(".schedule-preview")).to_contain_text("every second")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text("was added successfully")).to_be_visible()

    page.goto("/tasks/?q=number_sum")
    document = page.evaluate("document.reloaded = false; document.title")
    row = page.locator("#task-rows tr", has_text="20, 22").first
    expect(row.locator(".state")).to_have_text("succeeded", timeout=15_000)
    assert page.evaluate("document.reloaded") is False, "the list came up to date without a reload"
    assert document.startswith("Tasks")

    row.get_by_role("link").click()
    expect(page.get_by_label("result")).to_have_text("42")
    expect(page.locator(".timeline")).to_contain_text("succeeded")
    page.get_by_role("link", name=name).click()

    page.locator("summary", has_text="Pause").click()
    page.get_by_role("button", name="Pause it").click()
    expect(page.get_by_text("1 paused")).to_be_visible()
    schedule = Schedule.objects.get(name=name)
    count = schedule.runs.count()
    page.wait_for_timeout(2500)  # two more would have fired
    assert schedule.runs.count() == count
    schedule.delete()


def test_a_task_is_followed_live_and_run_again(signed_in: Page):
    page = signed_in
    result = CeleryClient().submit("sample.sleep", [1.5])
    page.goto(f"/tasks/{result.id}")
    expect(page.locator("#task-live .state").first).to_have_text("running")
    expect(page.locator("#task-live .summary .state")).to_have_text("succeeded")
    page.get_by_text("Run again", exact=True).click()
    page.get_by_role("button", name="Run it again").click()
    expect(page.get_by_text("1 task started")).to_be_visible()
    expect(page.get_by_text("Runs again")).to_be_visible()
    assert result.id not in page.url


def test_a_waiting_task_is_revoked_after_one_question(signed_in: Page):
    page = signed_in
    result = CeleryClient().submit("sample.echo", ["never"], countdown=3600)
    page.goto(f"/tasks/{result.id}")
    expect(page.locator("#task-live .summary .state")).to_have_text("scheduled")
    page.get_by_text("Revoke", exact=True).click()
    page.get_by_role("button", name="Revoke the task").click()
    expect(page.get_by_text("1 task revoked")).to_be_visible()
    assert CeleryClient().get_status(result.id) == "REVOKED"


def test_a_bad_expression_is_named_while_it_is_typed(signed_in: Page):
    page = signed_in
    page.goto("/admin/scheduling_app/schedule/add/")
    page.get_by_label("Cron", exact=True).last.fill("61 * * * *")
    expect(page.locator(".schedule-preview")).to_contain_text("minute")
    page.get_by_label("Cron", exact=True).last.fill("0 9 * * mon-fri")
    expect(page.locator(".schedule-preview")).to_contain_text("at 09:00, Monday to Friday")
    expect(page.locator(".schedule-preview tbody tr")).to_have_count(10)


def test_a_policy_says_what_it_does_as_it_is_chosen(signed_in: Page):
    page = signed_in
    page.goto("/admin/scheduling_app/schedule/add/")
    page.get_by_label("Cron", exact=True).last.fill("0 12 * * *")
    preview = page.locator(".schedule-preview")
    expect(preview.locator("tbody tr").first.locator("td").last).to_contain_text(re.compile("1[34]:00"))  # in Berlin
    expect(page.get_by_label("Unfinished at most")).to_be_hidden()
    page.get_by_label("If a run is unfinished").select_option("Skip")
    page.get_by_label("Unfinished at most").fill("2")
    expect(preview).to_contain_text("While 2 earlier runs are unfinished, the next time is skipped.")
    page.get_by_label("Runs at most").fill("3")
    expect(preview.locator("tbody tr")).to_have_count(3)
    expect(preview).to_contain_text("It is finished when it has fired 3 times")


@pytest.mark.parametrize(
    "hostile", ["<img src=x onerror=alert(1)>", '"><script>alert(2)</script>', "</pre><script>alert(3)</script>"]
)
def test_no_markup_of_a_tasks_data_reaches_the_page(signed_in: Page, hostile):
    page = signed_in
    page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
    client = CeleryClient()
    echoed, failed = client.submit("sample.echo", [hostile]), client.submit("sample.fail", [hostile])
    eventually(lambda: client.get_status(echoed.id) == "SUCCESS" and client.get_status(failed.id) == "FAILURE")
    page.goto(f"/tasks/{echoed.id}")
    expect(page.get_by_label("args")).to_contain_text(hostile.replace('"', '\\"'))
    page.goto(f"/tasks/{failed.id}")
    expect(page.locator(".summary")).to_contain_text(hostile)
    for path in ("/tasks/", "/"):
        page.goto(path)
        expect(page.locator("body")).to_contain_text(hostile)


@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize(
    "path",
    [
        *("/", "/tasks/", "/schedules/", "/schedules/{pk}/", "/schedules/{pk}/backfill/?{range}"),
        *("/admin/", "/admin/scheduling_app/schedule/add/", "/admin/scheduling_app/calendar/add/"),
    ],
)
def test_no_page_is_wider_than_the_screen(signed_in: Page, path, width):
    schedule, _ = Schedule.objects.get_or_create(
        name="A name of " + "some length " * 8, defaults={"task": "number_sum", "cron": "* * * * *", "enabled": False}
    )
    path = path.format(pk=schedule.pk, range="start_at=2026-01-01T00:00&end_at=2026-01-02T00:00")
    signed_in.set_viewport_size({"width": width, "height": 844})
    signed_in.goto(path)
    assert signed_in.evaluate("document.documentElement.scrollWidth") <= width


def test_the_pages_work_without_javascript(signed_in: Page, browser, site):
    result = CeleryClient().submit("sample.echo", ["plain"])
    eventually(lambda: CeleryClient().get_status(result.id) == "SUCCESS")
    context = browser.new_context(
        base_url=site, java_script_enabled=False, storage_state=signed_in.context.storage_state()
    )
    page = context.new_page()
    page.goto("/tasks/?phase=succeeded&q=sample.echo")
    page.locator("#task-rows").get_by_role("link").first.click()
    expect(page.get_by_label("result")).to_be_visible()
    page.get_by_text("Run again", exact=True).click()
    page.get_by_role("button", name="Run it again").click()
    expect(page).to_have_url(re.compile("/tasks/"))
    expect(page.get_by_text("1 task started")).to_be_visible()
    context.close()
