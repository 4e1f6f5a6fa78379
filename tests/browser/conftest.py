"""A real browser on the real site: web, worker and scheduler are processes of their own."""

import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator

import pytest
from django.conf import settings
from django.contrib.auth.hashers import make_password
from django.contrib.auth.models import User
from django.test import Client
from playwright.sync_api import Browser, Page, sync_playwright

from tests.acceptance.conftest import committed, scheduler, worker  # noqa: F401 fixtures
from tests.acceptance.processes import eventually

# Playwright's synchronous interface runs an event loop in this thread, where Django would refuse its ORM.
os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"
PASSWORD = "correct horse battery staple"


@pytest.fixture(scope="session")
def site(committed) -> Iterator[str]:  # noqa: F811
    """The site's address, served by gunicorn as in production."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    gunicorn = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "gunicorn",
            "taskconsole.wsgi",
            "--bind",
            address,
            "--threads",
            "8",
            "--no-control-socket",
        ],
        cwd=settings.BASE_DIR,
        start_new_session=True,
    )
    try:
        eventually(lambda: answers(f"http://{address}/admin/login/"), 30, "the first page")
        yield f"http://{address}"
    finally:
        gunicorn.terminate()
        gunicorn.wait(20)


def answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(url).status == 200
    except OSError:
        return False


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM") or "/usr/bin/chromium",
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"],
        )
        yield browser
        browser.close()


@pytest.fixture
def page(site, browser) -> Iterator[Page]:
    """A page of a new browser; whatever it complains of (scripts, styles, missing files) fails the test."""
    context = browser.new_context(base_url=site, viewport={"width": 1440, "height": 900}, timezone_id="Europe/Berlin")
    page = context.new_page()
    page.set_default_timeout(10_000)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "response", lambda answer: complaints.append(f"{answer.status} {answer.url}") if answer.status >= 500 else None
    )
    yield page
    context.close()
    assert complaints == []


@pytest.fixture
def admin(committed) -> User:  # noqa: F811
    password = make_password(PASSWORD, hasher="pbkdf2_sha256")
    return User.objects.get_or_create(
        username="admin", defaults={"password": password, "is_staff": True, "is_superuser": True}
    )[0]


def sign_in(page: Page, admin: User) -> None:
    page.goto("/")
    page.get_by_label("Username").fill(admin.username)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()


@pytest.fixture
def signed_in(page: Page, admin: User, site: str) -> Page:
    """A page of someone who has signed in before."""
    client = Client()
    client.force_login(admin)
    session = client.cookies[settings.SESSION_COOKIE_NAME].value
    page.context.add_cookies([{"name": settings.SESSION_COOKIE_NAME, "value": session, "url": site}])
    page.goto("/")
    return page
