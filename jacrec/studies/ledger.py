"""Bookkeeping in a study's folder: recorded failures, the log, and the lock."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from jacrec.studies.executors import Failed, Finished
from jacrec.studies.jobs import Job
from jacrec.util import locks
from jacrec.util.files import append_json_line, read_json, write_json

LOCK, WORKERS_LOCK, LOG = ".lock", ".workers.lock", "log.jsonl"
PATIENCE = 30.0
"""seconds to wait for the workers of a killed sweep"""


@dataclass(frozen=True)
class Failure:
    """Why a job has no result."""

    error: str
    traceback: str
    attempts: int


class FailureRecord(TypedDict):
    """A recorded `Failure`."""

    error: str
    traceback: str
    attempts: int


def read_failure(job: Job) -> Failure | None:
    """The recorded failure of a job; None if there is none."""
    if not job.failure.is_file():
        return None
    record = read_json(job.failure, FailureRecord, "delete it")
    return Failure(record["error"], record["traceback"], record["attempts"])


def record_failure(job: Job, failed: Failed) -> Failure:
    """Record another failed attempt."""
    before = read_failure(job)
    failure = Failure(failed.error, failed.traceback, (before.attempts if before else 0) + 1)
    write_json(job.failure, vars(failure))
    return failure


def clear_failure(job: Job) -> None:
    """Delete the recorded failure of a job that has succeeded."""
    job.failure.unlink(missing_ok=True)


class Log:
    """STUDY/log.jsonl: one line per finished or failed job."""

    def __init__(self, folder: Path):
        self.path = folder / LOG

    def write(self, message: Finished | Failed) -> None:
        """Append the line of a job."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "job": message.id,
            "outcome": "finished" if isinstance(message, Finished) else "failed",
            "seconds": round(message.seconds, 3),
            "worker": message.worker,
        }
        line |= {"error": message.error} if isinstance(message, Failed) else {"note": message.note}
        append_json_line(self.path, line)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """Keep a second sweep out of the folder, and wait until the workers of a killed one have ended.

    The locks serve one machine (a shared file system may or may not pass them on): several machines work on a study as one
    Ray cluster.

    Yields:
        The path from which the names of the workers' own locks derive (`worker_lock`).

    Raises:
        ValueError: another sweep of this study is running, or workers of a killed one do not end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    busy = ValueError(f"{folder}: expected no running sweep of this study, got one; wait for it, or stop it")
    with locks.locked(folder / LOCK, busy):
        end = time.monotonic() + PATIENCE
        while any(map(locks.is_locked, folder.glob(f"{WORKERS_LOCK}.*"))):
            if time.monotonic() > end:
                raise ValueError(f"{folder}: expected no workers of an earlier sweep, got running ones; stop them first")
            time.sleep(0.1)
        yield folder / WORKERS_LOCK


def worker_lock(lock: Path, number: int) -> Path:
    """The lock file that a worker holds as long as it lives."""
    return lock.with_name(f"{lock.name}.{number}")


def is_locked(folder: Path) -> bool:
    """Whether a sweep is running on the folder."""
    return locks.is_locked(folder / LOCK)
