"""The overview: what is going on now, and what became of the last hour's tasks."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from celery.exceptions import OperationalError as CeleryOperationalError
from django.db import transaction
from django.db.models import Count, Max, Min, Q
from django.db.models.functions import Left, TruncMinute
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.http import require_safe
from kombu.exceptions import OperationalError

from tasks_app import moments, states
from tasks_app.health import check_celery_health
from tasks_app.models import PHASES, TaskRecord
from tasks_app.pages.shell import VIEW, page_or_part, staff_with
from tasks_app.queues import unread
from tasks_app.recording import current_app

#: Seconds that a page's part waits for the broker and the workers.
PATIENCE = 1.0
HOUR = timedelta(hours=1)
#: Kinds of failures listed.
FAILURES = 8


@require_safe
@staff_with()
def overview(request: HttpRequest) -> HttpResponse:
    context = {
        "title": "Overview",
        "can_view": request.user.has_perm(VIEW),
        "phases": phases_now(),
        "minutes": minutes(),
        "failing": failing() if request.user.has_perm(VIEW) else [],
        "queues": queues(),
        "unread": unread(),
    }
    return page_or_part(request, "tasks_app/overview.html", "tasks_app/_overview.html", context)


@transaction.non_atomic_requests
@require_safe
@staff_with()
def parts_alive(request: HttpRequest) -> HttpResponse:
    """The broker and the workers, as they answer just now; a part of the overview, loaded after it."""
    broker = check_celery_health(PATIENCE)
    workers = _ping() if broker.ok else []
    return render(request, "tasks_app/_parts.html", {"broker": broker, "workers": workers})


def phases_now() -> list[tuple[str, int]]:
    """How many tasks are in each phase: now, or within the last hour where it is a final one."""
    unfinished = {phase: PHASES[phase] for phase in ("scheduled", "queued", "limited", "running", "retrying")}
    now = TaskRecord.objects.unfinished().aggregate(**{name: Count("pk", filter=q) for name, q in unfinished.items()})
    recent = TaskRecord.objects.filter(finished_at__gt=moments.now() - HOUR)
    ended = recent.aggregate(**{name: Count("pk", filter=PHASES[name]) for name in ("succeeded", "failed", "revoked")})
    return [*now.items(), *ended.items()]


@dataclass(frozen=True)
class Minute:
    """What ended in a minute; `x` and the heights are those of its bars, in a chart 60 wide and 100 high."""

    at: datetime
    succeeded: int
    failed: int
    x: int
    succeeded_height: float
    failed_height: float


def minutes() -> list[Minute]:
    """Succeeded and failed in each minute of the last hour."""
    end = moments.now().replace(second=0, microsecond=0)
    start = end - timedelta(minutes=59)
    rows = (
        TaskRecord.objects.filter(finished_at__gte=start, state__in=(states.SUCCESS, states.FAILURE))
        .order_by()
        .annotate(minute=TruncMinute("finished_at", tzinfo=UTC))
        .values_list("minute")
        .annotate(
            succeeded=Count("pk", filter=Q(state=states.SUCCESS)), failed=Count("pk", filter=Q(state=states.FAILURE))
        )
    )
    counts = {minute: (succeeded, failed) for minute, succeeded, failed in rows}
    most = max((sum(pair) for pair in counts.values()), default=0) or 1
    times = [start + timedelta(minutes=n) for n in range(60)]
    return [
        Minute(timezone.localtime(at), *(pair := counts.get(at, (0, 0))), n, pair[0] * 100 / most, pair[1] * 100 / most)
        for n, at in enumerate(times)
    ]


def failing() -> list[dict[str, Any]]:
    """Failures of the last 24 hours by task and exception, the most frequent first."""
    failures = TaskRecord.objects.filter(state=states.FAILURE, finished_at__gt=moments.now() - timedelta(days=1))
    groups = (
        failures.order_by()
        .values("name", "exc_type")
        .annotate(count=Count("pk"), last=Max("finished_at"), newest=Max("pk"))
    )
    rows = list(groups.order_by("-count", "name")[:FAILURES])
    examples = TaskRecord.objects.annotate(message=Left("exc_message", 100)).values("pk", "task_id", "message")
    newest = {example["pk"]: example for example in examples.filter(pk__in=[row["newest"] for row in rows])}
    return [{**row, **newest[row["newest"]]} for row in rows if row["newest"] in newest]


def queues() -> list[dict[str, Any]]:
    """What waits in each queue, and since when."""
    waiting = TaskRecord.objects.filter(PHASES["queued"]).order_by().values("queue")
    rows = waiting.annotate(count=Count("pk"), oldest=Min("created_at")).order_by("queue")
    return [dict(row) for row in rows]


def _ping() -> list[str]:
    try:
        return sorted(name for answer in current_app.control.ping(timeout=PATIENCE) for name in answer)
    except (OperationalError, CeleryOperationalError, OSError):
        return []
