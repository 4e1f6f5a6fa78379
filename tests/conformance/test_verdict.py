import pytest

from tests.conformance.verdict import Outcome, Verdict, read_allowed

PASSED, FAILED, SKIPPED = Outcome("passed"), Outcome("failed"), Outcome("skipped")
SOUND = {"t/integration/test_a.py::test_sound": PASSED}
TEST = "t/integration/test_canvas.py::test_chord::test_add[1]"


def verdict(console, control, *allowed):
    return Verdict(SOUND | {TEST: console}, SOUND | {TEST: control}, dict.fromkeys(allowed, "a reason"))


def test_a_run_in_which_all_pass_has_no_fault():
    assert verdict(PASSED, PASSED).fault == ""


@pytest.mark.parametrize("console", [FAILED, SKIPPED])
def test_a_test_that_only_plain_celery_passes_is_a_fault_be_it_failed_or_skipped(console):
    assert verdict(console, PASSED).regressions == [TEST]
    assert verdict(console, PASSED).fault == "1 tests pass with plain Celery only."


@pytest.mark.parametrize("control", [FAILED, SKIPPED])
def test_a_test_that_plain_celery_does_not_pass_either_is_none(control):
    assert verdict(FAILED, control).fault == ""


@pytest.mark.parametrize("entry", [TEST, TEST.removesuffix("[1]"), TEST.rsplit("::", 1)[0], TEST.split("::")[0]])
def test_a_listed_test_may_fail_by_its_own_name_or_that_of_its_class_or_file(entry):
    assert verdict(FAILED, PASSED, entry).fault == ""


@pytest.mark.parametrize("entry", [TEST.removesuffix("d[1]"), "t/integration/test_can", "test_add"])
def test_a_part_of_a_name_lists_nothing(entry):
    assert verdict(FAILED, PASSED, entry).regressions == [TEST]


def test_a_listed_test_that_passes_is_told():
    assert verdict(PASSED, PASSED, TEST).remarks() == {"In allowed.toml, but the console passes": [TEST]}


def test_a_test_that_passed_at_the_second_try_is_told():
    (tests,) = verdict(Outcome("passed", tries=2), PASSED).remarks().values()
    assert tests == [TEST]


def test_a_control_that_fails_with_the_console_time_and_again_is_no_control():
    both = {f"t/integration/test_a.py::test_{number}": FAILED for number in range(13)}
    assert "13 tests fail with plain Celery too" in Verdict(SOUND | both, SOUND | both).fault


def test_a_console_that_passes_nothing_is_a_fault_whatever_the_control_says():
    assert Verdict({TEST: SKIPPED}, {TEST: SKIPPED}).fault == "Not one test has passed with the console."


@pytest.mark.parametrize("sides", [(Outcome("not run"), PASSED), (PASSED, Outcome("not run"))])
def test_a_test_for_which_there_was_no_time_is_a_fault_on_either_side(sides):
    assert verdict(*sides).fault == "1 tests have not run: the time was over."


def test_the_table_counts_file_by_file():
    rows = [row.split() for row in verdict(FAILED, PASSED).table().splitlines()]
    assert rows[2:] == [
        ["test_a.py", "1", "0", "0", "1", "0", "0"],
        ["test_canvas.py", "0", "1", "0", "1", "0", "0"],
        ["all", "1", "1", "0", "2", "0", "0"],
    ]


def test_each_entry_of_the_list_has_a_reason():
    assert all(len(reason) > 20 for reason in read_allowed().values())
