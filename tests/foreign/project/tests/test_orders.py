"""The shop's own tests, written before the console came: tasks run eagerly."""

import pytest
from django.conf import settings
from django.urls import reverse
from orders import tasks
from orders.models import Order

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def eager():
    from shop.celery import app

    app.conf.task_always_eager = True
    yield
    app.conf.task_always_eager = False


def test_an_order_ships(client):
    assert client.get(reverse("order", args=["kettle"])).status_code == 200
    assert Order.objects.get().shipped_at is not None


def test_a_task_returns_its_result():
    assert tasks.report.delay("weekly").get() == "weekly report"


def test_a_task_raises():
    with pytest.raises(ValueError, match="shelf"):
        tasks.broken.delay()


def test_the_front_page_is_the_shops(client):
    page = client.get("/")
    assert "0 orders at the harbour" in page.content.decode()
    assert page["Content-Security-Policy"].startswith("default-src 'none'")
    assert settings.AUTH_USER_MODEL == "accounts.Member"
