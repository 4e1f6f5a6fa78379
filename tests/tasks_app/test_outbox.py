"""The one door out: recorded in the caller's transaction, published on commit."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from celery import chord, group
from celery import current_app as app
from django.db import transaction
from django.db.models import F
from django.utils import timezone
from django_celery_results.models import ChordCounter
from kombu.exceptions import EncodeError, OperationalError

from tasks_app import states
from tasks_app.client import CeleryClient
from tasks_app.exceptions import DuplicateTask, InvalidSubmission, UnknownTask
from tasks_app.gathering import begin_ending, take_successors
from tasks_app.models import TaskRecord, TaskStep
from tests.sample.tasks import echo, noop

pytestmark = pytest.mark.django_db


def record_of(result) -> TaskRecord:
    return TaskRecord.objects.get(task_id=result.id)


def test_every_way_to_send_a_task_records_it(published, commits):
    with commits():
        results = [
            echo.delay(1),
            echo.apply_async([2], queue="cron_queue", priority=0),
            app.send_task("sample.echo", [3]),
            echo.s(4).apply_async(),
            CeleryClient().submit("sample.echo", [5]),
        ]
    records = [record_of(result) for result in results]
    assert [record.args for record in records] == [[1], [2], [3], [4], [5]]
    assert [record.queue for record in records] == ["celery_queue", "cron_queue", *["celery_queue"] * 3]
    assert [record.priority for record in records] == [5, 0, 5, 5, 5]
    assert all(record.state == states.PENDING and record.name == "sample.echo" for record in records)
    assert published == [result.id for result in results]


def test_a_rolled_back_transaction_leaves_no_record_and_no_message(published, commits):
    with commits(), pytest.raises(RuntimeError), transaction.atomic():
        echo.delay("never")
        raise RuntimeError
    assert not TaskRecord.objects.exists()
    assert published == []


def test_nothing_is_published_before_the_commit(published, commits):
    with commits():
        echo.delay("later")
        assert published == []
    assert len(published) == 1


def test_a_countdown_waits_in_postgres(published, commits):
    with commits():
        result = echo.apply_async(["later"], countdown=60)
    record = record_of(result)
    assert published == []
    assert record.publish_at == record.eta
    assert timedelta(seconds=58) < record.eta - timezone.now() <= timedelta(seconds=60)


def test_an_eta_in_the_past_goes_out_at_once(published, commits):
    with commits():
        echo.apply_async(["now"], eta=timezone.now() - timedelta(hours=1))
    assert len(published) == 1


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (datetime(2030, 1, 1, 12), datetime(2030, 1, 1, 12, tzinfo=UTC)),
        ("2030-01-01T12:00:00+02:00", datetime(2030, 1, 1, 10, tzinfo=UTC)),
    ],
)
def test_a_naive_eta_is_in_the_projects_zone_and_text_is_iso_8601(published, given, expected):
    assert record_of(echo.apply_async(["x"], eta=given)).eta == expected


def test_a_broker_that_is_away_fails_no_submission(monkeypatch, commits):
    def away(records):
        raise OperationalError("away")

    monkeypatch.setattr(app, "publish", away)
    with commits():
        result = echo.delay(1)
    record = record_of(result)
    assert record.state == states.PENDING
    assert record.published_at is None
    assert record.publish_at is not None, "the relay would never see it"


def test_published_rows_leave_the_relays_queue(published, commits):
    with commits():
        result = echo.delay(1)
        TaskRecord.objects.mark_published([(result.id, 1)])
    assert record_of(result).publish_at is None


def test_a_mark_for_an_older_message_changes_nothing(published):
    result = echo.delay(1)
    TaskRecord.objects.filter(task_id=result.id).update(gen=2)
    assert TaskRecord.objects.mark_published([(result.id, 1)]) == 0
    assert record_of(result).publish_at is not None


def test_a_mark_that_comes_after_the_claim_changes_nothing(published):
    result = echo.delay(1)
    TaskRecord.objects.claim(result.id, 1, "worker@host", 42)
    claimed = record_of(result)
    assert TaskRecord.objects.mark_published([(result.id, 1)]) == 0
    assert record_of(result).published_at == claimed.published_at


def test_a_workflow_is_recorded_as_a_whole_or_not_at_all(published, commits):
    taken = echo.apply_async([0], countdown=60)
    header = [echo.s(1), echo.s(2).set(task_id=taken.id)]
    with commits():
        for workflow in (group(header), chord(header, echo.s())):
            with pytest.raises(DuplicateTask):
                workflow.delay()
    assert TaskRecord.objects.get().task_id == taken.id
    assert not ChordCounter.objects.exists()
    assert not TaskStep.objects.exists()
    assert published == []


def test_a_workflow_is_recorded_with_its_successors(published):
    result = CeleryClient().chain(("number_sum", [1, 2]), ("number_sum", [3]))
    first = TaskRecord.objects.get()
    assert first.options["chain"][0]["options"]["task_id"] == result.id
    assert CeleryClient().get_status(result.id) == states.PENDING


def test_arguments_are_kept_exactly(published):
    value = {"z": 1.0, "a": ["北京", "\x00", "\ud800", 2**70], "n": None}
    assert record_of(echo.delay(value)).args == [value]


@pytest.mark.parametrize(
    ("arguments", "options", "says"),
    [
        ([object()], {}, "JSON"),
        ([1], {"priority": 10}, "priority"),
        ([1], {"priority": "high"}, "priority"),
        ([1], {"priority": True}, "priority"),
        ([1], {"task_id": "x" * 256}, "task_id"),
        ([1], {"eta": "tomorrow"}, "eta"),
        ([1], {"countdown": "soon"}, "countdown"),
        ([1], {"countdown": 1e300}, "countdown"),
        ("text", {}, "args"),
    ],
)
def test_what_could_never_run_is_refused_and_not_recorded(published, arguments, options, says):
    with pytest.raises(InvalidSubmission, match=says):
        app.send_task("sample.echo", arguments, **options)
    assert not TaskRecord.objects.exists()


def test_arguments_that_are_too_long_are_refused(published):
    app.send_task("sample.echo", ["x" * (1_048_576 - 6)])  # and brackets, quotes, braces
    with pytest.raises(InvalidSubmission, match="1,048,577 bytes as JSON, 1,048,576 are allowed"):
        app.send_task("sample.echo", ["x" * (1_048_576 - 5)])
    with pytest.raises(InvalidSubmission, match="Pass a reference"):
        CeleryClient().submit_many("sample.echo", [([1], {}), (["x" * 1_100_000], {})])
    assert TaskRecord.objects.count() == 1


def test_a_second_task_with_the_same_id_is_refused(published):
    echo.apply_async([1], task_id="mine")
    with pytest.raises(DuplicateTask, match="mine"), transaction.atomic():
        echo.apply_async([2], task_id="mine")
    assert TaskRecord.objects.get().args == [1]


def test_an_unknown_task_is_refused_with_a_near_name():
    with pytest.raises(UnknownTask, match=r"sample\.echo"):
        CeleryClient().submit("sample.ecco")


def test_arguments_that_do_not_fit_are_refused():
    with pytest.raises(TypeError, match="positional argument"):
        CeleryClient().submit("sample.echo", [1, 2, 3])
    with pytest.raises(TypeError):
        CeleryClient().submit_many("sample.echo", [([1], {}), ([], {})])
    assert not TaskRecord.objects.exists()


def test_options_are_merged_explicit_over_given_over_default(published):
    client = CeleryClient(queue="cron_queue", priority=1, expires=60)
    plain, given = client.submit("sample.noop"), client.submit("sample.noop", expires=3600)
    explicit = client.submit("sample.noop", queue="celery_queue", priority=9)
    assert [(record_of(r).queue, record_of(r).priority) for r in (plain, given, explicit)] == [
        ("cron_queue", 1),
        ("cron_queue", 1),
        ("celery_queue", 9),
    ]
    assert record_of(given).expires - record_of(plain).expires > timedelta(minutes=50)


def test_many_are_submitted_in_order_with_ids_of_their_own(published, commits):
    with commits():
        results = CeleryClient().submit_many("sample.echo", [([i], {}) for i in range(1001)], priority=3)
    assert published == [result.id for result in results]
    assert len(set(published)) == 1001
    assert list(TaskRecord.objects.order_by("pk").values_list("args", flat=True)) == [[i] for i in range(1001)]
    assert not TaskRecord.objects.exclude(priority=3, root_id=F("task_id")).exists()


def test_messages_carry_the_record_and_the_priority(commits):
    with commits():
        result = noop.apply_async(priority=2, headers={"mine": "yes"})
    with app.connection_for_read() as connection:
        message = connection.default_channel.basic_get("celery_queue", no_ack=True)
    assert message.headers["id"] == result.id
    assert message.headers["gen"] == 1
    assert message.headers["mine"] == "yes"
    assert message.headers["eta"] is None
    assert message.properties["priority"] == 2


@pytest.mark.parametrize("result", [json.loads("[" * 300 + "]" * 300), {"__type__": "date", "__value__": 1}])
def test_a_result_that_no_worker_could_decode_is_not_handed_on(result):
    begin_ending(echo)
    with pytest.raises(EncodeError, match=r"cannot be handed on to sample.echo: args: "):
        echo.delay(result)
    take_successors()


def test_a_record_made_like_another_is_checked_as_the_first_was():
    record = app.build_record("sample.echo", ["x"])
    assert app.build_like(record, ["y"], {}, task_id="like", headers={"gen": 7}).options["headers"] == {}
    with pytest.raises(InvalidSubmission, match=r"^headers: id is set by"):
        app.build_like(record, ["y"], {}, task_id="like", headers={"id": "x"})
    with pytest.raises(InvalidSubmission, match=r"^headers must be an object"):
        app.build_like(record, ["y"], {}, task_id="like", headers=["x"])


def test_many_with_one_that_makes_no_message_are_none(published):
    with pytest.raises(InvalidSubmission, match=r"^args: an object with the keys"):
        CeleryClient().submit_many("sample.echo", [(["x"], {}), ([{"__type__": "uuid", "__value__": 7}], {})])
    assert not TaskRecord.objects.exists()
