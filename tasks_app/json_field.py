"""The column that keeps JSON as the text that was sent."""

import json
from typing import Any

from django.db import models

from tasks_app.storable import dump_json


class JSONText(models.TextField):
    """JSON kept as the text that was sent: exact, with key order and any number or character that JSON can carry.

    (jsonb would refuse NUL and lone surrogates, and rewrite numbers and objects.) Encoded as kombu does it, so that a
    message built from the row equals the one built from the call: a datetime stays kombu's marker for one.
    """

    _pyi_private_set_type: Any  # for the type checker
    _pyi_private_get_type: Any

    def from_db_value(self, value: Any, expression: Any, connection: Any) -> Any:
        """A text that is no JSON, written by SQL, comes as it is: one bad row must not keep others from being read."""
        try:
            return None if value is None else json.loads(value)
        except (ValueError, RecursionError):
            return value

    def to_python(self, value: Any) -> Any:
        return value

    def get_prep_value(self, value: Any) -> Any:
        return value if value is None or isinstance(value, Encoded) else dump_json(value)


class Encoded(str):
    """JSON that was encoded before: a project's own encoders do not run within a transaction of ours."""
