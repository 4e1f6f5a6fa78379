"""APScheduler: the jobs that a store makes anew at each look, of rows that are no pickled jobs."""

from typing import Any

from apscheduler.job import Job
from apscheduler.jobstores.base import BaseJobStore

from tasks_app.seams import KEPT, THERE, Seam

_WHY = "APScheduler's own stores do so too: it has no public way to make a job that is not added. Release 4 has others."
NAMES = (
    Seam("apscheduler.jobstores.base:BaseJobStore", "_scheduler", THERE, "`get_job` of a schedule", _WHY),
    Seam("apscheduler.jobstores.base:BaseJobStore", "_alias", THERE, "`get_job` of a schedule", _WHY),
    Seam("apscheduler.job:Job", "_jobstore_alias", KEPT, "`get_job` of a schedule", _WHY),
)


class JobStore(BaseJobStore):
    def make_job(self, args: list[Any], kwargs: dict[str, Any], **fields: Any) -> Job:
        """A job as this store's scheduler hands it out; its arguments are not held against the function's."""
        job = Job(self._scheduler, args=[], kwargs={}, **fields)
        job.args, job.kwargs, job._jobstore_alias = args, kwargs, self._alias
        return job
