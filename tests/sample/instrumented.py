"""The sample app under a real tracing library, as SAMPLE_INSTRUMENTED says: in the worker, and in a submitter.

A submitter's process runs `submit`, in one trace of its own, and prints which trace each way of sending has led to.
"""

import json
import os
from collections.abc import Callable

from celery import chain, chord, current_app, shared_task
from django.db import transaction

from tasks_app.client import CeleryClient

#: Of the instrumented worker alone.
QUEUE = "traced"
LIBRARY = os.environ.get("SAMPLE_INSTRUMENTED", "")


def instrument() -> None:
    if LIBRARY:
        current_app.conf.task_default_queue = QUEUE
    if LIBRARY == "sentry":
        import sentry_sdk
        from sentry_sdk.integrations.celery import CeleryIntegration

        sentry_sdk.init(
            dsn="http://key@127.0.0.1:9/1", traces_sample_rate=1.0, default_integrations=False,
            integrations=[CeleryIntegration()], transport=_Nowhere,
        )  # fmt: skip
    elif LIBRARY == "opentelemetry":
        from opentelemetry import trace
        from opentelemetry.instrumentation.celery import CeleryInstrumentor
        from opentelemetry.sdk.trace import TracerProvider

        trace.set_tracer_provider(TracerProvider())
        CeleryInstrumentor().instrument()


def _transport():
    from sentry_sdk.transport import Transport

    class Nowhere(Transport):
        def capture_envelope(self, envelope):
            pass

    return Nowhere


if LIBRARY == "sentry":
    _Nowhere = _transport()


def trace_id() -> str:
    """The trace that this process is in."""
    if LIBRARY == "sentry":
        import sentry_sdk

        return sentry_sdk.get_current_span().trace_id
    from opentelemetry import trace

    return f"{trace.get_current_span().get_span_context().trace_id:032x}"


def in_a_trace(action: Callable):
    """What `action` gives, done in a new trace; and that."""
    if LIBRARY == "sentry":
        import sentry_sdk

        with sentry_sdk.start_transaction(name="submitter"):
            return trace_id(), action()
    from opentelemetry import trace

    with trace.get_tracer(__name__).start_as_current_span("submitter"):
        return trace_id(), action()


@shared_task(name="instrumented.where", bind=True, max_retries=1)
def where(self, *results, failures=0):
    """The trace that it runs in."""
    if self.request.retries < failures:
        raise self.retry(countdown=0.1)
    return trace_id()


@shared_task(name="instrumented.limited", rate_limit="20/s")
def limited():
    return trace_id()


def submit() -> None:
    client = CeleryClient()

    def ways() -> dict:
        with transaction.atomic():
            atomic = where.delay()
        many = client.submit_many("instrumented.where", [([], {}), ([], {})])
        chained = chain(where.si(), where.si()).apply_async()
        return {
            "delay": where.delay(),
            "atomic": atomic,
            "countdown": where.apply_async(countdown=1),
            "retry": where.apply_async(kwargs={"failures": 1}),
            "rate limit": limited.delay(),
            "chord": chord([where.si(), where.si()], where.s()).apply_async(),
            "chain": chained,
            "first of a chain": chained.parent,
            "many": many[1],
            "by name": current_app.send_task("instrumented.where"),
            "client": client.submit("instrumented.where"),
        }

    mine, results = in_a_trace(ways)
    told = {way: result.get(timeout=60) for way, result in results.items()}
    print(json.dumps({"trace": mine, "led to": told, "after": in_a_trace(lambda: None)[0] != mine}), flush=True)
