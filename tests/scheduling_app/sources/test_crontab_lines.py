"""`manage.py importcrontab`: which lines of a crontab fit the tasks there are, as what, and why the others do not."""

import io
from datetime import UTC, datetime

import pytest
import time_machine
from django.contrib.admin.models import LogEntry
from django.core.management import CommandError, call_command

from scheduling_app.management.commands.importcrontab import contents
from scheduling_app.models import Schedule
from scheduling_app.sources.crontab_lines import Line, read

NOW = datetime(2026, 3, 27, 12, tzinfo=UTC)
CLEAR = "0 3 * * * ./manage.py clearsessions"


def lines(text: str, **options) -> list[Line]:
    return list(read(text, **{"timezone": "UTC", "now": NOW, **options}))


def schedule_of(line: str, **options) -> Schedule:
    (found,) = lines(line, **options)
    assert found.found, found.reason
    return found.found.schedule


def reason_of(line: str, **options) -> str:
    (found,) = lines(line, **options)
    assert found.found is None
    assert found.is_command
    return found.reason


# Management commands


@pytest.mark.parametrize(
    ("command", "args"),
    [
        ("./manage.py clearsessions", ["clearsessions"]),
        ("/srv/venv/bin/python3.11 /srv/app/manage.py check --tag 'a b'", ["check", "--tag", "a b"]),
        ("cd /srv/app && python manage.py clearsessions >> /var/log/x.log 2>&1", ["clearsessions"]),
        ("django-admin check --deploy > /dev/null", ["check", "--deploy"]),
        ("python -m django check", ["check"]),
        (r"./manage.py check --tag 100\%", ["check", "--tag", "100%"]),
    ],
)
def test_a_management_command_is_run_by_run_command(command, args):
    schedule = schedule_of(f"0 3 * * * {command}")
    assert (schedule.task, schedule.args, schedule.cron) == ("run_command", args, "0 3 * * *")


def test_that_its_output_goes_elsewhere_is_told():
    (line,) = lines("0 3 * * * ./manage.py check >> /var/log/x.log 2>&1")
    assert "not in /var/log/x.log" in line.found.notes[-1]
    (line,) = lines("0 3 * * * ./manage.py check >/dev/null 2>&1")
    assert len(line.found.notes) == 1


# Lines and fields

_NO_ENDS = ["\v", "\f", "\r", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]


@pytest.mark.parametrize("sign", _NO_ENDS)
def test_a_line_ends_at_a_newline_and_nowhere_else(sign):
    assert not lines(f"# off:{sign}* * * * * curl https://example.com")
    (line,) = lines(f"# off:{sign}* * * * * curl https://example.com\n{CLEAR}")
    assert line.number == 2


@pytest.mark.parametrize("sign", [*_NO_ENDS, "\xa0", "\u3000"])
def test_fields_part_at_blanks_and_tabs_and_nowhere_else(sign):
    assert "cron" in reason_of(f"* * *{sign}* * * ./manage.py clearsessions") or sign == "\r"
    (line,) = lines(f"{sign}# no comment * * * *")
    assert line.found is None
    assert schedule_of("0\t3 \t * *\t*   ./manage.py\tclearsessions").args == ["clearsessions"]


def test_a_carriage_return_is_a_part_of_the_command_as_with_cron(tmp_path):
    assert "carriage return" in reason_of(f"{CLEAR}\r")
    file = tmp_path / "crontab"
    file.write_bytes(b"# off:\r* * * * * curl https://example.com\n")
    assert contents(str(file)) == "# off:\r* * * * * curl https://example.com\n"


# Requests


@pytest.mark.parametrize(
    ("command", "args", "kwargs"),
    [
        ("curl https://example.com/x", ["GET", "https://example.com/x"], {"timeout": 900}),
        ("curl -fsS -m 10 'example.com/?a=1&b=2' >/dev/null", ["GET", "http://example.com/?a=1&b=2"], {"timeout": 10}),
        (r"curl -m 0 'https://example.com/\%20'", ["GET", "https://example.com/%20"], {"timeout": 900}),
        ("curl -sI https://example.com/", ["HEAD", "https://example.com/"], {"timeout": 900}),
        (
            "curl -X PUT -H 'X-A: 1' -A me --data '{}' -H content-type:text/plain https://example.com/",
            ["PUT", "https://example.com/"],
            {"timeout": 900, "body": "{}", "headers": {"X-A": "1", "content-type": "text/plain", "User-Agent": "me"}},
        ),
        (
            "curl -d a=1 -d b=2 https://example.com/",
            ["POST", "https://example.com/"],
            {
                "timeout": 900,
                "body": "a=1&b=2",
                "headers": {"Content-Type": "application/x-www-form-urlencoded"},
            },
        ),
        ("wget -q -T 2.5 -O /dev/null https://example.com/", ["GET", "https://example.com/"], {"timeout": 2.5}),
        ("/usr/bin/wget -q https://example.com/", ["GET", "https://example.com/"], {"timeout": 900}),
    ],
)
def test_a_request_is_made_by_http_request(command, args, kwargs):
    schedule = schedule_of(f"@daily {command}")
    assert (schedule.task, schedule.args, schedule.kwargs, schedule.cron) == ("http_request", args, kwargs, "@daily")


# What does not fit


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("0 0 * * * /usr/local/bin/backup.sh", "'backup.sh' is neither"),
        ("0 0 * * * ./manage.py migrate", "RUN_COMMAND_ALLOWED"),
        ("0 0 * * * ./manage.py check --settings=other", "with the settings of that"),
        ("0 0 * * * A=1 ./manage.py check", "'A=1' is neither"),
        ("0 0 * * * ./manage.py check | mail me", "| needs a shell"),
        ("0 0 * * * ./manage.py check && ./manage.py check", "&& needs a shell"),
        ("0 0 * * * ./manage.py check $HOME", "$ needs a shell"),
        ("0 0 * * * ./manage.py check `date`", "` needs a shell"),
        ("0 0 * * * ./manage.py check # daily", "A # within a line"),
        ("0 0 * * * ./manage.py 'check", "No closing quotation"),
        ("0 0 * * * mail -s hi me%hello%there", "the command's input"),
        ("0 0 * * * curl https://example.com/?a=1&b=2", "& needs a shell"),
        ("0 0 * * * curl -L https://example.com/", "no redirects"),
        ("0 0 * * * curl -u a:b https://example.com/", "unrecognized arguments: -u"),
        ("0 0 * * * curl -o x https://example.com/", "invalid choice: 'x'"),
        ("0 0 * * * curl -m soon https://example.com/", "invalid seconds value"),
        ("0 0 * * * curl -d @file https://example.com/", "@file"),
        ("0 0 * * * curl https://a:b@example.com/", "password"),
        ("0 0 * * * curl https://a.example/ https://b.example/", "not 2"),
        ("0 0 * * * curl 'https://example.com/[1-3]'", "several addresses"),
        ("0 0 * * * curl https://example.com/ä", "%XX"),
        ("0 0 * * * curl ftp://example.com/", "not an http"),
        ("0 0 * * * curl http://[::1", "not an http"),
        ("0 0 * * * curl http://localhost/cron", "HTTP_REQUEST_ALLOW_PRIVATE"),
        ("0 0 * * * curl http://10.0.0.1/cron", "HTTP_REQUEST_ALLOW_PRIVATE"),
        ("@reboot ./manage.py check", "@reboot"),
        ("61 * * * * ./manage.py check", "minute: 61"),
        ("0 0 30 2 * ./manage.py check", "no date ever"),
        ("0 0 * * *", "ends too early"),
        ("17 * * * * root cd / && run-parts /etc/cron.hourly", "--user-field"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(line, says):
    assert says in reason_of(line)


def test_private_addresses_are_taken_where_they_are_allowed(settings):
    settings.HTTP_REQUEST_ALLOW_PRIVATE = True
    assert schedule_of("0 0 * * * curl http://localhost/cron").args == ["GET", "http://localhost/cron"]


# The file as a whole


def test_comments_above_a_line_and_the_line_itself_describe_its_schedule():
    found = lines(f"# All of mine\n\n# Old sessions,\n# nightly\n{CLEAR}\n")
    assert [line.number for line in found] == [5]
    assert found[0].found.schedule.description == f"Old sessions,\nnightly\n{CLEAR}"


def test_variables_are_listed_with_what_becomes_of_them():
    found = lines('MAILTO=me\nPATH = "/bin"\nDEBUG=1\n')
    assert [line.is_command for line in found] == [False] * 3
    assert [line.reason for line in found] == [
        "MAILTO: no mail is sent: a failed run is shown on its schedule's page.",
        "PATH: not needed.",
        "DEBUG: not set for the lines below: they run with the worker's environment.",
    ]


def test_cron_tz_is_the_zone_of_the_lines_below_it():
    text = f"{CLEAR}\nCRON_TZ=Asia/Tokyo\n{CLEAR} --x\nCRON_TZ=\n{CLEAR} --y\nCRON_TZ='Mars/Olympus'\n{CLEAR} --z"
    found = [line for line in lines(text, timezone="Europe/Berlin") if line.is_command]
    assert [line.found.schedule.timezone for line in found[:3]] == ["Europe/Berlin", "Asia/Tokyo", "Europe/Berlin"]
    assert "timezone" in found[3].reason


def test_a_user_field_is_skipped():
    assert schedule_of("0 3 * * * www-data ./manage.py check", user_field=True).args == ["check"]
    assert schedule_of("@daily www-data ./manage.py check", user_field=True).args == ["check"]


def test_lines_with_the_same_command_get_names_of_their_own():
    found = lines(f"{CLEAR}\n@daily ./manage.py clearsessions\n")
    assert [line.found.schedule.name for line in found] == ["clearsessions", "clearsessions (2)"]


# The command

CRONTAB = f"""\
MAILTO=me
{CLEAR}
30 2 * * * curl -s https://example.com/ping
@reboot ./manage.py check
"""


@pytest.fixture
def crontab(tmp_path):
    file = tmp_path / "crontab"
    file.write_text(CRONTAB)
    return str(file)


@pytest.mark.django_db
def test_without_apply_it_shows_words_and_next_times_and_what_does_not_fit(crontab, capsys):
    with time_machine.travel(NOW, tick=False), pytest.raises(CommandError, match="1 line does not fit") as refusal:
        call_command("importcrontab", crontab, "--tz", "Europe/Berlin", "--no-color")
    assert refusal.value.returncode == 1
    said = capsys.readouterr().out
    assert "line 2: clearsessions\n    at 03:00 (0 3 * * *), Europe/Berlin\n" in said
    assert said.count(" 02:30:00+0") == 4
    assert "2026-03-29 03:00:00+02:00  clocks go forward" in said
    assert "line 4: cron: @reboot is refused" in said
    assert "    @reboot ./manage.py check\n" in said
    assert not Schedule.objects.exists()


@pytest.mark.django_db
def test_apply_writes_what_fits_and_leaves_alone_what_is_there(crontab, capsys):
    Schedule.objects.create(name="clearsessions", task="sample.noop", cron="0 0 * * *")
    with pytest.raises(CommandError):
        call_command("importcrontab", crontab, "--apply", "--no-color")
    assert "line 2: clearsessions: there is a schedule of that name" in capsys.readouterr().out
    assert Schedule.objects.get(name="clearsessions").task == "sample.noop"
    schedule = Schedule.objects.get(name="GET https://example.com/ping")
    assert (schedule.task, schedule.cron, schedule.timezone) == ("http_request", "30 2 * * *", "UTC")
    assert LogEntry.objects.get().change_message == "Imported from a crontab."


@pytest.mark.django_db
def test_it_reads_standard_input(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(CLEAR))
    call_command("importcrontab", "-", "--apply")
    assert Schedule.objects.get().name == "clearsessions"


@pytest.mark.parametrize(
    ("arguments", "says"), [(["gone"], "gone cannot be read"), (["-", "--tz", "Mars/Olympus"], "--tz")]
)
def test_what_was_asked_wrongly_exits_with_2(arguments, says):
    with pytest.raises(CommandError, match=says) as refusal:
        call_command("importcrontab", *arguments)
    assert refusal.value.returncode == 2
