"""What a row can hold, and a worker decode: times, and the JSON of arguments and options."""

import json
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from kombu.utils.json import JSONEncoder, loads

from tasks_app.exceptions import InvalidSubmission
from tasks_app.formats import unpacked_max

#: Levels of lists and objects in arguments and options. Python reads and writes deep ones only as far as its stack
#: allows at that point: what was just written here might not be read there.
DEEPEST = 200
#: Between which times lie that a record can hold, in any zone.
TIMES = datetime(1, 1, 3, tzinfo=UTC), datetime(9999, 12, 30, tzinfo=UTC)
#: What nests.
NESTED = (dict, list, tuple)
encode = JSONEncoder().encode


def dump_json(value: Any) -> str:
    """JSON as kombu writes it. Raises InvalidSubmission for what JSON cannot carry."""
    try:
        return encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidSubmission(f"Arguments and options travel as JSON: {error}.") from error


def as_sent(value: Any) -> Any:
    """A row's JSON as a message has it, where bytes, times and ids are what they were; itself, where that cannot be."""
    try:
        return loads(dump_json(value))
    except ValueError:  # of a type that this process does not know
        return value


def printable(text: str) -> str:
    """`text` with what Postgres cannot hold (NUL, lone surrogates) escaped."""
    return text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()


def check_texts(args: str, kwargs: str, options: str = "{}", compressed: bool = False) -> None:
    """Raises InvalidSubmission for arguments and options, as JSON, that a worker could not decode, or unpack."""
    _check_text("args", args, list)
    _check_text("kwargs", kwargs, dict)
    try:
        _check_text("options", options, dict)
    except InvalidSubmission:
        with suppress(RecursionError):
            for name, value in json.loads(options).items():
                _check_text(name, encode(value), object)
        raise
    if compressed and (length := len(args) + len(kwargs) + len(options)) > unpacked_max() - 1000:
        raise InvalidSubmission(
            f"compression: {length:,} bytes, and a worker unpacks {unpacked_max():,} at most. Leave compression out, "
            "or pass a reference to the data."
        )


def is_deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects nest more than `levels` deep within this one."""
    layer = [value]
    for _ in range(levels + 1):
        below = []
        for each in layer:
            for child in each.values() if isinstance(each, dict) else each:
                if isinstance(child, NESTED):
                    below.append(child)
        if not below:
            return False
        layer = below
    return True


def _text_is_deeper(text: str) -> bool:
    try:
        return is_deeper(json.loads(text), DEEPEST)
    except RecursionError:
        return True


def _check_text(field: str, text: str, kind: type) -> None:
    if text.count("[") + text.count("{") > DEEPEST and _text_is_deeper(text):
        raise InvalidSubmission(
            f"{field}: nested more than {DEEPEST} levels deep. Pass it as a text, or a reference to the data."
        )
    if '"__type__"' in text:
        check_markers(field, text, kind)


def check_markers(field: str, text: str, kind: type) -> None:
    try:
        fits, reason = isinstance(loads(text), kind), "the whole would be taken for such a value"
    except Exception as error:  # by whatever makes the value: types can be registered with kombu
        fits, reason = False, f"{type(error).__name__}: {error}"
    if not fits:
        raise InvalidSubmission(
            f"{field}: an object with the keys __type__ and __value__ is how kombu sends a value that JSON has not, "
            f"and a worker cannot decode this one ({reason:.200}). Name its keys differently."
        )
