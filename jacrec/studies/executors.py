"""The interface of executors, which run jobs, and the messages of their workers."""

import time
import traceback
from dataclasses import dataclass
from typing import Protocol

from jacrec.studies.jobs import Job, Report
from jacrec.util.signals import is_interrupt

GRACE = 20.0
"""seconds granted to interrupted jobs for writing a checkpoint"""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""environment variables from which numerical libraries read their number of threads at load time"""


@dataclass(frozen=True)
class Progress:
    """A running job has made progress."""

    id: str
    share: float
    """finished fraction, 0 to 1"""


@dataclass(frozen=True)
class Finished:
    """A job is done and its result written to the study's folder."""

    id: str
    note: str
    seconds: float
    worker: str


@dataclass(frozen=True)
class Failed:
    """A job failed."""

    id: str
    error: str
    """one line"""
    traceback: str
    seconds: float
    worker: str


Message = Progress | Finished | Failed


class Executor(Protocol):
    """Runs jobs concurrently."""

    @property
    def slots(self) -> int:
        """Maximum number of concurrent jobs."""
        ...

    def submit(self, job: Job) -> None:
        """Start a job; at most `slots` at a time."""
        ...

    def wait(self, seconds: float) -> list[Message]:
        """Messages of the workers, received within this time."""
        ...

    def close(self) -> None:
        """Stop the workers, interrupting running jobs; trainings write a checkpoint first."""
        ...


def perform(job: Job, worker: str, report: Report) -> Finished | Failed:
    """Do a job; errors are returned as `Failed` (interruptions are raised)."""
    began = time.perf_counter()
    try:
        note = job.perform(report)
    except Exception as error:
        if is_interrupt(error):
            raise KeyboardInterrupt from error
        text = f"{type(error).__name__}: {error}"
        return Failed(job.id, text, traceback.format_exc(), time.perf_counter() - began, worker)
    return Finished(job.id, note, time.perf_counter() - began, worker)
