"""`manage.py schedules`: times from the function that fires; what there is; what is done to it, by whom."""

import getpass
import json
from datetime import UTC, datetime, timedelta

import pytest
from celery import current_app as app
from django.contrib.admin.models import LogEntry
from django.core.management import CommandError, call_command
from django.utils import timezone

from scheduling_app.ledger import planning
from scheduling_app.models import Calendar, Schedule


def upcoming(capsys, *arguments) -> list[str]:
    call_command("schedules", "next", *arguments, "--json")
    return json.loads(capsys.readouterr().out)


AFTER = ("--after", "2026-03-27T00:00:00Z", "--count", "3")


@pytest.mark.parametrize(
    ("arguments", "times"),
    [
        (
            ("30 2 * * *", "--tz", "Europe/Berlin"),
            ["2026-03-27T01:30:00Z", "2026-03-28T01:30:00Z", "2026-03-29T01:00:00Z"],
        ),
        (("--every", "90m"), ["2026-03-27T01:30:00Z", "2026-03-27T03:00:00Z", "2026-03-27T04:30:00Z"]),
        (("--at", "2026-04-01T12:00:00+02:00"), ["2026-04-01T10:00:00Z"]),
        (("--at", "2026-04-01T12:00", "--tz", "Asia/Tokyo"), ["2026-04-01T03:00:00Z"]),
    ],
)
def test_each_kind_prints_its_next_times_in_utc(capsys, arguments, times):
    assert upcoming(capsys, *arguments, *AFTER) == times


def test_without_json_it_is_a_time_a_line(capsys):
    call_command("schedules", "next", "0 0 * * *", "--after", "2026-01-01T12:00:00Z", "--count", "2")
    assert capsys.readouterr().out.splitlines() == ["2026-01-02T00:00:00Z", "2026-01-03T00:00:00Z"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("61 * * * *",), "cron: minute"),
        (("0 0 30 2 *",), "cron"),
        (("* * * * *", "--tz", "Mars/Olympus"), "timezone"),
        (("--every", "soon"), "every"),
        (("--at", "tomorrow"), "--at"),
        (("* * * * *", "--after", "yesterday"), "--after"),
    ],
)
def test_what_cannot_be_exits_with_2_and_says_what(arguments, says):
    with pytest.raises(CommandError, match=says) as refusal:
        call_command("schedules", "next", *arguments)
    assert refusal.value.returncode == 2


# Of the schedules that there are


def make(name: str, **fields) -> Schedule:
    return Schedule.objects.create(name=name, **{"task": "sample.echo", "args": [1], "cron": "30 2 * * *", **fields})


def run(capsys, *arguments: str) -> str:
    call_command("schedules", *arguments)
    return capsys.readouterr().out


@pytest.fixture
def published(monkeypatch):
    records = []
    monkeypatch.setattr(app, "publish", records.extend)
    return records


@pytest.mark.django_db
def test_next_takes_the_name_of_a_schedule(capsys):
    make("nightly", timezone="Europe/Berlin")
    assert upcoming(capsys, "nightly", *AFTER) == upcoming(capsys, "30 2 * * *", "--tz", "Europe/Berlin", *AFTER)


@pytest.mark.django_db
@pytest.mark.parametrize("name", ["7 day report for Berlin", "* * * * *", "@daily digest", "61 * * * *"])
def test_a_schedule_of_that_name_comes_before_an_expression(capsys, name):
    make(name)
    assert upcoming(capsys, name, *AFTER) == upcoming(capsys, "30 2 * * *", *AFTER)


@pytest.mark.parametrize("option", ["--at", "--after"])
def test_a_time_that_the_clocks_skip_is_refused(option):
    with pytest.raises(CommandError, match=f"{option}: 02:30 does not exist on that day in Europe/Berlin") as refusal:
        call_command("schedules", "next", *EVERY[option], option, "2031-03-30T02:30", "--tz", "Europe/Berlin")
    assert refusal.value.returncode == 2


@pytest.mark.parametrize("option", ["--at", "--after"])
def test_of_a_time_that_the_clocks_show_twice_it_is_said_how_it_is_read(capsys, option):
    arguments = ("schedules", "next", *EVERY[option], option, "2031-10-26T02:30", "--tz", "Europe/Berlin")
    call_command(*arguments, "--count", "1")
    printed = capsys.readouterr()
    assert (
        f"{option}: the clocks show 02:30 twice on that day; read as the first: 2031-10-26T02:30:00+02:00."
        in printed.err
    )
    assert printed.out == {"--at": "2031-10-26T00:30:00Z\n", "--after": "2031-10-26T01:30:00Z\n"}[option]


EVERY = {"--at": (), "--after": ("--every", "1h")}


def test_so_many_times_are_printed_and_no_more():
    with pytest.raises(CommandError, match="--count: 10,000 at most"):
        call_command("schedules", "next", "* * * * *", "--count", "10001")


@pytest.mark.django_db
def test_next_of_a_schedule_ends_with_its_runs_and_says_that_it_is_paused(capsys):
    Schedule.objects.filter(pk=make("n", max_runs=3, enabled=False).pk).update(fired_count=1)
    call_command("schedules", "next", "n")
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 2
    assert "n is paused" in captured.err


@pytest.mark.django_db
def test_next_without_a_name_is_what_fires_next_over_all(capsys):
    make("b", kind="date", cron="", run_at=datetime(2100, 1, 1, tzinfo=UTC))
    make("a", kind="date", cron="", run_at=datetime(2100, 1, 2, tzinfo=UTC))
    make("paused", enabled=False)
    planning.plan_changed()
    assert run(capsys, "next") == "2100-01-01T00:00:00Z  b\n2100-01-02T00:00:00Z  a\n"
    assert upcoming(capsys, "--count", "1") == [{"at": "2100-01-01T00:00:00Z", "name": "b"}]


@pytest.mark.django_db
@pytest.mark.parametrize("verb", ["next", "run", "pause", "resume"])
def test_an_unknown_name_exits_with_2_and_proposes_close_ones(verb):
    make("nightly")
    with pytest.raises(CommandError, match=r"no schedule 'nigthly'\. Did you mean 'nightly'\?") as refusal:
        call_command("schedules", verb, "nigthly")
    assert refusal.value.returncode == 2


@pytest.mark.django_db
def test_list_shows_state_next_time_and_words(capsys):
    make("on", kind="date", cron="", run_at=datetime(2100, 1, 1, tzinfo=UTC))
    make("off", enabled=False)
    broken = make("broken")
    planning.plan_changed()
    Schedule.objects.filter(pk=broken.pk).update(problem="cron: what is this")
    assert run(capsys, "list").splitlines() == [
        f"problem        {'-':<25}  broken: at 02:30, UTC  cron: what is this",
        f"paused         {'-':<25}  off: at 02:30, UTC",
        "on             2100-01-01 00:00:00+00:00  on: once at 2100-01-01 00:00 UTC, UTC",
    ]
    assert run(capsys, "list", "--state", "paused").split()[2] == "off:"


@pytest.mark.django_db
def test_list_is_machine_readable(capsys):
    make("on", kind="date", cron="", run_at=datetime(2100, 1, 1, tzinfo=UTC), queue="slow")
    planning.plan_changed()
    (listed,) = json.loads(run(capsys, "list", "--json"))
    assert listed == {
        "name": "on",
        "state": "on",
        "task": "sample.echo",
        "when": "once at 2100-01-01 00:00 UTC",
        "timezone": "UTC",
        "queue": "slow",
        "next_run_at": "2100-01-01T00:00:00Z",
        "last_run_at": None,
        "note": "",
        "problem": "",
    }


@pytest.mark.django_db
def test_run_starts_the_task_and_names_it_and_who_did(capsys, published, commits):
    schedule = make("nightly")
    with commits():
        said = run(capsys, "run", "nightly")
    (record,) = published
    assert record.task_id in said
    assert schedule.runs.get().record_id == record.task_id
    entry = LogEntry.objects.get()
    assert entry.user.username == f"{getpass.getuser()}@terminal"
    assert not entry.user.is_active
    assert not entry.user.has_usable_password()
    assert schedule.runs.get().detail == f"by {entry.user.username}"


@pytest.mark.django_db
def test_run_exits_with_1_where_the_task_cannot_be_started(capsys):
    make("gone", task="sample.gone")
    with pytest.raises(SystemExit) as refusal:
        call_command("schedules", "run", "gone")
    assert refusal.value.code == 1
    assert "No task sample.gone" in capsys.readouterr().out


@pytest.mark.django_db
def test_pause_and_resume_are_done_and_written_to_the_history(capsys):
    make("a")
    make("b")
    assert run(capsys, "pause", "a", "b").startswith("2 paused")
    assert not Schedule.objects.filter(enabled=True).exists()
    assert run(capsys, "resume", "a") == "1 resumed (a).\n"
    assert Schedule.objects.get(name="a").enabled
    assert sorted(LogEntry.objects.values_list("change_message", flat=True)) == ["Paused.", "Paused.", "Resumed."]


@pytest.mark.django_db
def test_resume_asks_what_to_do_about_missed_times(capsys):
    schedule = make("a", cron="* * * * *", enabled=False)
    Schedule.objects.filter(pk=schedule.pk).update(switched_at=timezone.now() - timedelta(minutes=5))
    assert "1 missed time runs now." in run(capsys, "resume", "a", "--missed", "latest")
    assert schedule.backfills.get().created_by == f"{getpass.getuser()}@terminal"


# Export and import


@pytest.mark.django_db
def test_export_writes_a_file_that_import_reads(capsys, tmp_path):
    file = str(tmp_path / "schedules.json")
    make("a")
    make("b")
    assert run(capsys, "export", file) == ""
    assert json.loads(run(capsys, "export", "--names", "b"))[0]["name"] == "b"
    Schedule.objects.filter(name="b").delete()
    Schedule.objects.filter(name="a").update(queue="slow")
    make("c")
    said = [
        "~ schedule a",
        '    queue: "slow" → ""',
        "+ schedule b",
        "- schedule c",
        "1 added, 1 changed, 1 removed, 0 unchanged.",
    ]
    assert run(capsys, "import", file, "--prune").splitlines() == [
        *said,
        "Nothing was written. Add --apply to write it.",
    ]
    assert set(Schedule.objects.values_list("name", "queue")) == {("a", "slow"), ("c", "")}
    assert run(capsys, "import", file, "--prune", "--apply").splitlines() == said
    assert set(Schedule.objects.values_list("name", "queue")) == {("a", ""), ("b", "")}


@pytest.mark.django_db
def test_export_of_names_takes_along_only_the_calendars_that_they_name(capsys):
    make("a", blackout=Calendar.objects.create(name="mine"))
    Calendar.objects.create(name="other")
    assert [each["name"] for each in json.loads(run(capsys, "export", "--names", "a"))] == ["mine", "a"]
    with pytest.raises(CommandError, match="no schedule 'gone'"):
        call_command("schedules", "export", "--names", "gone")


@pytest.mark.django_db
def test_an_import_that_is_refused_exits_with_1_and_writes_nothing(tmp_path):
    file = tmp_path / "schedules.json"
    file.write_text('[{"model": "scheduling_app.schedule", "name": "a", "task": "number_sum", "cron": "61 * * * *"}]')
    with pytest.raises(CommandError, match="schedule a: cron: minute") as refusal:
        call_command("schedules", "import", str(file), "--apply")
    assert refusal.value.returncode == 1
    assert not Schedule.objects.exists()


@pytest.mark.parametrize("verb", ["import", "export"])
def test_a_file_that_cannot_be_opened_exits_with_2(verb, tmp_path, db):
    with pytest.raises(CommandError, match="cannot be") as refusal:
        call_command("schedules", verb, str(tmp_path / "gone" / "file"))
    assert refusal.value.returncode == 2
