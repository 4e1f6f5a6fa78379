"""What a process remembers of a broker that is away."""

import threading

from kombu.exceptions import OperationalError

from tasks_app.breaker import Breaker
from tests.acceptance.processes import eventually


def test_a_breaker_closes_when_the_broker_answers(monkeypatch):
    monkeypatch.setattr(Breaker, "PAUSES", (0.001, 0.002))
    answers = iter([OperationalError("no"), OperationalError("no"), None])

    may_ask = threading.Event()

    def ask():
        may_ask.wait(5)
        if error := next(answers):
            raise error

    breaker = Breaker(ask)
    breaker.trip()
    assert breaker.is_open
    breaker.trip()
    may_ask.set()
    eventually(lambda: not breaker.is_open)
    assert next(answers, "asked no more") == "asked no more"
