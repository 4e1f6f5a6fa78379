"""Health: an answer in time, whatever the broker does."""

import socket
import time

import pytest
from celery import current_app

from tasks_app.health import check_celery_health


def test_a_broker_that_answers_is_healthy():
    assert check_celery_health().ok


@pytest.fixture
def broker_url(monkeypatch):
    def use(url):
        connect = current_app._get_current_object().connection_for_write
        monkeypatch.setattr(current_app._get_current_object(), "connection_for_write", lambda: connect(url=url))

    return use


def test_a_broker_that_refuses_is_named_as_the_trouble(broker_url):
    broker_url("redis://127.0.0.1:1/0")
    health = check_celery_health(timeout=1)
    assert not health.ok
    assert "broker" in health.detail


def test_a_broker_that_hangs_blocks_nobody(broker_url):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        broker_url(f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        start = time.monotonic()
        assert not check_celery_health(timeout=0.3).ok
        assert time.monotonic() - start < 4  # less than a second, and what a busy machine adds
