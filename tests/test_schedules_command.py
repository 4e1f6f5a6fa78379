"""`manage.py schedules next`: times from the function that fires."""

import json

import pytest
from django.core.management import CommandError, call_command


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
