"""What every way of running jobs has in common: messages from the workers, and the interface.

Executor        .slots .submit(job) .wait(seconds) -> list[Message] .close()
Progress(id, share)   Finished(id, note, seconds, worker)   Failed(id, error, traceback, seconds, worker)
perform(job, worker, report) -> Finished | Failed
"""

import time
import traceback
from dataclasses import dataclass
from typing import Protocol

from jacrec.studies.jobs import Job, Report

GRACE = 20.0
"""seconds that interrupted jobs are given to write a checkpoint"""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""where numerical libraries look, when they are loaded, for how many threads they may start"""


@dataclass(frozen=True)
class Progress:
    """A job is at work."""

    id: str
    share: float
    """0 to 1"""


@dataclass(frozen=True)
class Finished:
    """A job is done, and its result in the study's folder."""

    id: str
    note: str
    seconds: float
    worker: str


@dataclass(frozen=True)
class Failed:
    """A job came to nothing."""

    id: str
    error: str
    """one line"""
    traceback: str
    seconds: float
    worker: str


Message = Progress | Finished | Failed


class Executor(Protocol):
    """Runs jobs side by side."""

    @property
    def slots(self) -> int:
        """How many jobs it wants at a time."""
        ...

    def submit(self, job: Job) -> None:
        """Begin a job; not more than `slots` at a time."""
        ...

    def wait(self, seconds: float) -> list[Message]:
        """What has been heard from the workers, after at most this time."""
        ...

    def close(self) -> None:
        """End the workers, in the middle of their jobs too: trainings write a checkpoint first."""
        ...


def perform(job: Job, worker: str, report: Report) -> Finished | Failed:
    """Do a job; what went wrong is told, not raised (but for interruptions)."""
    began = time.perf_counter()
    try:
        note = job.perform(report)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        return Failed(job.id, text, traceback.format_exc(), time.perf_counter() - began, worker)
    return Finished(job.id, note, time.perf_counter() - began, worker)
