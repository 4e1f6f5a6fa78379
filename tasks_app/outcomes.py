"""Outcomes as they are kept: results as JSON, or as near to it as they come; exceptions with their class and words."""

import sys
from contextlib import suppress
from functools import reduce
from typing import Any

from celery.utils.saferepr import saferepr
from celery.utils.serialization import create_exception_cls
from kombu.exceptions import EncodeError

from tasks_app import states
from tasks_app.ambient import keep
from tasks_app.conf import conf
from tasks_app.seams.results import ResultsBackend
from tasks_app.storable import printable


class OutcomeBackend(ResultsBackend):
    def describe(self, error: Exception) -> dict[str, Any]:
        """An exception as it was raised; Celery hands on what can be pickled of it, which may be another class."""
        keep(raised=error)
        described = self.prepare_exception(error, "json")
        with suppress(Exception):
            described["exc_text"] = str(error)
        return described

    def exception_to_python(self, exc: Any) -> Any:
        """As far as it can be rebuilt: where its class does not take its arguments, without its `__init__`; its text
        names the class then, as with Celery."""
        if isinstance(exc, dict) and "<locals>" in exc.get("exc_type", ""):  # a class that is nowhere to be found
            exc = exc | {"exc_type": exc["exc_type"].rpartition(".")[2], "exc_module": None}
        rebuilt = super().exception_to_python(exc)
        if not isinstance(exc, dict) or type(rebuilt) is not Exception or exc["exc_type"] == "Exception":
            return rebuilt
        message = exc.get("exc_message") or ()
        args = message if isinstance(message, list | tuple) else (message,)
        try:
            cls: Any = reduce(getattr, exc["exc_type"].split("."), sys.modules[exc["exc_module"]])
            words = f"{cls.__name__}: {', '.join(map(str, args))}"
            told = type(cls.__name__, (cls,), {"__module__": cls.__module__, "__str__": lambda self: words})
            return told.__new__(told, *args)
        except Exception:
            return create_exception_cls(exc["exc_type"].rpartition(".")[2], exc.get("exc_module") or __name__)(*args)

    def as_kept(self, result: Any, exception: tuple[str, str]) -> tuple[tuple[str, str, str], str]:
        """A result as it is stored, and what had to be done to it for that."""
        note = ""
        try:
            kept = self.encode_content(result)
        except (EncodeError, TypeError, ValueError, RecursionError) as error:
            note = f"Not JSON, kept as its repr: {error}"[:200]
            kept = self.encode_content(_repr(result))
        if (length := len(kept[2])) <= conf.TASK_RESULT_MAX_BYTES:
            return kept, note
        note = f"Cut: {length:,} characters as JSON, {conf.TASK_RESULT_MAX_BYTES:,} are kept"
        if exception[0]:
            return self.encode_content(
                {"exc_type": exception[0], "exc_message": [exception[1]], "exc_module": result.get("exc_module")}
            ), note
        return self.encode_content(f"{kept[2][: conf.TASK_RESULT_MAX_BYTES]} … ({note})"), note


def words_of(result: Any, state: str) -> tuple[str, str]:
    return _exception_words(result) if state in (*states.EXCEPTION_STATES, states.RETRY) else ("", "")


def _exception_words(result: Any) -> tuple[str, str]:
    """Type and message of an exception as Celery's backends prepare it for JSON."""
    if not isinstance(result, dict) or not {"exc_type", "exc_message"} <= result.keys():
        return "", cut(str(result or ""))  # `update_state(state="FAILURE", meta=…)`
    message = result.get("exc_text")
    if message is None:
        message = result["exc_message"]
        message = ", ".join(map(str, message)) if isinstance(message, list | tuple) else str(message)
    return result["exc_type"].rpartition("<locals>.")[2], cut(message)


def cut(text: str) -> str:
    """`text` as Postgres can hold it, without its middle where it is too long."""
    text = printable(text)
    if len(text) <= (most := conf.TASK_RESULT_MAX_BYTES):
        return text
    return f"{text[: most // 2]}\n… ({len(text):,} characters) …\n{text[-most // 2 :]}"


def _repr(value: Any) -> str:
    try:
        return saferepr(value, maxlen=10_000)
    except Exception as error:
        return f"<{type(value).__name__} whose repr raised {type(error).__name__}>"
