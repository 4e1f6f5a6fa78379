"""Whether the database is away, or an error is that of what it was asked: only the first is a reason to wait."""

from django.db import DatabaseError, InterfaceError, OperationalError

#: How a SQLSTATE begins: the connection; a standby's; a transaction that stood idle; too few resources, such as
#: connections; ended by an operator; the system.
_AWAY = ("08", "25006", "25P03", "53", "57P", "58")


def is_away(error: BaseException) -> bool:
    """Whether this error means that there is no database to ask. A lock that was not granted, a statement that took too
    long, a value out of range, a right that is missing: those are the error of one statement, and others may work."""
    if isinstance(error, InterfaceError):
        return True
    if not isinstance(error, DatabaseError):
        return False
    state = sqlstate(error)
    if state is None:  # the connection was not made, or broke
        return isinstance(error, OperationalError)
    return state.startswith(_AWAY)


def sqlstate(error: BaseException) -> str | None:
    """The five characters by which Postgres says what is wrong; None where it did not say it."""
    return getattr(error, "sqlstate", None) or getattr(error.__cause__, "sqlstate", None)
