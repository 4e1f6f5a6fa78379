"""What the console raises.

TaskConsoleError
├── UnknownTask        no task of this name is registered
├── TaskNotFound       no task was ever recorded under this id
├── DuplicateTask      a task with this id is recorded already
│   └── NotUnique      a task that is to be there once is there already; `task_id` is its id
├── InvalidSubmission  arguments or options that could never run; nothing was recorded
└── MessageRefused     how a task ends whose message no worker takes, or none has ever got
"""

from typing import Any


class TaskConsoleError(Exception):
    """Base of the console's own errors. Each message says what is wrong and what to do."""


class UnknownTask(TaskConsoleError, LookupError):
    pass


class TaskNotFound(TaskConsoleError, LookupError):
    pass


class DuplicateTask(TaskConsoleError, ValueError):
    pass


class NotUnique(DuplicateTask):
    def __init__(self, message: str, task_id: str):
        super().__init__(message)
        self.task_id = task_id

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (*self.args, self.task_id)


class InvalidSubmission(TaskConsoleError, ValueError):
    pass


class MessageRefused(TaskConsoleError):
    pass
