"""What the console raises.

TaskConsoleError
├── UnknownTask        no task of this name is registered
├── TaskNotFound       no task was ever recorded under this id
├── DuplicateTask      a task with this id is recorded already
└── InvalidSubmission  arguments or options that could never run; nothing was recorded
"""


class TaskConsoleError(Exception):
    """Base of the console's own errors. Each message says what is wrong and what to do."""


class UnknownTask(TaskConsoleError, LookupError):
    pass


class TaskNotFound(TaskConsoleError, LookupError):
    pass


class DuplicateTask(TaskConsoleError, ValueError):
    pass


class InvalidSubmission(TaskConsoleError, ValueError):
    pass
