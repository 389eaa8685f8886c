"""Bookkeeping in a study's folder: recorded failures, the log, and the lock."""

import contextlib
import fcntl
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jacrec.studies.executors import Failed, Finished
from jacrec.studies.jobs import Job
from jacrec.util.files import append_json_line, write_json

LOCK, WORKERS_LOCK, LOG = ".lock", ".workers.lock", "log.jsonl"
PATIENCE = 30.0
"""seconds to wait for the workers of a killed sweep"""


@dataclass(frozen=True)
class Failure:
    """Why a job has no result."""

    error: str
    traceback: str
    attempts: int


def read_failure(job: Job) -> Failure | None:
    """The recorded failure of a job; None if there is none."""
    if not job.failure.is_file():
        return None
    return Failure(**json.loads(job.failure.read_text(encoding="utf-8")))


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
    """Hold the lock of a sweep on the folder; yields the file that workers hold a shared lock on.

    The operating system releases both locks however their holders end. They protect against sweeps on the same machine only,
    since a shared file system may not propagate them; several machines work on a study as one Ray cluster.

    Raises:
        ValueError: another sweep is running on the folder, or workers of a killed sweep do not exit.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a") as own, (folder / WORKERS_LOCK).open("a") as theirs:
        if not _taken(own):
            raise ValueError(f"{folder}: expected no running sweep on this study, got one; wait for it, or stop it")
        end = time.monotonic() + PATIENCE
        while not _taken(theirs):
            if time.monotonic() > end:
                raise ValueError(f"{folder}: expected no workers of an earlier sweep, got running ones; stop them first")
            time.sleep(0.1)
        fcntl.flock(theirs, fcntl.LOCK_UN)
        yield folder / WORKERS_LOCK


def is_locked(folder: Path) -> bool:
    """Whether a sweep is running on the folder."""
    if not (folder / LOCK).is_file():
        return False
    with (folder / LOCK).open("a") as file:
        return not _taken(file)


def _taken(file: Any) -> bool:
    """Take the lock, if nobody has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
