"""What did not run is run: a backfill from its range to its last due time, and a schedule that paused itself."""

from datetime import timedelta
from uuid import uuid4

import pytest
from django.utils import timezone
from playwright.sync_api import Page, expect

from scheduling_app.models import Schedule, ScheduleRun
from tests.acceptance.processes import eventually

pytestmark = pytest.mark.usefixtures("worker", "scheduler")


@pytest.fixture
def make(committed):
    made = []

    def make(**fields) -> Schedule:
        fields = {"task": "sample.echo", "args": ["again"], "cron": "0 * * * *"} | fields
        made.append(Schedule.objects.create(name=f"Hourly {uuid4()}", **fields))
        return made[-1]

    yield make
    for schedule in made:
        schedule.delete()


def begin_backfill(page: Page, schedule: Schedule, until: str) -> None:
    """From the schedule's page, with a range from 01:00 of a day long ago."""
    page.goto(f"/schedules/{schedule.pk}/")
    page.get_by_role("link", name="Backfill…").click()
    page.get_by_label("From").fill("2025-03-03T01:00")
    page.get_by_label("Until").fill(f"2025-03-03T{until}")
    page.get_by_role("button", name="Show its due times").click()


def test_a_range_is_backfilled_newest_first_and_followed_live(signed_in: Page, make):
    page, schedule = signed_in, make()
    begin_backfill(page, schedule, "04:00")
    expect(page.get_by_role("heading", name="4 due times")).to_be_visible()
    expect(page.get_by_text("Those that did not run: 4")).to_be_visible()
    page.get_by_label("Order").select_option("Newest first")
    page.get_by_role("button", name="Start the backfill").click()
    page.evaluate("document.reloaded = false")
    expect(page.get_by_text("4 of 4 done")).to_be_visible(timeout=30_000)
    expect(page.locator("#backfill-live .summary .state").first).to_have_text("finished")
    assert page.evaluate("document.reloaded") is False, "the page came up to date without a reload"
    runs = ScheduleRun.objects.filter(schedule=schedule).order_by("record__pk")
    assert [run.scheduled_for.hour for run in runs] == [4, 3, 2, 1]

    page.get_by_role("heading").get_by_role("link", name=schedule.name).click()
    expect(page.locator(".schedule-backfills")).to_contain_text("4 of 4")
    expect(page.locator(".schedule-runs tbody tr", has_text="succeeded")).to_have_count(4)
    expect(page.locator(".schedule-runs tbody tr", has_text="By admin.")).to_have_count(4)


def test_a_backfill_is_paused_resumed_and_cancelled(signed_in: Page, make):
    page, schedule = signed_in, make(task="sample.sleep", args=[1])
    begin_backfill(page, schedule, "20:00")
    page.get_by_role("button", name="Start the backfill").click()
    expect(page.locator(".schedule-runs tbody tr", has_text="succeeded").first).to_be_visible(timeout=30_000)
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_text("paused: what runs goes on")).to_be_visible()
    expect(page.locator("#backfill-live .summary")).not_to_contain_text("running", timeout=15_000)
    waiting = schedule.runs.filter(outcome="waiting")
    left = waiting.count()
    page.get_by_role("button", name="Resume").click()
    eventually(lambda: waiting.count() < left, 15, "a further run")
    page.locator("summary", has_text="Cancel").click()
    page.get_by_role("button", name="Cancel it").click()
    expect(page.get_by_text("left as they were").first).to_be_visible()
    expect(page.locator("#backfill-live .summary .state").first).to_have_text("cancelled")
    assert not waiting.exists()


def test_one_that_paused_itself_says_why_and_is_resumed_with_its_latest_time(signed_in: Page, make):
    now = timezone.now()
    schedule = make(cron="", kind="interval", every=1, unit="hours", start_at=now - timedelta(hours=9, minutes=30))
    only_this = Schedule.objects.filter(pk=schedule.pk)
    only_this.set_enabled(False, "Its last 3 runs failed.")
    only_this.update(switched_at=now - timedelta(hours=4))
    page = signed_in
    page.goto(f"/schedules/{schedule.pk}/")
    banner = page.get_by_role("alert")
    expect(banner).to_contain_text("Its last 3 runs failed.")
    banner.locator("summary", has_text="Resume").click()
    banner.get_by_role("button", name="Run the latest").click()
    expect(page.get_by_text("1 missed time runs now.")).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)
    expect(page.locator(".schedule-runs tbody tr", has_text="succeeded")).to_have_count(1, timeout=30_000)
    assert schedule.runs.get().scheduled_for == schedule.start_at + timedelta(hours=9)
