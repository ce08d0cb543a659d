"""Who measures what, when: tasks of one shard and some ablations, done in this process, in others, or on others' hosts.

`tasks` is what there is to do, `work` what a task needs beside itself, `stops` how one is asked to stop. An executor
takes tasks and gives back each with what was measured, or with the error that came of it: `executor` is that seam and
this process, `crew` what all others have in common, `processes` those of loky on this machine, `cluster` the workers of
a Dask scheduler.
"""

from weanalysis.ablation.schedule.executor import Executor, measure_all
from weanalysis.ablation.schedule.opening import open_executor
from weanalysis.ablation.schedule.stops import StopRequest
from weanalysis.ablation.schedule.tasks import Task, choose_jobs, cut
from weanalysis.ablation.schedule.work import Work

__all__ = [
    "Executor",
    "StopRequest",
    "Task",
    "Work",
    "choose_jobs",
    "cut",
    "measure_all",
    "open_executor",
]
