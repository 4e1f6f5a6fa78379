"""JSON as people write it, read strictly: what would be lost without a word is refused, with its place."""

import json
import math
import re
from typing import Any

#: How deep arguments may nest: whatever encodes them later does so with a deeper stack than a form's.
DEEPEST = 50
#: Characters of JSON in one field of a schedule.
LONGEST_JSON = 500_000
#: What matters in a JSON text besides its strings; a string that a colon follows is a key.
_TOKEN = re.compile(
    r'(?P<text>"(?:\\.|[^"\\])*")(?P<colon>[ \t\r\n]*:)?|(?P<open>[\[{])|(?P<close>[\]}])'
    r"|(?P<constant>-?\b(?:NaN|Infinity)\b)",
    re.DOTALL,
)
_PYTHONS = {"True": "true", "False": "false", "None": "null"}


class JSONTextError(ValueError):
    """Why a text is not read as JSON, with the place in it."""


def read_json(text: str, deepest: int = DEEPEST) -> Any:
    """The value of a JSON text. Raises JSONTextError: also for a key that is there twice, for NaN and infinities, and
    for what nests deeper than `deepest`."""
    _check_tokens(text, deepest)
    try:
        return json.loads(text, parse_float=_finite)
    except json.JSONDecodeError as error:
        raise _at(text, error.pos, _hint(text, error)) from error
    except JSONTextError:
        raise
    except ValueError as error:
        raise JSONTextError(f"A number in it is too long: {error}.") from error


def _check_tokens(text: str, deepest: int) -> None:
    keys: list[set[str]] = []  # those of each object and list that is open
    for token in _TOKEN.finditer(text):
        if token["open"]:
            keys.append(set())
            if len(keys) > deepest:
                raise _at(text, token.start(), f"nested more than {deepest} deep")
        elif token["close"]:
            del keys[-1:]
        elif token["constant"]:
            raise _at(text, token.start(), f"{token['constant']} is no JSON: write a number or null")
        elif token["colon"] and keys:
            key = _unescaped(token["text"])
            if key in keys[-1]:
                raise _at(text, token.start(), f"the key {token['text'][:80]} is there twice")
            keys[-1].add(key)


def _unescaped(token: str) -> str:
    try:
        return json.loads(token)
    except ValueError:  # of which reading it complains
        return token


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise JSONTextError(f"{text[:40]} is too large a number.")
    return number


def _hint(text: str, error: json.JSONDecodeError) -> str:
    found = text[error.pos :]
    if found.startswith("'"):
        return "text stands in double quotes, not in single ones"
    for python, right in _PYTHONS.items():
        if found.startswith(python):
            return f"write {right}, not {python}"
    what = f"{error.msg[0].lower()}{error.msg[1:]}"
    return f"{what}, but it ends here" if not found.strip() else what


def _at(text: str, position: int, what: str) -> JSONTextError:
    line = text.count("\n", 0, position) + 1
    column = position - text.rfind("\n", 0, position)
    return JSONTextError(f"line {line}, column {column}: {what}")
