"""Schedules that code declares: what is refused where it is written, and what a sync does to the table."""

import logging
import threading
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import psycopg
import pytest
from django.db import DataError, InternalError, OperationalError, ProgrammingError, connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from scheduling_app import declared
from scheduling_app.declared import DeclarationError, schedule
from scheduling_app.ledger import firing, planning
from scheduling_app.models import Calendar, Schedule
from scheduling_app.sources import sync
from scheduling_app.sources.sync import Report
from tests.sample.schedules import declare
from tests.sample.tasks import echo, noop, sleep

pytestmark = pytest.mark.django_db

GONE = "No longer declared by app sample."


@pytest.fixture(autouse=True)
def nothing_declared(monkeypatch):
    monkeypatch.setattr(declared, "DECLARED", {})


def deploy(*declarations: dict) -> Report:
    """Start a version of the code that declares these, and only these."""
    declared.DECLARED.clear()
    for fields in declarations:
        declare(**{"task": noop, "every": "1h"} | fields)
    return sync.sync(declared.DECLARED.values())


def row(name: str) -> Schedule:
    return Schedule.objects.get(name=name)


# What may be declared


def test_a_new_one_is_written_with_all_that_it_says():
    Calendar.objects.create(name="holidays")
    options = {"timezone": "Europe/Berlin", "args": ("x",), "overlap": "skip", "jitter": 5, "blackout": "holidays"}
    assert deploy({"name": "nightly", "task": echo, "every": "", "cron": "0 3 * * *", **options}).created == ["nightly"]
    made = row("nightly")
    assert (made.owner, made.task, made.kind, made.cron) == ("sample", "sample.echo", "cron", "0 3 * * *")
    assert (made.timezone, made.args, made.overlap, made.jitter) == ("Europe/Berlin", ["x"], "skip", 5)
    assert made.blackout.name == "holidays"
    assert made.enabled


def test_an_interval_and_a_date_are_declared_too():
    at = datetime(2050, 1, 1, tzinfo=UTC)
    deploy({"name": "often", "every": "90m"}, {"name": "once", "every": "", "run_at": at, "task": "sample.noop"})
    assert (row("often").kind, row("often").every, row("often").unit) == ("interval", 90, "minutes")
    assert (row("once").kind, row("once").run_at, row("once").task) == ("date", at, "sample.noop")


def test_a_limit_of_unfinished_runs_skips_what_is_above_it_as_with_the_manager():
    deploy({"name": "two at once", "max_instances": 2})
    assert (row("two at once").max_instances, row("two at once").overlap) == (2, "skip")


@pytest.mark.parametrize(
    ("field", "said", "wrong"),
    [
        ("cron", "minute", {"cron": "61 * * * *"}),
        ("cron", "say when", {}),
        ("cron", "say when", {"cron": "@daily", "every": "1h"}),
        ("every", "cannot read '90'", {"every": 90}),
        ("run_at", "time zone", {"run_at": datetime(2050, 1, 1)}),
        ("start_at", "run_at is one time", {"run_at": datetime(2050, 1, 1, tzinfo=UTC), "start_at": timezone.now()}),
        ("timezone", "Mars", {"every": "1h", "timezone": "Mars/Base"}),
        (
            "end_at",
            "ends before",
            {"every": "1h", "start_at": timezone.now(), "end_at": datetime(2020, 1, 1, tzinfo=UTC)},
        ),
        ("retires", "no option", {"every": "1h", "retires": 3}),
        ("enabled", "no option", {"every": "1h", "enabled": False}),
        ("overlap", "not a valid choice", {"every": "1h", "overlap": "skipp"}),
        ("priority", "less than or equal to 9", {"every": "1h", "priority": 10}),
        ("misfire_grace_time", "greater than or equal to 1", {"every": "1h", "misfire_grace_time": 0}),
        ("description", "None", {"every": "1h", "description": None}),
        ("headers", "JSON object", {"every": "1h", "headers": ["x"]}),
        ("headers", "set by Celery", {"every": "1h", "headers": {"id": "x"}}),
        ("soft_time_limit", "below", {"every": "1h", "soft_time_limit": 9, "time_limit": 9}),
        ("name", "blank", {"every": "1h", "name": ""}),
        ("task", "sample.gone", {"every": "1h", "task": "sample.gone"}),
        ("args", "sample.noop takes ()", {"every": "1h", "args": [1]}),
        ("args", "JSON list", {"every": "1h", "args": "x"}),
        ("args", "JSON", {"every": "1h", "args": [object()]}),
        ("kwargs", "unexpected keyword argument 'minutes'", {"every": "1h", "kwargs": {"minutes": 1}}),
        ("due_kwarg", "unexpected keyword argument 'at'", {"every": "1h", "due_kwarg": "at"}),
        ("kwargs", "JSON object", {"every": "1h", "kwargs": [1]}),
    ],
)
def test_what_cannot_be_is_refused_where_it_is_written_with_the_field_named(field, said, wrong):
    name = wrong.get("name", "bad")
    with pytest.raises(DeclarationError) as refused:
        declare(**{"name": "bad", "task": noop} | wrong)
    assert refused.value.field == field
    assert str(refused.value).startswith(f"Schedule {name!r}: {field}: ")
    assert said in str(refused.value)
    assert not declared.DECLARED


def test_a_name_is_declared_once():
    declare("x", noop, every="1h")
    with pytest.raises(DeclarationError, match="declared already, by app sample"):
        declare("x", echo, every="1h", args=["x"])


def test_a_declaration_belongs_to_the_app_that_it_stands_in():
    with pytest.raises(DeclarationError, match=r"tests\.scheduling_app\.test_declared is in no installed app"):
        schedule("x", noop, every="1h")


# What a sync does


def test_a_sync_of_what_is_the_same_writes_nothing_and_moves_no_next_time():
    passes_twice = datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin"))
    same = [
        {
            "name": "x",
            "task": sleep,
            "kwargs": {"seconds": 0.5},
            "headers": {"ü": ("\ud800",)},
            "start_at": passes_twice,
        },
        {"name": "y", "every": "", "run_at": passes_twice, "overlap": Schedule.Overlap.SKIP},
    ]
    deploy(*same)
    planning.plan_changed()
    before = list(Schedule.objects.values())
    with CaptureQueriesContext(
        connection,
    ) as queries:
        assert not deploy(*same)
    assert {query["sql"].split()[0] for query in queries} <= {"SELECT", "SAVEPOINT", "RELEASE", "SET"}
    assert list(Schedule.objects.values()) == before


def test_a_changed_one_is_updated_and_keeps_its_pause():
    deploy({"name": "x", "task": echo, "args": [1]})
    Schedule.objects.set_enabled(False)
    report = deploy({"name": "x", "task": echo, "args": [2], "every": "2h"})
    assert report.updated == ["x"]
    assert (row("x").args, row("x").every, row("x").enabled, row("x").note) == ([2], 2, False, "")


def test_true_is_not_one():
    deploy({"name": "x", "task": echo, "args": [1]})
    assert deploy({"name": "x", "task": echo, "args": [True]}).updated == ["x"]
    assert row("x").args[0] is True


def test_what_changed_is_logged_so_that_of_two_versions_the_last_shows(caplog):
    caplog.set_level(logging.INFO)
    deploy({"name": "x"})
    deploy({"name": "x", "every": "2h", "queue": "other"})
    deploy({"name": "x"})
    assert caplog.messages == [
        "Schedule 'x' of app sample is new.",
        "Schedule 'x' of app sample has changed: every, queue.",
        "Schedule 'x' of app sample has changed: every, queue.",
    ]


def test_a_change_of_the_arguments_alone_moves_no_next_time():
    deploy({"name": "x", "task": echo, "args": [1]})
    planning.plan_changed()
    due = row("x").next_fire_at
    assert deploy({"name": "x", "task": echo, "args": [2]}).updated == ["x"]
    assert (row("x").next_fire_at, row("x").changed_at) == (due, None)


def test_another_kind_of_timing_leaves_nothing_of_the_one_before():
    deploy({"name": "x", "start_at": timezone.now()})
    deploy({"name": "x", "every": "", "cron": "@daily"})
    assert (row("x").kind, row("x").every, row("x").start_at) == ("cron", None, None)


def test_a_renamed_one_keeps_its_row_its_runs_and_its_pause():
    deploy({"name": "old"})
    old = row("old")
    run = firing.run_now(old)
    Schedule.objects.filter(pk=old.pk).set_enabled(False, "Its last 3 runs failed.")
    report = deploy({"name": "new", "renamed_from": "old"})
    assert (report.renamed, report.created, report.removed, report.updated) == (["old → new"], [], [], [])
    new = row("new")
    assert (new.pk, new.enabled, new.note) == (old.pk, False, "Its last 3 runs failed.")
    assert new.runs.get().record_id == run.record_id
    assert not deploy({"name": "new", "renamed_from": "old"})


def test_it_is_found_by_any_of_its_old_names():
    deploy({"name": "first"})
    pk = row("first").pk
    deploy({"name": "third", "renamed_from": ["second", "first"]})
    assert row("third").pk == pk


def test_names_move_on_in_a_chain():
    deploy({"name": "a"}, {"name": "b"})
    was_a, was_b = row("a").pk, row("b").pk
    deploy({"name": "b", "renamed_from": "a"}, {"name": "c", "renamed_from": "b"}, {"name": "a", "every": "1w"})
    assert (row("b").pk, row("c").pk) == (was_a, was_b)
    assert row("a").pk not in (was_a, was_b)


def test_after_a_rollback_the_new_name_is_the_one_that_is_no_longer_declared():
    deploy({"name": "old"})
    new = [{"name": "new", "renamed_from": "old"}]
    deploy(*new)
    report = deploy({"name": "old"})
    assert (report.created, report.removed) == (["old"], ["new"])
    report = deploy(*new)
    assert (report.returned, report.removed) == (["new"], ["old"])
    assert not deploy(*new)


def test_a_removed_one_is_paused_with_a_note_and_reported_once(caplog):
    deploy({"name": "x"}, {"name": "y"})
    report = deploy({"name": "y"})
    assert report.removed == ["x"]
    assert str(report) == "Schedules in code: no longer declared, paused: x."
    assert "Schedule 'x' is paused: app sample no longer declares it." in caplog.text
    assert (row("x").enabled, row("x").note) == (False, GONE)
    assert not deploy({"name": "y"})


def test_it_comes_back_with_its_declaration():
    deploy({"name": "x"})
    deploy()
    report = deploy({"name": "x"})
    assert (report.returned, report.updated) == (["x"], [])
    assert (row("x").enabled, row("x").note) == (True, "")


@pytest.mark.parametrize(("note", "after"), [("", "Paused by hand."), ("Its last 3 runs failed.",) * 2])
def test_one_that_was_paused_before_comes_back_paused(note, after):
    deploy({"name": "x"})
    Schedule.objects.set_enabled(False, note)
    assert deploy().removed == ["x"]
    assert row("x").note == f"{after} {GONE}"
    assert not deploy()
    assert not deploy({"name": "x"}).returned
    assert (row("x").enabled, row("x").note) == (False, after)


def test_one_that_people_turn_on_though_it_is_gone_is_paused_again():
    deploy({"name": "x"})
    deploy()
    Schedule.objects.set_enabled(True)
    assert deploy().removed == ["x"]


def test_what_an_app_that_is_gone_declared_counts_as_removed():
    Schedule.objects.create(name="x", task="gone.task", cron="@daily", owner="gone")
    assert deploy().removed == ["x"]
    assert row("x").note == "No longer declared by app gone."


def test_one_that_moves_to_another_app_keeps_its_row():
    moved = Schedule.objects.create(name="x", task="sample.noop", cron="@daily", owner="gone")
    deploy()
    assert deploy({"name": "x"}).returned == ["x"]
    assert (row("x").pk, row("x").owner) == (moved.pk, "sample")


@pytest.mark.parametrize("names", [{"name": "theirs"}, {"name": "ours", "renamed_from": "theirs"}])
def test_a_name_that_people_made_is_reported_and_left_alone(names, caplog):
    Schedule.objects.create(name="theirs", task="sample.echo", cron="@daily")
    before = Schedule.objects.values().get()
    assert deploy(names).conflicts == [names["name"]]
    assert "people made one named 'theirs'" in caplog.text
    assert Schedule.objects.values().get() == before


def test_one_whose_calendar_is_missing_is_left_alone_and_the_others_are_not(caplog):
    report = deploy({"name": "x", "blackout": "holidays"}, {"name": "y"})
    assert (report.conflicts, report.created) == (["x"], ["y"])
    assert "there is no calendar 'holidays'" in caplog.text
    assert not Schedule.objects.filter(name="x").exists()


def test_schedules_of_people_are_theirs_also_under_a_name_that_one_had_once():
    deploy({"name": "new"})
    Schedule.objects.create(name="old", task="sample.gone", cron="@daily")
    assert not deploy({"name": "new", "renamed_from": "old"})
    assert row("old").enabled


def test_the_codes_fields_are_all_but_whether_it_is_on():
    own = {"id", "owner", "enabled", "created_at", "next_fire_at", "changed_at", "last_fire_at", "fired_count"}
    own |= {"switched_at", "note", "problem", "missed"}
    assert {field.name for field in Schedule._meta.concrete_fields} - set(declared.CODE_FIELDS) == own


@pytest.mark.django_db(transaction=True)
def test_several_that_start_at_once_make_each_schedule_once():
    declare("x", noop, every="1h")
    declarations, reports, start = list(declared.DECLARED.values()), [], threading.Barrier(4)

    def run():
        try:
            connection.ensure_connection()
            start.wait(10)
            reports.append(sync.sync(declarations))
        finally:
            connection.close()

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(report.created for report in reports) == [[], [], [], ["x"]]
    assert not any(report.conflicts or report.updated for report in reports)


@pytest.mark.django_db(transaction=True)
def test_a_name_that_people_take_meanwhile_costs_only_that_one(monkeypatch):
    declare("taken", noop, every="1h")
    declare("free", noop, every="1h")
    read = Calendar.objects.filter

    def filter_after_people_made_it(**lookups):  # between the reading of the rows and the writing
        Schedule.objects.create(name="taken", task="sample.echo", cron="@daily")
        return read(**lookups)

    monkeypatch.setattr(Calendar.objects, "filter", filter_after_people_made_it)
    report = sync.sync(declared.DECLARED.values())
    assert (report.conflicts, report.created) == (["taken"], ["free"])
    assert (row("taken").owner, row("taken").task) == ("", "sample.echo")


def test_owned_ones_are_found_by_index_among_many():
    Schedule.objects.bulk_create(Schedule(name=f"{n}", task="sample.noop", cron="@daily") for n in range(3000))
    deploy({"name": "x"})
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE scheduling_app_schedule")
    plan = sync.owned_or_named(["x", "y"]).explain()
    assert "schedule_owned" in plan
    assert "Seq Scan" not in plan


def test_a_date_that_passed_is_declared_as_finished_with_a_word_of_it(caplog):
    deploy({"name": "once", "every": "", "run_at": timezone.now() - timedelta(days=1)})
    planning.plan_changed()
    assert (row("once").next_fire_at, row("once").problem) == (None, "")
    assert "Schedule 'once' of app sample: run_at: past: it would not run." in caplog.text


@pytest.mark.parametrize("error", [DataError, ProgrammingError, InternalError, OperationalError])
def test_one_that_the_database_refuses_is_named_and_the_others_are_written(monkeypatch, caplog, error):
    create = Schedule.objects.create

    def refused(**columns):
        if columns["name"] == "bad":
            raise error("not this one") from psycopg.errors.LockNotAvailable("not this one")
        return create(**columns)

    monkeypatch.setattr(Schedule.objects, "create", refused)
    report = deploy({"name": "bad"}, {"name": "good"})
    assert (report.created, report.failed) == (["good"], ["bad"])
    assert "Schedule 'bad' of app sample is as it was: not this one" in caplog.text
    assert "refused by the database: bad" in str(report)


def test_a_lost_database_is_no_fault_of_a_declaration(monkeypatch):
    def away(**_):
        raise OperationalError("the connection is lost")

    monkeypatch.setattr(Schedule.objects, "create", away)
    with pytest.raises(OperationalError, match="lost"):
        deploy({"name": "good"})
