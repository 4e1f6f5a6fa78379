"""A project whose admin is a site of its own, beside Django's default one: with the schedules on it, and without."""

import pytest

SCHEDULE = """
from scheduling_app.models import Schedule
Schedule.objects.create(name="report", task="orders.tasks.report", cron="0 9 * * *", kind="cron")
"""


@pytest.mark.parametrize("has_schedules", ["", "1"], ids=["without schedules", "with schedules"])
def test_pages_link_to_what_the_projects_admin_has(make_shop, has_schedules):
    shop = make_shop(SHOP_ADMIN="separate", SHOP_OFFICE_HAS_SCHEDULES=has_schedules)
    visitor = shop.serve()
    assert 'href="/office/"' in visitor.sign_in("/ops/").text
    edit, add = "/office/scheduling_app/schedule/1/change/", "/office/scheduling_app/schedule/add/"
    assert (add in visitor.get("/ops/schedules/").text) == bool(has_schedules)
    shop.manage("shell", "-c", SCHEDULE)
    for path in ("", "tasks/", "schedules/", "schedules/next/", "schedules/1/", "schedules/1/backfill/"):
        assert visitor.get(f"/ops/{path}").status == 200, path
    assert (edit in visitor.get("/ops/schedules/1/").text) == bool(has_schedules)
    for path in (edit, add, "/office/scheduling_app/schedule/", "/office/scheduling_app/calendar/add/"):
        assert visitor.get(path).status == (200 if has_schedules else 404), path
