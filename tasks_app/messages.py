"""What can become a message that a worker takes: one set of rules, by whatever road a task comes.

A submit, a form, an import and a declaration are refused by them with the name of the field; a row that was written by
SQL ends with the same words when it is to be published. Everything that passes can be encoded here, and decoded by a
worker that has the same settings: formats and compressions are not looked up in a list, they are tried. What plain
Celery's users may pass, and what Celery passes itself (retries send a request's headers again), goes through.
"""

from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from celery.app.task import Context

from tasks_app.conf import conf
from tasks_app.exceptions import InvalidSubmission
from tasks_app.formats import check_compression, check_serializer, serializer_of
from tasks_app.storable import DEEPEST, NESTED, TIMES, check_markers, check_texts, encode, is_deeper

if TYPE_CHECKING:
    from tasks_app.models import TaskRecord

#: Levels of lists and objects in a header or a property.
DEEPEST_HEADER = 40
#: Characters of all headers together, and of any other text that a worker reads before the arguments.
LONGEST_HEADER = 65_536

#: Options that tell how to publish here and now, which the console does not: they are neither checked nor kept.
OF_PUBLISHING = frozenset({"declare", "retry", "retry_policy", "timeout", "confirm_timeout", "event_dispatcher"})
#: Headers by which a worker knows a task. (Celery's protocol 2; what kombu adds; the console's own.)
_PROTOCOL = {
    "lang", "task", "id", "root_id", "parent_id", "group", "group_index", "meth", "shadow", "eta", "expires", "retries",
    "timelimit", "argsrepr", "kwargsrepr", "origin", "ignore_result", "replaced_task_nesting", "stamped_headers",
    "stamps", "compression", "content-type", "content-encoding", "content_type", "content_encoding", "gen",
}  # fmt: skip
#: And those under which a task's request has its methods, or the console its own marks: a header would replace them.
_OF_REQUEST = {name for name in dir(Context) if name.startswith("_") or callable(getattr(Context, name))}
OWNED_HEADERS = frozenset(_PROTOCOL | _OF_REQUEST | {"claimed", "is_next", "next_run", "raised"})
#: What is no option, since whatever makes a message has it from elsewhere: from the record, or from the transport.
_NOT_OPTIONS = frozenset({
    "task_id", "name", "args", "kwargs", "queue", "priority", "root_id", "parent_id", "group_id", "retries",
    "countdown", "eta", "expires", "callbacks", "errbacks", "create_sent_event", "now", "timezone", "producer",
    "publisher", "connection", "message", "body", "delivery_tag", "delivery_info", "body_encoding",
})  # fmt: skip
_SCALARS = (str, int, float, bool, type(None))


def check_record(record: "TaskRecord", accepts: frozenset[str], known: Collection[str] = ()) -> None:
    """Raises InvalidSubmission for names, ids, options and headers with which no worker would take its message.

    `accepts`: the content types that workers accept. `known`: options that were checked with an earlier record. (For
    the arguments: `check_texts`.)
    """
    for field in ("name", "queue", "root_id"):
        _require(field, getattr(record, field), is_id, _AN_ID)
    for field in ("parent_id", "group_id"):
        if (value := getattr(record, field)) is not None:
            _require(field, value, is_id, _AN_ID)
    for field in ("eta", "expires"):
        if (value := getattr(record, field)) is not None:
            _require(field, value, _is_time, "a time between the years 1 and 9999")
    _require("retries", record.retries, is_count, _A_COUNT)
    options = record.options
    if not isinstance(options, Mapping):
        raise _wrong("options", options, "a JSON object")
    if taken := sorted(_NOT_OPTIONS.intersection(options)):
        raise InvalidSubmission(f"options: {', '.join(taken)} cannot be among them. Leave it out.")
    check_options(options if not known else {key: options[key] for key in options if key not in known}, accepts)


def check_row(record: "TaskRecord", accepts: frozenset[str]) -> None:
    """The same, with the arguments, for a row that anybody may have written. Raises InvalidSubmission."""
    args, kwargs = record.args, record.kwargs
    if not isinstance(args, list):
        raise _wrong("args", args, f"a JSON list, at most {DEEPEST} levels deep")
    if not isinstance(kwargs, dict):
        raise _wrong("kwargs", kwargs, f"a JSON object, at most {DEEPEST} levels deep")
    check_record(record, accepts)
    options = record.options
    if "compression" in options or any(map(_is_suspect, (args, kwargs, options))):
        check_texts(encode(args), encode(kwargs), encode(options), compressed="compression" in options)


def check_options(options: Mapping[str, Any], accepts: frozenset[str]) -> None:
    """Raises InvalidSubmission for options of `apply_async`, those of a signature included, that make no message."""
    for name, value in options.items():
        if value is None or name in OF_PUBLISHING:
            continue
        if (rule := _RULES.get(name)) is not None:
            _require(name, value, *rule)
        elif value.__class__ not in _SCALARS and name not in _CHECKED_APART:
            _check_depth(name, value)
    check_headers(options.get("headers"))
    _check_format(options, accepts)
    if stamps := options.get("stamped_headers"):
        _check_stamps(stamps)
    for name in _FOLLOWING & options.keys():
        _check_following(name, options[name], accepts)


def check_headers(headers: Mapping[str, Any] | None) -> None:
    """Raises InvalidSubmission unless they are an object of names that are free, with values that JSON can carry."""
    if headers is None:
        return
    if not isinstance(headers, Mapping):
        raise _wrong("headers", headers, "an object, with texts as its keys")
    length = 0
    for name, value in headers.items():
        if not isinstance(name, str):
            raise InvalidSubmission(f"headers: the name of each must be a text, not {name!r:.80}.")
        if name in OWNED_HEADERS:
            raise InvalidSubmission(f"headers: {name} is set by Celery or the console itself. Use another name.")
        length += len(name) + _length_of_header(name, value)
    if length > LONGEST_HEADER:
        raise InvalidSubmission(
            f"headers: {length:,} characters, {LONGEST_HEADER:,} are allowed. Pass what is long as an argument."
        )


def _length_of_header(name: str, value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if name == "headers":  # those that a request has, where tracing tools put theirs; a retry passes them as its own
        check_headers(value)
    elif name == "retry_policy" and isinstance(value, dict):
        _require("headers: retry_policy.max_retries", value.get("max_retries"), _or_none(is_count), _A_COUNT)
        _require("headers: retry_policy.backoff", value.get("backoff"), _or_none(is_seconds), _SECONDS)
    if value.__class__ in _SCALARS:
        return 8
    _check_depth(f"headers: {name}", value)
    text = _encoded(f"headers: {name}", value)
    if '"__type__"' in text:
        check_markers(f"headers: {name}", text, object)
    return len(text)


def may_adopt(request: Any) -> str | None:
    """Why a task that another producer sent is not to get a record, and not to run; None where it may."""
    if not conf.TASK_ADOPT_UNKNOWN:
        return "its id has no record, and TASK_ADOPT_UNKNOWN is off"
    try:
        for name in ("id", "task"):
            _require(name, getattr(request, name, None), is_id, _AN_ID)
        for name in ("root_id", "parent_id", "group"):
            value = getattr(request, name, None)
            _require(name, value if isinstance(value, str) else None, _or_none(is_id), _AN_ID)
        queue = (getattr(request, "delivery_info", None) or {}).get("routing_key")
        _require("routing_key", queue or None, _or_none(is_id), _AN_ID)
        args, kwargs = (_encoded(name, getattr(request, name, None) or kind()) for name, kind in _ARGUMENTS)
        check_texts(args, kwargs)
    except InvalidSubmission as error:
        return str(error)
    if (length := len(args) + len(kwargs)) > (most := conf.TASK_ARGS_MAX_BYTES):
        return f"its arguments are {length:,} bytes as JSON, {most:,} are allowed (TASK_ARGS_MAX_BYTES)"
    return None


def is_id(value: Any) -> bool:
    """Whether it is a text that a record can hold as an id, or a name."""
    if not isinstance(value, str) or not 0 < len(value) <= 255 or "\x00" in value:
        return False
    return value.isascii() or not any("\ud800" <= each <= "\udfff" for each in value)


def is_count(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value < 2**31


def is_seconds(value: Any) -> bool:
    """Whether a timer can wait for it: not NaN, nor what overflows one."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9


def _or_none(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


def _is_time(value: datetime) -> bool:
    return TIMES[0] <= value <= TIMES[1]


def _is_header_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST_HEADER


def _is_priority(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 9


def _are_texts(value: Any) -> bool:
    return isinstance(value, list | tuple | set) and all(isinstance(each, str) for each in value)


_AN_ID = "a text of 1 to 255 characters, without NUL"
_A_COUNT, _A_TEXT = "a whole number from 0 up", f"a text of at most {LONGEST_HEADER:,} characters"
_SECONDS = "a number of seconds from 0 up, below 1e9"
_ARGUMENTS = ("args", list), ("kwargs", dict)
_PARTS = ("args", list | tuple, "a list"), ("kwargs", Mapping, "an object"), ("options", Mapping, "an object")
#: What an option must be, and that in words. Other options are properties of the message: anything that JSON can carry.
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("time_limit", "soft_time_limit", "expiration"), (is_seconds, _SECONDS)),
    **dict.fromkeys(("argsrepr", "kwargsrepr", "shadow", "origin", "reply_to"), (_is_header_text, _A_TEXT)),
    **dict.fromkeys(("serializer", "compression", "content_type", "content_encoding"), (_is_header_text, "a name")),
    **dict.fromkeys(("retries", "replaced_task_nesting"), (is_count, _A_COUNT)),
    "priority": (_is_priority, "a whole number from 0 (most urgent) to 9"),
    "delivery_mode": (
        lambda value: isinstance(value, int | str) and value in (1, 2, "transient", "persistent"),
        '1, 2, "transient" or "persistent"',
    ),
    "stamped_headers": (_are_texts, "a list of names"),
}
#: Options that hold signatures: of what follows from the task's end.
_FOLLOWING = {"link", "link_error", "chain", "chord"}
_SHAPES = {"chord": (dict, "a signature"), "chain": (list | tuple, "a list of signatures")}
_CHECKED_APART = _FOLLOWING | {"headers"}


def _require(name: str, value: Any, fits: Callable[[Any], bool], what: str) -> None:
    if not fits(value):
        raise _wrong(name, value, what)


def _wrong(name: str, value: Any, what: str) -> InvalidSubmission:
    return InvalidSubmission(f"{name} must be {what}, not {value!r:.80}.")


def _encoded(name: str, value: Any) -> str:
    try:
        return encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidSubmission(f"{name}: JSON cannot carry it: {error}.") from error


def _is_suspect(value: Any) -> bool:
    """Whether there may be anything in it that `check_texts` looks for, at a third of the cost of a text."""
    layer = [value]
    for _ in range(DEEPEST):
        below = []
        for each in layer:
            if each.__class__ is dict and "__type__" in each:
                return True
            below += [
                child for child in (each.values() if isinstance(each, dict) else each) if child.__class__ in NESTED
            ]
        if not below:
            return False
        layer = below
    return True


def _check_depth(name: str, value: Any) -> None:
    if isinstance(value, NESTED) and is_deeper(value, DEEPEST_HEADER):
        raise InvalidSubmission(f"{name}: nested more than {DEEPEST_HEADER} levels deep. Pass it as an argument.")


def _check_format(options: Mapping[str, Any], accepts: frozenset[str]) -> None:
    """That a worker can undo what is done to the body. A `content_type` goes before a `serializer`."""
    field = "content_type" if options.get("content_type") is not None else "serializer"
    if (name := options.get(field)) is not None:
        check_serializer(field, serializer_of(name), accepts)
    if (method := options.get("compression")) is not None:
        check_compression(method)


def _check_stamps(names: Collection[str]) -> None:
    if taken := sorted((_NOT_OPTIONS | _RULES.keys() | _CHECKED_APART | {"__type__"}).intersection(names)):
        raise InvalidSubmission(f"stamped_headers: {', '.join(taken)} means something else. Use another name.")


def _check_following(name: str, value: Any, accepts: frozenset[str]) -> None:
    if value is None:
        return
    kind, what = _SHAPES.get(name, (dict | list | tuple, "a signature, or a list of them"))
    if not isinstance(value, kind):
        raise _wrong(name, value, what)
    for each in [value] if isinstance(value, dict) else value:
        _check_signature(name, each, accepts)


def _check_signature(name: str, value: Any, accepts: frozenset[str]) -> None:
    """Of a task; the tasks of a group or a chord among them are checked when they are sent."""
    if not isinstance(value, dict) or not is_id(value.get("task")):
        raise _wrong(name, value, "a signature, with the name of its task")
    task = value["task"]
    for part, kind, what in _PARTS:
        if value.get(part) is not None and not isinstance(value[part], kind):
            raise _wrong(f"{name}: {part} of {task}", value[part], what)
    try:
        check_options(value.get("options") or {}, accepts)
    except InvalidSubmission as error:
        raise InvalidSubmission(f"{name}: {task}: {error}") from error
