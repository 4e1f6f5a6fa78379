"""What a row can hold."""

from tasks_app.storable import printable


def test_text_that_postgres_cannot_hold_is_escaped():
    assert printable("a\x00b\ud800ü") == "a\\x00b\\ud800ü"
